"""What a warden is told when it is started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from kernel_provider.engines import Mount, SandboxSpec


@dataclass(frozen=True, kw_only=True)
class Order:
    """The sandbox, its engine, its folder, and how long (s) it may take to serve.

    ``folder`` holds the warden's socket ``w``; the spec mounts its sub-folder ``r``.
    ``digest`` names what claims the sandbox can serve, where it lies on the shelf.
    """

    engine: str
    address: str
    spec: SandboxSpec
    folder: str
    startup_timeout: float
    digest: str = ""

    def to_json(self) -> str:
        """One text for standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what ``to_json`` wrote."""
        data = json.loads(text)
        spec = data["spec"]
        spec["mounts"] = tuple(Mount(**mount) for mount in spec["mounts"])
        spec["argv"] = tuple(spec["argv"])
        if isinstance(spec["gpus"], list):
            spec["gpus"] = tuple(spec["gpus"])
        return cls(**{**data, "spec": SandboxSpec(**spec)})
