"""How long a cell may run, and what happens to one that runs longer (D13).

The clock is the relay's: it starts when a client's request arrives, or when the one before
it is answered, and ends with the answer. What a kernel says of itself (``idle``, that it
waits for ``input()``) does not stop it, and nothing counts as an answer that the client
would not take for one. Beyond the limit a kernel is interrupted, and then stopped.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernel_provider.warden.message import DELIMITER
from kernel_provider.warden.successor import Successor
from kernel_provider.warden.zmtp import Follower

if TYPE_CHECKING:
    from kernel_provider.warden.loop import Timer
    from kernel_provider.warden.pair import Pair, Request
    from kernel_provider.warden.relay import Relay

GRACE: Final = 5.0
"""Seconds from the interrupt of a cell that goes on to the end of its kernel."""
REPLIES: Final = ("execute_reply", "kernel_info_reply")
"""To a cell, and to the question of a client's successor."""

_SIGNATURE: Final = 1
_HEADER: Final = 2
_PARENT: Final = 3
_SIGNED: Final = range(2, 6)
"""Parts that the signature is of: header, parent, metadata, content."""


@dataclass(kw_only=True, eq=False)
class _Asked:
    """A cell that was asked for, or all of a client that left; ``name`` is the answer's.

    ``limit`` is how long it may run, in seconds. The kernel answers a ``successor`` after
    whatever it has read before, so that has the time of all that waits beside it.
    """

    pair: "Pair"
    request: "Request"
    name: str
    limit: float
    successor: Successor | None = None

    def waits_at(self, pair: "Pair") -> bool:
        """Whether the answer comes on this connection."""
        return pair is (self.successor.pair if self.successor is not None else self.pair)


class Overtime:
    """One kernel's, over all connections: which cells were asked for, and since when.

    ``interrupt(request)`` is called once for a cell that has run for ``limit`` seconds, and
    ``stop(request)`` where it goes on. The oldest is the one that runs: where several
    clients asked, a kernel may take another one first, so any answer starts the clock anew.
    """

    def __init__(
        self,
        relay: "Relay",
        limit: float,
        *,
        key: str,
        interrupt: "Callable[[Request], None]",
        stop: "Callable[[Request], None]",
    ) -> None:
        self._relay = relay
        self._limit = limit
        self._key = key
        self._interrupt = interrupt
        self._stop = stop
        self._asked: list[_Asked] = []
        self._since = 0.0
        self._interrupted = False
        self._timer: Timer | None = None

    def hear(self, pair: "Pair", follower: Follower) -> None:
        """Look for answers among what a kernel says to one client."""
        Replies(
            self._key,
            is_awaited=lambda: any(asked.waits_at(pair) for asked in self._asked),
            on_reply=lambda name: self.answered(pair, name),
        ).follow(follower)

    def asked(self, pair: "Pair", request: "Request") -> None:
        """A client asks for a cell."""
        asked = _Asked(pair=pair, request=request, name=request.name, limit=self._limit)
        self._give(asked.limit)
        self._asked.append(asked)
        if len(self._asked) == 1:
            self._start()
        elif not self._interrupted:
            self._wait()

    def answered(self, pair: "Pair", name: str) -> None:
        """A client has the answer to its request of that name; other words change nothing."""
        for asked in self._asked:
            if asked.waits_at(pair) and asked.name == name:
                self._asked.remove(asked)
                if asked.successor is None:
                    self._give(-asked.limit)
                else:
                    asked.successor.close()
                self._start()
                return

    def left(self, pair: "Pair") -> None:
        """A client is gone: another one waits for its cells, all together."""
        mine = [asked for asked in self._asked if asked.pair is pair and asked.successor is None]
        if not mine:
            return
        heir, others = mine[0], mine[1:]
        heir.limit = sum(asked.limit for asked in self._asked if asked.successor is None)
        heir.successor = Successor(self._relay, self._key)
        heir.name = heir.successor.name
        self._asked = [asked for asked in self._asked if asked not in others]
        if not self._interrupted:
            self._wait()

    def _give(self, seconds: float) -> None:
        """Give so much time to those who wait for others' cells as well."""
        for asked in self._asked:
            if asked.successor is not None:
                asked.limit += seconds

    def close(self) -> None:
        """Watch no more."""
        for asked in self._asked:
            if asked.successor is not None:
                asked.successor.close()
        self._asked = []
        self._wait()

    def _start(self) -> None:
        self._since = time.monotonic()
        self._interrupted = False
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._asked:
            left = self._since + self._asked[0].limit - time.monotonic()
            self._timer = self._relay.loop.after(left, self._late)

    def _late(self) -> None:
        request = self._asked[0].request
        self._interrupted = True
        self._timer = self._relay.loop.after(GRACE, lambda: self._stop(request))
        self._interrupt(request)


class Replies:
    """Finds the answers in what a kernel says on shell to one client.

    A client drops a message whose signature is wrong, and waits on: so that is no answer,
    nor is one to another's request. ``on_reply(name)`` is called with the request's msg_id;
    nothing is looked at unless ``is_awaited()``.
    """

    def __init__(
        self, key: str, *, is_awaited: Callable[[], bool], on_reply: Callable[[str], None]
    ) -> None:
        self._key = hmac.new(key.encode(), digestmod=hashlib.sha256) if key else None
        self._is_awaited = is_awaited
        self._on_reply = on_reply
        self._proof: hmac.HMAC | None = None
        self._parts: dict[int, bytes] = {}

    def follow(self, follower: Follower) -> None:
        """Look at every message from now on."""
        follower.on_piece, follower.on_frame = self._piece, self._frame
        follower.on_message = self._message

    def _piece(self, index: int, data: memoryview) -> None:
        if self._proof is not None and index in _SIGNED:
            self._proof.update(data)

    def _frame(self, index: int, body: bytes) -> None:
        if index == 0:
            self._parts.clear()
            looks = body == DELIMITER and self._is_awaited()
            self._proof = self._key.copy() if looks and self._key is not None else None
            if looks:
                self._parts[0] = body
        elif self._parts and index in (_SIGNATURE, _HEADER, _PARENT):
            self._parts[index] = body

    def _message(self, _size: int) -> None:
        parts, self._parts = self._parts, {}
        if not parts or (self._proof and not self._is_signed(parts[_SIGNATURE])):
            return
        try:
            kind = json.loads(parts[_HEADER])["msg_type"]
            name = json.loads(parts[_PARENT])["msg_id"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return
        if kind in REPLIES and isinstance(name, str):
            self._on_reply(name)

    def _is_signed(self, signature: bytes) -> bool:
        assert self._proof is not None
        return hmac.compare_digest(self._proof.hexdigest().encode(), signature)
