"""What the seccomp profile refuses and allows, asked of a real kernel from inside.

Every probe also runs without the profile, where it must get another answer: a probe that
can't succeed anywhere would show nothing.
"""

import contextlib
import errno
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound
from docker.models.containers import Container

from kernel_provider import seccomp

pytestmark = pytest.mark.container

PYTHON = "/opt/venv/bin/python3"
UID = 52345
X86_ONLY = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="system call numbers are those of x86-64"
)

PROBE = r"""
import ctypes, json, mmap, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
page = ctypes.create_string_buffer(65536)
names = {
    "page": ctypes.addressof(page), "pid": os.getpid(), "uid": os.getuid(),
    "name": ctypes.addressof(name := ctypes.create_string_buffer(b"/probe")),
    "fifo": ctypes.addressof(fifo := ctypes.create_string_buffer(b"/tmp/fifo")),
    "char": ctypes.addressof(char := ctypes.create_string_buffer(b"/tmp/char")),
    "sock": ctypes.addressof(sock := ctypes.create_string_buffer(b"/tmp/sock")),
    "plain": ctypes.addressof(plain := ctypes.create_string_buffer(b"/tmp/plain")),
    "eight": ctypes.addressof(eight := ctypes.c_int(8)),
    "root": ctypes.addressof(root := ctypes.create_string_buffer(b"/")),
}
one, other = socket.socketpair()
names["unix"] = one.fileno()
names["master"], names["tty"] = os.openpty()
names["file"] = os.open(sys.executable, os.O_RDONLY)
names["netns"] = os.open("/proc/self/ns/net", os.O_RDONLY)
names["pipe"] = os.pipe()[1]
length = ctypes.c_int(4096)
names["length"] = ctypes.addressof(length)
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53b814000000cd805bc3"))  # 32-bit getpid through int 0x80
int80 = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))


def attempt(number, arguments):
    if number == "int80":
        return 0 if int80() > 0 else 1
    values = [ctypes.c_long(names.get(value, value)) for value in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *values)
    return ctypes.get_errno() if result == -1 else 0


answers = {}
for name, number, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        names["pid"] = os.getpid()
        os._exit(attempt(number, arguments))
    status = os.waitpid(child, 0)[1]
    answers[name] = os.waitstatus_to_exitcode(status)
print(json.dumps(answers))
"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A raw system call, and its errno (0 for success, minus a signal) under the profile.

    ``control``: without the profile the kernel answers otherwise. Where it does not, the
    profile is a second wall, and the probe shows only that nothing opened.
    """

    name: str
    number: int | str
    arguments: tuple[int | str, ...] = ()
    answer: int
    control: bool = True


HIGH = 1 << 32
"""A bit above those that the kernel reads of a 32-bit argument."""


def refused(name: str, number: int, *arguments: int | str, answer: int = errno.EPERM) -> Attempt:
    """An attempt that the profile refuses with an error of its own."""
    return Attempt(name=name, number=number, arguments=arguments, answer=answer)


def doubly(name: str, number: int, *arguments: int | str) -> Attempt:
    """An attempt that the kernel refuses as well, for want of capabilities."""
    return Attempt(name=name, number=number, arguments=arguments, answer=errno.EPERM, control=False)


def absent(name: str, number: int, *arguments: int | str) -> Attempt:
    """A call that the sandbox's kernel seems not to have."""
    return refused(name, number, *arguments, answer=errno.ENOSYS)


def allowed(name: str, number: int, *arguments: int | str) -> Attempt:
    """An attempt that succeeds."""
    return Attempt(name=name, number=number, arguments=arguments, answer=0, control=False)


GETSOCKOPT, SETSOCKOPT, IOCTL, PRCTL, PERSONALITY, SOCKET, SOCKETPAIR = (
    *(55, 54, 16, 157, 135, 41, 53),
)
CLONE, UNSHARE = 56, 272
NEWUSER, PIDFD, SIGCHLD = 0x10000000, 0x1000, 17

