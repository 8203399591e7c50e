"""Every client that a person may use, really run against the installed kernelspec."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_kernel
from kernels import KERNEL, run
from nbclient import NotebookClient
from sandboxes import until
from servers import BIN, Server, new_session, serving

from kernel_provider import names
from kernel_provider.policy import KernelPolicy
from kernel_provider.pool.keeper import CEILING_VARIABLE

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]


def sandboxes(engine: docker.DockerClient) -> set[str]:
    """Containers of this test run: their rendezvous lies in its folder for sockets."""
    label = {"label": f"{names.LABEL}={names.KIND_KERNEL}"}
    runtime = os.environ["EXECUTOR_ML_RUNTIME_DIR"]
    rows = engine.api.containers(all=True, filters=label)
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return {
        row["Id"]
        for row in rows
        if any(mount["Source"].startswith(runtime) for mount in row["Mounts"])
    }


@pytest.fixture(autouse=True)
def nothing_stays(engine: docker.DockerClient) -> Iterator[None]:
    """Whatever the client, its sandbox ends with it."""
    before = sandboxes(engine)
    yield
    deadline = time.monotonic() + 5
    while sandboxes(engine) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sandboxes(engine) <= before


def jupyter(
    *arguments: str, stdin: str = "", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of Jupyter's as a person does."""
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(environ or {})},
    )


SOURCE = "import os, socket\nprint('at', socket.gethostname(), 6 * 7)\nos.getuid() > 60000"


def notebook(path: Path, *sources: str) -> str:
    """Write a notebook of our kernel; with no source, one that tells where it ran."""
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources or (SOURCE,)],
        metadata={"kernelspec": {"name": KERNEL, "display_name": "x", "language": "python"}},
    )
    nbformat.write(made, path)
    return str(path)


def outputs(path: Path) -> list[dict[str, Any]]:
    """The outputs of the last cell of an executed notebook."""
    return list(nbformat.read(path, as_version=4).cells[-1].outputs)


def ran_inside(path: Path) -> bool:
    """Whether a notebook was executed in a sandbox, by what its cell said."""
    stream, result = outputs(path)
    return bool(stream["text"] == "at sandbox 42\n" and result["data"]["text/plain"] == "True")


# --- the kernelspec -----------------------------------------------------------------------


def test_the_kernelspec_is_listed() -> None:
    """`jupyter kernelspec list` shows it, installed with the package."""
    listed = json.loads(jupyter("jupyter-kernelspec", "list", "--json").stdout)
    spec = listed["kernelspecs"][KERNEL]
    assert Path(spec["resource_dir"]).is_relative_to(sys.prefix)
    assert "512 MB" in spec["spec"]["display_name"]
    assert "0.5 CPU" in spec["spec"]["display_name"]


def test_the_provisioner_is_listed() -> None:
    """`jupyter kernelspec provisioners` shows it and where it comes from."""
    done = jupyter("jupyter-kernelspec", "provisioners")
    shown = done.stdout + done.stderr
    assert "executor-ml-provisioner" in shown
    assert "kernel_provider.provisioner:SandboxProvisioner" in shown


# --- commands -----------------------------------------------------------------------------


def test_jupyter_console() -> None:
    """Lines typed into the terminal run in the sandbox; exit ends it."""
    done = jupyter(
        "jupyter-console",
        "--kernel",
        KERNEL,
        "--simple-prompt",
        stdin="import socket\nprint('at', socket.gethostname(), 6 * 7)\nexit\n",
    )
    assert "at sandbox 42" in done.stdout, done.stderr
    assert done.returncode == 0


def test_jupyter_execute(tmp_path: Path) -> None:
    """`jupyter execute --kernel_name` runs a notebook, here in place."""
    path = tmp_path / "n.ipynb"
    notebook(path)
    done = jupyter("jupyter-execute", f"--kernel_name={KERNEL}", "--inplace", str(path))
    assert done.returncode == 0, done.stderr
    assert ran_inside(path)


