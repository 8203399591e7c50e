"""``make bench``: the sandbox against a local kernel, in turns, in one run.

Every figure is a ratio of medians of things measured one after the other on the same
machine, because the machine's speed drifts; single times are printed beside it, never
alone. Writes out/bench.json. ``--quick`` does few rounds, to see that it runs.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import flags
import grading
import kernels
import measures
import timeline
import warm

LOCAL, SANDBOX = "python3", "executor-ml"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure: all single values, in ``unit``, and the bar for the ratio."""

    name: str
    unit: str
    sandbox: tuple[float, ...]
    local: tuple[float, ...]
    bar: float

    @property
    def ratio(self) -> float:
        """Sandbox to local, of medians."""
        return statistics.median(self.sandbox) / statistics.median(self.local)

    def line(self) -> str:
        """The row as people read it."""
        ratios = sorted(a / b for a, b in zip(self.sandbox, self.local, strict=True))
        verdict = "ok" if self.ratio <= self.bar else "MISSED"
        return (
            f"{self.name:44s} {self.ratio:5.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            f"  bar {self.bar:4.2f} {verdict:6s}"
            f"  {_three(self.sandbox)} against {_three(self.local)} {self.unit}"
        )


def _three(values: Sequence[float]) -> str:
    return f"{min(values):.3g}/{statistics.median(values):.3g}/{max(values):.3g}"


def paired(
    name: str, measure: Callable[[str], float], *, rounds: int, bar: float, unit: str = "s"
) -> Row:
    """Measure sandbox and local in turns, after one round that does not count."""
    print(f"... {name}", file=sys.stderr)
    pairs = [(measure(SANDBOX), measure(LOCAL)) for _ in range(rounds + 1)][1:]
    return Row(
        name=name,
        unit=unit,
        sandbox=tuple(a for a, _ in pairs),
        local=tuple(b for _, b in pairs),
        bar=bar,
    )


