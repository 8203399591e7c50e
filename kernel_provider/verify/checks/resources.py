"""Every limit, used up; what it tries ends by itself a little above the limit."""

import os
import time
from typing import Any, Final

from kernel_provider.hardening import LOG_SIZE, NOFILE
from kernel_provider.values import MIB
from kernel_provider.verify.judges import unless
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Judge, Verdict, Where, verdict

CPU_SLACK: Final = 1.2
"""Times its share that a sandbox may seem to have: a quota is held period by period."""


def _killed(report: Any, look: Look) -> Verdict:
    peak, limit = look.group.usage().memory_peak, look.policy.memory
    happened = f"{report['end']} at {report['taken'] / MIB:.0f} MB; peak {peak / MIB:.0f} MB"
    return verdict(report["end"] == "SIGKILL" and peak <= limit, happened)


def _counted(what: str) -> Judge:
    """What was taken, or most of it, is counted as the sandbox's memory."""

    def judge(report: Any, look: Look) -> Verdict:
        grown = look.group.load().memory - look.before.memory
        happened = f"{report / MIB:.0f} MB of {what}, {grown / MIB:.0f} MB counted"
        return verdict(report > MIB and grown > 0.7 * report, happened)

    return judge


def _pids(report: Any, look: Look) -> Verdict:
    now = look.group.load().pids
    held = report["error"] in {"EAGAIN", "RuntimeError"} and now <= look.policy.pids
    held = held and report["made"] < look.policy.pids
    return verdict(held, f"{report['error']} after {report['made']}, {now} on the host")


def _share(_report: Any, look: Look) -> Verdict:
    used = (look.group.load().cpu_time - look.before.cpu_time) / 1e6
    share = used / (time.monotonic() - look.at)
    happened = f"4 busy processes had {share:.2f} processors of {look.policy.cpus:g}"
    return verdict(0 < share <= look.policy.cpus * CPU_SLACK, happened)


def _limits(report: Any, look: Look) -> Verdict:
    found, policy = look.group.limits(), look.policy
    asked = {
        "memory": policy.memory,
        "memory+swap": policy.memory,
        "pids": policy.pids,
        "cpu_quota": int(policy.cpus * 100_000),
    }
    wrong = [f"{key} is {found[key]}" for key, value in asked.items() if found[key] != value]
    inside = look.guardian in look.group.processes() and report
    return verdict(not wrong and inside, ", ".join(wrong) or "all as the policy says, no swap")


def _files(report: Any, _look: Look) -> Verdict:
    held = report["error"] == "EMFILE" and report["made"] <= NOFILE == max(report["limits"])
    return verdict(held, f"{report['error']} after {report['made']} descriptors")


def _cores(report: Any, _look: Look) -> Verdict:
    held = report == {"limits": [0, 0], "dumped": False}
    return verdict(held, f"limits {report['limits']}, dumped: {report['dumped']}")


def _terminals(report: Any, _look: Look) -> Verdict:
    try:
        for descriptor in os.openpty():
            os.close(descriptor)
    except OSError as error:
        return verdict(held=False, happened=f"the host can open none ({error.strerror})")
    seen = f"{report['made']} opened, {report['seen']} seen inside; the host opens its own"
    return verdict(report["made"] > 0 and report["seen"] <= report["made"], seen)


def _log(_report: Any, look: Look) -> Verdict:
    config = look.attributes["HostConfig"]["LogConfig"]
    size, files = (config["Config"].get(key, "") for key in ("max-size", "max-file"))
    held = config["Type"] == "none" or (size.isdigit() and int(size) <= LOG_SIZE and files == "1")
    return verdict(held, f"{config['Type']}, {size or 'no'} bytes at most, {files or 'any'} file")


_PIDS = """
most = v["pids"] + 100
"""

_TAKE = """
def private(size):
    piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, 4096):
        piece[at] = 1
    return piece
def shared(size):
    piece = mmap.mmap(-1, size)
    for at in range(0, size, 4096):
        piece[at] = 1
    return piece
def file(size):
    fd = os.memfd_create("verify")
    os.posix_fallocate(fd, 0, size)
    return fd
def objects(size):
    return [bytes([n % 256]) * 1000 for n in range(size // 1000)]
most = int(v["memory"] * 1.2) + 64 * MIB
"""


def _bomb(kind: str, name: str, what: str) -> Check:
    return Check(
        name=f"memory-{name}",
        promise=f"memory is limited, as {what}",
        tried="taking a fifth more than there is, in a child",
        code=f"{_TAKE}\nreport = hoard({kind}, most)",
        judge=_killed,
        where=Where.ROUGH,
    )


