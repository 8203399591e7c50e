"""Parked sandboxes in real containers: taken once, alive, up to date, or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from jupyter_client.manager import KernelManager
from kernels import kernel, run
from parked import KEEPER, PLAIN, launch, lying, park, recipe, warden_of
from sandboxes import session_of, until, value

from kernel_provider.errors import SandboxError
from kernel_provider.policy import KernelPolicy
from kernel_provider.pool import hand, keeper
from kernel_provider.pool.keeper import Keeper
from kernel_provider.trace import VARIABLE
from kernel_provider.warden import cgroup

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("empty_shelf")]

QUOTA = """
from pathlib import Path
root = Path("/sys/fs/cgroup")
new = root / "cpu.max"
old = [root / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
tuple(map(int, new.read_text().split() if new.exists() else [f.read_text() for f in old]))
"""


def test_a_parked_one_is_taken() -> None:
    """By one launch; the next starts its own."""
    (entry,) = park()
    assert launch() == entry.container
    assert not lying()
    assert launch() != entry.container


def test_torch_is_there_in_the_first_cell() -> None:
    """Imported while parked; limits closed, key, variables and shell as in a cold start."""
    config = {"env": {"MINE": "x"}}
    park(KernelPolicy(env={"MINE": "x"}))
    with kernel(config) as (_, client):
        assert value(client, QUOTA) == (50_000, 100_000)
        assert value(client, "import sys; 'torch' in sys.modules") is True
        assert value(client, "'transformers.pipelines' in sys.modules") is True
        assert value(client, "import os; os.environ['MINE']") == "x"
        begun = time.monotonic()
        assert run(client, "import torch, transformers; from transformers import pipeline").status
        assert time.monotonic() - begun < 1.0, "half of what importing them takes"
    assert not lying()


def test_a_parked_one_costs_no_processor_time() -> None:
    """Of three seconds, less than a hundredth."""
    (entry,) = park(KernelPolicy())
    group = cgroup.Cgroup(entry.pid)
    before = group.load().cpu_time
    time.sleep(3)
    assert group.load().cpu_time - before < 30_000
    (seen,) = hand.look(os.environ)
    assert seen.memory is not None
    assert 64 << 20 < seen.memory < 512 << 20


@pytest.mark.parametrize("dead", ["kernel", "guardian", "warden", "all"])
def test_a_dead_one_is_never_claimed(dead: str, engine: docker.DockerClient) -> None:
    """Killed a moment before the launch, which is then a cold one and no error."""
    (entry,) = park()
    label = engine.api.inspect_container(entry.container)["Config"]["Labels"]
    warden = int(label["executor-ml.warden"].split(":")[2])
    children = Path(f"/proc/{entry.pid}/task/{entry.pid}/children").read_text().split()
    kernels = [int(child) for child in children]
    victims = {"kernel": kernels, "guardian": [entry.pid], "warden": [warden]}
    for victim in victims.get(dead, [*kernels, entry.pid, warden]):
        os.kill(victim, signal.SIGKILL)
    assert launch() != entry.container
    assert until(lambda: not cgroup.is_alive(entry.pid))
    launch()  # sweeps what a killed warden left
    assert until(lambda: not Path(entry.folder).exists())


def test_a_stuck_one_is_given_up() -> None:
    """Its warden does not answer: a cold start after a short while."""
    (entry,) = park()
    warden = warden_of(entry)
    os.kill(warden, signal.SIGSTOP)
    try:
        assert launch() != entry.container
    finally:
        os.kill(warden, signal.SIGCONT)
    assert until(lambda: not cgroup.is_alive(entry.pid))


def test_an_outdated_image_is_never_claimed(engine: docker.DockerClient) -> None:
    """The name stands for another image by now: the parked one ends, a new one serves."""
    name = "executor-ml-test-pool"
    image = engine.images.get("executor-ml:latest")
    image.tag(name, "latest")
    policy = replace(PLAIN, image=f"{name}:latest")
    try:
        (entry,) = park(policy)
        box = engine.api.create_container("executor-ml:latest", ["x"])
        changed = engine.api.commit(box["Id"], name, "latest", changes=["LABEL changed=yes"])
        engine.api.remove_container(box["Id"])
        assert changed["Id"] != image.id
        assert launch(policy) != entry.container
        assert until(lambda: not cgroup.is_alive(entry.pid))
        assert not lying()
    finally:
        engine.api.remove_image(f"{name}:latest")
        engine.close()


def test_other_settings_never_claim(tmp_path: Path) -> None:
    """Another limit, another variable, another folder behind a mount: not this one."""
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    policy = replace(PLAIN, mounts={"/data/x": str(data)})
    before = recipe(policy).digest()
    assert recipe(replace(policy, memory=513 << 20)).digest() != before
    assert recipe(replace(policy, env={"A": "b"})).digest() != before
    assert replace(recipe(policy), address="/nowhere").digest() != before
    assert recipe(replace(policy, pool=7, startup_timeout=9)).digest() == before
    data.rename(other)
    data.mkdir()
    assert recipe(policy).digest() != before


def test_launches_at_once_from_many_processes() -> None:
    """Of four processes two get a parked one, each its own; all four serve."""
    parked = {entry.container for entry in park(count=2)}
    code = (
        "import asyncio, os; from kernel_provider.session import Session\n"
        "from kernel_provider.policy import KernelPolicy\n"
        "s = Session(environ=os.environ, name='test')\n"
        "s.launch(KernelPolicy(preload=('json',)), key='k' * 32, env={})\n"
        "print(asyncio.run(s.launched(40))['container'])\n"
        "s.stop(); asyncio.run(s.gone(10)); s.close()\n"
    )

    def one(_: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=90
        )
        return done.stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        served = list(pool.map(one, range(4)))
    assert len(set(served)) == 4
    assert len(parked & set(served)) == 2
    assert not lying()


def test_its_time_ends() -> None:
    """After park_ttl nothing of it is there."""
    (entry,) = park(replace(PLAIN, park_ttl=1.0))
    assert until(lambda: not lying() and not cgroup.is_alive(entry.pid), 15)
    assert until(lambda: not Path(entry.folder).exists())


def test_the_keeper_makes_up_for_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It parks what was launched, again when one is taken, and ends all with itself."""
    monkeypatch.setattr(keeper, "QUIET", 0.2)
    kept = Keeper(os.environ, ceiling=8 << 30)
    try:
        kept.want(recipe(), "test")
        assert until(lambda: len(lying()) == 1, 30)
        (first,) = lying()
        assert first.keeper == os.getpid()
        assert launch() == first.container
        assert until(lambda: len(lying()) == 1, 30)
        assert lying()[0].container != first.container
    finally:
        kept.stop()
    assert until(lambda: not lying(), 15)


def test_what_this_process_kept_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Jupyter server: whoever kept it lets go, and takes nothing of it along."""
    monkeypatch.setattr(keeper, "QUIET", 0.2)
    kept = Keeper(os.environ, ceiling=8 << 30)
    try:
        for number in range(3):
            kept.want(recipe(), "test")
            assert until(lambda: len(lying()) == 1, 30)
            (entry,) = lying()
            with kernel({"preload": ["json"]}) as (km, client):
                assert run(client, f"print({number})").stdout == f"{number}\n"
                assert look_at(km) == (entry.container, True)
    finally:
        kept.stop()
    assert until(lambda: not lying(), 15)


def look_at(km: KernelManager) -> tuple[str, bool]:
    """The container behind a manager's kernel, and whether its warden's folder is there."""
    session = session_of(km)
    ready = session._need().ready  # noqa: SLF001
    assert ready is not None
    return ready["container"], Path(session.describe()["warden"]).exists()


def test_the_keeper_ends_with_its_process() -> None:
    """Killed outright: what it had parked goes by itself."""
    with subprocess.Popen([sys.executable, "-c", KEEPER]) as process:
        try:
            assert until(lambda: len(lying()) == 1, 30)
            (entry,) = lying()
        finally:
            process.kill()
    assert until(lambda: not lying() and not cgroup.is_alive(entry.pid), 15)
    assert until(lambda: not Path(entry.folder).exists())


def test_a_keeper_parks_nothing_above_its_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a GiB does not fit into less; and a pool of none is none."""
    monkeypatch.setattr(keeper, "QUIET", 0.0)
    kept = Keeper(os.environ, ceiling=(512 << 20) - 1)
    try:
        kept.want(recipe(), "test")
        kept.want(recipe(replace(PLAIN, pool=0, memory=128 << 20)), "test")
        time.sleep(2)
        assert not lying()
        assert not kept._kept  # noqa: SLF001  nor on its way
    finally:
        kept.stop()


def test_what_cannot_be_parked_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No image: one line in the log, and no attempt after it."""
    monkeypatch.setattr(keeper, "QUIET", 0.0)
    kept = Keeper(os.environ, ceiling=8 << 30)
    try:
        kept.want(recipe(replace(PLAIN, image="executor-ml-nowhere:latest")), "mine")
        assert until(lambda: bool(caplog.records), 15)
        time.sleep(1)
    finally:
        kept.stop()
    (record,) = caplog.records
    assert record.getMessage() == (
        "No sandbox of kernel mine is kept warm: "
        "the image executor-ml-nowhere:latest is not on this machine; "
        "did you mean 'executor-ml:latest'?"
    )


def test_parking_by_hand_tells_why_not() -> None:
    """The error of a start, and nothing on the shelf."""
    with pytest.raises(SandboxError, match="executor-ml-nowhere:latest is not on this machine"):
        park(replace(PLAIN, image="executor-ml-nowhere:latest"))
    assert not lying()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``executor-ml pool`` as a person does."""
    program = Path(sys.executable).parent / "executor-ml"
    return subprocess.run([program, "pool", *words], capture_output=True, text=True, check=False)


def test_by_command(image: str) -> None:
    """Start, status, stop, with and without anything there."""
    assert image
    assert command("status").stdout == "nothing is parked\n"
    assert command("stop").stdout == "nothing is parked\n"
    done = command("start", "--ttl", "5m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 parked of kernel executor-ml, for 5 min\n")
    (seen,) = json.loads(command("status", "--json").stdout)
    assert (seen["kernel"], seen["memory_limit"]) == ("executor-ml", 512 << 20)
    assert 200 < seen["ends_in"] <= 300
    assert seen["container"] in command("status").stdout
    assert json.loads(command("stop", "--json").stdout) == {"ended": [seen["container"]]}
    assert command("start", "--kernel", "nothing-like-it").returncode == 78


@pytest.mark.parametrize("now", [True, False])
def test_restart_takes_a_parked_one(*, now: bool) -> None:
    """Behind the same outer sockets, with the same client, in a fraction of the time.

    No variable survives, no output is lost. Quiet machines take 0.2 s to the next result.
    """
    times: dict[str, list[float]] = {"warm": [], "cold": []}
    with kernel({"preload": ["json"]}) as (km, client):
        for kind in ("warm", "cold", "warm", "cold"):
            run(client, "x = 1")
            parked = park() if kind == "warm" else ()
            begun = time.monotonic()
            km.restart_kernel(now=now)
            outcome = run(client, f"print('{kind}', 'x' in globals())")
            times[kind].append(time.monotonic() - begun)
            assert outcome.stdout == f"{kind} False\n"
            assert not lying()
            assert look_at(km)[0] in {entry.container for entry in parked} or kind == "cold"
    assert min(times["warm"]) < 0.6 * min(times["cold"]), times


def test_a_launch_that_is_traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every step is noted, in the processes that take it; the sandbox does not know where."""
    file = tmp_path / "steps"
    monkeypatch.setenv(VARIABLE, str(file))
    seen = "import os; %r in os.environ, %r in open('/proc/self/environ').read()"
    with kernel({}) as (_, client):
        assert value(client, seen % (VARIABLE, str(file))) == (False, False)
        assert until(lambda: "sandbox: IPython ready" in file.read_text(), 10)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    steps = sorted((row["at"], row["step"]) for row in rows)
    names = [step for _, step in steps]
    order = ["provisioner: policy parsed", "session: warden started", "warden: created"]
    order += ["warden: started", "sandbox: ipykernel imported", "warden: limits closed"]
    assert [name for name in names if name in order] == order
    assert names[-1] == "session: served"
    assert len({row["pid"] for row in rows}) == 2
