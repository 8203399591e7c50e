"""The kernel of a sandbox: ipykernel on sockets that it was handed, started in two steps.

First it parks: everything imported, the shell made, sockets bound, bound to nobody.
Then one claim brings key, environment and, if wanted, files, and it serves. It opens
no network socket: shell, control, stdin, iopub and heartbeat live on listening sockets
made outside (``zmq.USE_FD``), and the pipe for the output of forked workers on an
abstract socket of the sandbox's own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import sandbox_hints
import sandbox_limits
import sandbox_models
import sandbox_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHANNEL_FD = 3
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
"""Order of the descriptors, and, from 1, of the port numbers in the connection info."""

PRELOAD_FAILED = 3
"""Exit code by which the host knows that a module of the policy cannot be imported."""

LAST_WORDS = 10.0
"""Seconds from a kernel's wish to end, or its client's, to its end, whatever goes on."""

WORK = "/tmp/work"  # noqa: S108  the sandbox's own /tmp

_steps: list[str] = []
"""What is over, and when (ns, monotonic), where the host wants to know."""


def mark(step: str) -> None:
    """Note that a step is over."""
    if "EXECUTOR_ML_TRACE" in os.environ:
        _steps.append(f"trace {step} {time.monotonic_ns()}")


def tell_steps() -> None:
    """Put them into the container's log, where a notebook sees nothing of them."""
    if os.environ.pop("EXECUTOR_ML_TRACE", ""):
        print("\n".join(_steps), file=sys.__stderr__, flush=True)


def receive_listeners(channel: socket.socket) -> list[int]:
    """Receive the five listening sockets from the guardian, in the order of CHANNELS."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, len(CHANNELS))
    if len(descriptors) != len(CHANNELS):
        msg = f"expected {len(CHANNELS)} sockets, got {len(descriptors)}"
        raise OSError(msg)
    return list(descriptors)


def prepare_folders() -> None:
    """Make the folders that the environment promises: the tmpfs is empty at each start."""
    for variable in ("HOME", "HF_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "XDG_CACHE_HOME"):
        if os.environ.get(variable, "").startswith("/tmp/"):  # noqa: S108
            os.makedirs(os.environ[variable], exist_ok=True)
    os.makedirs(WORK, exist_ok=True)
    os.chdir(WORK)


def has_tcp() -> bool:
    """Whether this sandbox can talk TCP to itself: the policy's ``loopback``."""
    try:
        socket.socket(socket.AF_INET).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def debugger_where_it_works() -> Iterator[None]:
    """Have ipykernel find the visual debugger's other half in sandboxes with TCP only.

    It needs TCP, and importing it in vain would take a third of the start.
    """
    if has_tcp():
        # or its look at Python's own modules, which are built in, ends in a warning
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        yield
        return
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["debugpy"]


def make_app(listeners: list[int]) -> Any:
    """Build ipykernel's application around the descriptors; nothing is served yet."""
    import ipykernel.kernelapp  # noqa: PLC0415
    import sandbox_io  # noqa: PLC0415
    import zmq  # noqa: PLC0415
    from traitlets.config import Config  # noqa: PLC0415

    mark("ipykernel imported")
    descriptors = dict(enumerate(listeners, start=1))

    class SandboxKernelApp(ipykernel.kernelapp.IPKernelApp):
        """ipykernel's application, told by descriptors instead of a connection file."""

        def init_connection_file(self) -> None:
            self.transport = "ipc"
            for port, channel in enumerate(CHANNELS, start=1):
                setattr(self, f"{channel}_port", port)

        def write_connection_file(self, **_: Any) -> None:
            """There is none: the key is brought by the claim."""

        def cleanup_connection_file(self) -> None:
            """There is none."""

        def log_connection_info(self) -> None:
            self._ports = {c: getattr(self, f"{c}_port") for c in CHANNELS}

        def _bind_socket(self, s: Any, port: int) -> int:
            s.setsockopt(zmq.USE_FD, descriptors[port])
            s.bind(f"ipc://channel-{port}")
            s.setsockopt(zmq.USE_FD, -1)
            if port == self.shell_port:  # the last endpoint is what the debugger connects to
                s.bind("inproc://executor-shell")
            return port

        def init_heartbeat(self) -> None:
            address = (self.transport, self.ip, self.hb_port)
            self.heartbeat = sandbox_io.PassedHeartbeat(zmq.Context(), address)
            self.heartbeat.descriptor = descriptors[self.hb_port]
            self.heartbeat.start()

    module: Any = ipykernel.kernelapp
    module.IOPubThread = sandbox_io.SandboxIOPubThread
    config = Config()
    config.IPKernelApp.outstream_class = "sandbox_io.SandboxOutStream"
    config.HistoryManager.hist_file = ":memory:"
    app = SandboxKernelApp.instance(config=config)
    app.initialize([])
    fit(app)
    mark("IPython ready")
    return app


def fit(app: Any) -> None:
    """Have the shell and what it says fit into a sandbox."""
    import sandbox_io  # noqa: PLC0415

    app.shell._tee = keep_no_copy  # noqa: SLF001
    answer_usage(app.kernel)
    heed_shutdown(app.kernel)
    publish = app.kernel._publish_status  # noqa: SLF001
    sandbox_io.leave_with_output(app.iopub_thread, lambda: publish("busy", "shell"))


def keep_no_copy(channel: str) -> contextlib.AbstractContextManager[None]:
    """Replace IPython's copying of everything that cells print, for %notebook.

    100 MB of output would be 100 MB of the sandbox's memory, for good.
    """
    del channel
    return contextlib.nullcontext()


