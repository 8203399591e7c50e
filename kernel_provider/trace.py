"""When each step of a launch was over, for whoever wants to see where the time goes.

Off unless EXECUTOR_ML_TRACE names a file: then every process of a launch adds lines to
it, each a step and its moment on the clock that all of them share (CLOCK_MONOTONIC). A
sandbox learns that steps are noted, and nothing of the file. On the path of every
launch: nothing but builtin modules here.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "EXECUTOR_ML_TRACE"
_MARK: Final = "trace"  # how a sandbox's lines begin


class Trace:
    """Notes steps in the file at ``path``; does nothing where that is empty."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def wanted(cls, environ: Mapping[str, str]) -> "Trace":
        """The one that the environment asks for, if it does."""
        return cls(environ.get(VARIABLE, ""))

    def mark(self, step: str, at: int | None = None) -> None:
        """Note that a step is over, now or ``at`` (ns). A file that can't be written is none."""
        if not self.path:
            return
        line = json.dumps({"step": step, "at": at or time.monotonic_ns(), "pid": os.getpid()})
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:
            self.path = ""
            return
        os.write(file, line.encode() + b"\n")
        os.close(file)

    def mark_log(self, text: str) -> None:
        """Note the steps of a sandbox, from its log: ``trace STEP NS`` in each line."""
        for line in text.splitlines():
            mark, _, rest = line.partition(" ")
            step, _, at = rest.rpartition(" ")
            if mark == _MARK and step and at.isdecimal():
                self.mark(f"sandbox: {step}", int(at))


OFF: Final = Trace("")
