"""Variants: what they are called, and the kernelspecs that come along for them.

A variant is given by its name, or as a person's own file of requirements, ``NAME.in``.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

DEFAULT: Final = "ml"
ENDING: Final = ".in"
"""Of files with requirements, as pip-tools has it."""

USUAL: Final = "executor-ml"
"""Image and kernelspec without a variant in their names."""

_PACKAGE: Final = Path(__file__).resolve().parent
_PLACES: Final = (_PACKAGE / "_data" / "kernelspecs", _PACKAGE.parent / "kernelspecs")
_IMAGE: Final = re.compile(rf"{USUAL}-([a-z0-9._-]+?)(?::latest)?")


def is_file(given: str) -> bool:
    """Whether a variant is given as a file."""
    return "/" in given or given.endswith(ENDING)


def name_of(given: str) -> str:
    """A variant's name, however it is given."""
    return given.rpartition("/")[2].removesuffix(ENDING) if is_file(given) else given


def kernelspec_of(name: str) -> str:
    """What the kernelspec of a variant is called, and its image without a tag."""
    return USUAL if name == DEFAULT else f"{USUAL}-{name}"


def image_of(name: str) -> str:
    """What the image of a variant is called."""
    return f"{kernelspec_of(name)}:latest"


def of_image(image: str) -> str:
    """Which variant an image's name stands for; empty for the usual one and for others."""
    match = _IMAGE.fullmatch(image)
    return match[1] if match else ""


# --- kernelspecs that came with the package -------------------------------------------------


def shipped(places: Iterable[Path] = _PLACES) -> list[str]:
    """Names of the variants that have one, without the usual one."""
    found = {path.parent.name for place in places for path in place.glob("*/kernel.json")}
    return sorted(name.removeprefix(f"{USUAL}-") for name in found - {USUAL})


def folder_of(name: str, places: Iterable[Path] = _PLACES) -> Path | None:
    """Where the kernelspec of a variant is; None for a variant without."""
    spec = kernelspec_of(name)
    return next((place / spec for place in places if (place / spec / "kernel.json").exists()), None)


def config_of(folder: Path) -> dict[str, Any]:
    """The settings in a folder's kernelspec."""
    spec = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = spec["metadata"]["kernel_provisioner"]["config"]
    return config


def logos(name: str) -> tuple[Path, ...]:
    """The logos of a variant, or the usual ones if it has none."""
    folder = folder_of(name) or folder_of(DEFAULT)
    return tuple(sorted(folder.glob("logo-*"))) if folder else ()
