"""Where the time of a launch goes: every step, of a local kernel, a cold and a warm sandbox.

Each process of a launch notes when its steps are over, on one clock; launches of the
three kinds take turns, and what is printed are medians. docs/start-up.svg is drawn from the
quickest launch of each kind, the one that other work on the machine disturbed least.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import kernels
import warm
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from kernel_provider.trace import VARIABLE

KINDS: Final = ("local", "cold", "warm")
REPLY: Final = "client: first reply"
LAST: Final = "sandbox: IPython ready"
"""What a sandbox notes last; it is read from its log when the kernel serves already."""
FOUND_WITHIN: Final = 10.0
PICTURE: Final = Path(__file__).parents[2] / "docs" / "start-up.svg"

Steps = dict[str, float]
"""When steps were over, ms since ``start_kernel`` was called."""

PHASES: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "local": (
        ("kernel: interpreter", "interpreter"),
        ("kernel: ipykernel imported", "imports"),
        ("kernel: IPython ready", "IPython"),
        (REPLY, "first cell"),
    ),
    "cold": (
        ("warden: image inspected", "policy, warden"),
        ("warden: created", "create"),
        ("sandbox: guardian", "start"),
        ("sandbox: interpreter", "interpreter"),
        ("sandbox: ipykernel imported", "imports"),
        ("sandbox: IPython ready", "IPython"),
        ("session: served", "limits, claim"),
        (REPLY, "first cell"),
    ),
    "warm": (
        ("session: served", "limits, claim"),
        (REPLY, "first cell"),
    ),
}
"""What a bar is made of: up to which step, and what that is called."""

COLOURS: Final = {
    "policy, warden": "#8da0cb",
    "create": "#66a5ad",
    "start": "#2a7886",
    "interpreter": "#e5c494",
    "imports": "#fc8d62",
    "IPython": "#e78ac3",
    "limits, claim": "#b3b3b3",
    "first cell": "#a6d854",
}


def print_timeline(rounds: int) -> None:
    """Measure, print a table for each kind, and draw the picture."""
    runs: dict[str, list[Steps]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind in KINDS:
            print(f"... {kind} {number}", file=sys.stderr)
            steps = launch(kind)
            if number:  # the first of each fills caches
                runs[kind].append(steps)
    for kind, found in runs.items():
        print("\n" + table(kind, median(found), [run[REPLY] for run in found]))
    quickest = {kind: min(found, key=lambda run: run[REPLY]) for kind, found in runs.items()}
    PICTURE.write_text(picture(quickest), encoding="utf-8")
    print(f"\nwritten: {PICTURE}")


def launch(kind: str) -> Steps:
    """Launch one, run its first cell, and collect what was noted meanwhile."""
    if kind == "warm":
        with noted() as file, warm.parked({}, 1):
            file.write_text("")
            return _launch(kernels.manager({}), file, "session: served")
    with noted() as file:
        if kind == "cold":
            return _launch(kernels.manager({}), file, LAST)
        return _launch(_local(), file, "kernel: IPython ready")


@contextmanager
def noted() -> Iterator[Path]:
    """Have all processes note their steps in a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "steps")
        os.environ[VARIABLE] = str(file)
        try:
            yield file
        finally:
            del os.environ[VARIABLE]


def _local() -> KernelManager:
    manager = KernelManager(kernel_name="python3")
    program = str(Path(__file__).with_name("traced.py"))
    argv = [sys.executable, program, "-f", "{connection_file}"]
    spec = KernelSpec(argv=argv, display_name="local", language="python")
    manager._kernel_spec = spec  # noqa: SLF001  no other way in
    return manager


def _launch(manager: KernelManager, file: Path, last: str) -> Steps:
    begun = time.monotonic_ns()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    own = {"client: start_kernel returned": time.monotonic_ns()}
    client = manager.client()
    try:
        client.start_channels(hb=False)
        client.execute("6 * 7", reply=True, timeout=60)
        own[REPLY] = time.monotonic_ns()
        found = _read(file, last) | own
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return {step: (at - begun) / 1e6 for step, at in found.items() if at >= begun}


def _read(file: Path, last: str) -> dict[str, int]:
    """All notes, once ``last`` is among them."""
    deadline = time.monotonic() + FOUND_WITHIN
    while True:
        lines = file.read_text().splitlines() if file.exists() else []
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        found = {row["step"]: int(row["at"]) for row in rows}
        if last in found:
            return found
        if time.monotonic() > deadline:
            message = f"{last!r} was not noted: {sorted(found)}"
            raise RuntimeError(message)
        time.sleep(0.01)


def median(runs: Sequence[Steps]) -> Steps:
    """Of each step that all runs have, in order."""
    common = set(runs[0]).intersection(*runs)
    medians = {step: statistics.median(run[step] for run in runs) for step in common}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def table(kind: str, steps: Steps, totals: Sequence[float]) -> str:
    """When each step was over, and how long after the one before it."""
    least, most = min(totals), max(totals)
    lines = [f"{kind}: first reply {least:.0f} to {most:.0f} ms, of {len(totals)}"]
    lines.append(f"{'ms':>8s} {'+ms':>7s}  step")
    before = 0.0
    for step, at in steps.items():
        lines.append(f"{at:8.1f} {at - before:7.1f}  {step}")
        before = at
    return "\n".join(lines)


LEFT, TOP, WIDTH, BAR, GAP = 60, 16, 620, 34, 20
LEGEND = 116


def picture(runs: Mapping[str, Steps]) -> str:
    """An SVG: a bar for each kind, cut into phases, and what their colours mean."""
    longest = max(steps[REPLY] for steps in runs.values())
    scale = WIDTH / longest
    shapes = []
    for number, kind in enumerate(KINDS):
        top = TOP + number * (BAR + GAP)
        shapes += _bar(runs[kind], kind, top, scale)
    bottom = TOP + len(KINDS) * (BAR + GAP)
    shapes += _axis(longest, scale, bottom)
    for number, name in enumerate(COLOURS):
        x, y = LEFT + number % 4 * 160, bottom + 40 + number // 4 * 22
        shapes.append(_box((x, y, 14, 14), name))
        shapes.append(_text(x + 20, y + 12, name))
    size = f'width="{LEFT + WIDTH + 90}" height="{bottom + LEGEND}"'
    style = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, ground, *shapes, "</svg>", ""])


def _bar(steps: Steps, kind: str, top: float, scale: float) -> list[str]:
    shapes = [_text(LEFT - 8, top + BAR * 0.65, kind, anchor="end")]
    before = 0.0
    for step, phase in PHASES[kind]:
        at = max(before, steps[step])
        place = LEFT + before * scale, top, (at - before) * scale, BAR
        shapes.append(_box(place, phase))
        before = at
    shapes.append(_text(LEFT + before * scale + 6, top + BAR * 0.65, f"{before:.0f} ms"))
    return shapes


def _axis(longest: float, scale: float, top: float) -> list[str]:
    shapes = []
    for at in range(0, int(longest) + 1, 100):
        x = LEFT + at * scale
        shapes.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{top:.1f}" stroke="#0002"/>')
        shapes.append(_text(x, top + 16, f"{at}", anchor="middle"))
    return shapes


def _box(place: tuple[float, float, float, float], phase: str) -> str:
    x, y, width, height = (f"{length:.1f}" for length in place)
    where = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {where} fill="{COLOURS[phase]}"><title>{phase}</title></rect>'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