REFUSALS = (
    refused("ptrace traceme", 101, 0),
    refused("process_vm_readv", 310, "pid", "page", 0, "page", 0, 0),
    refused("process_vm_writev", 311, "pid", "page", 0, "page", 0, 0),
    refused("kcmp", 312, "pid", "pid", 0, 0, 0),
    absent("io_uring_setup", 425, 1, "page"),
    absent("io_uring_enter", 426, -1, 0, 0, 0, 0, 0),
    absent("io_uring_register", 427, -1),
    absent("pidfd_open", 434, "pid", 0),
    absent("pidfd_getfd", 438, -1, 0, 0),
    absent("pidfd_send_signal", 424, -1, 0, 0, 0),
    absent("process_madvise", 440, -1),
    absent("process_mrelease", 448, -1),
    absent("clone3", 435, "page", 0),
    refused("clone, new user namespace", CLONE, NEWUSER | SIGCHLD),
    refused("clone, with a high bit", CLONE, NEWUSER | SIGCHLD | HIGH),
    refused("clone, with a pidfd", CLONE, PIDFD | SIGCHLD, 0, "page"),
    refused("unshare", UNSHARE, NEWUSER),
    refused("setns", 308, -1, 0),
    doubly("mount", 165, 0, "root", 0, 0, 0),
    doubly("umount2", 166, "root", 0),
    doubly("pivot_root", 155, "root", "root"),
    doubly("chroot", 161, "root"),
    doubly("fsopen", 430, "name", 0),
    refused("open_tree", 428, -100, "root", 0),
    doubly("move_mount", 429, -1, "root", -1, "root", 0),
    refused("mount_setattr", 442, -1, "root", 0, 0, 0),
    refused("name_to_handle_at", 303, -100, "root", "page", "page", 0),
    refused("open_by_handle_at", 304, "file", "page", 0),
    refused("bpf", 321, 0, "page", 0),
    refused("perf_event_open", 298, "page", 0, -1, -1, 0),
    refused("modify_ldt", 154, 0, "page", 16),
    doubly("syslog", 103, 10, 0, 0),
    refused("sync", 162),
    refused("syncfs", 306, "file"),
    refused("adjtimex", 159, "page"),
    refused("ioprio_set", 251, 1, 0, 0x4004),
    doubly("acct", 163, 0),
    doubly("reboot", 169, 0, 0, 0, 0),
    refused("setuid to oneself", 105, "uid"),
    refused("setgid to oneself", 106, "uid"),
    refused("setresuid, unchanged", 117, -1, -1, -1),
    refused("setresgid, unchanged", 119, -1, -1, -1),
    doubly("setgroups", 116, 0, 0),
    refused("setfsuid", 122, "uid"),
    refused("capset", 126, "page", "page"),
    refused("add_key", 248, "name", "name", "page", 1, -2),
    refused("request_key", 249, "name", "name", 0, 0),
    refused("keyctl", 250, 0, -3, 1),
    refused("shmget", 29, 0, 4096, 0o1600),
    refused("semget", 64, 0, 1, 0o1600),
    refused("msgget", 68, 0, 0o1600),
    refused("mq_open", 240, "name", 0),
    refused("io_setup", 206, 1, "page"),
    refused("io_pgetevents", 333, 0, 0, 0, 0, 0, 0),
    refused("mlockall", 151, 4),
    refused("remap_file_pages", 216, 0, 0, 0, 0, 0),
    refused("move_pages", 279, 0, 0, 0, 0, 0, 0),
    refused("pkey_alloc", 330, 0, 0),
    refused("fanotify_init", 300, 0x200, 0),
    absent("userfaultfd", 323, 1),
    absent("memfd_secret", 447, 0),
    absent("splice", 275, "file", 0, "pipe", 0, 16, 0),
    absent("sendfile", 40, "pipe", "file", 0, 16),
    absent("tee", 276, -1, -1, 1, 0),
    absent("vmsplice", 278, "pipe", "page", 0, 0),
    absent("seccomp", 317, 2, 0, "page"),
    absent("landlock_create_ruleset", 444, 0, 0, 1),
    refused("character device 0:0", 133, "char", 0o020600, 0),
    refused("a socket by mknod", 133, "sock", 0o140600, 0),
    refused("a regular file by mknodat", 259, -100, "plain", 0o100600, 0),
    refused("no address randomisation", PERSONALITY, 0x0040000),
    refused("no address randomisation, high bit", PERSONALITY, 0x0040000 | HIGH),
    refused("limits of another", 302, 1, 4, "page", 0),
    refused("limits of another, high bit", 302, 1 | HIGH, 4, "page", 0),
    refused("priority of another", 141, 0, 1, 19),
    refused("priority of a user's all", 141, 2, 0, 0),
    refused("filter by prctl", PRCTL, 22, 2, 0),
    refused("core scheduling cookie", PRCTL, 62, 0, "pid", 0, "page"),
    doubly("PR_SET_MM", PRCTL, 35, 1, 0, 0, 0),
    refused("PR_SET_PTRACER", PRCTL, 0x59616D61, -1),
    refused("PR_SET_SYSCALL_USER_DISPATCH", PRCTL, 59, 0, 0, 0, 0),
    refused("SIOCGIFCONF", IOCTL, "unix", 0x8912, "page"),
    refused("SIOCGIFCONF, high bit", IOCTL, "unix", 0x8912 | HIGH, "page"),
    refused("SIOCGIFNAME", IOCTL, "unix", 0x8910, "page"),
    refused("SIOCGIFHWADDR", IOCTL, "unix", 0x8927, "page"),
    refused("SIOCETHTOOL", IOCTL, "unix", 0x8946, "page"),
    doubly("SIOCGSKNS", IOCTL, "unix", 0x894C, "page"),
    doubly("SIOCUNIXFILE", IOCTL, "unix", 0x89E0, 0),
    refused("NS_GET_USERNS", IOCTL, "netns", 0xB701, 0),
    refused("FS_IOC_GETFLAGS", IOCTL, "file", 0x80086601, "page"),
    doubly("TIOCSTI", IOCTL, "tty", 0x5412, "page"),
    doubly("TIOCSTI, high bit", IOCTL, "tty", 0x5412 | HIGH, "page"),
    refused("TIOCLINUX", IOCTL, "tty", 0x541C, "page"),
    refused("TIOCSETD", IOCTL, "tty", 0x5423, "page"),
    doubly("TIOCCONS", IOCTL, "tty", 0x541D, 0),
    refused("SO_PEERPIDFD", GETSOCKOPT, "unix", 1, 77, "page", "length"),
    refused("SO_PEERPIDFD, high", GETSOCKOPT, "unix", 1, 77 | HIGH, "page", "length"),
    refused("SO_PEERGROUPS", GETSOCKOPT, "unix", 1, 59, "page", "length"),
    refused("SO_PEERCRED", GETSOCKOPT, "unix", 1, 17, "page", "length"),
    refused("SO_PEERCRED, high", GETSOCKOPT, "unix", 1 | HIGH, 17, "page", "length"),
    refused("SO_NETNS_COOKIE", GETSOCKOPT, "unix", 1, 71, "page", "eight"),
    refused("SO_COOKIE", GETSOCKOPT, "unix", 1, 57, "page", "eight"),
    refused("SO_PASSPIDFD", SETSOCKOPT, "unix", 1, 76, "length", 4),
    refused("SO_PASSCRED", SETSOCKOPT, "unix", 1, 16, "length", 4),
    refused("SO_PASSCRED, high bit", SETSOCKOPT, "unix", 1, 16 | HIGH, "length", 4),
    refused("SO_ATTACH_FILTER", SETSOCKOPT, "unix", 1, 26, "page", 16),
    refused("an option of another level", GETSOCKOPT, "unix", 6, 1, "page", "length"),
    refused("sendto, urgent", 44, "unix", "page", 1, 1, 0, 0),
    refused("sendto, urgent, high bit", 44, "unix", "page", 1, 1 | HIGH, 0, 0),
    refused("sendmsg, urgent", 46, "unix", "page", 1),
    refused("sendmmsg, urgent", 307, "unix", "page", 1, 1),
)

