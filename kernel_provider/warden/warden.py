"""The warden's life: start a sandbox, park it, take one claim, relay, until an end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from kernel_provider.engines import Engine, SandboxSpec, open_engine
from kernel_provider.errors import (
    EngineError,
    SandboxError,
    StartError,
    WardenError,
    WorkspaceImageError,
)
from kernel_provider.trace import Trace
from kernel_provider.warden.cgroup import NO_USAGE
from kernel_provider.warden.ending import Ending
from kernel_provider.warden.loop import Loop, Timer
from kernel_provider.warden.owners import Owner, Owners
from kernel_provider.warden.rendezvous import CHANNELS
from kernel_provider.warden.sandbox import EndedError, Sandbox
from kernel_provider.warden.talk import Listener, Talk

# What is needed only once the sandbox is under way is imported while it starts: a
# sixth of this process's own start, on the path of every cold launch.
if TYPE_CHECKING:
    from queue import SimpleQueue

    from kernel_provider.warden.order import Order
    from kernel_provider.warden.parking import Parking
    from kernel_provider.warden.relay import Relay
    from kernel_provider.warden.visitors import Visitors
    from kernel_provider.warden.wishes import Attach, Claim, Park, Wish

UNCLAIMED: Final = 30.0
"""Seconds that an order's own claim may take to come."""
STEPS: Final = 64
"""Lines of a sandbox's log at most that tell when its steps were over."""


