"""What the how-tos say is so: commands, settings, messages, tables, names of tests."""

import ast
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import nbformat
import pexpect
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from kernels import kernel, manager, run
from pages import GENERATED, ROOT, blocks, commands, persons_folder, quotes, read, rows, typed
from proxy import EngineProxy, proxied
from sandboxes import Seen, look, memory, session_of, until, value
from servers import BIN, Server, new_session, serving

from kernel_provider import names
from kernel_provider.builder.wheels import cache_folder
from kernel_provider.ceilings import LIMITS, Ceilings, read_ceilings
from kernel_provider.connection import ConnectionInfoError, read_connection
from kernel_provider.doctor.jupyter import server_settings
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import (
    EngineDiskError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageMissingError,
    ImageProtocolError,
    RuntimeFolderFullError,
    SandboxError,
    SandboxLeftError,
    StartError,
    UpgradedError,
)
from kernel_provider.folders import runtime_root
from kernel_provider.kernelspecs import others
from kernel_provider.policy import parse_policy
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.verify.checks import GROUPS
from kernel_provider.warden.cgroup import Usage
from kernel_provider.warden.death import ENGINE_GONE, Facts, decide

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

MIB = 1 << 20
PAGES = (
    "admin",
    "console",
    "grading",
    "images",
    "jupyterlab",
    "papermill",
    "pool",
    "run",
    "servers",
    "threat-model",
    "troubleshooting",
    "upgrade",
    "vscode",
)

SLOW = {"papermill"}
"""Pages whose commands other tests type as well: test_clients.py."""

SHOWN_ELSEWHERE = {
    "pip install .": "test_install.py does so in a fresh environment",
    "pip install --upgrade .": "the same",
    "executor-ml install --sys-prefix --name python3 --replace": "with --prefix below: these "
    "tests have a plain kernel of their own there",
    "executor-ml build --stack 2023": "needs PyTorch's index; test_builder_lock.py reads the lock",
    "executor-ml build --variant datascience": "test_variants.py builds them all",
    "executor-ml build --variant grading": "the same",
    "docker build --network none --build-arg BASE_IMAGE=IMAGE --build-arg "
    'PIP_OPTIONS="--no-index --find-links=/build/wheels" -t executor-ml:latest .': "test_image.py "
    "does so, with a base that is there",
    "executor-ml build --variant cuda": "the same",
    "executor-ml install --variant cuda": "the same, into folders of its own",
    "executor-ml install --variant cuda --gpus none": "the same",
    "executor-ml install --variant grading": "the same, into folders of its own",
    "executor-ml build --variant ./NAME.in": "test_variants.py does so with a file of its own",
    "executor-ml install --variant ./NAME.in --memory 1g": "NAME stands for a name",
    "executor-ml verify": "test_verify.py does so, once for all",
    "executor-ml verify --kernel executor-ml --json": "the same",
    "executor-ml build --base IMAGE": "IMAGE stands for a name",
    "executor-ml install --user --name ml-debugger --loopback true": "test_debugger.py insists: "
    "this machine may have control groups of version 1",
    **dict.fromkeys(
        commands(read("docs/servers.md")),
        "test_servers.py and test_proxy.py do so, with the servers beside .venv",
    ),
    **dict.fromkeys(
        commands(read("docs/grading.md")),
        "test_grading.py does so, in a course and with the tools beside .venv",
    ),
}

INSTEAD = {"executor-ml:before": "executor-ml-docs:before"}
"""Names in the pages that a person who follows them may have in use."""


def page(name: str) -> str:
    """A page of docs/ by its name."""
    return read(f"docs/{name}.md")