ALLOWANCES = (
    allowed("personality, asked", PERSONALITY, 0xFFFFFFFF),
    allowed("personality, as it is", PERSONALITY, 0),
    allowed("a FIFO", 133, "fifo", 0o010600, 0),
    allowed("FIONREAD", IOCTL, "unix", 0x541B, "page"),
    allowed("FIONREAD, high bit", IOCTL, "unix", 0x541B | HIGH, "page"),
    allowed("FIONBIO", IOCTL, "unix", 0x5421, "page"),
    allowed("FIOCLEX", IOCTL, "file", 0x5451, 0),
    allowed("TCGETS", IOCTL, "tty", 0x5401, "page"),
    allowed("TCGETS2", IOCTL, "tty", 0x802C542A, "page"),
    allowed("TIOCGWINSZ", IOCTL, "tty", 0x5413, "page"),
    allowed("TIOCGPTN", IOCTL, "master", 0x80045430, "page"),
    allowed("SO_TYPE", GETSOCKOPT, "unix", 1, 3, "page", "length"),
    allowed("SO_DOMAIN", GETSOCKOPT, "unix", 1, 39, "page", "length"),
    allowed("SO_SNDBUF", SETSOCKOPT, "unix", 1, 7, "length", 4),
    allowed("sendto", 44, "unix", "page", 1, 0x4040, 0, 0),
    allowed("AF_UNIX stream", SOCKET, 1, 1, 0),
    allowed("AF_UNIX datagram, flags", SOCKET, 1, 2 | 0o2004000, 0),
    allowed("AF_UNIX pair", SOCKETPAIR, 1, 5, 0, "page"),
    allowed("limits, read", 302, 1, 7, 0, "page"),
    allowed("priority", 141, 0, 0, 5),
    allowed("PR_SET_NAME", PRCTL, 15, "name"),
    allowed("PR_SET_DUMPABLE", PRCTL, 4, 1, 0, 0, 0),
    allowed("eventfd2", 290, 0, 0),
    allowed("inotify_init1", 294, 0),
    allowed("memfd_create", 319, "name", 0),
    allowed("getrandom", 318, "page", 16, 0),
    allowed("timerfd_create", 283, 1, 0),
    allowed("fork by clone", CLONE, SIGCHLD),
)


