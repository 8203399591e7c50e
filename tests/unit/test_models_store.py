"""The registry: what is added is kept once, whole, unchanged, and found again."""

import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import folder

from kernel_provider.models.add import Request, add, take
from kernel_provider.models.entry import Entry, parse_entry
from kernel_provider.models.errors import (
    ModelAlteredError,
    ModelRefusedError,
    RegistryError,
    UnknownModelError,
)
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import STAMP, Registry, digest_of, place
from kernel_provider.steps import Note


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry(tmp_path / "registry")


def put(registry: Registry, path: Path, model: str = "org/tiny", **more: object) -> Entry:
    """Add a folder."""
    request = Request(model=model, **more)  # type: ignore[arg-type]
    return add(registry, request, from_path(model, path), Note())


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, inode and links of everything but the lock."""
    found = {}
    for path in root.rglob("*"):
        facts = path.lstat()
        found[str(path.relative_to(root))] = (facts.st_mode, facts.st_ino, facts.st_nlink)
    found.pop(".lock", None)
    return found


def altered(registry: Registry, entry: Entry, *, thorough: bool = False) -> str:
    """What is wrong with a model, in words; empty if nothing is."""
    try:
        registry.check(entry, thorough=thorough)
    except ModelAlteredError as error:
        return str(error)
    return ""


def test_a_folder_becomes_a_cache_of_the_hub(registry: Registry, tmp_path: Path) -> None:
    """In its layout, with what is known of it, and nobody may write."""
    entry = put(registry, folder(tmp_path / "m"), revision="v1")
    assert (entry.parameters, entry.dtype, entry.licence) == (16, "F32", "apache-2.0")
    assert "Do as you like" in entry.licence_text
    assert entry.size == sum(p.stat().st_size for p in (tmp_path / "m").rglob("*") if p.is_file())
    snapshot = registry.snapshot(entry)
    assert (snapshot / "1_Pooling/config.json").read_bytes() == b"{}"
    refs = snapshot.parent.parent / "refs"
    assert {ref.name: ref.read_text() for ref in refs.iterdir()} == {
        "main": snapshot.name,
        "v1": snapshot.name,
        snapshot.name[:7]: snapshot.name,
    }
    for path in [snapshot.parent.parent, *snapshot.parent.parent.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)
    assert registry.list() == (entry,)
    assert altered(registry, entry, thorough=True) == ""


def test_equal_files_are_stored_once(registry: Registry, tmp_path: Path) -> None:
    """Also those of different models; the name of a file says what is in it."""
    one = put(registry, folder(tmp_path / "m"), "one")
    two = put(registry, folder(tmp_path / "n", fill=" "), "two")
    weights = [registry.snapshot(entry) / "model.safetensors" for entry in (one, two)]
    assert weights[0].samefile(weights[1])
    digests = {file.sha256 for entry in (one, two) for file in entry.files}
    assert {path.name for path in registry.blobs.iterdir()} == digests
    assert one.commit != two.commit


def test_the_same_content_is_the_same_commit(registry: Registry, tmp_path: Path) -> None:
    """Whenever and wherever it was added."""
    one = put(registry, folder(tmp_path / "m"), "one")
    again = put(Registry(tmp_path / "other"), folder(tmp_path / "n"), "one")
    assert (one.commit, one.view) == (again.commit, again.view)


def test_a_revision_is_found_by_name(registry: Registry, tmp_path: Path) -> None:
    """The plain id means the only one, or main."""
    path = folder(tmp_path / "m")
    old = put(registry, path, revision="v1")
    assert registry.find("org/tiny") == old
    assert registry.find("org/tiny@v1") == old
    main = put(registry, folder(tmp_path / "n", fill=" "))
    assert registry.find("org/tiny") == main
    with pytest.raises(UnknownModelError, match="one that is there: org/tiny@main, org/tiny@v1"):
        registry.find("org/tiny@v2")


def test_an_unknown_model_is_told_with_the_nearest(registry: Registry, tmp_path: Path) -> None:
    """Also where only the organisation was left out; and how to add one."""
    put(registry, folder(tmp_path / "m"), "org/distilgpt2")
    for wrong in ("org/distilgpt", "distilgtp2", "distilgpt2"):
        with pytest.raises(UnknownModelError) as caught:
            registry.find(wrong, source="kernelspec x")
        text = str(caught.value)
        assert text.startswith(f"kernelspec x: there is no model {wrong!r} in ")
        assert "did you mean 'org/distilgpt2@main'?" in text
        assert f"Fix: add it: executor-ml models add {wrong} FOLDER" in text


def test_a_registry_that_was_never_made_is_empty(registry: Registry) -> None:
    """Looking makes no folder."""
    assert registry.list() == ()
    with pytest.raises(UnknownModelError, match="that is there: none yet"):
        registry.find("x")
    assert not registry.root.exists()


def test_what_is_there_is_not_replaced_unasked(registry: Registry, tmp_path: Path) -> None:
    """And when asked, nothing of the old one stays."""
    old = put(registry, folder(tmp_path / "m"))
    other = folder(tmp_path / "n", fill=" ")
    with pytest.raises(ModelRefusedError, match="is there already") as caught:
        put(registry, other)
    assert "--replace" in str(caught.value)
    new = put(registry, other, replace=True)
    assert registry.list() == (new,)
    assert [path.name for path in registry.views.iterdir()] == [new.view]
    gone = {f.sha256 for f in old.files} - {f.sha256 for f in new.files}
    assert gone
    assert not gone & {path.name for path in registry.blobs.iterdir()}


def test_adding_the_same_again_leaves_what_kernels_have_mounted(
    registry: Registry, tmp_path: Path
) -> None:
    """A folder that is in use is not taken away and made anew."""
    entry = put(registry, folder(tmp_path / "m"))
    before = registry.snapshot(entry).stat().st_ino
    put(registry, tmp_path / "m", replace=True)
    assert registry.snapshot(entry).stat().st_ino == before


def test_limits_are_kept_with_a_model(registry: Registry, tmp_path: Path) -> None:
    """What kernels have mounted stays as it is."""
    entry = put(registry, folder(tmp_path / "m"))
    before = tree(registry.views)
    registry.amend(replace(entry, memory=640 << 20, cpus=0.5))
    assert (registry.find("org/tiny").memory, registry.find("org/tiny").cpus) == (640 << 20, 0.5)
    assert tree(registry.views) == before
    assert altered(registry, registry.find("org/tiny"), thorough=True) == ""


def test_removing_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    """Not of what only this model had; the others keep theirs."""
    one = put(registry, folder(tmp_path / "m"), "one")
    two = put(registry, folder(tmp_path / "n", fill=" "), "two")
    registry.forget(one)
    assert registry.list() == (two,)
    assert altered(registry, two, thorough=True) == ""
    registry.forget(two)
    kept = {path.name for path in registry.root.rglob("*")}
    assert kept == {".lock", "blobs", "entries", "views"}


class Breaking:
    """Makes the n-th change of a file system by ``Path`` go wrong."""

    CHANGES = ("rename", "chmod", "mkdir", "write_text", "unlink")

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error = error
        self.at = self.seen = 0
        for name in self.CHANGES:
            patch.setattr(Path, name, self._counted(getattr(Path, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Path, *args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            if self.seen == self.at:
                raise self.error
            return real(path, *args, **kwargs)

        return change

    def break_at(self, number: int) -> None:
        """Count anew; 0 breaks nothing."""
        self.at, self.seen = number, 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_add_leaves_nothing_half(
    error: BaseException, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Ctrl-C nor a full disk, wherever it strikes: the next change sees to it."""
    put(registry, folder(tmp_path / "m"), "first")
    before = tree(registry.root)
    other = folder(tmp_path / "n", fill=" ")
    breaking = Breaking(monkeypatch, error)
    for number in range(1, 1000):
        breaking.break_at(number)
        try:
            put(registry, other, "second")
        except (KeyboardInterrupt, RegistryError):
            breaking.break_at(0)
        else:
            breaking.break_at(0)
            break
        with registry.changing():
            pass
        if len(registry.list()) > 1:  # it was already in place
            second = registry.find("second")
            assert altered(registry, second, thorough=True) == ""
            registry.forget(second)
        assert tree(registry.root) == before
    assert number > 30
    assert altered(registry, registry.find("second"), thorough=True) == ""


