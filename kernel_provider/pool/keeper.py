"""The keeper: parks sandboxes in the background, in the process that will want them.

One thread for each process. It is told what was launched, keeps as many of that on the
shelf as the policy says, and lets go of all of them when its process ends. Whoever takes
one, this process or another, is made up for after a while: never while a launch is on
its way.
"""

import logging
import os
import select
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

from kernel_provider.children import reap_later
from kernel_provider.errors import ConfigError, SandboxError
from kernel_provider.folders import runtime_root
from kernel_provider.link import Link
from kernel_provider.pool.plan import Want, plan
from kernel_provider.recipe import Recipe
from kernel_provider.values import parse_size
from kernel_provider.warden import shelf

QUIET: Final = 2.0
"""Seconds after a launch in which nothing is parked: the notebook's first cells go first."""
SHARE: Final = 0.25
"""Of this machine's memory, what parked sandboxes may take by their limits."""
CEILING_VARIABLE: Final = "EXECUTOR_ML_MAX_POOL_MEMORY"


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """Something launched lately, to be kept until ``until`` (monotonic)."""

    recipe: Recipe
    kernel: str
    until: float


class Keeper:
    """Keeps the shelf of one user filled with what this process launches.

    ``ceiling`` is what all parked sandboxes of the user may take, in bytes, by their
    limits.
    """

    def __init__(self, environ: Mapping[str, str], *, ceiling: int) -> None:
        self._environ = dict(environ)
        self._ceiling = ceiling
        self._wishes: list[_Wish] = []
        self._kept: dict[Link, _Wish] = {}
        self._quiet_until = 0.0
        self._lock = threading.Lock()
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)  # noqa: FBT003
        self._ended = False
        self._thread: threading.Thread | None = None
        self._log = logging.getLogger(__name__)

    def want(self, recipe: Recipe, kernel: str) -> None:
        """Keep some of these from now on, for as long as the policy lets one lie."""
        if recipe.policy.pool < 1:
            return
        with self._lock:
            now = time.monotonic()
            self._quiet_until = now + QUIET
            until = now + recipe.policy.park_ttl
            others = [wish for wish in self._wishes if wish.recipe != recipe]
            self._wishes = [_Wish(recipe=recipe, kernel=kernel, until=until), *others]
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="executor-ml-keeper", daemon=True
                )
                self._thread.start()
        self._rouse()

    def stop(self) -> None:
        """Let go of everything; what is on the shelf of ours ends by itself."""
        self._ended = True
        self._rouse()
        if self._thread is not None:
            self._thread.join()
        self._woken.close()
        self._wake.close()

    def _rouse(self) -> None:
        with suppress(OSError):
            self._wake.send(b".")

    def _forget(self, recipe: Recipe) -> None:
        with self._lock:
            self._wishes = [wish for wish in self._wishes if wish.recipe != recipe]

    def _run(self) -> None:
        while not self._ended:
            pause = self._tend()
            files = [self._woken, *(link.connection for link in self._kept)]
            select.select(files, [], [], pause)
            with suppress(BlockingIOError):
                self._woken.recv(4096)
        for link in self._kept:
            _drop(link)

    def _tend(self) -> float | None:
        """Hear what became of ours, park what is missing; give the seconds to wait."""
        for link, wish in tuple(self._kept.items()):
            link.listen()
            if link.taken or link.gone:
                del self._kept[link]
                _drop(link)
                if link.error is not None:
                    self._give_up(wish, link.error)
                elif not link.taken:  # its time was over, or somebody ended it
                    self._forget(wish.recipe)
        with self._lock:
            now = time.monotonic()
            self._wishes = [wish for wish in self._wishes if wish.until > now]
            wishes, quiet = tuple(self._wishes), self._quiet_until - now
        if quiet > 0 and wishes:
            return quiet
        if all(link.parked for link in self._kept):  # one at a time
            try:
                self._park_one(wishes)
            except SandboxError as error:  # the folder of all of them
                for wish in wishes:
                    self._give_up(wish, error)
        return min((wish.until - now for wish in wishes), default=None)

    def _park_one(self, wishes: Sequence[_Wish]) -> None:
        """Park what is missing most, if anything is."""
        root = runtime_root(self._environ)
        lying = shelf.entries(root)
        meant = {wish.recipe.digest(): wish for wish in wishes}
        missing = plan(
            [
                Want(digest=digest, count=w.recipe.policy.pool, memory=w.recipe.policy.memory)
                for digest, w in meant.items()
            ],
            parked=Counter(entry.digest for entry in lying),
            held=sum(entry.memory for entry in lying),
            ceiling=self._ceiling,
        )
        for digest in missing[:1]:
            wish = meant[digest]
            try:
                self._kept[_begin(wish, root)] = wish
            except (SandboxError, OSError) as error:
                self._give_up(wish, error)

    def _give_up(self, wish: _Wish, error: Exception) -> None:
        """What can't be parked is not tried again before the next launch of it."""
        reason = str(error).partition("\n")[0]
        self._log.warning("No sandbox of kernel %s is kept warm: %s", wish.kernel, reason)
        self._forget(wish.recipe)


def _begin(wish: _Wish, root: str) -> Link:
    """Start one that is to be parked; what can't be started leaves nothing."""
    order = wish.recipe.order(root, parked=True)
    try:
        ttl = max(1.0, wish.until - time.monotonic())
        return Link.park(order, kernel=wish.kernel, ttl=ttl, stays=False)
    except BaseException:
        shutil.rmtree(order.folder, ignore_errors=True)
        raise


def _drop(link: Link) -> None:
    link.connection.close()
    if link.lost:
        shutil.rmtree(link.folder, ignore_errors=True)
    if link.pid is not None:
        reap_later(link.pid)


def memory_ceiling(environ: Mapping[str, str]) -> int:
    """Bytes that all parked sandboxes of a user may take: as told, or a share of all.

    Raises ConfigError where what is told is no size.
    """
    if CEILING_VARIABLE in environ:
        told = environ[CEILING_VARIABLE]
        try:
            return parse_size(told)
        except ValueError as error:
            raise ConfigError(
                source="the environment", key=CEILING_VARIABLE, value=told, reason=str(error)
            ) from error
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE)


@cache
def of_this_process() -> Keeper:
    """The one keeper that all kernels of this process share."""
    return Keeper(os.environ, ceiling=memory_ceiling(os.environ))
