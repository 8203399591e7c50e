"""Servers that start kernels for many, as docs/servers.md sets them up."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import graders
import nbformat
import pytest
from conftest import sandboxes
from hubs import NAME, Hub, hub, start_server
from pages import ROOT, blocks, read
from sandboxes import until
from servers import BARE, BIN, Server, free_port, new_session, serving

from kernel_provider.proxy.bodies import LABEL_USER

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

KERNEL = "executor-ml"
SECTIONS = dict(
    part.split("\n", 1) for part in re.split(r"^## ", read("docs/servers.md"), flags=re.MULTILINE)
)
WHERE = "import os, socket; print(socket.gethostname(), os.getuid() > 60000, 6 * 7)"
THERE = "sandbox True 42\n"


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of the servers that are not in this environment."""
    return graders.installed(ROOT / "tests/servers.lock")


def config_of(section: str, folder: Path, name: str) -> Path:
    """Write a section's configuration, all of it, as the file that the server reads."""
    text = "".join(blocks(SECTIONS[section], "python"))
    assert text
    file = folder / "config" / name
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    return file


@contextmanager
def session_on(server: Server, name: str = KERNEL) -> Iterator[str]:
    """A session as a new notebook makes one: its kernel; ended again."""
    status, body = server.ask("POST", "/api/sessions", new_session(name))
    assert status == 201, body
    session = json.loads(body)
    yield str(session["kernel"]["id"])
    assert server.ask("DELETE", f"/api/sessions/{session['id']}")[0] == 204


def strangers(server: Server) -> Server:
    """The same for somebody who has no token."""
    return replace(server, token="x")  # noqa: S106


# --- jupyter server -----------------------------------------------------------------------


def test_a_jupyter_server(tmp_path: Path, engine: docker.DockerClient) -> None:
    """As configured on the page: a start, a run over a websocket, an end; no other kernel."""
    config_of("Jupyter server", tmp_path, "jupyter_server_config.py")
    runtime = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
    before = sandboxes(engine, runtime)
    environ = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    with serving(tmp_path, environ=environ) as server:
        assert strangers(server).ask("GET", "/api/kernels")[0] == 403
        status, body = server.ask("POST", "/api/kernels", {})  # the default kernel is the sandbox
        assert status == 201, body
        kernel = json.loads(body)
        assert kernel["name"] == KERNEL
        assert server.run(kernel["id"], WHERE) == THERE
        assert set(json.loads(server.ask("GET", "/api/kernelspecs")[1])["kernelspecs"]) == {KERNEL}
        assert server.ask("POST", "/api/terminals", {})[0] == 404
        assert server.ask("DELETE", f"/api/kernels/{kernel['id']}")[0] == 204
        assert json.loads(server.ask("GET", "/api/kernels")[1]) == []
    assert until(lambda: sandboxes(engine, runtime) == before, 15)


@pytest.mark.soak
def test_idle_kernels_are_culled(tmp_path: Path, engine: docker.DockerClient) -> None:
    """By the server's own setting; its sandbox goes, and so does what is parked with it."""
    runtime = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
    before = sandboxes(engine, runtime)
    command = (
        *BARE,
        "--MappingKernelManager.cull_idle_timeout=2",
        "--MappingKernelManager.cull_interval=1",
    )
    with serving(tmp_path, command=command, environ={"EXECUTOR_ML_MAX_POOL_MEMORY": "0"}) as server:
        status, body = server.ask("POST", "/api/kernels", {"name": KERNEL})
        assert status == 201, body
        assert len(sandboxes(engine, runtime) - before) == 1
        assert until(lambda: json.loads(server.ask("GET", "/api/kernels")[1]) == [], 60)
        assert until(lambda: sandboxes(engine, runtime) == before, 15)


