"""Runs checks: each in the kind of sandbox that it asks for, and judges them."""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from kernel_provider.verify.box import Box, Opener, opener
from kernel_provider.verify.checks import GROUPS
from kernel_provider.verify.look import Host, Look, laid_out
from kernel_provider.verify.model import (
    DIED,
    Check,
    Report,
    Result,
    Status,
    Verdict,
    Where,
    verdict,
)

Progress = Callable[[str], None]
"""Told what is being done, in some words."""

BUSY: Final = {
    Where.PLAIN: "attacks from a kernel",
    Where.ROUGH: "a kernel that uses up all it has",
    Where.STOPPED: "a kernel that is stopped",
    Where.EXITED: "a kernel that ends itself",
    Where.PAIR: "two kernels, one against the other",
}
"""The kinds in their order, as they are told while they run."""


async def verify(name: str, progress: Progress) -> Report:
    """Run every check on a kernelspec's sandboxes.

    Raises SandboxError where one does not start.
    """
    begun = time.monotonic()
    with laid_out(os.environ) as host:
        run = Run(host, opener(name), progress)
        every = [check for checks in GROUPS.values() for check in checks]
        verdicts = await run.all(every)
    look = run.looks[0]
    return Report(
        kernel=name,
        image=look.policy.image,
        engine=str(look.engine.version().get("Version", "?")),
        cgroup=2 if look.group.unified else 1,
        seconds=round(time.monotonic() - begun, 1),
        checks=tuple(results(verdicts)),
    )


def results(verdicts: Mapping[str, Verdict]) -> Iterable[Result]:
    """Rows in the order of the groups, of those checks that were run."""
    for group, checks in GROUPS.items():
        for check in checks:
            if check.name in verdicts:
                word = verdicts[check.name]
                yield Result(
                    group=group,
                    name=check.name,
                    promise=check.promise,
                    tried=check.tried,
                    happened=word.happened,
                    status=word.status,
                )


class Run:
    """One run over checks; ``looks`` are the sandboxes that it had, in their order."""

    def __init__(self, host: Host, opened: Opener, progress: Progress) -> None:
        self.host = host
        self.looks: list[Look] = []
        self._opened = opened
        self._progress = progress

    async def all(self, checks: Sequence[Check]) -> dict[str, Verdict]:
        """A verdict on each, by name."""
        found: dict[str, Verdict] = {}
        for where, doing in BUSY.items():
            wanted = [check for check in checks if check.where is where]
            if not wanted:
                continue
            self._progress(doing)
            if where is Where.PAIR:
                found |= await self._pair(wanted)
            elif where in {Where.STOPPED, Where.EXITED}:
                found |= await self._ended(wanted, by_itself=where is Where.EXITED)
            else:
                found |= await self._shared(wanted)
        return found

    @asynccontextmanager
    async def _box(self) -> AsyncIterator[Box]:
        async with self._opened(self.host) as box:
            self.looks.append(box.look)
            yield box

    async def _shared(self, checks: Sequence[Check]) -> dict[str, Verdict]:
        """One after the other in one sandbox, or in a new one after it has died."""
        found: dict[str, Verdict] = {}
        waiting = list(checks)
        while waiting:
            async with self._box() as box:
                while waiting and box.usable:
                    check = waiting.pop(0)
                    self._progress(check.name)
                    found[check.name] = await attack(check, box)
        return found

    async def _ended(self, checks: Sequence[Check], *, by_itself: bool) -> dict[str, Verdict]:
        """All in one sandbox, which is ended, and only then judged."""
        async with self._box() as box:
            answers = {}
            for check in checks:
                self._progress(check.name)
                answers[check.name] = await box.probe(check.code, {})
            await box.end(by_itself=by_itself)
            return {check.name: judged(check, answers[check.name], box.look) for check in checks}

    async def _pair(self, checks: Sequence[Check]) -> dict[str, Verdict]:
        """Each in the second of two sandboxes, after its first part in the first."""
        found: dict[str, Verdict] = {}
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(self._box())
            other = await stack.enter_async_context(self._box())
            other.look.first = one.look
            for check in checks:
                self._progress(check.name)
                found[check.name] = await confront(check, one, other)
        return found


async def attack(check: Check, box: Box, more: Mapping[str, Any] | None = None) -> Verdict:
    """Run one check's code and judge what came of it."""
    reason = check.needs(box.look.policy)
    if reason:
        return Verdict(status=Status.NOT_APPLICABLE, happened=reason)
    if check.where is Where.ROUGH:  # what an earlier one left would be counted
        await box.probe("report = None", {})
    box.look.begin()
    return judged(check, await box.probe(check.code, more or {}, check.patience), box.look)


async def confront(check: Check, one: Box, other: Box) -> Verdict:
    """Run a check of a pair: its first part in one, the rest in the other."""
    first = None
    if check.first:
        answer = await one.probe(check.first, {})
        if answer is None or "report" not in answer:
            return verdict(held=False, happened=f"the first kernel: {answer or DIED}")
        first = answer["report"]
    try:
        return await attack(check, other, {"first": first})
    finally:
        if check.first:
            await one.probe("report = None", {})


def judged(check: Check, answer: Mapping[str, Any] | None, look: Look) -> Verdict:
    """The judge's verdict; a kernel that died and code that failed hold no promise."""
    if answer is None:
        happened = f"{DIED}: {look.death}" if look.death else "the kernel did not answer any more"
        return verdict(held=False, happened=happened)
    if "report" not in answer:
        return verdict(held=False, happened=f"it could not be tried: {answer['raised']}")
    try:
        word = check.judge(answer["report"], look)
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"what was seen makes no sense: {type(error).__name__}: {error}"
        return verdict(held=False, happened=reason)
    return replace(word, happened=word.happened.replace(look.key, "KEY"))