# --- for all pages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.soak] if name in SLOW else [])
        for name in PAGES
        if blocks(page(name), "sh")
    ],
)
def test_commands_work(
    name: str, tmp_path: Path, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order and in one folder; those that the README has are run with it."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "work").mkdir()
    folder = persons_folder(tmp_path / "work")
    done_there = commands(read("README.md"))
    try:
        for command in commands(page(name)):
            if command in SHOWN_ELSEWHERE or command in done_there:
                continue
            for word, other in INSTEAD.items():
                command = command.replace(word, other)  # noqa: PLW2901  the same command
            if command.startswith("docker ") and shutil.which("docker") is None:
                continue  # an engine needs no such program
            for result in folder.glob("*result*.ipynb"):
                result.unlink()
            done = typed(command, folder)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            if "result" in command:
                assert "42\\n" in (folder / "result.ipynb").read_text(encoding="utf-8"), command
            if "script.py" in command or command.startswith("jupyter console"):
                assert "42" in done.stdout, command
    finally:
        for other in INSTEAD.values():
            if engine.images.list(name=other):
                engine.images.remove(other)


def test_everything_is_run_or_shown_elsewhere() -> None:
    """No command is exempt without being in a page, and none hides in another kind of block."""
    every = [command for name in PAGES for command in commands(page(name))]
    assert set(SHOWN_ELSEWHERE) <= set(every)
    assert len(set(every)) > len(SHOWN_ELSEWHERE) + 15
    for name in PAGES:
        assert not re.findall(
            r"^(?:    |\t)\S", re.sub(r"^```.*?^```", "", page(name), flags=16 | 8)
        )


def test_tests_that_are_named_are_there() -> None:
    """Whoever reads a claim finds what shows it."""
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = {test for name in PAGES for test in re.findall(r"`(test_\w+)`", page(name))}
    assert len(named) > 50
    assert named <= there, named - there


def test_every_claim_of_the_threat_model_names_what_shows_it() -> None:
    """Each row of its tables names a test, or a check of the self-test; all checks are named."""
    claims = [line for line in page("threat-model").splitlines() if line.startswith("| ")]
    claims = [line for line in claims if not line.endswith(("| shown by |", "| why not |"))]
    claims = [line for line in claims if not line.startswith("| 5.")]
    assert len(claims) > 20
    assert not [line for line in claims if "`test_" not in line and "`verify: " not in line]
    named = re.findall(r"`verify: ([^`]+)`", page("threat-model"))
    checks = [check.name for group in GROUPS.values() for check in group]
    assert sorted(name for line in named for name in line.split(", ")) == sorted(checks)


def test_links_lead_somewhere() -> None:
    """To files of the repository and to headings of pages."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for file in files:
        for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", file.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            other = (file.parent / path).resolve() if path else file
            assert other.exists(), f"{file.name}: {target}"
            if heading:
                assert heading in headings(other.read_text(encoding="utf-8")), target


def headings(text: str) -> list[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found]


def test_every_page_is_in_the_readme() -> None:
    """And each begins with what it is good for."""
    for name in PAGES:
        assert f"docs/{name}.md" in read("README.md")
        if name not in ("run", "images", "pool"):
            assert page(name).splitlines()[2].startswith("After this page you can ")
    assert not set(GENERATED) & {f"{name}.md" for name in PAGES}


# --- one kernel, looked at ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Explored:
    """A kernel with a mounted folder, and what it took when idle."""

    client: BlockingKernelClient
    seen: Seen
    folder: Path
    idle: int


@pytest.fixture(scope="module")
def explored(
    tmp_path_factory: pytest.TempPathFactory, engine: docker.DockerClient, image: str
) -> Iterator[Explored]:
    """One for all tests that do it no harm."""
    assert image
    folder = tmp_path_factory.mktemp("mine")
    with kernel({"cpus": 1, "mounts": {"/data/mine": str(folder)}}) as (km, client):
        run(client, "1")
        seen = look(session_of(km), engine)
        idle = seen.group.load().memory
        yield Explored(client=client, seen=seen, folder=folder, idle=idle)


def test_mountinfo_shows_folders_of_the_host(explored: Explored) -> None:
    """As the threat model admits."""
    code = "open('/proc/self/mountinfo').read()"
    assert explored.folder.name in value(explored.client, code)


def test_what_a_kernel_takes_is_what_is_told(explored: Explored) -> None:
    """A quarter to four times: pages of the engine's programs are shared by those that run.

    Imports from a cold disk fill what room there is with files.
    """
    told = {row[0]: float(row[1]) * MIB for row in rows(page("admin"), "memory", "MB")}
    shim = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{explored.seen.guardian}/status").read_text())
    assert shim is not None
    found = {
        "sandbox, idle": explored.idle,
        "host, warden": memory(explored.seen.warden, "Pss") * MIB,
        "host, the engine's shim": memory(int(shim[1]), "Pss") * MIB,
    }
    for code in ("import torch", "from transformers import pipeline"):
        run(explored.client, code)
        found[f"sandbox, after `{code}"] = explored.seen.group.load().memory
    assert set(found) == set(told)
    for name, size in found.items():
        most = 512 * MIB if "import" in name else told[name] * 4
        assert told[name] / 4 < size <= most, f"{name}: {size / MIB:.0f} MB"


# --- messages -----------------------------------------------------------------------------

CELLS = (
    "import socket; socket.create_connection(('192.0.2.1', 80))",
    "import sklearn",
    "!pip install scikit-learn",
    "open('/home/me/data.csv')",
    "open('/data.csv', 'w')",
    "open('/tmp/full', 'wb').write(bytes(200 << 20))",
    "open('/tmp/tool', 'w').close(); __import__('subprocess').run(['/tmp/tool'])",
    "import time, threading as t\nfor _ in [1] * 200: t.Thread(None, time.sleep, '', [1]).start()",
)
"""What people try, and get a message of Python's for."""


def ended(status: int, *, for_memory: bool = False, peak: int = 0) -> str:
    """What is told of a kernel that ended so."""
    usage = Usage(memory_peak=peak, oom_kills=int(for_memory), pids_refused=0)
    cause = decide(
        Facts(status=status, engine_status=None, oom_flag=False, usage=usage, memory=512 * MIB)
    )
    return f"{cause.name}: {cause.reason}"


def spoken(folder: Path) -> Iterator[str]:
    """Messages of ours, each really raised or made by what makes it for people."""
    source = "kernelspec executor-ml"
    parse = functools.partial(parse_policy, source=source)
    held = read_ceilings({"EXECUTOR_ML_MAX_CPUS": "0.5"}, policy_file=f"{folder}/none")
    (folder / "open").mkdir(mode=0o755)
    raisers: Sequence[Callable[[], object]] = (
        DockerEngine(f"{folder}/docker.sock").info,
        lambda: find_socket({"DOCKER_HOST": "tcp://10.0.0.5:2375"}),
        lambda: parse({"memroy": "1g"}, ceilings=Ceilings()),
        lambda: parse({"cpus": 1}, ceilings=held),
        lambda: parse({"mounts": {"/models/x": f"{folder}/nowhere"}}, ceilings=Ceilings()),
        lambda: runtime_root({"EXECUTOR_ML_RUNTIME_DIR": f"{folder}/open"}),
    )
    for raiser in raisers:
        with pytest.raises(SandboxError) as caught:
            raiser()
        yield str(caught.value)
    yield from map(
        str,
        (
            EnginePermissionError(socket="/var/run/docker.sock"),
            ImageMissingError(image=names.IMAGE),
            ImageProtocolError(image=names.IMAGE, found=1, expected=2),
            UpgradedError(old="0.1.0", new="0.2.0"),
            StartError(reason="it was not ready within 55 s", last_words=""),
            RuntimeFolderFullError(path="/tmp/executor-ml-1000"),
            EngineDiskError(action="create the sandbox", folder="/var/lib/docker"),
            SandboxLeftError(
                container="executor-ml-1879048193",
                reason=str(
                    EngineUnreachableError(
                        socket="/var/run/docker.sock", reason="No such file or directory"
                    )
                ).partition("\n")[0],
            ),
            encrypted(folder),
        ),
    )
    yield from (ended(3), ended(-7), ended(-9), ended(-15), ended(-11))
    yield ended(-9, for_memory=True)
    yield f"{ENGINE_GONE.name}: {ENGINE_GONE.reason}"
    yield ended(-9, for_memory=True, peak=512 * MIB)


def encrypted(folder: Path) -> ConnectionInfoError:
    """What is said of a connection file that asks for encryption."""
    file = folder / "kernel.json"
    file.write_text(json.dumps({"curve_publickey": "x"}))
    with pytest.raises(ConnectionInfoError) as caught:
        read_connection(str(file))
    return caught.value


def test_every_message_is_one_of_ours(short_folder: Path, explored: Explored) -> None:
    """What is quoted is what is said, word for word but for paths."""
    said = {
        text.splitlines()[0]
        .replace(f"{short_folder}/docker.sock", "/var/run/docker.sock")
        .replace(f"{short_folder}/nowhere", "/srv/models/nowhere")
        .replace(f"{short_folder}/kernel.json", "/run/kernel.json")
        .replace(f"{short_folder}/open", "/tmp/executor-ml-1000")
        for text in spoken(short_folder)
    }
    for code in CELLS:
        outcome = run(explored.client, code)
        lines = outcome.stderr.splitlines()
        if error := outcome.error:
            said.add(f"{error['ename']}: {error['evalue']}".splitlines()[0])
            lines += error["traceback"][-1].splitlines()
        said |= {line for line in lines if line.startswith("Hint: ")}
        run(explored.client, "!rm -f /tmp/full")
    run(explored.client, "time.sleep(1)")  # until the threads have ended
    quoted = {quote for name in PAGES for quote in quotes(page(name))}
    assert len(quoted) > 20
    assert quoted <= said, "\n".join([*(quoted - said), "--- is not of", *said])


# --- admin --------------------------------------------------------------------------------


def test_the_policy_file_has_every_key(tmp_path: Path) -> None:
    """The example is understood, and so is each variable."""
    (example,) = blocks(page("admin"), "toml")
    file = tmp_path / "policy.toml"
    file.write_text(example, encoding="utf-8")
    ceilings = read_ceilings({}, policy_file=str(file))
    assert set(ceilings.limits) == set(LIMITS)
    assert ceilings.images
    assert ceilings.mount_sources
    variables = set(re.findall(r"`EXECUTOR_ML_MAX_(\w+)`", page("admin")))
    assert variables == {key.upper() for key in LIMITS}


def test_places_on_disk_are_real() -> None:
    """The folders of the table are those of the code."""
    text = page("admin")
    places = [row[1] for row in rows(text, "what", "where", "goes")]
    home = EngineHome()
    for place in (home.data, home.log, home.run):
        assert any(str(place) in told for told in places), place
    assert str(cache_folder({"HOME": "~", "XDG_CACHE_HOME": "~/.cache"})) in str(places)
    assert names.POLICY_FILE in text
    assert "$EXECUTOR_ML_RUNTIME_DIR" in str(places)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProxy]:
    """The engine through a proxy that writes all calls down."""
    with proxied(find_socket(os.environ)) as proxy, monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
        yield proxy