def _families() -> Iterator[Attempt]:
    for family in (0, *range(2, 47), 1 << 16, 1 << 31):
        answer = errno.EOPNOTSUPP if family == 16 else errno.EAFNOSUPPORT
        for number, name in ((SOCKET, "socket"), (SOCKETPAIR, "socketpair")):
            # Type and protocol of no family in particular: 3 is SOCK_RAW.
            for kind in (1, 2, 3):
                yield refused(
                    f"{name} {family}, type {kind}",
                    number,
                    family,
                    kind,
                    0,
                    "page",
                    answer=answer,
                )
    for family in (1, 2, 40):
        yield refused(
            f"socket {family}, high bit",
            SOCKET,
            family | HIGH,
            1,
            0,
            answer=errno.EAFNOSUPPORT,
        )


FAMILIES = tuple(_families())
OTHER_ABIS = (
    Attempt(name="int 0x80", number="int80", answer=-signal.SIGSYS),
    Attempt(name="x32 getpid", number=0x40000000 | 39, answer=-signal.SIGSYS),
    Attempt(name="x32 ioctl", number=0x40000000 | 514, answer=-signal.SIGSYS),
)
LOOPBACK = (
    allowed("TCP", SOCKET, 2, 1, 0),
    allowed("TCP, named, with flags", SOCKET, 2, 1 | 0o2004000, 6),
    allowed("UDP", SOCKET, 2, 2, 17),
    allowed("AF_UNIX still", SOCKET, 1, 1, 0),
    doubly("raw", SOCKET, 2, 3, 1),
    refused("multipath TCP", SOCKET, 2, 1, 262),
    refused("ping", SOCKET, 2, 2, 1),
    refused("SCTP", SOCKET, 2, 1, 132),
    allowed("netlink, routes", SOCKET, 16, 3 | 0o2000000, 0),
    refused("netlink, sock_diag", SOCKET, 16, 3, 4),
    refused("netlink, uevents", SOCKET, 16, 2, 15),
    refused("vsock", SOCKET, 40, 1, 0, answer=errno.EAFNOSUPPORT),
    refused("packet", SOCKET, 17, 3, 0, answer=errno.EAFNOSUPPORT),
    refused("pair", SOCKETPAIR, 2, 1, 0, "page"),
)

