"""No rights, no way to get any, and none of the system calls that escapes are made of."""

import os
import platform
from typing import Any, Final

from kernel_provider.verify.judges import refused, unless
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Verdict, verdict

x86_64 = unless(
    "the system calls' numbers are known for x86-64 only",
    lambda _policy: platform.machine() != "x86_64",
)

_STATUS = """
report = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines()
              if ":\\t" in line)
"""


def _identity(report: Any, look: Look) -> Verdict:
    ids = {*report["Uid"].split(), *report["Gid"].split(), *report["Groups"].split()}
    held = ids == {str(look.uid)} and look.uid not in {0, os.getuid()}
    return verdict(held, f"uids, gids and groups: {', '.join(sorted(ids))}")


def _capabilities(report: Any, _look: Look) -> Verdict:
    sets = {name: int(report[name], 16) for name in report if name.startswith("Cap")}
    told = [f"{name} {value:#x}" for name, value in sets.items() if value]
    return verdict(len(sets) == 5 and not told, ", ".join(told) or "all five sets are empty")


def _no_new(report: Any, _look: Look) -> Verdict:
    happened = f"NoNewPrivs {report['NoNewPrivs']}, Seccomp {report['Seccomp']}"
    return verdict((report["NoNewPrivs"], report["Seccomp"]) == ("1", "2"), happened)


