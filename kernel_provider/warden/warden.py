"""The warden's life: start a sandbox, park it, take one claim, relay, see it out."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kernel_provider.engines import Engine, open_engine
from kernel_provider.errors import EngineError, SandboxError, StaleError, WardenError
from kernel_provider.warden.cgroup import Usage
from kernel_provider.warden.loop import Loop, Timer
from kernel_provider.warden.owners import Owner, Owners
from kernel_provider.warden.sandbox import Sandbox
from kernel_provider.warden.talk import Listener, Talk

# What is needed only once the sandbox is under way is imported while it starts: a
# sixth of this process's own start, on the path of every cold launch.
if TYPE_CHECKING:
    from kernel_provider.warden.death import Cause
    from kernel_provider.warden.order import Order
    from kernel_provider.warden.relay import Relay

UNCLAIMED: Final = 30.0
"""Seconds that an order's own claim may take to come."""
UNHEARD: Final = 5.0
"""Seconds that a failure waits for somebody to tell."""


class Warden:
    """One sandbox, its owners, its relay."""

    def __init__(self, order: Order, listener: socket.socket) -> None:
        self.order = order
        self.spec = order.spec
        self.loop = Loop()
        self.owners = Owners(self.loop, listener, self.on_order, self.on_no_owner)
        self.relay: Relay | None = None
        self.sandbox: Sandbox | None = None
        self.talk: Talk | None = None
        self.key = ""
        self._claim: dict[str, Any] | None = None
        self._claimant: Owner | None = None
        self._park: dict[str, Any] | None = None
        self._keeper: Owner | None = None
        self._parked = False
        self._ending = False
        self._wanted = False
        self._oom_kills = 0
        self._failure: SandboxError | None = None
        self._deadline: Timer = self.loop.after(order.startup_timeout, self.on_timeout)

    def run(self) -> None:
        """Live."""
        self.loop.on_signal(signal.SIGTERM, self.end)
        try:
            self.start(open_engine(self.order.engine, self.order.address))
            import kernel_provider.warden.relay  # noqa: F401, PLC0415  see above

            self.loop.run()
        finally:
            self.clean()

    # --- starting ---------------------------------------------------------------------

    def start(self, engine: Engine) -> None:
        """Have a container made and started; a failure is told once the loop runs."""
        try:
            self.sandbox = Sandbox(
                engine, self.spec, folder=self.order.folder, address=self.order.address
            )
            self.sandbox.launch()
        except SandboxError as error:
            self.loop.after(0, lambda e=error: self.fail(e))  # type: ignore[misc]
            return
        listener = Listener(
            parked=self.on_parked, ready=self.on_ready, ended=self.on_end, failed=self.fail
        )
        self.talk = Talk(self.loop, self.sandbox, listener)

    def on_parked(self) -> None:
        """Everything is imported and nobody was served: close the limits, be claimable."""
        if self._parked or self._ending:
            return
        assert self.sandbox is not None
        try:
            self.sandbox.close_limits()
        except EngineError:
            self.start_limited()
            return
        except SandboxError as error:
            self.fail(error)
            return
        self._parked = True
        self._deadline.cancel()
        if self._claim is not None:
            self.pass_claim()
        elif self._park is not None:
            self.lie_down(self._park)
        else:
            self._deadline = self.loop.after(UNCLAIMED, self.on_timeout)

    def lie_down(self, park: dict[str, Any]) -> None:
        """Go on the shelf, until somebody's claim comes or the time is over."""
        from kernel_provider.warden import shelf  # noqa: PLC0415

        assert self.sandbox is not None
        now = time.time()
        entry = shelf.Entry(
            folder=self.order.folder,
            digest=self.order.digest,
            kernel=park["kernel"],
            container=self.sandbox.container,
            pid=self.sandbox.pid,
            memory=self.spec.memory,
            since=now,
            until=now + park["ttl"],
            keeper=park["keeper"],
        )
        shelf.put(entry)
        self.owners.say({"event": "parked"})
        self._deadline = self.loop.after(park["ttl"], self.end)

    def leave_shelf(self) -> None:
        """Be nobody's to claim any more. Twice is fine."""
        if self._park is not None:
            from kernel_provider.warden import shelf  # noqa: PLC0415

            shelf.withdraw(self.order.folder, self.order.digest)

    def thank_keeper(self) -> None:
        """Tell whoever parked this that it is taken; it holds nothing any more."""
        if self._keeper is not None:
            self._keeper.say({"event": "taken"})
            self._keeper.holds = False
            self._keeper.close()

    def start_limited(self) -> None:
        """Start again where the engine can't close a limit, closed from the start (D4)."""
        import shutil  # noqa: PLC0415

        assert self.sandbox is not None
        self.remove()
        for name in ("i", "r"):
            shutil.rmtree(f"{self.order.folder}/{name}", ignore_errors=True)
        self.spec = replace(self.spec, cpus_open=False)
        self.start(self.sandbox.engine)

    def pass_claim(self) -> None:
        """Tell the kernel whose it is."""
        assert self.talk is not None
        assert self._claim is not None
        self._deadline.cancel()
        self.talk.claim(self._claim)

    def on_ready(self) -> None:
        """Open the relay and say so; then see to the dead of others."""
        if self._claim is None or self.relay is not None:
            return
        from kernel_provider.warden.relay import Relay  # noqa: PLC0415
        from kernel_provider.warden.zmtp import FrameLimits  # noqa: PLC0415

        assert self.sandbox is not None
        assert self._claimant is not None
        self.relay = Relay(
            self.loop,
            self.sandbox.sockets.connect,
            self.on_violation,
            FrameLimits(),
            self.on_answer,
        )
        outer = [socket.socket(fileno=fd) for fd in self._claimant.descriptors]
        self._claimant.descriptors = []
        self.relay.open(outer, subscribers=self._claim["subscribers"])
        self._claimant.say(
            {
                "event": "ready",
                "container": self.sandbox.container,
                "uid": self.sandbox.uid,
                "pid": self.sandbox.pid,
            }
        )
        threading.Thread(target=self.sweep, daemon=True).start()

    def sweep(self) -> None:
        """Remove what dead wardens left; in a thread, and never an error of ours."""
        from kernel_provider.warden.sweep import sweep, sweep_folders  # noqa: PLC0415

        assert self.sandbox is not None
        try:
            sweep(self.sandbox.engine)
            sweep_folders(os.path.dirname(self.order.folder))
        except (SandboxError, OSError, ValueError):
            pass

    # --- owners -----------------------------------------------------------------------

    def on_order(self, owner: Owner, order: dict[str, Any]) -> None:
        """Do what an owner asks."""
        kind = order["op"]
        if kind == "claim":
            self.on_claim(owner, order)
        elif kind == "park":
            self.on_park(owner, order)
        elif kind == "attach":
            same = bool(self.key) and order["key"] == self.key and self.relay is not None
            uid = self.sandbox.uid if self.sandbox is not None else 0
            owner.say({"event": "ready" if same else "refused", "uid": uid})
            owner.holds = same
            if not same:
                owner.close()
        elif kind == "signal":
            self._wanted = self._wanted or order["signal"] in {"TERM", "KILL"}
            threading.Thread(target=self.signal, args=(order["signal"],), daemon=True).start()
        elif kind == "stop":
            self.end()

    def on_park(self, owner: Owner, order: dict[str, Any]) -> None:
        """Lie on the shelf once everything is imported, for somebody to claim."""
        self._park = order
        if order["keeper"]:
            self._keeper, owner.holds = owner, True
        if self._failure is not None:
            self.answer_failure()

    def on_claim(self, owner: Owner, order: dict[str, Any]) -> None:
        """The first one wins, and its connection is the lifeline from now on."""
        if self._claim is not None:
            error = WardenError(reason="is another's already")
            owner.say({"event": "failed", **error.to_wire()})
            owner.close()
            return
        self._claim, self._claimant, self.key = order, owner, order["key"]
        owner.holds = True
        if self._failure is not None:
            self.answer_failure()
        elif self._parked:
            self.pass_claim()
            self.leave_shelf()
            self.thank_keeper()
            self.see_that_it_is_fresh()

    def see_that_it_is_fresh(self) -> None:
        """See, while the kernel takes the claim, whether its image is still the one meant."""
        assert self.sandbox is not None
        try:
            now = self.sandbox.engine.image(self.spec.image).id
            if now != self.sandbox.image_id:
                self.fail(StaleError(image=self.spec.image))
        except SandboxError as error:
            self.fail(error)

    def on_no_owner(self) -> None:
        """Nobody is left who could want this sandbox."""
        if self._claim is not None or self._park is not None:
            self.end()

    def signal(self, name: str) -> None:
        """Have the engine signal PID 1, which passes it on; in a thread."""
        assert self.sandbox is not None
        try:
            self.sandbox.engine.kill(self.sandbox.container, name)
        except EngineError as error:
            self.owners.murmur({"event": "trouble", "text": str(error)})

    # --- ending -----------------------------------------------------------------------

    def on_timeout(self) -> None:
        """Too slow to park, or parked for a claim that never came."""
        if self._parked or self.sandbox is None:
            self.end()
            return
        reason = f"it was not ready within {self.order.startup_timeout:g} s"
        self.fail(self.sandbox.failure(reason))

    def on_answer(self) -> None:
        """A request is over, and what was killed for memory by now was not its doing."""
        assert self.sandbox is not None
        if self.sandbox.group is not None:
            self._oom_kills = self.sandbox.group.usage().oom_kills

    def on_violation(self, channel: str, what: str) -> None:
        """The kernel side or a client broke the framing: no way to go on."""
        self.on_end(None, violation=f"{channel}: {what}")

    def on_end(self, status: int | None, *, violation: str = "") -> None:
        """The kernel is over. Take the facts, say the last words, tell the owners."""
        from kernel_provider.warden.death import Facts, decide  # noqa: PLC0415

        if self._ending or self.sandbox is None:
            return
        if self.relay is None:
            self.fail(self.sandbox.failure(_how_it_ended(status)))
            return
        self._ending = True
        usage = self.sandbox.group.usage() if self.sandbox.group else None
        state = None
        try:
            if status is None and not violation:
                state = self.sandbox.ended(2.0)
        except EngineError:
            pass
        facts = Facts(
            status=status,
            engine_status=state.exit_code if state else None,
            oom_flag=bool(state and state.oom_killed),
            usage=usage or Usage(memory_peak=0, oom_kills=0, pids_refused=0),
            oom_kills_before=self._oom_kills,
            memory=self.order.spec.memory,
            violation=violation,
        )
        self.mourn(decide(facts))

    def mourn(self, cause: Cause) -> None:
        """Tell the cell that was running, then the owners."""
        from kernel_provider.warden.lastwords import LastWords, compose  # noqa: PLC0415

        assert self.relay is not None
        request = self.relay.running()
        expected = self._wanted or (self.relay.shutdown_requested and cause.exit_code == 0)
        subscribers = self.relay.subscribers()
        died = {
            "event": "died",
            "cause": cause.to_wire(),
            "expected": expected,
            "subscribers": subscribers,
        }

        def finish() -> None:
            self.owners.say(died)
            self.finish()

        self.relay.close_listeners()
        if expected or request is None:
            finish()
            return
        LastWords(self.loop, self.relay, compose(cause, request, self.key), finish)

    def fail(self, error: SandboxError) -> None:
        """The start failed: wait for the claim, if it is still to come, and answer it."""
        if self._ending:
            return
        self._ending = True
        self._failure = error
        self.leave_shelf()
        self._deadline.cancel()
        # the sandbox goes first: whoever hears of the failure finds nothing left of it
        self.remove()
        if self._claim is not None or self._park is not None:
            self.answer_failure()
        else:
            self.loop.after(UNHEARD, self.loop.stop)

    def answer_failure(self) -> None:
        """Tell whoever claimed why there is nothing to claim."""
        assert self._failure is not None
        self.owners.say({"event": "failed", **self._failure.to_wire()})
        self.loop.stop()

    def end(self) -> None:
        """Stop on request, or because nobody is left."""
        if self._ending:
            return
        self._ending = True
        self.leave_shelf()
        self.finish()

    def finish(self) -> None:
        """Drop the clients, remove the sandbox, say that it is gone."""
        subscribers = 0
        if self.relay is not None:
            subscribers = self.relay.subscribers()
            self.relay.close()
        gone = self.remove()
        self.owners.say({"event": "gone", "clean": gone, "subscribers": subscribers})
        self.loop.stop()

    def remove(self) -> bool:
        """Remove the sandbox; false where something of it is still there."""
        if self.sandbox is None:
            return True
        if self.talk is not None:
            self.talk.close()
        try:
            return self.sandbox.remove()
        except SandboxError:
            return False

    def clean(self) -> None:
        """Whatever happened: no container and no folder stays, a dead owner's neither."""
        import shutil  # noqa: PLC0415

        from kernel_provider.warden.sweep import sweep_folders  # noqa: PLC0415

        try:
            self.remove()
        finally:
            shutil.rmtree(self.order.folder, ignore_errors=True)
            sweep_folders(os.path.dirname(self.order.folder))


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "it ended without a word"
    if status < 0:
        return f"its kernel was killed by signal {-status}"
    return f"its kernel ended with exit code {status}"