Runner = Callable[..., tuple[int, str]]


@contextlib.contextmanager
def container(
    engine: docker.DockerClient,
    image: str,
    command: list[str],
    filter_text: str,
    **more: Any,
) -> Iterator[Container]:
    """A running sandbox as hard as a kernel's, with the given filter."""
    settings: dict[str, Any] = {
        "entrypoint": [],
        "labels": {"executor-ml": "test"},
        "network_mode": "none",
        "read_only": True,
        "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", f"seccomp={filter_text}"],
        "pids_limit": 64,
        "user": f"{UID}:{UID}",
        "mem_limit": "512m",
        "memswap_limit": "512m",
        "shm_size": "64m",
        "environment": {"HOME": "/tmp", "OMP_NUM_THREADS": "1"},
    }
    made = engine.containers.create(image, command, **settings | more)
    try:
        made.start()
        yield made
    finally:
        with contextlib.suppress(NotFound):
            made.remove(force=True)


@pytest.fixture(scope="module")
def run(engine: docker.DockerClient, image: str) -> Iterator[Runner]:
    """Runs Python code inside and returns exit code and output."""

    def runner(code: str, *arguments: str, filter_text: str, **more: Any) -> tuple[int, str]:
        command = [PYTHON, "-c", code, *arguments]
        with container(engine, image, command, filter_text, **more) as made:
            code_of_exit = int(made.wait(timeout=240)["StatusCode"])
            return code_of_exit, made.logs().decode(errors="replace")

    yield runner
    engine.close()  # its idle connections; the next call makes new ones


def ask(run: Runner, attempts: tuple[Attempt, ...], filter_text: str) -> dict[str, int]:
    """The errno of each attempt, by name, from one sandbox under the filter."""
    asked = [(attempt.name, attempt.number, attempt.arguments) for attempt in attempts]
    code, output = run(PROBE, json.dumps(asked), filter_text=filter_text)
    assert code == 0, output
    answers: dict[str, int] = json.loads(output)
    return answers


EVERY = (*REFUSALS, *ALLOWANCES, *FAMILIES, *OTHER_ABIS)


@pytest.fixture(scope="module")
def strict(run: Runner) -> dict[str, int]:
    """What the attempts answer under the profile."""
    return ask(run, EVERY, seccomp.profile_json(loopback=False))


@pytest.fixture(scope="module")
def bare(run: Runner) -> dict[str, int]:
    """What they answer without any filter."""
    return ask(run, EVERY, "unconfined")


def named(attempts: tuple[Attempt, ...]) -> pytest.MarkDecorator:
    """One test for each attempt."""
    return pytest.mark.parametrize("attempt", attempts, ids=lambda attempt: attempt.name)


@X86_ONLY
@named((*REFUSALS, *ALLOWANCES, *OTHER_ABIS))
def test_answers_each_call_as_the_table_says(
    attempt: Attempt, strict: dict[str, int], bare: dict[str, int]
) -> None:
    """What the table refuses gets exactly that error; without the filter it works."""
    assert strict[attempt.name] == attempt.answer
    if attempt.answer == bare[attempt.name] == errno.ENOSYS:
        pytest.skip("this machine's kernel does not have the call")
    if attempt.control:
        assert bare[attempt.name] != attempt.answer


