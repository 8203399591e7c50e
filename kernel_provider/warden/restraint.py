"""What a warden does to a kernel that says too much, or breaks the rules of the wire."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from kernel_provider.warden.death import of_output
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