def test_jupyter_nbconvert(tmp_path: Path) -> None:
    """`jupyter nbconvert --execute` gives a notebook and a page with the outputs."""
    path = tmp_path / "n.ipynb"
    notebook(path)
    for kind, name in (("notebook", "out.ipynb"), ("html", "out.html")):
        done = jupyter("jupyter-nbconvert", "--execute", "--to", kind, str(path), "--output", name)
        assert done.returncode == 0, done.stderr
    assert ran_inside(tmp_path / "out.ipynb")
    assert "at sandbox 42" in (tmp_path / "out.html").read_text()


def test_jupyter_nbconvert_tells_what_failed(tmp_path: Path) -> None:
    """A cell that ends its kernel is an error with the cause, and exit code 1."""
    path = tmp_path / "n.ipynb"
    notebook(path, "import os, time; time.sleep(0.2); os._exit(7)")
    done = jupyter("jupyter-nbconvert", "--execute", "--to", "notebook", str(path))
    assert done.returncode == 1
    assert "exit code 7" in done.stderr


def test_papermill_with_a_parameter(tmp_path: Path) -> None:
    """`papermill -k executor-ml -p` injects the parameter and saves the outputs."""
    path, out = tmp_path / "n.ipynb", tmp_path / "out.ipynb"
    notebook(path, "import socket; print(socket.gethostname(), alpha * 2)")
    done = jupyter("papermill", "-k", KERNEL, "-p", "alpha", "21", str(path), str(out))
    assert done.returncode == 0, done.stderr
    assert outputs(out)[0]["text"] == "sandbox 42\n"


def test_a_command_that_cannot_start_its_kernel_says_why(tmp_path: Path) -> None:
    """The two lines of our error reach the terminal of a client that knows nothing of us."""
    path = tmp_path / "n.ipynb"
    notebook(path)
    done = jupyter(
        "jupyter-execute",
        f"--kernel_name={KERNEL}",
        str(path),
        environ={"EXECUTOR_ML_MAX_MEMORY": "256m"},
    )
    assert done.returncode != 0
    assert "above the ceiling of 256 MB set in EXECUTOR_ML_MAX_MEMORY" in done.stderr
    assert "Fix: ask for at most 256 MB" in done.stderr


# --- libraries ----------------------------------------------------------------------------


def test_papermill_as_a_library(tmp_path: Path) -> None:
    """papermill.execute_notebook, which passes no working directory."""
    path, out = tmp_path / "n.ipynb", tmp_path / "out.ipynb"
    notebook(path)
    papermill.execute_notebook(str(path), str(out), kernel_name=KERNEL, progress_bar=False)
    assert ran_inside(out)