@X86_ONLY
def test_makes_no_socket_but_af_unix(strict: dict[str, int], bare: dict[str, int]) -> None:
    """No family but AF_UNIX makes a socket, of any type, and netlink says EOPNOTSUPP."""
    assert {a.name: strict[a.name] for a in FAMILIES} == {a.name: a.answer for a in FAMILIES}
    opened = {attempt.name for attempt in FAMILIES if bare[attempt.name] == 0}
    assert {"socket 2, type 1", "socket 16, type 3", "socket 2, high bit"} <= opened


@X86_ONLY
def test_loopback_opens_tcp_and_udp_alone(run: Runner) -> None:
    """With ``loopback`` TCP and UDP sockets can be made, and nothing else on top."""
    answers = ask(run, LOOPBACK, seccomp.profile_json(loopback=True))
    assert answers == {attempt.name: attempt.answer for attempt in LOOPBACK}
    without = ask(run, LOOPBACK, "unconfined")
    assert not [a.name for a in LOOPBACK if a.control and without[a.name] == a.answer]


GPU_REQUESTS = tuple(
    refused(f"ioctl {number:#x}", IOCTL, "file", number, answer=errno.ENOTTY)
    for number in (0xC020462A, 0xC00846D6, 37, 0x30000001)
)
"""Requests of NVIDIA's driver, made of a plain file: that is no such device."""


@X86_ONLY
def test_gpus_let_the_drivers_requests_through(run: Runner) -> None:
    """With ``gpus`` they reach the kernel; the other answers stay as they are."""
    answers = ask(run, (*GPU_REQUESTS, *REFUSALS), seccomp.profile_json(gpus=True))
    assert answers == {a.name: a.answer for a in (*GPU_REQUESTS, *REFUSALS)}
    without = ask(run, GPU_REQUESTS, seccomp.profile_json())
    assert set(without.values()) == {errno.EPERM}


