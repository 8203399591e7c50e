"""PID 1 watches over the kernel, and code in the kernel cannot reach it."""

from typing import Any, Final

from kernel_provider.verify.judges import none, refused
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Verdict, Where, verdict


def _place(report: Any, look: Look) -> Verdict:
    held = report["first"] and report["pid"] != 1 and report["parent"] == 1 and report["leads"]
    seen = look.state_of(look.guardian) in {"S", "R"}
    return verdict(held and seen, f"the kernel is process {report['pid']}, a child of the guardian")


def _alive(report: Any, look: Look) -> Verdict:
    state = look.state_of(look.guardian)
    happened = f"{len(report)} signals sent, the guardian's state is {state or 'gone'}"
    return verdict(state in {"S", "R"} and len(report) > 10, happened)


def _log(report: Any, look: Look) -> Verdict:
    text = look.engine.last_lines(look.container, 50)
    held = look.host.canary not in text
    return verdict(held, f"{report} descriptors written to; {len(text)} bytes in the log")


CHECKS: Final = (
    Check(
        name="place",
        promise="PID 1 is the guardian, and the kernel its child in a session of its own",
        tried="reading /proc/1/cmdline, own pid, parent, group and session",
        code="""
command = open("/proc/1/cmdline").read().split("\\0")
me = os.getpid()
report = {"first": "/opt/executor/guardian.py" in command, "pid": me, "parent": os.getppid(),
          "leads": os.getpgrp() == os.getsid(0) == me}
""",
        judge=_place,
    ),
    Check(
        name="read",
        promise="memory, environment and descriptors of PID 1 cannot be read",
        tried="mem, environ, maps, auxv, stack, io, fd, exe, cwd, root, namespaces",
        code="""
def read(name):
    with open(f"/proc/1/{name}", "rb", buffering=0) as file:
        if name != "mem":
            file.read(1)
names = ("mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "io", "pagemap",
         "clear_refs")
links = ("exe", "cwd", "root", "fd/0", "ns/net", "ns/mnt", "ns/user")
report = (tell({name: lambda name=name: read(name) for name in names})
          | {name: told(lambda: os.listdir(f"/proc/1/{name}")) for name in ("fd", "map_files")}
          | {name: told(lambda: os.readlink(f"/proc/1/{name}")) for name in links})
""",
        judge=refused("EACCES", "EPERM", "ENOENT"),
    ),
    Check(
        name="write",
        promise="memory and settings of PID 1 cannot be written",
        tried="mem, oom_score_adj, comm, coredump_filter, its limits and priority",
        code="""
def write(name, text):
    with open("/proc/1/" + name, "r+b", buffering=0) as file:
        file.write(text)
texts = {"oom_score_adj": b"1000", "comm": b"x", "coredump_filter": b"0"}
report = tell({name: lambda n=name, t=text: write(n, t) for name, text in texts.items()}
              | {"mem": lambda: open("/proc/1/mem", "r+b").close()})
limits = resource.prlimit(1, resource.RLIMIT_NOFILE)
report |= tell({
    "limits": lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, limits),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 0),
    "priority of all": lambda: os.setpriority(os.PRIO_USER, os.getuid(), 0)})
""",
        judge=refused("EACCES", "EPERM"),
    ),
    Check(
        name="signals",
        promise="no signal ends or stops PID 1",
        tried="every signal that ends, stops or is caught, by kill, tgkill and as a group",
        code="""
names = ("KILL", "STOP", "TSTP", "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "SEGV", "ABRT",
         "BUS", "ILL", "PIPE", "ALRM", "CHLD", "CONT", "SYS", "TRAP", "TTIN", "XCPU")
calm = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT,
        signal.SIGINT}
before = {number: signal.signal(number, signal.SIG_IGN) for number in calm}
report = []
try:
    for name in names:
        os.kill(1, getattr(signal, f"SIG{name}"))
        LIBC.syscall(234, 1, 1, int(getattr(signal, f"SIG{name}")))
        report.append(name)
    time.sleep(0.3)
finally:
    for number, handler in before.items():
        signal.signal(number, handler)
""",
        judge=_alive,
        where=Where.ROUGH,
    ),
    Check(
        name="orphans",
        promise="processes that lost their parent are reaped, whatever their number",
        tried="20 orphans that end at once",
        code="""
def orphan():
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            os._exit(7)
        os._exit(0)
    os.waitpid(pid, 0)
def zombies():
    found = []
    for pid in processes():
        try:
            text = open(f"/proc/{pid}/stat").read()
        except OSError:
            continue
        found += [pid] * (text.rpartition(")")[2].split()[0] == "Z")
    return found
for _ in range(20):
    orphan()
deadline = time.monotonic() + 3
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
report = zombies()
""",
        judge=none("zombies"),
    ),
    Check(
        name="score",
        promise="where memory runs out, the kernel is killed and not the guardian",
        tried="reading both out-of-memory scores",
        code="""
scores = [int(open(f"/proc/{pid}/oom_score_adj").read()) for pid in ("self", 1)]
report = scores if scores[0] <= scores[1] else []
""",
        judge=none("scores of kernel and guardian that are not in this order"),
    ),
    Check(
        name="log",
        promise="nothing that a notebook does reaches the container's log",
        tried="writing a word to every pipe, terminal and standard stream of the kernel",
        code="""
report = 0
for name in [name for name in os.listdir("/proc/self/fd") if name != "0"]:
    try:
        link = os.readlink(f"/proc/self/fd/{name}")
        if link.startswith(("pipe:", "/dev/")):
            report += os.write(int(name), (v["canary"] + "\\n").encode()) > 0
    except OSError:
        continue
for stream in (sys.__stdout__, sys.__stderr__):
    told(lambda: print(v["canary"], file=stream, flush=True))
time.sleep(0.3)
""",
        judge=_log,
        where=Where.ROUGH,
    ),
)
