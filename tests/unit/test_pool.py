"""How many are parked, and how they are taken."""

import os
import threading
from pathlib import Path

import pytest

from kernel_provider.errors import ConfigError
from kernel_provider.pool.keeper import CEILING_VARIABLE, memory_ceiling
from kernel_provider.pool.plan import Want, plan
from kernel_provider.warden import shelf
from kernel_provider.warden.shelf import Entry

GIB = 1 << 30


def want(digest: str, count: int = 1, memory: int = GIB) -> Want:
    """Something to park."""
    return Want(digest=digest, count=count, memory=memory)


@pytest.mark.parametrize(
    ("wants", "parked", "held", "ceiling", "expected"),
    [
        ([], {}, 0, GIB, ()),
        ([want("a")], {}, 0, GIB, ("a",)),
        ([want("a")], {"a": 1}, GIB, 4 * GIB, ()),
        ([want("a", 0)], {}, 0, 4 * GIB, ()),
        ([want("a", 2)], {"a": 1}, GIB, 4 * GIB, ("a",)),
        ([want("a")], {}, 0, GIB - 1, ()),
        ([want("a", 3)], {}, 0, 2 * GIB, ("a", "a")),
        ([want("a", 2), want("b", 2)], {}, 0, 3 * GIB, ("a", "b", "a")),
        ([want("a", 2), want("b")], {"a": 1}, GIB, 2 * GIB, ("b",)),
        ([want("a", memory=3 * GIB), want("b")], {}, 0, 2 * GIB, ("b",)),
        ([want("a")], {"other": 2}, 2 * GIB, 2 * GIB, ()),
        ([want("a")], {"a": 5}, 5 * GIB, 9 * GIB, ()),
    ],
)
def test_plan(
    wants: list[Want], parked: dict[str, int], held: int, ceiling: int, expected: tuple[str, ...]
) -> None:
    """First ones before second ones, recent before old, never above the ceiling."""
    assert plan(wants, parked=parked, held=held, ceiling=ceiling) == expected


def lay(root: Path, name: str, digest: str = "d1", since: float = 0.0) -> Entry:
    """A parked sandbox's entry, with its warden's folder."""
    folder = root / name
    folder.mkdir()
    entry = Entry(
        folder=str(folder),
        digest=digest,
        kernel="executor-ml",
        container="c",
        pid=1,
        memory=GIB,
        since=since,
        until=since + 60,
        keeper=0,
    )
    shelf.put(entry)
    return entry


def test_one_is_taken_once(tmp_path: Path) -> None:
    """By digest; the taken one is no longer seen by anybody."""
    entry = lay(tmp_path, "w-1-2-a")
    lay(tmp_path, "w-1-2-b", digest="d2")
    assert shelf.entries(str(tmp_path))[0] == entry
    assert shelf.take(str(tmp_path), "d3") is None
    assert shelf.take(str(tmp_path), "d1") == entry.folder
    assert shelf.take(str(tmp_path), "d1") is None
    assert [e.digest for e in shelf.entries(str(tmp_path))] == ["d2"]


def test_many_takers_get_each_once(tmp_path: Path) -> None:
    """Threads that race for fewer than they are: no two get the same, none is left."""
    laid = {lay(tmp_path, f"w-1-2-{n}").folder for n in range(20)}
    taken: list[str | None] = []
    gate = threading.Barrier(8)

    def racer() -> None:
        gate.wait()
        taken.extend(shelf.take(str(tmp_path), "d1") for _ in range(5))

    threads = [threading.Thread(target=racer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = [folder for folder in taken if folder]
    assert len(got) == 20
    assert set(got) == laid


def test_withdrawn_and_swept(tmp_path: Path) -> None:
    """A warden takes its own entry back; one whose folder is gone goes with the sweep."""
    mine, dead = lay(tmp_path, "w-1-2-a"), lay(tmp_path, "w-1-2-b", since=1.0)
    assert shelf.withdraw(mine.folder, mine.digest)
    assert not shelf.withdraw(mine.folder, mine.digest)
    Path(dead.folder).rmdir()
    assert len(shelf.entries(str(tmp_path))) == 1
    shelf.sweep(str(tmp_path))
    assert not list(tmp_path.glob("p.*"))


def test_rubbish_is_no_entry(tmp_path: Path) -> None:
    """Files that are not ours to read are passed over, and a missing folder is empty."""
    (tmp_path / "p.d1.w-1").write_text("{")
    (tmp_path / "p.d1.w-2").write_text('{"folder": 1}')
    assert shelf.entries(str(tmp_path)) == ()
    assert shelf.take(str(tmp_path / "no"), "d1") is None


def test_how_much_may_be_parked_in_all() -> None:
    """A quarter of the machine's memory, or what is told; nonsense is an error, not infinity."""
    assert GIB // 8 < memory_ceiling({}) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_ceiling({CEILING_VARIABLE: "2 GiB"}) == 2 * GIB
    assert memory_ceiling({CEILING_VARIABLE: "0"}) == 0
    with pytest.raises(ConfigError, match="EXECUTOR_ML_MAX_POOL_MEMORY"):
        memory_ceiling({CEILING_VARIABLE: "much"})
