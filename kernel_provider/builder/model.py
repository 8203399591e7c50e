"""The values that the steps of a build hand to each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from kernel_provider import variants

AUTO: Final = "auto"
DEFAULT_STACK: Final = "current"


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What a person asks for: ``variant`` by its name, or as a file of requirements.

    ``base`` is an image that holds Debian's or Docker's Python 3.11, or ``auto``.
    ``tag`` replaces the variant's usual name. ``context`` and ``cache`` are found by
    themselves if None. ``force`` builds even if nothing changed, ``refresh_base`` makes
    or pulls the base again, ``keep_stages`` keeps the intermediate images, so that the
    next build is quicker. ``models`` of the registry go into ``tag``, on the usual image.
    """

    variant: str = variants.DEFAULT
    stack: str = DEFAULT_STACK
    base: str = AUTO
    tag: str | None = None
    force: bool = False
    refresh_base: bool = False
    keep_stages: bool = False
    context: Path | None = None
    cache: Path | None = None
    models: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """The name that the image gets."""
        if self.tag:
            return self.tag
        return variants.image_of(variants.name_of(self.variant))


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """An image that is ready. ``size`` is in bytes; ``reused``: nothing had changed."""

    image: str
    image_id: str
    digest: str
    size: int
    seconds: float
    reused: bool
    versions: Mapping[str, str] = field(default_factory=dict)


class Phase(StrEnum):
    """Where a step stands."""

    STARTED = "started"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Event:
    """A sign of life: ``detail`` says what happens now or what came out of the step.

    ``size`` is in bytes, where the step makes something; ``seconds`` is the step's own
    time, set when it is done.
    """

    step: str
    phase: Phase
    detail: str = ""
    size: int | None = None
    seconds: float | None = None


Report = Callable[[Event], None]
