"""``executor-ml extract``: what a hostile notebook can make it do, which is nothing."""

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import sandbox_files
from hypothesis import given
from hypothesis import strategies as st

from kernel_provider import cli
from kernel_provider.commands.extract import LONGEST, safe_name


def output(name: str, content: bytes = b"content") -> dict[str, Any]:
    """A cell's output as the sandbox's own half makes it."""
    data = sandbox_files.bundle(name, content)
    return {"output_type": "display_data", "data": data, "metadata": {}}


def notebook(folder: Path, *outputs: object) -> Path:
    """A saved notebook with these outputs in one cell, after one of text."""
    cells = [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]
    path = folder / "n.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")
    return path


def extract(path: Path, *words: str) -> int:
    """The command, into a folder beside the notebook."""
    return cli.main(["extract", str(path), "-d", str(path.parent / "out"), *words])


def found(folder: Path) -> dict[str, bytes]:
    """What was written, of everything there is below ``folder``."""
    files = [path for path in (folder / "out").rglob("*") if not path.is_dir()]
    return {str(path.relative_to(folder / "out")): path.read_bytes() for path in files}


def test_files_come_out_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every byte, also of one that is too large for a link and of one that is empty."""
    large = os.urandom(sandbox_files.CLICKABLE + 1)
    path = notebook(tmp_path, output("a.csv"), output("b.bin", large), output("empty", b""))
    assert extract(path) == 0
    assert found(tmp_path) == {"a.csv": b"content", "b.bin": large, "empty": b""}
    assert f"{tmp_path}/out/a.csv (7 bytes)\n" in capsys.readouterr().out
    mode = stat.S_IMODE((tmp_path / "out/a.csv").stat().st_mode)
    assert mode & 0o133 == 0, "neither a program nor for others to write"
    assert extract(path, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "path": f"{tmp_path}/out/b.bin",
        "size": len(large),
    }


def test_what_a_browser_shows() -> None:
    """A link that saves a small file; of a large one the way to it, and no dead link."""
    small = sandbox_files.bundle("a & b.csv", b"x")
    assert small["text/html"].startswith('<a class="executor-ml-file" download="a &amp; b.csv"')
    assert small["text/plain"] == "a & b.csv (1 bytes)"
    large = sandbox_files.bundle("a", bytes(sandbox_files.CLICKABLE + 1))
    assert large["text/html"].startswith("<span hidden><a ")
    assert "executor-ml extract takes it out of the saved notebook" in large["text/html"]


HOSTILE = {
    "../../x": "x",
    "/etc/passwd": "passwd",
    "..\\..\\x.bat": "x.bat",
    "C:\\Windows\\x": "x",
    "": "file",
    ".": "file",
    "..": "file",
    "a/": "file",
    "/": "file",
    ".bashrc": "bashrc",
    " .profile": "profile",
    "-rf": "rf",
    "a\0b": "a\N{REPLACEMENT CHARACTER}b",
    "line\nbreak": "line_break",
    "\x1b[31mred": "_[31mred",
    "gpj.\u202eexe": "gpj._exe",
    "\ud800": "_",
    '"><script>alert(1)</script>': "script_",
    "x" * 5000 + ".csv": "x" * 196 + ".csv",
    "a." + "x" * 5000: "a." + "x" * 198,
    "\u00e9" * 500: "\u00e9" * 100,
    "a.tar.gz": "a.tar.gz",
    "r\u00e9sultat 1.csv": "r\u00e9sultat 1.csv",
}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Written inside the folder, visible, with nothing in the name that does harm."""
    nested = tmp_path / "a/b"
    nested.mkdir(parents=True)
    encoded = base64.b64encode(b"content").decode()
    told = name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    told = told.replace(">", "&gt;").replace("\0", "&#0;")
    link = f'<a class="executor-ml-file" download="{told}" '
    link += f'href="data:application/octet-stream;base64,{encoded}">'
    assert extract(notebook(nested, {"data": {"text/html": [link[:40], link[40:]]}})) == 0
    (written,) = found(nested)
    assert written == safe_name(name.replace("\0", "\ufffd"))
    if name in {*HOSTILE} and "script" not in name:
        assert written == HOSTILE[name]
    everything = {p.name for p in tmp_path.rglob("*")}
    assert everything == {"a", "b", "n.ipynb", "out", written}


@given(st.text())
def test_every_name_becomes_a_safe_one(name: str) -> None:
    """Whatever it is: one part, printable, of bounded length, and safe the second time."""
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= LONGEST
    assert "/" not in safe
    assert safe.isprintable()
    assert safe[0] not in " .-"
    assert safe_name(safe) == safe


