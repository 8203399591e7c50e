"""Runs in a sandbox, as a cell: a profile's two plots as one PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

INK = "#222222"
PAPER = "#ffffff"
LINE = "#c44e52"
COLOURS = {"anonymous": "#4c78a8", "shared": "#72b7b2", "kernel": "#b279a2", "files": "#bbbbbb"}
MIB = 1 << 20


def show(data: dict[str, Any]) -> None:
    """Display it; on paper of its own, so that it can be read on any background."""
    figure = Figure(figsize=(8, 7), dpi=150, facecolor=PAPER, layout="constrained")
    upper, lower = figure.subplots(2)
    figure.suptitle(data["subject"], color=INK, parse_math=False)
    over_time(upper, data)
    over_cpus(lower, data)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    made = io.BytesIO()
    figure.savefig(made, format="png")
    display({"image/png": base64.b64encode(made.getvalue()).decode()}, raw=True)


def over_time(axes: Any, data: dict[str, Any]) -> None:
    """Memory of the first run by kind, one upon the other, and what was found to be enough."""
    layers = [[size / MIB for size in data["kinds"][kind]] for kind in COLOURS]
    axes.stackplot(data["at"], layers, colors=list(COLOURS.values()), labels=list(COLOURS))
    for name, style in (("minimum", ":"), ("recommended", "--")):
        if data[name] is not None:
            size = data[name] / MIB
            axes.axhline(size, color=LINE, linestyle=style, label=f"{name}, {size:.0f} MB")
    axes.set_title(f"Memory over time, with {data['limit'] / MIB:.0f} MB", color=INK, fontsize=11)
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB")
    axes.margins(x=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)


def over_cpus(axes: Any, data: dict[str, Any]) -> None:
    """How long a result takes, by processors; the recommended number is marked."""
    axes.set_title("Seconds for a result against processors", color=INK, fontsize=11)
    axes.set_xlabel("processors")
    axes.set_ylabel("seconds")
    if not data["cpus"]:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=INK)
        return
    axes.set_xscale("log", base=2)
    axes.plot(data["cpus"], data["latency"], color=COLOURS["anonymous"], marker="o")
    for at, seconds in zip(data["cpus"], data["latency"], strict=True):
        axes.annotate(
            f"{seconds:.1f} s", (at, seconds), textcoords="offset points", xytext=(6, 6), color=INK
        )
    axes.set_xticks(data["cpus"], [f"{at:g}" for at in data["cpus"]])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.2)
    if data["knee"] is not None:
        axes.axvline(
            data["knee"], color=LINE, linestyle="--", label=f"recommended, {data['knee']:g}"
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