def answer_usage(kernel: Any) -> None:
    """Have usage requests answered by a module that is loaded at the first of them."""
    place = f"{os.path.dirname(__file__)}/sandbox_usage.py"

    @functools.cache
    def meter() -> Any:
        spec: Any = importlib.util.spec_from_file_location("sandbox_usage", place)
        module: Any = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module.Meter()

    async def usage_request(stream: Any, ident: Any, parent: Any) -> None:
        kernel.session.send(stream, "usage_reply", meter().content(), parent, ident)

    kernel.control_handlers["usage_request"] = usage_request


def heed_shutdown(kernel: Any) -> None:
    """Have a kernel that was asked to end do so, also while a cell goes on."""

    def heeding(shut_down: Callable[..., Any]) -> Callable[..., Any]:
        async def shutdown_request(stream: Any, ident: Any, parent: Any) -> None:
            end_in_time()
            await shut_down(stream, ident, parent)

        return shutdown_request

    for handlers in (kernel.control_handlers, kernel.shell_handlers):
        handlers["shutdown_request"] = heeding(handlers["shutdown_request"])


def end_in_time(leave: Callable[[int], Any] = os._exit) -> None:
    """End after ``LAST_WORDS`` in any case, by the system's own ``_exit``: it waits for nothing."""
    timer = threading.Timer(LAST_WORDS, leave, (0,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no room for a thread: then without a limit
        timer.start()


def warm_up(modules: str) -> None:
    """Import, while parked, what notebooks usually begin with; not every image has it."""
    for module in filter(None, modules.split(",")):
        with contextlib.suppress(ImportError):
            __import__(module)


def preload() -> None:
    """Import what the policy wants warm; no kernel without it (see PRELOAD_FAILED)."""
    for module in filter(None, os.environ.pop("EXECUTOR_ML_PRELOAD", "").split(",")):
        try:
            __import__(module)
        except Exception as error:  # noqa: BLE001  a module may raise anything
            print(f"preload of {module}: {type(error).__name__}: {error}", file=sys.__stderr__)
            sys.exit(PRELOAD_FAILED)


def fall_silent() -> None:
    """From the claim on, nothing reaches the container's log: user code must not fill it."""
    null = os.open(os.devnull, os.O_RDWR)
    targets = [0] + [
        getattr(stream, "_original_stdstream_copy", number)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    ]
    for target in targets:
        os.dup2(null, target)
    os.close(null)


def read_claim(channel: socket.socket) -> tuple[dict[str, Any], int]:
    """Wait, parked, for the one line that binds this kernel to somebody.

    With it may come the copy of a folder, by its descriptor; else that is -1.
    """
    line, copy = b"", [-1]
    while not line.endswith(b"\n"):
        data, came, _, _ = socket.recv_fds(channel, 65536, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            sys.exit(0)
        line += data
        copy += came
    claim: dict[str, Any] = json.loads(line)
    return claim, copy[-1]


def apply_claim(app: Any, claim: dict[str, Any], copy: int) -> None:
    """Take key, environment and working directory, with the notebook's files in it."""
    os.environ.update(claim["env"])
    if "TZ" in claim["env"]:
        time.tzset()
    app.session.key = claim["key"].encode()
    if claim.get("cwd"):
        os.makedirs(claim["cwd"], exist_ok=True)
        os.chdir(claim["cwd"])
    copied = bool(claim.get("workspace"))
    if copied:
        sandbox_workspace.take(copy, claim["cwd"])
    limits = sandbox_limits.Limits(claim.get("kernel", ""))
    missing = functools.partial(sandbox_workspace.hint, copied=copied)
    sandbox_hints.add_hints(app.shell, missing, limits.hint)
    app.shell.events.register("post_run_cell", limits.note)


def end(app: Any) -> None:
    """Run what is registered for the end, and end: taking torch apart would take 1 s.

    First the control thread has its say, "idle" after a request to end: it speaks through
    a thread that the first exit function ends, and would wait for that one for good.
    """
    end_in_time()
    app.control_thread.stop()
    app.control_thread.join(LAST_WORDS)
    atexit._run_exitfuncs()  # noqa: SLF001  as the interpreter does; os._exit skips it
    os._exit(0)


def rehearse(shell: Any) -> None:
    """Run a first cell of nothing, while parked: what it sets up costs the real one 10 ms."""
    shell.run_cell("pass", store_history=False, silent=True)


def settle(*, parked: bool) -> None:
    """Never look for garbage among what was imported: it is there to stay."""
    if parked:
        gc.collect()
    gc.freeze()
    gc.enable()


def main() -> None:
    """Park, be claimed, serve."""
    gc.disable()  # importing makes much that stays and little garbage: a twentieth of the start
    mark("interpreter")
    channel = socket.socket(fileno=CHANNEL_FD)
    channel.set_inheritable(False)
    prepare_folders()
    sandbox_models.install()
    warm = os.environ.pop("EXECUTOR_ML_WARM", None)
    preload()
    warm_up(warm or "")
    mark("preloaded")
    with debugger_where_it_works():
        app = make_app(receive_listeners(channel))
    del sys.path[0]  # the launcher's own folder is no place for a notebook's imports
    if warm is not None:
        rehearse(app.shell)
    settle(parked=warm is not None)
    tell_steps()
    channel.sendall(b"parked\n")
    apply_claim(app, *read_claim(channel))
    fall_silent()
    channel.sendall(b"ready\n")
    channel.close()
    app.start()
    end(app)


if __name__ == "__main__":
    main()