COMPATIBLE = r"""
import asyncio, ctypes, fcntl, json, mmap, multiprocessing, os, pty, select, shutil
import signal, socket, sqlite3, subprocess, sys, tempfile, termios, threading, time, tty
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

results = {}


def promise(function):
    try:
        function()
        results[function.__name__] = "ok"
    except BaseException as problem:
        results[function.__name__] = repr(problem)


@promise
def threads():
    seen = []
    workers = [threading.Thread(target=seen.append, args=(i,)) for i in range(8)]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    assert len(seen) == 8


@promise
def subprocesses():
    done = subprocess.run(["/bin/sh", "-c", "echo a | cat; exit 3"], capture_output=True)
    assert (done.returncode, done.stdout) == (3, b"a\n")
    os.posix_spawn("/bin/true", ["true"], {})
    assert os.wait()[1] == 0


@promise
def pools():
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
    with ProcessPoolExecutor(2) as executor:
        assert list(executor.map(abs, [-1])) == [1]


@promise
def queues_and_managers():
    queue = multiprocessing.Queue()
    worker = multiprocessing.Process(target=queue.put, args=(5,))
    worker.start()
    assert queue.get(timeout=20) == 5
    worker.join()
    with multiprocessing.Manager() as manager:
        assert manager.list([1])[0] == 1
    with multiprocessing.Lock():
        pass


@promise
def shared_memory():
    block = SharedMemory(create=True, size=1000)
    block.buf[0] = 1
    block.close()
    block.unlink()


@promise
def asyncio_streams_and_subprocesses():
    async def go():
        child = await asyncio.create_subprocess_exec("/bin/echo", "x", stdout=-1)
        assert (await child.communicate())[0] == b"x\n"

        async def serve(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(serve, "/tmp/a.sock")
        reader, writer = await asyncio.open_unix_connection("/tmp/a.sock")
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"
        writer.close()
        server.close()

    asyncio.run(go())


@promise
def sqlite():
    base = sqlite3.connect("/tmp/a.db")
    base.execute("pragma journal_mode=wal")
    base.execute("create table t(a)")
    base.execute("insert into t values(1)")
    base.commit()
    assert base.execute("select * from t").fetchall() == [(1,)]


@promise
def ptys():
    master, slave = os.openpty()
    os.write(slave, b"x")
    assert os.isatty(slave) and os.read(master, 1) == b"x"
    tty.setraw(slave)
    termios.tcdrain(slave)
    termios.tcsetwinsize(slave, (3, 4))
    assert termios.tcgetwinsize(slave) == (3, 4)
    pid, master = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", "tty"])
    assert b"/dev/pts" in os.read(master, 100)
    os.waitpid(pid, 0)


@promise
def signals_and_timers():
    child = os.fork()
    if child == 0:
        signal.pause()
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    hits = []
    signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.1)
    assert hits


@promise
def descriptors():
    poll, event = select.epoll(), os.eventfd(0)
    poll.register(event)
    os.eventfd_write(event, 1)
    assert poll.poll(1)
    memory = os.memfd_create("x")
    os.write(memory, b"a" * 4096)
    assert mmap.mmap(memory, 4096)[:1] == b"a"
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [event])
    assert len(socket.recv_fds(other, 1, 1)[1]) == 1
    one.setblocking(False)
    socket.socket(fileno=one.detach())
    os.set_inheritable(event, True)
    os.mkfifo("/tmp/named")
    with tempfile.NamedTemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@promise
def copies():
    with open("/tmp/a", "wb") as file:
        file.write(b"x" * 300_000)
    shutil.copy2("/tmp/a", "/tmp/b")
    one, other = socket.socketpair()
    with open("/tmp/b", "rb") as file:
        assert one.sendfile(file, count=1000) == 1000
    subprocess.run("cp -a /tmp/a /tmp/c && mv /tmp/c /tmp/d && ls -l /tmp", shell=True,
                   check=True, capture_output=True)
    assert os.path.getsize("/tmp/d") == 300_000


@promise
def names():
    assert socket.getaddrinfo("127.0.0.1", 80)
    try:
        socket.getaddrinfo("example.org", 80)
    except socket.gaierror:
        pass


@promise
def zeromq_over_passed_sockets():
    import zmq

    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/tmp/z.sock")
    listener.listen()
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.setsockopt(zmq.USE_FD, listener.detach())
    server.bind("ipc:///tmp/z.sock")
    client = context.socket(zmq.DEALER)
    client.connect("ipc:///tmp/z.sock")
    client.send(b"ping")
    assert server.poll(5000) and server.recv_multipart()[1] == b"ping"
    context.destroy(0)


@promise
def a_kernel():
    from jupyter_client.manager import KernelManager

    manager = KernelManager(transport="ipc", ip="/tmp/k", cache_ports=False)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    seen = []
    answer = client.execute_interactive(
        "print(6 * 7)\n!stty size",
        timeout=60,
        output_hook=lambda message: seen.append(message["content"].get("text", "")),
    )
    assert answer["content"]["status"] == "ok", answer
    assert "".join(seen).split() == ["42", "24", "80"], seen
    client.stop_channels()
    manager.shutdown_kernel(now=True)


print(json.dumps(results))
"""

SCIENCE = r"""
import io, sys

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

frame = pd.DataFrame({"a": np.random.rand(1000), "b": 1})
assert frame.groupby("b").a.mean().iloc[0] > 0
assert (np.random.rand(200, 200) @ np.random.rand(200, 200)).shape == (200, 200)
plt.plot([1, 2])
plt.savefig(io.BytesIO(), format="png")

data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, y in DataLoader(data, batch_size=16, num_workers=2):
    loss = ((model(x) - y) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), "/tmp/model.pt")
torch.load("/tmp/model.pt", mmap=True)

config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=64)
gpt = GPT2LMHeadModel(config)
made = gpt.generate(
    torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, pad_token_id=0,
    eos_token_id=99,
)
gpt.save_pretrained("/tmp/gpt")
GPT2LMHeadModel.from_pretrained("/tmp/gpt")
print("done", made.shape[1] > 3)
"""

