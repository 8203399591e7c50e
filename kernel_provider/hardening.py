"""From a policy to exactly what is asked of the engine: a pure function, and its tables.

Whatever the policy says, it cannot loosen anything here: no network, read-only root,
no capabilities, our seccomp profile, no environment of the host's.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from kernel_provider import names
from kernel_provider.engines import Mount, SandboxSpec
from kernel_provider.policy import KernelPolicy
from kernel_provider.seccomp import profile_json

RENDEZVOUS_FOLDER: Final = "/run/executor/rendezvous"
"""Where the one host folder that every sandbox sees is mounted, read-only."""

NOFILE: Final = 1024
TMP_INODES: Final = 16_384
LOG_SIZE: Final = 64 * 1024
HOSTNAME: Final = "sandbox"

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""Set to the processors allowed, not the host's: at 0.5 CPU one thread took 0.18 s
where 64 took 1.7 s and 65 pids (D4)."""


def sandbox_spec(
    policy: KernelPolicy,
    *,
    rendezvous: str,
    kernelspec_env: Mapping[str, str] | None = None,
    warm: Sequence[str] = (),
) -> SandboxSpec:
    """Give the whole request for one sandbox; ``rendezvous`` is a folder on the host.

    ``warm`` names modules to import before it is claimed, where the image has them.
    """
    threads = str(max(1, math.ceil(policy.cpus)))
    env = dict.fromkeys(THREAD_VARIABLES, threads)
    env["TOKENIZERS_PARALLELISM"] = "false"
    if policy.preload:
        env["EXECUTOR_ML_PRELOAD"] = ",".join(policy.preload)
    if warm:
        env["EXECUTOR_ML_WARM"] = ",".join(warm)
    env.update(kernelspec_env or {})
    env.update(policy.env)
    mounts = [Mount(source=rendezvous, target=RENDEZVOUS_FOLDER)]
    mounts += [
        Mount(source=os.path.realpath(source), target=target)
        for target, source in sorted(policy.mounts.items())
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
        seccomp=profile_json(loopback=False),
        hostname=HOSTNAME,
        log_size=LOG_SIZE,
    )


def policy_digest(policy: KernelPolicy) -> str:
    """Name of a policy: sandboxes of equal digest can stand in for each other."""
    text = json.dumps(asdict(policy), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
