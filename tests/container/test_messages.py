"""A person reads the same words wherever a kernel cannot start, and knows what to do.

Each situation is real, and is met twice: by ``executor-ml run``, and by a Jupyter
server, in its log and in its answer, which JupyterLab shows in a dialog. Both are a
person's who is not root, where the tests are run by root.
"""

import asyncio
import json
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from persons import AS_PERSON, PERSON, ROOT, Person, Typed, person
from proxy import CREATE
from sandboxes import until
from servers import Server, new_session, serving

from kernel_provider import names
from kernel_provider.errors import (
    CeilingError,
    EngineDiskError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageMissingError,
    ImageProtocolError,
    ImageUnknownError,
    RuntimeFolderError,
    RuntimeFolderFullError,
    SandboxError,
    SandboxLeftError,
    StartError,
    UnknownKeyError,
)
from kernel_provider.folders import RUNTIME_VARIABLE
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

NAME: Final = "told"
IMAGE: Final = "executor-ml-messages"
EMPTY: Final = f"{IMAGE}:empty"


@pytest.fixture(scope="module")
def somebody() -> Iterator[Person]:
    """One for all: a server takes a second or two to start."""
    with person({"EXECUTOR_ML_MAX_PIDS": "200"}) as made:
        yield made


@pytest.fixture(scope="module")
def images(engine: docker.DockerClient, image: str) -> Iterator[None]:
    """Images like ours, but for what is asked; removed again."""
    changes = {
        "protocol": f"LABEL {names.LABEL_PROTOCOL}=999",
        "start": "ENV PYTHONUTF8=7",  # few words, so that all of them are last
    }
    container = engine.containers.create(image, labels={names.LABEL: "test"})
    try:
        for tag, change in changes.items():
            container.commit(IMAGE, tag, changes=change)
    finally:
        container.remove()
    yield
    for tag in changes:
        engine.images.remove(f"{IMAGE}:{tag}", force=True)


# --- an engine that may be harmed -----------------------------------------------------------


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own in memory."""
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for path in sorted((m for m in mounts if m.startswith(f"{folder}")), reverse=True):
            assert until(partial(taken_off, path)), path  # a warden may be ending yet


def taken_off(path: str) -> bool:
    """Whether nobody uses the disk any more."""
    return not subprocess.run(["/bin/umount", path], capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def own_engine(somebody: Person) -> Iterator[EngineHome]:
    """A real one on a small disk; it holds an image that is ours by its label only."""
    place = somebody.folder / "disk"
    home = EngineHome(data=place / "data", run=somebody.folder / "engine")
    place.mkdir()
    with disk(place, "size=64m"):
        try:
            engine_host.start(home)
            client = docker.DockerClient(base_url=f"unix://{home.socket}")
            label = f"LABEL {names.LABEL_PROTOCOL}={names.PROTOCOL}"
            content: Any = b"\0" * 1024
            client.api.import_image_from_data(content, IMAGE, "empty", changes=[label])
            client.close()
            yield home
        finally:
            engine_host.stop(home)


Place = AbstractContextManager[object]


def an_empty_engine(who: Person, request: pytest.FixtureRequest, *, mode: int = 0o666) -> Place:
    """One that everybody may use, unless told otherwise, and that has hardly any image."""
    home: EngineHome = request.getfixturevalue("own_engine")
    home.socket.chmod(mode)
    return who.engine_at(home.socket)


not_allowed = partial(an_empty_engine, mode=0o660)
"""The socket as the engine makes it: for root and a group."""


@contextmanager
def engine_without_room(who: Person, request: pytest.FixtureRequest) -> Iterator[None]:
    """Its disk is full, to the last block."""
    home: EngineHome = request.getfixturevalue("own_engine")
    filler = home.data.parent / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    try:
        with an_empty_engine(who, request):
            yield
    finally:
        filler.unlink()


def killed(who: Person, request: pytest.FixtureRequest) -> Place:
    """It was there a moment ago, and its socket still is."""
    home: EngineHome = request.getfixturevalue("own_engine")
    pid = engine_host.running_pid(home)
    if pid is not None:
        os.kill(pid, 9)
        assert until(lambda: engine_host.running_pid(home) is None)
    return an_empty_engine(who, request)


def no_room(who: Person, _request: pytest.FixtureRequest) -> Place:
    """Nothing more can be made in the folder for sockets."""
    return disk(who.runtime, f"mode=0700,uid={PERSON},nr_inodes=1")


@contextmanager
def gone_in_the_start(who: Person, _request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine makes a container, and is not there any more to start it."""

    def vanish(answer: Any) -> Any:
        who.socket.unlink(missing_ok=True)
        return answer

    who.proxy.replies[CREATE] = vanish
    try:
        yield
    finally:
        del who.proxy.replies[CREATE]
        who.usual_engine()
        assert who.types("prune").out.startswith("removed executor-ml-")


