"""The process that runs libhdf5: `python -P hdf5_child.py` answers what an HDF5 file holds.

libhdf5 crashes, loops for ever or takes all memory on some damaged files, so it never runs in
voxtune's own process. Each request is answered by a fork with limits; what becomes of the fork is
the answer. The values of tensors do not pass through here, only where they lie in the file.

A request is one line of JSON: `{"path": ..., "scratch": ...}`. An answer is its length in bytes on
one line, then JSON: what `_contents` returns, or `{"name": ..., "refused": why}`, or
`{"broken": why}`.
"""

# h5py carries no types and does not mark what it exports. On Windows signal and os lack names.
# mypy: disable-error-code="attr-defined, no-untyped-call, unused-ignore"

import gc
import json
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MAX_ANSWER_BYTES = 96 * 2**20  # of JSON: a configuration of 64 MB, escaped
_MEMORY = 2**30  # bytes beyond those of the idle process
_SECONDS = 0.7  # of computing, and one more for each of these bytes of the file:
_BYTES_A_SECOND = 4 * 2**20
_MAX_SECONDS = 60.0
_PATIENCE = 10  # times that, waiting for the disk included

# Those of h5py itself. Others are loaded as programs.
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000)
# A dataset may claim any size and store nothing. Weights shrink little when compressed.
_MAX_RATIO, _FREE_BYTES = 20, 64 * 2**20
_WANTED = re.compile(
    r"(model_config|keras_version|backend|name|dtype|nb_layers|nb_params|(layer|weight)_names\d*)"
)
_MAX_NAME = 4096
_OPTIMIZER = ("optimizer_weights/", "optimizer/")


class _RefusedError(Exception):
    """A name of the file, and why it is no part of a Keras file and may harm."""


def _contents(path: str, scratch: str) -> dict[str, Any]:
    """The groups, tensors and attributes of a file.

    Returns:
        groups: full names, the root "" first. attributes: full name of a group or tensor → name →
        text, number, list of texts, or None for anything else. tensors: full name → `_tensor`.
    """
    groups: list[str] = []
    attributes: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    size = Path(path).stat().st_size
    room = _FREE_BYTES + _MAX_RATIO * size
    # From memory, small files are read twice as fast.
    driver: dict[str, Any] = {"driver": "core", "backing_store": False} if size < 2**20 else {}
    with h5py.File(path, "r", locking=False, **driver) as file:
        # A loop over links: `visititems` would follow a group that contains itself, and h5py's
        # lookup a link into another file.
        seen: set[int] = set()
        queue: list[tuple[str, Any]] = [("", file.id)]
        while queue:
            name, item = queue.pop()
            address = h5py.h5o.get_info(item).addr
            if address in seen:
                raise _RefusedError(name, "is stored under two names")
            seen.add(address)
            attributes[name] = _attributes(item)
            if isinstance(item, h5py.h5d.DatasetID):
                tensors[name] = _tensor(name, item, scratch, room)
                room -= tensors[name].get("unpacked", 0)
                continue
            group = h5py.h5g.open(item, b"/") if isinstance(item, h5py.h5f.FileID) else item
            if not isinstance(group, h5py.h5g.GroupID):
                raise _RefusedError(name, "is neither a group nor a tensor")
            groups.append(name)
            for link in reversed(list(group)):
                full = f"{name}/{link.decode()}" if name else link.decode()
                if len(full) > _MAX_NAME:  # groups may nest without end
                    raise _RefusedError(full, "lies deeper than anything in a Keras file")
                if group.links.get_info(link).type != h5py.h5l.TYPE_HARD:
                    raise _RefusedError(full, "is a link to another place or file")
                queue.append((full, h5py.h5o.open(group, link)))
    return {"groups": groups, "attributes": attributes, "tensors": tensors}


def _attributes(item: Any) -> dict[str, Any]:
    """Those attributes that Keras gives a meaning to."""
    if not h5py.h5a.get_num_attrs(item):
        return {}
    manager = h5py.AttributeManager(_Named(item))
    return {name: _value(manager, name) for name in manager if _WANTED.fullmatch(name)}


class _Named:
    """What an AttributeManager wants to know of an object: `h5py.Group` costs twice the time."""

    def __init__(self, item: Any) -> None:
        self.id = item


def _value(manager: Any, name: str) -> Any:
    stored = manager.get_id(name)
    kind, shape = stored.dtype, stored.shape
    if kind.kind in "iu" and shape == ():
        return int(manager[name])
    if shape in (None, (0,)):  # an empty list is written as zero float64 values
        return []
    if h5py.check_string_dtype(kind) is None or len(shape) > 1:
        return None
    value = manager[name]
    return _text(value) if shape == () else [_text(each) for each in value]


def _text(value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value)
    text.encode()  # h5py lets bytes that are no UTF-8 through, as halves of characters
    return text


