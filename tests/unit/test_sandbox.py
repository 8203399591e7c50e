"""One container's steps, with an engine that does as it was told to."""

import math
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernel_provider import names
from kernel_provider.engines import ContainerState, ImageFacts, SandboxSpec
from kernel_provider.errors import (
    EngineDiskError,
    EngineError,
    EngineUnreachableError,
    LimitNotHeldError,
    RuntimeFolderError,
    StartError,
)
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.warden import uids
from kernel_provider.warden.cgroup import NO_USAGE
from kernel_provider.warden.sandbox import EndedError, Sandbox

NOBODY = 1 << 30
"""No process has this number."""


class FakeEngine:
    """Starts nothing: its container is whatever process ``pid`` is."""

    def __init__(self, pid: int, *, fails: str = "", disk: str = "/") -> None:
        self.pid = pid
        self.fails = fails
        self.where = disk
        self.until = math.inf
        self.removed: list[tuple[str, float]] = []

    def by(self, moment: float) -> "FakeEngine":
        """Note the time that calls get from now on."""
        self.until = moment
        return self

    def image(self, _reference: str) -> ImageFacts:
        """One that fits."""
        return ImageFacts(id="i", labels={names.LABEL_PROTOCOL: str(names.PROTOCOL)})

    def answers(self) -> bool:
        """As told."""
        return self.fails != "answer"

    def disk(self) -> str:
        """As told."""
        return self.where

    def id_range(self) -> tuple[int, int]:
        """A small one."""
        return 70_000, 9

    def create(self, _spec: SandboxSpec, *, image_id: str, uid: int) -> str:
        """Name it, or fail."""
        if self.fails == "create":
            raise EngineError(action="create", reason="the test says no")
        return f"container-{image_id}-{uid}"

    def start(self, _container: str) -> None:
        """It runs already."""

    def inspect(self, _container: str) -> ContainerState:
        """It runs."""
        if self.fails == "inspect":
            raise EngineError(action="inspect", reason="the test says no")
        return ContainerState(
            running=bool(self.pid), pid=self.pid, exit_code=0, oom_killed=False, error=""
        )

    def remove(self, container: str) -> None:
        """Note it, or fail."""
        self.removed.append((container, self.until))
        if self.fails == "remove":
            raise EngineError(action="remove", reason="the test says no")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A warden's folder, beside an engine's socket."""
    (tmp_path / "engine").touch()
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def sandbox(folder: Path, engine: FakeEngine) -> Sandbox:
    """One that has its sockets, and no container yet."""
    spec = sandbox_spec(KernelPolicy(), rendezvous=str(folder / "r"))
    address = str(folder.parent / "engine")
    made = Sandbox(engine, spec, folder=str(folder), address=address)  # type: ignore[arg-type]
    made.bind()
    return made


def let_go(made: Sandbox) -> None:
    """Close what a warden's end would close."""
    made.container = ""
    made.remove()
    os.close(made.sockets._folder)  # noqa: SLF001
    for listener in made.sockets._listeners:  # noqa: SLF001
        listener.close()


def test_one_that_ended_before_its_group_was_found(folder: Path) -> None:
    """No limit that is not held: there is nobody to hold it for."""
    made = sandbox(folder, FakeEngine(NOBODY))
    with pytest.raises(EndedError):
        made.launch(math.inf)
    assert made.group is None
    let_go(made)


def test_one_in_another_group_is_not_limited(folder: Path) -> None:
    """Its limits would be somebody else's."""
    made = sandbox(folder, FakeEngine(os.getpid()))
    with pytest.raises(LimitNotHeldError, match="found another control group"):
        made.launch(math.inf)
    let_go(made)


def test_one_that_the_engine_saw_end(folder: Path) -> None:
    """It was never seen to run."""
    made = sandbox(folder, FakeEngine(0))
    with pytest.raises(EndedError):
        made.launch(math.inf)
    let_go(made)


def test_a_range_that_cannot_be_kept_is_asked_for_again(folder: Path) -> None:
    """A full disk, or a folder in the memo's place, costs a question and no more."""
    (folder.parent / "uids").mkdir()
    made = sandbox(folder, FakeEngine(0))
    with pytest.raises(EndedError):
        made.launch(math.inf)
    assert 70_000 <= made.uid < 70_009
    assert not [path for path in folder.parent.glob("uids.*") if path.stat().st_size == 0]
    let_go(made)


def test_an_engine_whose_socket_went(folder: Path) -> None:
    """Between two calls: it is unreachable, and that is said."""
    made = sandbox(folder, FakeEngine(0))
    (folder.parent / "engine").unlink()
    with pytest.raises(EngineUnreachableError, match="No such file"):
        made.launch(math.inf)
    let_go(made)