# --- what cannot start ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is wrong, and what is said of it."""

    error: type[SandboxError]
    says: str
    config: Mapping[str, object] = field(default_factory=dict)
    where: Callable[[Person, pytest.FixtureRequest], Place] = lambda _who, _request: nullcontext()


SITUATIONS: Final[Mapping[str, Situation]] = {
    "unknown key": Situation(
        error=UnknownKeyError,
        says=f"kernelspec {NAME}: there is no setting 'memroy'; did you mean 'memory'?",
        config={"memroy": "1g"},
    ),
    "ceiling exceeded": Situation(
        error=CeilingError,
        says="pids = 300 is above the ceiling of 200 set in EXECUTOR_ML_MAX_PIDS",
        config={"pids": 300},
    ),
    "image unknown": Situation(
        error=ImageUnknownError,
        says="the image exector-ml is not on this machine; did you mean 'executor-ml:latest'?",
        config={"image": "exector-ml"},
    ),
    "image of another protocol": Situation(
        error=ImageProtocolError,
        says=f"the image {IMAGE}:protocol speaks protocol 999, and this version",
        config={"image": f"{IMAGE}:protocol"},
    ),
    "exits while it starts": Situation(
        error=StartError,
        says="the sandbox did not start: ",
        config={"image": f"{IMAGE}:start"},
    ),
    "no engine": Situation(
        error=EngineUnreachableError,
        says="docker.sock (No such file or directory)",
        where=lambda who, _request: who.engine_at(None),
    ),
    "engine gone in the start": Situation(
        error=EngineUnreachableError,
        says="no container engine answers at ",
        where=gone_in_the_start,
    ),
    "disk for sockets full": Situation(
        error=RuntimeFolderFullError,
        says="cannot be used: its disk is full",
        where=no_room,
    ),
    "engine not allowed": Situation(
        error=EnginePermissionError,
        says="this user may not use the container engine at ",
        where=not_allowed,
    ),
    "image missing": Situation(
        error=ImageMissingError,
        says="the image executor-ml:latest is not on this machine",
        where=an_empty_engine,
    ),
    "disk of the engine full": Situation(
        error=EngineDiskError,
        says="failed to create the sandbox: its disk is full, at ",
        config={"image": EMPTY},
        where=engine_without_room,
    ),
    "engine killed": Situation(
        error=EngineUnreachableError,
        says="docker.sock (Connection refused)",
        where=killed,
    ),
}
NEED_ROOT: Final = (no_room, not_allowed, an_empty_engine, engine_without_room, killed)


def cases() -> list[Any]:
    """All, the one that ends the engine last; those that need an engine or a disk marked."""
    can = ROOT and engine_host.dockerd_path() is not None
    why = "only root can start an engine or mount a disk, and dockerd must be installed"
    marks = [pytest.mark.skipif(not can, reason=why)]
    return [
        pytest.param(situation, id=name, marks=marks if situation.where in NEED_ROOT else ())
        for name, situation in SITUATIONS.items()
    ]


@pytest.mark.parametrize("situation", cases())
@pytest.mark.usefixtures("images")
def test_the_same_words_everywhere(
    somebody: Person, situation: Situation, request: pytest.FixtureRequest
) -> None:
    """In the answer that the dialog shows, in the log, and on the command line."""
    with somebody.kernelspec(NAME, situation.config):
        with situation.where(somebody, request):
            told, logged = answered(somebody.server)
        with situation.where(somebody, request):
            ran = somebody.types("run", somebody.notebook("1"), "--kernel", NAME)
    assert situation.says in told
    same(told, logged, ran, situation.error)
    if situation.error is StartError:
        assert "; its last words: " in told
        assert "invalid PYTHONUTF8" in told


def test_too_long_a_path_is_told_in_the_same_words(somebody: Person) -> None:
    """By a server of its own, since it is the environment that is wrong."""
    home = somebody.own(somebody.folder / "other")
    environ = {**somebody.environ, RUNTIME_VARIABLE: f"{home}/{'x' * 80}"}
    with somebody.kernelspec(NAME, {}), serving(home, environ=environ, prefix=AS_PERSON) as server:
        told, logged = answered(server)
        ran = somebody.types("run", somebody.notebook("1"), "--kernel", NAME, environ=environ)
    assert " bytes, and 74 are possible\n" in told
    same(told, logged, ran, RuntimeFolderError)