def _tensor(name: str, item: Any, scratch: str, room: int) -> dict[str, Any]:
    """Shape, type, and where the values lie: `offset` in the file, or in the scratch file for those
    that had to be unpacked (`unpacked` bytes), or `inline` as hexadecimal digits, or nowhere."""
    shape, kind = item.shape, _kind(item.get_type())
    found: dict[str, Any] = {"shape": shape, "dtype": kind}
    plan = item.get_create_plist()
    layout = plan.get_layout()
    if kind.startswith("no number") or shape is None or name.startswith(_OPTIMIZER):
        return found | {"shape": shape or []}
    size = math.prod(shape) * item.get_type().get_size()
    if plan.get_external_count() or layout == h5py.h5d.VIRTUAL:
        found["why"] = "is kept in another file or is virtual, which Keras does not write"
    elif layout == h5py.h5d.CHUNKED:
        filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        if not set(filters) <= set(_FILTERS):
            found["why"] = "is compressed by a filter that voxtune does not run"
        elif size > room:
            found["why"] = "claims to unpack to far more bytes than the file has"
        else:
            return found | _unpack(item, size, scratch)
    elif size != item.get_storage_size():
        found["why"] = f"needs {size} bytes where the file has {item.get_storage_size()}"
    elif layout == h5py.h5d.COMPACT:
        values = np.empty(shape, h5py.h5t.py_create(item.dtype).dtype)
        item.read(h5py.h5s.ALL, h5py.h5s.ALL, values, item.get_type())
        found["inline"] = values.tobytes().hex()
    else:
        found["offset"] = item.get_offset()
    return found


def _kind(stored: Any) -> str:
    """NumPy's name for a type whose bytes are exactly those of a number in NumPy."""
    if isinstance(stored, h5py.h5t.TypeOpaqueID) and stored.get_size() == 2:
        return "bfloat16"  # as h5py stores those of ml_dtypes, which Keras writes
    kind = stored.dtype
    if kind.kind not in "fiub" or not stored.equal(h5py.h5t.py_create(kind)):
        return f"no number: {kind}"[:80]
    return kind.str


def _unpack(item: Any, size: int, scratch: str) -> dict[str, Any]:
    """Appends the values of a chunked or compressed dataset to the scratch file."""
    dataset = h5py.Dataset(item)
    with Path(scratch).open("ab") as file:
        offset = file.tell()
        file.truncate(offset + size)
    if size:
        values = np.memmap(scratch, dataset.dtype, "r+", offset, dataset.shape)
        for chunk in dataset.iter_chunks():
            values[chunk] = dataset[chunk]
    return {"offset": offset, "unpacked": size}


def _answer(request: dict[str, str]) -> bytes:
    answer: dict[str, Any]
    try:
        answer = _contents(request["path"], request["scratch"])
    except _RefusedError as refusal:
        name, what = refusal.args
        answer = {"name": name, "refused": what}
    except Exception as error:  # what libhdf5 and h5py raise on damaged files has no end
        answer = {"broken": f"{type(error).__name__}: {error}"[:500]}
    return json.dumps(answer).encode()


def _limit(path: str) -> None:
    """From here on this process dies of too much memory or time."""
    import resource  # not on Windows

    size = Path(path).stat().st_size
    seconds = min(_SECONDS + size / _BYTES_A_SECOND, _MAX_SECONDS)
    for timer, stop, limit in (
        (signal.ITIMER_PROF, signal.SIGPROF, seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, seconds * _PATIENCE),
    ):
        signal.signal(stop, signal.SIG_DFL)
        signal.setitimer(timer, limit)
    own = Path("/proc/self/statm")
    if own.exists():  # elsewhere than on Linux the size of an idle process has no ceiling to add to
        used = int(own.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _forked(request: dict[str, str]) -> bytes:
    """The answer of a fork, or how the fork died."""
    reader, writer = os.pipe()
    fork = os.fork()
    if not fork:
        try:
            os.close(reader)
            _limit(request["path"])
            with open(writer, "wb") as pipe:  # noqa: PTH123, a number and no path
                pipe.write(_answer(request))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123, a number and no path
        answer = pipe.read(MAX_ANSWER_BYTES + 1)
    os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
        return json.dumps({"broken": "it takes far too long to read"}).encode()
    if len(answer) > MAX_ANSWER_BYTES:
        return json.dumps({"broken": "its texts are too large for a Keras model"}).encode()
    return answer or json.dumps({"broken": "it crashes the library that reads it"}).encode()


def main() -> None:
    """Answers requests until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    gc.disable()  # a collection writes to all memory, which a fork would have to copy
    # Windows has neither forks nor limits; there this process itself stands between.
    answer = _forked if hasattr(os, "fork") else _answer
    for line in sys.stdin.buffer:
        content = answer(json.loads(line))
        sys.stdout.buffer.write(b"%d\n" % len(content) + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
