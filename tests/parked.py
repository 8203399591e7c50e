"""Parked sandboxes for tests: put on the shelf, looked at, taken by a launch."""

import asyncio
import os
from pathlib import Path

from sandboxes import KEY

from kernel_provider.engines.docker import find_socket
from kernel_provider.policy import KernelPolicy
from kernel_provider.pool import hand
from kernel_provider.recipe import Recipe
from kernel_provider.session import Session
from kernel_provider.warden import shelf
from kernel_provider.warden.shelf import Entry

PLAIN = KernelPolicy(preload=("json",), pool=1)
"""Parks in a third of the time of one that imports torch."""

KEEPER = (
    "import os, time; from kernel_provider.pool import keeper\n"
    "from kernel_provider.recipe import Recipe; from kernel_provider.policy import *\n"
    "from kernel_provider.engines.docker import find_socket\n"
    "keeper.QUIET = 0\n"
    "policy = KernelPolicy(preload=('json',), pool=1)\n"
    "recipe = Recipe(policy=policy, address=find_socket(os.environ))\n"
    "keeper.of_this_process().want(recipe, 'k')\n"
    "time.sleep(120)\n"
)
"""A process that keeps one of PLAIN parked."""


def recipe(policy: KernelPolicy = PLAIN) -> Recipe:
    """A recipe for this machine's engine."""
    return Recipe(policy=policy, address=find_socket(os.environ))


def lying() -> tuple[Entry, ...]:
    """What is on the shelf of this test run."""
    return shelf.entries(os.environ["EXECUTOR_ML_RUNTIME_DIR"])


def park(policy: KernelPolicy = PLAIN, count: int = 1) -> tuple[Entry, ...]:
    """Put some on the shelf."""
    for _ in range(count):
        hand.park(recipe(policy), "test", os.environ)
    return lying()


def launch(policy: KernelPolicy = PLAIN) -> str:
    """Launch, look which container serves, and end it."""
    made = Session(environ=os.environ, name="test")
    try:
        made.launch(policy, key=KEY, env={})
        return str(asyncio.run(made.launched(60))["container"])
    finally:
        made.stop()
        asyncio.run(made.gone(15))
        made.close()


def warden_of(entry: Entry) -> int:
    """Pid of the warden beside a parked sandbox: it logs to a file in its folder."""
    log = f"{entry.folder}/log"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str((folder / "fd" / "2").readlink()) == log:
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(log)