def answered(server: Server) -> tuple[str, str]:
    """What a server says of a kernel that it can't start, and what it logs meanwhile."""
    before = len(plain(server.log))
    status, body = server.ask("POST", "/api/sessions", new_session(NAME))
    assert status == 500, body
    told: str = json.loads(body)["message"]
    assert json.loads(server.ask("GET", "/api/kernels")[1]) == []
    assert json.loads(server.ask("GET", "/api/sessions")[1]) == []
    return told, plain(server.log)[before:]


def plain(log: Path) -> str:
    """What a server logged, without the margin of lines that belong to another."""
    return log.read_text(encoding="utf-8").replace("\n    ", "\n")


def same(told: str, logged: str, ran: Typed, error: type[SandboxError]) -> None:
    """Two lines in all three places, of which the first needs no other."""
    _, fix = told.split("\n")
    assert fix.startswith("Fix: ")
    assert told in logged
    assert nameless(ran.err) == nameless(f"executor-ml: {told}\n")
    assert ran.code == error.exit_code
    assert "%" not in told
    assert are_words_of(error, told)


def are_words_of(error: type[SandboxError], told: str) -> bool:
    """Whether an error of that class says this, with some data."""
    parts = re.split(r"\{[^}]*\}", f"{error.summary}\nFix: {error.fix}")
    return re.fullmatch("(?s:.*)".join(map(re.escape, parts)), told) is not None


@pytest.mark.skipif(not ROOT, reason="only root can mount a disk")
def test_wherever_the_disk_for_sockets_gets_full() -> None:
    """At each of the files that a start makes there: the same words, and nothing is left."""
    place = Path(f"/tmp/exd-{secrets.token_hex(3)}")
    place.mkdir(mode=0o700)
    environ = {**os.environ, RUNTIME_VARIABLE: str(place)}
    failed = 0
    try:
        for files in range(1, 40):
            with disk(place, f"mode=0700,nr_inodes={files}"):
                try:
                    asyncio.run(start(environ))
                except RuntimeFolderFullError as error:
                    assert error.data == {"path": str(place)}  # noqa: PT017
                    failed += 1
                else:
                    break
                assert until(partial(is_empty, place), 10)
    finally:
        place.rmdir()
    assert 15 < failed < 30, "there are as many files"


def is_empty(folder: Path) -> bool:
    """Whether nothing is left but the memo of uids; a warden takes a moment."""
    return all(path.name == "uids" for path in folder.iterdir())


async def start(environ: Mapping[str, str]) -> None:
    """What the provisioner does of a launch."""
    session = Session(environ=environ, name="t")
    try:
        session.launch(KernelPolicy(), key="k", env={})
        await session.launched(30)
    finally:
        session.close()


# --- what runs ------------------------------------------------------------------------------


def test_an_engine_that_goes_while_a_kernel_runs(somebody: Person) -> None:
    """Cells go on; what is missed in the end is told by the log and the command alike.

    A restart fails in the words of any start without an engine; to the server it has
    succeeded, and cells tell them. That memory is no multiple of a page changes nothing.
    """
    server = somebody.server
    with somebody.kernelspec(NAME, {"memory": 512 * MIB + 1}):
        status, body = server.ask("POST", "/api/sessions", new_session(NAME))
        assert status == 201, body
        kernel = f"/api/kernels/{json.loads(body)['kernel']['id']}"
        before = len(plain(server.log))
        with somebody.engine_at(None):
            assert server.ask("POST", f"{kernel}/restart")[0] == 200
        assert server.ask("DELETE", kernel)[0] == 204
        logged = plain(server.log)[before:]
        ran = run_while_the_engine_goes(somebody)
        assert "removed executor-ml-" in somebody.types("prune").out
    gone = EngineUnreachableError(socket=somebody.socket, reason="No such file or directory")
    assert f"{gone}\n" in logged
    assert ran.code == 0, ran.err
    left = ran.err.removeprefix("executor-ml: ").removesuffix("\n")
    assert are_words_of(SandboxLeftError, left)
    assert "%" not in left
    assert nameless(left) in nameless(logged)


def run_while_the_engine_goes(who: Person) -> Typed:
    """Its only cell begins with an engine, and ends without."""
    book = who.notebook("import time; time.sleep(1); print(6 * 7)")
    with who.begin("run", book, "--kernel", NAME, "--show") as process:
        assert process.stdout is not None
        head = ""
        for line in process.stdout:
            head += line
            if "memory 512 MB" in line:
                break
        with who.engine_at(None):
            out, err = process.communicate(timeout=60)
    assert "| 42" in out
    return Typed(code=process.returncode, out=head + out, err=err)


def nameless(text: str) -> str:
    """A text without what is another's in each sandbox: container, address in memory."""
    return re.sub(r"executor-ml-\d+|\b0x[0-9a-f]{8,}", "N", text)
