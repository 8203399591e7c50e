"""The seccomp profile that every sandbox runs under, made from a table of reasons.

Whatever no group below allows is refused. Groups that refuse are there for the reader,
who can look up each call by name, and for the calls whose error is not EPERM: software
that probes for a newer call expects ENOSYS and then takes another way.

``python -m kernel_provider.seccomp --explain`` prints the table as docs/seccomp.md.
"""

import errno
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

INT = 0xFFFFFFFF
"""Mask for an argument that the kernel reads as 32 bits, whatever the upper 32 hold."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6 = 1, 0, 6, 17, 41
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_FLAGS = 1, 2, 3, 0o2004000
NETLINK_ROUTE = 0
S_IFMT, S_IFIFO = 0o170000, 0o010000


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What one argument must be: ``argument & mask == value``, or above ``value``."""

    index: int
    value: int
    mask: int | None = INT
    above: bool = False

    def to_docker(self) -> dict[str, Any]:
        """The condition in the engine's words.

        For SCMP_CMP_MASKED_EQ ``value`` is the mask and ``valueTwo`` what is expected.
        """
        if self.above or self.mask is None:
            op = "SCMP_CMP_GT" if self.above else "SCMP_CMP_EQ"
            return {"index": self.index, "value": self.value, "valueTwo": 0, "op": op}
        return {
            "index": self.index,
            "value": self.mask,
            "valueTwo": self.value,
            "op": "SCMP_CMP_MASKED_EQ",
        }


