"""``make bench ARGS=--flags``: what each part of the hardening adds to a start.

Containers that differ in one part are made in turns with ones that have all of them, and
run the same program: the imports of a kernel. The figure is the time from ``create`` to
the program's end.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from unittest.mock import patch

from kernel_provider import names
from kernel_provider.engines import docker
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy

PROGRAM: Final = "import ipykernel.ipkernel"
POLL: Final = 0.002
_LIMITS: Final = ("Memory", "MemorySwap", "PidsLimit", "CpuPeriod", "CpuQuota", "Ulimits")


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Leave the engine's own default in the place of these options."""

    def change(host: dict[str, Any]) -> None:
        for key in keys:
            del host[key]

    return change


def _security(*kept: str) -> Callable[[dict[str, Any]], None]:
    """Keep those of the security options whose names are given; add the rest as it is."""

    def change(host: dict[str, Any]) -> None:
        own = [option for option in host["SecurityOpt"] if option.startswith(kept)]
        host["SecurityOpt"] = [*own, *(option for option in kept if "=" in option)]

    return change


PARTS: Final[Mapping[str, Callable[[dict[str, Any]], None]]] = {
    "nothing (two of the same)": lambda _host: None,
    "our seccomp profile, against Docker's": _security("no-new-privileges"),
    "our seccomp profile, against none": _security("no-new-privileges", "seccomp=unconfined"),
    "no-new-privileges and seccomp, against neither": _security("seccomp=unconfined"),
    "cap-drop ALL": _without("CapDrop"),
    "read-only root": _without("ReadonlyRootfs"),
    "tmpfs on /tmp": _without("Tmpfs"),
    "memory, pids, cpu, nofile, core": _without(*_LIMITS),
    "log of 64 KB, against none": lambda host: host.update(LogConfig={"Type": "none"}),
}


def cost(part: str, rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds with all of the hardening and without ``part``, in turns."""
    pairs = [(_start(lambda _host: None), _start(PARTS[part])) for _ in range(rounds + 1)][1:]
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def table(rounds: int) -> None:
    """Print a line for each part, with the median of the differences in milliseconds."""
    for part in PARTS:
        hard, soft = cost(part, rounds)
        differences = sorted(1000 * (a - b) for a, b in zip(hard, soft, strict=True))
        print(
            f"{part:46s} {statistics.median(differences):+6.1f} ms"
            f"  ({differences[0]:+.1f} to {differences[-1]:+.1f})"
            f"  ratio {statistics.median(hard) / statistics.median(soft):.3f}"
        )


def _start(change: Callable[[dict[str, Any]], None]) -> float:
    engine = docker.DockerEngine(docker.find_socket(os.environ))
    image = engine.image(names.IMAGE)
    policy = KernelPolicy()
    spec = sandbox_spec(policy, rendezvous="/var/empty")
    body = docker.create_body(spec, image_id=image.id, uid=docker._UIDS[0])  # noqa: SLF001
    body["Entrypoint"] = [names.SANDBOX_PYTHON, "-c", PROGRAM]
    body["HostConfig"]["Mounts"] = []
    changed = copy.deepcopy(body)
    change(changed["HostConfig"])
    with patch.object(docker, "create_body", lambda *_args, **_kwargs: changed):
        begun = time.perf_counter()
        container = engine.create(spec, image_id=image.id, uid=docker._UIDS[0])  # noqa: SLF001
    try:
        engine.start(container)
        while (state := engine.inspect(container)) is not None and state.running:
            time.sleep(POLL)
        taken = time.perf_counter() - begun
        if state is None or state.exit_code:
            raise RuntimeError(engine.last_lines(container, 5))
        return taken
    finally:
        engine.remove(container)
