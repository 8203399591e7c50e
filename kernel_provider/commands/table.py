"""Tables for terminals: aligned columns, sizes and ages in one unit each."""

from collections.abc import Sequence
from typing import Final

MIB: Final = 1024 * 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def size_text(value: int | None) -> str:
    """Bytes as MB; a dash for what is not known."""
    return "-" if value is None else f"{value / MIB:.0f} MB"


def age_text(seconds: float | None) -> str:
    """Seconds in the largest unit that they fill; a dash for what is not known."""
    if seconds is None:
        return "-"
    for unit, size in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"
