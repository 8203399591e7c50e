"""What a cell hears of the sandbox's limits, with control groups of both versions."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sandbox_hints
import sandbox_limits
from sandbox_limits import Group, Limits

MEMORY = (
    "MemoryLimitExceeded: a process that the kernel had started was killed, since the sandbox used "
    "more than its 512 MB of memory. The kernel lives on. Take fewer workers, load less at once, "
    'or raise "memory" in kernelspec ml-2g.'
)
PIDS = (
    "PidsLimitExceeded: the sandbox has room for 128 processes and threads, and one more was "
    'refused. Take fewer workers or threads, or raise "pids" in kernelspec ml-2g.'
)


class FakeGroup:
    """A control group's files, as the kernel writes them."""

    def __init__(self, root: Path, *, unified: bool) -> None:
        self.root = root
        self.unified = unified
        if not unified:
            (root / "memory").mkdir()
            (root / "pids").mkdir()
        self._write("memory", "memory.limit_in_bytes", "memory.max", f"{512 << 20}\n")
        self._write("pids", "pids.max", "pids.max", "128\n")
        self.count(killed=0, refused=0)

    def _write(self, controller: str, old: str, new: str, text: str) -> None:
        path = self.root / new if self.unified else self.root / controller / old
        path.write_text(text)

    def count(self, *, killed: int, refused: int) -> None:
        """Set the counters."""
        new = f"low 0\nhigh 0\nmax 9\noom 3\noom_kill {killed}\noom_group_kill 0\n"
        old = f"oom_kill_disable 0\nunder_oom 0\noom_kill {killed}\n"
        text = new if self.unified else old
        self._write("memory", "memory.oom_control", "memory.events", text)
        self._write("pids", "pids.events", "pids.events", f"max {refused}\n")


@pytest.fixture(params=[False, True], ids=["version 1", "version 2"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> FakeGroup:
    """One of either version."""
    return FakeGroup(tmp_path, unified=request.param)


@pytest.fixture
def limits(group: FakeGroup) -> Limits:
    """Those of a kernel that has counted nothing yet."""
    return Limits("ml-2g", group=Group(str(group.root)))


def test_what_was_counted_is_told_once(group: FakeGroup, limits: Limits) -> None:
    """By the exception that shows, whatever it is; the next one is about something else."""
    assert limits.hint(ValueError("x")) == ""
    group.count(killed=1, refused=0)
    assert limits.hint(RuntimeError("DataLoader worker (pid 7) exited unexpectedly")) == MEMORY
    assert limits.hint(RuntimeError("x")) == ""
    group.count(killed=1, refused=4)
    assert limits.hint(RuntimeError("can't start new thread")) == PIDS
    group.count(killed=2, refused=5)
    assert limits.hint(KeyboardInterrupt()) == f"{MEMORY} {PIDS}"


def test_a_cell_without_an_exception_gets_a_note(
    group: FakeGroup, limits: Limits, capsys: pytest.CaptureFixture[str]
) -> None:
    """On its standard error, and only if its traceback has not told it."""
    limits.note()
    group.count(killed=1, refused=1)
    limits.note("the cell's result")
    limits.note()
    assert capsys.readouterr() == ("", f"Note: {MEMORY}\nNote: {PIDS}\n")
    group.count(killed=2, refused=1)
    assert limits.hint(ValueError("x")) == MEMORY
    limits.note()
    assert capsys.readouterr() == ("", "")


def test_groups_that_cannot_be_read_tell_nothing(tmp_path: Path) -> None:
    """No cell is harmed by a host that mounts no control groups."""
    made = Limits(group=Group(str(tmp_path / "none")))
    assert made.hint(ValueError("x")) == ""
    assert "has limit of memory" in made.hint(MemoryError())
    assert "in the kernelspec" in made.hint(MemoryError())


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), "chained"]
)
def test_more_than_there_is_at_once(limits: Limits, error: Any) -> None:
    """It was refused before anything was killed: the limit is told all the same."""
    if error == "chained":
        error = ValueError("a library's own")
        error.__cause__ = MemoryError()
    told = limits.hint(error)
    assert told.startswith("MemoryLimitExceeded: the sandbox has 512 MB of memory.")
    assert 'raise "memory" in kernelspec ml-2g' in told


def room(bavail: int, favail: int = 9) -> SimpleNamespace:
    """What statvfs tells of 128 MB."""
    return SimpleNamespace(
        f_blocks=32768, f_frsize=4096, f_bavail=bavail, f_favail=favail, f_files=16384
    )


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> dict[str, SimpleNamespace]:
    """Both places, with room."""
    found = {"/tmp": room(7), "/dev/shm": room(7)}
    monkeypatch.setattr(os, "statvfs", found.__getitem__)
    return found


