"""What a sandbox is made from: a policy and an engine.

Two launches of equal digest can take the same parked sandbox, so the digest covers all
that is fixed when one is created: limits, image name, environment, the files behind the
mounts and the life of the engine. What an image's name stands for is looked at when one
is claimed.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from kernel_provider import __version__
from kernel_provider.folders import folder_name, usable
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.warden.order import Order

WARM: Final = ("torch", "transformers", "transformers.pipelines")
"""Imported while a sandbox is parked that has no ``preload`` of its own: with these a first
``pipeline(...)`` call imports little more than its model's own modules."""

_OF_CLAIMS: Final[dict[str, Any]] = {
    **dict.fromkeys(("pool", "park_ttl", "startup_timeout"), 0),
    **dict.fromkeys(("output_limit", "output_rate", "message_size", "message_rate"), 0),
    **dict.fromkeys(("message_parts", "command_size", "handshake_timeout", "cell_timeout"), 0),
}
"""What makes no difference to a sandbox that is there: a claim brings what it may say."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``address`` is the engine's socket."""

    policy: KernelPolicy
    address: str

    def order(self, root: str, *, parked: bool = False, trace: str = "") -> Order:
        """An order for a warden, and its folder below ``root``.

        One that is to be ``parked`` imports what notebooks usually begin with. ``trace``
        is a file to note steps in. Raises EnvironmentTooLargeError, and RuntimeFolderError.
        """
        folder = f"{root}/{folder_name('w')}"
        order = Order(
            engine="docker",
            address=self.address,
            spec=sandbox_spec(
                self.policy,
                rendezvous=f"{folder}/r",
                warm=self._warm if parked else None,
                traced=bool(trace),
            ),
            folder=folder,
            startup_timeout=self.policy.startup_timeout,
            digest=self.digest() if parked else "",
            trace=trace,
        )
        with usable(root):
            Path(folder).mkdir(mode=0o700)  # last: what can't be ordered leaves nothing
        return order

    @property
    def _warm(self) -> tuple[str, ...]:
        return () if self.policy.preload else WARM

    def digest(self) -> str:
        """Name what a parked sandbox of this recipe can stand in for."""
        spec = sandbox_spec(replace(self.policy, **_OF_CLAIMS), rendezvous="")
        lives = [_place(mount.source)[:2] for mount in spec.mounts]
        lives.append(_place(self.address))
        text = json.dumps([asdict(spec), lives, __version__], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _place(path: str) -> list[int]:
    """What tells a file from another one in its place, and a socket from its successor."""
    try:
        facts = os.stat(path)  # noqa: PTH116  on the path of every launch
    except OSError:
        return []
    return [facts.st_dev, facts.st_ino, facts.st_ctime_ns]