def test_the_calls_of_the_table_are_all_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's life with all that can befall it, ps, prune and doctor; others are refused."""
    told = {row[0] for row in rows(page("admin"), "call", "when")}
    bodies: list[dict[str, Any]] = []

    def keep(body: dict[str, Any]) -> dict[str, Any]:
        bodies.append(body)
        return body

    with watched(monkeypatch) as proxy:
        proxy.allowed = frozenset(told)
        proxy.requests["POST /containers/create"] = keep
        with kernel({"mounts": {"/data/mine": str(tmp_path)}}) as (km, client):
            run(client, "1")
            session_of(km).signal(signal.SIGINT)
            assert until(lambda: "POST /containers/ID/kill" in proxy.calls, 20)
            for command in ("ps", "prune", "doctor"):
                typed(f"executor-ml {command}", tmp_path)
            km.restart_kernel()
        with pytest.raises(StartError):
            manager({"startup_timeout": 1, "preload": ["torch", "transformers"]}).start_kernel()
    assert set(proxy.calls) == told
    assert len(bodies) == 3
    for body in bodies:
        check_body(body)


def check_body(body: dict[str, Any]) -> None:
    """Compare a body of ``create`` with the table of what it always has."""
    told = [row for row in rows(page("admin"), "field", "value") if row]
    assert len(told) == 10
    for path, wanted in told:
        found: list[Any] = [body]
        for step in path.split("."):
            if step == "*":
                found = [item for items in found for item in items]
            else:
                found = [part[int(step)] if step.isdecimal() else part[step] for part in found]
        assert found
        assert all(one == json.loads(wanted) for one in found), path
    assert body["User"].split(":")[0] != "0"
    assert body["Image"].startswith("sha256:")
    _, profile = body["HostConfig"]["SecurityOpt"]
    assert json.loads(profile.removeprefix("seccomp=")) == printed_profile()


