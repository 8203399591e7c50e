"""Parameters, as papermill injects them: an assignment for each, in a cell of their own.

https://papermill.readthedocs.io/en/latest/usage-parameterize.html
"""

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kernel_provider.run.model import InputError

if TYPE_CHECKING:
    from nbformat import NotebookNode

if TYPE_CHECKING:
    from nbformat import NotebookNode

TAG: Final = "parameters"
INJECTED_TAG: Final = "injected-parameters"

_WORDS: Final[Mapping[str, bool | None]] = {
    "true": True,
    "false": False,
    "null": None,
    "none": None,
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_FLOAT: Final = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][-+]?[0-9]+)?")
_MOST_DIGITS: Final = 4000
"""Python refuses to read longer integers."""


def parse_parameters(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Names and values as typed, the last of each name counts.

    Raises InputError for a name that Python would not take.
    """
    for name, _ in pairs:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise InputError(
                what=f"-p {name}",
                reason="this is no name of a variable",
                remedy="write -p NAME VALUE, with a name as in Python",
            )
    return {name: parse_value(text) for name, text in pairs}


def parse_value(text: str) -> bool | int | float | str | None:
    """A truth value, nothing, a number, else text; quotes make text of anything."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) < _MOST_DIGITS:
        return int(text)
    if _FLOAT.fullmatch(text) and abs(float(text)) != float("inf"):
        return float(text)
    return text


def inject(book: "NotebookNode", parameters: Mapping[str, Any]) -> None:
    """Put the assignments where papermill does.

    In place of a cell that was injected before; else below the first cell tagged
    ``parameters``; else at the top. No parameters, no change.
    """
    if not parameters:
        return
    import nbformat  # noqa: PLC0415  names are checked before 0.3 s of imports

    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    cell = nbformat.v4.new_code_cell("\n".join(["# Parameters", *lines]))
    cell.metadata["tags"] = [INJECTED_TAG]
    if (book.nbformat, book.nbformat_minor) < (4, 5):
        del cell["id"]
    before = _find(book, INJECTED_TAG)
    if before is not None:
        book.cells[before] = cell
        return
    given = _find(book, TAG)
    book.cells.insert(0 if given is None else given + 1, cell)


def _find(book: "NotebookNode", tag: str) -> int | None:
    tagged = (i for i, cell in enumerate(book.cells) if tag in cell.metadata.get("tags", []))
    return next(tagged, None)