def test_changes_wait_for_each_other(registry: Registry) -> None:
    """Two people, or two notebooks, may add models at once."""
    entered = threading.Event()

    def change() -> None:
        with registry.changing():
            entered.set()

    other = threading.Thread(target=change)
    with registry.changing() as work:
        other.start()
        assert not entered.wait(0.2)
        assert work.is_dir()
    assert entered.wait(10)
    other.join(10)


def test_what_a_killed_process_left_is_removed(registry: Registry, tmp_path: Path) -> None:
    """By whoever changes the registry next."""
    put(registry, folder(tmp_path / "m"))
    before = tree(registry.root)
    left = registry.root / ".adding-x/view"
    left.mkdir(parents=True)
    (registry.blobs / ("0" * 64)).write_bytes(b"")
    left.chmod(0o555)
    with registry.changing():
        assert not left.exists()
    assert tree(registry.root) == before


class TestChecks:
    """What was done to a model's files, as a launch or ``verify`` sees it."""

    @pytest.fixture
    def entry(self, registry: Registry, tmp_path: Path) -> Entry:
        """A model in the registry."""
        return put(registry, folder(tmp_path / "m"))

    @pytest.fixture
    def weights(self, registry: Registry, entry: Entry) -> Path:
        """One of its files."""
        return registry.snapshot(entry) / "model.safetensors"

    def test_another_size_is_seen(self, registry: Registry, entry: Entry, weights: Path) -> None:
        """At once, by name and numbers."""
        size = weights.stat().st_size
        os.truncate(weights, 10)
        told = altered(registry, entry)
        assert told.startswith("the model org/tiny@main is not what was added: ")
        assert f"{weights} has 10 bytes instead of {size}\nFix: add it again: " in told

    def test_another_content_is_seen(self, registry: Registry, entry: Entry, weights: Path) -> None:
        """By the time of the change alone; then the content is read."""
        weights.chmod(0o644)
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        assert f"{weights} has another content" in altered(registry, entry)

    def test_a_hidden_change_is_seen_by_verify(
        self, registry: Registry, entry: Entry, weights: Path
    ) -> None:
        """A disk that forgets changes no times; every file is read then."""
        facts = weights.stat()
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert altered(registry, entry) == ""
        assert f"{weights} has another content" in altered(registry, entry, thorough=True)

    def test_a_copied_registry_is_read_once(
        self, registry: Registry, entry: Entry, weights: Path
    ) -> None:
        """New times and the old content are fine, and the next launch is quick again."""
        weights.touch()
        weights.chmod(0o644)
        assert altered(registry, entry) == ""
        assert weights.stat().st_mtime == STAMP
        assert stat.S_IMODE(weights.stat().st_mode) == 0o444

    def test_other_kinds_of_file_are_seen(
        self, registry: Registry, entry: Entry, weights: Path
    ) -> None:
        """A link would lead out of the folder, a pipe would never end."""
        weights.parent.chmod(0o755)
        weights.unlink()
        assert f"{weights} is missing" in altered(registry, entry)
        weights.symlink_to("/etc/hostname")
        assert f"{weights} is not a plain file" in altered(registry, entry)
        weights.unlink()
        os.mkfifo(weights)
        assert f"{weights} is not a plain file" in altered(registry, entry)

    def test_what_was_put_there_is_seen(
        self, registry: Registry, entry: Entry, weights: Path
    ) -> None:
        """A file, a link to a folder, another commit."""
        weights.parent.chmod(0o755)
        link = weights.parent / "etc"
        link.symlink_to("/etc")
        assert f"{link} was not part of it" in altered(registry, entry)
        link.unlink()
        ref = weights.parent.parent.parent / "refs/main"
        ref.chmod(0o644)
        ref.write_text("0" * 40)
        assert f"{ref} was changed" in altered(registry, entry)

    def test_adding_again_mends_it(
        self, registry: Registry, entry: Entry, weights: Path, tmp_path: Path
    ) -> None:
        """As the error says."""
        weights.chmod(0o644)
        weights.write_bytes(b"spoilt")
        assert put(registry, tmp_path / "m", replace=True) == entry
        assert altered(registry, entry, thorough=True) == ""