@functools.cache
def printed_profile() -> Any:
    """What ``python -m kernel_provider.seccomp`` prints."""
    command = [sys.executable, "-m", "kernel_provider.seccomp"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


# --- papermill and the like ---------------------------------------------------------------

TOOLS = {
    "papermill": "papermill -k executor-ml --execution-timeout 1 in.ipynb out.ipynb",
    "jupyter nbconvert": "jupyter nbconvert --to notebook --execute --output out in.ipynb "
    "--ExecutePreprocessor.kernel_name=executor-ml --ExecutePreprocessor.timeout=1",
    "jupyter execute": "jupyter execute --kernel_name=executor-ml --timeout=1 --output=out "
    "in.ipynb",
}
FAILURES = {
    "exit code after an exception": "1 / 0",
    "exit code after a time-out": "import time; time.sleep(60)",
    "exit code after a death": "import os, time; time.sleep(0.3); os._exit(7)",
}


@pytest.mark.soak
def test_failures_are_told_as_in_the_table(tmp_path: Path) -> None:
    """Exit codes, whether outputs are saved, and the cause on standard error."""
    head = ["", "executor-ml run", *TOOLS]
    told = {
        row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows(page("papermill"), *head)
    }

    def attempt(tool: str, failure: str) -> None:
        folder = tmp_path / f"{tool}-{failure}".replace(" ", "_")
        folder.mkdir()
        cells = [nbformat.v4.new_code_cell(code) for code in ("print(6 * 7)", FAILURES[failure])]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "in.ipynb")
        done = typed(TOOLS[tool], folder)
        assert done.returncode == int(told[failure][tool]), f"{tool}, {failure}: {done.stderr}"
        saved = told["outputs saved after these"][tool] == "yes"
        assert (folder / "out.ipynb").exists() == saved
        if failure.endswith("death"):
            assert "ended with exit code 7" in done.stderr
            assert not saved or "KernelExited" in (folder / "out.ipynb").read_text()

    with ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(attempt, t, f) for t in TOOLS for f in FAILURES]:
            result.result()


