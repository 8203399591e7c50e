"""What is read of weights without loading them."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
from small_models import gguf, safetensors

from kernel_provider.models.weights import is_pickle, read_all


def test_safetensors_are_counted(tmp_path: Path) -> None:
    """Parameters of all shards, and the kind of number that most of them are."""
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(safetensors({"a": (3, 4), "b": ()}))
    two.write_bytes(safetensors({"c": (100,)}, "BF16"))
    names = {"model-1-of-2.safetensors": one, "model-2-of-2.safetensors": two, "config.json": one}
    held = read_all(names)
    assert (held.parameters, held.dtype) == (113, "BF16")


def test_the_same_weights_in_another_layout_are_not_counted_again(tmp_path: Path) -> None:
    """Some models carry theirs twice, under a name of their maker's."""
    (tmp_path / "x").write_bytes(safetensors({"a": (5,)}))
    files = {"model.safetensors": tmp_path / "x", "consolidated.safetensors": tmp_path / "x"}
    assert read_all(files).parameters == 5


def test_gguf_is_counted_and_names_its_licence(tmp_path: Path) -> None:
    """By its header alone, whatever else is in there."""
    (tmp_path / "x").write_bytes(gguf({"a": (4, 5), "b": (7,)}, "apache-2.0"))
    held = read_all({"some.gguf": tmp_path / "x"})
    assert (held.parameters, held.dtype, held.licence) == (27, "Q4_1", "apache-2.0")


def test_nothing_is_known_of_a_model_without_weights(tmp_path: Path) -> None:
    """A tokenizer is a model, too."""
    (tmp_path / "x").write_text("{}")
    held = read_all({"tokenizer.json": tmp_path / "x"})
    assert (held.parameters, held.dtype) == (None, "")


GOOD = safetensors({"a": (3, 4)})
BROKEN = {
    "a.safetensors": [
        b"",
        b"\0" * 8,
        GOOD[:-1],
        b"\xff" * 8 + GOOD[8:],
        GOOD.replace(b'"shape"', b'"shapE"'),
        b"\x02" + bytes(7) + b"[]",
    ],
    "a.gguf": [
        b"GGUF",
        b"GGUX" + gguf({}, "")[4:],
        gguf({"a": (1,)}, "x")[:-1],
        gguf({}, "").replace(b"words\x09", b"words\x63"),
        gguf({}, "x")[:16] + b"\xff" * 8 + gguf({}, "x")[24:],
    ],
}


@pytest.mark.parametrize(("name", "content"), [(n, c) for n, all_ in BROKEN.items() for c in all_])
def test_a_broken_file_is_told(name: str, content: bytes, tmp_path: Path) -> None:
    """By its name, and without reading what its numbers promise."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_all({name: tmp_path / "x"})


def torch_archive() -> bytes:
    """What torch.save writes, as far as it matters here."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps({}))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pth", b"anything"),
        ("sub/MODEL.PT", b""),
        ("pytorch_model.bin", b"old"),
        ("pytorch_model-00001-of-00002.bin", b""),
        ("harmless.json", pickle.dumps({})),
        ("model.safetensors", torch_archive()),
        ("broken", b"PK no archive"),
    ],
)
def test_pickles_are_seen(name: str, content: bytes, tmp_path: Path) -> None:
    """By their names, and under any name."""
    (tmp_path / "x").write_bytes(content)
    assert is_pickle(name, tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", GOOD), ("openvino_model.bin", b"\0\1"), ("a.gguf", gguf({}, ""))],
)
def test_other_files_are_no_pickles(name: str, content: bytes, tmp_path: Path) -> None:
    """Neither by name nor by content."""
    (tmp_path / "x").write_bytes(content)
    assert not is_pickle(name, tmp_path / "x")