def test_defaults_reach_runners_that_read_no_configuration(tmp_path: Path) -> None:
    """By the environment: jupyter execute, as nbclient in a program, has no other."""
    threads = "import os; assert os.environ['OMP_NUM_THREADS'] == '2', os.environ"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(threads)])
    nbformat.write(book, tmp_path / "book.ipynb")
    done = subprocess.run(
        [str(BIN / "jupyter-execute"), f"--kernel_name={KERNEL}", "book.ipynb"],
        cwd=tmp_path,
        env={**os.environ, "EXECUTOR_ML_DEFAULT_CPUS": "2"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- JupyterHub ---------------------------------------------------------------------------

COMMAND = BIN / "executor-ml"


@pytest.fixture
def socket() -> Iterator[Path]:
    """Where a proxy may listen: in a folder that everybody may enter."""
    folder = Path(f"/tmp/exp-{secrets.token_hex(3)}")
    folder.mkdir(mode=0o755)
    yield folder / "docker.sock"
    shutil.rmtree(folder)


@contextmanager
def engine_proxy(socket: Path, group: int) -> Iterator[Path]:
    """The command of the page, for a group by its number: the file with what it refuses."""
    told = socket.with_name("refused")
    words = ["proxy", "--socket", str(socket), "--group", str(group)]
    with told.open("w") as file:
        process = subprocess.Popen([COMMAND, *words], stderr=file)
    try:
        assert until(socket.exists, 20)
        yield told
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a Hub that starts servers as others is root")
def test_a_jupyterhub(tools: Path, socket: Path, engine: docker.DockerClient) -> None:
    """A real Hub with its proxy, a person of the machine, their server, sandboxes of theirs.

    What runs as the person is in no group but theirs and the proxy's, can't use the
    engine itself, starts, runs and ends kernels, and takes all along when it ends.
    """
    config = "".join(blocks(SECTIONS["JupyterHub"], "python"))
    address = "unix:///run/executor-ml-proxy/docker.sock"
    assert address in config
    with hub(config.replace(address, f"unix://{socket}"), tools) as made:
        runtime = made.folder / "home" / "s"
        with engine_proxy(socket, made.uid + 1) as refused:
            start_server(made)
            server = made.server
            with session_on(server) as kernel:
                assert server.run(kernel, WHERE) == THERE
                (container,) = _of_kernel(engine, made, server.run(kernel, "os.getuid()"))
                assert container["Config"]["Labels"][LABEL_USER] == str(made.uid)
                warden = int(container["Config"]["Labels"]["executor-ml.warden"].split(":")[2])
                owner = Path(f"/proc/{warden}/status").read_text()
                assert f"\nUid:\t{made.uid}\t" in owner
                assert f"\nGroups:\t{made.uid} {made.uid + 1} \n" in owner
            assert until(lambda: container["Id"] not in sandboxes(engine, runtime), 15)
            assert made.ask("DELETE", f"/users/{NAME}/server")[0] in {202, 204}
            assert until(lambda: not sandboxes(engine, runtime), 30)
            assert refused.read_text().count("\n") == 1, refused.read_text()  # that it listens


def _of_kernel(engine: docker.DockerClient, made: Hub, uid: str) -> list[dict[str, Any]]:
    """What the engine has of a person's sandbox."""
    found = [engine.api.inspect_container(c) for c in sandboxes(engine, made.folder / "home/s")]
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return [one for one in found if one["Name"] == f"/executor-ml-{uid}"]


# --- Kernel Gateway -----------------------------------------------------------------------


@contextmanager
def program(
    words: list[str], folder: Path, tools: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server of the tools' folder, which answers with its token ``t`` before this goes on."""
    paths = f"{tools / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {
        "PATH": paths,
        "PYTHONPATH": str(tools),
        "JUPYTER_PATH": str(tools / "share/jupyter"),  # with voila's templates
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    started = Server(port=free_port(), token="t", log=folder / "log")  # noqa: S106
    command = [word.replace("PORT", str(started.port)) for word in words]
    with started.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **own, **(environ or {})},
        )
    try:
        assert until(lambda: process.poll() is not None or _answers(started), 90)
        assert process.poll() is None, started.log.read_text()[-3000:]
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def _answers(server: Server) -> bool:
    try:
        return server.ask("GET", "/api")[0] < 500
    except OSError:
        return False


@pytest.mark.soak
def test_a_kernel_gateway(tmp_path: Path, tools: Path, engine: docker.DockerClient) -> None:
    """Whatever is asked for is a sandbox, also with variables; a start, a run, an end."""
    file = config_of("Kernel Gateway", tmp_path, "jupyter_kernel_gateway_config.py")
    runtime = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
    before = sandboxes(engine, runtime)
    words = ["kernel_gateway", f"--config={file}", "--KernelGatewayApp.port=PORT"]
    with program(words, tmp_path, tools, {"KG_AUTH_TOKEN": "t"}) as server:
        assert strangers(server).ask("POST", "/api/kernels", {})[0] == 401
        for wanted in ({}, {"name": "python3"}, {"name": KERNEL, "env": {"KERNEL_X": "1"}}):
            status, body = server.ask("POST", "/api/kernels", wanted)
            assert status == 201, body
            kernel = json.loads(body)
            assert kernel["name"] == KERNEL
            told = server.run(kernel["id"], f"{WHERE}; print('KERNEL_X' in os.environ)")
            assert told == f"{THERE}False\n"
            assert server.ask("DELETE", f"/api/kernels/{kernel['id']}")[0] == 204
    assert until(lambda: sandboxes(engine, runtime) == before, 15)


# --- voila --------------------------------------------------------------------------------


@pytest.mark.soak
def test_voila(tmp_path: Path, tools: Path, engine: docker.DockerClient) -> None:
    """Each visitor has a sandbox of their own, whatever the notebook names, and it ends."""
    config_of("voila", tmp_path, "voila.py")
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(f"{WHERE}; print('I am', os.getuid())")],
        metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}},
    )
    nbformat.write(book, tmp_path / "page.ipynb")
    runtime = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"])
    before = sandboxes(engine, runtime)
    words = ["voila", "page.ipynb", "--no-browser", "--port=PORT", "--token=t"]
    with program(words, tmp_path, tools, {"EXECUTOR_ML_MAX_POOL_MEMORY": "0"}) as server:
        assert strangers(server).ask("GET", "/")[0] != 200
        seen = []
        for _ in range(2):
            status, page = server.ask("GET", "/")
            assert status == 200
            assert "sandbox True 42" in page.decode(), page.decode()[-2000:]
            seen += re.findall(r"I am (\d+)", page.decode())
        assert len(set(seen)) == 2
        assert len(sandboxes(engine, runtime) - before) == 2
        for kernel in re.findall(r'"kernelId": ?"([^"]+)"', page.decode()):
            assert server.ask("POST", f"/voila/api/shutdown/{kernel}", {})[0] == 204
        assert until(lambda: len(sandboxes(engine, runtime) - before) == 1, 15)
    assert until(lambda: sandboxes(engine, runtime) == before, 15)