def test_nbclient_works(tmp_path: Path) -> None:
    """The Python example runs a notebook and saves it."""
    (example,) = blocks(page("papermill"), "python")
    folder = persons_folder(tmp_path)
    subprocess.run([sys.executable, "-c", example], cwd=folder, check=True, timeout=120)
    assert "42\\n" in (folder / "result.ipynb").read_text()


# --- a terminal ---------------------------------------------------------------------------


def test_a_console_is_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by the code, interrupted, told why the kernel ended, and left by Ctrl-D."""
    arguments = ["--kernel", "executor-ml", "--simple-prompt"]
    console = pexpect.spawn(str(BIN / "jupyter-console"), arguments, timeout=60)
    try:
        console.expect(r"In \[1\]: ")
        for typed_line, seen in (
            ('name = input("Who" + "? ")', r"Who\? "),  # no pattern matches what is echoed
            ("Ada", r"In \[2\]: "),
            ("print('hello', name)", "hello Ada"),
            ("!ls /models && echo listed", r"\nlisted"),
            ("print('busy'); import time; time.sleep(60)", r"busy\r"),
        ):
            console.sendline(typed_line)
            console.expect(seen)
        console.sendintr()
        console.expect("KeyboardInterrupt")
        console.sendline("print(name, 'stays')")
        console.expect("Ada stays")
        console.sendline("import os; os._exit(3)")
        console.expect("KernelExited.*: the kernel process ended with exit code 3.")
        console.expect(r"In \[\d\]: ")
        console.sendeof()
        console.expect("Do you really want to exit")
        console.sendline("y")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert console.exitstatus == 0
    monkeypatch.setenv("EXECUTOR_ML_MAX_CPUS", "0.1")
    done = typed("jupyter console --kernel executor-ml", Path.cwd())
    what, fix = done.stderr.strip().splitlines()[-2:]
    assert "above the ceiling of 0.1" in what
    assert fix.startswith("Fix: ")


# --- a server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Server]:
    """JupyterLab with the page's settings, and the sandbox in the place of python3."""
    assert image
    home = tmp_path_factory.mktemp("lab")
    (settings,) = blocks(page("jupyterlab"), "python")
    (home / "jupyter_server_config.py").write_text(settings, encoding="utf-8")
    done = typed(f"executor-ml install --prefix {home} --name python3", home)
    assert done.returncode == 0, done.stderr
    environ = {"JUPYTER_CONFIG_DIR": str(home), "JUPYTER_PATH": str(home / "share/jupyter")}
    with serving(home, command=("jupyter-lab",), environ=environ) as server:
        yield server


