"""The pool driven by hand: park some that outlive this process, look at all, end them."""

import select
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kernel_provider.children import reap_later
from kernel_provider.errors import WardenError
from kernel_provider.folders import runtime_root
from kernel_provider.link import GRACE, Link
from kernel_provider.recipe import Recipe
from kernel_provider.trace import Trace
from kernel_provider.warden import cgroup, shelf
from kernel_provider.warden.shelf import Entry

ENDED_WITHIN: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Parked:
    """One on the shelf: bytes, seconds; ``memory`` is None where it can't be seen.

    ``cpu_time`` is what it has used in all, most of it for imports before it was parked.
    """

    kernel: str
    container: str
    memory: int | None
    memory_limit: int
    cpu_time: float | None
    age: float
    ends_in: float
    keeper: int | None


def look(environ: Mapping[str, str]) -> tuple[Parked, ...]:
    """All parked sandboxes of this user, the oldest first."""
    now = time.monotonic()
    return tuple(_see(entry, now) for entry in shelf.entries(runtime_root(environ)))


def _see(entry: Entry, now: float) -> Parked:
    try:
        load = cgroup.Cgroup(entry.pid).load()
    except (OSError, ValueError):
        load = None
    return Parked(
        kernel=entry.kernel,
        container=entry.container[:12],
        memory=load.memory if load else None,
        memory_limit=entry.memory,
        cpu_time=load.cpu_time / 1e6 if load else None,
        age=max(0.0, now - entry.since),
        ends_in=max(0.0, entry.until - now),
        keeper=entry.keeper or None,
    )


def count(recipe: Recipe, environ: Mapping[str, str]) -> int:
    """How many are parked that a launch of ``recipe`` can take."""
    digest = recipe.digest()
    return sum(entry.digest == digest for entry in shelf.entries(runtime_root(environ)))


def park(recipe: Recipe, kernel: str, environ: Mapping[str, str]) -> None:
    """Park one that outlives this process, and wait until it lies on the shelf.

    Raises the error that ended its start.
    """
    trace = Trace.wanted(environ).path
    order = recipe.order(runtime_root(environ), parked=True, trace=trace)
    try:
        link = Link.park(order, kernel=kernel, ttl=recipe.policy.park_ttl, stays=True)
    except BaseException:
        shutil.rmtree(order.folder, ignore_errors=True)
        raise
    try:
        _await_parked(link, time.monotonic() + recipe.policy.startup_timeout + GRACE)
    except BaseException:
        link.say({"op": "stop"})
        raise
    finally:
        link.connection.close()
        if link.pid is not None:
            reap_later(link.pid)


def _await_parked(link: Link, deadline: float) -> None:
    while not link.parked and not link.gone and time.monotonic() < deadline:
        select.select([link.connection], [], [], deadline - time.monotonic())
        link.listen()
    if link.error is not None:
        raise link.error
    if not link.parked:
        raise WardenError(reason="did not park its sandbox" + link.last_words())


def end(environ: Mapping[str, str], kernel: str | None) -> Iterator[Entry]:
    """End all that are parked, or a kernelspec's, whoever keeps them; yield each."""
    root = runtime_root(environ)
    for entry in shelf.entries(root):
        if kernel in {None, entry.kernel} and shelf.withdraw(entry.folder, entry.digest):
            _end(entry)
            yield entry


def _end(entry: Entry) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ENDED_WITHIN)
        try:
            connection.connect(f"{entry.folder}/w")
            connection.sendall(b'{"op": "stop"}\n')
            while connection.recv(4096):
                pass
        except OSError:  # it has ended by itself
            pass