def test_a_folder_that_cannot_be_used(folder: Path) -> None:
    """The error names the folder that the person may set, not the one in it."""
    made = sandbox(folder, FakeEngine(0))
    with pytest.raises(RuntimeFolderError, match=f"{folder.parent}, cannot be used: File exists"):
        sandbox(folder, FakeEngine(0))
    with pytest.raises(RuntimeFolderError, match=f"{folder.parent}, cannot be used: File exists"):
        made.bind()
    let_go(made)


def test_a_failure_on_a_disk_with_room_is_told_as_it_is(folder: Path) -> None:
    """Also where that disk cannot be seen from here."""
    for disk in (str(folder), "/nowhere"):
        made = sandbox(folder, FakeEngine(0, fails="create", disk=disk))
        with pytest.raises(EngineError, match="failed to create: the test says no") as caught:
            made.launch(math.inf)
        assert type(caught.value) is EngineError
        let_go(made)
        for name in ("i", "r"):
            shutil.rmtree(folder / name)


def test_a_failure_on_a_full_disk_is_told_as_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder that lies on it; whether blocks or files are all that is missing."""
    real = os.statvfs(folder)
    for changes in ({"f_bavail": 0}, {"f_favail": 0, "f_files": 1}):
        facts = SimpleNamespace(
            **{
                name: getattr(real, name)
                for name in ("f_bavail", "f_frsize", "f_files", "f_favail")
            }
        )
        vars(facts).update(changes)
        monkeypatch.setattr("os.statvfs", lambda _path, facts=facts: facts)
        made = sandbox(folder, FakeEngine(0, fails="create", disk="/var/lib/engine"))
        with pytest.raises(EngineDiskError, match="create: its disk is full, at /var/lib/engine"):
            made.launch(math.inf)
        let_go(made)
        for name in ("i", "r"):
            shutil.rmtree(folder / name)


def test_a_removal_that_fails_is_tried_again(folder: Path) -> None:
    """What is gone is gone, whatever the engine says; its record is removed later."""
    engine = FakeEngine(0, fails="remove")
    made = sandbox(folder, engine)
    made.container = "c"
    assert (made.remove(5.0), made.removed) == (True, False)
    engine.fails = ""
    assert (made.remove(), made.removed) == (True, True)
    assert (made.remove(), made.removed) == (True, True)
    assert engine.removed == [("c", 5.0), ("c", math.inf)]
    let_go(made)


def test_a_removal_looks_at_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that forgot a sandbox which lives is not believed."""
    monkeypatch.setattr("kernel_provider.warden.sandbox.GONE_WITHIN", 0.1)
    made = sandbox(folder, FakeEngine(0))
    made.container, made.pid = "/", os.getpid()  # in every group's name
    assert not made.remove()
    made.pid = NOBODY
    assert made.remove()
    let_go(made)


def test_a_cleared_folder_is_no_hindrance(folder: Path) -> None:
    """The rendezvous' name is gone already: the container is removed all the same."""
    engine = FakeEngine(0)
    made = sandbox(folder, engine)
    made.container = "c"
    (folder / "r" / "s").unlink()
    assert made.remove()
    assert [container for container, _ in engine.removed] == ["c"]
    let_go(made)


def test_the_facts_of_an_engine_that_does_not_answer(folder: Path) -> None:
    """They are taken in bounded time, without it."""
    engine = FakeEngine(0, fails="inspect")
    made = sandbox(folder, engine)
    made._engine_life = uids.engine_life(str(folder.parent / "engine"))  # noqa: SLF001
    facts = made.facts(None, before=NO_USAGE, violation="", kernel="")
    assert (facts.status, facts.engine_status, facts.oom_flag) == (None, None, False)
    assert engine.until < time.monotonic() + 3
    let_go(made)


def test_an_engine_behind_a_socket_that_somebody_holds(folder: Path) -> None:
    """The socket is the same, and nobody answers: the engine is gone. Of others nobody asks."""
    engine = FakeEngine(0, fails="answer")
    made = sandbox(folder, engine)
    made._engine_life = uids.engine_life(str(folder.parent / "engine"))  # noqa: SLF001
    for status, gone in ((None, True), (-15, True), (3, False), (0, False)):
        facts = made.facts(status, before=NO_USAGE, violation="", kernel="")
        assert facts.engine_gone is gone
    assert engine.until < time.monotonic() + 3
    engine.fails = ""
    assert not made.facts(-15, before=NO_USAGE, violation="", kernel="").engine_gone
    let_go(made)


def test_a_stranger_at_the_rendezvous(folder: Path) -> None:
    """Even one that hung up before it was met."""
    made = sandbox(folder, FakeEngine(0))
    made.pid = os.getpid()
    made.container = "no such container"
    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(folder / "r" / "s"))
    with pytest.raises(StartError, match="its rendezvous failed: a stranger came"):
        made.meet()
    let_go(made)
