"""What a warden does to a kernel that says too much, runs too long, or breaks the wire's rules."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from kernel_provider.warden.death import of_output, of_time, where
from kernel_provider.warden.message import signed
from kernel_provider.warden.output import Output, OutputLimits
from kernel_provider.warden.zmtp import FrameLimits, Violation

if TYPE_CHECKING:
    from kernel_provider.warden.pair import Request
    from kernel_provider.warden.relay import Relay
    from kernel_provider.warden.warden import Warden
    from kernel_provider.warden.wishes import Claim


class Restraint:
    """One warden's, once its sandbox was claimed; ``output`` keeps account for the relay."""

    def __init__(self, warden: Warden, claim: Claim) -> None:
        self._warden = warden
        self._key = claim.key
        self._kernel = claim.kernel
        self._cell = claim.times["cell"]
        limits = OutputLimits(
            request=claim.output["limit"],
            rate=claim.output["rate"],
            messages=claim.output["messages"],
            frames=FrameLimits(
                message=claim.output["message"],
                parts=claim.output["parts"],
                command=claim.output["command"],
                handshake=claim.times["handshake"],
            ),
        )
        self.output = Output(limits, interrupt=self._interrupt, stop=self._stop, sign=self._sign)

    def watch(self, relay: Relay) -> None:
        """Have an eye on how long cells run, where that is limited; before it opens."""
        if self._cell:
            from kernel_provider.warden.overtime import Overtime  # noqa: PLC0415  4 MB

            relay.overtime = Overtime(
                relay,
                self._cell,
                key=self._key,
                interrupt=partial(self._interrupt_late, relay),
                stop=partial(self._stop_late, relay),
            )

    def _interrupt_late(self, relay: Relay, request: Request) -> None:
        """Interrupt a cell that runs too long, and say so in it; owners count such cells."""
        text = f'interrupted, since it ran longer than {self._cell:g} s ("cell_timeout" in '
        text += f"{where(self._kernel)})"
        self._warden.owners.say({"event": "late", "text": text})
        relay.tell(self._sign("stderr", f"\nexecutor-ml: {text}.\n", request))
        self._warden.signal("INT")

    def _stop_late(self, relay: Relay, request: Request) -> None:
        """It goes on all the same."""
        if not self._warden.ending.begun:
            self._kill(relay)
            self._warden.ending.die(of_time(self._cell, self._kernel), request=request)

    def _sign(self, stream: str, text: str, request: Request) -> bytes:
        content = {"name": stream, "text": text}
        return signed("stream", content, parent=request.header, key=self._key)

    def _interrupt(self) -> None:
        """Interrupt a kernel that goes on where its output is left out already."""
        limit = self.output.limits.request / 2**20
        text = f"interrupted, since it said more than {limit:g} MB twice over in one cell"
        self._warden.owners.say({"event": "trouble", "text": text})
        self._warden.signal("INT")

    def _stop(self, why: str) -> None:
        """Stop it, in a turn of the loop's own: a pump is at work on what it said."""
        self._warden.loop.after(0, partial(self._end, why))

    def _end(self, why: str) -> None:
        relay = self._warden.relay
        if relay is not None and not self._warden.ending.begun:
            self._kill(relay)
            self._warden.ending.die(of_output(self.output.limits.request, why))

    def on_violation(self, channel: str, offence: Violation) -> None:
        """Stop a kernel that broke the rules; what it broke is told."""
        assert self._warden.relay is not None
        self._kill(self._warden.relay)
        self._warden.on_end(None, violation=f"{channel}: {offence}", setting=offence.setting)

    def _kill(self, relay: Relay) -> None:
        """Hear no more of it, and see to it that it does nothing while it is mourned."""
        relay.silence()
        threading.Thread(target=self._warden.signal, args=("KILL",), daemon=True).start()
