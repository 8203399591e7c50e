"""From a policy to what is asked of the engine, compared as values."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_provider import names
from kernel_provider.engines import Mount, SandboxSpec
from kernel_provider.engines.docker import create_body
from kernel_provider.hardening import (
    RENDEZVOUS_FOLDER,
    THREAD_VARIABLES,
    policy_digest,
    sandbox_spec,
)
from kernel_provider.policy import MIB, KernelPolicy
from kernel_provider.seccomp import profile_json


def test_the_default_policy_asks_for_exactly_this() -> None:
    """One sandbox, whole: anything new in it is looked at here."""
    assert sandbox_spec(KernelPolicy(), rendezvous="/run/r") == SandboxSpec(
        image="executor-ml:latest",
        argv=("/opt/venv/bin/python3", "-I", "-S", "/opt/executor/guardian.py"),
        env={
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "NUMEXPR_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        memory=512 * MIB,
        cpus=0.5,
        pids=128,
        nofile=1024,
        tmp_size=128 * MIB,
        tmp_inodes=16384,
        shm_size=64 * MIB,
        mounts=(Mount(source="/run/r", target="/run/executor/rendezvous"),),
        labels={
            "executor-ml": "kernel",
            "executor-ml.protocol": str(names.PROTOCOL),
            "executor-ml.policy": policy_digest(KernelPolicy()),
        },
        seccomp=profile_json(loopback=False),
        hostname="sandbox",
        log_size=65536,
    )


@pytest.mark.parametrize(
    ("cpus", "threads"), [(0.01, "1"), (0.5, "1"), (1, "1"), (1.01, "2"), (4, "4")]
)
def test_threads_follow_the_processors_that_are_allowed(cpus: float, threads: str) -> None:
    """Rounded up, one at least, whatever the host has."""
    env = sandbox_spec(KernelPolicy(cpus=cpus), rendezvous="/r").env
    assert {env[name] for name in THREAD_VARIABLES} == {threads}
    assert env["TOKENIZERS_PARALLELISM"] == "false"


def test_the_policys_environment_wins_and_nothing_else_is_added() -> None:
    """A person may choose the thread count; no variable comes from this process."""
    policy = KernelPolicy(env={"OMP_NUM_THREADS": "2", "MINE": "x"}, preload=("a", "b.c"))
    env = sandbox_spec(policy, rendezvous="/r").env
    assert env["OMP_NUM_THREADS"] == "2"
    assert set(env) == {
        *THREAD_VARIABLES,
        "TOKENIZERS_PARALLELISM",
        "MINE",
        "EXECUTOR_ML_PRELOAD",
    }
    assert env["EXECUTOR_ML_PRELOAD"] == "a,b.c"


def test_mounts_are_resolved_and_in_order(tmp_path: Path) -> None:
    """A link is followed now, when it was checked, and not later by the engine."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    policy = KernelPolicy(
        mounts={"/models/z": str(tmp_path / "link"), "/data/a": str(tmp_path / "real")}
    )
    assert sandbox_spec(policy, rendezvous="/r").mounts == (
        Mount(source="/r", target=RENDEZVOUS_FOLDER),
        Mount(source=str(tmp_path / "real"), target="/data/a"),
        Mount(source=str(tmp_path / "real"), target="/models/z"),
    )


_policies = st.builds(
    KernelPolicy,
    memory=st.integers(96 * MIB, 1 << 45),
    cpus=st.floats(0.01, 1e9),
    pids=st.integers(32, 10**9),
    tmp_size=st.integers(MIB, 1 << 45),
    shm_size=st.integers(MIB, 1 << 45),
    env=st.dictionaries(st.text(min_size=1), st.text()),
    mounts=st.dictionaries(st.just("/models/x"), st.just("/srv/x")),
)


@given(_policies)
def test_whatever_the_policy_nothing_is_loosened(policy: KernelPolicy) -> None:
    """The hardening is not the policy's to decide."""
    spec = sandbox_spec(policy, rendezvous="/r")
    body = create_body(spec, image_id="sha256:1", uid=7)
    host = body["HostConfig"]
    assert (body["User"], body["NetworkDisabled"]) == ("7:7", True)
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == (
        "none",
        True,
        False,
    )
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == [
        "no-new-privileges:true",
        f"seccomp={profile_json(loopback=False)}",
    ]
    assert host["Memory"] == host["MemorySwap"] == policy.memory
    assert all(mount["ReadOnly"] for mount in host["Mounts"])
    assert not {"CapAdd", "Devices", "PidMode", "UsernsMode", "Binds", "VolumesFrom"} & set(host)
    assert math.isfinite(spec.cpus)
    json.dumps(body)


def test_the_profile_is_json_with_refusal_as_its_default() -> None:
    """The engine is given text; a call that is not listed is refused."""
    profile = json.loads(sandbox_spec(KernelPolicy(), rendezvous="/r").seccomp)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


_OTHER: dict[str, Any] = {
    "image": "other",
    "memory": 1024 * MIB,
    "cpus": 1.0,
    "pids": 64,
    "tmp_size": MIB,
    "shm_size": MIB,
    "workspace": "copy",
    "workspace_size": 3 * MIB,
    "mounts": {"/data/a": "/b"},
    "env": {"A": "b"},
    "preload": ("numpy",),
    "startup_timeout": 5.0,
}


@pytest.mark.parametrize("field", [field.name for field in fields(KernelPolicy)])
def test_the_digest_tells_policies_apart_by_every_field(field: str) -> None:
    """Sandboxes of one digest stand in for each other, so nothing may be left out."""
    policy = KernelPolicy()
    assert policy_digest(policy) == policy_digest(KernelPolicy())
    assert policy_digest(replace(policy, **{field: _OTHER[field]})) != policy_digest(policy)
