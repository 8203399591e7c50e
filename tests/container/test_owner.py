"""The owner's end in real containers: it never waits for an engine, and loses nothing."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from kernels import kernel, manager, run, started
from proxy import EngineProxy, proxied
from sandboxes import containers_of, left_of, look, session, session_of, until, value

from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import (
    ConfigError,
    EnvironmentTooLargeError,
    StartError,
)
from kernel_provider.hardening import ENVIRONMENT
from kernel_provider.warden import cgroup

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

LIST = "GET /containers/json"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProxy]:
    """An engine whose calls can be held."""
    with proxied(find_socket(os.environ)) as made:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{made.path}")
        yield made


# --- a lost warden ------------------------------------------------------------------------


def test_closing_after_a_lost_warden_waits_for_no_engine(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """The engine hangs: close() returns all the same, and the sandbox goes when it can."""
    with session() as made:
        seen = look(made, engine)
        assert until(lambda: LIST in proxy.calls), "the warden's own look for the dead"
        gate = proxy.hold(LIST)
        os.kill(seen.warden, signal.SIGKILL)
        assert until(lambda: made.death is not None)
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 10
        assert proxy.arrived[LIST].wait(20), "somebody sees to it"
        gate.set()
        assert until(lambda: not left_of(seen, engine), 10), left_of(seen, engine)
    assert until(lambda: not any(t.name == "executor-ml-reaper" for t in threading.enumerate()))


def test_what_could_not_be_removed_is_told(
    proxy: EngineProxy, engine: docker.DockerClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that answers nonsense costs a line in the log, with the remedy."""
    with session() as made:
        seen = look(made, engine)
        assert until(lambda: LIST in proxy.calls)
        proxy.replies[LIST] = lambda rows: [{**row, "Labels": None} for row in rows]
        os.kill(seen.warden, signal.SIGKILL)
        assert until(lambda: made.death is not None)
        made.close()
        assert until(lambda: "run: executor-ml prune" in caplog.text, 10)
    del proxy.replies[LIST]
    with session():  # as the next start of any kernel does
        assert until(lambda: not left_of(seen, engine), 10)


SCRIPT = """
import asyncio, json, os, signal, sys, time
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session
made = Session(environ=os.environ, name="script")
made.launch(KernelPolicy(), key="key", env={})
asyncio.run(made.launched(60))
print(json.dumps({"pid": made.warden}), flush=True)
sys.stdin.readline()
os.kill(made.warden, signal.SIGKILL)
while made.death is None:
    time.sleep(0.01)
if sys.argv[1] == "atexit":
    import atexit
    atexit.register(made.close)
else:
    made.close()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["ends", "atexit", "killed"])
def test_a_script_that_ends_at_once_leaves_nothing_and_does_not_hang(
    proxy: EngineProxy, engine: docker.DockerClient, how: str
) -> None:
    """Its kernel's warden was killed and the engine hangs: it ends, and what is left goes."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        warden = json.loads(script.stdout.readline())["pid"]
        assert until(lambda: LIST in proxy.calls)
        gate = proxy.hold(LIST)
        began = time.monotonic()
        script.stdin.write("\n")
        script.stdin.close()
        assert script.stdout.read() == "", "nobody holds its output open"
        script.wait(20)
        assert time.monotonic() - began < 10
    assert proxy.arrived[LIST].wait(20), "somebody sees to it"
    gate.set()
    assert until(lambda: not containers_of(warden, engine), 10)
    assert not cgroup.is_alive(warden)


# --- the environment ----------------------------------------------------------------------


def test_the_kernelspecs_environment_is_there_when_modules_are_imported() -> None:
    """What torch and the hub read at import; the client's few variables come later."""
    env = {"OMP_NUM_THREADS": "2", "HF_HUB_ETAG_TIMEOUT": "77", "MINE": "${HOME}/x"}
    km = manager({"preload": ["torch", "huggingface_hub.constants"]}, env=env)
    with started(km, env={"HOME": "/of/the/client", "TZ": "JST-9", "OTHER": "1"}) as client:
        code = (
            "import os, sys, time\n"
            "early = 'torch' in sys.modules and 'huggingface_hub.constants' in sys.modules\n"
            "import torch, huggingface_hub.constants as hub\n"
            "(early, torch.get_num_threads(), hub.HF_HUB_ETAG_TIMEOUT, os.environ['MINE'],"
            " time.strftime('%z'), 'OTHER' in os.environ)"
        )
        assert value(client, code) == (True, 2, 77, "/of/the/client/x", "+0900", False)
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert value(client, code) == (True, 2, 77, "/of/the/client/x", "+0900", False)


