"""The kernelspecs on this machine that ask for our sandbox, as their files say.

Jupyter's own list leaves out what it cannot start, which is what a person wants to be
told of; so the files are read here. At the rim: this imports jupyter_client.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any, Final

from kernel_provider.ceilings import Ceilings, read_ceilings
from kernel_provider.errors import SandboxError, suggest
from kernel_provider.policy import KernelPolicy, parse_policy

PROVISIONER: Final = "executor-ml-provisioner"
DEFAULT: Final = "executor-ml"


class KernelspecMissingError(SandboxError):
    """No kernelspec of that name asks for a sandbox."""

    exit_code = 78
    summary = "there is no sandboxed kernel named {name!r}{suggestion}"
    fix = "{remedy}"


class KernelspecBrokenError(SandboxError):
    """A kernelspec whose file cannot be understood."""

    exit_code = 78
    summary = "kernelspec {name} cannot be used: {file}: {reason}"
    fix = "mend that file, or remove its folder and run: executor-ml install --name {name}"


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

    @property
    def file(self) -> str:
        """Where it is written."""
        return f"{self.folder}/kernel.json"

    def policy(self, ceilings: Ceilings) -> KernelPolicy:
        """What its kernels get. Raises the error that would end a launch."""
        self.check()
        return parse_policy(self.config, ceilings=ceilings, source=self.source)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Its own variables, filled in from the client's as Jupyter does."""
        return {name: Template(text).safe_substitute(environ) for name, text in self.env.items()}

    def launched(self, environ: Mapping[str, str]) -> KernelPolicy:
        """What a kernel gets that this process launches: by all who have a say.

        Raises the error that ends the launch.
        """
        from kernel_provider.admin import said_in_files  # noqa: PLC0415  traitlets: 50 ms

        policy = self.policy(read_ceilings(environ, traits=said_in_files()))
        parse_policy({"env": dict(self.env)}, ceilings=Ceilings(), source=self.source)
        return replace(policy, env={**policy.env, **self.variables(environ)})

    def check(self) -> None:
        """Raise KernelspecBrokenError where it can't be read."""
        if self.problem:
            raise KernelspecBrokenError(name=self.name, file=self.file, reason=self.problem)


def read_file(name: str, folder: Path) -> Kernelspec | None:
    """Read one folder; None where the kernelspec is none of ours.

    Of one that is not JSON nobody can tell, so it counts: it might have been.
    """
    try:
        text = (folder / "kernel.json").read_text(encoding="utf-8")
        spec = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Kernelspec(name=name, folder=str(folder), problem=_problem(error))
    return _read(name, folder, spec) if PROVISIONER in text else None


def _problem(error: OSError | ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    return "not JSON: it is no text"


def _read(name: str, folder: Path, spec: Any) -> Kernelspec | None:
    try:
        wanted = spec["metadata"]["kernel_provisioner"]
        if wanted["provisioner_name"] != PROVISIONER:
            return None
        config = wanted.get("config", {})
        argv = tuple(str(word) for word in spec["argv"])
        display_name = str(spec.get("display_name", ""))
        env = {str(name): str(value) for name, value in spec.get("env", {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"not a kernelspec ({type(error).__name__}: {error})"
        return Kernelspec(name=name, folder=str(folder), problem=problem)
    if not isinstance(config, dict):
        return Kernelspec(name=name, folder=str(folder), problem="its config is no object")
    return Kernelspec(
        name=name,
        folder=str(folder),
        argv=argv,
        display_name=display_name,
        config=config,
        env=env,
    )


def installed() -> tuple[Kernelspec, ...]:
    """Every kernelspec of ours that Jupyter would find, the first of each name."""
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415  100 ms

    folders = KernelSpecManager().find_kernel_specs()
    found = (read_file(name, Path(folder)) for name, folder in sorted(folders.items()))
    return tuple(spec for spec in found if spec is not None)


def others() -> tuple[str, ...]:
    """Names of the rest: their kernels run outside of any sandbox, as far as is known.

    Those that a server is told to hide are among them: it starts them all the same.
    """
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415  100 ms

    folders = KernelSpecManager().find_kernel_specs()
    return tuple(
        name for name, folder in sorted(folders.items()) if read_file(name, Path(folder)) is None
    )


def named(name: str) -> Kernelspec:
    """The kernelspec of ours with that name; raises KernelspecMissingError."""
    specs = {spec.name: spec for spec in installed()}
    if name in specs:
        return specs[name]
    known = [spec.name for spec in specs.values() if not spec.problem]
    make = f"executor-ml install --name {name}"
    raise KernelspecMissingError(
        name=name,
        suggestion=suggest(name, known),
        remedy=f"take one of: {', '.join(known)}; or make it: {make}" if known else f"run: {make}",
    )
