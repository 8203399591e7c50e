"""What a profile runs next, how it judges a run, and what it recommends."""

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from kernel_provider.profile.memory import Kinds
from kernel_provider.profile.model import STEP, Limits, Sample, Seen, Trial, Verdict
from kernel_provider.profile.plan import (
    bracket,
    judge,
    knee,
    next_cpus,
    next_memory,
    recommended_memory,
    up,
)
from kernel_provider.values import MIB

LEAST = 208 * MIB
KINDS = Kinds(
    anonymous=300 * MIB, shared=4 * MIB, files=200 * MIB, kernel=8 * MIB, reread=0, major_faults=9
)


def seen(**changes: object) -> Seen:
    """A run that went well, but for ``changes``."""
    good = Seen(samples=(Sample(at=1.0, kinds=KINDS),), seconds=10.0, first=8.0, warm=2.0)
    return replace(good, **changes)  # type: ignore[arg-type]


def trial(memory: int, *, fits: bool, cpus: float = 2.0, warm: float | None = 2.0) -> Trial:
    """A run with so many MB."""
    verdict = Verdict.FITS if fits else Verdict.THRASHES
    return Trial(
        limits=Limits(memory=memory * MIB, cpus=cpus), seen=seen(warm=warm), verdict=verdict
    )


def rereading(size: int) -> Seen:
    """A run that came to its end, but read so many bytes again."""
    return seen(samples=(Sample(at=1.0, kinds=replace(KINDS, reread=size)),))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (seen(), Verdict.FITS),
        (seen(died=True, reason="it is dead"), Verdict.KILLED),
        (seen(oom_kills=1), Verdict.KILLED),
        (rereading(200 * MIB), Verdict.FITS),
        (rereading(201 * MIB), Verdict.THRASHES),
        (replace(rereading(900 * MIB), late=True, reason="timeout"), Verdict.THRASHES),
        (seen(late=True, reason="timeout"), Verdict.SLOW),
        (seen(reason="ValueError"), Verdict.FAILED),
        (seen(stopped=True, died=True, reason="interrupted"), Verdict.STOPPED),
    ],
)
def test_a_run_that_only_thrashes_is_no_fit(found: Seen, verdict: Verdict) -> None:
    """The cause that a person can do something about comes first."""
    assert judge(found, files=200 * MIB) is verdict


def test_a_few_bytes_again_are_no_thrashing() -> None:
    """Of a run that needs next to nothing of files."""
    assert judge(rereading(60 * MIB), files=MIB) is Verdict.FITS
    assert judge(rereading(65 * MIB), files=MIB) is Verdict.THRASHES


def test_the_first_guess_is_what_the_first_run_took() -> None:
    """With room to spare it took 512 MB: nobody needs to try one gigabyte."""
    assert next_memory([trial(2048, fits=True)], least=LEAST) == 512 * MIB


def runs_until_known(enough: Callable[[int], bool], *, most: int = 2624) -> list[Trial]:
    """All runs of a search, where ``enough`` tells of each number of MB whether it fits."""
    trials = [trial(most, fits=True)]
    while (memory := next_memory(trials, least=LEAST)) is not None:
        assert memory % STEP == 0
        assert memory not in {t.limits.memory for t in trials}
        trials.append(trial(memory // MIB, fits=enough(memory // MIB)))
        assert len(trials) < 20
    return trials


@pytest.mark.parametrize("edge", [100, 208, 224, 300, 512, 513, 640, 1000, 2000, 2600, 2624])
def test_the_edge_is_found_in_few_runs(edge: int) -> None:
    """To a twentieth, or one STEP; by halves, not by trying all."""
    trials = runs_until_known(partial(operator.le, edge))
    fails, fits = bracket(trials)
    assert fits is not None
    assert fits >= edge
    assert fits - (fails or LEAST - STEP) <= max(STEP, 0.05 * fits)
    assert len(trials) <= 9


def test_eighty_of_a_hundred_are_below_what_failed() -> None:
    """At four fifths of what is called the least, it was seen to fail, or was below that."""
    for edge in range(330, 2600, 7):
        fails, fits = bracket(runs_until_known(partial(operator.le, edge)))
        assert fits is not None
        assert fails is not None
        assert 0.8 * fits < fails


def test_one_lucky_run_does_not_count() -> None:
    """It fitted once where more did not: the least is above what failed."""
    trials = [trial(m, fits=f) for m, f in ((2048, True), (512, True), (600, False), (800, True))]
    assert bracket(trials) == (600 * MIB, 800 * MIB)


def test_nothing_fits() -> None:
    """Then there is no next run."""
    assert next_memory([trial(2048, fits=False)], least=LEAST) is None


def test_processors_are_doubled_until_it_is_not_worth_it() -> None:
    """From a quarter on, and not above what there is."""
    trials: list[Trial] = []
    for cpus, warm in ((0.25, 8.0), (0.5, 4.0), (1.0, 3.5)):
        assert next_cpus(trials, most=8.0) == cpus
        trials.append(trial(640, fits=True, cpus=cpus, warm=warm))
    assert next_cpus(trials, most=8.0) is None
    assert knee(trials) == 0.5


def test_what_the_machine_has_ends_it() -> None:
    """Where every doubling was worth it, the last is the best; three is not skipped for four."""
    two = [trial(640, fits=True, cpus=c, warm=8 / c) for c in (0.25, 0.5, 1.0, 2.0)]
    assert next_cpus(two, most=3.0) == 3.0
    assert next_cpus(two, most=2.0) is None
    assert knee(two) == 2.0
    assert next_cpus([], most=0.1) == 0.1


def test_a_run_that_does_not_fit_is_no_knee() -> None:
    """Not even if it was quick."""
    trials = [trial(640, fits=False, cpus=0.25), trial(640, fits=True, cpus=0.5)]
    assert next_cpus(trials, most=1.0) == 1.0
    assert knee(trials) == 0.5
    assert knee(trials[:1]) is None


def test_a_notebook_is_measured_whole() -> None:
    """It has no cell that is known to be asked again."""
    trials = [trial(640, fits=True, cpus=c, warm=None) for c in (0.25, 0.5)]
    assert knee(trials) == 0.25


def test_the_recommendation_has_a_margin() -> None:
    """In whole STEPs, and under the ceiling."""
    assert recommended_memory(640 * MIB, most=2048 * MIB) == 736 * MIB
    assert recommended_memory(640 * MIB, most=672 * MIB) == 672 * MIB
    assert up(1) == STEP
    assert up(STEP) == STEP
