"""Files of the notebook's folder in real sandboxes, and files of the sandbox's out again."""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import nbformat
import pytest
import sandbox_workspace
from kernels import kernel, manager, run, started
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from proxy import proxied
from sandboxes import containers_of, look, session_of, until, value

from kernel_provider import names, provisioner
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import WorkspaceError, WorkspaceImageError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.values import MIB
from kernel_provider.warden import cgroup
from kernel_provider.workspace import Workspace, copy_folder

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

COMMAND = Path(sys.executable).with_name("executor-ml")
COPY = {"workspace": "copy"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's folder with data, a module, and what is not copied."""
    made = tmp_path / "notebook"
    (made / "data").mkdir(parents=True)
    (made / "data/table.csv").write_text("a,b\n1,2\n")
    (made / "helper.py").write_text("answer = 42\n")
    (made / ".secret").write_text("secret")
    (made / "out").symlink_to("/etc")
    return made


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its text."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


# --- in -----------------------------------------------------------------------------------


def test_the_notebooks_files_are_there_and_the_kernels_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By relative paths, for imports, to be changed; the originals stay as they are.

    As nbgrader has it: a submission's folder, and its variable.
    """
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    before = tree(folder)
    with started(manager(COPY), cwd=str(folder)) as client:
        code = (
            "import os, helper, pandas\n"
            "(os.getcwd(), helper.answer, pandas.read_csv('data/table.csv').b[0].item(),"
            " sorted(os.listdir()), {os.stat(p).st_uid for p in os.listdir()} == {os.getuid()})"
        )
        assert value(client, code) == (names.WORKSPACE, 42, 2, ["data", "helper.py"], True)
        code = (
            "open('data/table.csv', 'w').write('changed')\nos.remove('helper.py')\n"
            "open('new', 'w').write('new')\nopen('data/table.csv').read()"
        )
        assert value(client, code) == "changed"
        assert value(client, "os.environ['NBGRADER_EXECUTION']") == "autograde"
    assert tree(folder) == before


def test_a_restart_copies_anew(folder: Path) -> None:
    """What the folder has by then; nothing of what the kernel did before."""
    km = manager(COPY)
    with started(km, cwd=str(folder)) as client:
        assert value(client, "open('mine', 'w').write('x')") == 1
        (folder / "data/table.csv").write_text("later")
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        code = "import os; (open('data/table.csv').read(), os.path.exists('mine'))"
        assert value(client, code) == ("later", False)


def test_a_client_that_names_no_folder_means_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As papermill and otter. It is read in a thread: a server goes on answering."""
    seen = []

    def spy(path: str, *, limit: int) -> Workspace:
        seen.append((path, threading.current_thread() is threading.main_thread()))
        return copy_folder(path, limit=limit)

    monkeypatch.setattr(provisioner, "copy_folder", spy)
    monkeypatch.chdir(folder / "data")
    with kernel(COPY) as (_, client):
        assert value(client, "import os; os.listdir()") == ["table.csv"]
    assert seen == [("", False)]


def memories(pid: int) -> list[str]:
    """Descriptors of a process that are memory without a name."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.append(str(descriptor.readlink()))
    assert found
    return [link for link in found if link.startswith("/memfd:workspace")]


def test_nobody_keeps_the_copy_and_the_sandbox_pays_for_it(
    tmp_path: Path, engine: docker.DockerClient
) -> None:
    """Once it is unpacked, 40 MB are the sandbox's memory, and no process holds the tar."""
    (tmp_path / "large").write_bytes(os.urandom(40 * MIB))
    km = manager(COPY)
    with started(km, cwd=str(tmp_path)):
        seen = look(session_of(km), engine)
        holders = {os.getpid(), seen.warden, *seen.group.processes()}
        assert len(holders) >= 4
        assert {pid: memories(pid) for pid in holders} == {pid: [] for pid in holders}
        stat = seen.group._read("memory", "memory.stat")  # noqa: SLF001  it has no other use
        (shared,) = [int(n) for name, n in map(str.split, stat.splitlines()) if name == "shmem"]
        assert 40 * MIB <= shared < 45 * MIB, "the copy twice, or not at all"


def test_too_large_a_folder_is_no_start(folder: Path) -> None:
    """The error names it, its largest files and the remedy; no container was made for it."""
    (folder / "model.bin").write_bytes(bytes(3 * MIB))
    km = manager({**COPY, "workspace_size": "2m"})
    with pytest.raises(WorkspaceError) as caught:
        km.start_kernel(cwd=str(folder))
    first, second = str(caught.value).splitlines()
    assert f"{folder} cannot be copied into the sandbox: its 3 files take 3.0 MB" in first
    assert "workspace_size is 2.0 MB; the largest: model.bin (3.0 MB)" in first
    assert "mounts" in second
    assert not list(Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"]).glob(f"?-{os.getpid()}-*"))


@pytest.mark.parametrize(
    ("size", "limits", "reason"),
    [
        (4, {"workspace_size": "4m", "tmp_size": "4m"}, "No space left on device"),
        (
            99,
            {"workspace_size": "100m", "tmp_size": "100m", "shm_size": "1m", "memory": "102m"},
            "it does not fit into its memory",
        ),
    ],
)
def test_a_copy_that_does_not_fit_is_no_start(
    tmp_path: Path, size: int, limits: dict[str, str], reason: str
) -> None:
    """Policy lets it fill /tmp, or nearly the memory, and the sandbox needs some of both."""
    (tmp_path / "large").write_bytes(bytes(size * MIB))
    km = manager({**COPY, **limits})
    with pytest.raises(WorkspaceError) as caught:
        km.start_kernel(cwd=str(tmp_path))
    first, second = str(caught.value).splitlines()
    assert first.endswith(f"into the sandbox: {reason}")
    assert second.startswith("Fix: raise memory, and tmp_size")
    assert sandbox_workspace.NOT_UNPACKED == names.NOT_UNPACKED


def test_an_older_image_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start, and the files would not be there."""
    with proxied(find_socket(os.environ)) as proxy:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
        proxy.replies["GET /images/NAME/json"] = without_label
        with pytest.raises(WorkspaceImageError, match="too old to take a copy") as caught:
            manager(COPY).start_kernel(cwd=str(folder))
        assert "Fix: run: executor-ml build" in str(caught.value)
        with started(manager(), cwd=str(folder)) as client:
            assert run(client, "1").status == "ok"


def without_label(facts: Any) -> Any:
    """An image as it was made before."""
    assert facts["Config"]["Labels"].pop(names.LABEL_WORKSPACE)
    return facts


def test_an_owner_that_dies_while_it_is_copied_in_leaves_nothing(
    tmp_path: Path, engine: docker.DockerClient
) -> None:
    """Killed with the claim and the copy on their way: sandbox and warden go, as always."""
    for number in range(3000):
        (tmp_path / str(number)).touch()
    code = (
        "import asyncio, os, sys\n"
        "from kernel_provider.policy import KernelPolicy\n"
        "from kernel_provider.session import Session\n"
        "from kernel_provider.workspace import copy_folder\n"
        "s = Session(environ=os.environ, name='test')\n"
        "w = copy_folder(sys.argv[1], limit=1 << 26)\n"
        "s.launch(KernelPolicy(), key='k' * 32, env={}, workspace=w)\n"
        "print(s.warden, flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        warden = int(owner.stdout.readline())
        assert until(lambda: containers_of(warden, engine), 20)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    assert until(lambda: not cgroup.is_alive(warden), 20)
    assert not containers_of(warden, engine)


# --- the copy, attacked -------------------------------------------------------------------

ATTACK = """
import fcntl, json, mmap, os, socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/executor/rendezvous/s")
_, (fd,), _, _ = socket.recv_fds(s, 1, 1)
me = f"/proc/self/fd/{fd}"
size = os.fstat(fd).st_size
again = []
def reopened():
    if not again:
        again.append(os.open(me, os.O_RDWR))
    return again[0]
attempts = {
    "write": lambda: os.pwrite(fd, b"x", 0),
    "grow": lambda: os.ftruncate(fd, size + 1),
    "shrink": lambda: os.ftruncate(fd, 0),
    "punch": lambda: os.posix_fallocate(fd, 0, size + 1),
    "map": lambda: mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_WRITE | mmap.PROT_READ),
    "seal": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
    "write again": lambda: os.pwrite(reopened(), b"x", 0),
    "grow again": lambda: os.ftruncate(reopened(), size + 1),
    "shrink again": lambda: os.ftruncate(reopened(), 0),
    "truncating": lambda: os.open(me, os.O_RDWR | os.O_TRUNC),
    "map again": lambda: mmap.mmap(reopened(), size, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "mode": lambda: os.fchmod(fd, 0o777),
    "owner": lambda: os.fchown(fd, os.getuid(), os.getgid()),
    "time": lambda: os.utime(fd, (1, 1)),
    "attribute": lambda: os.setxattr(fd, "user.x", b"x"),
    "name": lambda: os.link(me, "/tmp/x", follow_symlinks=True),
    "folder": lambda: os.open("..", os.O_RDONLY, dir_fd=fd),
    "run": lambda: os.execv(me, ["x"]),
}
told = {}
for name, attempt in attempts.items():
    try:
        attempt()
        told[name] = "done"
    except OSError as error:
        told[name] = error.strerror
told["read"] = os.pread(fd, 5, 0).decode(errors="replace")
told["place"] = os.readlink(me)
print(json.dumps(told), flush=True)
"""


def test_a_hostile_sandbox_can_only_read_it(folder: Path) -> None:
    """With the descriptor kept, in a container as every sandbox is: nothing changes for us."""
    copy = copy_folder(str(folder), limit=MIB)
    before = Path(f"/proc/self/fd/{copy.fileno()}").read_bytes()
    facts = os.fstat(copy.fileno())
    place = Path(os.environ["EXECUTOR_ML_RUNTIME_DIR"], "attack")
    place.mkdir(mode=0o711)
    spec = sandbox_spec(KernelPolicy(), rendezvous=str(place))
    spec = replace(
        spec,
        argv=(names.SANDBOX_PYTHON, "-I", "-S", "-c", ATTACK),
        labels={**spec.labels, names.LABEL_WARDEN: cgroup.identity(os.getpid())},
    )
    ours = DockerEngine(find_socket(os.environ))
    container = ours.create(spec, image_id=names.IMAGE, uid=0x7FFF_0001)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(20)
            listener.bind(f"{place}/s")
            Path(place, "s").chmod(0o666)
            listener.listen()
            ours.start(container)
            connection, _ = listener.accept()
            with connection:
                socket.send_fds(connection, [b"W"], [copy.fileno()])
                assert until(lambda: ours.last_lines(container, 9).endswith("}\n"), 20)
        told = json.loads(ours.last_lines(container, 9))
    finally:
        ours.remove(container)
        (place / "s").unlink()
        place.rmdir()
    assert told.pop("read") == before[:5].decode()
    assert told.pop("place") == "/memfd:workspace (deleted)"
    assert "done" not in told.values(), told
    after = os.fstat(copy.fileno())
    assert (after.st_mode, after.st_uid, after.st_mtime) == (
        facts.st_mode,
        facts.st_uid,
        facts.st_mtime,
    )
    assert Path(f"/proc/self/fd/{copy.fileno()}").read_bytes() == before
    assert fcntl.fcntl(copy.fileno(), fcntl.F_GET_SEALS) == 0xF
    copy.close()


# --- the hint -----------------------------------------------------------------------------


def test_a_missing_file_says_how_to_have_it(folder: Path) -> None:
    """In the cell's error, as every client shows it; the exception is as it was."""
    with started(manager(), cwd=str(folder)) as client:
        assert value(client, "import os; (os.getcwd(), os.listdir())") == ("/tmp/work", [])
        outcome = run(client, "import pandas; pandas.read_csv('data/table.csv')")
        assert outcome.error["ename"] == "FileNotFoundError"
        assert outcome.error["evalue"] == "[Errno 2] No such file or directory: 'data/table.csv'"
        assert outcome.error["traceback"][-1] == f"\nHint: {sandbox_workspace.NOT_HERE}"
        for other in ("open('/tmp/none')", "import subprocess; subprocess.run(['none'])", "1/0"):
            assert "Hint" not in "".join(run(client, other).error["traceback"])
        assert run(client, "try: open('x')\nexcept OSError: print('caught')").stdout == "caught\n"
    with started(manager(COPY), cwd=str(folder)) as client:
        assert "Hint" not in "".join(run(client, "open('x')").error["traceback"])
        traceback = run(client, "open('../x')").error["traceback"]
        assert traceback[-1] == f"\nHint: {sandbox_workspace.NOT_COPIED}"


def test_nbclient_shows_the_hint(folder: Path) -> None:
    """In the exception that its callers print, and in the saved notebook."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("open('data/table.csv')")])
    client = NotebookClient(
        book, kernel_name="executor-ml", resources={"metadata": {"path": str(folder)}}
    )
    with pytest.raises(CellExecutionError, match="does not see the notebook's folder"):
        client.execute()
    assert sandbox_workspace.NOT_HERE in "".join(book.cells[0].outputs[0]["traceback"])


# --- run, send, extract -------------------------------------------------------------------


def execute(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``executor-ml`` on a notebook, from a folder that is not the notebook's."""
    return subprocess.run(
        [COMMAND, *words[:1], str(path), *words[1:]],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write(folder: Path, *sources: str) -> Path:
    """A notebook of these cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "n.ipynb")
    return folder / "n.ipynb"


def test_run_takes_the_notebooks_own_folder(folder: Path) -> None:
    """Wherever it is called; without the option the cell says what is missing."""
    path = write(folder, "print(open('data/table.csv').read())")
    done = execute(path, "run", "--workspace", "copy")
    assert done.returncode == 0, done.stderr
    assert "1,2" in (folder / "n.out.ipynb").read_text()
    done = execute(path, "run")
    assert done.returncode == 10
    assert "--workspace copy" in (folder / "n.out.ipynb").read_text()
    (folder / "large").write_bytes(bytes(65 * MIB))
    done = execute(path, "run", "--workspace", "copy", "-o", str(folder / "none.ipynb"))
    assert done.returncode == 78
    assert "the largest: large (65.0 MB)" in done.stderr
    assert not (folder / "none.ipynb").exists()


def test_files_come_out_byte_for_byte(tmp_path: Path) -> None:
    """Made in the sandbox, sent, saved in the notebook, extracted: the same, every byte."""
    path = write(
        tmp_path,
        "import hashlib, os\nfrom sandbox_files import send\n"
        "content = os.urandom(3_000_000)\n"
        "open('result.bin', 'wb').write(content)\nsend('result.bin')\n"
        "print(hashlib.sha256(content).hexdigest())",
        "open('every byte', 'wb').write(bytes(range(256)))\nsend('every byte')",
        "os.makedirs('sub')\nopen('sub/a & \"b\".csv', 'w').write('1')\nsend('sub/a & \"b\".csv')",
        "try: send('result.bin', limit=2_999_999)\nexcept ValueError as error: print(error)",
        "try: send('/tmp')\nexcept OSError as error: print(error)",
    )
    done = execute(path, "run")
    assert done.returncode == 0, done.stderr
    book = nbformat.read(tmp_path / "n.out.ipynb", as_version=4)
    nbformat.validate(book)
    assert "has 3000000 bytes, and 2999999 may be sent" in book.cells[3].outputs[0]["text"]
    assert "Is a directory" in book.cells[4].outputs[0]["text"]
    done = execute(tmp_path / "n.out.ipynb", "extract", "-d", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    results = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    assert set(results) == {"result.bin", "every byte", 'a & "b".csv'}
    assert results["every byte"] == bytes(range(256))
    (printed,) = [o["text"] for o in book.cells[0].outputs if o["output_type"] == "stream"]
    assert hashlib.sha256(results["result.bin"]).hexdigest() == printed.strip()


def test_a_hostile_notebook_writes_one_harmless_file(tmp_path: Path) -> None:
    """Code in the sandbox makes the output itself, with names of its own choosing."""
    path = write(
        tmp_path,
        "import sandbox_files\nfrom IPython.display import display\n"
        "for name in ('../../../up', '/tmp/absolute', 'nul\\0', '\\x1b[2J' + 'x' * 9000, '.x'):\n"
        "    display(sandbox_files.bundle(name, b'x'), raw=True)",
    )
    assert execute(path, "run").returncode == 0
    inner = tmp_path / "a/b/c"
    done = execute(tmp_path / "n.out.ipynb", "extract", "-d", str(inner))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    found = sorted(p.name for p in inner.iterdir())
    assert found == ["_[2J" + "x" * 196, "absolute", "nul_", "up", "x"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "n.ipynb", "n.out.ipynb"]
