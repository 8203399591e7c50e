"""What ``executor-ml doctor --fix`` can do by itself, and for which failed checks.

Each of these is a command that the person could type as well; it says what it does.
"""

import os
from collections.abc import Callable, Sequence
from typing import Final

from kernel_provider import names
from kernel_provider.doctor.checks import ENGINE, IMAGE, KERNELSPECS, LEFTOVERS
from kernel_provider.doctor.model import CheckResult, Status
from kernel_provider.setup import debian, machine
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.steps import SetupError, Steps


def start_engine(steps: Steps) -> None:
    """Run an engine of our own; raises SetupError where that takes other hands."""
    _, reason, remedy = machine.look_for_engine(EngineHome(), os.environ)
    if remedy:  # there is one, and another would not be used
        raise SetupError(reason=reason, remedy=remedy)
    if os.geteuid() != 0 or not debian.is_debian():
        raise SetupError(
            reason="an engine can be started here by root on Debian only",
            remedy="start Docker, or have somebody allow you to use it",
        )
    machine.have_engine(EngineHome(), steps)


def build_image(steps: Steps) -> None:
    """Build the usual image."""
    from kernel_provider.builder import BuildRequest, build  # noqa: PLC0415  100 ms
    from kernel_provider.builder.model import Phase  # noqa: PLC0415

    with steps.step(f"image {names.IMAGE}") as note:
        result = build(
            BuildRequest(),
            lambda event: (
                steps.say(f"  ... {event.step} {event.detail}")
                if event.phase is Phase.STARTED
                else None
            ),
        )
        note.text = result.image_id[:19]


def install_kernelspec(steps: Steps) -> None:
    """Write the usual kernelspec into this environment."""
    from kernel_provider.commands.install import Request, install  # noqa: PLC0415  100 ms

    with steps.step("kernelspec") as note:
        note.text = install(Request(), os.environ).file


def prune(steps: Steps) -> None:
    """Remove what dead processes left."""
    from kernel_provider.session import prune as remove  # noqa: PLC0415  30 ms

    with steps.step("removing leftovers") as note:
        note.text = ", ".join(remove(os.environ)) or "nothing left to remove"


MENDS: Final[Sequence[tuple[str, Callable[[Steps], None]]]] = (
    (ENGINE, start_engine),
    (f"{IMAGE}{names.IMAGE}", build_image),
    (KERNELSPECS, install_kernelspec),
    (LEFTOVERS, prune),
)
"""By the name of the check that they mend, in the order in which they may be needed."""


def needed(
    results: Sequence[CheckResult], done: Sequence[str]
) -> tuple[str, Callable[[Steps], None]] | None:
    """Choose what to do next: the first that was not tried yet, None if nothing is left."""
    bad = {r.name for r in results if r.status in {Status.WARN, Status.FAIL}}
    return next((mend for mend in MENDS if mend[0] in bad and mend[0] not in done), None)
