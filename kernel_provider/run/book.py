"""Notebooks in and out of files: read and checked, cleaned, written whole or not at all."""

import os
import secrets
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import NotebookNode
from nbformat.validator import NotebookValidationError, normalize

from kernel_provider.run.model import InputError, OutputError

SKIP_TAG: Final = "skip-execution"
"""Jupyter's own: the cell stays as it is."""

_NOT_A_NOTEBOOK: Final = "give a file that Jupyter wrote, with the ending .ipynb"


def load(path: Path) -> NotebookNode:
    """The notebook, as nbformat 4, without the outputs of earlier runs.

    Raises InputError where there is no file, or no notebook in it.
    """
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
            what=str(path), reason="not a notebook: it is no text", remedy=_NOT_A_NOTEBOOK
        ) from error
    book = _parse(path, text)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def _parse(path: Path, text: str) -> NotebookNode:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is mended here
            raw = nbformat.reader.reads(text)
            book: NotebookNode = nbformat.convert(raw, to_version=4)
            _, book = normalize(book)
            nbformat.validate(book)
    except NotebookValidationError as error:
        reason = f"not a valid notebook: {str(error).splitlines()[0]}"
        remedy = "open it in JupyterLab, which shows what is wrong, and save it again"
        raise InputError(what=str(path), reason=reason, remedy=remedy) from error
    except nbformat.reader.NotJSONError as error:
        reason = "not a notebook: it is empty" if not text.strip() else "not a notebook: no JSON"
        raise InputError(what=str(path), reason=reason, remedy=_NOT_A_NOTEBOOK) from error
    except Exception as error:  # what nbformat raises over foreign JSON has no common base
        reason = "not a notebook: JSON of another kind"
        raise InputError(what=str(path), reason=reason, remedy=_NOT_A_NOTEBOOK) from error
    return book


def runnable(book: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """Code cells that have something to run and are not tagged to be skipped."""
    return [
        (index, cell)
        for index, cell in enumerate(book.cells)
        if cell.cell_type == "code"
        and cell.source.strip()
        and SKIP_TAG not in cell.metadata.get("tags", [])
    ]


def check_writable(path: Path) -> None:
    """Raise OutputError now for what would fail after hours."""
    if path.is_dir():
        raise OutputError(path=str(path), reason="it is a folder")
    if not path.parent.is_dir():
        raise OutputError(path=str(path), reason=f"there is no folder {path.parent}")
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise OutputError(path=str(path), reason="this user may not write there")


def write(path: Path, text: str) -> None:
    """Replace the file, whole or not at all; links are followed. Raises OutputError."""
    target = Path(os.path.realpath(path))
    try:
        if _is_special(target):
            target.write_text(text, encoding="utf-8")
            return
        _replace(target, text)
    except OSError as error:
        raise OutputError(path=str(path), reason=error.strerror or "unknown") from error


def _is_special(path: Path) -> bool:
    """A pipe or a device, which is written to, not replaced."""
    return path.exists() and not path.is_file()


def _replace(target: Path, text: str) -> None:
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            part.chmod(target.stat().st_mode & 0o777)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def dump(book: NotebookNode) -> str:
    """The notebook's JSON text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{nbformat.writes(book)}\n"


def merge_streams(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """One output for what a stream said in a row: a print in a loop is not 600 outputs."""
    merged: list[NotebookNode] = []
    parts: list[str] = []

    def close() -> None:
        if parts:
            merged[-1]["text"] = "".join(parts)
            parts.clear()

    for output in outputs:
        if output["output_type"] != "stream":
            close()
            merged.append(output)
            continue
        if not parts or merged[-1]["name"] != output["name"]:
            close()
            merged.append(output)
        parts.append(output["text"])
    close()
    return merged


def with_error(outputs: Iterable[NotebookNode], name: str, text: str) -> list[NotebookNode]:
    """The outputs with this error as the last: once, if it has come by itself, too."""
    error = nbformat.v4.new_output(
        "error", ename=name, evalue=text, traceback=[f"\x1b[0;31m{name}\x1b[0m: {text}"]
    )
    return [*(o for o in outputs if not _is_error(o, name, text)), error]


def has_error(outputs: Iterable[Any], name: str) -> bool:
    """Whether an error of this name is among the outputs."""
    return any(o["output_type"] == "error" and o["ename"] == name for o in outputs)


def _is_error(output: Any, name: str, text: str) -> bool:
    return bool(
        output["output_type"] == "error" and (output["ename"], output["evalue"]) == (name, text)
    )


def check_html() -> None:
    """Raise InputError where HTML cannot be made, before anything is run for it."""
    try:
        import nbconvert  # noqa: F401, PLC0415  optional, and takes half a second
    except ImportError as error:
        raise InputError(
            what="--html",
            reason="nbconvert is not installed",
            remedy="run: pip install nbconvert",
        ) from error


def write_html(path: Path, book: NotebookNode) -> None:
    """A page that loads nothing, and from which scripts of the sandbox's were taken.

    Raises OutputError.
    """
    from nbconvert import HTMLExporter  # noqa: PLC0415

    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", sanitize_html=True)
    try:
        body, _ = exporter.from_notebook_node(book)
    except Exception as error:  # whatever a sandbox made of its outputs
        reason = f"nbconvert failed on the outputs ({type(error).__name__})"
        raise OutputError(path=str(path), reason=reason) from error
    write(path, body)
