"""What the shell starts as ``executor-ml``: Ctrl-C and closed pipes end it in order.

Nothing is imported before it is ready to be interrupted: some commands take a second
to import what they need, and that is when people change their minds.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

INTERRUPTED: Final = 130
UNREAD: Final = 141
"""Exit code where nobody reads the output, as of programs that SIGPIPE ends."""
UNUSED: Final = ("rfc3987_syntax",)
"""Modules that nothing here needs. JupyterLab brings this one along for ``jsonschema``, which
does without where it can't be imported: it reads a grammar of IRIs for 1.5 s each time that
a notebook is to be read, half of the time of a short ``executor-ml run``."""


def main() -> int:
    """Run the command line; one line and no traceback whenever it is interrupted."""
    with suppress(KeyboardInterrupt):
        try:
            return _run()
        except BrokenPipeError:
            # https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNREAD
        finally:
            # Nothing is left that needs an order: another Ctrl-C just ends the process.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("executor-ml: interrupted", file=sys.stderr)
    return INTERRUPTED


def _run() -> int:
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        from kernel_provider import cli  # noqa: PLC0415  see above

        return cli.main()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can still be handled


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C comes at the end of the body: modules may swallow it while they are imported."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
