"""What code hears that asks the Hugging Face hub for something: what is here, at once.

There is no network, and the hub's libraries take half a minute to find that out where a
notebook unsets the variables that tell them, and then speak of the internet connection.
So they look into the mounted cache only, and a model that is not mounted is an error that
names those that are. Nothing is imported for that before the notebook imports it.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import re
import sys
from typing import Any

KINDS = ("model", "dataset", "space")
REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


class NotMountedError(FileNotFoundError):
    """A model, or something else of the hub's, that this sandbox was not given."""


def mounted(cache: str) -> list[str]:
    """The ids of the models in a cache."""
    try:
        names = sorted(os.listdir(cache))
    except OSError:
        return []
    return [
        name.removeprefix("models--").replace("--", "/")
        for name in names
        if name.startswith("models--")
    ]


def has(folder: str, revision: str) -> bool:
    """Whether a repository's folder is there, with a revision of that name or commit."""
    wanted = [os.path.join(folder, kind, revision) for kind in ("refs", "snapshots")]
    return os.path.isdir(folder) and any(os.path.exists(path) for path in wanted)


def explanation(kind: str, wanted: str, revision: str, cache: str) -> str:
    """What a person needs to know, and what to type on the host."""
    if kind != "model":
        return (
            f"The {kind} {wanted} is not in this sandbox, and there is no network to get it from. "
            'Give the kernel a folder with it: "mounts" in its kernelspec.'
        )
    there = mounted(cache)
    if wanted in there:
        return (
            f"The model {wanted} is in this sandbox, but not its revision {revision}, and there "
            "is no network to get it from. Leave the revision out."
        )
    return (
        f"The model {wanted} is not in this sandbox, and there is no network to get it from. "
        f"Mounted are: {', '.join(there) or 'none'}. To add it, on the host: "
        f"executor-ml models add {wanted} FOLDER (or --from-cache), then "
        f"executor-ml install --name NAME --model {wanted}, and take that kernel."
    )


def local_only(download: Any, constants: Any) -> Any:
    """One of the hub's download functions, without its attempts to reach the hub."""

    @functools.wraps(download)
    def look(repo_id: Any, *args: Any, **kwargs: Any) -> Any:
        kind = kwargs.get("repo_type") or "model"
        default = getattr(constants, "HF_HUB_CACHE", None) or constants.HUGGINGFACE_HUB_CACHE
        cache = str(kwargs.get("cache_dir") or default)
        if kind in KINDS and isinstance(repo_id, str) and REPOSITORY.fullmatch(repo_id):
            folder = os.path.join(cache, "--".join([f"{kind}s", *repo_id.split("/")]))
            revision = kwargs.get("revision") or ""
            if not kwargs.get("local_dir") and not has(folder, str(revision)):
                raise NotMountedError(explanation(kind, repo_id, str(revision), cache))
        return download(repo_id, *args, **{**kwargs, "local_files_only": True})

    return look


def fix_constants(module: Any) -> None:
    """Offline, whatever the environment says by now."""
    module.HF_HUB_OFFLINE = True
    if hasattr(module, "is_offline_mode"):
        module.is_offline_mode = lambda: True


def fix_file(module: Any) -> None:
    """One file."""
    module.hf_hub_download = local_only(module.hf_hub_download, module.constants)


def fix_snapshot(module: Any) -> None:
    """All files."""
    constants = sys.modules["huggingface_hub.constants"]
    module.snapshot_download = local_only(module.snapshot_download, constants)


FIXES = {
    "huggingface_hub.constants": fix_constants,
    "huggingface_hub.file_download": fix_file,
    "huggingface_hub._snapshot_download": fix_snapshot,
}


class Finder:
    """Finds the modules of ``FIXES`` as Python does, and fixes each when it was run."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> Any:
        """Python's own spec; any other module is none of ours."""
        fix = FIXES.get(name)
        if fix is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                fix(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on; costs nothing until the hub's library is imported."""
    sys.meta_path.insert(0, Finder)
