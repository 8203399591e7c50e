"""Read-only but for memory, and nothing that was written there can be run."""

from typing import Any, Final

from kernel_provider.hardening import TMP_INODES
from kernel_provider.values import MIB
from kernel_provider.verify.judges import both, none, refused, unless
from kernel_provider.verify.look import SHOWN_AT, Look
from kernel_provider.verify.model import Check, Verdict, verdict

NO_WRITE: Final = ("EROFS", "EACCES", "EPERM")

shown = unless(
    "the administrator's policy lets no folder of the test be mounted",
    lambda policy: SHOWN_AT not in policy.mounts,
)

MEMORY_PLACES: Final = {"/tmp", "/dev/shm", "/dev/mqueue"}
DEVICES: Final = {
    *("console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
    *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
}
SLACK: Final = 2 * MIB


def _unchanged(_report: Any, look: Look) -> Verdict:
    state = look.host.state()
    same = state == {"file": look.host.canary}
    return verdict(same, "unchanged on the host" if same else f"on the host: {', '.join(state)}")


def _places(report: Any, _look: Look) -> list[str]:
    return sorted(set(report) - MEMORY_PLACES)


def _full(size: str) -> Any:
    """A file system of the policy's ``size`` was full in time, and not sooner."""

    def judge(report: Any, look: Look) -> Verdict:
        limit = int(getattr(look.policy, size))
        held = report["error"] == "ENOSPC" and limit - SLACK <= report["took"] <= limit
        happened = f"{report['error']} after {report['took'] / MIB:.0f} MB of {limit / MIB:.0f}"
        return verdict(held, happened)

    return judge


def _inodes(report: Any, _look: Look) -> Verdict:
    held = report["error"] == "ENOSPC" and report["made"] <= TMP_INODES
    return verdict(held, f"{report['error']} after {report['made']} files")


def _both_full(report: Any, look: Look) -> Verdict:
    used = look.group.load().memory
    happened = f"both full, {used / MIB:.0f} MB of {look.policy.memory / MIB:.0f} in use"
    return verdict(report["full"] and used < look.policy.memory, happened)


_FILL = """
def fill(path, size):
    took = 0
    with open(path, "wb") as file:
        try:
            while took < 2 * size:
                os.posix_fallocate(file.fileno(), took, MIB)
                took += MIB
        except OSError as problem:
            return {"error": errno.errorcode[problem.errno], "took": took}
        finally:
            if not keep:
                os.remove(path)
    return {"error": "none", "took": took}
keep = False
"""

_RUN = """
def run_from(place):
    path = f"{place}/program"
    with open("/bin/true", "rb") as source, open(path, "wb") as file:
        file.write(source.read())
    os.chmod(path, 0o755)
    def load():
        with open(path, "rb") as file:
            mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    try:
        return tell({f"run in {place}": lambda: subprocess.run([path], check=True),
                     f"mapped as code in {place}": load})
    finally:
        os.remove(path)
report = run_from("/tmp") | run_from("/dev/shm")
"""


CHECKS: Final = (
    Check(
        name="write-anywhere",
        promise="nothing but the sandbox's own memory can be written",
        tried="making a file in every folder there is",
        code="""
report = []
places = [line.split()[1] for line in open("/proc/self/mounts")]
for path in [path for path, facts in walk() if stat.S_ISDIR(facts.st_mode)] + places:
    name = f"{path}/.verify"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    except OSError:
        continue
    report.append(path)
    os.remove(name)
""",
        judge=none("other writable folders", of=_places),
    ),
    Check(
        name="change-system",
        promise="no file of the system can be changed",
        tried="opening, removing, renaming, linking, chmod, chown, utime, xattr, truncate",
        code="""
files = ["/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", sys.executable,
         "/opt/executor/guardian.py", "/opt/executor/sandbox_kernel.py", os.__file__]
report = {}
for path in files:
    report |= tell({
        f"write {path}": lambda: open(path, "r+b").close(),
        f"chmod {path}": lambda: os.chmod(path, stat.S_IMODE(os.stat(path).st_mode)),
        f"utime {path}": lambda: os.utime(path),
        f"link {path}": lambda: os.link(path, path + ".verify"),
        f"xattr {path}": lambda: os.setxattr(path, "user.verify", b"1")})
report |= tell({"make /verify": lambda: os.mkdir("/verify"),
                "remove /etc": lambda: os.rmdir("/etc"),
                "rename /opt": lambda: os.rename("/opt", "/opt-verify")})
os.rename("/opt-verify", "/opt") if report["rename /opt"] == "done" else None
""",
        judge=refused(*NO_WRITE, "EBUSY", "EXDEV", "ENOTEMPTY"),
    ),
    Check(
        name="mounted-files",
        promise="folders that are mounted, models too, cannot be changed",
        tried="write, make, remove, rename, chmod, link, truncate in one open to all",
        code="""
place = v["shown"]
report = tell({
    "write": lambda: open(place + "/file", "r+b").close(),
    "truncate": lambda: os.truncate(place + "/file", 0),
    "make": lambda: open(place + "/new", "w").close(),
    "folder": lambda: os.mkdir(place + "/folder"),
    "socket": lambda: socket.socket(1).bind(place + "/socket"),
    "link": lambda: os.link(place + "/file", place + "/other"),
    "symlink": lambda: os.symlink("/", place + "/symlink"),
    "chmod": lambda: os.chmod(place + "/file", 0o777),
    "utime": lambda: os.utime(place + "/file", (1, 1)),
    "rename": lambda: os.rename(place + "/file", place + "/renamed"),
    "remove": lambda: os.remove(place + ("/new" if os.path.exists(place + "/new") else "/file"))})
told(lambda: os.rename(place + "/renamed", place + "/file"))
""",
        judge=both(refused(*NO_WRITE), _unchanged),
        needs=shown,
    ),
    Check(
        name="mounts-read-only",
        promise="every mount is read-only but for memory, and there without setuid, devices, code",
        tried="reading the options of all mounts",
        code="""
report = []
for line in open("/proc/self/mounts"):
    _, place, kind, options = line.split()[:4]
    options = set(options.split(","))
    own = kind in {"proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"}
    if place in {"/dev", "/sys/fs/cgroup"}:
        continue  # root's alone: making files there is tried by another check
    if kind == "tmpfs" and "rw" in options and place.startswith(("/tmp", "/dev/shm")):
        lacks = {"nosuid", "nodev", "noexec"} - options
        report += [f"{place} lacks {' '.join(sorted(lacks))}"] if lacks else []
    elif "rw" in options and not own and not place.startswith("/proc/"):
        report.append(f"{place} ({kind}) is rw")
""",
        judge=none("mounts that are not"),
    ),
    Check(
        name="hidden-files",
        promise="files of the host that are not mounted cannot be found",
        tried="opening one by its path, through /proc/*/root and cwd, and ..",
        code="""
path = v["hidden"]
ways = {"plain": path, "from the root": "/../.." + path}
for pid in processes():
    for link in ("root", "cwd"):
        ways[f"{pid}/{link}"] = f"/proc/{pid}/{link}" + "/.." * 9 + path
if v["shown"]:
    ways["beside what is shown"] = v["shown"] + "/../hidden"
report = tell({name: lambda way=way: open(way).close() for name, way in ways.items()})
""",
        judge=refused("ENOENT", "EACCES", "EPERM"),
    ),
    Check(
        name="handles",
        promise="no file can be opened past its mount",
        tried="name_to_handle_at and open_by_handle_at",
        code="""
def handle(path):
    text = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    if LIBC.name_to_handle_at(-100, path, text, ctypes.byref(mount), 0) == -1:
        raise OSError(ctypes.get_errno(), "")
def by_handle():
    text = ctypes.create_string_buffer(struct.pack("IiQ", 8, 1, 2) + bytes(128))
    root = os.open("/", os.O_RDONLY)
    try:
        fd = LIBC.open_by_handle_at(root, text, 0)
        if fd == -1:
            raise OSError(ctypes.get_errno(), "")
        os.close(fd)
    finally:
        os.close(root)
report = tell({"name of /": lambda: handle(b"/"), "name of /etc/hosts": lambda:
               handle(b"/etc/hosts"), "open by handle": by_handle})
""",
        judge=refused("EPERM"),
    ),
    Check(
        name="page-cache",
        promise="pages of a read-only file cannot be had by reference (CVE-2022-0847)",
        tried="splice, tee, vmsplice and sendfile into a pipe",
        code="""
reader, writer = os.pipe()
file = os.open(sys.executable, os.O_RDONLY)
report = tell({"splice": lambda: os.splice(file, writer, 1, offset_src=0),
               "sendfile": lambda: os.sendfile(writer, file, 0, 1)})
def raw(function, *words):
    def attempt():
        if function(*words) == -1:
            raise OSError(ctypes.get_errno(), "")
    return attempt
vector = ctypes.create_string_buffer(16)
other = os.pipe()
report |= tell({"tee": raw(LIBC.tee, reader, other[1], 1, 0),
                "vmsplice": raw(LIBC.vmsplice, writer, vector, 0, 0)})
for fd in (reader, writer, file, *other):
    os.close(fd)
""",
        judge=refused("ENOSYS"),
    ),
    Check(
        name="locks",
        promise="files that are mounted read-only cannot be locked for writing or leased",
        tried="lockf, OFD locks and leases on a file that everybody may write on the host",
        code="""
fd = os.open(v["shown"] + "/file", os.O_RDONLY)
try:
    fd = os.open(v["shown"] + "/file", os.O_RDWR)
except OSError:
    pass
region = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
report = tell({
    "lockf": lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "OFD lock": lambda: fcntl.fcntl(fd, 37, region),
    "lease": lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)})
os.close(fd)
""",
        judge=refused("EBADF", "EACCES", "EPERM", "EAGAIN"),
        needs=shown,
    ),
    Check(
        name="noexec",
        promise="no program that was written can be run",
        tried="a copy of /bin/true in /tmp and /dev/shm: run, and mapped as code",
        code=_RUN,
        judge=refused("EACCES", "EPERM"),
    ),
    Check(
        name="device-nodes",
        promise="no device can be made",
        tried="mknod of null, mem, a disk and an overlay's whiteout, in /tmp and /dev",
        code="""
kinds = {"null": (stat.S_IFCHR, 1, 3), "mem": (stat.S_IFCHR, 1, 1), "disk": (stat.S_IFBLK, 8, 0),
         "whiteout": (stat.S_IFCHR, 0, 0)}
def make(place, kind, major, minor):
    path = f"{place}/node-verify"
    os.mknod(path, 0o600 | kind, os.makedev(major, minor))
    os.remove(path)
report = tell({f"{name} in {place}": lambda place=place, words=words: make(place, *words)
               for name, words in kinds.items() for place in ("/tmp", "/dev", "/dev/shm")})
""",
        judge=refused("EPERM", "EACCES", "EROFS"),
    ),
    Check(
        name="devices",
        promise="there are no devices but the harmless ones",
        tried="listing /dev, and every device node in the system",
        code="""
nodes = [path for path, facts in walk() if stat.S_ISCHR(facts.st_mode) or
         stat.S_ISBLK(facts.st_mode)]
inside = {path.removeprefix("/dev/").split("/")[0] for path in nodes if path[:5] == "/dev/"}
report = sorted(inside | set(os.listdir("/dev")) | {p for p in nodes if p[:5] != "/dev/"})
""",
        judge=none("others", of=lambda report, _look: sorted(set(report) - DEVICES)),
        needs=unless("this kernel may have GPUs", lambda policy: policy.gpus),
    ),
    Check(
        name="setuid-files",
        promise="no file gives rights to who runs it",
        tried="looking at modes and capabilities of every file",
        code="""
def gives(path, facts):
    if not stat.S_ISREG(facts.st_mode):
        return False
    if facts.st_mode & 0o6000:
        return True
    return bool(facts.st_mode & 0o111) and told(
        lambda: os.getxattr(path, "security.capability")) == "done"
report = [path for path, facts in walk() if gives(path, facts)]
""",
        judge=none("such files"),
    ),
    Check(
        name="kernel-settings",
        promise="no setting of the host's kernel can be changed",
        tried="opening for writing everything in /proc/sys, /proc/sysrq-trigger, /sys, cgroups",
        code="""
report = []
def look(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return
    report.append(path)
for top in ("/proc/sys", "/sys/kernel", "/sys/fs", "/sys/module"):
    for folder, _, files in os.walk(top):
        for name in files:
            look(f"{folder}/{name}")
for path in ("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr"):
    look(path)
""",
        judge=none("settings that open"),
    ),
    Check(
        name="masked",
        promise="what /proc and /sys tell of the machine's memory and devices is not there",
        tried="reading kcore, keys, kmsg, timer_list, sched_debug, firmware, /dev/mem, /dev/kmsg",
        code="""
def look(path):
    if os.path.isdir(path):
        return bool(os.listdir(path))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return path.endswith(("kmsg", "/mem")) or bool(os.read(fd, 1))
    finally:
        os.close(fd)
report = []
for path in ("/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/timer_list", "/proc/sched_debug",
             "/proc/latency_stats", "/proc/timer_stats", "/proc/scsi", "/proc/acpi",
             "/sys/firmware", "/sys/devices/virtual/powercap", "/dev/mem", "/dev/kmsg"):
    try:
        report += [path] if look(path) else []
    except OSError:
        continue
""",
        judge=none("readable"),
    ),
    Check(
        name="inodes",
        promise="the number of files is limited",
        tried=f"making files in /tmp, {TMP_INODES + 2000} at most",
        code=f"""
os.mkdir("/tmp/verify-many")
made, error = 0, "none"
try:
    for made in range({TMP_INODES + 2000}):
        os.close(os.open(f"/tmp/verify-many/{{made}}", os.O_CREAT))
except OSError as problem:
    error = errno.errorcode[problem.errno]
for number in range(made + 1):
    told(lambda: os.remove(f"/tmp/verify-many/{{number}}"))
os.rmdir("/tmp/verify-many")
report = {{"error": error, "made": made}}
""",
        judge=_inodes,
    ),
    Check(
        name="tmp-full",
        promise="/tmp has its size; a full one is an error, and not the kernel's end",
        tried="filling it, up to twice that",
        code=f"{_FILL}\nreport = fill('/tmp/verify-full', v['tmp_size'])",
        judge=_full("tmp_size"),
    ),
    Check(
        name="shm-full",
        promise="/dev/shm has its size",
        tried="filling it, up to twice that",
        code=f"{_FILL}\nreport = fill('/dev/shm/verify-full', v['shm_size'])",
        judge=_full("shm_size"),
    ),
    Check(
        name="both-full",
        promise="both full, the kernel still has memory to live on",
        tried="filling both at once; the memory in use, from the host",
        code=f"""{_FILL}
keep = True
ends = [fill("/tmp/verify-full", v["tmp_size"]), fill("/dev/shm/verify-full", v["shm_size"])]
report = {{"full": all(end["error"] == "ENOSPC" for end in ends)}}
left_files += ["/tmp/verify-full", "/dev/shm/verify-full"]
""",
        judge=_both_full,
    ),
)
