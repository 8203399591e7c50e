"""The registry's folder: each content once, each model a read-only folder of links to it.

``blobs/`` holds files by their digest, ``entries/`` one JSON file for each model, and
``views/`` what is mounted: a folder in the layout of the Hugging Face cache, whose files
are hard links to blobs. All of it is 0444 in 0555, so that a sandbox's uid can read it.
Every file carries the same time, ``STAMP``: one that differs was touched since, and is
read again before a kernel sees it. Whoever changes the registry holds its lock; what is
under way lives in a folder that the next one removes.
"""

import fcntl
import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kernel_provider.models.entry import MAIN, Entry, ModelFile, hub_name, parse_entry, split_label
from kernel_provider.models.errors import ModelAlteredError, RegistryError, UnknownModelError

VARIABLE: Final = "EXECUTOR_ML_MODELS"
STAMP: Final = 946_684_800
"""Seconds: 2000-01-01, the time of every file."""

CHUNK: Final = 4 << 20
STAGING: Final = ".adding-"

Progress = Callable[[int], object]
"""Called with each number of bytes that were copied or read."""


def place(environ: Mapping[str, str]) -> str:
    """Where this user's registry is, by the XDG rules; it need not be there yet."""
    if environ.get(VARIABLE):
        return os.path.realpath(environ[VARIABLE])
    base = environ.get("XDG_DATA_HOME") or f"{environ.get('HOME') or Path.home()}/.local/share"
    return os.path.realpath(f"{base}/executor-ml/models")


def digest_of(path: Path, progress: Progress = lambda _count: None) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def seal(path: Path) -> None:
    """Make a file what every file here is: 0444, at ``STAMP``."""
    path.chmod(0o444)
    os.utime(path, (STAMP, STAMP))


