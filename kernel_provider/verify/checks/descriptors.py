"""What a sandbox was given, five listening sockets, and what can be made of it."""

from pathlib import Path
from typing import Any, Final

from kernel_provider.verify.judges import none, refused, unless
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Verdict, verdict

no_gpus = unless("this kernel may have GPUs, whose requests are let in", lambda p: p.gpus)

_ASK = """
requests = {"SIOCGIFCONF": 0x8912, "SIOCGIFNAME": 0x8910, "SIOCGIFHWADDR": 0x8927,
            "SIOCGIFADDR": 0x8915, "SIOCETHTOOL": 0x8946, "SIOCGIFINDEX": 0x8933}
def ask(fd, request):
    return lambda: fcntl.ioctl(fd, request, bytearray(b"lo" + bytes(62)))
def ask_all(fds):
    return tell({f"{name} on {fd}": ask(fd, number)
                 for fd in fds for name, number in requests.items()})
"""


def _held(report: Any, look: Look) -> Verdict:
    listening = [s for s in report if s["listens"] and not s["name"].startswith("\0")]
    odd = [
        s
        for s in report
        if (s["family"], s["type"]) != (1, 1) or not (s["listens"] or s["peer"] is not None)
    ]
    if odd or len(listening) != 5:
        told = [f"descriptor {s['fd']}: family {s['family']}, type {s['type']}" for s in odd]
        return verdict(held=False, happened=f"{len(listening)} listeners; odd: {told}")
    kept = look.sockets_of(look.guardian)
    if kept not in {1, None}:
        return verdict(held=False, happened=f"the guardian holds {kept} sockets instead of 1")
    guardian = "the guardian has one" if kept else "the guardian's only root can see"
    return verdict(held=True, happened=f"{len(report)} streams, 5 of them listening; {guardian}")


def _rendezvous(report: Any, look: Look) -> Verdict:
    left = [path.name for path in Path(look.warden_folder, "r").iterdir()]
    if left:
        return verdict(held=False, happened=f"in the host's folder: {', '.join(left)}")
    return refused("EACCES", "ENOENT", "EROFS", "EPERM")(report, look)


def _names(report: Any, look: Look) -> list[str]:
    given = [name for name in report if not name.startswith("\0")]
    folders = (look.session_folder, look.warden_folder)
    return [n for n in given if not n.startswith("/proc/self/fd/") or n.startswith(folders)]


