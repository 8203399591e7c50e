"""What a warden is told when it is started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from kernel_provider import __version__
from kernel_provider.engines import Mount, SandboxSpec
from kernel_provider.errors import UpgradedError


@dataclass(frozen=True, kw_only=True)
class Order:
    """The sandbox, its engine, its folder, and how long (s) it may take to serve.

    ``folder`` holds the warden's socket ``w``; the spec mounts its sub-folder ``r``.
    ``digest`` names what claims the sandbox can serve, where it lies on the shelf, and
    ``trace`` a file to note steps in, if there is one. ``version`` is of whoever gives it.
    """

    engine: str
    address: str
    spec: SandboxSpec
    folder: str
    startup_timeout: float
    digest: str = ""
    trace: str = ""
    version: str = __version__

    def to_json(self) -> str:
        """One text for standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what ``to_json`` wrote; raise UpgradedError where another version's did."""
        data = json.loads(text)
        version = data.get("version", "unknown")
        try:
            if version == __version__:
                return cls(**{**data, "spec": _spec(data["spec"])})
        except (LookupError, TypeError) as error:  # the number is the same, the code is not
            raise UpgradedError(old=version, new=__version__) from error
        raise UpgradedError(old=version, new=__version__)


def _spec(data: dict[str, Any]) -> SandboxSpec:
    mounts = tuple(Mount(**mount) for mount in data["mounts"])
    gpus = tuple(data["gpus"]) if isinstance(data["gpus"], list) else data["gpus"]
    return SandboxSpec(**{**data, "mounts": mounts, "argv": tuple(data["argv"]), "gpus": gpus})
