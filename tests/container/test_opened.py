"""What an administrator may open, in real sandboxes: loopback, GPUs; and what stays shut."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel, manager, run, started
from traitlets.config import Config

from kernel_provider.ceilings import this_machine
from kernel_provider.errors import CeilingError, GpuError, LoopbackError

pytestmark = pytest.mark.container

Pair = tuple[KernelManager, BlockingKernelClient]

SERVER = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = server.accept()
    connection.sendall(connection.recv(100).upper())
    connection.close()
thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection(("localhost", server.getsockname()[1]), timeout=10)
client.sendall(b"hello")
print(client.recv(100).decode())
thread.join()
"""
DISTRIBUTED = """
import multiprocessing, os
import torch, torch.distributed as dist
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
def work(rank, size, results):
    dist.init_process_group("gloo", rank=rank, world_size=size)
    tensor = torch.ones(2) * (rank + 1)
    dist.all_reduce(tensor)
    results.put(tensor.tolist())
    dist.destroy_process_group()
def reduce(size):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=work, args=(rank, size, results)) for rank in range(size)]
    [worker.start() for worker in workers]
    found = [results.get(timeout=100) for _ in workers]
    [worker.join(60) for worker in workers]
    return found
print(reduce(1), reduce(2))
"""
NESTED = """
from jupyter_client.manager import start_new_kernel
inner, client = start_new_kernel(kernel_name="python3")
client.execute_interactive("print(6 * 7)", timeout=60)
client.stop_channels()
inner.shutdown_kernel(now=True)
"""
DEBUGPY = """
import debugpy, socket
address = debugpy.listen(("127.0.0.1", 0))
with socket.create_connection(address, timeout=30) as client:
    print(client.recv(15).decode())
"""
OUTSIDE = """
import errno, socket
def attempt(address, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.settimeout(5)
        try:
            probe.connect(address)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "connected"
hosts = ["8.8.8.8", "172.17.0.1", "10.0.0.1", "169.254.169.254"]
kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
print({attempt((host, 53), kind) for host in hosts for kind in kinds})
print(sorted(name for _, name in socket.if_nameindex()))
print(open("/proc/net/route").read().count(chr(10)))
"""
FAMILIES = """
import socket
def can(family, kind=socket.SOCK_STREAM):
    try:
        socket.socket(family, kind).close()
    except OSError:
        return False
    return True
print([can(socket.AF_INET), can(socket.AF_INET6), can(socket.AF_VSOCK), can(socket.AF_PACKET),
       can(socket.AF_INET, socket.SOCK_RAW), can(socket.AF_UNIX)])
"""


@pytest.fixture(scope="module")
def opened(image: str) -> Iterator[Pair]:
    """A kernel with loopback, whatever this machine's control groups."""
    assert image
    with kernel({"loopback": "insist", "memory": "1g", "pids": 256}) as pair:
        yield pair


def printed(client: BlockingKernelClient, code: str) -> list[str]:
    """The lines that a cell prints; it must not fail."""
    outcome = run(client, textwrap.dedent(code), timeout=180)
    assert outcome.status == "ok", outcome.error
    return outcome.stdout.splitlines()


def test_nothing_is_open_by_default(shared_kernel: Pair) -> None:
    """No socket but AF_UNIX can be made."""
    _, client = shared_kernel
    assert printed(client, FAMILIES) == [str([False, False, False, False, False, True])]


def test_with_loopback_a_server_and_a_client_meet(opened: Pair) -> None:
    """Over 127.0.0.1 and localhost, in one cell; raw and foreign families stay closed."""
    _, client = opened
    assert printed(client, SERVER) == ["HELLO"]
    assert printed(client, FAMILIES) == [str([True, True, False, False, False, True])]


def test_with_loopback_torch_distributed_works(opened: Pair) -> None:
    """gloo, alone and in two processes, with nothing else to be set."""
    _, client = opened
    assert printed(client, DISTRIBUTED)[-1] == "[[1.0, 1.0]] [[3.0, 3.0], [3.0, 3.0]]"


@pytest.mark.parametrize(("code", "shown"), [(NESTED, "42"), (DEBUGPY, "Content-Length:")])
def test_with_loopback_programs_that_speak_tcp_work(opened: Pair, code: str, shown: str) -> None:
    """A kernel inside of a kernel, as graders start it; a debugger that listens."""
    _, client = opened
    assert printed(client, code) == [shown]


def debug(client: BlockingKernelClient, command: str, **arguments: object) -> dict[str, Any]:
    """What the debugger answers to a request over the control channel."""
    request = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
    message = client.session.msg("debug_request", request)
    client.control_channel.send(message)
    while True:
        reply = client.get_control_msg(timeout=60)
        if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            content: dict[str, Any] = reply["content"]
            assert content["success"], content
            return dict(content.get("body") or {})


