"""No network: not the host's, not its own, not by any kind of socket."""

from typing import Any, Final

from kernel_provider.verify.judges import both, none, refused, unless
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check

NO_FAMILY: Final = ("EAFNOSUPPORT", "ENOTSUP", "EPERM")
"""How the filter answers a family that there is none of; EPERM is loopback's refusals."""

closed = unless("this kernel may have loopback", lambda policy: policy.loopback)

_MAKE = """
def make(family, kind, protocol=0):
    return lambda: socket.socket(family, kind, protocol).close()
def pair(family, kind):
    return lambda: [s.close() for s in socket.socketpair(family, kind)]
"""


def _nameservers(report: Any, _look: Look) -> list[str]:
    return [server for server in report["nameservers"] if not server.startswith("127.")]


CHECKS: Final = (
    Check(
        name="inet",
        promise="no IPv4 socket can be made",
        tried="TCP, UDP, ping, SCTP, MPTCP and UDP-Lite, and pairs",
        code=_MAKE
        + """
report = tell({
    "TCP": make(2, 1), "UDP": make(2, 2), "TCP by number": make(2, 1, 6), "ping": make(2, 2, 1),
    "SCTP": make(2, 1, 132), "MPTCP": make(2, 1, 262), "UDP-Lite": make(2, 2, 136),
    "pair": pair(2, 1)})
""",
        judge=refused(*NO_FAMILY),
        needs=closed,
    ),
    Check(
        name="inet6",
        promise="no IPv6 socket can be made",
        tried="TCP, UDP, ping and MPTCP, and pairs",
        code=_MAKE
        + """
report = tell({
    "TCP": make(10, 1), "UDP": make(10, 2), "ping": make(10, 2, 58), "MPTCP": make(10, 1, 262),
    "pair": pair(10, 2)})
""",
        judge=refused(*NO_FAMILY),
        needs=closed,
    ),
    Check(
        name="raw",
        promise="no packet can be made by hand",
        tried="raw IPv4 and IPv6 sockets, and AF_PACKET of each kind",
        code=_MAKE
        + """
report = tell({
    "IPv4 raw": make(2, 3, 255), "IPv4 ICMP": make(2, 3, 1), "IPv6 raw": make(10, 3, 255),
    "packet, raw": make(17, 3, 768), "packet, cooked": make(17, 2, 768),
    "packet, old": make(2, 10)})
""",
        judge=refused(*NO_FAMILY),
    ),
    Check(
        name="vsock",
        promise="the hypervisor cannot be reached",
        tried="AF_VSOCK sockets of each kind",
        code=_MAKE
        + """
report = tell({"stream": make(40, 1), "datagram": make(40, 2), "packets": make(40, 5)})
""",
        judge=refused(*NO_FAMILY),
    ),
    Check(
        name="netlink",
        promise="the kernel's own messages cannot be heard or sent",
        tried="netlink sockets: routes, sock_diag, netfilter, audit, uevents, crypto",
        code=_MAKE
        + """
names = {"sock_diag": 4, "netfilter": 12, "audit": 9, "uevents": 15, "crypto": 21}
report = tell({name: make(16, 3, number) for name, number in names.items()}
              | {"routes": make(16, 2), "pair": pair(16, 3)})
""",
        judge=refused(*NO_FAMILY),
        needs=closed,
    ),
    Check(
        name="families",
        promise="no socket but AF_UNIX can be made",
        tried="45 other families, three kinds of each, single and in pairs",
        code=_MAKE
        + """
open_here = {1} | ({2, 10, 16} if v["loopback"] else set())
report = {}
for family in set(range(46)) - open_here:
    for kind in (1, 2, 3):
        report[f"{family}, {kind}"] = told(make(family, kind))
        report[f"pair {family}, {kind}"] = told(pair(family, kind))
""",
        judge=refused(*NO_FAMILY),
    ),
    Check(
        name="abstract",
        promise="abstract sockets of the host cannot be reached",
        tried="connecting to one that listens on the host, by streams and by datagrams",
        code="""
def reach(kind):
    with socket.socket(1, kind) as one:
        one.connect("\\0" + v["abstract"])
with open("/proc/net/unix") as file:
    listed = v["abstract"] in file.read()
report = tell({"stream": lambda: reach(1), "packets": lambda: reach(5)})
report["listed in /proc/net/unix"] = "done" if listed else "ECONNREFUSED"
""",
        judge=refused("ECONNREFUSED"),
    ),
    Check(
        name="dns",
        promise="no name can be looked up, and no nameserver of the host's is told",
        tried="getaddrinfo, a datagram to each nameserver, /etc/resolv.conf",
        code="""
lines = [line.split() for line in open("/etc/resolv.conf")]
servers = [words[1] for words in lines if words[:1] == ["nameserver"]]
def query(server):
    with socket.socket(2, 2) as one:
        one.settimeout(0.2)
        one.sendto(bytes(12), (server, 53))
report = {
    "attempts": tell({"look-up": lambda: socket.getaddrinfo("example.org", 80)}
                     | {server: lambda s=server: query(s) for server in servers
                        if not v["loopback"]}),
    "nameservers": servers}
""",
        judge=both(
            lambda report, look: refused("gaierror", "EAI_AGAIN", *NO_FAMILY, "ECONNREFUSED")(
                report["attempts"], look
            ),
            none("nameservers that are not its own", of=_nameservers),
        ),
    ),
    Check(
        name="metadata",
        promise="the cloud's metadata address cannot be reached",
        tried="connecting to 169.254.169.254 and fd00:ec2::254, port 80",
        code="""
def reach(family, address):
    with socket.socket(family, 1) as one:
        one.settimeout(0.5)
        one.connect((address, 80))
report = tell({"IPv4": lambda: reach(2, "169.254.169.254"),
               "IPv6": lambda: reach(10, "fd00:ec2::254")})
""",
        judge=refused(*NO_FAMILY, "ENETUNREACH", "EADDRNOTAVAIL"),
    ),
    Check(
        name="interfaces",
        promise="there is no network interface but lo",
        tried="reading /sys/class/net, /proc/net/dev and /proc/net/route",
        code="""
lines = open("/proc/net/dev").read().splitlines()[2:]
names = set(os.listdir("/sys/class/net")) | {line.split(":")[0].strip() for line in lines}
routes = [line.split()[0] for line in open("/proc/net/route").read().splitlines()[1:]]
report = sorted((names | set(routes)) - {"lo"})
""",
        judge=none("interfaces and routes besides lo"),
    ),
    Check(
        name="engine-socket",
        promise="no socket of the engine or of another program can be reached",
        tried="looking for sockets and FIFOs in every folder, and the engine's usual paths",
        code="""
found = [path for path, facts in walk() if stat.S_ISSOCK(facts.st_mode) or
         stat.S_ISFIFO(facts.st_mode)]
usual = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
         "/run/executor-ml/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"]
report = found + [path for path in usual if os.path.lexists(path)]
""",
        judge=none("sockets and FIFOs"),
    ),
)