class Warden:
    """One sandbox, its owners, its relay."""

    def __init__(self, order: Order, listener: socket.socket) -> None:
        self.order = order
        self.trace = Trace(order.trace)
        self.loop = Loop()
        self.owners = Owners(self.loop, listener, self.on_wish, self.on_no_owner)
        self.ending = Ending(self)
        self.sandbox: Sandbox | None = None
        self.talk: Talk | None = None
        self.relay: Relay | None = None
        self.claim: Claim | None = None
        self.claimant: Owner | None = None
        self._signals: SimpleQueue[str] | None = None
        self.parking: Parking | None = None
        self._parked = False
        self._wanted = False
        self._counted = NO_USAGE
        self.visitors: Visitors | None = None
        self._until = time.monotonic() + order.startup_timeout
        self._deadline: Timer = self.loop.after(order.startup_timeout, self.on_timeout)

    @property
    def key(self) -> str:
        """The password of further owners, and what signs the last words."""
        return self.claim.key if self.claim is not None else ""

    def run(self) -> None:
        """Live; leave nothing, and no error untold."""
        self.loop.on_signal(signal.SIGTERM, self.on_terminated)
        self.loop.after(0, self.begin)
        try:
            while not self.ending.over:
                self.serve()
        finally:
            self.ending.clean()

    def serve(self) -> None:
        """Run until the end, or until an error that nobody foresaw has begun it."""
        try:
            self.loop.run()
        except Exception as error:  # noqa: BLE001  whatever it is, it is told
            self.ending.crash(error)

    # --- starting ---------------------------------------------------------------------

    def begin(self) -> None:
        """Start the sandbox, and import what serving takes while it comes up."""
        self.trace.mark("warden: up")
        self.start(open_engine(self.order.engine, self.order.address), self.order.spec)
        import kernel_provider.warden.relay  # noqa: PLC0415  see above
        import kernel_provider.warden.restraint  # noqa: PLC0415
        import kernel_provider.warden.wishes  # noqa: F401, PLC0415

    def start(self, engine: Engine, spec: SandboxSpec) -> None:
        """Have a container made and started; a failure is told once owners were heard."""
        folder, address = self.order.folder, self.order.address
        try:
            self.sandbox = Sandbox(engine, spec, folder=folder, address=address, trace=self.trace)
            self.sandbox.launch(self._until)
            self.leave_network()
            self.sandbox.bind()
        except EndedError:
            self._deadline.cancel()
            self.loop.after(0, partial(self.on_end, None))
        except SandboxError as error:
            self._deadline.cancel()
            self.loop.after(0, partial(self.ending.fail, error))
        else:
            self.talk = Talk(
                self.loop,
                self.sandbox,
                Listener(
                    parked=self.on_parked,
                    ready=self.on_ready,
                    ended=self.on_end,
                    failed=self.ending.fail,
                ),
            )

    def leave_network(self) -> None:
        """Have nothing of the host's network about, where that can be; once.

        But for its tables of connections, which cannot be opened later, and which a claim
        with TCP ports needs. Takes milliseconds, in which the sandbox comes up.
        """
        if self.visitors is None:
            from kernel_provider.warden.netns import leave_network  # noqa: PLC0415
            from kernel_provider.warden.visitors import Visitors  # noqa: PLC0415

            self.visitors = Visitors()
            leave_network()

    def on_parked(self) -> None:
        """Everything is imported and nobody was served: close the limits, be claimable."""
        if self._parked or self.ending.begun:
            return
        assert self.sandbox is not None
        self.trace.mark("warden: parked")
        try:
            self.sandbox.close_limits(self._until)
        except EndedError:  # which the talk is about to tell
            return
        except EngineError as error:
            self.start_limited(error)
            return
        except SandboxError as error:
            self.ending.fail(error)
            return
        self._parked = True
        self.trace.mark("warden: limits closed")
        if self.claim is not None:
            self.pass_claim()
            return
        self._deadline.cancel()
        if self.parking is not None:
            self.parking.lie_down()
        else:
            self._deadline = self.loop.after(UNCLAIMED, self.on_timeout)

    def start_limited(self, refusal: EngineError) -> None:
        """Start again where the engine can't close a limit, closed from the start (D4)."""
        import shutil  # noqa: PLC0415

        assert self.sandbox is not None
        assert self.talk is not None
        self.talk.close()
        self.sandbox.remove(self._until)
        if not self.sandbox.removed:
            self.ending.fail(refusal)
            return
        for name in ("i", "r"):
            shutil.rmtree(f"{self.order.folder}/{name}", ignore_errors=True)
        self.start(self.sandbox.engine, replace(self.order.spec, cpus_open=False))

    def pass_claim(self) -> None:
        """Tell the kernel whose it is."""
        assert self.talk is not None
        assert self.claim is not None
        assert self.sandbox is not None
        assert self.claimant is not None
        if self.claim.workspace and not self.sandbox.takes_workspace:
            self.ending.fail(WorkspaceImageError(image=self.order.spec.image))
            return
        brought = self.claimant.descriptors
        self.claimant.descriptors, copy = brought[: len(CHANNELS)], brought[len(CHANNELS) :]
        self.talk.claim(self.claim, copy)

    def on_ready(self) -> None:
        """Open the relay and say so; then see to the dead of others."""
        if self.claim is None or not self._parked or self.relay is not None:
            return
        from kernel_provider.warden.relay import Relay  # noqa: PLC0415
        from kernel_provider.warden.restraint import Restraint  # noqa: PLC0415

        assert self.sandbox is not None
        assert self.claimant is not None
        assert self.visitors is not None
        restraint = Restraint(self, self.claim)
        relay = Relay(
            self.loop,
            self.sandbox.sockets.connect,
            restraint.on_violation,
            restraint.output,
            self.on_answer,
        )
        restraint.watch(relay)
        outer = [socket.socket(fileno=fd) for fd in self.claimant.descriptors]
        self.claimant.descriptors = []
        if all(listener.family == socket.AF_UNIX for listener in outer):
            self.visitors.close()  # nothing of the host's network stays
        self.trace.mark("warden: kernel ready")
        relay.open(outer, subscribers=self.claim.subscribers, are_welcome=self.visitors.are_welcome)
        self._deadline.cancel()
        self.relay = relay
        self.claimant.say(
            {
                "event": "ready",
                "container": self.sandbox.container,
                "uid": self.sandbox.uid,
                "pid": self.sandbox.pid,
            }
        )
        with suppress(RuntimeError):  # no thread to be had: a courtesy can wait
            threading.Thread(target=self.sweep, daemon=True).start()

    def sweep(self) -> None:
        """Remove what dead wardens left; in a thread, and never an error of ours."""
        from kernel_provider.warden.sweep import sweep, sweep_folders  # noqa: PLC0415

        assert self.sandbox is not None
        with suppress(SandboxError, OSError, ValueError):
            if self.trace.path:
                engine, container = self.sandbox.engine, self.sandbox.container
                self.trace.mark_log(engine.last_lines(container, STEPS))
            sweep(self.sandbox.engine)
            sweep_folders(os.path.dirname(self.order.folder))

    # --- owners -----------------------------------------------------------------------

    def on_wish(self, owner: Owner, wish: Wish) -> None:
        """Do what an owner asks."""
        from kernel_provider.warden.wishes import Attach, Claim, Park, Signal  # noqa: PLC0415

        if isinstance(wish, Claim):
            self.on_claim(owner, wish)
        elif isinstance(wish, Attach):
            self.on_attach(owner, wish)
        elif isinstance(wish, Signal):
            self._wanted = self._wanted or wish.signal in {"TERM", "KILL"}
            self.signal(wish.signal)
        elif isinstance(wish, Park):
            self.on_park(owner, wish)
        else:
            self.ending.stop()

    def on_park(self, owner: Owner, wish: Park) -> None:
        """Lie on the shelf once everything is imported, for somebody to claim."""
        from kernel_provider.warden.parking import Parking  # noqa: PLC0415

        self.parking = Parking(self, owner, wish)
        if self.ending.begun:
            self.ending.conclude()
        elif self._parked:
            self._deadline.cancel()
            self.parking.lie_down()

    def on_claim(self, owner: Owner, claim: Claim) -> None:
        """The first one wins, and its connection is the lifeline from now on."""
        if self.claim is not None:
            error = WardenError(reason="is another's already")
            owner.say({"event": "failed", **error.to_wire()})
            owner.close()
            return
        self.trace.mark("warden: claimed")
        self.claim, self.claimant = claim, owner
        owner.holds = True
        if self.ending.begun:
            self.ending.conclude()
        elif self._parked:
            self._deadline.cancel()
            self._deadline = self.loop.after(self.order.startup_timeout, self.on_timeout)
            self.pass_claim()
            if self.parking is not None:
                self.parking.claimed()

    def on_attach(self, owner: Owner, attach: Attach) -> None:
        """Another one who knows the key keeps the sandbox alive as well."""
        same = bool(self.key) and attach.key == self.key and self.relay is not None
        uid = self.sandbox.uid if self.sandbox is not None else 0
        owner.say({"event": "ready" if same else "refused", "uid": uid})
        owner.holds = same
        if not same:
            owner.close()

    def on_no_owner(self) -> None:
        """Nobody is left who could want this sandbox."""
        if self.claim is not None or self.parking is not None:
            self.ending.stop()

    def signal(self, name: str) -> None:
        """Have the engine signal PID 1, one after the other, however long it takes."""
        if self._signals is None:
            from queue import SimpleQueue  # noqa: PLC0415

            self._signals = SimpleQueue()
            threading.Thread(target=self.deliver, args=(self._signals,), daemon=True).start()
        self._signals.put(name)

    def deliver(self, signals: SimpleQueue[str]) -> None:
        """Pass signals on, in a thread, while there is a sandbox."""
        while True:
            name = signals.get()
            if self.sandbox is None or not self.sandbox.container:
                continue
            try:
                self.sandbox.engine.kill(self.sandbox.container, name)
            except EngineError as error:
                self.owners.murmur({"event": "trouble", "text": str(error)})

    # --- ends -------------------------------------------------------------------------

    def on_timeout(self) -> None:
        """Too slow to serve, or parked for a claim that never came."""
        wanted = self.claim is not None or self.parking is not None
        if not wanted or self.sandbox is None:
            self.ending.stop()
            return
        reason = f"it was not ready within {self.order.startup_timeout:g} s"
        self.ending.fail(StartError(reason=reason, last_words=self.sandbox.last_words()))

    def on_terminated(self) -> None:
        """SIGTERM: the machine shuts down, or a person means it."""
        from kernel_provider.warden.death import TERMINATED  # noqa: PLC0415

        if self.relay is None:
            self.ending.fail(WardenError(reason="was told to end (SIGTERM) during its start"))
        else:
            self.ending.die(TERMINATED, expected=self._wanted)

    def on_answer(self) -> None:
        """A request is over, and what was killed or refused by now was its own affair."""
        assert self.sandbox is not None
        self._counted = self.sandbox.usage()

    def on_end(self, status: int | None, *, violation: str = "", setting: str = "") -> None:
        """The kernel is over: take the facts while they are there, and begin the ending.

        ``violation`` is what it broke of the protocol, ``setting`` what allows for more.
        """
        from kernel_provider.warden.death import decide  # noqa: PLC0415

        if self.ending.begun or self.sandbox is None:
            return
        kernel = self.claim.kernel if self.claim is not None else ""
        facts = self.sandbox.facts(status, before=self._counted, violation=violation, kernel=kernel)
        cause = decide(replace(facts, setting=setting))
        if self.relay is None:
            folder = self.claim.workspace if self.claim is not None else ""
            error = self.sandbox.not_unpacked(folder, status) if folder else None
            self.ending.fail(error or self.sandbox.start_error(cause, status))
            return
        asked = self.relay.shutdown_requested and cause.exit_code == 0
        self.ending.die(cause, expected=self._wanted or asked)
