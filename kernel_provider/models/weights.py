"""What a file of weights says of itself, read without loading it, and pickles by sight.

Nothing is unpickled. A header is read as a whole only where it is small, and no number
in it is believed before it was compared with the file's size.
"""

import json
import math
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

HEADER_LIMIT: Final = 100_000_000
"""Bytes of a safetensors header, by its format's own rule.
https://huggingface.co/docs/safetensors"""

PICKLE_SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
WEIGHT_PICKLES: Final = ("pytorch_model", "adapter_model")
"""How the names of pickled weights begin, in the layout of save_pretrained."""

_GGUF_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_TEXT: Final = 8
_GGUF_ARRAY: Final = 9
_GGUF_DIMENSIONS: Final = 4
_GGUF_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 30: "BF16",
}  # fmt: skip
"""https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters by the kind of number that holds them."""

    counts: Counter[str] = field(default_factory=Counter)
    licence: str = ""

    @property
    def parameters(self) -> int | None:
        """How many there are; None where no file told."""
        return sum(self.counts.values()) or None

    @property
    def dtype(self) -> str:
        """The kind that most of them have."""
        return self.counts.most_common(1)[0][0] if self.counts else ""


def is_pickle(name: str, path: Path) -> bool:
    """Whether loading the file would run code: by its name, or by how it begins."""
    name = name.rpartition("/")[2].lower()
    if name.endswith(PICKLE_SUFFIXES):
        return True
    with path.open("rb") as file:
        head = file.read(2)
    if head[:1] == b"\x80" and head[1:] in {b"\2", b"\3", b"\4", b"\5"}:
        return True
    if head == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(inner.endswith("data.pkl") for inner in archive.namelist())
        except zipfile.BadZipFile:
            return True
    return name.endswith(".bin") and name.startswith(WEIGHT_PICKLES)


def read_all(files: Mapping[str, Path]) -> Weights:
    """Add up what a model's files say; raises ValueError where one is broken."""
    tensors = [name for name in files if name.endswith(".safetensors")]
    standard = [name for name in tensors if name.rpartition("/")[2].startswith("model")]
    readers = [(name, read_safetensors) for name in standard or tensors]
    readers += [(name, read_gguf) for name in files if name.endswith(".gguf")]
    found = []
    for name, reader in readers:
        try:
            found.append(reader(files[name]))
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{name} is no {name.rpartition('.')[2]} file: {error}"
            raise ValueError(msg) from error
    counts: Counter[str] = Counter()
    for weights in found:
        counts.update(weights.counts)
    return Weights(counts=counts, licence=next((w.licence for w in found if w.licence), ""))


def read_safetensors(path: Path) -> Weights:
    """Read the header of a safetensors file, and see that the file is all there.

    A file that is none raises whatever it makes go wrong; so do GGUF files.
    """
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        room = path.stat().st_size - 8 - length
        if length > HEADER_LIMIT or room < 0:
            msg = "its header is longer than it may be"
            raise ValueError(msg)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for tensor in header.values():
        begin, end = tensor["data_offsets"]
        if not 0 <= begin <= end <= room:
            msg = "it ends before its tensors do"
            raise ValueError(msg)
        counts[str(tensor["dtype"])] += math.prod(int(n) for n in tensor["shape"])
    return Weights(counts=counts)


def read_gguf(path: Path) -> Weights:
    """Read the header of a GGUF file: its tensors, and the licence that it names."""
    with path.open("rb") as file:
        return _Gguf(file, path.stat().st_size).read()


class _Gguf:
    """A reader that stands somewhere in a GGUF file's header."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> Weights:
        magic, version, tensors, pairs = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in {2, 3}:
            msg = "it does not begin as one"
            raise ValueError(msg)
        licence = ""
        for _ in range(pairs):
            key = self._text()
            value = self._value(*self._unpack("I"))
            if key == "general.license" and isinstance(value, str):
                licence = value
        counts: Counter[str] = Counter()
        for _ in range(tensors):
            self._text()
            (dimensions,) = self._unpack("I")
            if dimensions > _GGUF_DIMENSIONS:
                msg = f"a tensor has {dimensions} dimensions"
                raise ValueError(msg)
            *shape, kind, _offset = self._unpack(f"{dimensions}QIQ")
            counts[_GGUF_TYPES.get(kind, f"type {kind}")] += math.prod(shape)
        return Weights(counts=counts, licence=licence)

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))

    def _take(self, count: int) -> bytes:
        self._skip(count)
        self._file.seek(-count, os.SEEK_CUR)
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            msg = "it ends in the middle of its header"
            raise ValueError(msg)
        self._file.seek(count, os.SEEK_CUR)

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        return self._take(length).decode(errors="replace")

    def _value(self, kind: int) -> object:
        """Read one value; only texts are of interest, arrays are passed over."""
        if kind == _GGUF_TEXT:
            return self._text()
        if kind != _GGUF_ARRAY:
            self._skip(_GGUF_SIZES[kind])
            return None
        inner, count = self._unpack("IQ")
        if inner == _GGUF_TEXT:
            for _ in range(count):
                self._text()
        elif inner in _GGUF_SIZES:
            self._skip(_GGUF_SIZES[inner] * count)
        else:
            msg = "it has arrays of arrays"
            raise ValueError(msg)
        return None
