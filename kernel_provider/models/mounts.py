"""From the models that a kernelspec names to the folders that its sandbox sees."""

import os
from collections.abc import Sequence
from typing import Final

from kernel_provider.errors import ConfigError
from kernel_provider.models.store import Registry

MODELS: Final = "/models"
HUB: Final = f"{MODELS}/hub"
"""The cache of Hugging Face's libraries in a sandbox; the image has it, empty."""


def model_mounts(wanted: Sequence[str], *, root: str, source: str) -> dict[str, str]:
    """Folders of the registry by where they go: each model's, and nothing beside it.

    A model is there twice: in the hub's cache, where its plain id finds it, and by its
    name, for code that takes a path. ``source`` names the kernelspec in errors.

    Raises:
        UnknownModelError: with the nearest name.
        ModelAlteredError: a file is not what was added.
        ConfigError: two models would be at the same place.
    """
    registry = Registry(root)
    taken: dict[str, str] = {}
    mounts = {}
    for label in wanted:
        entry = registry.find(label, source=source)
        other = taken.setdefault(entry.name, entry.label)
        if other != entry.label:
            reason = f"{other} and {entry.label} would both be {MODELS}/{entry.name}"
            raise ConfigError(source=source, key="models", value=label, reason=reason)
        registry.check(entry, thorough=False)
        snapshot = registry.snapshot(entry)
        mounts[f"{HUB}/{entry.hub_name}"] = os.fspath(snapshot.parent.parent)
        mounts[f"{MODELS}/{entry.name}"] = os.fspath(snapshot)
    return mounts
