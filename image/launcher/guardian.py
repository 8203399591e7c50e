"""PID 1 of a sandbox: starts the kernel, watches over it, and ends with its warden.

It is the one process in the sandbox that user code cannot reach: undumpable, so that
no process of the same uid can open its memory or descriptors, and as PID 1 immune to
signals that it has no handler for. It fetches the kernel's listening sockets from the
warden through the rendezvous, hands them down, passes one claim on (with the copy of
the notebook's folder, if there is one), and from then on says one thing only: how the
kernel ended.

Standard library only, and little of that: this runs before anything else can start.
"""

import _socket
import os
import sys

RENDEZVOUS = "/run/executor/rendezvous"
KERNEL = "/opt/executor/sandbox_kernel.py"
CHANNEL_FD = 3
LISTENERS = 5
WIDTH = 4
"""Bytes of a descriptor's number in a message."""
PATIENCE = 2.0
"""Seconds that the warden gets to read the sandbox's counters after the kernel's end."""

FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")


def spawn_kernel(channel: int) -> int:
    """Start the kernel in a process group and session of its own; return its pid.

    ``channel`` becomes its descriptor 3. Nothing but that and the container's own
    standard streams is inherited.
    """
    return os.posix_spawn(
        sys.executable,
        [sys.executable, KERNEL],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, channel, CHANNEL_FD)],
        setsid=True,
    )


def mark(step: str) -> None:
    """Put into the container's log when a step was over, where the host wants to know."""
    if "EXECUTOR_ML_TRACE" in os.environ:
        import time  # noqa: PLC0415

        os.write(2, f"trace {step} {time.monotonic_ns()}\n".encode())


def become_undumpable() -> None:
    """Close /proc/1 to processes of the same uid (PR_SET_DUMPABLE = 4)."""
    import ctypes  # noqa: PLC0415  after the kernel was started: it costs 3 ms

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(4, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def receive(source: _socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """Receive at most ``size`` bytes, and the ``count`` descriptors that came with them."""
    space = _socket.CMSG_SPACE(count * WIDTH)
    data, ancillary, _, _ = source.recvmsg(size, space, _socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        int.from_bytes(packed[at : at + WIDTH], sys.byteorder)
        for level, kind, packed in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(packed) - WIDTH + 1, WIDTH)
    ]
    return data, descriptors


def hand_down(kernel: _socket.socket, data: bytes, descriptors: list[int]) -> None:
    """Give the kernel bytes and descriptors, and keep none of those."""
    packed = b"".join(fd.to_bytes(WIDTH, sys.byteorder) for fd in descriptors)
    try:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if packed else []
        sent = kernel.sendmsg([data], rights)
        if sent < len(data):  # a kernel that has it all may be off already
            kernel.sendall(data[sent:])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def pass_listeners(warden: _socket.socket, kernel: _socket.socket) -> None:
    """Fetch the five listening sockets and hand them to the kernel."""
    data, descriptors = receive(warden, 1, LISTENERS)
    if len(descriptors) != LISTENERS:
        msg = f"the warden passed {len(descriptors)} sockets instead of {LISTENERS}"
        raise OSError(msg)
    hand_down(kernel, data, descriptors)


def fall_silent() -> None:
    """From the claim on, nothing reaches the container's log."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


class Guardian:
    """The loop: lines between warden and kernel until the claim, then only the end."""

    def __init__(self, warden: _socket.socket, kernel: _socket.socket, pid: int) -> None:
        self.warden = warden
        self.kernel: _socket.socket | None = kernel
        self.pid = pid
        self.status: int | None = None

    def run(self) -> int:
        """Watch until the kernel or the warden ends; return the exit code."""
        import select  # noqa: PLC0415  see above
        import signal  # noqa: PLC0415

        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for name in FORWARDED:
            signal.signal(getattr(signal, name), self.forward)
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        poller.register(self.warden.fileno(), select.POLLIN)
        if self.kernel is not None:
            poller.register(self.kernel.fileno(), select.POLLIN)
        self.reap()
        while self.status is None:
            for descriptor, _ in poller.poll():
                if descriptor == reader:
                    os.read(reader, 4096)
                    self.reap()
                elif descriptor == self.warden.fileno():
                    self.from_warden()
                elif not self.from_kernel():
                    poller.unregister(descriptor)
        return self.farewell(self.status)

    def forward(self, number: int, _frame: object) -> None:
        """Pass a signal of the engine's on to the kernel's process group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def reap(self) -> None:
        """Collect every child that ended; orphans of the kernel are ours as well."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = os.waitstatus_to_exitcode(status)

    def from_warden(self) -> None:
        """Pass the claim on, with what came with it; an end here is the sandbox's end."""
        data, descriptors = receive(self.warden, 65536, 1)
        if not data:
            os._exit(0)
        if self.kernel is not None:
            hand_down(self.kernel, data, descriptors)

    def from_kernel(self) -> bool:
        """Pass ``parked`` and ``ready`` on; from then on the kernel has no way here."""
        assert self.kernel is not None
        try:
            data = self.kernel.recv(64)
        except ConnectionResetError:  # it ended with the sockets still unread
            data = b""
        if data in {b"parked\n", b"ready\n"}:
            self.warden.sendall(data)
        if data == b"parked\n":
            return True
        if data:
            fall_silent()
        self.kernel.close()
        self.kernel = None
        return False

    def farewell(self, status: int) -> int:
        """Kill what the kernel left, say how it ended, wait for the warden to look."""
        try:
            os.kill(-1, 9)
        except ProcessLookupError:
            pass
        try:
            self.warden.sendall(f"exit {status}\n".encode())
            self.warden.settimeout(PATIENCE)
            while self.warden.recv(4096):
                pass
        except OSError:
            pass
        return 128 - status if status < 0 else status


def main() -> None:
    """Start the kernel first: its imports take longest and wait for nobody."""
    mark("guardian")
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    pid = spawn_kernel(theirs.fileno())
    theirs.close()
    become_undumpable()
    try:  # the first victim, where memory runs out, is the kernel and not this process
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")
    except OSError:
        pass
    warden = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    warden.connect(RENDEZVOUS + "/s")
    try:
        pass_listeners(warden, ours)
    except BrokenPipeError:  # the kernel has ended already: its end is what is to be told
        pass
    os._exit(Guardian(warden, ours, pid).run())


if __name__ == "__main__":
    main()
