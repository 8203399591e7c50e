"""The runs of a profile, one after another, until enough is known or somebody stops it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kernel_provider.profile import plan
from kernel_provider.profile.model import (
    Limits,
    Profile,
    ProfileError,
    Seen,
    Subject,
    Trial,
    Verdict,
)
from kernel_provider.profile.trial import run
from kernel_provider.steps import Steps
from kernel_provider.values import MIB, show

PATIENCE: Final = 4.0
LEAST_PATIENCE: Final = 60.0
"""Times what the first run took, and seconds: what is slower than both is no fit."""

Runner = Callable[..., Seen]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the runs may have: ``most`` is what there is, ``least`` bytes what starts."""

    most: Limits
    least: int


class _StoppedError(Exception):
    """Ctrl-C came during a run."""


def search(subject: Subject, room: Room, steps: Steps, *, runner: Runner = run) -> Profile:
    """Find the limits that fit; what is known where Ctrl-C ends it.

    Raises ProfileError where it does not run with all that there is, and what keeps
    sandboxes from starting.
    """
    going = _Search(subject, room, steps, runner)
    try:
        going.over_memory()
        going.over_cpus()
    except (_StoppedError, KeyboardInterrupt):
        return going.profile(complete=False)
    return going.profile(complete=True)


class _Search:
    """What is known so far."""

    def __init__(self, subject: Subject, room: Room, steps: Steps, runner: Runner) -> None:
        self._subject = subject
        self._room = room
        self._steps = steps
        self._runner = runner
        self._memory: list[Trial] = []
        self._cpus: list[Trial] = []

    def over_memory(self) -> None:
        """With all the processors there are, for the time that saves."""
        most = self._room.most
        first = self._try(most, None)
        self._memory.append(first)
        if not first.fits:
            raise ProfileError(
                subject=self._subject.name,
                memory=f"{most.memory // MIB}m",
                cpus=f"{most.cpus:g}",
                reason=first.seen.reason or str(first.verdict),
            )
        patience = max(LEAST_PATIENCE, PATIENCE * first.seen.seconds)
        while (memory := plan.next_memory(self._memory, least=self._room.least)) is not None:
            self._memory.append(self._try(Limits(memory=memory, cpus=most.cpus), patience))

    def over_cpus(self) -> None:
        """With the memory that will be recommended."""
        memory = self._recommended_memory()
        if memory is None:
            return
        while (cpus := plan.next_cpus(self._cpus, most=self._room.most.cpus)) is not None:
            self._cpus.append(self._try(Limits(memory=memory, cpus=cpus), None))

    def profile(self, *, complete: bool) -> Profile:
        """What there is to tell."""
        below, minimum = plan.bracket(self._memory)
        memory, cpus = self._recommended_memory(), plan.knee(self._cpus)
        known = complete and memory is not None and cpus is not None
        return Profile(
            subject=self._subject.name,
            memory=tuple(self._memory),
            cpus=tuple(self._cpus),
            minimum=minimum,
            below=below,
            recommended=Limits(memory=memory or 0, cpus=cpus or 0.0) if known else None,
            complete=complete,
        )

    def _recommended_memory(self) -> int | None:
        _, minimum = plan.bracket(self._memory)
        if minimum is None:
            return None
        return plan.recommended_memory(minimum, most=self._room.most.memory)

    def _try(self, limits: Limits, patience: float | None) -> Trial:
        with self._steps.step(f"{show('memory', limits.memory)}, {limits.cpus:g} CPUs") as note:
            seen = self._runner(self._subject, limits, patience=patience, note=note)
            room = self._memory[0].seen if self._memory else seen
            verdict = plan.judge(seen, files=room.peak.files)
            trial = Trial(limits=limits, seen=seen, verdict=verdict)
            note.text = tell(trial)
        if trial.verdict is Verdict.STOPPED:
            raise _StoppedError
        return trial


def tell(trial: Trial) -> str:
    """A run in a few words."""
    seen = trial.seen
    words = [str(trial.verdict), f"peak {seen.most / MIB:.0f} MB"]
    if seen.first is not None:
        words.append(f"first result after {seen.first:.1f} s")
    if seen.peak.reread > MIB:
        words.append(f"{seen.peak.reread / MIB:.0f} MB read again")
    return ", ".join(words)
