"""From the models that a kernelspec names to the folders that its sandbox sees."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from kernel_provider.errors import ConfigError
from kernel_provider.models.entry import hub_name, split_label
from kernel_provider.models.store import Registry

MODELS: Final = "/models"
HUB: Final = f"{MODELS}/hub"
"""The cache of Hugging Face's libraries in a sandbox; the image has it, empty."""


def resolve(wanted: Sequence[str], *, root: str, source: str) -> dict[str, str]:
    """The folders of models by their labels; ``source`` names the kernelspec in errors.

    Raises:
        UnknownModelError: with the nearest name.
        ModelAlteredError: a file is not what was added.
        ConfigError: two models would be at the same place.
    """
    registry = Registry(root)
    taken: dict[str, str] = {}
    found = {}
    for label in wanted:
        entry = registry.find(label, source=source)
        other = taken.setdefault(entry.name, entry.label)
        if other != entry.label:
            reason = f"{other} and {entry.label} would both be {MODELS}/{entry.name}"
            raise ConfigError(source=source, key="models", value=label, reason=reason)
        registry.check(entry, thorough=False)
        found[entry.label] = os.fspath(registry.snapshot(entry))
    return found


def model_mounts(models: Mapping[str, str]) -> dict[str, str]:
    """Folders of the registry by where they go: each model's, and nothing beside it.

    A model is there twice: in the hub's cache, where its plain id finds it, and by its
    name, for code that takes a path.
    """
    mounts = {}
    for label, snapshot in models.items():
        model, _ = split_label(label)
        mounts[f"{HUB}/{hub_name(model)}"] = str(Path(snapshot).parent.parent)
        mounts[f"{MODELS}/{model.rpartition('/')[2]}"] = snapshot
    return mounts
