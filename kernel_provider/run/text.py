"""Texts for terminals: durations both ways, and what a sandbox says, made harmless."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_ANSI: Final = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")
_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_LONGEST: Final = 366 * 86400

TITLE: Final = 100
"""Characters that name a cell at most."""


def parse_duration(text: str) -> float:
    """Seconds from "30s", "10m", "1h30m", "1.5h" or a plain number of seconds.

    Raises ValueError for anything else, and for no time at all.
    """
    plain = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", plain):
        plain += "s"
    parts = _PART.findall(plain)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not re.fullmatch(f"({_PART.pattern})+", plain) or not 0 < seconds <= _LONGEST:
        msg = f'{text!r} is no duration; write one such as "30s", "10m" or "1h30m"'
        raise ValueError(msg)
    return seconds


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    if seconds < _UNITS["m"]:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor, colours it or does worse."""
    plain = _ANSI.sub("", text).expandtabs(4)
    return "".join(
        c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in plain
    )


def title(source: str) -> str:
    """A cell's first comment, else its first line."""
    first = source.strip().partition("\n")[0]
    text = printable(first[:1000].lstrip("# ") or first[:1000]).strip()
    return text if len(text) <= TITLE else f"{text[: TITLE - 3]}..."


def shown(outputs: Sequence[Mapping[str, Any]], *, figures: str = "the notebook") -> Iterator[str]:
    """The lines that stand for a cell's outputs in a terminal; ``figures`` has the rest."""
    for output in outputs:
        for line in _text(output, figures).rstrip().split("\n"):
            yield printable(line.rstrip("\r").rpartition("\r")[2])


def _text(output: Mapping[str, Any], figures: str) -> str:
    kind = output["output_type"]
    if kind == "stream":
        return str(output["text"])
    if kind == "error":
        return "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
    data = output["data"]
    for form in ("image/png", "image/jpeg"):
        if form in data:
            return f"[figure, {len(data[form]) * 3 // 4 / 1000:.0f} kB: see {figures}]"
    return str(data.get("text/plain", f"[{', '.join(data)}]"))
