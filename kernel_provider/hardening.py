"""From a policy to exactly what is asked of the engine: a pure function, and its tables.

Whatever the policy says, it cannot loosen anything here: no network, read-only root,
no capabilities, our seccomp profile, no environment of the host's. ``loopback`` and
``gpus`` add what their groups of the profile say, and nothing else.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from kernel_provider import names
from kernel_provider.engines import Mount, SandboxSpec
from kernel_provider.errors import EnvironmentTooLargeError
from kernel_provider.models.mounts import model_mounts
from kernel_provider.policy import KernelPolicy
from kernel_provider.seccomp import profile_json
from kernel_provider.trace import VARIABLE

RENDEZVOUS_FOLDER: Final = "/run/executor/rendezvous"
"""Where the one host folder that every sandbox sees is mounted, read-only."""

NOFILE: Final = 1024
TMP_INODES: Final = 16_384
LOG_SIZE: Final = 64 * 1024
HOSTNAME: Final = "sandbox"
ENVIRONMENT: Final = 128 * 1024
"""Bytes of all variables together. Linux starts no process with a longer one, and what
a notebook's own subprocesses get has to fit as well."""

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""Set to the processors allowed, not the host's: at 0.5 CPU one thread took 0.18 s
where 64 took 1.7 s and 65 pids (D4). Who sets the first sets all: the others fall back
to it everywhere else, and MKL's would hold against it."""


def sandbox_spec(
    policy: KernelPolicy,
    *,
    rendezvous: str,
    warm: Sequence[str] | None = None,
    traced: bool = False,
) -> SandboxSpec:
    """Give the whole request for one sandbox; ``rendezvous`` is a folder on the host.

    One that is to be parked has a list of modules in ``warm``, to be imported where the
    image has them; it may be empty. ``traced`` has it note when its steps are over.
    Raises EnvironmentTooLargeError.
    """
    threads = policy.env.get(THREAD_VARIABLES[0], str(max(1, math.ceil(policy.cpus))))
    env = dict.fromkeys(THREAD_VARIABLES, threads)
    env["TOKENIZERS_PARALLELISM"] = "false"
    if policy.loopback:
        env["GLOO_SOCKET_IFNAME"] = "lo"  # else torch.distributed looks its host name up
    if policy.preload:
        env["EXECUTOR_ML_PRELOAD"] = ",".join(policy.preload)
    if warm is not None:
        env["EXECUTOR_ML_WARM"] = ",".join(warm)
    if traced:
        env[VARIABLE] = "1"  # not which file
    env.update(policy.env)
    size = sum(len(f"{name}={value}".encode(errors="replace")) + 1 for name, value in env.items())
    if size > ENVIRONMENT:
        raise EnvironmentTooLargeError(size=size, limit=ENVIRONMENT)
    mounts = [Mount(source=rendezvous, target=RENDEZVOUS_FOLDER)]
    mounts += [
        Mount(source=os.path.realpath(source), target=target)
        for target, source in sorted({**policy.mounts, **model_mounts(policy.models)}.items())
    ]
    return SandboxSpec(
        image=policy.image,
        argv=(names.SANDBOX_PYTHON, "-I", "-S", names.SANDBOX_GUARDIAN),
        env=env,
        memory=policy.memory,
        cpus=policy.cpus,
        pids=policy.pids,
        nofile=NOFILE,
        tmp_size=policy.tmp_size,
        tmp_inodes=TMP_INODES,
        shm_size=policy.shm_size,
        mounts=tuple(mounts),
        labels={
            names.LABEL: names.KIND_KERNEL,
            names.LABEL_PROTOCOL: str(names.PROTOCOL),
            names.LABEL_POLICY: policy_digest(policy),
        },
        seccomp=profile_json(loopback=bool(policy.loopback), gpus=bool(policy.gpus)),
        hostname=HOSTNAME,
        log_size=LOG_SIZE,
        loopback=bool(policy.loopback),
        gpus=policy.gpus,
    )


def policy_digest(policy: KernelPolicy) -> str:
    """Name of a policy: sandboxes of equal digest can stand in for each other."""
    text = json.dumps(asdict(policy), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
