"""Processes that an owner starts: wardens, and removers of what a lost warden left.

Nobody waits for them. They do their work while the owner serves others, and finish it
when the owner has ended.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kernel_provider.warden.order import Order

_LOG: Final = logging.getLogger("executor-ml")
_LEFT: Final = "A sandbox that lost its warden may be left; to remove it, run: executor-ml prune"
_BOOT: Final = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "from kernel_provider.warden.lean import read_later; read_later('inspect')\n"
    "from kernel_provider.{} import main; main()"
)
_ENGINE: Final = ("DOCKER_HOST", "XDG_RUNTIME_DIR")
"""What an engine is found by."""


def start_warden(order: Order, listener: socket.socket) -> int:
    """Start a warden with its order and its socket; give its pid, which is to be reaped."""
    reader = os.memfd_create("order", os.MFD_CLOEXEC)
    with os.fdopen(reader, "r+b", buffering=0) as file:
        file.write(order.to_json().encode())
        file.seek(0)
        log = f"{order.folder}/log"
        files: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, file.fileno(), 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, listener.fileno(), 3),
        ]
        return _start("warden.main", [], {}, files)


def remove_remains(folder: str, environ: Mapping[str, str]) -> None:
    """Have a lost warden's folder removed, and every sandbox whose warden is dead.

    The next start of any kernel would do it as well, but may never come. Returns at
    once, and is done even if this process ends meanwhile: it is a process of its own,
    not a thread, so that an engine that hangs holds up neither an event loop nor the
    end of a script.
    """
    found = {name: environ[name] for name in _ENGINE if name in environ}
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        pid = _start("remover", [folder], found, files)
    except OSError:
        _LOG.warning(_LEFT)
        return
    reap_later(pid, failure=_LEFT)


def _start(
    module: str,
    arguments: list[str],
    environ: Mapping[str, str],
    files: Sequence[tuple[Any, ...]],
) -> int:
    """Start a module's ``main`` in a session of its own, with nothing of ours but this."""
    package = str(Path(__file__).resolve().parent.parent)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _BOOT.format(module), package, *arguments],
        {"PATH": os.defpath, "LANG": "C.UTF-8", **environ},
        file_actions=files,
        setsid=True,
    )


def reap_later(pid: int, *, failure: str = "") -> None:
    """Collect a child that is about to end, or it would stay a zombie of ours.

    ``failure`` is logged if it does not end well.
    """

    def collect() -> None:
        with suppress(ChildProcessError):
            _, status = os.waitpid(pid, 0)
            if status and failure:
                _LOG.warning(failure)

    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
    with suppress(RuntimeError):  # the interpreter is ending: init will do it
        threading.Thread(target=collect, name="executor-ml-reaper", daemon=True).start()
