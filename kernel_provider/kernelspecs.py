"""The kernelspecs on this machine that ask for our sandbox, as their files say.

Jupyter's own list leaves out what it cannot start, which is what a person wants to be
told of; so the files are read here. At the rim: this imports jupyter_client.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Final

from kernel_provider.errors import SandboxError
from kernel_provider.policy import Ceilings, KernelPolicy, parse_policy

PROVISIONER: Final = "executor-ml-provisioner"
DEFAULT: Final = "executor-ml"


class KernelspecMissingError(SandboxError):
    """No kernelspec of that name asks for a sandbox."""

    exit_code = 78
    summary = "there is no sandboxed kernel named {name!r}{suggestion}"
    fix = "take one of: {known}; or make it: executor-ml install --name {name}"


class KernelspecBrokenError(SandboxError):
    """A kernelspec of ours whose file cannot be understood."""

    exit_code = 78
    summary = "{spec} cannot be used: {reason}"
    fix = "mend its kernel.json, or remove its folder and run executor-ml install"


@dataclass(frozen=True, kw_only=True)
class Kernelspec:
    """A kernelspec that names our provisioner; ``problem`` is set if it can't be read."""

    name: str
    folder: str
    argv: tuple[str, ...] = ()
    display_name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def source(self) -> str:
        """What errors call it, here as in the Jupyter server."""
        return f"kernelspec {self.name}"

    def policy(self, ceilings: Ceilings) -> KernelPolicy:
        """What its kernels get. Raises the error that would end a launch."""
        return parse_policy(self.config, ceilings=ceilings, source=self.source)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Its own variables, filled in from the client's as Jupyter does."""
        return {name: Template(text).safe_substitute(environ) for name, text in self.env.items()}


def read_file(name: str, folder: Path) -> Kernelspec | None:
    """Read one folder; None where the kernelspec is none of ours.

    One that can't be read is ours if its text names the provisioner.
    """
    try:
        text = (folder / "kernel.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    if PROVISIONER not in text:
        return None
    try:
        spec = json.loads(text)
        wanted = spec["metadata"]["kernel_provisioner"]
        if wanted["provisioner_name"] != PROVISIONER:
            return None
        config = wanted.get("config", {})
        if not isinstance(config, dict):
            return Kernelspec(name=name, folder=str(folder), problem="its config is no object")
        return Kernelspec(
            name=name,
            folder=str(folder),
            argv=tuple(str(word) for word in spec["argv"]),
            display_name=str(spec.get("display_name", "")),
            config=config,
            env={str(name): str(value) for name, value in spec.get("env", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"kernel.json is not a kernelspec ({type(error).__name__}: {error})"
        return Kernelspec(name=name, folder=str(folder), problem=problem)


def installed() -> tuple[Kernelspec, ...]:
    """Every kernelspec of ours that Jupyter would find, the first of each name."""
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415  100 ms

    folders = KernelSpecManager().find_kernel_specs()
    found = (read_file(name, Path(folder)) for name, folder in sorted(folders.items()))
    return tuple(spec for spec in found if spec is not None)


def named(name: str) -> Kernelspec:
    """The kernelspec of ours with that name; raises KernelspecMissingError."""
    specs = {spec.name: spec for spec in installed()}
    if name in specs:
        return specs[name]
    near = difflib.get_close_matches(name, specs, n=1)
    raise KernelspecMissingError(
        name=name,
        suggestion=f"; did you mean {near[0]!r}?" if near else "",
        known=", ".join(specs) or "none is installed",
    )
