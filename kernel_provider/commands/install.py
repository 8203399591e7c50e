"""``executor-ml install``: a kernelspec with limits of its own, checked before written."""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel_provider import kernelspecs, variants
from kernel_provider.ceilings import read_ceilings
from kernel_provider.errors import ConfigError, SandboxError
from kernel_provider.models.store import Registry
from kernel_provider.models.store import place as registry_place
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.values import MIB, SIZES, WORKSPACES, Gpus, show

SOURCE: Final = "the command line"
COMMAND: Final = "executor-ml install"
NUMBERS: Final = (
    "cpus",
    "pids",
    "message_rate",
    "message_parts",
    "handshake_timeout",
    "cell_timeout",
    "pool",
    "park_ttl",
    "startup_timeout",
)
WORDS: Final = ("loopback", "gpus")
NAME: Final = re.compile(r"(?!\.+$)[a-z0-9._-]+", re.IGNORECASE | re.ASCII)


class KernelspecError(SandboxError):
    """The kernelspec was not written; what was there is as it was."""

    exit_code = 73
    summary = "the kernelspec {name!r} cannot be written: {reason}"
    fix = "{remedy}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A kernelspec to write; ``config`` holds only what was given.

    ``where`` is the user's folder if it is "user", else a prefix, with "" for that of
    this environment, or the user's if it is no virtual one.
    """

    name: str = kernelspecs.DEFAULT
    display_name: str = ""
    where: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    logos: tuple[Path, ...] = ()
    replace: bool = False


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A kernelspec that was written; ``hidden`` where Jupyter does not look there."""

    name: str
    file: str
    display_name: str
    hidden: bool
    same_display_name: tuple[str, ...]

    @property
    def jupyter_path(self) -> str:
        """What makes Jupyter look there."""
        return str(Path(self.file).parent.parent.parent)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Write a kernelspec with limits of its own. Without a place, it goes into this "
        "virtual environment, or into the user's folder outside of one. Settings that are "
        "not given keep their defaults."
    )
    add_places(parser)
    parser.add_argument(
        "--name", help=f"what --kernel takes (default: {kernelspecs.DEFAULT}, or of the variant)"
    )
    parser.add_argument(
        "--variant",
        default=variants.DEFAULT,
        metavar="V",
        help="a variant of executor-ml build: its image, its logo and limits that fit it",
    )
    parser.add_argument("--display-name", metavar="D", help="by default one that tells the limits")
    _add_resources(parser)
    _add_contents(parser)
    _add_messages(parser)
    parser.add_argument("--loopback", metavar="L", help="true, or insist: see docs/settings.md")
    parser.add_argument("--gpus", metavar="G", help="all, or how many: see docs/settings.md")
    parser.add_argument("--pool", metavar="N", help="how many a server keeps parked")
    parser.add_argument("--park-ttl", metavar="S", help="seconds that one lies parked")
    parser.add_argument("--startup-timeout", metavar="S", help="seconds that a start may take")
    parser.add_argument("--replace", action="store_true", help="write over one of the same name")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    """What a kernel has of the machine."""
    parser.add_argument("--memory", metavar="M", help="all memory, such as 512m or 2GB")
    parser.add_argument("--cpus", metavar="C", help="processors, such as 0.5")
    parser.add_argument("--pids", metavar="N", help="processes and threads")
    parser.add_argument("--tmp-size", metavar="SIZE", help="size of /tmp, part of the memory")
    parser.add_argument("--shm-size", metavar="SIZE", help="size of /dev/shm, part of the memory")
    parser.add_argument("--cell-timeout", metavar="S", help="seconds that a cell may run, or none")


def _add_contents(parser: argparse.ArgumentParser) -> None:
    """What is in its sandbox."""
    parser.add_argument("--image", metavar="I", help="an image made by executor-ml build")
    parser.add_argument(
        "--mount",
        action="append",
        metavar="TARGET=SOURCE",
        help="show the folder SOURCE, read-only, as TARGET, below /models or /data",
    )
    parser.add_argument(
        "--workspace", choices=WORKSPACES, help="copy: copy the notebook's folder in at each start"
    )
    parser.add_argument("--workspace-size", metavar="SIZE", help="of that copy at most, as 64m")
    parser.add_argument(
        "--model",
        action="append",
        metavar="ID",
        help="a model of the registry (executor-ml models list), which code finds by its id",
    )
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="a variable to set")
    parser.add_argument("--preload", action="append", metavar="MODULE", help="import at the start")


