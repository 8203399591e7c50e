import asyncio
import gc
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kernel_provider import __version__
from kernel_provider.errors import RuntimeFolderError, UpgradedError, WardenError
from kernel_provider.folders import RUNTIME_VARIABLE, SOCKET_PATH_LIMIT, runtime_root
from kernel_provider.link import Link
from kernel_provider.policy import KernelPolicy
from kernel_provider.recipe import Recipe
from kernel_provider.session import Session
from kernel_provider.warden.order import Order


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(f"/tmp/exu-{secrets.token_hex(3)}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def test_the_first_that_is_set_counts(short: Path) -> None:
    """Our own variable, else the user's runtime folder, else one below /tmp."""
    own = {RUNTIME_VARIABLE: f"{short}/own", "XDG_RUNTIME_DIR": f"{short}/user"}
    assert runtime_root(own) == f"{short}/own"
    assert runtime_root({**own, RUNTIME_VARIABLE: ""}) == f"{short}/user/executor-ml"
    for path in (short / "own", short / "user/executor-ml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert runtime_root(own) == f"{short}/own", "the second time as the first"


def test_without_variables_it_is_below_tmp() -> None:
    """Named after the user, and private."""
    before = Path(f"/tmp/executor-ml-{os.getuid()}").exists()
    root = Path(runtime_root({}))
    assert root == Path(f"/tmp/executor-ml-{os.getuid()}")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    if not before:
        root.rmdir()


def refused(path: Path) -> str:
    """The reason why a folder is refused."""
    with pytest.raises(RuntimeFolderError) as caught:
        runtime_root({RUNTIME_VARIABLE: str(path)})
    assert caught.value.data["path"] == str(path)
    assert RUNTIME_VARIABLE in str(caught.value)
    return str(caught.value.data["reason"])


def test_too_long_a_path_is_told_with_its_excess(short: Path) -> None:
    """At the limit every socket can be bound; one more is an error before any is made."""
    longest = 0
    for length in range(SOCKET_PATH_LIMIT):
        path = short / ("x" * (length + 1))
        try:
            session = Session(environ={RUNTIME_VARIABLE: str(path)}, name="t")
        except RuntimeFolderError as error:
            size = len(str(path))
            told = f"its path has {size} bytes, and {size - 1} are possible"
            assert error.data["reason"] == told  # noqa: PT017
            break
        session.close()
        longest = length
    assert longest > 20
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o770])
def test_a_folder_that_others_may_enter_is_refused(short: Path, mode: int) -> None:
    """It is not mended silently: who opened it had a reason, or was somebody else."""
    path = short / "open"
    path.mkdir()
    path.chmod(mode)
    assert "open to others" in refused(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_symlink_is_refused(short: Path) -> None:
    """Whoever made it decides where it leads."""
    (short / "real").mkdir(mode=0o700)
    (short / "link").symlink_to("real")
    assert refused(short / "link")
    (short / "dangling").symlink_to("nowhere")
    assert refused(short / "dangling")


def test_a_file_is_refused(short: Path) -> None:
    """As is what lies below one."""
    (short / "file").touch(mode=0o600)
    assert refused(short / "file")
    assert refused(short / "file/below") == "Not a directory"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_anothers_folder_is_refused(short: Path) -> None:
    """However private it is."""
    path = short / "foreign"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    assert refused(path) == "it belongs to another user"


def test_outer_sockets_live_and_go_with_the_session(short: Path) -> None:
    """Five names that can be connected to, put back where Jupyter removed them."""
    session = Session(environ={RUNTIME_VARIABLE: str(short)}, name="t")
    names = [Path(f"{session.outer.ip}-{number}") for number in range(1, 6)]
    assert all(stat.S_ISSOCK(name.stat().st_mode) for name in names)
    assert stat.S_IMODE(Path(session.outer.folder).stat().st_mode) == 0o700
    names[2].unlink()
    session.outer.restore_paths()
    session.outer.restore_paths()
    assert stat.S_ISSOCK(names[2].stat().st_mode)
    assert not session.alive
    assert session.death is None
    session.signal(15)
    session.stop()
    session.close()
    session.close()
    assert not list(short.iterdir())


def test_a_session_that_is_forgotten_leaves_nothing(short: Path) -> None:
    """Jupyter drops a kernel whose restart failed without a word to anybody."""
    session = Session(environ={RUNTIME_VARIABLE: f"{short}/own"}, name="t")
    assert Path(session.outer.folder).exists()
    child = os.fork()
    if child == 0:
        del session
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert Path(session.outer.folder).exists()
    folder = Path(session.outer.folder)
    del session
    gc.collect()
    assert not folder.exists()


# --- starts that end before there is a sandbox ------------------------------------------------


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process can open nothing more."""
    least = os.dup(0)
    os.close(least)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lack_of_descriptors_is_not_the_folders(short: Path) -> None:
    """Nothing is wrong with that, so nobody is sent to look there."""
    order = Recipe(policy=KernelPolicy(), address="/none").order(str(short))
    with no_descriptor_left(), pytest.raises(WardenError, match="be started: Too many open files"):
        Link.claim(order, {"op": "claim"}, [])
    assert not list(Path(order.folder).iterdir())


def test_what_is_the_folders_is_told_as_such(short: Path) -> None:
    """Once, by whoever meets it; and nothing is left of the start."""
    session = Session(environ={RUNTIME_VARIABLE: str(short), "DOCKER_HOST": "unix:///x"}, name="t")
    order = Recipe.order

    def taken(recipe: Recipe, root: str, *, parked: bool = False, trace: str = "") -> Order:
        made = order(recipe, root, parked=parked, trace=trace)
        Path(made.folder, "w").touch()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "order", taken)
        with pytest.raises(RuntimeFolderError) as caught:
            session.launch(KernelPolicy(), key="k", env={})
    session.close()
    assert caught.value.data == {"path": str(short), "reason": "Address already in use"}
    assert not list(short.iterdir())


def test_a_package_that_was_replaced_meanwhile(short: Path) -> None:
    """What this process orders, the new warden does not understand, and says so."""
    session = Session(environ={RUNTIME_VARIABLE: str(short), "DOCKER_HOST": "unix:///x"}, name="t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel_provider.recipe.Order", partial(Order, version="0.0.1"))
        session.launch(KernelPolicy(), key="k", env={})
    with pytest.raises(UpgradedError) as caught:
        asyncio.run(session.launched(20))
    session.close()
    assert caught.value.data == {"old": "0.0.1", "new": __version__}
    assert "\nFix: restart it: the Jupyter server" in str(caught.value)
    assert not list(short.iterdir())
