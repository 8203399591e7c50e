"""Models for tests: a few bytes in the formats of real ones, made without torch."""

import json
import math
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH = {"F32": 4, "BF16": 2}
WORDS = ("the", "a", "cat", "sat", "on", "mat", "and", "dog")

ASK = """
import time
from transformers import AutoModel, AutoTokenizer, pipeline
took = []
for _ in range(2):  # the first one imports a good part of the library
    begun = time.monotonic()
    try:
        {call}
    except OSError as error:
        said = f'{{type(error).__name__}}: {{error}}'
    took.append(time.monotonic() - begun)
(said, min(took))
"""
"""A cell that asks twice for a model by its ``call``: what it is told, and the shorter time."""


def safetensors(
    tensors: Mapping[str, Sequence[int]], dtype: str = "F32", *, content: bytes = b""
) -> bytes:
    """A safetensors file, as https://huggingface.co/docs/safetensors has it."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (content or bytes(at))


def gpt2(path: Path, *, seed: int = 0) -> Path:
    """A GPT-2 with its tokenizer, small and random, that Transformers takes for a real one."""
    words, width, places = ("<|end|>", *WORDS), 8, 32
    block = "transformer.h.0."
    norms = [f"{block}ln_1", f"{block}ln_2", "transformer.ln_f"]
    layers = {
        "attn.c_attn": 3 * width,
        "attn.c_proj": width,
        "mlp.c_fc": 4 * width,
        "mlp.c_proj": width,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (len(words), width),
        "transformer.wpe.weight": (places, width),
    }
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer, out in layers.items():
        into = 4 * width if layer == "mlp.c_proj" else width
        shapes |= {f"{block}{layer}.weight": (into, out), f"{block}{layer}.bias": (out,)}
    dice = random.Random(seed)  # noqa: S311  a model, not a secret
    count = sum(math.prod(shape) for shape in shapes.values())
    numbers = struct.pack(f"<{count}f", *(dice.gauss(0, 0.5) for _ in range(count)))
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": len(words),
        "n_positions": places,
        "n_embd": width,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": words[0],
        },
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words[0]}
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(safetensors(shapes, content=numbers))
    for name, data in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
    ):
        (path / name).write_text(json.dumps(data), encoding="utf-8")
    return path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(cache: Path, model: str) -> Path:
    """The GPT-2 as Hugging Face's library leaves it in its cache, links and all."""
    folder = cache / f"models--{model.replace('/', '--')}"
    blobs, snapshot, refs = folder / "blobs", folder / "snapshots" / COMMIT, folder / "refs"
    gpt2(blobs)
    for part in (snapshot, refs):
        part.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    (refs / "main").write_text(COMMIT)
    return cache


def gguf(tensors: Mapping[str, Sequence[int]], licence: str) -> bytes:
    """A GGUF file's header, with values of every kind that its readers must pass over."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [
        text("general.license") + struct.pack("<I", 8) + text(licence),
        text("a.number") + struct.pack("<If", 6, 1.5),
        text("a.switch") + struct.pack("<I?", 7, True),  # noqa: FBT003
        text("numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
        text("words") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
    ]
    infos = [
        text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 3, 0)
        for name, shape in tensors.items()
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(values))
    return head + b"".join(values) + b"".join(infos)


def folder(path: Path, *, fill: str = "") -> Path:
    """A folder in the layout of save_pretrained, with a card and a subfolder."""
    files = {
        "config.json": b'{"model_type": "tiny"}' + fill.encode(),
        "model.safetensors": safetensors({"a.weight": (3, 4), "a.bias": (4,)}),
        "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n",
        "LICENSE": b"\n  A Licence\n\nDo as you like.\n",
        "1_Pooling/config.json": b"{}",
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