class Registry:
    """The models below ``root``; reading takes no lock, since entries appear whole."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.blobs = self.root / "blobs"
        self.entries = self.root / "entries"
        self.views = self.root / "views"

    # --- reading ----------------------------------------------------------------------

    def list(self) -> tuple[Entry, ...]:
        """Every model, by id and revision. Raises RegistryError."""
        return self._all("models--*.json")

    def _all(self, pattern: str) -> tuple[Entry, ...]:
        with self._telling():
            found = self.entries.glob(pattern) if self.root.is_dir() else ()
            entries = [self._read(path) for path in found]
        return tuple(sorted(entries, key=lambda entry: (entry.id, entry.revision)))

    def _read(self, path: Path) -> Entry:
        try:
            entry = parse_entry(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RegistryError(root=str(self.root), reason=f"{path}: {error}") from error
        if entry.file_name != path.name:
            reason = f"{path} describes {entry.label}"
            raise RegistryError(root=str(self.root), reason=reason)
        return entry

    def find(self, label: str, *, source: str = "models") -> Entry:
        """The model that ``id`` or ``id@revision`` names; ``source`` is who asked.

        Without a revision it is the only one, or ``main``. Raises UnknownModelError
        with the nearest name, and RegistryError.
        """
        model, revision = split_label(label)
        same = self._all(f"{glob.escape(hub_name(model))}@*.json")
        fitting = [e for e in same if e.id == model and revision in {"", e.revision}]
        if len(fitting) > 1:
            fitting = [entry for entry in fitting if entry.revision == MAIN]
        if fitting:
            return fitting[0]
        raise self._unknown(label, self.list(), source)

    def _unknown(self, label: str, there: Sequence[Entry], source: str) -> UnknownModelError:
        import difflib  # noqa: PLC0415  on the path of no start that succeeds

        labels = {entry.name: entry.label for entry in there}
        labels |= {entry.id: entry.label for entry in there}
        near = difflib.get_close_matches(split_label(label)[0], labels, n=1)
        return UnknownModelError(
            source=source,
            model=label,
            root=str(self.root),
            suggestion=f"; did you mean {labels[near[0]]!r}?" if near else "",
            known=", ".join(entry.label for entry in there) or "none yet",
        )

    def snapshot(self, entry: Entry) -> Path:
        """The folder with the model's files; its grandparent is the hub's folder."""
        return self.views / entry.view / "snapshots" / entry.commit

    def check(
        self, entry: Entry, *, thorough: bool, progress: Progress = lambda _count: None
    ) -> None:
        """See that a model is what was added, and nothing else is with it.

        Unless ``thorough``, only files whose size or time changed are read. Raises
        ModelAlteredError, which names the file.
        """
        view = self.views / entry.view
        snapshot = self.snapshot(entry)
        expected = {str(snapshot / file.path): file for file in entry.files}
        refs = {str(view / "refs" / ref) for ref in entry.refs}
        found = set(_walk(view))
        for path in sorted(found - expected.keys() - refs):
            raise ModelAlteredError(model=entry.label, file=str(path), reason="was not part of it")
        for path in sorted(expected.keys() | refs):
            if path not in found:
                raise ModelAlteredError(model=entry.label, file=str(path), reason="is missing")
        for path in refs:
            if Path(path).read_text(encoding="utf-8", errors="replace") != entry.commit:
                raise ModelAlteredError(model=entry.label, file=str(path), reason="was changed")
        for path, file in expected.items():
            self._check_file(entry, Path(path), file, progress=progress if thorough else None)

    def _check_file(
        self, entry: Entry, path: Path, file: ModelFile, *, progress: Progress | None
    ) -> None:
        try:
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode):
                reason = "is not a plain file any more"
            elif facts.st_size != file.size:
                reason = f"has {facts.st_size} bytes instead of {file.size}"
            elif progress is None and facts.st_mtime == STAMP:
                return
            elif digest_of(path, progress or (lambda _count: None)) != file.sha256:
                reason = f"has another content (its sha256 was {file.sha256})"
            else:
                with suppress(OSError):  # another user's registry: it is read again next time
                    seal(path)
                return
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        raise ModelAlteredError(model=entry.label, file=str(path), reason=reason)

    # --- writing ----------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[Path]:
        """A folder to prepare a change in, under the lock; gone afterwards in any case.

        Waits for others that change the registry. Raises RegistryError for what goes
        wrong with its files, in the body too.
        """
        with self._telling():
            for folder in (self.root, self.blobs, self.entries, self.views):
                folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self.root.glob(f"{STAGING}*"):
                    remove_tree(left)
                work = Path(tempfile.mkdtemp(prefix=STAGING, dir=self.root))
                try:
                    yield work
                finally:
                    remove_tree(work)
                    self._collect()
            finally:
                os.close(lock)

    def publish(self, work: Path, entry: Entry, staged: Mapping[str, Path]) -> None:
        """Put a model in place, whole or not at all; replaces one of the same label.

        Called with the lock held. ``staged`` has, by digest, the sealed files of
        ``work`` that may be new; they are moved.
        """
        for file in entry.files:
            blob = self.blobs / file.sha256
            if file.sha256 in staged and not (blob.exists() and digest_of(blob) == file.sha256):
                staged[file.sha256].rename(blob)
        if not self._is_sound(entry):
            remove_tree(self.views / entry.view)
            self._build(work / entry.view, entry)
        text = work / "entry.json"
        text.write_text(entry.to_json(), encoding="utf-8")
        seal(text)
        text.rename(self.entries / entry.file_name)

    def amend(self, entry: Entry) -> None:
        """Write an entry anew that differs from the one there in what is told of it only."""
        with self.changing() as work:
            self.publish(work, entry, {})

    def _is_sound(self, entry: Entry) -> bool:
        """Whether its folder is there and whole; it may be in use then, and stays."""
        try:
            self.check(entry, thorough=True)
        except ModelAlteredError:
            return False
        return True

    def _build(self, view: Path, entry: Entry) -> None:
        """Make the folder that is mounted in ``view``, and move it to its place."""
        snapshot = view / "snapshots" / entry.commit
        for file in entry.files:
            path = snapshot / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.blobs / file.sha256, path)
        (view / "refs").mkdir()
        for ref in entry.refs:
            path = view / "refs" / ref
            path.write_text(entry.commit, encoding="utf-8")
            seal(path)
        for folder in [path for path in view.rglob("*") if path.is_dir()]:
            folder.chmod(0o555)
        place = self.views / entry.view
        view.rename(place)
        place.chmod(0o555)  # not before: moving a folder writes into it

    def forget(self, entry: Entry) -> None:
        """Remove a model; kernels that have it open keep what they have open."""
        with self.changing():
            (self.entries / entry.file_name).unlink(missing_ok=True)

    def _collect(self) -> None:
        """Remove views and blobs that no entry names."""
        entries = self.list()
        views = {entry.view for entry in entries}
        blobs = {file.sha256 for entry in entries for file in entry.files}
        for view in self.views.iterdir():
            if view.name not in views:
                remove_tree(view)
        for blob in self.blobs.iterdir():
            if blob.name not in blobs:
                blob.unlink()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            reason = f"{error.strerror or error}{where}"
            raise RegistryError(root=str(self.root), reason=reason) from error


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, though its folders may not be written."""
    with suppress(FileNotFoundError):
        path.chmod(0o700)
        for folder in path.rglob("*"):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        shutil.rmtree(path)


def _walk(folder: Path) -> Sequence[str]:
    """Everything below a folder that is no folder itself; a link is not followed."""
    found = []
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        found += [f"{where}/{name}" for name in (*files, *links)]
    return found