def test_files_are_shared_where_that_is_wanted(registry: Registry, tmp_path: Path) -> None:
    """Hard links need no room; elsewhere the original stays as it is."""
    path = folder(tmp_path / "m")
    put(registry, path)
    assert (path / "config.json").stat().st_nlink == 1
    assert os.access(path / "config.json", os.W_OK)
    shared = put(registry, folder(tmp_path / "n", fill=" "), share=True, replace=True)
    assert (tmp_path / "n/config.json").samefile(registry.snapshot(shared) / "config.json")


def test_another_file_system_is_copied_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is a file that may not be linked."""

    def refuse(*_args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    path = folder(tmp_path / "m")
    target = tmp_path / "copy"
    digest = take(path / "LICENSE", target, share=True, progress=lambda _count: None)
    assert digest_of(target) == digest == digest_of(path / "LICENSE")
    assert stat.S_IMODE(target.stat().st_mode) == 0o444


def test_where_it_is(tmp_path: Path) -> None:
    """A variable of ours, else the user's data folder."""
    base = os.path.realpath(tmp_path)
    assert place({"EXECUTOR_ML_MODELS": f"{base}/x", "XDG_DATA_HOME": "/y"}) == f"{base}/x"
    assert place({"XDG_DATA_HOME": base}) == f"{base}/executor-ml/models"
    assert place({"HOME": base}) == f"{base}/.local/share/executor-ml/models"


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With the reason and the variable that names another."""
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError) as caught:
        put(Registry(tmp_path / "file/registry"), folder(tmp_path / "m"))
    assert "cannot be used: Not a directory" in str(caught.value)
    assert "EXECUTOR_ML_MODELS" in str(caught.value)


def test_a_broken_entry_is_told(registry: Registry, tmp_path: Path) -> None:
    """By its file."""
    entry = put(registry, folder(tmp_path / "m"))
    path = registry.entries / entry.file_name
    path.chmod(0o644)
    path.write_text("{")
    with pytest.raises(RegistryError, match=path.name):
        registry.list()
    path.write_text(entry.to_json().replace("org/tiny", "org/other"))
    with pytest.raises(RegistryError, match="describes org/other@main"):
        registry.list()


def test_broken_weights_are_not_added(registry: Registry, tmp_path: Path) -> None:
    """And said to be that."""
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 10)
    with pytest.raises(ModelRefusedError, match=r"model\.safetensors is no safetensors file"):
        put(registry, path)
    assert registry.list() == ()


@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("../x", "main"),
        ("a/b/c", "main"),
        ("", "main"),
        ("a--b", "main"),
        ("a/..", "main"),
        (".x", "main"),
        ("x" * 97, "main"),
        ("a b", "main"),
        ("hub", "main"),
        ("org/hub", "main"),
        ("a\n", "main"),
        ("x", "../y"),
        ("x", ""),
        ("x", "a/b"),
        ("x", "main\n"),
    ],
)
def test_only_names_that_the_hub_knows(
    model: str, revision: str, registry: Registry, tmp_path: Path
) -> None:
    """They become names of files, and the hub's library refuses others."""
    with pytest.raises(ModelRefusedError):
        put(registry, folder(tmp_path / "m"), model, revision=revision)
    assert not registry.root.exists()


