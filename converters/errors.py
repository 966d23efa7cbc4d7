"""The converters' one error, and how they put a stranger's words into it."""

from voxtune.models.errors import InputError


class ConversionError(InputError):
    """A Keras file cannot be converted: one sentence that names it, says why and what to do."""


def quoted(text: object, limit: int = 80) -> str:
    """Text from a file, safe to print: escaped, on one line and no longer than `limit`."""
    words = repr(text if isinstance(text, str) else str(text))
    return words if len(words) <= limit else words[: limit - 3] + "..."