def _add_messages(parser: argparse.ArgumentParser) -> None:
    """What it may say, and how."""
    parser.add_argument("--output-limit", metavar="SIZE", help="output of each cell, as 32m")
    parser.add_argument("--output-rate", metavar="SIZE", help="and so much more a second, as 1m")
    parser.add_argument("--message-size", metavar="SIZE", help="of one message at most, as 64m")
    parser.add_argument("--message-rate", metavar="N", help="messages a second")
    parser.add_argument(
        "--message-parts", metavar="N", help="of one message: seven, and one for each buffer"
    )
    parser.add_argument(
        "--command-size", metavar="SIZE", help="of one command of its sockets, as 512b"
    )
    parser.add_argument(
        "--handshake-timeout", metavar="S", help="seconds for its half of a handshake"
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Fill in where a kernelspec goes."""
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--user", action="store_true", help="for this user, in all environments")
    places.add_argument("--sys-prefix", action="store_true", help="into this Python environment")
    places.add_argument("--prefix", metavar="P", help="below P/share/jupyter/kernels")


def where_of(args: argparse.Namespace) -> str:
    """The place that was given, as a request has it."""
    return "user" if args.user else args.prefix or (sys.prefix if args.sys_prefix else "")


def main(args: argparse.Namespace) -> int:
    """Write it and say where it is."""
    variant = variants.name_of(args.variant)
    name = (args.name or variants.kernelspec_of(variant)).lower()
    limits = limits_of(args.model or (), os.environ)
    request = Request(
        name=name,
        display_name=args.display_name or "",
        where=where_of(args),
        config={**variant_config(args.variant), **limits, **config_of(args, name)},
        logos=variants.logos(variant),
        replace=args.replace,
    )
    installed = install(request, os.environ)
    print(json.dumps(vars(installed)) if args.json else words(installed))
    return 0


def variant_config(given: str) -> dict[str, Any]:
    """Settings of a variant; of a person's own file, its image. Raises ConfigError."""
    name = variants.name_of(given)
    if variants.is_file(given):
        return {"image": variants.image_of(name)}
    folder = variants.folder_of(name)
    if folder is None:
        known = ", ".join([variants.DEFAULT, *variants.shipped()])
        reason = f"there is {known}, or a file of your own"
        raise ConfigError(source=COMMAND, key="variant", value=given, reason=reason)
    return variants.config_of(folder)


def config_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The settings that were given. Raises KernelspecError for half a pair."""
    plain = ("image", "workspace", *SIZES, *NUMBERS, *WORDS)
    config: dict[str, Any] = {
        key: getattr(args, key) for key in plain if getattr(args, key) is not None
    }
    if args.mount:
        pairs = _pairs(args.mount, "--mount", "TARGET=SOURCE", name)
        # A shell has put the person's home in for ~ only at the start of a word.
        config["mounts"] = {t: str(Path(s).expanduser().absolute()) for t, s in pairs.items()}
    if args.model:
        config["models"] = args.model
    if args.env:
        config["env"] = _pairs(args.env, "--env", "NAME=VALUE", name)
    if args.preload:
        config["preload"] = args.preload
    return config


def limits_of(models: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Limits that fit all of these models, where executor-ml profile has saved some."""
    if not models:
        return {}
    registry = Registry(registry_place(environ))
    entries = [registry.find(model, source=SOURCE) for model in models]
    memory = [entry.memory for entry in entries if entry.memory is not None]
    cpus = [entry.cpus for entry in entries if entry.cpus is not None]
    return {"memory": f"{max(memory) // MIB}m", "cpus": max(cpus)} if memory and cpus else {}


def _pairs(given: Sequence[str], option: str, form: str, name: str) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise KernelspecError(
                name=name, reason=f"{option} {text} is no pair", remedy=f"write {option} {form}"
            )
        pairs[key] = value
    return pairs


def install(request: Request, environ: Mapping[str, str]) -> Installed:
    """Check a request and write its kernelspec, with the shipped logos.

    Raises:
        ConfigError, MountError: its kernels would never start.
        KernelspecError: name or place cannot be used; what was there is as it was.
    """
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415  100 ms

    if not NAME.fullmatch(request.name):
        raise KernelspecError(
            name=request.name,
            reason="a name has letters, digits, dots, hyphens and underscores only",
            remedy="take another --name",
        )
    policy = parse_policy(request.config, ceilings=read_ceilings(environ), source=SOURCE)
    manager = KernelSpecManager()
    folder = place(request.where) / request.name
    if folder.exists() and not request.replace:
        raise KernelspecError(
            name=request.name,
            reason=f"{folder} is there already",
            remedy="add --replace to write over it, or take another --name",
        )
    display_name = request.display_name or display_name_of(policy)
    spec = kernel_json(request, policy, display_name)
    _write(folder, spec, request)
    same = tuple(
        other.name
        for other in kernelspecs.installed()
        if other.display_name == display_name and other.name != request.name
    )
    return Installed(
        name=request.name,
        file=str(folder / "kernel.json"),
        display_name=display_name,
        hidden=str(folder.parent) not in manager.kernel_dirs,
        same_display_name=same,
    )


def place(where: str) -> Path:
    """The folder of kernelspecs that a request's ``where`` means."""
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415  100 ms

    if where == "user" or (not where and sys.prefix == sys.base_prefix):
        return Path(KernelSpecManager().user_kernel_dir)
    return Path(where or sys.prefix, "share/jupyter/kernels").absolute()


def display_name_of(policy: KernelPolicy) -> str:
    """A name that tells the limits, since it is all that a list of kernels shows."""
    memory, cpus = show("memory", policy.memory), show("cpus", policy.cpus)
    variant = variants.of_image(policy.image)
    usual = variant or policy.image == KernelPolicy().image
    rest = [] if usual else [policy.image]
    rest += [label.removesuffix("@main") for label in policy.models]
    rest += ["loopback"] * bool(policy.loopback)
    rest += [gpus_of(policy.gpus)] if policy.gpus else []
    limits = ", ".join([memory, f"{cpus} CPU", "offline", *rest])
    return f"Python ({variant or 'ML'} sandbox, {limits})"


def gpus_of(gpus: Gpus) -> str:
    """GPUs in a display name; those that are chosen by name are counted."""
    count = len(gpus) if isinstance(gpus, tuple) else gpus
    return f"{count} GPU{'' if count == 1 else 's'}"


def kernel_json(request: Request, policy: KernelPolicy, display_name: str) -> dict[str, Any]:
    """The kernelspec; numbers as numbers, sizes as they were typed.

    Clients that run ``argv`` themselves put nothing in but the connection file, and look
    for the program before they offer the kernel: so it names both, itself and where.
    """
    config = request.config
    numbers = {key: getattr(policy, key) for key in NUMBERS if key in config}
    plain: dict[str, Any] = {
        key: int(n) if n == int(n) else n for key, n in numbers.items() if n is not None
    }
    plain |= {key: getattr(policy, key) for key in WORDS if key in config}
    return {
        "argv": [launcher(), "launch", "--kernel", request.name, "{connection_file}"],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {
            "debugger": bool(policy.loopback),  # JupyterLab's, which talks TCP to itself
            "kernel_provisioner": {
                "provisioner_name": kernelspecs.PROVISIONER,
                "config": {**config, **plain},
            },
        },
    }


def launcher() -> str:
    """This environment's command, or its name where it is installed in another way."""
    beside = Path(sys.executable).parent / "executor-ml"
    return str(beside) if beside.exists() else "executor-ml"


def _write(folder: Path, spec: Mapping[str, Any], request: Request) -> None:
    """Make the folder beside its place and move it there, so that it is whole or not there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".executor-ml-", dir=folder.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            (new / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
            for logo in request.logos or variants.logos(variants.DEFAULT):
                (new / logo.name).write_bytes(logo.read_bytes())
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise KernelspecError(
            name=request.name,
            reason=f"{error.strerror or error}: {error.filename or folder}",
            remedy="take a folder that you can write: --user, --sys-prefix or --prefix P",
        ) from error


def words(installed: Installed) -> str:
    """What a person should know now."""
    lines = [f"Wrote {installed.file}", f"Its name is {installed.name}: {installed.display_name}"]
    if installed.same_display_name:
        others = ", ".join(installed.same_display_name)
        lines.append(f"Others are displayed alike ({others}); --display-name tells them apart.")
    if installed.hidden:
        lines.append(f"Jupyter finds it only with JUPYTER_PATH={installed.jupyter_path}")
    lines.append(
        "A running Jupyter server shows it within a minute. It must be restarted only if "
        "executor-ml-kernel itself was installed after it started."
    )
    return "\n".join(lines)
