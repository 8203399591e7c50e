"""Runs in a sandbox, as a cell: the weights in /data/model come out as safetensors.

Loading them may run any code, and whoever calls knows that. What comes out is asked for
piece by piece, as text: the name of a file, a colon, and some of its bytes in base64.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SOURCE = Path("/data/model")
MADE = Path("/tmp/made")  # noqa: S108  the sandbox's own /tmp
PIECE = 6 << 20

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's kinds of number."""


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one file, mapped into memory where its format allows."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    try:
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # noqa: BLE001  older formats, and objects: this is what the sandbox is for
        held = torch.load(path, map_location="cpu", weights_only=False)
    state: Any = held.state_dict() if hasattr(held, "state_dict") else held
    state = state.get("state_dict", state)
    found = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not found:
        msg = f"there are no tensors in {path.name}"
        raise ValueError(msg)
    return found


def from_gguf(name: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """A GGUF model's tensors; writes its configuration and tokenizer to ``MADE``."""
    wanted = dtype or torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(SOURCE, gguf_file=name, dtype=wanted)
    model.config.dtype = wanted
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(MADE)
    model.generation_config.save_pretrained(MADE)
    transformers.AutoTokenizer.from_pretrained(SOURCE, gguf_file=name).save_pretrained(MADE)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def safetensors(state: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> Iterator[bytes]:
    """A safetensors file, one tensor at a time (huggingface.co/docs/safetensors)."""

    def kind(tensor: torch.Tensor) -> torch.dtype:
        return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in state.items():
        end = at + tensor.numel() * kind(tensor).itemsize
        offsets = [at, end]
        about = {"dtype": TYPES[kind(tensor)], "shape": list(tensor.shape)}
        header[name] = {**about, "data_offsets": offsets}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in state.values():
        plain = tensor.detach().to(kind(tensor)).contiguous().reshape(-1)
        data = memoryview(plain.view(torch.uint8).numpy())
        for begin in range(0, len(data), PIECE):
            yield bytes(data[begin : begin + PIECE])


def pieces(names: list[str], dtype: str) -> Iterator[str]:
    """Everything that comes out; ``names`` are the files of weights."""
    MADE.mkdir()
    wanted = getattr(torch, dtype) if dtype else None
    if names[0].endswith(".gguf"):
        state = from_gguf(names[0], wanted)
    else:
        state = {}
        for name in names:
            state.update(tensors_of(SOURCE / name))
    adapter = all(name.startswith("adapter_model") for name in names)
    for data in safetensors(state, wanted):
        yield piece("adapter_model.safetensors" if adapter else "model.safetensors", data)
    for path in sorted(MADE.iterdir()):
        with path.open("rb") as file:
            while data := file.read(PIECE):
                yield piece(path.name, data)


def piece(name: str, data: bytes) -> str:
    """One piece, as text."""
    return f"{name}:{base64.b64encode(data).decode()}"
