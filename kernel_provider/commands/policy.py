"""``executor-ml policy``: every setting in force for a kernelspec, and who set it."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from kernel_provider import kernelspecs
from kernel_provider.admin import said_in_files
from kernel_provider.ceilings import (
    IMAGES,
    MOUNT_SOURCES,
    Ceilings,
    of_servers,
    read_ceilings,
)
from kernel_provider.commands.table import columns
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.policy import KernelPolicy
from kernel_provider.values import show

DEFAULT: Final = "default"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: ``ceiling`` is what it may be at most, or which values it may have.

    Values and ceiling are in bytes, processors, pids and seconds; ``ceiling`` is None where
    anything goes. ``in_server`` is the value of a Jupyter server's kernels, which is another
    one than that of all other clients where nobody set it.
    """

    key: str
    value: Any
    in_server: Any
    source: str
    ceiling: Any = None
    ceiling_source: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Show every setting that is in force for a kernelspec, where it was set, and the "
        "administrator's ceiling. Fails as a start would where a setting is not possible. "
        "Where a Jupyter server has a default of its own, that is shown as well."
    )
    parser.add_argument(
        "--kernel",
        default=kernelspecs.DEFAULT,
        metavar="NAME",
        help="the kernelspec (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the settings as JSON")


def main(args: argparse.Namespace) -> int:
    """Print them; raises the error that would end a start."""
    spec = kernelspecs.named(args.kernel)
    settings = in_force(spec, read_ceilings(os.environ, traits=said_in_files()))
    if args.json:
        print(json.dumps({"kernel": spec.name, "settings": [asdict(s) for s in settings]}))
    else:
        print(table(settings))
    return 0


def in_force(spec: Kernelspec, ceilings: Ceilings) -> tuple[Setting, ...]:
    """Each setting with its sources; raises the error that would end a start."""
    policy = spec.policy(ceilings)
    in_server = spec.policy(of_servers(ceilings))
    lists = {"image": (ceilings.images, IMAGES), "mounts": (ceilings.mount_sources, MOUNT_SOURCES)}
    held: dict[str, tuple[Any, str]] = {
        key: (listed, ceilings.sources[name])
        for key, (listed, name) in lists.items()
        if listed is not None
    }
    held |= {key: (limit, ceilings.sources[key]) for key, limit in ceilings.limits.items()}
    sources = {key: source for key, (source, _) in ceilings.defaults.items()}
    sources |= dict.fromkeys(spec.config, spec.file)
    return tuple(
        Setting(
            key=field.name,
            value=getattr(policy, field.name),
            in_server=getattr(in_server, field.name),
            source=sources.get(field.name, DEFAULT),
            ceiling=held[field.name][0] if field.name in held else None,
            ceiling_source=held[field.name][1] if field.name in held else None,
        )
        for field in fields(KernelPolicy)
    )


def table(settings: Sequence[Setting]) -> str:
    """Aligned columns, the sources last since they are long."""
    rows = [("setting", "value", "set by", "ceiling", "ceiling set by")]
    rows += [
        (
            s.key,
            text(s.key, s.value) + _in_server(s),
            s.source,
            "-" if s.ceiling is None else text(s.key, s.ceiling),
            s.ceiling_source or "-",
        )
        for s in settings
    ]
    return columns(rows)


def _in_server(setting: Setting) -> str:
    if setting.in_server == setting.value:
        return ""
    return f" ({text(setting.key, setting.in_server)} in a server)"


def text(key: str, value: Any) -> str:
    """A value as people write it; of a model its name, since its folder is the registry's."""
    if isinstance(value, Mapping) and key == "models":
        value = tuple(value)
    if isinstance(value, Mapping):
        return " ".join(f"{name}={content}" for name, content in value.items()) or "none"
    if isinstance(value, (tuple, list)):
        return " ".join(value) or "none"
    return value if isinstance(value, str) else show(key, value)