def stopped(client: BlockingKernelClient) -> int:
    """Number of the thread that has met a breakpoint."""
    while True:
        content = client.get_iopub_msg(timeout=60)["content"]
        if content.get("event") == "stopped":
            return int(content["body"]["threadId"])


def test_with_loopback_the_visual_debugger_works(image: str, shared_kernel: Pair) -> None:
    """A cell stops at a line, its variables are seen, and it goes on; others lack it."""
    assert image
    code = "def half(n):\n    found = n // 2\n    return found\nhalf(84)"
    assert "debugger" not in features(shared_kernel[1])
    with kernel({"loopback": "insist"}) as (_, client):
        assert "debugger" in features(client)
        debug(client, "initialize", clientID="test", adapterID="python", pathFormat="path")
        debug(client, "attach")
        path = debug(client, "dumpCell", code=code)["sourcePath"]
        debug(client, "setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}])
        debug(client, "configurationDone")
        request = client.execute(code)
        thread = stopped(client)
        frame, *_ = debug(client, "stackTrace", threadId=thread)["stackFrames"]
        assert (frame["name"], frame["line"], frame["source"]["path"]) == ("half", 3, path)
        scope, *_ = debug(client, "scopes", frameId=frame["id"])["scopes"]
        seen = debug(client, "variables", variablesReference=scope["variablesReference"])
        assert {v["name"]: v["value"] for v in seen["variables"]} == {"n": "84", "found": "42"}
        debug(client, "continue", threadId=thread)
        reply = client.get_shell_msg(timeout=60)
        assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (request, "ok")


def features(client: BlockingKernelClient) -> list[str]:
    """What a kernel says that it can."""
    request = client.kernel_info()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != request:
        pass
    return list(reply["content"]["supported_features"])


def test_with_loopback_nothing_outside_is_reached(opened: Pair) -> None:
    """No route, no interface but lo: neighbours, the host, a cloud's own addresses."""
    _, client = opened
    assert printed(client, OUTSIDE) == ["{'ENETUNREACH'}", "['lo']", "1"]


def test_loopback_needs_insisting_on_old_control_groups(image: str) -> None:
    """In version 1 its sockets hold unread data outside of the memory limit."""
    assert image
    if this_machine().cgroup == 1:
        with pytest.raises(LoopbackError, match="outside of the memory limit"):
            manager({"loopback": True}).start_kernel()
        return
    with kernel({"loopback": True}) as (_, client):
        assert printed(client, SERVER) == ["HELLO"]


@pytest.mark.parametrize("said", [True, "insist"])
def test_loopback_can_be_forbidden(
    said: object, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the administrator, whatever a kernelspec insists on."""
    assert image
    monkeypatch.setenv("EXECUTOR_ML_MAX_LOOPBACK", "false")
    with pytest.raises(CeilingError, match="above the ceiling of false set in EXECUTOR_ML_MAX_LO"):
        manager({"loopback": said}).start_kernel()


def test_a_servers_configuration_holds_its_kernels(image: str, tmp_path: Path) -> None:
    """Ceilings and defaults as traits, from the configuration that a manager has."""
    assert image
    section: dict[str, Any] = {"max_pids": 200, "defaults": {"memory": "640m"}}
    km = manager({"pids": 201})
    km.update_config(Config({"SandboxProvisioner": section}))
    with pytest.raises(CeilingError, match=r"201 is above .* 200 set in c.SandboxProvisioner.max"):
        km.start_kernel()
    assert not list(tmp_path.iterdir())
    km = manager({})
    km.update_config(Config({"SandboxProvisioner": section}))
    with started(km) as client:
        code = """
            import glob
            files = glob.glob("/sys/fs/cgroup/memory/memory.limit_in_bytes")
            print(open((files or ["/sys/fs/cgroup/memory.max"])[0]).read())
        """
        assert printed(client, code)[0] == str(640 * 2**20)


@pytest.mark.parametrize(("gpus", "named"), [("all", "gpu"), (["nvidia.com/gpu=0"], "cdi")])
def test_gpus_that_the_engine_cannot_give_are_a_typed_error(
    gpus: object, named: str, engine: docker.DockerClient, image: str
) -> None:
    """With what the engine said, and what it lacks; nothing is left of the attempt."""
    assert image
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine may have GPUs to give")
    with pytest.raises(GpuError) as caught:
        manager({"gpus": gpus}).start_kernel()
    first, second = str(caught.value).splitlines()
    assert first.startswith("the engine did not start a sandbox with GPUs: ")
    assert named in first.partition("GPUs: ")[2]
    assert "nvidia-ctk runtime configure" in second