@dataclass(frozen=True, kw_only=True)
class Case:
    """One allowed way to make a call: all conditions hold."""

    what: str
    conditions: tuple[Condition, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Calls that share a verdict and a reason; ``calls`` are separated by blanks.

    ``error`` is None where the calls are allowed. With ``cases``, the verdict holds for
    calls that match one of them; the others get the default, EPERM.
    """

    name: str
    calls: str
    reason: str
    error: int | None = None
    cases: tuple[Case, ...] = ()


ALLOWED = (
    Group(
        name="files",
        calls="open openat openat2 creat close close_range read pread64 readv preadv "
        "preadv2 write pwrite64 writev pwritev pwritev2 lseek truncate ftruncate "
        "fallocate copy_file_range stat fstat lstat newfstatat statx statfs fstatfs "
        "access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd "
        "chdir fchdir umask mkdir mkdirat rmdir unlink unlinkat rename renameat "
        "renameat2 link linkat symlink symlinkat chmod fchmod fchmodat fchmodat2 "
        "chown fchown lchown fchownat utime utimes futimesat utimensat getxattr "
        "lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr "
        "fsetxattr removexattr lremovexattr fremovexattr dup dup2 dup3 fcntl flock "
        "fsync fdatasync sync_file_range fadvise64 readahead",
        reason="Plain file work. What can be reached is the mounts' business: the root and "
        "all mounts are read-only but for tmpfs, and permissions do the rest.",
    ),
    Group(
        name="waiting and events",
        calls="poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait "
        "epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 pipe pipe2 "
        "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
        reason="asyncio, ZeroMQ and file watchers. inotify instances are counted per uid, "
        "and no two running kernels share one.",
    ),
    Group(
        name="memory",
        calls="brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock "
        "munlockall memfd_create membarrier",
        reason="Allocators, memory-mapped models, and code made at run time by numerical "
        "libraries. All of it counts against the sandbox's memory limit; mlock has its "
        "own, RLIMIT_MEMLOCK.",
    ),
    Group(
        name="processes and threads",
        calls="fork vfork execve execveat exit exit_group wait4 waitid set_tid_address "
        "set_robust_list get_robust_list futex futex_waitv rseq restart_syscall "
        "arch_prctl getpid getppid gettid getpgid getpgrp getsid setpgid setsid",
        reason="Subprocesses, worker pools, threads. Their number is bounded by the pids "
        "limit. arch_prctl is how x86-64 sets up threads and asks for AMX.",
    ),
    Group(
        name="identity, read only",
        calls="getuid geteuid getresuid getgid getegid getresgid getgroups capget uname "
        "sysinfo getcpu",
        reason="A process may ask who and where it is; nothing here changes it.",
    ),
    Group(
        name="signals",
        calls="rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait "
        "rt_sigsuspend rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack kill tkill "
        "tgkill pause",
        reason="Interrupts and process management, inside the sandbox's own pid namespace.",
    ),
    Group(
        name="clocks and timers",
        calls="clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time "
        "times alarm getitimer setitimer timer_create timer_settime timer_gettime "
        "timer_getoverrun timer_delete timerfd_create timerfd_settime "
        "timerfd_gettime",
        reason="Reading time and waiting. Setting the host's clock is refused below.",
    ),
    Group(
        name="scheduling and limits",
        calls="sched_yield sched_getaffinity sched_setaffinity sched_getparam "
        "sched_setparam sched_getattr sched_setattr sched_getscheduler "
        "sched_setscheduler sched_rr_get_interval sched_get_priority_max "
        "sched_get_priority_min getpriority ioprio_get getrlimit setrlimit getrusage",
        reason="A process may pin its threads, be nicer, and lower its own limits. More "
        "needs capabilities, and there are none. The sched_set calls take numbers of "
        "threads, which libzmq gives: with them the guardian can be made to wait, which "
        "delays what it has to say of the kernel's end, and not the removal from outside.",
    ),
    Group(
        name="an administrator's probes",
        calls="uretprobe uprobe",
        reason="Made by the kernel itself in a process that somebody traces from the host; "
        "refused, they would end that process. Called by anyone else, they do nothing but "
        "raise SIGILL.",
    ),
    Group(
        name="randomness",
        calls="getrandom",
        reason="Keys, seeds, hash randomisation.",
    ),
    Group(
        name="sockets, once made",
        calls="bind listen accept accept4 connect shutdown getsockname getpeername "
        "recvfrom recvmsg recvmmsg",
        reason="Jupyter's channels arrive as listening sockets, and multiprocessing passes "
        "descriptors over sockets of its own. What kinds can be made is decided below.",
    ),
)


def _is(index: int, value: int, mask: int = INT) -> tuple[Condition, ...]:
    return (Condition(index=index, value=value, mask=mask),)


MSG_OOB = 1

NAMESPACES_AND_PIDFD = 0x7E021000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, and CLONE_PIDFD."""

IOCTLS = {
    "TCGETS": (0x5401, "isatty() and terminal settings"),
    "TCSETS": (0x5402, "terminal settings"),
    "TCSETSW": (0x5403, "terminal settings"),
    "TCSETSF": (0x5404, "terminal settings"),
    "TCSBRK": (0x5409, "tcdrain()"),
    "TCXONC": (0x540A, "tcflow()"),
    "TCFLSH": (0x540B, "tcflush()"),
    "TIOCSCTTY": (0x540E, "a pty as controlling terminal, for pexpect"),
    "TIOCGPGRP": (0x540F, "job control"),
    "TIOCSPGRP": (0x5410, "job control"),
    "TIOCOUTQ": (0x5411, "unsent bytes"),
    "TIOCGWINSZ": (0x5413, "os.get_terminal_size()"),
    "TIOCSWINSZ": (0x5414, "size of a pty"),
    "FIONREAD": (0x541B, "unread bytes"),
    "FIONBIO": (0x5421, "socket.setblocking()"),
    "TIOCNOTTY": (0x5422, "leaving the controlling terminal"),
    "TIOCGSID": (0x5429, "tcgetsid()"),
    "TIOCGPTPEER": (0x5441, "openpty()"),
    "FIONCLEX": (0x5450, "os.set_inheritable()"),
    "FIOCLEX": (0x5451, "os.set_inheritable()"),
    "TIOCGPTN": (0x80045430, "ptsname()"),
    "TIOCSPTLCK": (0x40045431, "unlockpt()"),
    "TCGETS2": (0x802C542A, "terminal settings from glibc 2.42 on"),
    "TCSETS2": (0x402C542B, "terminal settings from glibc 2.42 on"),
    "TCSETSW2": (0x402C542C, "terminal settings from glibc 2.42 on"),
    "TCSETSF2": (0x402C542D, "terminal settings from glibc 2.42 on"),
}

PRCTLS = {
    "PR_SET_PDEATHSIG": (1, "children that end with their parent"),
    "PR_GET_PDEATHSIG": (2, "its value"),
    "PR_GET_DUMPABLE": (3, "its value"),
    "PR_SET_DUMPABLE": (4, "the guardian hides from the kernel's uid with it"),
    "PR_SET_NAME": (15, "thread names"),
    "PR_GET_NAME": (16, "thread names"),
    "PR_GET_SECCOMP": (21, "to ask whether a filter is on"),
    "PR_CAPBSET_READ": (23, "to ask for capabilities"),
    "PR_SET_TIMERSLACK": (29, "coarser timers"),
    "PR_GET_TIMERSLACK": (30, "its value"),
    "PR_SET_CHILD_SUBREAPER": (36, "process managers"),
    "PR_GET_CHILD_SUBREAPER": (37, "its value"),
    "PR_SET_NO_NEW_PRIVS": (38, "already on"),
    "PR_GET_NO_NEW_PRIVS": (39, "its value"),
    "PR_SET_THP_DISABLE": (41, "huge pages off"),
    "PR_GET_THP_DISABLE": (42, "its value"),
    "PR_SVE_GET_VL": (51, "vector length on aarch64, for numerical libraries"),
    "PR_GET_SPECULATION_CTRL": (52, "to ask for mitigations"),
    "PR_SME_GET_VL": (64, "matrix length on aarch64, for numerical libraries"),
    "PR_SET_VMA": (0x53564D41, "names of memory regions, for allocators"),
}

SOCKOPTS = {
    "SO_REUSEADDR": (2, "multiprocessing's and asyncio's listeners"),
    "SO_TYPE": (3, "socket.socket(fileno=...)"),
    "SO_ERROR": (4, "result of a connect that did not block"),
    "SO_SNDBUF": (7, "buffer size"),
    "SO_RCVBUF": (8, "buffer size"),
    "SO_KEEPALIVE": (9, "harmless on AF_UNIX, set by many libraries"),
    "SO_LINGER": (13, "closing"),
    "SO_REUSEPORT": (15, "asked of every listener by asyncio"),
    "SO_RCVLOWAT": (18, "waking up"),
    "SO_SNDLOWAT": (19, "waking up"),
    "SO_RCVTIMEO": (20, "time-outs"),
    "SO_SNDTIMEO": (21, "time-outs"),
    "SO_ACCEPTCONN": (30, "is this a listener?"),
    "SO_PROTOCOL": (38, "socket.socket(fileno=...)"),
    "SO_DOMAIN": (39, "socket.socket(fileno=...)"),
}

TCP_OPTIONS = {
    "TCP_NODELAY": (1, "asyncio and ZeroMQ set it on each connection"),
    "TCP_KEEPIDLE": (4, "keep-alive"),
    "TCP_KEEPINTVL": (5, "keep-alive"),
    "TCP_KEEPCNT": (6, "keep-alive"),
    "TCP_INFO": (11, "state of a connection"),
    "TCP_USER_TIMEOUT": (18, "time-outs"),
}

IPV6_V6ONLY = 26


def _cases(index: int, table: Mapping[str, tuple[int, str]]) -> tuple[Case, ...]:
    return tuple(
        Case(what=name, conditions=_is(index, number), why=why)
        for name, (number, why) in table.items()
    )


def _sockopts(level: int, table: Mapping[str, tuple[int, str]]) -> tuple[Case, ...]:
    return tuple(
        Case(what=name, conditions=_is(1, level) + _is(2, number), why=why)
        for name, (number, why) in table.items()
    )


def _no_urgent_data(call: str, index: int) -> Group:
    return Group(
        name=f"{call} without urgent data",
        calls=call,
        cases=(
            Case(
                what="no MSG_OOB",
                conditions=_is(index, 0, MSG_OOB),
                why="all that libraries send",
            ),
        ),
        reason="Urgent bytes on AF_UNIX were a way out of a browser's sandbox, "
        "CVE-2025-38236, and nobody sends them.",
    )


CONDITIONAL = (
    Group(
        name="clone without namespaces",
        calls="clone",
        cases=(
            Case(
                what="no CLONE_NEW*, no CLONE_PIDFD",
                conditions=_is(0, 0, NAMESPACES_AND_PIDFD),
                why="fork and threads",
            ),
        ),
        reason="A user namespace brings capabilities, and with them most of the kernel's "
        "attack surface. Flags are the first argument on x86-64 and aarch64 alike.",
    ),
    Group(
        name="ioctl, terminals and descriptors only",
        calls="ioctl",
        cases=_cases(1, IOCTLS),
        reason="The kernel reads the request as 32 bits, so only those are compared. Not "
        "here on purpose: TIOCSTI and TIOCLINUX (typing into a terminal), TIOCSETD (line "
        "disciplines), SIOCGIF* and SIOCETHTOOL (host's addresses, through any socket that "
        "was made on the host), SIOCGSKNS, NS_GET_* and PIDFD_GET_* (host's namespaces), "
        "FS_IOC_*, FICLONE.",
    ),
    Group(
        name="prctl, harmless options only",
        calls="prctl",
        cases=_cases(0, PRCTLS),
        reason="Not here on purpose: PR_SET_MM (rewrites what ps shows), PR_SET_SECCOMP, "
        "PR_SCHED_CORE (cookies that keep others off the sibling hyperthread), "
        "PR_SET_PTRACER, PR_SET_SPECULATION_CTRL, PR_SET_SYSCALL_USER_DISPATCH.",
    ),
    Group(
        name="personality, the usual one",
        calls="personality",
        cases=(
            Case(what="PER_LINUX", conditions=_is(0, 0), why="the usual one"),
            Case(what="0xffffffff", conditions=_is(0, INT), why="asks, changes nothing"),
        ),
        reason="Others switch off address randomisation or make old ABIs reachable.",
    ),
    Group(
        name="limits, one's own only",
        calls="prlimit64",
        cases=(
            Case(what="pid 0", conditions=_is(0, 0), why="setrlimit() and getrlimit() of libc"),
            Case(
                what="no new limit",
                conditions=(Condition(index=2, value=0, mask=None),),
                why="reading those of any process",
            ),
        ),
        reason="The kernel asks for the same uid and no more, so code in a notebook could "
        "take memory, descriptors or processor time from the guardian.",
    ),
    Group(
        name="priority, one's own only",
        calls="setpriority",
        cases=(
            Case(what="PRIO_PROCESS, 0", conditions=_is(0, 0) + _is(1, 0), why="nice(), upwards"),
        ),
        reason="As above.",
    ),
    Group(
        name="mknod for FIFOs",
        calls="mknod",
        cases=(Case(what="S_IFIFO", conditions=_is(1, S_IFIFO, S_IFMT), why="os.mkfifo()"),),
        reason="Named pipes in /tmp are like other files; device nodes are not.",
    ),
    Group(
        name="mknodat for FIFOs",
        calls="mknodat",
        cases=(Case(what="S_IFIFO", conditions=_is(2, S_IFIFO, S_IFMT), why="os.mkfifo()"),),
        reason="As mknod.",
    ),
    Group(
        name="socket options",
        calls="getsockopt setsockopt",
        cases=_sockopts(SOL_SOCKET, SOCKOPTS),
        reason="Options at level SOL_SOCKET that libraries need. Not here on purpose: "
        "SO_PEERPIDFD and SO_PASSPIDFD (a pidfd of the host's process at the other end), "
        "SO_PEERCRED, SO_PASSCRED, SO_PEERGROUPS, SO_PEERSEC, SO_NETNS_COOKIE (who the "
        "host is), SO_ATTACH_FILTER and SO_ATTACH_BPF (programs for the kernel to run), "
        "SO_PEEK_OFF, SO_BINDTODEVICE, SO_MARK.",
    ),
    _no_urgent_data("sendto", 3),
    _no_urgent_data("sendmsg", 2),
    _no_urgent_data("sendmmsg", 3),
    Group(
        name="AF_UNIX sockets",
        calls="socket socketpair",
        cases=(
            Case(
                what="AF_UNIX",
                conditions=(Condition(index=0, value=AF_UNIX, mask=None),),
                why="Jupyter's channels, multiprocessing, asyncio; their unread data "
                "counts against the sandbox's memory",
            ),
        ),
        reason="Compared as 64 bits: a domain with bits above the 32 that the kernel reads "
        "falls to the refusals, never to this rule.",
    ),
)


def _family(number: int) -> Case:
    return Case(
        what=str(number),
        conditions=(Condition(index=0, value=number, mask=None),),
        why="",
    )


def _other_families(*, loopback: bool) -> Group:
    """A refusal for each domain but AF_UNIX and AF_NETLINK.

    One rule for each number, because libseccomp takes no two comparisons of one argument
    in a rule, and because rules with different errors must not overlap.
    """
    known = {AF_UNIX, AF_INET, AF_INET6} if loopback else {AF_UNIX}
    above = Condition(index=0, value=AF_NETLINK, mask=None, above=True)
    return Group(
        name="other socket families",
        calls="socket socketpair",
        error=errno.EAFNOSUPPORT,
        cases=(
            *(_family(number) for number in range(AF_NETLINK) if number not in known),
            Case(what=f"above {AF_NETLINK}", conditions=(above,), why=""),
        ),
        reason="Loopback sockets hold unread data outside the memory limit on cgroup v1 "
        "(2.1 GB of host memory from a 128 MB container). AF_VSOCK reaches the hypervisor "
        "without a network. AF_ALG, AF_PACKET and the rest are attack surface.",
    )


NETLINK = Group(
    name="AF_NETLINK sockets",
    calls="socket socketpair",
    error=errno.EOPNOTSUPP,
    cases=(_family(AF_NETLINK),),
    reason="Refused with another error, because libzmq aborts the process when getifaddrs "
    "fails with EPERM, and goes on after EOPNOTSUPP.",
)


def _socket(family: int, kind: int, protocol: int, what: str, why: str) -> Case:
    return Case(
        what=what,
        conditions=(
            Condition(index=0, value=family, mask=None),
            *_is(1, kind, INT & ~SOCK_FLAGS),
            *_is(2, protocol),
        ),
        why=why,
    )


def _inet(family: int, name: str) -> Iterator[Case]:
    why = "debugpy, otter, torch.distributed"
    for protocol in (0, IPPROTO_TCP):
        what = f"{name}, SOCK_STREAM, protocol {protocol}"
        yield _socket(family, SOCK_STREAM, protocol, what, why)
    for protocol in (0, IPPROTO_UDP):
        what = f"{name}, SOCK_DGRAM, protocol {protocol}"
        yield _socket(family, SOCK_DGRAM, protocol, what, why)


LOOPBACK = (
    Group(
        name="loopback: AF_INET and AF_INET6 sockets",
        calls="socket",
        cases=(*_inet(AF_INET, "AF_INET"), *_inet(AF_INET6, "AF_INET6")),
        reason="Only with `loopback: true`, inside a network namespace that has nothing "
        "but lo. TCP and UDP; no raw, MPTCP, SCTP, ICMP or UDP-Lite.",
    ),
    Group(
        name="loopback: asking for interfaces",
        calls="socket",
        cases=(
            _socket(
                AF_NETLINK,
                SOCK_RAW,
                NETLINK_ROUTE,
                "AF_NETLINK, SOCK_RAW, NETLINK_ROUTE",
                "getifaddrs(), without which torch.distributed does not start",
            ),
        ),
        reason="Only with `loopback: true`; it sees lo. Unread answers lie outside the "
        "memory limit on cgroup v1, as those of the other loopback sockets do. Other "
        "netlink protocols are refused with EPERM then.",
    ),
    Group(
        name="loopback: TCP and IPv6 options",
        calls="getsockopt setsockopt",
        cases=(
            *_sockopts(IPPROTO_TCP, TCP_OPTIONS),
            *_sockopts(IPPROTO_IPV6, {"IPV6_V6ONLY": (IPV6_V6ONLY, "listeners for IPv6")}),
        ),
        reason="Only with `loopback: true`. Not here on purpose: TCP_ULP (kernel TLS), "
        "TCP_REPAIR, TCP_CONGESTION, and netfilter's options.",
    ),
)

GPUS = (
    Group(
        name="gpus: NVIDIA's driver",
        calls="ioctl",
        cases=(
            Case(
                what="type 'F'",
                conditions=_is(1, ord("F") << 8, 0xFF00),
                why="/dev/nvidiactl and /dev/nvidia0 to 255: everything of CUDA",
            ),
            Case(
                what="below 256",
                conditions=_is(1, 0, INT & ~0xFF),
                why="/dev/nvidia-uvm: memory shared with the GPU; it numbers its requests plainly",
            ),
            Case(
                what="UVM_INITIALIZE",
                conditions=_is(1, 0x30000001),
                why="/dev/nvidia-uvm",
            ),
            Case(
                what="UVM_DEINITIALIZE",
                conditions=_is(1, 0x30000002),
                why="/dev/nvidia-uvm",
            ),
        ),
        reason="Only with `gpus`. A driver of megabytes in the host's kernel, that no filter "
        "can look into: requests are told apart by their type alone, since their meaning is "
        "behind pointers. Written from the driver's published headers, "
        "https://github.com/NVIDIA/open-gpu-kernel-modules, and not yet tried on a GPU.",
    ),
)

REFUSED = (
    Group(
        name="debugging other processes",
        calls="ptrace process_vm_readv process_vm_writev kcmp",
        error=errno.EPERM,
        reason="PID 1 that calls ptrace(PTRACE_TRACEME) and stops makes the engine believe "
        "that it exited: its other processes run on, beyond kill and remove. The others "
        "read and write memory of the guardian's uid.",
    ),
    Group(
        name="namespaces, mounts and roots",
        calls="unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount "
        "fspick open_tree open_tree_attr move_mount mount_setattr swapon swapoff "
        "quotactl quotactl_fd name_to_handle_at open_by_handle_at",
        error=errno.EPERM,
        reason="The walls of the sandbox. File handles open files past any mount.",
    ),
    Group(
        name="kernel and machine",
        calls="bpf perf_event_open syslog reboot kexec_load kexec_file_load init_module "
        "finit_module delete_module create_module query_module get_kernel_syms iopl "
        "ioperm modify_ldt set_thread_area get_thread_area lookup_dcookie acct "
        "vhangup sethostname setdomainname settimeofday clock_settime adjtimex "
        "clock_adjtime sync syncfs ioprio_set",
        error=errno.EPERM,
        reason="They change or read the host. sync() writes back the whole host's disks; "
        "modify_ldt and the old thread areas serve 16 and 32 bit code only.",
    ),
    Group(
        name="identity",
        calls="setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid "
        "setgroups capset",
        error=errno.EPERM,
        reason="The sandbox has one uid and no capabilities, for good. The engine has "
        "switched before the filter is on, given no-new-privileges.",
    ),
    Group(
        name="key rings",
        calls="add_key request_key keyctl",
        error=errno.EPERM,
        reason="Keys are not in any namespace but the user's, and count against the uid.",
    ),
    Group(
        name="SysV and POSIX message passing",
        calls="shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd "
        "msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
        "mq_getsetattr",
        error=errno.EPERM,
        reason="Memory that no process owns, and limits shared by the uid. multiprocessing "
        "uses files in /dev/shm and futexes instead.",
    ),
    Group(
        name="old asynchronous I/O",
        calls="io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel",
        error=errno.EPERM,
        reason="A host-wide count (fs.aio-max-nr) that one sandbox could use up.",
    ),
    Group(
        name="memory of odd kinds",
        calls="mlockall remap_file_pages mbind set_mempolicy get_mempolicy migrate_pages "
        "move_pages pkey_mprotect pkey_alloc pkey_free",
        error=errno.EPERM,
        reason="NUMA placement is the host's to decide; libnuma takes EPERM for 'no NUMA'. "
        "Nothing here needs the rest.",
    ),
    Group(
        name="watching the whole file system",
        calls="fanotify_init fanotify_mark",
        error=errno.EPERM,
        reason="inotify is enough, and is confined to what the process can read.",
    ),
    Group(
        name="obsolete",
        calls="uselib ustat sysfs _sysctl nfsservctl getpmsg putpmsg afs_syscall tuxcall "
        "security vserver epoll_ctl_old epoll_wait_old",
        error=errno.EPERM,
        reason="No program of this century calls them.",
    ),
    Group(
        name="io_uring",
        calls="io_uring_setup io_uring_enter io_uring_register",
        error=errno.ENOSYS,
        reason="Does by itself what a filter on system calls refuses: it makes AF_INET and "
        "AF_VSOCK sockets.",
    ),
    Group(
        name="pidfd",
        calls="pidfd_open pidfd_getfd pidfd_send_signal process_madvise process_mrelease",
        error=errno.ENOSYS,
        reason="A pidfd opens namespaces and descriptors of the process that it names. "
        "asyncio and others fall back to wait and threads.",
    ),
    Group(
        name="clone3",
        calls="clone3",
        error=errno.ENOSYS,
        reason="Its flags are behind a pointer, where no filter can look; glibc falls back "
        "to clone.",
    ),
    Group(
        name="userfaultfd and secret memory",
        calls="userfaultfd memfd_secret",
        error=errno.ENOSYS,
        reason="The first lets a process halt the kernel in the middle of a copy, which "
        "makes races easy to win; the second hides memory from the host.",
    ),
    Group(
        name="page cache by reference",
        calls="splice tee vmsplice sendfile",
        error=errno.ENOSYS,
        reason="They put pages of a file, a read-only model too, into a pipe, and "
        "CVE-2022-0847 wrote to them there, for everyone who has the file mounted. "
        "shutil, asyncio and socket.sendfile fall back to read and write.",
    ),
    Group(
        name="filters and rule sets of one's own",
        calls="seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self "
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
        error=errno.ENOSYS,
        reason="Programs for the kernel to run, outside the memory limit; a sandbox in the "
        "sandbox is not needed.",
    ),
    Group(
        name="newer calls that nothing needs yet",
        calls="set_mempolicy_home_node cachestat map_shadow_stack mseal futex_wake "
        "futex_wait futex_requeue statmount listmount setxattrat getxattrat "
        "listxattrat removexattrat file_getattr file_setattr",
        error=errno.ENOSYS,
        reason="As on an older kernel: whoever calls them has another way.",
    ),
)


def groups(*, loopback: bool = False, gpus: bool = False) -> tuple[Group, ...]:
    """The whole table, in the order in which docs/seccomp.md shows it."""
    return (
        *ALLOWED,
        *CONDITIONAL,
        *(LOOPBACK if loopback else (NETLINK,)),
        *(GPUS if gpus else ()),
        _other_families(loopback=loopback),
        *REFUSED,
    )


def _rules(group: Group) -> Iterator[dict[str, Any]]:
    if group.error == errno.EPERM:
        return  # the default; engines differ in whether they take it as a rule of its own
    verdict: dict[str, Any] = {"action": "SCMP_ACT_ALLOW"}
    if group.error is not None:
        verdict = {"action": "SCMP_ACT_ERRNO", "errnoRet": group.error}
    for conditions in [case.conditions for case in group.cases] or [()]:
        yield {
            "names": group.calls.split(),
            **verdict,
            "args": [condition.to_docker() for condition in conditions],
            "comment": group.name,
        }


def profile(*, loopback: bool = False, gpus: bool = False) -> dict[str, Any]:
    """The profile in the format of Docker's ``seccomp=`` option.

    Several rules for one call are alternatives. ``archMap`` makes the engine take the
    machine's own architecture alone: without sub-architectures, 32-bit and x32 calls end
    the thread that makes them. Works with no-new-privileges only, since an engine sets
    the uid after the filter otherwise.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [
            rule for group in groups(loopback=loopback, gpus=gpus) for rule in _rules(group)
        ],
    }


@lru_cache(maxsize=4)
def profile_json(*, loopback: bool = False, gpus: bool = False) -> str:
    """The profile as the JSON text that the engine's API takes; made once a process."""
    return json.dumps(profile(loopback=loopback, gpus=gpus), separators=(",", ":"))


ERRORS = {
    errno.EPERM: "EPERM",
    errno.ENOSYS: "ENOSYS",
    errno.EOPNOTSUPP: "EOPNOTSUPP",
    errno.EAFNOSUPPORT: "EAFNOSUPPORT",
}


def _explain_group(group: Group) -> Iterator[str]:
    verdict = "allowed" if group.error is None else ERRORS[group.error]
    yield f"### {group.name}: {verdict}\n"
    yield f"{group.reason}\n"
    yield ", ".join(f"`{call}`" for call in group.calls.split()) + "\n"
    explained = [case for case in group.cases if case.why]
    if explained:
        yield "| only | for |\n|---|---|"
        yield from (f"| `{case.what}` | {case.why} |" for case in explained)
        yield ""


def explain() -> str:
    """The table as Markdown, which is docs/seccomp.md."""
    lines = [
        "# What a sandbox may ask of the kernel\n",
        "Made by `python -m kernel_provider.seccomp --explain`; change the table there.\n",
        "A call that no line allows is answered with EPERM.",
        "Calls of other ABIs (32-bit, x32) end the thread that makes them.\n",
        "## Allowed\n",
    ]
    for group in ALLOWED:
        lines.extend(_explain_group(group))
    lines.append("## Allowed under conditions\n")
    for group in (*CONDITIONAL, *LOOPBACK, *GPUS):
        lines.extend(_explain_group(group))
    lines.append("## Refused\n")
    for group in (NETLINK, _other_families(loopback=False), *REFUSED):
        lines.extend(_explain_group(group))
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Print the profile as JSON, or with ``--explain`` the reasons as Markdown."""
    made = profile(loopback="--loopback" in arguments, gpus="--gpus" in arguments)
    text = explain() if "--explain" in arguments else json.dumps(made, indent=1)
    sys.stdout.write(text.rstrip("\n") + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