CHECKS: Final = (
    Check(
        name="limits",
        promise="memory, swap, processes and processor are limited as the policy says",
        tried="reading the control group on the host",
        code="report = True",
        judge=_limits,
        where=Where.ROUGH,
    ),
    Check(
        name="fork-bomb",
        promise="processes are limited",
        tried="children that have children, as fast as can be",
        code=_PIDS
        + """
counts = shared_numbers(2)
def bomb():
    while counts[0] < most:
        try:
            if os.fork() == 0:
                counts[0] += 1
                continue
        except OSError as problem:
            counts[1] = problem.errno
            time.sleep(60)
    time.sleep(60)
child(bomb)
deadline = time.monotonic() + PATIENCE
while counts[0] < most and not counts[1] and time.monotonic() < deadline:
    time.sleep(0.05)
report = {"error": errno.errorcode.get(counts[1], "none"), "made": len(processes())}
""",
        judge=_pids,
        where=Where.ROUGH,
    ),
    Check(
        name="threads",
        promise="threads are limited with the processes",
        tried="starting threads in a child until one is refused",
        code=_PIDS
        + """
def start(count):
    while count[0] < most:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count[0] += 1
made = filled(start)
report = {"error": "RuntimeError" if made < most else "none", "made": made}
""",
        judge=_pids,
        where=Where.ROUGH,
    ),
    _bomb("private", "private", "pages of one's own"),
    _bomb("shared", "shared", "pages shared with children"),
    _bomb("file", "memfd", "files without a name (memfd)"),
    _bomb("objects", "objects", "Python's objects"),
    Check(
        name="memory-sockets",
        promise="unread data in sockets counts as memory",
        tried="stream and datagram pairs, filled and left unread",
        code="""
def fill(took):
    global kept
    kept = []
    for number in range(300):
        pair = socket.socketpair(1, 1 if number % 2 else 2)
        kept.append(pair)
        pair[0].setblocking(False)
        try:
            while took[0] < 40 * MIB:
                took[0] += pair[0].send(bytes(32768))
        except OSError:
            continue
report = filled(fill)
""",
        judge=_counted("unread data"),
        where=Where.ROUGH,
    ),
    Check(
        name="memory-pipes",
        promise="unread data in pipes counts as memory",
        tried="pipes as large as they may be, filled and left unread",
        code="""
def fill(took):
    global kept
    kept = []
    for number in range(300):
        pair = os.pipe()
        kept.append(pair)
        told(lambda: fcntl.fcntl(pair[1], 1031, MIB))
        os.set_blocking(pair[1], False)
        try:
            while took[0] < 40 * MIB:
                took[0] += os.write(pair[1], bytes(65536))
        except OSError:
            continue
report = filled(fill)
""",
        judge=_counted("unread data"),
        where=Where.ROUGH,
    ),
    Check(
        name="memory-loopback",
        promise="unread data in TCP and UDP sockets counts as memory",
        tried="datagrams to itself, left unread",
        code="""
def fill(took):
    global kept
    kept = []
    for _ in range(300):
        one, other = socket.socket(2, 2), socket.socket(2, 2)
        one.bind(("127.0.0.1", 0))
        kept.append((one, other))
        for _ in range(4):
            took[0] += other.sendto(bytes(40000), one.getsockname())
report = filled(fill)
""",
        judge=_counted("unread datagrams"),
        where=Where.ROUGH,
        needs=unless("no such socket can be made: loopback is off", lambda p: not p.loopback),
    ),
    Check(
        name="processor",
        promise="processor time is limited, of all processes together",
        tried="four busy processes for two seconds",
        code="""
def burn():
    end = time.monotonic() + 2
    while time.monotonic() < end:
        pass
for pid in [child(burn) for _ in range(4)]:
    ended(pid, 10)
report = True
""",
        judge=_share,
        where=Where.ROUGH,
    ),
    Check(
        name="descriptors",
        promise="open files are limited",
        tried="opening /dev/null, 5000 times at most",
        code="""
kept, error = [], "none"
try:
    while len(kept) < 5000:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as problem:
    error = errno.errorcode[problem.errno]
for fd in kept:
    os.close(fd)
report = {"error": error, "made": len(kept), "limits": resource.getrlimit(resource.RLIMIT_NOFILE)}
""",
        judge=_files,
        where=Where.ROUGH,
    ),
    Check(
        name="cores",
        promise="no process leaves its memory behind when it crashes",
        tried="the limit of core dumps, and a child that crashes",
        code="""
pid = os.fork()
if pid == 0:
    resource.setrlimit(resource.RLIMIT_CORE, [resource.getrlimit(resource.RLIMIT_CORE)[1]] * 2)
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()
status = os.waitpid(pid, 0)[1]
report = {"limits": resource.getrlimit(resource.RLIMIT_CORE), "dumped": os.WCOREDUMP(status)}
""",
        judge=_cores,
        where=Where.ROUGH,
    ),
    Check(
        name="ptys",
        promise="its terminals are its own, and the host has some left",
        tried="opening 100, and one on the host meanwhile",
        code="""
def take(count):
    global kept
    kept = [os.openpty() for _ in range(100)]
    count[0] = len(kept)
report = {"made": filled(take), "seen": len([n for n in os.listdir("/dev/pts") if n.isdigit()])}
""",
        judge=_terminals,
        where=Where.ROUGH,
    ),
    Check(
        name="log-size",
        promise="the container's log has a size",
        tried="reading what the engine was told",
        code="report = True",
        judge=_log,
    ),
)