def test_nbclient(tmp_path: Path) -> None:
    """NotebookClient runs a notebook by the kernel's name in its metadata."""
    path = tmp_path / "n.ipynb"
    notebook(path)
    made = nbformat.read(path, as_version=4)
    NotebookClient(made, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(made, path)
    assert ran_inside(path)


def test_start_new_kernel_passes_what_test_suites_pass() -> None:
    """stdout=, stderr= and cwd= are accepted."""
    with Path(os.devnull).open("w") as null:
        km, client = start_new_kernel(kernel_name=KERNEL, stdout=null, stderr=null, cwd="/")
        try:
            assert run(client, "1 + 1").result == "2"
        finally:
            client.stop_channels()
            km.shutdown_kernel(now=True)


# --- a server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, own_folders: Path) -> Iterator[Server]:
    """One server for the tests of its API, with a kernelspec of a typo beside ours."""
    del own_folders
    spec = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / "typo"
    spec.mkdir(parents=True)
    config = {
        "argv": ["executor-ml", "launch", "{connection_file}"],
        "display_name": "typo",
        "language": "python",
        "metadata": {
            "kernel_provisioner": {
                "provisioner_name": "executor-ml-provisioner",
                "config": {"memroy": "1g"},
            }
        },
    }
    (spec / "kernel.json").write_text(json.dumps(config))
    alone = {CEILING_VARIABLE: "0"}  # containers are counted: nothing is parked beside them
    with serving(tmp_path_factory.mktemp("server"), environ=alone) as running:
        yield running
    (spec / "kernel.json").unlink()
    spec.rmdir()


def test_the_launcher_shows_it_with_its_logos(server: Server) -> None:
    """GET /api/kernelspecs: name, limits and three logos that can be fetched."""
    status, body = server.ask("GET", "/api/kernelspecs")
    assert status == 200
    spec = json.loads(body)["kernelspecs"][KERNEL]
    assert "512 MB" in spec["spec"]["display_name"]
    assert set(spec["resources"]) == {"logo-svg", "logo-32x32", "logo-64x64"}
    for name, start in (("logo-svg", b"<"), ("logo-32x32", b"\x89PNG"), ("logo-64x64", b"\x89PNG")):
        status, picture = server.ask("GET", spec["resources"][name])
        assert (status, picture[: len(start)]) == (200, start)


def test_a_session_starts_and_ends_with_its_container(
    server: Server, engine: docker.DockerClient
) -> None:
    """POST /api/sessions starts one, DELETE ends it; restart and interrupt in between."""
    before = sandboxes(engine)
    status, body = server.ask("POST", "/api/sessions", new_session(KERNEL))
    assert status == 201, body
    session = json.loads(body)
    first = sandboxes(engine) - before
    assert len(first) == 1
    kernel = f"/api/kernels/{session['kernel']['id']}"
    assert server.ask("POST", f"{kernel}/interrupt")[0] == 204
    assert server.ask("POST", f"{kernel}/restart")[0] == 200
    assert until(lambda: len(sandboxes(engine) - before) == 1), "the old one is removed meanwhile"
    assert sandboxes(engine) - before != first
    assert server.ask("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    assert sandboxes(engine) == before
    assert json.loads(server.ask("GET", "/api/kernels")[1]) == []


def test_a_kernel_that_cannot_start_says_why_in_the_browser(
    server: Server, engine: docker.DockerClient
) -> None:
    """Our message is the dialog's, word for word: what is wrong, and how to mend it."""
    before = sandboxes(engine)
    status, body = server.ask("POST", "/api/sessions", new_session("typo"))
    assert status == 500
    assert json.loads(body)["message"] == (
        "kernelspec typo: there is no setting 'memroy'; did you mean 'memory'?\n"
        "Fix: remove 'memroy' or use one of: " + ", ".join(KernelPolicy.__dataclass_fields__)
    )
    assert sandboxes(engine) == before
    assert json.loads(server.ask("GET", "/api/sessions")[1]) == []


def test_the_servers_log_has_no_secret(server: Server) -> None:
    """Neither a kernel's key nor the environment is written there."""
    status, body = server.ask("POST", "/api/sessions", new_session(KERNEL))
    assert status == 201
    session = json.loads(body)
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    info = json.loads((runtime / f"kernel-{session['kernel']['id']}.json").read_text())
    assert server.ask("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    log = server.log.read_text()
    assert info["key"] not in log
    assert "JUPYTER_DATA_DIR" not in log
    assert re.search(r"Kernel \S+ runs in the container executor-ml-\d+", log)


@pytest.mark.parametrize("kill", [False, True])
def test_a_server_takes_its_kernels_along(
    tmp_path: Path, engine: docker.DockerClient, *, kill: bool
) -> None:
    """Stopped by SIGTERM or killed: its sandboxes are gone within seconds (D3).

    So is one that it was parking meanwhile.
    """
    before = sandboxes(engine)
    with serving(tmp_path, kill=kill) as running:
        assert running.ask("POST", "/api/sessions", new_session(KERNEL))[0] == 201
        assert 1 <= len(sandboxes(engine) - before) <= 2
    deadline = time.monotonic() + 15
    while sandboxes(engine) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sandboxes(engine) == before
