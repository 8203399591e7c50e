"""What is converted, and what is believed of a sandbox's answers: next to nothing."""

import base64
import pickle
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.models.convert import FILES, _answer, chosen, receive
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.sources import Found
from kernel_provider.steps import Note

MOST = 1000


def piece(name: str, data: bytes) -> str:
    """An answer as the sandbox's end makes it."""
    return f"'{name}:{base64.b64encode(data).decode()}'"


def test_pieces_become_files(tmp_path: Path) -> None:
    """In the order in which they come."""
    answers = [piece("a.json", b"one"), piece("b.bin", b"x"), piece("b.bin", b"yz")]
    note = Note()
    receive(iter(answers), tmp_path, most=MOST, note=note)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "a.json": b"one",
        "b.bin": b"xyz",
    }
    assert note.text == "0.0 KB converted"


@pytest.mark.parametrize(
    "answers",
    [
        ["'../x:eA=='"],
        ["'/etc/x:eA=='"],
        ["'.x:eA=='"],
        ["':eA=='"],
        ["'a\\n:eA=='"],
        ["'a:eA==' + 'b'"],
        ["'a:e'"],
        ["'a:=='"],
        ["a:eA=="],
        ["b'a:eA=='"],
        [piece("x" * 101, b"x")],
        [piece("a", b"1"), piece("b", b"2"), piece("a", b"3")],
        [piece("a", bytes(MOST)), piece("a", b"1")],
        [piece(f"{number}", b"1") for number in range(FILES + 1)],
        [piece("model.safetensors", pickle.dumps({}))],
        [piece("pytorch_model.bin", b"x")],
    ],
)
def test_anything_else_is_refused(answers: list[str], tmp_path: Path) -> None:
    """Other names, other texts, too much, and what would run code in turn."""
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"."):
        receive(iter(answers), folder, most=MOST, note=Note())
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST


@pytest.mark.parametrize(
    "content",
    [
        None,
        7,
        [],
        {},
        {"user_expressions": 7},
        {"user_expressions": {"answer": 7}},
        {"user_expressions": {"answer": {"data": {"text/plain": 7}}}},
        {"ename": 7, "evalue": []},
    ],
)
def test_an_answer_may_be_anything(content: object) -> None:
    """It is refused and breaks nothing."""
    message: Any = {"content": content}
    with pytest.raises(ValueError, match="makes no sense"):
        _answer(message)


def test_an_error_inside_is_told() -> None:
    """Of the code, or of the expression; cut short."""
    failed = {"status": "error", "ename": "KeyError", "evalue": "x" * 9000}
    for content in (failed, {"status": "ok", "user_expressions": {"answer": failed}}):
        with pytest.raises(ValueError, match=r"^KeyError: x+$") as caught:
            _answer({"content": content})
        assert len(str(caught.value)) == 500


def pick(*names: str) -> list[str]:
    """What is converted of a folder with these files."""
    pickles = {name: Path(name) for name in names if name.endswith((".bin", ".pth"))}
    files = {name: Path(name) for name in names if name not in pickles}
    return chosen("m", Found(files=files, pickles=pickles, source="here"))


def test_the_weights_are_known_by_name() -> None:
    """Shards together; safetensors before pickles, and the standard names before others."""
    shards = ["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"]
    assert pick("config.json", "training_args.bin", *shards) == shards
    assert pick("config.json", "mobilenet.pth") == ["mobilenet.pth"]
    assert pick("config.json", "tiny.gguf") == ["tiny.gguf"]
    assert pick("model.safetensors", "pytorch_model.bin", "x.gguf") == ["model.safetensors"]
    assert pick("model.safetensors", "consolidated.safetensors") == ["model.safetensors"]
    assert pick("adapter_model.bin") == ["adapter_model.bin"]


@pytest.mark.parametrize(
    "names",
    [
        ["config.json"],
        ["a.pth", "b.pth"],
        ["a.gguf", "b.gguf"],
        ["pytorch_model.bin", "2_Dense/pytorch_model.bin"],
    ],
)
def test_what_is_not_clear_is_asked(names: list[str]) -> None:
    """Rather than a model with a part of its weights."""
    with pytest.raises(ModelRefusedError, match="Fix: name the one file instead of its folder"):
        pick(*names)