DISTRIBUTED = r"""
import multiprocessing, os

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", GLOO_SOCKET_IFNAME="lo")
import torch
import torch.distributed


def work(rank):
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    tensor = torch.ones(2) * rank
    torch.distributed.all_reduce(tensor)
    assert tensor.tolist() == [1, 1]
    torch.distributed.destroy_process_group()


workers = [multiprocessing.Process(target=work, args=(rank,)) for rank in range(2)]
[worker.start() for worker in workers], [worker.join(60) for worker in workers]
print([worker.exitcode for worker in workers])
"""

LOOPBACK_SERVER = r"""
import asyncio, socket

socket.socket(socket.AF_INET).close()


async def go():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"a\n")
    assert await reader.readline() == b"a\n"
    writer.close()
    server.close()


asyncio.run(go())
one, other = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
one.bind(("127.0.0.1", 0))
other.sendto(b"x", one.getsockname())
assert one.recv(1) == b"x"
print("done")
"""

FORGET_ME = r"""
import ctypes, os, signal, time

time.sleep(1)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace(0, 0, 0, 0)
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""


def test_python_works_as_outside(run: Runner) -> None:
    """Threads, processes, shared memory, terminals, SQLite, asyncio, ZeroMQ, a kernel."""
    code, output = run(COMPATIBLE, filter_text=seccomp.profile_json(loopback=False))
    assert code == 0, output
    results: dict[str, str] = json.loads(output.splitlines()[-1])
    assert {name: result for name, result in results.items() if result != "ok"} == {}
    assert len(results) == 14


def test_machine_learning_works_as_outside(run: Runner) -> None:
    """numpy, pandas, matplotlib, PyTorch with data-loader workers, and Transformers."""
    code, output = run(
        SCIENCE,
        filter_text=seccomp.profile_json(loopback=False),
        cpu_period=100_000,
        cpu_quota=50_000,
    )
    assert (code, output.splitlines()[-1:]) == (0, ["done True"]), output


def test_loopback_carries_tcp_and_udp(run: Runner) -> None:
    """With ``loopback`` server and client in the sandbox meet; without it they can't."""
    filters = [seccomp.profile_json(loopback=loopback) for loopback in (True, False)]
    (code, output), (refused_code, refused_output) = (
        run(LOOPBACK_SERVER, filter_text=text) for text in filters
    )
    assert (code, output.strip()) == (0, "done"), output
    assert refused_code == 1
    assert "Address family not supported" in refused_output


def test_loopback_carries_torch_distributed(run: Runner) -> None:
    """With ``loopback`` two gloo processes in one sandbox reduce a tensor."""
    code, output = run(DISTRIBUTED, filter_text=seccomp.profile_json(loopback=True))
    assert (code, output.splitlines()[-1:]) == (0, ["[0, 0]"]), output


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _command(pid: int) -> bytes:
    """The command line of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _forgotten(made: Container) -> bool:
    """Whether the engine thinks within five seconds that the container ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        made.reload()
        if made.attrs["State"]["Status"] != "running":
            return True
        time.sleep(0.2)
    return False


def test_engine_does_not_lose_a_sandbox(engine: docker.DockerClient, image: str) -> None:
    """PID 1 that asks to be traced and stops stays known, and dies when it is removed."""
    filter_text = seccomp.profile_json(loopback=False)
    with container(engine, image, [PYTHON, "-c", FORGET_ME], filter_text) as made:
        made.reload()
        pid = int(made.attrs["State"]["Pid"])
        assert not _forgotten(made)
        assert _alive(pid)
    assert not _alive(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can end a sandbox that is lost")
def test_engine_loses_one_without_the_profile(engine: docker.DockerClient, image: str) -> None:
    """The control: under no filter the same code makes the engine forget a live process."""
    with container(engine, image, [PYTHON, "-c", FORGET_ME], "unconfined") as made:
        made.reload()
        pid = int(made.attrs["State"]["Pid"])
        shim = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
        try:
            assert _forgotten(made)
            assert _alive(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    # The engine forgot it, so its shim, the parent of its PID 1, waits for ever: ours to end.
    if str(made.id).encode() in _command(shim):
        os.kill(shim, signal.SIGKILL)
