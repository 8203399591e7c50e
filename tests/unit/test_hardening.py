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
from kernel_provider.errors import EnvironmentTooLargeError
from kernel_provider.hardening import (
    ENVIRONMENT,
    RENDEZVOUS_FOLDER,
    THREAD_VARIABLES,
    policy_digest,
    sandbox_spec,
)
from kernel_provider.policy import KernelPolicy
from kernel_provider.recipe import Recipe
from kernel_provider.seccomp import profile_json
from kernel_provider.values import MIB
from kernel_provider.warden.order import Order


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
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "2", "MKL's holds in torch"
    assert set(env) == {
        *THREAD_VARIABLES,
        "TOKENIZERS_PARALLELISM",
        "MINE",
        "EXECUTOR_ML_PRELOAD",
    }
    assert env["EXECUTOR_ML_PRELOAD"] == "a,b.c"
    both = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}
    env = sandbox_spec(KernelPolicy(env=both), rendezvous="/r").env
    assert [env[name] for name in THREAD_VARIABLES] == ["2", "3", "2", "2", "2"]


def test_more_environment_than_a_process_can_have_is_refused() -> None:
    """In bytes, all variables together; the text says how many there are too many."""
    empty = sandbox_spec(KernelPolicy(env={"A": ""}), rendezvous="/r").env
    used = sum(len(name) + len(value) + 2 for name, value in empty.items())
    most = "\N{SNOWMAN}" * ((ENVIRONMENT - used) // 3)
    assert sandbox_spec(KernelPolicy(env={"A": most}), rendezvous="/r").env["A"] == most
    with pytest.raises(EnvironmentTooLargeError) as caught:
        sandbox_spec(KernelPolicy(env={"A": most + "\N{SNOWMAN}"}), rendezvous="/r")
    assert f"and {ENVIRONMENT} are possible" in str(caught.value)
    assert "\N{SNOWMAN}" not in str(caught.value), "values are nobody's business"


@pytest.mark.parametrize("said", [True, "insist"])
def test_loopback_opens_its_own_profile_and_nothing_else(said: bool | str) -> None:  # noqa: FBT001
    """The rest of the request stays; gloo is told which interface there is."""
    plain = sandbox_spec(KernelPolicy(), rendezvous="/r")
    spec = sandbox_spec(KernelPolicy(loopback=said), rendezvous="/r")
    assert spec == replace(
        plain,
        loopback=True,
        seccomp=profile_json(loopback=True),
        env={**plain.env, "GLOO_SOCKET_IFNAME": "lo"},
        labels=spec.labels,
    )


def test_gpus_open_their_own_profile_and_nothing_else() -> None:
    """Loopback has its own; both may be had."""
    plain = sandbox_spec(KernelPolicy(), rendezvous="/r")
    spec = sandbox_spec(KernelPolicy(gpus=("0",)), rendezvous="/r")
    assert spec == replace(plain, gpus=("0",), seccomp=profile_json(gpus=True), labels=spec.labels)
    both = sandbox_spec(KernelPolicy(gpus=1, loopback=True), rendezvous="/r")
    assert both.seccomp == profile_json(loopback=True, gpus=True)


@pytest.mark.parametrize("gpus", [0, 2, "all", ("0", "1")])
def test_a_request_reaches_the_warden_as_it_is(gpus: int | str | tuple[str, ...]) -> None:
    """JSON knows no tuples; what is compared there must be what was asked for here."""
    order = Order(
        engine="docker",
        address="/s",
        spec=sandbox_spec(KernelPolicy(gpus=gpus, loopback=True), rendezvous="/r"),
        folder="/f",
        startup_timeout=1.0,
    )
    assert Order.from_json(order.to_json()) == order


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
    "output_limit": 4 * MIB,
    "output_rate": 5 * MIB,
    "message_size": 6 * MIB,
    "message_rate": 7,
    "message_parts": 18,
    "command_size": 400,
    "handshake_timeout": 9.0,
    "cell_timeout": 60.0,
    "mounts": {"/data/a": "/b"},
    "models": {"org/a@main": "/views/b/snapshots/c"},
    "env": {"A": "b"},
    "preload": ("numpy",),
    "pool": 3,
    "park_ttl": 60.0,
    "startup_timeout": 5.0,
    "loopback": True,
    "gpus": "all",
}


@pytest.mark.parametrize("field", [field.name for field in fields(KernelPolicy)])
def test_the_digest_tells_policies_apart_by_every_field(field: str) -> None:
    """Sandboxes of one digest stand in for each other, so nothing may be left out."""
    policy = KernelPolicy()
    assert policy_digest(policy) == policy_digest(KernelPolicy())
    assert policy_digest(replace(policy, **{field: _OTHER[field]})) != policy_digest(policy)


@pytest.mark.parametrize(
    "field",
    [
        "output_limit",
        "output_rate",
        "message_size",
        "message_rate",
        "message_parts",
        "command_size",
        "handshake_timeout",
        "cell_timeout",
        "pool",
        "park_ttl",
        "startup_timeout",
    ],
)
def test_what_a_claim_brings_makes_no_other_sandbox(field: str) -> None:
    """A server, which has another limit, may claim what was parked by hand."""
    policy = replace(KernelPolicy(), **{field: _OTHER[field]})
    recipes = [Recipe(policy=p, address="/s") for p in (policy, KernelPolicy())]
    assert recipes[0].digest() == recipes[1].digest()