CHECKS: Final = (
    Check(
        name="held",
        promise="a kernel holds bound or connected AF_UNIX streams and no other socket",
        tried="asking every descriptor what it is; the guardian's, from the host",
        code="report = own_sockets()",
        judge=_held,
    ),
    Check(
        name="listeners",
        promise="a socket that was passed in becomes nothing else",
        tried="connect to abstract and named sockets, unbind, bind again, send; on a copy",
        code="""
def reach(fd, address):
    return lambda: copy_of(fd).connect(address)
def unbind(fd):
    text = ctypes.create_string_buffer(16)
    if LIBC.connect(fd, text, 16) == -1:
        raise OSError(ctypes.get_errno(), "")
report = {}
strays = [s["fd"] for s in own_sockets() if not s["listens"] and s["peer"] is None]
for fd in listeners() + strays:
    report |= tell({
        f"{fd} connects to the host": reach(fd, "\\0" + v["abstract"]),
        f"{fd} connects to nobody": reach(fd, "\\0nobody"),
        f"{fd} connects to itself": reach(fd, copy_of(fd).getsockname()),
        f"{fd} is unbound": lambda: unbind(fd),
        f"{fd} is bound again": lambda: copy_of(fd).bind("\\0again"),
        f"{fd} sends": lambda: copy_of(fd).sendto(b"x", "\\0" + v["abstract"])})
""",
        judge=refused("EINVAL", "ECONNREFUSED", "ENOTCONN", "ENOTSUP", "ENOTDIR", "ENOENT"),
    ),
    Check(
        name="accepted",
        promise="a connection of the host's becomes nothing else",
        tried="connect elsewhere, unbind, bind again, listen; on a copy of each",
        code="""
def unbind(fd):
    text = ctypes.create_string_buffer(16)
    if LIBC.connect(fd, text, 16) == -1:
        raise OSError(ctypes.get_errno(), "")
report = {}
for fd in accepted():
    report |= tell({
        f"{fd} connects to the host": lambda: copy_of(fd).connect("\\0" + v["abstract"]),
        f"{fd} is unbound": lambda: unbind(fd),
        f"{fd} is bound again": lambda: copy_of(fd).bind("\\0again"),
        f"{fd} listens": lambda: copy_of(fd).listen(1)})
""",
        # refused at once where the host connects from a namespace that has no such name
        judge=refused("EISCONN", "EINVAL", "ECONNREFUSED"),
    ),
    Check(
        name="interfaces-by-listeners",
        promise="sockets made on the host do not tell of its network",
        tried="ioctls for addresses, names and MACs on each passed listener",
        code=f"{_ASK}\nreport = ask_all(listeners())",
        judge=refused("EPERM"),
        needs=no_gpus,
    ),
    Check(
        name="interfaces-by-connections",
        promise="connections made by the host do not tell of its network",
        tried="the same on each connection that was accepted from it",
        code=f"{_ASK}\nreport = ask_all(accepted())",
        judge=refused("EPERM"),
        needs=no_gpus,
    ),
    Check(
        name="namespaces-by-sockets",
        promise="a socket does not lead into the host's network namespace",
        tried="SIOCGSKNS, SIOCUNIXFILE, SO_NETNS_COOKIE on every socket",
        code="""
report = {}
for fd in listeners() + accepted():
    report |= tell({
        f"SIOCGSKNS on {fd}": lambda: fcntl.ioctl(fd, 0x894C),
        f"SIOCUNIXFILE on {fd}": lambda: fcntl.ioctl(fd, 0x89E0),
        f"SO_NETNS_COOKIE on {fd}": lambda: copy_of(fd).getsockopt(1, 71, 8)})
""",
        judge=refused("EPERM"),
        needs=no_gpus,
    ),
    Check(
        name="peer",
        promise="a connection does not tell who is at its other end",
        tried="SO_PEERPIDFD, PEERCRED, PEERGROUPS, PASSCRED, PASSPIDFD, COOKIE",
        code="""
asked = {"SO_PEERPIDFD": (77, 4), "SO_PEERCRED": (17, 12), "SO_PEERGROUPS": (59, 256),
         "SO_PEERSEC": (31, 256), "SO_COOKIE": (57, 8)}
report = {}
for fd in accepted():
    one = copy_of(fd)
    report |= tell({f"{name} of {fd}": lambda n=n, size=size: one.getsockopt(1, n, size)
                    for name, (n, size) in asked.items()})
    report |= tell({f"SO_PASSCRED of {fd}": lambda: one.setsockopt(1, 16, 1),
                    f"SO_PASSPIDFD of {fd}": lambda: one.setsockopt(1, 76, 1)})
""",
        judge=refused("EPERM"),
    ),
    Check(
        name="socket-programs",
        promise="no program can be attached to a socket",
        tried="SO_ATTACH_FILTER, ATTACH_BPF, ATTACH_REUSEPORT_CBPF, LOCK_FILTER",
        code="""
one = socket.socketpair()[0]
filter_text = struct.pack("HHBBI", 6, 0, 0, 0, 0)
text = ctypes.create_string_buffer(filter_text)
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(text))
report = tell({
    "SO_ATTACH_FILTER": lambda: one.setsockopt(1, 26, program),
    "SO_ATTACH_REUSEPORT_CBPF": lambda: one.setsockopt(1, 51, program),
    "SO_ATTACH_BPF": lambda: one.setsockopt(1, 50, -1),
    "SO_LOCK_FILTER": lambda: one.setsockopt(1, 44, 1)})
""",
        judge=refused("EPERM"),
    ),
    Check(
        name="urgent",
        promise="no urgent byte can be sent (CVE-2025-38236)",
        tried="send, sendmsg and sendmmsg with MSG_OOB over AF_UNIX",
        code="""
one, other = socket.socketpair()
message = ctypes.create_string_buffer(128)
def many():
    if LIBC.sendmmsg(one.fileno(), message, 1, 1) == -1:
        raise OSError(ctypes.get_errno(), "")
report = tell({"send": lambda: one.send(b"x", socket.MSG_OOB),
               "sendmsg": lambda: one.sendmsg([b"x"], [], socket.MSG_OOB),
               "sendmmsg": many})
""",
        judge=refused("EPERM"),
    ),
    Check(
        name="rendezvous",
        promise="the meeting place of the start is closed for good",
        tried="listing it, connecting again, making files, sockets and FIFOs there",
        code="""
place = "/run/executor/rendezvous"
one = socket.socket(1)
report = tell({
    "list": lambda: os.listdir(place), "connect": lambda: one.connect(place + "/s"),
    "bind": lambda: one.bind(place + "/t"), "open": lambda: open(place + "/u", "w"),
    "fifo": lambda: os.mkfifo(place + "/f"), "chmod": lambda: os.chmod(place, 0o777)})
""",
        judge=_rendezvous,
    ),
    Check(
        name="names",
        promise="no socket tells a folder of the host's",
        tried="getsockname and getpeername of every socket",
        code="""
report = [n for s in own_sockets() for n in (s["name"], s["peer"]) if n]
""",
        judge=none("names of the host's", of=_names),
    ),
    Check(
        name="open-files",
        promise="nothing was left open for the kernel by mistake",
        tried="looking where every descriptor of it leads",
        code="""
links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
         if os.path.lexists(f"/proc/self/fd/{n}")]
known = ("socket:", "pipe:", "anon_inode:[event", "/dev/null", "/dev/urandom", "/memfd:",
         "/tmp/", "/dev/shm/", "/proc/")
report = [link for link in links if not link.startswith(known)]
""",
        judge=none("other open files"),
    ),
)
