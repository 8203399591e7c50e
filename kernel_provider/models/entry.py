"""One model of the registry: what it is called, and the digest of each of its files."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

_WORD: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
ID: Final = re.compile(rf"(?:{_WORD}/)?{_WORD}")
REVISION: Final = re.compile(_WORD)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")

LONGEST_ID: Final = 96
LONGEST_REVISION: Final = 64
LONGEST_PATH: Final = 240
MAIN: Final = "main"
SHORT: Final = 7

RESERVED: Final = "hub"
"""A model of this name would be mounted where the hub's cache is."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a model: ``path`` is relative, its parts joined by slashes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model as it was added; ``commit`` is the hub's where it came from its cache.

    ``licence`` is a name or a first line, empty where none was found; ``source`` tells
    people where the model came from; ``added`` is a day. ``memory`` (bytes) and ``cpus``
    are limits that fit it, as far as they are known: from executor-ml profile.
    """

    id: str
    revision: str
    commit: str
    files: tuple[ModelFile, ...]
    source: str
    added: str
    licence: str = ""
    licence_text: str = ""
    parameters: int | None = None
    dtype: str = ""
    memory: int | None = None
    cpus: float | None = None

    @property
    def label(self) -> str:
        """The name that finds exactly this one."""
        return f"{self.id}@{self.revision}"

    @property
    def refs(self) -> frozenset[str]:
        """What code may call the revision: Transformers names some by short commits."""
        return frozenset({MAIN, self.revision, self.commit[:SHORT]})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        """The last part of the id: where code that takes a path finds it."""
        return self.id.rpartition("/")[2]

    @property
    def hub_name(self) -> str:
        """What the Hugging Face cache calls its folder."""
        return hub_name(self.id)

    @property
    def file_name(self) -> str:
        """The entry's own file in the registry."""
        return f"{self.hub_name}@{self.revision}.json"

    @property
    def view(self) -> str:
        """Names the folder that is mounted: another content is another folder."""
        said = [self.id, self.revision, self.commit, [asdict(file) for file in self.files]]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:40]

    def to_json(self) -> str:
        """The text that ``parse_entry`` understands."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def hub_name(model: str) -> str:
    """The folder of a model in a Hugging Face cache."""
    return "--".join(["models", *model.split("/")])


def commit_of(files: tuple[ModelFile, ...]) -> str:
    """A commit for files that have none: forty hexadecimal digits, by the content."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def split_label(label: str) -> tuple[str, str]:
    """Id and revision of ``org/name@rev``; the revision is empty where none is named."""
    model, _, revision = label.partition("@")
    return model, revision


def check_id(model: str) -> str:
    """Give back an id that the hub's libraries take; raises ValueError for others."""
    if not ID.fullmatch(model) or len(model) > LONGEST_ID or "--" in model or ".." in model:
        msg = 'an id is a name or "organisation/name", of letters, digits, ".", "_" and "-"'
        raise ValueError(msg)
    if model.rpartition("/")[2] == RESERVED:
        msg = f"a model cannot be called {RESERVED!r}: /models/{RESERVED} is the cache's"
        raise ValueError(msg)
    return model


def check_revision(revision: str) -> str:
    """Give back a revision that can be a file's name; raises ValueError for others."""
    if not REVISION.fullmatch(revision) or len(revision) > LONGEST_REVISION:
        msg = 'a revision is a word of letters, digits, ".", "_" and "-"'
        raise ValueError(msg)
    return revision


def check_path(path: str) -> str:
    """Give back a path that stays below its folder; raises ValueError for others."""
    parts = path.split("/")
    plain = path.isprintable() and "\\" not in path and len(path) <= LONGEST_PATH
    if not plain or any(part in {"", ".", ".."} for part in parts):
        msg = f"{path!r} is no path of a model's file"
        raise ValueError(msg)
    return path


def parse_entry(text: str) -> Entry:
    """An entry from its file, from whoever wrote it; raises ValueError."""
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    known = {field.name for field in fields(Entry)}
    if not isinstance(data, dict) or not set(data) <= known:
        msg = "it is no entry of a model"
        raise ValueError(msg)
    try:
        files = tuple(_parse_file(file) for file in data.pop("files"))
        entry = Entry(files=files, **data)
    except (TypeError, KeyError) as error:
        msg = f"it is no entry of a model ({error})"
        raise ValueError(msg) from error
    texts = (entry.source, entry.added, entry.licence, entry.licence_text, entry.dtype)
    parameters = entry.parameters
    if (
        not all(isinstance(text, str) for text in (*texts, entry.id, entry.revision, entry.commit))
        or not (parameters is None or type(parameters) is int)
        or not _are_limits(entry.memory, entry.cpus)
        or not COMMIT.fullmatch(entry.commit)
        or not files
        or not _is_a_tree([file.path for file in files])
    ):
        msg = "it is no entry of a model"
        raise ValueError(msg)
    check_id(entry.id)
    check_revision(entry.revision)
    return entry


def _are_limits(memory: object, cpus: object) -> bool:
    """Whether both are numbers above nothing, or both not known."""
    if memory is None or cpus is None:
        return memory is cpus
    return type(memory) is int and type(cpus) in {int, float} and memory > 0 and 0 < cpus < math.inf  # type: ignore[operator]


def _parse_file(data: Mapping[str, Any]) -> ModelFile:
    if not all(isinstance(data[key], str) for key in ("path", "sha256")):
        msg = "a file has no path or no digest"
        raise ValueError(msg)
    file = ModelFile(**data)
    if not DIGEST.fullmatch(file.sha256):
        msg = f"the digest of {file.path!r} is {file.sha256!r}"
        raise ValueError(msg)
    if type(file.size) is not int or file.size < 0:
        msg = f"the size of {file.path!r} is {file.size!r}"
        raise ValueError(msg)
    check_path(file.path)
    return file


def _is_a_tree(paths: list[str]) -> bool:
    """No path twice, and none that is a folder of another one."""
    folders = {path[:at] for path in paths for at, sign in enumerate(path) if sign == "/"}
    return len(set(paths)) == len(paths) and not folders & set(paths)