def full() -> OSError:
    """What a write raises that does not fit."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_place_is_named(limits: Limits, rooms: dict[str, Any]) -> None:
    """By its state, or by the file that the exception names."""
    told = (
        "DiskLimitExceeded: {0} is full: it has room for 128 MB. Remove what is not needed, or "
        'raise "{1}" in kernelspec ml-2g; it is part of "memory".'
    )
    rooms["/dev/shm"] = room(0)
    assert limits.hint(full()) == told.format("/dev/shm", "shm_size")
    named = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x/../y")
    assert limits.hint(named) == told.format("/tmp", "tmp_size")
    rooms["/dev/shm"] = room(7)
    told = limits.hint(full())  # removed again by the code that made it
    assert "there is no more room: /tmp for 128 MB and /dev/shm for 128 MB" in told
    assert 'raise "tmp_size" or "shm_size" in kernelspec ml-2g' in told


def test_too_many_files_are_another_matter(limits: Limits, rooms: dict[str, Any]) -> None:
    """No setting has their number."""
    rooms["/tmp"] = room(7, favail=0)
    told = limits.hint(full())
    assert told == (
        "DiskLimitExceeded: /tmp is full: it has room for 16384 files. Remove what is not needed."
    )


def unprintable() -> Exception:
    """An exception whose own text fails."""

    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    return OddError()


@pytest.mark.parametrize(
    ("make", "helps"),
    [
        (lambda: RuntimeError("unable to write: No space left on device (28)"), True),
        (lambda: RuntimeError("DataLoader worker (pid 9) is killed by signal: Bus error."), True),
        (lambda: OSError(errno.EACCES, "Permission denied", "/tmp/x"), False),
        (lambda: ValueError("x"), False),
        (unprintable, False),
    ],
)
def test_native_code_tells_it_in_words(
    limits: Limits, rooms: dict[str, Any], make: Callable[[], Exception], *, helps: bool
) -> None:
    """And nothing else is taken for it."""
    rooms["/dev/shm"] = room(0)
    assert ("/dev/shm is full" in limits.hint(make())) is helps


def test_places_that_cannot_be_looked_at(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error of ours in place of the notebook's."""

    def gone(_path: str) -> Any:
        raise OSError

    monkeypatch.setattr(os, "statvfs", gone)
    assert "DiskLimitExceeded" in limits.hint(full())
    assert "DiskLimitExceeded" in limits.hint(OSError(errno.ENOSPC, "x", "/dev/shm/x"))


def test_a_chain_without_end_is_no_trap(limits: Limits) -> None:
    """Exceptions may refer to themselves."""
    error = ValueError("x")
    error.__context__ = other = ValueError("y")
    other.__context__ = error
    assert limits.hint(error) == ""


def test_hints_end_the_traceback_and_nothing_else() -> None:
    """The shell shows the same exception, with a line more for each source, or as it was."""

    class Shell:
        shown: list[tuple[object, object, list[str]]] = []  # noqa: RUF012

        def _showtraceback(self, kind: object, error: object, lines: list[str]) -> None:
            self.shown.append((kind, error, lines))

    shell = Shell()
    helped, other = KeyError("a"), ValueError("x")
    sandbox_hints.add_hints(
        shell,
        lambda error: "one" if error is helped else "",
        lambda error: "two" if error is helped else "",
    )
    shell._showtraceback(KeyError, helped, ["line"])  # noqa: SLF001
    shell._showtraceback(ValueError, other, ["line"])  # noqa: SLF001
    assert shell.shown == [
        (KeyError, helped, ["line", "\nHint: one", "\nHint: two"]),
        (ValueError, other, ["line"]),
    ]


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "!pip install x",
            "%pip install -q x",
            "x = 1\n  !pip3 install x",
            "!python -m pip install x",
        ),
        *("!{sys.executable} -m pip install x", "!uv pip install x", "%conda install x"),
    ],
)
def test_a_cell_that_would_install_hears_what_there_is_instead(
    cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, behind whatever it said itself; with commands that the host understands."""
    sandbox_hints.tell_of_packages(SimpleNamespace(info=SimpleNamespace(raw_cell=cell)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Hint: the sandbox has no network and no pip.")
    assert "executor-ml build --variant ./NAME.in" in line


@pytest.mark.parametrize(
    "cell",
    ["print('pip install x')", "# !pip install x", "!ls", "!pip list", "%pip list", "", None],
)
def test_other_cells_hear_nothing_of_installing(
    cell: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor a cell that only speaks of it."""
    sandbox_hints.tell_of_packages(SimpleNamespace(info=SimpleNamespace(raw_cell=cell)))
    assert capsys.readouterr().err == ""


def test_the_module_takes_its_places_from_the_sandbox() -> None:
    """The settings that it names are settings."""
    from kernel_provider.policy import KernelPolicy  # noqa: PLC0415

    assert all(hasattr(KernelPolicy(), name) for name in sandbox_limits.ROOMS.values())
