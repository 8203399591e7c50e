"""The copy of a folder on its way: what is in it, what never is, and that nothing changes it."""

import errno
import fcntl
import gc
import mmap
import os
import secrets
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import sandbox_workspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_provider import workspace
from kernel_provider.errors import WorkspaceError
from kernel_provider.values import MIB
from kernel_provider.workspace import Workspace, copy_folder

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's folder with a bit of everything that belongs into a copy."""
    made = tmp_path / "notebook"
    (made / "data/deep").mkdir(parents=True)
    (made / "analysis.ipynb").write_text("{}")
    (made / "data/deep/table.csv").write_bytes(b"a,b\n1,2\n" * 1000)
    (made / "empty").touch()
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o4777)
    (made / "latest").symlink_to("data/deep/table.csv")
    (made / "data/up").symlink_to("../empty")
    return made


@contextmanager
def copied(folder: Path, *, limit: int = 64 * MIB) -> Iterator[Workspace]:
    """A copy, closed at the end."""
    made = copy_folder(str(folder), limit=limit)
    try:
        yield made
    finally:
        made.close()


def members(copy: Workspace) -> dict[str, tarfile.TarInfo]:
    """What is in a copy, by name."""
    with open(copy.fileno(), "rb", closefd=False) as file:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            return {member.name: member for member in tar}