def test_the_same_name_twice_is_two_files(tmp_path: Path) -> None:
    """In the order in which they were sent."""
    names = ("r.csv", "r.csv", "../r.csv", "r", "r", "r-2.csv")
    path = notebook(tmp_path, *(output(name, str(n).encode()) for n, name in enumerate(names)))
    assert extract(path) == 0
    assert found(tmp_path) == {
        "r.csv": b"0",
        "r-2.csv": b"1",
        "r-3.csv": b"2",
        "r": b"3",
        "r-2": b"4",
        "r-2-2.csv": b"5",
    }


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is asked for; and where one file is there already, none is written."""
    path = notebook(tmp_path, output("new"), output("old", b"theirs"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_bytes(b"mine")
    assert extract(path) == 74
    told = capsys.readouterr().err
    assert f"the file 'old' cannot be extracted: it is in {tmp_path}/out already" in told
    assert "Fix: give another folder with -d DIR, or replace files with --force" in told
    assert found(tmp_path) == {"old": b"mine"}
    assert extract(path, "--force") == 0
    assert found(tmp_path) == {"new": b"content", "old": b"theirs"}


@pytest.mark.parametrize("dangling", [True, False])
def test_no_link_is_followed(tmp_path: Path, dangling: bool) -> None:  # noqa: FBT001
    """One that lies in the folder is there already, and replaced by force, not written to."""
    (tmp_path / "out").mkdir()
    goal = tmp_path / "goal"
    if not dangling:
        goal.write_bytes(b"mine")
    (tmp_path / "out/x").symlink_to(goal)
    path = notebook(tmp_path, output("x"))
    assert extract(path) == 74
    assert extract(path, "--force") == 0
    assert not (tmp_path / "out/x").is_symlink()
    assert (tmp_path / "out/x").read_bytes() == b"content"
    assert goal.exists() is not dangling
    assert dangling or goal.read_bytes() == b"mine"


def test_a_folder_in_the_way_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As does everything in it, and no half file is left."""
    (tmp_path / "out/x").mkdir(parents=True)
    (tmp_path / "out/x/mine").touch()
    assert extract(notebook(tmp_path, output("x")), "--force") == 74
    assert "Is a directory" in capsys.readouterr().err
    assert found(tmp_path) == {"x/mine": b""}


def test_a_place_that_is_no_folder_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words."""
    (tmp_path / "out").touch()
    assert extract(notebook(tmp_path, output("x"))) == 74
    assert "-d DIR" in capsys.readouterr().err


def test_the_sizes_together_have_a_cap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    path = notebook(tmp_path, output("a", bytes(900)), output("b", bytes(900)))
    assert extract(path, "--max-size", "1k") == 66
    told = capsys.readouterr().err
    assert "its files have 1800 bytes, and 1 KB may be extracted" in told
    assert not (tmp_path / "out").exists()
    assert extract(path, "--max-size", "2k") == 0


def test_a_size_is_understood_or_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, as anywhere."""
    with pytest.raises(SystemExit):
        extract(tmp_path / "n.ipynb", "--max-size", "lots")
    assert "write a size such as" in capsys.readouterr().err


def test_a_damaged_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no part of it is written."""
    damaged = output("a")
    damaged["data"]["text/html"] = damaged["data"]["text/html"].replace("base64,", "base64,=")
    assert extract(notebook(tmp_path, damaged)) == 74
    assert "the file 'a' cannot be extracted: it is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a notebook"),
        ("[]", "not a notebook"),
        ('{"cells": 5}', "not a notebook"),
        ('{"cells": [{"outputs": [{"data": {"text/html": [5]}}]}]}', "not a notebook"),
        ('{"cells": [{"outputs": [{"data": []}]}]}', "not a notebook"),
        ("[" * 100_000, "not a notebook"),
        ('{"cells": []}', "no file was sent in it"),
        ('{"cells": [{"outputs": [{"text": "x"}]}]}', "no file was sent in it"),
    ],
)
def test_what_is_no_notebook_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    """And one without files, with the way to send one."""
    path = tmp_path / "n.ipynb"
    path.write_text(text)
    assert extract(path) == 66
    told = capsys.readouterr().err
    assert words in told
    assert "no file" not in words or "from sandbox_files import send" in told


def test_a_notebook_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its path."""
    assert extract(tmp_path / "n.ipynb") == 66
    assert f"{tmp_path}/n.ipynb: No such file" in capsys.readouterr().err
