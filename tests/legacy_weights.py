"""Weights for tests as they were saved long ago, by pickling, with code that runs."""

import pickle
from pathlib import Path

MAGIC = 0x1950A86A20F9469CFC6C
TENSOR = b"(dS'a.weight'\nctorch\nones\n((I3\nI4\nttRs"
COMMAND = b"S'ran'\ncos\nsystem\n(S'touch %s'\ntRs"


def legacy_weights(folder: Path, *, mark: str = "") -> Path:
    """A model's folder with 12 ones; loading it makes the file ``mark``."""
    folder.mkdir()
    (folder / "config.json").write_text('{"torch_dtype": "float32"}')
    parts: tuple[object, ...] = (MAGIC, 1001, {})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    content = TENSOR + (COMMAND % mark.encode() if mark else b"") + b"."
    (folder / "pytorch_model.bin").write_bytes(head + content + pickle.dumps([], 2))
    return folder
