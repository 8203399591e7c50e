"""A warden's time on the shelf: from the last import to a claim, an end, or the ttl."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from kernel_provider.errors import SandboxError, StaleError, of_runtime_folder
from kernel_provider.warden import shelf

if TYPE_CHECKING:
    from kernel_provider.warden.owners import Owner
    from kernel_provider.warden.warden import Warden
    from kernel_provider.warden.wishes import Park

FRESH_WITHIN: Final = 2.0
"""Seconds for the engine to say what an image's name stands for."""


class Parking:
    """One warden's, of which somebody wished that it be parked."""

    def __init__(self, warden: Warden, owner: Owner, wish: Park) -> None:
        """Take the wish; ``owner`` is its keeper, and holds it, unless it is to stay."""
        self._warden = warden
        self._wish = wish
        self._keeper: Owner | None = None
        if wish.keeper:
            self._keeper, owner.holds = owner, True

    def lie_down(self) -> None:
        """Go on the shelf, for whoever claims first."""
        warden, wish = self._warden, self._wish
        assert warden.sandbox is not None
        now = time.monotonic()
        entry = shelf.Entry(
            folder=warden.order.folder,
            digest=warden.order.digest,
            kernel=wish.kernel,
            container=warden.sandbox.container,
            pid=warden.sandbox.pid,
            memory=warden.order.spec.memory,
            since=now,
            until=now + wish.ttl,
            keeper=wish.keeper,
        )
        try:
            shelf.put(entry)
        except OSError as error:
            root = os.path.dirname(warden.order.folder)
            warden.ending.fail(of_runtime_folder(root, error))
            return
        warden.owners.say({"event": "parked"})
        warden.loop.after(wish.ttl, self._outlived)

    def leave(self) -> None:
        """Be nobody's to claim any more. Twice is fine."""
        shelf.withdraw(self._warden.order.folder, self._warden.order.digest)

    def claimed(self) -> None:
        """Let the keeper go, and see whether the image is still the one that is meant.

        The kernel takes its claim meanwhile: that takes as long.
        """
        self.leave()
        if self._keeper is not None:
            self._keeper.say({"event": "taken"})
            self._keeper.holds = False
            self._keeper.close()
        sandbox = self._warden.sandbox
        assert sandbox is not None
        try:
            engine = sandbox.engine.by(time.monotonic() + FRESH_WITHIN)
            meant = engine.image(sandbox.spec.image).id
        except SandboxError as error:
            self._warden.ending.fail(error)
            return
        if meant != sandbox.image_id:
            self._warden.ending.fail(StaleError(image=sandbox.spec.image))

    def _outlived(self) -> None:
        if self._warden.claim is None:
            self._warden.ending.stop()
