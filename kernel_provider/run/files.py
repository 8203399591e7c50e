"""The files of a run, in and out: checked before anything is started or imported.

Standard library only: what is wrong with a file is told at once, where the libraries
that run a notebook take a second to import.
"""

import json
import os
import secrets
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from kernel_provider.run.model import InputError, OutputError, RunRequest

NOT_A_NOTEBOOK: Final = "give a file that Jupyter wrote, with the ending .ipynb"


def prepare(request: RunRequest) -> str:
    """The notebook's text, of a run whose files can be read and written.

    Raises InputError, OutputError.
    """
    text = read(request.notebook)
    _check_apart(request)
    for path in (request.output, request.html):
        if path is not None:
            check_writable(path)
    if request.html is not None and find_spec("nbconvert") is None:
        raise InputError(
            what="--html",
            reason="nbconvert is not installed",
            remedy="run: pip install nbconvert",
        )
    return text


def read(path: Path) -> str:
    """The text of a file that looks like a notebook. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            what=str(path), reason="there is no such file", remedy="check the notebook's path"
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            what=str(path), reason="this is a folder", remedy="give a notebook in it"
        ) from error
    except OSError as error:
        raise InputError(
            what=str(path),
            reason=error.strerror or "cannot be read",
            remedy="give a file that you can read",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            what=str(path), reason="not a notebook: it is no text", remedy=NOT_A_NOTEBOOK
        ) from error
    wrong = _wrong(text)
    if wrong:
        raise InputError(what=str(path), reason=f"not a notebook: {wrong}", remedy=NOT_A_NOTEBOOK)
    return text


def _wrong(text: str) -> str:
    """What is wrong with a notebook's text at first sight; nothing where it seems right."""
    if not text.strip():
        return "it is empty"
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return f"no JSON, line {error.lineno}: {error.msg}"
    except RecursionError:
        return "JSON without end"
    return "" if isinstance(data, dict) and "nbformat" in data else "JSON of another kind"


def _check_apart(request: RunRequest) -> None:
    """A run writes over its own notebook where that is asked for, and nowhere else."""
    if _same(request.html, request.notebook):
        raise InputError(
            what=f"--html {request.html}",
            reason="this is the notebook, which the page would replace",
            remedy="give another file with --html",
        )
    if _same(request.html, request.output):
        raise InputError(
            what=f"--html {request.html}",
            reason="the executed notebook goes to the same file",
            remedy="give another file with --html or -o",
        )
    if _same(request.output, request.notebook) and not request.in_place:
        raise InputError(
            what=f"-o {request.output}",
            reason="this is the notebook itself",
            remedy="give another file with -o, or --in-place to write over the notebook",
        )


def _same(one: Path | None, other: Path | None) -> bool:
    """Whether both are one file, also through links, or would be."""
    if one is None or other is None:
        return False
    if one.exists() and other.exists():
        return one.samefile(other) and one.is_file()
    return os.path.realpath(one) == os.path.realpath(other)


def check_writable(path: Path) -> None:
    """Raise OutputError now for what would fail after hours."""
    if path.is_dir():
        raise OutputError(path=str(path), reason="it is a folder")
    if not path.parent.is_dir():
        raise OutputError(path=str(path), reason=f"there is no folder {path.parent}")
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise OutputError(path=str(path), reason="this user may not write there")


def write(path: Path, content: str | bytes) -> None:
    """Replace the file, whole or not at all; links are followed. Raises OutputError."""
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    try:
        if _is_special(target):
            target.write_bytes(data)
            return
        _replace(target, data)
    except OSError as error:
        raise OutputError(path=str(path), reason=error.strerror or "unknown") from error


def _is_special(path: Path) -> bool:
    """A pipe or a device, which is written to, not replaced."""
    return path.exists() and not path.is_file()


def _replace(target: Path, data: bytes) -> None:
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            part.chmod(target.stat().st_mode & 0o777)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