def kernels_rows(rounds: int) -> list[Row]:
    """What two running kernels, side by side, take for the same cells."""
    with measures.running(SANDBOX) as sandbox, measures.running(LOCAL) as local:
        clients = {SANDBOX: sandbox, LOCAL: local}

        def on(measure: Callable[[measures.Client], float]) -> Callable[[str], float]:
            return lambda kind: measure(clients[kind])

        p50 = on(lambda client: measures.round_trips(client)[0])
        p99 = on(lambda client: measures.round_trips(client)[1])
        return [
            paired("round trip, p50", p50, rounds=rounds, bar=1.0, unit="ms"),
            paired("round trip, p99 (the quota shows)", p99, rounds=rounds, bar=99, unit="ms"),
            paired("100 MB of output", on(measures.flood), rounds=max(3, rounds // 3), bar=1.1),
            paired("600 flushed prints", on(measures.prints), rounds=rounds, bar=1.2),
        ]


def warm_rows(rounds: int, scratch: Path) -> list[Row]:
    """What a parked sandbox takes, against a local kernel that has to start."""
    python = warm.local_python(scratch / "local")
    model = warm.tiny_model(python, scratch / "tiny")
    inside = {"mounts": {"/models/tiny": str(model)}}

    def compare(
        config: Mapping[str, object], code: str, local: Path | None = None, other: str | None = None
    ) -> Callable[[str], float]:
        return lambda kind: (
            warm.warm_result(config, code)
            if kind == SANDBOX
            else warm.first_result(warm.local(local), other or code)
        )

    there, here = (warm.PIPELINE.format(model=str(m)) for m in ("/models/tiny", model))
    return [
        paired("warm: launch to first result", compare({}, "6 * 7"), rounds=rounds, bar=0.10),
        paired("warm: " + warm.IMPORTS, compare({}, warm.IMPORTS, python), rounds=rounds, bar=0.02),
        paired(
            "warm: first pipeline of a tiny model",
            compare(inside, there, python, here),
            rounds=rounds,
            bar=0.15,
        ),
        _at_once(max(2, rounds // 5)),
    ]


def _at_once(rounds: int) -> Row:
    print(f"... {warm.AT_ONCE} at once", file=sys.stderr)
    p95 = int(warm.AT_ONCE * 0.95) - 1
    sandbox, local = [], []
    for _ in range(rounds):
        with warm.parked({}, warm.POOL):
            sandbox.append(warm.at_once(lambda: kernels.manager({}))[p95])
        local.append(warm.at_once(warm.local)[p95])
    return Row(
        name=f"{warm.AT_ONCE} launches at once, {warm.POOL} parked: p95",
        unit="s",
        sandbox=tuple(sandbox),
        local=tuple(local),
        bar=1.5,
    )


def main() -> int:
    """Measure, print, write; exit 1 where a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of 15")
    parser.add_argument("--output", type=Path, default=Path("out/bench.json"))
    parser.add_argument("--warm", action="store_true", help="parked sandboxes only")
    parser.add_argument(
        "--timeline", action="store_true", help="only where the time of a launch goes, step by step"
    )
    parser.add_argument("--flags", action="store_true", help="what each hardening flag costs")
    parser.add_argument(
        "--browser", action="store_true", help="only JupyterLab in Chromium: click to result"
    )
    parser.add_argument(
        "--grading", action="store_true", help="only submissions a minute, against nbgrader"
    )
    args = parser.parse_args()
    rounds = 3 if args.quick else 15
    if args.timeline or args.flags:
        (timeline.print_timeline if args.timeline else flags.table)(rounds)
        return 0
    if args.grading:
        output = args.output.with_name("grading.json")
        return 0 if grading.compare(1 if args.quick else 5, output) else 1
    args.output.parent.mkdir(exist_ok=True)
    if args.browser:
        return report(browser_rows(rounds), {}, args.output)
    rows = warm_rows(rounds, args.output.parent.resolve())
    rows += [] if args.warm else cold_rows(rounds)
    return report(rows, measures.memory(), args.output)


def report(rows: Sequence[Row], memory: Mapping[str, int], output: Path) -> int:
    """Print and write what was measured; 1 where a bar was missed, else 0."""
    print("\nsandbox to local (least to most of a pair), min/median/max")
    for row in rows:
        print(row.line())
    print()
    for name, value in memory.items():
        print(f"{name:44s} {value / 2**20:6.1f} MB")
    warden_ok = memory.get("host: warden (PSS)", 0) <= 15 * 2**20
    if memory:
        print(f"warden at most 15 MB: {'ok' if warden_ok else 'MISSED'}")
    result = {"rows": [{**asdict(row), "ratio": row.ratio} for row in rows], "memory": memory}
    output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"written: {output}")
    return 0 if warden_ok and all(row.ratio <= row.bar for row in rows) else 1


def browser_rows(rounds: int) -> list[Row]:
    """What a person sees in JupyterLab, with nothing parked and with one parked sandbox."""
    import clicks  # noqa: PLC0415  its tools are for machines with a browser

    found = []
    for kind, parks, bar in (("cold", False, 1.5), ("warm", True, 1.0)):
        with clicks.desk(parks=parks) as measure:
            name = f"JupyterLab, {kind}: click to first result"
            found.append(paired(name, measure, rounds=rounds, bar=bar))
    return found


def cold_rows(rounds: int) -> list[Row]:
    """Launches that start a sandbox, and kernels that run."""
    return [
        paired(
            "launch to first result, client drains 0.2 s",
            lambda kind: measures.launch(kind, drain=True),
            rounds=rounds,
            bar=1.15,
        ),
        paired(
            "launch to first result, no drain",
            lambda kind: measures.launch(kind, drain=False),
            rounds=rounds,
            bar=1.4,
        ),
        paired("the same from a fresh process", measures.launch_fresh, rounds=rounds, bar=1.4),
        *kernels_rows(rounds),
    ]


if __name__ == "__main__":
    sys.exit(main())