def open_descriptors() -> int:
    """How many this process has."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def refused(folder: Path, *, limit: int = 64 * MIB) -> WorkspaceError:
    """The error for a folder; what was opened on the way to it is closed again."""
    before = open_descriptors()
    with pytest.raises(WorkspaceError) as caught:
        copy_folder(str(folder), limit=limit)
    assert open_descriptors() == before
    assert len(str(caught.value).splitlines()) == 2
    return caught.value


# --- what is in it ------------------------------------------------------------------------


def test_a_copy_is_what_the_folder_is(folder: Path, tmp_path: Path) -> None:
    """Unpacked, it has the same files, folders and links, and nobody's set-uid bit."""
    place = tmp_path / "sandbox"
    place.mkdir()
    with copied(folder) as copy:
        assert (copy.files, copy.left_out) == (4, ())
        sandbox_workspace.unpack(os.dup(copy.fileno()), str(place))
    found = sorted(str(p.relative_to(place)) for p in place.rglob("*"))
    assert found == sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    table = place / "data/deep/table.csv"
    assert table.read_bytes() == (folder / "data/deep/table.csv").read_bytes()
    assert int(table.stat().st_mtime) == int((folder / "data/deep/table.csv").stat().st_mtime)
    assert (place / "latest").readlink() == Path("data/deep/table.csv")
    assert (place / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert table.stat().st_mode & 0o777 == 0o644


@given(
    names=st.sets(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=60),
        max_size=8,
    ),
    content=st.binary(max_size=2000),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_and_bytes_arrive(tmp_path: Path, names: set[str], content: bytes) -> None:
    """Whatever a file is called and holds; hidden ones stay."""
    source, place = (tmp_path / secrets.token_hex(4) for _ in range(2))
    source.mkdir()
    place.mkdir()
    wanted = {name for name in names if not name.startswith(".") and name not in workspace.SKIPPED}
    for name in names - {".", ".."}:
        (source / name).write_bytes(content)
    with copied(source) as copy:
        sandbox_workspace.unpack(os.dup(copy.fileno()), str(place))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == dict.fromkeys(
        wanted, content
    )


def test_bytes_that_are_no_text_and_long_names_arrive(tmp_path: Path) -> None:
    """A name of 255 bytes, one that is not UTF-8, and a path of a thousand."""
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    odd = [b"x" * 255, b"caf\xe9.csv", b"/".join([b"y" * 90] * 11)]
    for name in odd:
        path = Path(os.fsdecode(os.fsencode(source) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    with copied(source) as copy:
        sandbox_workspace.unpack(os.dup(copy.fileno()), str(place))
    for name in odd:
        assert Path(os.fsdecode(os.fsencode(place) + b"/" + name)).read_bytes() == name


def test_the_working_directory_where_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clients, papermill and otter, name no folder."""
    monkeypatch.chdir(folder / "data")
    copy = copy_folder("", limit=MIB)
    assert set(members(copy)) == {"deep", "deep/table.csv"}
    assert copy.folder == str(folder / "data")
    assert copy.left_out == ("up",)
    copy.close()


# --- what never is ------------------------------------------------------------------------


def test_what_is_hidden_or_made_by_tools_stays(folder: Path) -> None:
    """Git, checkpoints, secrets in dot files, caches, and environments by whatever name."""
    for name in (".git", ".ipynb_checkpoints", ".venv", "__pycache__", "node_modules", "my env"):
        (folder / "data" / name).mkdir()
        (folder / "data" / name / "file").touch()
    (folder / "data/my env/pyvenv.cfg").touch()
    (folder / ".env").write_text("TOKEN=secret")
    with copied(folder) as copy:
        names = set(members(copy))
        assert copy.left_out == ()
    assert names == {
        *("analysis.ipynb", "empty", "run.sh", "latest"),
        *("data", "data/up", "data/deep", "data/deep/table.csv"),
    }


def test_a_folder_is_copied_even_if_it_is_an_environment_itself(folder: Path) -> None:
    """A notebook in one is meant to be there."""
    (folder / "pyvenv.cfg").touch()
    with copied(folder) as copy:
        assert "analysis.ipynb" in members(copy)


def test_links_out_are_left_out_and_told(folder: Path) -> None:
    """By an absolute path, by a way up, and by a way up through another link's name."""
    (folder / "absolute").symlink_to(folder / "empty")
    (folder / "parent").symlink_to("..")
    (folder / "data/far").symlink_to("../../outside")
    (folder / "data/dangling").symlink_to("nowhere")
    with copied(folder) as copy:
        assert copy.left_out == ("absolute", "data/far", "parent")
        assert members(copy)["data/dangling"].linkname == "nowhere"
        assert str(copy).endswith("; left out: absolute, data/far, parent")


def test_a_log_has_a_bounded_line_of_what_was_left_out(tmp_path: Path) -> None:
    """However many there are, and whatever they are called."""
    for number in range(50):
        (tmp_path / f"{number:02}\nx").symlink_to("/")
    with copied(tmp_path) as copy:
        assert str(copy).endswith("18?x, 19?x and 30 more")
        assert len(copy.left_out) == 50


def test_what_is_no_file_is_left_out_and_never_waited_for(folder: Path) -> None:
    """A FIFO without a writer would block whoever opens it; a socket can't be opened."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        with chdir(folder):  # its whole path may be too long for a socket
            listener.bind("socket")
        with copied(folder) as copy:
            assert copy.left_out == ("pipe", "socket")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make devices")
def test_devices_are_left_out(folder: Path) -> None:
    """They are not even opened."""
    try:
        os.mknod(folder / "zero", 0o020666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this root may not make devices")
    with copied(folder) as copy:
        assert copy.left_out == ("zero",)


def test_only_what_this_user_may_read(folder: Path) -> None:
    """A file and a folder that are closed to it are left out; the rest is there."""
    place = Path(f"/tmp/exw-{secrets.token_hex(4)}")
    shutil.copytree(folder, place, symlinks=True)
    try:
        place.chmod(0o755)
        (place / "empty").chmod(0)
        (place / "data/deep").chmod(0)
        with as_nobody(), copied(place) as copy:
            assert copy.left_out == ("data/deep", "empty")
            assert set(members(copy)) == {"analysis.ipynb", "run.sh", "latest", "data", "data/up"}
    finally:
        (place / "data/deep").chmod(0o700)
        shutil.rmtree(place)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's way around permissions, if these tests have it."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Swapping:
    """Entries of a folder, and by the time they are opened, something else."""

    def __init__(self, swap: Callable[[], None]) -> None:
        self.swap = swap
        self.scan = os.scandir

    @contextmanager
    def __call__(self, descriptor: int) -> Iterator[list["os.DirEntry[str]"]]:
        """List, then swap."""
        with self.scan(descriptor) as entries:
            found = list(entries)
            for entry in found:
                entry.is_symlink(), entry.is_dir(), entry.is_file()
        self.swap()
        yield found


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_is_swapped_in_leads_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever can write there replaces what was just looked at by a link to a secret."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/table.csv").write_text("secret")
    victim, goal = {
        "file": (folder / "empty", tmp_path / "secret/table.csv"),
        "folder": (folder / "data", tmp_path / "secret"),
    }[kind]

    def swap() -> None:
        if not victim.is_symlink():
            victim.rename(tmp_path / "aside")
            victim.symlink_to(goal)

    monkeypatch.setattr("os.scandir", Swapping(swap))
    with copied(folder) as copy:
        assert copy.left_out == (victim.name,)
        with open(copy.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            assert b"secret" not in file.read()


# --- how much -----------------------------------------------------------------------------


def test_too_much_names_the_size_the_largest_and_the_remedy(folder: Path) -> None:
    """The whole folder is counted, also what comes after the limit was reached."""
    for name, size in (("model.bin", 3 * MIB), ("b.csv", 2 * MIB), ("c", MIB), ("d", 10)):
        (folder / "data" / name).write_bytes(bytes(size))
    error = refused(folder, limit=4 * MIB)
    first, second = str(error).splitlines()
    assert f"the notebook's folder {folder}" in first
    assert "its 8 files take 6.0 MB, and workspace_size is 4.0 MB" in first
    assert first.endswith("data/model.bin (3.0 MB), data/b.csv (2.0 MB), data/c (1.0 MB)")
    assert "mounts" in second
    assert "memory" in second
    with copied(folder, limit=7 * MIB) as copy:
        assert copy.files == 8


def test_a_file_counts_as_the_pages_that_it_takes(tmp_path: Path) -> None:
    """A hundred files of one byte are 400 KiB in a sandbox's memory, and an empty one none."""
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"x")
    (tmp_path / "empty").touch()
    with copied(tmp_path, limit=100 * 4096) as copy:
        assert copy.size == 100 * 4096
    assert "101 files" in str(refused(tmp_path, limit=100 * 4096 - 1))


def test_a_sparse_file_counts_as_what_it_would_be(tmp_path: Path) -> None:
    """And is not read to find out."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert "1048576.0 MB" in str(refused(tmp_path))


def test_too_many_files_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder is not walked to its end."""
    monkeypatch.setattr(workspace, "ENTRIES", 20)
    for number in range(20):
        (tmp_path / str(number)).touch()
    with copied(tmp_path) as copy:
        assert copy.files == 20
    (tmp_path / "one more").mkdir()
    error = refused(tmp_path)
    assert "it has more than 20 files and folders" in str(error)
    assert "a folder of its own" in str(error)


def test_folders_too_deep_are_refused(tmp_path: Path) -> None:
    """Each level holds a descriptor."""
    deep = tmp_path.joinpath(*["d"] * workspace.DEPTH)
    deep.mkdir(parents=True)
    with copied(tmp_path) as copy:
        assert len(members(copy)) == workspace.DEPTH
    (deep / "d").mkdir()
    assert f"more than {workspace.DEPTH} deep" in str(refused(tmp_path))


@pytest.mark.parametrize(("now", "later"), [(100, 5000), (5000, 100)])
def test_sizes_are_those_at_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: int, later: int
) -> None:
    """A file that grows is cut there; of one that shrinks there is nothing to copy."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * now)
    look = os.fstat

    def look_and_change(descriptor: int) -> os.stat_result:
        facts = look(descriptor)
        path.write_bytes(b"x" * later)
        return facts

    monkeypatch.setattr("os.fstat", look_and_change)
    if later < now:
        assert "log: unexpected end of data" in str(refused(tmp_path))
        return
    with copied(tmp_path) as copy:
        assert members(copy)["log"].size == now


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As is one that is a file; names are shown harmless, with no per cent sign."""
    assert "No such file or directory" in str(refused(tmp_path / "gone"))
    (tmp_path / "100%\n\x1b[31m").touch()
    error = refused(tmp_path / "100%\n\x1b[31m")
    assert "Not a directory" in str(error)
    assert "%" not in str(error)
    assert "\x1b" not in str(error)
    assert "workspace to none" in str(error)


# --- sealed -------------------------------------------------------------------------------


def test_nobody_can_change_a_copy(folder: Path) -> None:
    """Not even its owner, through another opening of the same memory; and seals stay."""
    with copied(folder) as copy:
        descriptor = copy.fileno()
        assert os.fstat(descriptor).st_mode & 0o7777 == 0o400
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        os.fchmod(descriptor, 0o600)
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        before = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        size = len(before)
        attempts: list[Callable[[int], object]] = [
            lambda fd: os.write(fd, b"x"),
            lambda fd: os.pwrite(fd, b"x", 0),
            lambda fd: os.pwrite(fd, b"x", size),
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.ftruncate(fd, size + 1),
            lambda fd: os.posix_fallocate(fd, 0, size * 2),
            lambda fd: mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match="Operation not permitted") as caught:
                attempt(again)
            assert caught.value.errno == errno.EPERM
            with pytest.raises(OSError, match=r"Bad file|Invalid|denied|not permitted"):
                attempt(descriptor)
        os.close(again)
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == before


def test_a_copy_that_nobody_waits_for_any_more_goes(folder: Path) -> None:
    """A launch that is given up while its thread still copies leaves no memory behind."""
    before = open_descriptors()
    copy = copy_folder(str(folder), limit=MIB)
    assert open_descriptors() == before + 1
    assert not os.get_inheritable(copy.fileno())
    del copy
    assert open_descriptors() == before
    twice = copy_folder(str(folder), limit=MIB)
    twice.close()
    twice.close()
    assert open_descriptors() == before


# --- in the sandbox -----------------------------------------------------------------------


def sealed(tmp_path: Path, *infos: tarfile.TarInfo) -> int:
    """A tar with these members, the files filled with x."""
    path = tmp_path / secrets.token_hex(4)
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for info in infos:
            with Path("/dev/zero").open("rb") as zeros:
                tar.addfile(info, zeros)
    return os.open(path, os.O_RDONLY)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0
) -> tarfile.TarInfo:
    """One member of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("/tmp/absolute"),
        member("../up"),
        member("a/../../up"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
        member("hard", tarfile.LNKTYPE, "/etc/passwd"),
        member("/tmp/link", tarfile.SYMTYPE, "x"),
    ],
    ids=lambda info: info.name,
)
def test_unpacking_refuses_what_no_copy_has(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    """Names that lead out, and members that are no files."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ValueError, match=r"leads out of|is neither"):
        sandbox_workspace.unpack(sealed(tmp_path, bad), str(place))
    assert not list(place.iterdir())


