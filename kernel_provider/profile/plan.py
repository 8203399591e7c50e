"""What to run next, how to judge it, and what to recommend: values in, values out."""

import itertools
import math
from collections.abc import Sequence
from typing import Final

from kernel_provider.profile.model import STEP, Seen, Trial, Verdict

PRECISION: Final = 0.05
"""The least memory that is enough is known to this share of it, or to one STEP."""

MARGIN: Final = 1.15
"""What is recommended, against the least that was enough."""

REREAD: Final = 1.0
"""A run that reads again more than this many times what it needs of files thrashes. Less is
no sign: what another sandbox has lost of the image's files counts for who reads them next.
Just below the edge it is some dozen times, since each token takes all weights."""

LEAST_REREAD: Final = 64 << 20
"""Bytes that may be read again in any case."""

GAIN: Final = 1.25
"""Twice the processors are worth it where they make a result this much quicker."""

LEAST_CPUS: Final = 0.25


def judge(seen: Seen, *, files: int) -> Verdict:
    """How a run bore its limits; one that only thrashes is no fit.

    ``files`` are the bytes that it needs of them, seen where there was room for all.
    """
    if seen.stopped:
        return Verdict.STOPPED
    if seen.died or seen.oom_kills:
        return Verdict.KILLED
    if seen.peak.reread > max(REREAD * files, LEAST_REREAD):
        return Verdict.THRASHES
    if seen.late:
        return Verdict.SLOW
    return Verdict.FAILED if seen.reason else Verdict.FITS


def bracket(trials: Sequence[Trial]) -> tuple[int | None, int | None]:
    """The most memory that was not enough, and the least above it that was."""
    fails = max((t.limits.memory for t in trials if not t.fits), default=None)
    fitting = [t.limits.memory for t in trials if t.fits]
    return fails, min((m for m in fitting if fails is None or m > fails), default=None)


def next_memory(trials: Sequence[Trial], *, least: int) -> int | None:
    """The memory of the next run, None where enough is known; ``trials`` begin with the most.

    First what the first run took, then halves of what is left, by ratio; ``least`` is
    what no kernel starts below.
    """
    fails, fits = bracket(trials)
    if fits is None:
        return None
    low = least - STEP if fails is None else fails
    if fits - low <= max(STEP, PRECISION * fits):
        return None
    middle = trials[0].seen.most if len(trials) == 1 else int(math.sqrt(max(low, STEP) * fits))
    return min(max(up(middle), up(low + 1)), fits - STEP)


def next_cpus(trials: Sequence[Trial], *, most: float) -> float | None:
    """The processors of the next run, None where more are not worth it or not there."""
    if not trials:
        return min(LEAST_CPUS, most)
    last = trials[-1].limits.cpus
    if last >= most:
        return None
    if len(trials) > 1 and all(t.fits for t in trials[-2:]) and gain(*trials[-2:]) < GAIN:
        return None
    return min(2 * last, most)


def gain(fewer: Trial, more: Trial) -> float:
    """How many times quicker a result comes with more processors."""
    return latency(fewer.seen) / max(latency(more.seen), 1e-3)


def latency(seen: Seen) -> float:
    """What a person waits for: one more result, else all of it. Seconds."""
    return seen.seconds if seen.warm is None else seen.warm


def knee(trials: Sequence[Trial]) -> float | None:
    """The fewest processors after which twice as many are not worth it; None if unknown."""
    fitting = [trial for trial in trials if trial.fits]
    for fewer, more in itertools.pairwise(fitting):
        if gain(fewer, more) < GAIN:
            return fewer.limits.cpus
    return fitting[-1].limits.cpus if fitting else None


def recommended_memory(minimum: int, *, most: int) -> int:
    """Some more than the least that was enough, in whole STEPs; not above ``most``."""
    return min(up(int(minimum * MARGIN)), most)


def up(size: int) -> int:
    """The next multiple of STEP."""
    return -(-size // STEP) * STEP