def test_an_entry_is_read_as_strictly_as_it_is_written(registry: Registry, tmp_path: Path) -> None:
    """It may come from an archive of anybody's."""
    entry = put(registry, folder(tmp_path / "m"))
    good = json.loads(entry.to_json())
    assert parse_entry(json.dumps(good)) == entry
    file = good["files"][0]
    bads: tuple[object, ...] = (
        [],
        {},
        {**good, "more": 1},
        {**good, "id": "../x"},
        {**good, "id": 7},
        {**good, "revision": "a/b"},
        {**good, "commit": "main"},
        {**good, "licence": None},
        {**good, "parameters": "1"},
        {**good, "memory": 1, "cpus": None},
        *({**good, "memory": memory, "cpus": 1} for memory in (0, -1, 1.5, "1g", True)),
        *({**good, "memory": 1, "cpus": cpus} for cpus in (0, -1, float("inf"), "1", True)),
        {**good, "memory": 1, "cpus": float("nan")},
        {**good, "files": []},
        {**good, "files": [file, file]},
        {**good, "files": [file, {**file, "path": f"{file['path']}/below"}]},
        *({**good, "files": [{**file, "path": p}]} for p in ("", "/x", "a/../b", "a//b", "a\\b")),
        *({**good, "files": [{**file, "path": p}]} for p in ("a\n", "x" * 241, 3, None)),
        {**good, "files": [{**file, "sha256": "x"}]},
        *({**good, "files": [{**file, "size": size}]} for size in (-1, 1.0, True, "1")),
        {**good, "files": [{"path": "x"}]},
    )
    for bad in bads:
        with pytest.raises(ValueError, match=r"."):
            parse_entry(json.dumps(bad))
    with pytest.raises(ValueError, match=r"."):
        parse_entry("[" * 100_000)
