"""How a warden ends: it says why, removes the sandbox, says that it is gone, and goes.

The reason is said first, since removing may take as long as an engine likes. Whatever
begins an ending, another one after it changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kernel_provider.errors import SandboxError, WardenError
from kernel_provider.names import LABEL_POLICY

if TYPE_CHECKING:
    from kernel_provider.warden.death import Cause
    from kernel_provider.warden.pair import Request
    from kernel_provider.warden.warden import Warden

UNHEARD: Final = 5.0
"""Seconds that a failure waits for somebody to tell."""
TRACEBACK: Final = 8000
"""Characters of a traceback that owners are told, for the server's log."""


class Ending:
    """One warden's; ``begun`` once there is no way back, ``over`` when it may go."""

    def __init__(self, warden: Warden) -> None:
        self.begun = False
        self.over = False
        self._warden = warden
        self._verdict: dict[str, Any] | None = None
        self._unanswered: Cause | None = None
        self._crashed = False
        self._engine_gone = False

    def fail(self, error: SandboxError) -> None:
        """The start failed: tell whoever claimed, or is about to."""
        if self.begun:
            return
        self._begin(_failed(error))
        if self._warden.claim is not None or self._warden.parking is not None:
            self.conclude()
        else:
            self._warden.loop.after(UNHEARD, self.conclude)

    def die(self, cause: Cause, *, expected: bool = False, request: Request | None = None) -> None:
        """The kernel is over: tell the cell that was running, then the owners.

        That is the ``request``, where whoever ends the kernel knows better.
        """
        from kernel_provider.warden.death import ENGINE_GONE  # noqa: PLC0415
        from kernel_provider.warden.lastwords import LastWords, compose  # noqa: PLC0415

        relay = self._warden.relay
        if self.begun or relay is None:
            return
        request = request or relay.running()
        self._begin(_died(cause, expected=expected, subscribers=relay.subscribers()))
        relay.close_listeners()
        self._engine_gone = cause.name == ENGINE_GONE.name
        if not expected:
            self._note(cause)
        if expected or request is None:
            self.conclude()
            return
        words = compose(cause, request, self._warden.key)
        self._unanswered = cause
        LastWords(self._warden.loop, relay, words, self.conclude)

    def stop(self) -> None:
        """Somebody asked for it, or nobody is left who could want the sandbox."""
        if not self.begun:
            self._begin(None)
            self.conclude()

    def crash(self, error: Exception) -> None:
        """An error that nobody foresaw: end as after any other, and tell what it was.

        An error in the ending itself leaves what was to be said, and the removal.
        """
        import traceback  # noqa: PLC0415

        from kernel_provider.warden.death import in_one_line, of_crash  # noqa: PLC0415

        text = "".join(traceback.format_exception(error))
        sys.stderr.write(text)
        loop, owners = self._warden.loop, self._warden.owners
        owners.say({"event": "trouble", "text": f"its warden failed: {text[-TRACEBACK:]}"})
        again, self._crashed = self.begun or self._crashed, True
        cause = of_crash(error)
        failure = WardenError(reason=f"failed while it was starting: {in_one_line(error)}")
        serving = self._warden.relay is not None
        if again:
            self._verdict = self._verdict or (_died(cause) if serving else _failed(failure))
            self.conclude()
        elif serving:
            loop.after(0, partial(self.die, cause))
        else:  # after whatever owners have said by now: a claim may be among it
            loop.after(0, partial(self.fail, failure))

    def conclude(self) -> None:
        """Say why, drop the clients, end the sandbox, remove it, say that it is gone. Once.

        When it has ended, the next one may be claimed behind the same outer sockets.
        """
        if self.over:
            return
        self.over = True
        warden = self._warden
        if self._verdict is not None:
            warden.owners.say(self._verdict)
        if self._unanswered is not None:
            self._answer(self._unanswered)
        subscribers = 0
        if warden.relay is not None and warden.sandbox is not None:  # it served
            subscribers = warden.relay.subscribers()
            warden.relay.close()
            if warden.sandbox.end():
                warden.owners.say({"event": "stopped", "subscribers": subscribers})
        gone = self._remove()
        left = warden.sandbox.left if warden.sandbox is not None else None
        if gone and left is not None and not self._engine_gone:  # of which that is a part
            warden.owners.say({"event": "trouble", "text": str(left)})
        warden.owners.say({"event": "gone", "clean": gone, "subscribers": subscribers})
        warden.loop.stop()

    def _answer(self, cause: Cause) -> None:
        """Reply for the kernel, now that its owner knows: who has the reply asks the owner."""
        from kernel_provider.warden.lastwords import answer  # noqa: PLC0415

        assert self._warden.relay is not None
        answer(self._warden.relay, cause, self._warden.key)

    def clean(self) -> None:
        """Whatever happened: no container and no folder stays, a dead owner's neither.

        But for the log of a warden that could not tell: who finds it lost reads that.
        """
        import shutil  # noqa: PLC0415

        from kernel_provider.warden.sweep import sweep_folders  # noqa: PLC0415

        folder = self._warden.order.folder
        try:
            self._remove()
        finally:
            if self.over:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                sweep_folders(os.path.dirname(folder))

    def _begin(self, verdict: dict[str, Any] | None) -> None:
        """Hear no more of the sandbox: what comes now is the ending's own doing."""
        self.begun = True
        self._verdict = verdict
        if self._warden.parking is not None:
            self._warden.parking.leave()
        if self._warden.talk is not None:
            self._warden.talk.close()

    def _note(self, cause: Cause) -> None:
        """For ``executor-ml ps``; a full disk keeps nobody from ending."""
        from kernel_provider.engines.docker import NAME_PREFIX  # noqa: PLC0415
        from kernel_provider.warden.deaths import Record, note  # noqa: PLC0415

        warden = self._warden
        assert warden.sandbox is not None
        spec = warden.sandbox.spec
        record = Record(
            container=f"{NAME_PREFIX}{warden.sandbox.uid}",
            uid=warden.sandbox.uid,
            kernel=warden.claim.kernel if warden.claim is not None else "",
            policy=spec.labels[LABEL_POLICY],
            owner=warden.claimant.pid if warden.claimant is not None else 0,
            memory_limit=spec.memory,
            pids_limit=spec.pids,
            at=time.time(),
            **cause.to_wire(),
        )
        with suppress(OSError):
            note(os.path.dirname(warden.order.folder), record)

    def _remove(self) -> bool:
        return self._warden.sandbox is None or self._warden.sandbox.remove()


def _failed(error: SandboxError) -> dict[str, Any]:
    return {"event": "failed", **error.to_wire()}


def _died(cause: Cause, *, expected: bool = False, subscribers: int = 0) -> dict[str, Any]:
    return {
        "event": "died",
        "cause": cause.to_wire(),
        "expected": expected,
        "subscribers": subscribers,
    }
