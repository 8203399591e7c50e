"""A profile's two plots as a PNG, drawn in a sandbox.

The image has matplotlib, and this machine need not. Numbers go in, and pixels come out.
"""

import base64
import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, Final

from kernel_provider.errors import SandboxError
from kernel_provider.profile import plan
from kernel_provider.profile.model import Profile
from kernel_provider.profile.png import checked
from kernel_provider.profile.subjects import book
from kernel_provider.profile.trial import Watcher
from kernel_provider.run.model import RunRequest, RunResult
from kernel_provider.run.text import printable
from kernel_provider.steps import Note

WIDTH: Final = 1200
HEIGHT: Final = 1050
"""Pixels."""
KINDS: Final = ("anonymous", "shared", "kernel", "files")
SECONDS: Final = 120.0


class PictureError(SandboxError):
    """A profile is there, but not the picture of it."""

    exit_code = 65
    summary = "the plot could not be drawn: {reason}"
    fix = "write it as a page with --html FILE, or use a kernel whose image has matplotlib"


def draw(profile: Profile, *, kernel: str, note: Note) -> bytes:
    """The picture, of a profile with at least one run, by a kernel of this name.

    Raises PictureError, and what keeps a sandbox from starting.
    """
    from kernel_provider.run.execute import run_notebook  # noqa: PLC0415  takes 1 s

    code = resources.files(__package__).joinpath("_inside.py").read_text(encoding="utf-8")
    text = json.dumps(book([f"{code}\n\nshow({data(profile)!r})"]))
    limits = profile.memory[0].limits
    with tempfile.TemporaryDirectory(prefix="executor-ml-profile-") as folder:
        request = RunRequest(
            notebook=Path(folder, "plot.ipynb"),
            output=None,
            kernel=kernel,
            overrides={"memory": limits.memory, "cpus": limits.cpus},
            timeout=SECONDS,
        )
        result = run_notebook(request, text, Watcher(note))
    return taken(result)


def taken(result: RunResult) -> bytes:
    """The picture that a run has drawn; raises PictureError."""
    try:
        return checked(_shown(result), width=WIDTH, height=HEIGHT)
    except ValueError as error:
        raise PictureError(reason=" ".join(printable(str(error)).split())) from error


def data(profile: Profile) -> dict[str, Any]:
    """What is drawn: seconds, bytes, processors."""
    first = profile.memory[0]
    recommended = profile.recommended
    return {
        "subject": profile.subject,
        "limit": first.limits.memory,
        "at": [round(sample.at, 3) for sample in first.seen.samples],
        "kinds": {k: [getattr(s.kinds, k) for s in first.seen.samples] for k in KINDS},
        "minimum": profile.minimum,
        "recommended": recommended and recommended.memory,
        "cpus": [trial.limits.cpus for trial in profile.cpus],
        "latency": [round(plan.latency(trial.seen), 3) for trial in profile.cpus],
        "knee": recommended and recommended.cpus,
    }


def _shown(result: RunResult) -> bytes:
    """What its cell shows as one; raises ValueError with why it shows none."""
    culprit = result.culprit
    if culprit is not None:
        msg = f"{culprit.error}: {culprit.message}"
        raise ValueError(msg)
    for output in json.loads(result.document)["cells"][0]["outputs"]:
        match output:
            case {"data": {"image/png": str() | list() as text}}:
                return base64.b64decode("".join(text).replace("\n", ""), validate=True)
    msg = "its cell shows no picture"
    raise ValueError(msg)
