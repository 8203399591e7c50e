"""A profile as a page with its two plots: one file that needs nothing else."""

import html
from collections.abc import Sequence
from typing import Final

from kernel_provider.profile import plan
from kernel_provider.profile.model import Profile, Trial
from kernel_provider.values import MIB, show

WIDTH: Final = 640
HEIGHT: Final = 240
EDGE: Final = 48
COLOURS: Final = {"anonymous": "#4c78a8", "shared": "#72b7b2", "kernel": "#b279a2", "files": "#bbb"}
"""These stand out on a light and on a dark page; what is written has the page's own colour."""


def page(profile: Profile, text: str) -> str:
    """The page, with what was told in words."""
    parts = [f"<h1>{html.escape(profile.subject)}</h1>"]
    parts.append(f"<pre>{html.escape(text)}</pre>")
    if profile.memory:
        first = profile.memory[0]
        parts += [f"<h2>Memory over time, {show('memory', first.limits.memory)}</h2>"]
        parts.append(over_time(first))
    if len(profile.cpus) > 1:
        parts += ["<h2>Seconds for a result against processors</h2>", over_cpus(profile.cpus)]
    style = ":root {color-scheme: light dark}"
    style += " body {font: 15px sans-serif; max-width: 60em; margin: auto; padding: 1em}"
    style += " text {font-size: 11px}"
    head = f'<meta charset="utf-8"><title>{html.escape(profile.subject)}</title>'
    return f"<!doctype html>\n{head}<style>{style}</style>\n" + "\n".join(parts) + "\n"


def over_time(trial: Trial) -> str:
    """Memory by kind, one upon the other, as SVG."""
    samples = trial.seen.samples
    end = max((sample.at for sample in samples), default=0.0) or 1.0
    top = max(trial.seen.most, 1)
    floor = [0] * len(samples)
    parts = []
    for place, (kind, colour) in enumerate(COLOURS.items()):
        sizes = [getattr(sample.kinds, kind) for sample in samples]
        roof = [low + size for low, size in zip(floor, sizes, strict=True)]
        there = [(s.at / end, y / top) for s, y in zip(samples, roof, strict=True)]
        back = [(s.at / end, y / top) for s, y in zip(samples, floor, strict=True)]
        corners = " ".join(_point(x, y) for x, y in [*there, *reversed(back)])
        parts.append(f'<polygon points="{corners}" fill="{colour}"/>')
        parts.append(_text(EDGE + 8 + 90 * place, 14, kind))
        parts.append(
            f'<rect x="{EDGE - 4 + 90 * place}" y="5" width="9" height="9" fill="{colour}"/>'
        )
        floor = roof
    return _svg([*parts, *_axes(f"{end:.0f} s", f"{top / MIB:.0f} MB")])


def over_cpus(trials: Sequence[Trial]) -> str:
    """How long a result takes with how many processors, as SVG."""
    most = max(trial.limits.cpus for trial in trials)
    top = max(*(plan.latency(trial.seen) for trial in trials), 0.001)
    places = [(t.limits.cpus / most, plan.latency(t.seen) / top) for t in trials]
    line = " ".join(_point(x, y) for x, y in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="#4c78a8" stroke-width="2"/>']
    for trial, (x, y) in zip(trials, places, strict=True):
        at_x, at_y = _place(x, y)
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="#4c78a8"/>')
        label = f"{trial.limits.cpus:g}: {plan.latency(trial.seen):.1f} s"
        parts.append(_text(at_x - 10, at_y - 9, label))
    return _svg([*parts, *_axes(f"{most:g} CPUs", f"{top:.1f} s")])


def _place(x: float, y: float) -> tuple[float, float]:
    return EDGE + x * (WIDTH - 2 * EDGE), HEIGHT - EDGE / 2 - y * (HEIGHT - EDGE)


def _point(x: float, y: float) -> str:
    at_x, at_y = _place(x, y)
    return f"{at_x:.1f},{at_y:.1f}"


def _axes(right: str, top: str) -> list[str]:
    (left, bottom), (end, high) = _place(0, 0), _place(1, 1)
    line = f"M{left},{high} L{left},{bottom} L{end},{bottom}"
    return [
        f'<path d="{line}" fill="none" stroke="currentColor"/>',
        _text(end - 20, bottom + 14, right),
        _text(0, high + 4, top),
    ]


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor">{html.escape(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    box = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>'