def test_unpacking_writes_through_no_link(tmp_path: Path) -> None:
    """Links come last, so a file below one's name has a folder in the way of neither."""
    place, outside = tmp_path / "place", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    way_out = member("way", tarfile.SYMTYPE, str(outside))
    with pytest.raises(OSError, match="way"):
        sandbox_workspace.unpack(sealed(tmp_path, way_out, member("way/in")), str(place))
    twice = sealed(tmp_path, member("a", size=3), member("a", tarfile.SYMTYPE, "../outside/b"))
    with pytest.raises(FileExistsError):
        sandbox_workspace.unpack(twice, str(place))
    assert not list(outside.iterdir())


def test_unpacking_starts_at_the_beginning(folder: Path, tmp_path: Path) -> None:
    """A descriptor that was passed shares its place in the file with all others."""
    place = tmp_path / "place"
    place.mkdir()
    with copied(folder) as copy:
        os.lseek(copy.fileno(), 0, os.SEEK_END)
        sandbox_workspace.unpack(os.dup(copy.fileno()), str(place))
    assert (place / "analysis.ipynb").read_text() == "{}"


def raised(path: str) -> BaseException:
    """What opening a file that is not there raises."""
    with pytest.raises(OSError, match=r"\[") as caught:
        Path(path).open("rb").close()
    return caught.value