def test_what_the_kernelspec_sets_is_not_the_clients_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A time zone among the settings holds against that of whoever starts the kernel."""
    monkeypatch.setenv("TZ", "JST-9")
    with kernel({"env": {"TZ": "EST5"}}) as (_, client):
        assert value(client, "import time; time.strftime('%z')") == "-0500"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"LD_PRELOAD": "/models/x.so"}, "LD_PRELOAD would change the process that watches over"),
        ({"GLIBC_TUNABLES": "x"}, "GLIBC_TUNABLES would change"),
        ({"OMP_NUM_THREADS": 2}, "write an object of texts"),
    ],
)
def test_a_kernelspecs_environment_obeys_the_rules_of_the_settings(
    own_folders: Path, env: dict[str, str], words: str
) -> None:
    """It would act on PID 1: an error that names it, and nothing is left."""
    before = set(own_folders.iterdir())
    km = manager({}, env=env)
    with pytest.raises(ConfigError) as caught:
        km.start_kernel()
    assert words in str(caught.value)
    assert "kernelspec executor-ml: env" in str(caught.value)
    assert set(own_folders.iterdir()) == before


TRAP = """
import os, sys
open(f"/tmp/{name}-{{os.getpid()}}", "w").close()
if {name!r} != "sitecustomize":
    sys.path.remove("/models/trap")
    del sys.modules[{name!r}]
    import {name}
    sys.path.append("/models/trap")
"""


def test_pythons_own_variables_reach_the_kernel_and_not_its_guardian(
    tmp_path: Path, engine: docker.DockerClient
) -> None:
    """PYTHONPATH and the like work as in any kernel; PID 1 runs isolated from them."""
    tmp_path.chmod(0o755)
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("sitecustomize", "ctypes", "select", "signal"):
        (trap / f"{name}.py").write_text(TRAP.format(name=name))
    (trap / "start.py").write_text("started = 'by PYTHONSTARTUP'")
    env = {
        "PYTHONPATH": "/models/trap",
        "PYTHONSTARTUP": "/models/trap/start.py",
        "PYTHONINSPECT": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "7",
        "PYTHONWARNINGS": "ignore",
    }
    with kernel({"mounts": {"/models/trap": str(trap)}}, env=env) as (km, client):
        code = (
            "import os, glob, sys\n"
            "pid = str(os.getpid())\n"
            "caught = {p.rpartition('-')[2] for p in glob.glob('/tmp/*-*[0-9]')}\n"
            "(started, '/models/trap' in sys.path, pid in caught, '1' in caught)"
        )
        assert value(client, code) == ("by PYTHONSTARTUP", True, True, False)
        guardian = look(session_of(km), engine).guardian
        assert b"guardian.py" in Path(f"/proc/{guardian}/cmdline").read_bytes()


def test_a_variable_that_breaks_python_breaks_the_kernel_only() -> None:
    """The start fails, and it is an unharmed guardian that tells how the kernel ended."""
    km = manager({}, env={"PYTHONHOME": "/none/such"})
    with pytest.raises(StartError) as caught:
        km.start_kernel()
    assert "the kernel process ended with exit code 1" in str(caught.value)
    assert "guardian.py" not in str(caught.value)
    assert not km.has_kernel


def test_as_much_environment_as_is_allowed_works() -> None:
    """In one variable, through the engine and into a subprocess; one byte more does not."""
    with kernel({"env": {"BIG": "x" * (ENVIRONMENT - 2000)}}) as (_, client):
        code = "import subprocess\nlen(subprocess.run('echo $BIG', shell=True, stdout=-1).stdout)"
        assert value(client, code) == ENVIRONMENT - 2000 + 1


@pytest.mark.parametrize("where", ["the settings", "the kernelspec", "the client"])
def test_a_megabyte_of_environment_is_refused(own_folders: Path, where: str) -> None:
    """Wherever it comes from: at once, by a typed error, and nothing is left."""
    much = {"TZ": "x" * (1 << 20)}
    config = {"env": much} if where == "the settings" else {}
    km = manager(config, env=much if where == "the kernelspec" else {})
    before = set(own_folders.iterdir())
    began = time.monotonic()
    with pytest.raises(EnvironmentTooLargeError):
        km.start_kernel(env=much if where == "the client" else {})
    assert time.monotonic() - began < 5
    assert not km.has_kernel
    assert set(own_folders.iterdir()) == before


# --- what is told -------------------------------------------------------------------------


def test_a_start_is_one_plain_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Which kernel, and which container: what somebody who runs a server looks for."""
    caplog.set_level(logging.INFO)
    km = manager()
    km.log.setLevel(logging.INFO)
    with started(km) as client:
        assert run(client, "1").status == "ok"
        lines = [r.getMessage() for r in caplog.records if "container" in r.getMessage()]
        uid = value(client, "import os; os.getuid()")
    assert lines == [f"Kernel {km.kernel_id} runs in the container executor-ml-{uid}"]