@contextmanager
def session_on(server: Server, name: str) -> Iterator[dict[str, Any]]:
    """A session as a new notebook makes one; ended again."""
    status, body = server.ask("POST", "/api/sessions", new_session(name))
    assert status == 201, body
    session: dict[str, Any] = json.loads(body)
    try:
        yield session
    finally:
        server.ask("DELETE", f"/api/sessions/{session['id']}")


def asked(session: dict[str, Any], code: str) -> Any:
    """The value of a cell in a session's kernel."""
    file = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"kernel-{session['kernel']['id']}.json")
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        return value(client, code)
    finally:
        client.stop_channels()


def test_the_settings_for_untrusted_notebooks_hold(
    lab: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No terminals, no installing, no plain kernel; and the doctor is content."""
    assert lab.ask("POST", "/api/terminals", {})[0] == 404
    status, body = lab.ask(
        "POST", "/lab/api/extensions", {"cmd": "uninstall", "extension_name": "x"}
    )
    assert (status, b"not supported" in body) == (500, True)
    listed = json.loads(lab.ask("GET", "/api/kernelspecs")[1])["kernelspecs"]
    assert set(listed) == {"executor-ml", "python3"}
    with session_on(lab, "python3") as session:
        assert asked(session, "import socket; socket.gethostname()") == "sandbox"
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(lab.log.parent))
    monkeypatch.setenv("JUPYTER_PATH", str(lab.log.parent / "share/jupyter"))
    settings = server_settings()
    assert settings is not None
    assert not settings.terminals
    assert not settings.buffers_offline
    assert not settings.installs
    assert not others()


@pytest.fixture
def other_image(engine: docker.DockerClient, image: str) -> Iterator[str]:
    """A name of the image that can be moved; it goes with what it stands for."""
    name = "executor-ml-docs:moved"
    engine.images.get(image).tag(name)
    yield name
    engine.images.remove(name, force=True)


def rebuild(engine: docker.DockerClient, name: str, image: str, protocol: int) -> None:
    """Move a name to an image like ours that speaks another protocol."""
    made = engine.containers.create(image, labels={names.LABEL: "test"})
    try:
        repository, _, tag = name.partition(":")
        made.commit(repository, tag, changes=f"LABEL {names.LABEL_PROTOCOL}={protocol}")
    finally:
        made.remove()


def test_what_reaches_a_kernel_that_runs(
    lab: Server, engine: docker.DockerClient, image: str, other_image: str
) -> None:
    """Its kernel.json at the next start, its image at the next restart (upgrade.md)."""
    spec = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", "moved")
    install = f"executor-ml install --user --name moved --image {other_image} --pids 100"
    assert typed(install, ROOT).returncode == 0
    try:
        with session_on(lab, "moved") as session:
            restart = f"/api/kernels/{session['kernel']['id']}/restart"
            assert pids_of(session, engine) == 100
            text = (spec / "kernel.json").read_text()
            (spec / "kernel.json").write_text(text.replace('"pids": 100', '"pids": 99'))
            assert lab.ask("POST", restart)[0] == 200
            assert pids_of(session, engine) == 100
            rebuild(engine, other_image, image, 999)
            assert asked(session, "6 * 7") == 42
            assert lab.ask("POST", restart)[0] == 200
            why = f"the image {other_image} speaks protocol 999"
            with pytest.raises(AssertionError, match=why):
                asked(session, "6 * 7")
            assert why in lab.log.read_text()
            engine.images.get(image).tag(other_image)
            assert lab.ask("POST", restart)[0] == 200
            assert pids_of(session, engine) == 100
            body = {"kernel": {"name": "moved"}}
            status, answer = lab.ask("PATCH", f"/api/sessions/{session['id']}", body)
            assert status == 200, answer
            assert pids_of(json.loads(answer), engine) == 99
    finally:
        shutil.rmtree(spec)


def pids_of(session: dict[str, Any], engine: docker.DockerClient) -> int:
    """The limit of processes of a session's sandbox."""
    uid = asked(session, "import os; os.getuid()")
    found = engine.api.inspect_container(f"executor-ml-{uid}")["HostConfig"]["PidsLimit"]
    engine.api.get_adapter(engine.api.base_url).close()  # it keeps connections open
    return int(found)
