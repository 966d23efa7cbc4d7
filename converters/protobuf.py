"""Protocol buffers without their schema: as much of the wire format as TensorFlow's files need.

Format: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

Value = int | memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at `position`, and the position behind it.

    Raises:
        ValueError: the data end within it, or it is longer than 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is cut short")


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a message: an integer, or the bytes of a text or message.

    Raises:
        ValueError: the data are no message.
    """
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field is of the unknown kind {wire}")
        if size > len(data) - position:
            raise ValueError("a field is cut short")
        yield number, data[position : position + size]
        position += size


def messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The messages or texts in the fields of that number."""
    return (v for n, v in fields(data) if n == number and isinstance(v, memoryview))


def integer(data: memoryview, number: int) -> int:
    """The last integer in a field of that number; 0, as the format has it, if there is none."""
    found = [value for key, value in fields(data) if key == number and isinstance(value, int)]
    return found[-1] if found else 0


def text(data: memoryview, number: int) -> str:
    """The last text in a field of that number; "" if there is none."""
    found = list(messages(data, number))
    return str(found[-1], "utf-8") if found else ""