CHECKS: Final = (
    Check(
        name="identity",
        promise="one uid and gid, its own: not root's, not this user's; no other group",
        tried="reading all ids of the kernel's process",
        code=_STATUS,
        judge=_identity,
    ),
    Check(
        name="capabilities",
        promise="no capability in any set",
        tried="reading the five sets",
        code=_STATUS,
        judge=_capabilities,
    ),
    Check(
        name="no-new-privileges",
        promise="no program gives new rights, and a filter is on",
        tried="reading NoNewPrivs and Seccomp",
        code=_STATUS,
        judge=_no_new,
    ),
    Check(
        name="become-another",
        promise="nobody else can be become",
        tried="setuid, setgid, setresuid, setgroups, setfsuid, capset, to root and to oneself",
        code="""
report = calls({
    "setuid(0)": (105, 0), "setgid(0)": (106, 0), "setuid(itself)": (105, os.getuid()),
    "setreuid": (113, -1, 0), "setregid": (114, -1, 0), "setresuid": (117, 0, 0, 0),
    "setresgid": (119, 0, 0, 0), "setgroups": (116, 0, 0), "setfsuid": (122, 0),
    "setfsgid": (123, 0), "capset": (126, struct.pack("II", 0x20080522, 0), bytes(24))})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="namespaces",
        promise="no namespace can be made or entered",
        tried="unshare and clone of each kind, clone3, setns",
        code="""
kinds = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000,
         "ipc": 0x8000000, "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}
report = calls({f"unshare {name}": (272, flag) for name, flag in kinds.items()}
               | {f"clone {name}": (56, flag | 17) for name, flag in kinds.items()
                  if name != "time"}
               | {"clone3": (435, PAGE[:88], 88), "clone with a high bit":
                  (56, 0x10000000 | 17 | 1 << 32)})
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
report |= calls({"setns": (308, fd, 0)})
os.close(fd)
""",
        judge=refused("EPERM", "ENOSYS"),
        needs=x86_64,
    ),
    Check(
        name="mounting",
        promise="nothing can be mounted, unmounted, or made the root",
        tried="mount, bind, remount, umount, pivot_root, chroot, open_tree, fsopen, ...",
        code="""
root, proc, tmp = b"/\\0", b"proc\\0", b"/tmp\\0"
report = calls({
    "mount proc": (165, proc, tmp, proc, 0, 0), "bind": (165, root, tmp, 0, 4096, 0),
    "remount": (165, 0, root, 0, 32, 0), "umount": (166, b"/dev/shm\\0", 2),
    "pivot_root": (155, tmp, tmp), "chroot": (161, root), "fsopen": (430, b"tmpfs\\0", 0),
    "open_tree": (428, -100, root, 1), "move_mount": (429, -1, root, -1, root, 0),
    "mount_setattr": (442, -100, root, 0, bytes(32), 32)}, apart=True)
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="traceme",
        promise="no process asks to be traced: a PID 1 that did made the engine lose it",
        tried="ptrace(PTRACE_TRACEME)",
        code='report = calls({"traceme": (101, 0, 0, 0, 0)})',
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="debugging",
        promise="no process can read or write another's memory",
        tried="ptrace attach and seize, process_vm_readv and writev, kcmp, PR_SET_PTRACER",
        code="""
pid = child(lambda: time.sleep(10))
report = calls({
    "attach": (101, 16, pid, 0, 0), "seize": (101, 0x4206, pid, 0, 0),
    "process_vm_readv": (310, pid, PAGE, 0, PAGE, 0, 0),
    "process_vm_writev": (311, pid, PAGE, 0, PAGE, 0, 0), "kcmp": (312, pid, pid, 0, 0, 0),
    "PR_SET_PTRACER": (157, 0x59616D61, -1), "PR_SET_MM": (157, 35, 1, 0, 0, 0)})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="pidfd",
        promise="no descriptor of a process can be had",
        tried="pidfd_open, getfd, send_signal, process_madvise, mrelease; clone with one",
        code="""
report = calls({
    "pidfd_open": (434, os.getpid(), 0), "pidfd_getfd": (438, -1, 0, 0),
    "pidfd_send_signal": (424, -1, 0, 0, 0), "process_madvise": (440, -1),
    "process_mrelease": (448, -1), "clone with a pidfd": (56, 0x1000 | 17, 0, PAGE)})
""",
        judge=refused("ENOSYS", "EPERM"),
        needs=x86_64,
    ),
    Check(
        name="io_uring",
        promise="io_uring, which makes sockets past a filter, is not there",
        tried="io_uring_setup, enter and register",
        code="""
report = calls({"setup": (425, 1, PAGE), "enter": (426, -1, 0, 0, 0, 0, 0),
                "register": (427, -1, 0, 0, 0)})
""",
        judge=refused("ENOSYS"),
        needs=x86_64,
    ),
    Check(
        name="bpf",
        promise="no program can be loaded into the kernel",
        tried="bpf map and program, seccomp filters by both ways, landlock",
        code="""
filter_text = struct.pack("HxxxxxxQ", 1, 0)
report = calls({
    "bpf map": (321, 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(112), 128),
    "bpf program": (321, 5, bytes(128), 128), "seccomp": (317, 1, 0, filter_text),
    "seccomp by prctl": (157, 22, 2, filter_text), "landlock": (444, 0, 0, 1)})
""",
        judge=refused("EPERM", "ENOSYS"),
        needs=x86_64,
    ),
    Check(
        name="perf",
        promise="nothing of the processor can be measured or traced",
        tried="perf_event_open, lookup_dcookie, kernel log",
        code="""
event = struct.pack("IIQ", 1, 64, 1) + bytes(48)
report = calls({"perf, software": (298, event, 0, -1, -1, 0),
                "perf, invalid": (298, PAGE, 0, -1, -1, 0),
                "syslog": (103, 3, PAGE, 100), "syslog size": (103, 10, 0, 0)})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="keyrings",
        promise="no key ring of the kernel can be used",
        tried="add_key, request_key, keyctl",
        code="""
word = b"verify\\0"
report = calls({"add_key": (248, b"user\\0", word, word, 6, -2),
                "request_key": (249, b"user\\0", word, 0, 0), "keyctl": (250, 0, -3, 1),
                "join a session": (250, 1, 0)})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="userfaultfd",
        promise="no page fault can be held up, no memory hidden, none made executable by key",
        tried="userfaultfd, memfd_secret, pkey_alloc, remap_file_pages, mlockall, modify_ldt",
        code="""
report = calls({
    "userfaultfd": (323, 0), "userfaultfd, user only": (323, 1), "memfd_secret": (447, 0),
    "pkey_alloc": (330, 0, 0), "remap_file_pages": (216, 0, 0, 0, 0, 0), "mlockall": (151, 4),
    "modify_ldt": (154, 0, PAGE, 16), "move_pages": (279, 0, 0, 0, 0, 0, 0)})
""",
        judge=refused("EPERM", "ENOSYS"),
        needs=x86_64,
    ),
    Check(
        name="old-ipc",
        promise="no memory or message that no process owns",
        tried="SysV shared memory, semaphores, queues; POSIX queues; old asynchronous I/O",
        code="""
report = calls({
    "shmget": (29, 0, 4096, 0o1600), "semget": (64, 0, 1, 0o1600), "msgget": (68, 0, 0o1600),
    "mq_open": (240, b"verify\\0", 0o102, 0o600, 0), "io_setup": (206, 1, bytes(8))})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="machine",
        promise="the machine's clock, disks, modules and power are out of reach",
        tried="adjtimex, settimeofday, sync, modules, kexec, reboot, swap, quota, acct, fanotify",
        code="""
report = calls({
    "adjtimex": (159, bytes(256)), "settimeofday": (164, 0, 0), "sync": (162,),
    "init_module": (175, 0, 0, 0), "finit_module": (313, -1, 0, 0), "kexec": (246, 0, 0, 0, -1),
    "reboot": (169, 0, 0, 0, 0), "swapon": (167, 0, 0), "quotactl": (179, 0, 0, 0, 0),
    "acct": (163, b"/nowhere\\0"), "sethostname": (170, PAGE, -1), "iopl": (172, 3),
    "ioprio, real time": (251, 1, 0, 0x2004), "fanotify": (300, 0x200, 0)})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="other-abis",
        promise="calls of other ABIs, which a filter would have to know again, are not there",
        tried="32-bit calls by int 0x80 and x32 calls",
        code="""
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53b814000000cd805bc3"))  # 32-bit getpid
enter = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
report = calls({"x32 getpid": (0x40000027,), "x32 ioctl": (0x40000202, 0, 0, 0)})
report["int 0x80"] = in_child(lambda: 0 if enter() > 0 else 1)
""",
        judge=refused("SIGSYS", "ENOSYS"),
        needs=x86_64,
    ),
    Check(
        name="terminals",
        promise="no terminal can be typed into, or given another line discipline",
        tried="TIOCSTI, TIOCLINUX, TIOCSETD on a terminal of its own",
        code="""
master, slave = os.openpty()
text = bytearray(8)
report = tell({name: lambda n=n: fcntl.ioctl(slave, n, text) for name, n in
               {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423}.items()})
os.close(master); os.close(slave)
""",
        judge=refused("EPERM"),
    ),
    Check(
        name="address-space",
        promise="address randomisation stays on, and no process takes itself out of it",
        tried="personality, system call dispatch, core scheduling",
        code="""
report = calls({
    "personality": (135, 0x0040000), "personality, high bit": (135, 0x0040000 | 1 << 32),
    "dispatch": (157, 59, 0, 0, 0, 0), "core scheduling": (157, 62, 0, os.getpid(), 0, PAGE)})
""",
        judge=refused("EPERM"),
        needs=x86_64,
    ),
    Check(
        name="priority",
        promise="no process goes before others",
        tried="nice below 0, real-time and deadline scheduling, a lower out-of-memory score",
        code="""
def score():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1")
report = tell_apart({
    "nice": lambda: os.nice(-1),
    "FIFO": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "RR": lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)),
    "out of memory": score})
""",
        judge=refused("EPERM", "EACCES"),
    ),
)
