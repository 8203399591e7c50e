"""The last line of a traceback, or of a cell: what a person can do, in every front-end."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

INSTALLS = re.compile(r"^\s*[!%].*\b(?:pip3?|uv|conda|mamba)\b.*\binstall\b", re.MULTILINE)
"""A line of a cell that would install packages where there is a network and an installer."""

PACKAGES = (
    "the sandbox has no network and no pip. To add packages, on the host: write -r ml.in (which "
    "is PyTorch and Transformers) and their names into a file NAME.in, one a line; then run "
    "executor-ml build --variant ./NAME.in and executor-ml install --variant ./NAME.in, and "
    "take that kernel."
)


def add_hints(shell: Any, *sources: Callable[[BaseException | None], str]) -> None:
    """Have the shell end a traceback with what any source has to say to the exception."""
    show = shell._showtraceback  # noqa: SLF001  where a traceback leaves as a message

    def show_with_hints(kind: Any, error: Any, lines: Any) -> None:
        told = [text for source in sources if (text := source(error))]
        show(kind, error, [*lines, *(f"\nHint: {text}" for text in told)])

    shell._showtraceback = show_with_hints  # noqa: SLF001


def tell_of_packages(result: Any) -> None:
    """After a cell that would install packages: tell in it what there is instead.

    What it ran says "pip: not found", or that there is no module of that name.
    """
    if INSTALLS.search(result.info.raw_cell or ""):
        sys.stderr.write(f"Hint: {PACKAGES}\n")