@pytest.mark.parametrize(
    ("path", "without", "with_copy"),
    [
        ("data.csv", True, False),
        ("data/table.csv", True, False),
        ("../data.csv", True, True),
        ("C:\\Users\\ada\\data.csv", True, False),
        ("~/data.csv", True, True),
        ("/home/ada/data.csv", True, True),
        ("/Users/ada/data.csv", True, True),
        ("/tmp/home/data.csv", True, True),
        ("/tmp/result.csv", False, False),
        ("/models/x/config.json", False, False),
        ("/proc/1/nothing", False, False),
    ],
)
def test_a_missing_file_gets_a_hint_where_it_helps(
    monkeypatch: pytest.MonkeyPatch, path: str, *, without: bool, with_copy: bool
) -> None:
    """Relative, or where people's files are; not below folders that the sandbox has."""
    monkeypatch.setenv("HOME", "/tmp/home")
    error = raised(path)
    assert bool(sandbox_workspace.hint(error, copied=False)) is without
    assert bool(sandbox_workspace.hint(error, copied=True)) is with_copy
    for told in (sandbox_workspace.NOT_HERE, sandbox_workspace.NOT_COPIED):
        assert "mounts" in told
        assert "\n" not in told


def test_other_errors_get_no_hint(tmp_path: Path) -> None:
    """Nor does one without a name, nor a program that is not there."""
    for error in (
        raised(str(tmp_path)),
        FileNotFoundError("gone"),
        FileNotFoundError(errno.ENOENT, "gone", 3),
        ValueError("data.csv"),
        None,
    ):
        assert sandbox_workspace.hint(error, copied=False) == ""

    def _execute_child() -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "git")

    with pytest.raises(FileNotFoundError) as caught:
        _execute_child()
    assert sandbox_workspace.hint(caught.value, copied=False) == ""
