"""The last line of a traceback: what a person can do about it, in every front-end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def add_hints(shell: Any, *sources: Callable[[BaseException | None], str]) -> None:
    """Have the shell end a traceback with what any source has to say to the exception."""
    show = shell._showtraceback  # noqa: SLF001  where a traceback leaves as a message

    def show_with_hints(kind: Any, error: Any, lines: Any) -> None:
        told = [text for source in sources if (text := source(error))]
        show(kind, error, [*lines, *(f"\nHint: {text}" for text in told)])

    shell._showtraceback = show_with_hints  # noqa: SLF001
