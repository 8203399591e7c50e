"""Two kernels at once, one against the other: neither sees or reaches anything of it."""

from typing import Any, Final

from kernel_provider.verify.judges import none, refused
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Verdict, Where, verdict


def _uids(report: Any, look: Look) -> Verdict:
    assert look.first is not None
    ours, theirs = report, look.first.uid
    held = ours == look.uid != theirs
    return verdict(held, f"uids {theirs} and {ours}")


def _instances(report: Any, _look: Look) -> Verdict:
    held = report["first"]["made"] > 0 and report["made"] > 0
    got = "one" if report["made"] else "none"
    return verdict(held, f"the first took {report['first']['made']}, the second got {got}")


def _pipes(report: Any, _look: Look) -> Verdict:
    happened = f"the first took {report['first']} pipes; a new one holds {report['size']} bytes"
    return verdict(report["size"] >= 65536, happened)


CHECKS: Final = (
    Check(
        name="uids",
        promise="no two kernels have the same uid, by which the host counts",
        tried="comparing both",
        code="report = os.getuid()",
        judge=_uids,
        where=Where.PAIR,
    ),
    Check(
        name="others-processes",
        promise="processes of another kernel cannot be seen",
        tried="looking for one by its arguments",
        first="""
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", v["canary"]],
                           start_new_session=True)
left_running.append(process.pid)
report = process.pid
""",
        code="""
report = []
for pid in processes():
    try:
        if v["canary"] in open(f"/proc/{pid}/cmdline").read():
            report.append(pid)
    except OSError:
        continue
""",
        judge=none("processes of the other"),
        where=Where.PAIR,
    ),
    Check(
        name="others-abstract",
        promise="abstract sockets of another kernel cannot be reached",
        tried="connecting to one that listens there",
        first="""
listener = socket.socket(1)
listener.bind("\\0other-" + v["canary"])
listener.listen()
child(lambda: time.sleep(30))  # it holds the listener
listener.close()
report = True
""",
        code="""
def reach():
    with socket.socket(1) as one:
        one.connect("\\0other-" + v["canary"])
report = tell({"connect": reach})
""",
        judge=refused("ECONNREFUSED"),
        where=Where.PAIR,
    ),
    Check(
        name="others-files",
        promise="files and sockets of another kernel cannot be found",
        tried="a file in its /tmp, its working folder and its /dev/shm, and a socket",
        first="""
places = ["/tmp", "/dev/shm", os.getcwd()]
for place in places:
    path = f"{place}/other-{v['canary']}"
    with open(path, "w") as file:
        file.write(v["canary"])
    os.chmod(path, 0o666)
    left_files.append(path)
listener = socket.socket(1)
path = f"/tmp/other-socket-{v['canary']}"
listener.bind(path)
left_files.append(path)
listener.close()
report = [f"{place}/other-{v['canary']}" for place in places] + [path]
""",
        code="report = tell({path: lambda path=path: os.lstat(path) for path in v['first']})",
        judge=refused("ENOENT"),
        where=Where.PAIR,
    ),
    Check(
        name="others-inotify",
        promise="what the host counts by user cannot be used up for another kernel: inotify",
        tried="taking every instance in one, and one in the other",
        first="""
def take(made):
    while LIBC.inotify_init1(0) != -1:
        made[0] += 1
report = {"made": filled(take)}
""",
        code="""
fd = LIBC.inotify_init1(0)
report = {"first": v["first"], "made": int(fd != -1)}
if fd != -1:
    os.close(fd)
""",
        judge=_instances,
        where=Where.PAIR,
    ),
    Check(
        name="others-pipes",
        promise="nor the room in pipes",
        tried="taking all of it in one, and a pipe in the other",
        first="""
def take(made):
    global kept
    kept = []
    while made[0] < 450:
        kept.append(os.pipe())
        told(lambda: fcntl.fcntl(kept[-1][1], 1031, MIB))
        made[0] += 1
report = filled(take) + filled(take)
""",
        code="""
reader, writer = os.pipe()
report = {"first": v["first"], "size": fcntl.fcntl(writer, 1032)}
os.close(reader); os.close(writer)
""",
        judge=_pipes,
        where=Where.PAIR,
    ),
)
