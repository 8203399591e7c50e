"""Notebooks as nbformat has them: parsed, cleaned, with the outputs of a run."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import NotebookNode
from nbformat.validator import NotebookValidationError, normalize

from kernel_provider.run.files import NOT_A_NOTEBOOK, write
from kernel_provider.run.model import InputError, OutputError

SKIP_TAG: Final = "skip-execution"
"""Jupyter's own: the cell stays as it is."""


def parse(path: Path, text: str) -> NotebookNode:
    """The notebook, as nbformat 4, without the outputs of earlier runs.

    Raises InputError where the text is none.
    """
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
    except Exception as error:  # what nbformat raises over foreign JSON has no common base
        reason = "not a notebook: JSON of another kind"
        raise InputError(what=str(path), reason=reason, remedy=NOT_A_NOTEBOOK) from error
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
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
