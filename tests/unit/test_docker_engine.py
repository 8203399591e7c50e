"""Docker's API as spoken here: what is asked, and what each answer means.

The engine is a fake on a real unix socket, so that bytes and deadlines are real.
"""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import names
from kernel_provider.engines import (
    ContainerState,
    ContainerSummary,
    Engine,
    ImageFacts,
    Mount,
    NameTakenError,
    SandboxSpec,
    docker,
    open_engine,
)
from kernel_provider.engines.docker import DockerEngine, create_body, find_socket
from kernel_provider.errors import (
    EngineAddressError,
    EngineError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageMissingError,
    LimitNotHeldError,
)

SPEC = SandboxSpec(
    image="executor-ml:latest",
    argv=("/python", "/guardian"),
    env={"B": "2", "A": "1 = one"},
    memory=512,
    cpus=0.5,
    pids=128,
    nofile=1024,
    tmp_size=64,
    tmp_inodes=100,
    shm_size=32,
    mounts=(Mount(source="/run/r", target="/rendezvous"),),
    labels={"executor-ml": "kernel"},
    seccomp="{}",
    hostname="sandbox",
    log_size=65536,
)

BODY: dict[str, Any] = {
    "Image": "sha256:1",
    "Hostname": "sandbox",
    "Domainname": "",
    "User": "7000:7000",
    "Entrypoint": ["/python", "/guardian"],
    "Cmd": [],
    "Env": ["A=1 = one", "B=2"],
    "Labels": {"executor-ml": "kernel"},
    "WorkingDir": "/",
    "NetworkDisabled": True,
    "StopSignal": "SIGTERM",
    "Healthcheck": {"Test": ["NONE"]},
    "HostConfig": {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "rw,nosuid,nodev,noexec,mode=1777,size=64,nr_inodes=100"},
        "ShmSize": 32,
        "Memory": 512,
        "MemorySwap": 512,
        "CpuPeriod": 100_000,
        "CpuQuota": -1,
        "PidsLimit": 128,
        "Ulimits": [
            {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", "seccomp={}"],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Privileged": False,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "Dns": ["127.0.0.1"],
        "DnsSearch": ["."],
        "DeviceRequests": [],
        "Mounts": [{"Type": "bind", "Source": "/run/r", "Target": "/rendezvous", "ReadOnly": True}],
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": "65536", "max-file": "1"},
        },
    },
}


def test_what_is_asked_for_is_exactly_this() -> None:
    """The whole request as a value: a flag more or less is seen here."""
    assert create_body(SPEC, image_id="sha256:1", uid=7000) == BODY


def test_limits_are_the_specs_and_not_constants() -> None:
    """Other numbers give another request."""
    body = create_body(replace(SPEC, memory=9, pids=8, shm_size=7), image_id="i", uid=1)
    host = body["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (9, 9)
    assert (host["PidsLimit"], host["ShmSize"]) == (8, 7)


# --- the socket ---------------------------------------------------------------------------


def test_docker_host_says_where_the_engine_is() -> None:
    """A unix:// address is taken as it is, whether somebody listens or not."""
    assert find_socket({"DOCKER_HOST": "unix:///nowhere/docker.sock"}) == "/nowhere/docker.sock"


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://me@there", "npipe:////./x", "x"])
def test_an_engine_elsewhere_is_refused(host: str) -> None:
    """Descriptors do not pass through a network: the error names the address."""
    with pytest.raises(EngineAddressError) as caught:
        find_socket({"DOCKER_HOST": host})
    assert caught.value.data == {"address": host}


def test_without_docker_host_the_first_usual_socket_that_answers_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that nobody listens on, left by a killed engine, is passed over."""
    exists = os.path.exists
    monkeypatch.setattr(
        os.path,
        "exists",
        lambda path: not str(path).startswith("/var/run/") and exists(path),
    )
    own = tmp_path / "docker.sock"
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    monkeypatch.setattr(names, "ENGINE_SOCKET", str(tmp_path / "ours.sock"))
    assert find_socket(environ) == "/var/run/docker.sock"
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as ours:
        stale.bind(str(own))
        ours.bind(str(tmp_path / "ours.sock"))
        ours.listen()
        assert find_socket(environ) == str(tmp_path / "ours.sock")
        stale.listen()
        assert find_socket(environ) == str(own)


def test_an_engine_that_is_too_busy_to_accept_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found at once: event loops ask, and nobody waits in its queue for that."""
    exists = os.path.exists
    monkeypatch.setattr(
        os.path,
        "exists",
        lambda path: not str(path).startswith("/var/run/") and exists(path),
    )
    own = str(tmp_path / "docker.sock")
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    queue = [socket.socket(socket.AF_UNIX, kind) for _ in range(4)]
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(own)
        engine.listen(0)
        assert [one.connect_ex(own) for one in queue][-1] == errno.EAGAIN
        began = time.monotonic()
        assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == own
        assert time.monotonic() - began < 5
    for one in queue:
        one.close()


# --- answers ------------------------------------------------------------------------------


def test_loopback_is_an_empty_network_that_is_set_up() -> None:
    """Still none: but lo is there, and localhost has an address."""
    body = create_body(replace(SPEC, loopback=True), image_id="i", uid=1)
    assert body["NetworkDisabled"] is False
    assert body["HostConfig"]["NetworkMode"] == "none"


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [("all", {"Count": -1}), (2, {"Count": 2}), (("0", "GPU-1"), {"DeviceIDs": ["0", "GPU-1"]})],
)
def test_gpus_are_asked_for_by_count_or_by_name(
    gpus: int | str | tuple[str, ...], asked: dict[str, Any]
) -> None:
    """With what computing needs of the driver, and no more."""
    body = create_body(replace(SPEC, gpus=gpus), image_id="i", uid=1)
    capabilities = {"Capabilities": [["gpu", "compute", "utility"]]}
    assert body["HostConfig"]["DeviceRequests"] == [{**asked, **capabilities}]


def test_gpus_are_asked_for_by_their_cdi_names() -> None:
    """As Docker's own client does; what computing needs is in CDI's specification."""
    asked = ("nvidia.com/gpu=0", "GPU-1", "nvidia.com/gpu=1:0")
    body = create_body(replace(SPEC, gpus=asked), image_id="i", uid=1)
    plain, by_cdi = body["HostConfig"]["DeviceRequests"]
    assert plain == {"DeviceIDs": ["GPU-1"], "Capabilities": [["gpu", "compute", "utility"]]}
    assert by_cdi == {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=1:0"]}


class FakeDocker:
    """Answers each connection with what ``answer(request)`` gives; None is silence."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self.answer: Callable[[bytes], bytes | None] = lambda _request: None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                request = self._read(connection)
                if not request:
                    return
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    self._over.wait(5)
                else:
                    connection.sendall(answer)

    def _read(self, connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            data = connection.recv(65536)
            if not data:
                return b""
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().rpartition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def says(self, status: int, body: bytes = b"") -> None:
        """Answer every request from now on with this."""
        head = f"HTTP/1.0 {status} whatever\r\nContent-Type: application/json\r\n\r\n"
        self.answer = lambda _request: head.encode() + body

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDocker]:
    """A fake engine that listens."""
    server = FakeDocker(str(tmp_path / "d.sock"))
    yield server
    server.close()


@pytest.fixture
def client(fake: FakeDocker) -> Engine:
    """An engine of the table, at the fake's address."""
    return open_engine("docker", fake.path)


def test_a_request_is_plain_http_with_a_length(fake: FakeDocker, client: Engine) -> None:
    """One request for each connection, versioned, closed by the engine."""
    fake.says(201, b'{"Id": "abc", "Warnings": []}')
    assert client.create(SPEC, image_id="sha256:1", uid=7000) == "abc"
    head, _, body = fake.requests[0].partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /v1.41/containers/create?name=executor-ml-7000 HTTP/1.0"
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == BODY


def test_what_the_engine_tells_becomes_typed_values(fake: FakeDocker, client: Engine) -> None:
    """Image, state and list are read from the fields that the API documents."""
    fake.says(200, b'{"Id": "sha256:1", "Config": {"Labels": null}}')
    assert client.image("x") == ImageFacts(id="sha256:1", labels={})
    fake.says(
        200,
        b'{"State": {"Running": false, "Pid": 0, "ExitCode": 137, "OOMKilled": true, "Error": ""}}',
    )
    assert client.inspect("c") == ContainerState(
        running=False, pid=0, exit_code=137, oom_killed=True, error=""
    )
    fake.says(200, b'[{"Id": "c", "Names": ["/n"], "State": "exited", "Labels": {"a": "b"}}]')
    assert client.list("a=b") == (
        ContainerSummary(id="c", name="n", state="exited", labels={"a": "b"}),
    )
    assert b"filters=%7B%22label%22:%20%5B%22a%3Db%22%5D%7D" in fake.requests[-1]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (b'["name=seccomp,profile=default"]', 0x7000_0000),
        (b'["name=userns"]', 20_000),
        (b'["name=rootless"]', 20_000),
        (b"null", 0x7000_0000),
    ],
)
def test_uids_fit_into_what_the_engine_maps(
    fake: FakeDocker, client: Engine, options: bytes, first: int
) -> None:
    """With remapped ids only 65536 exist."""
    fake.says(200, b'{"SecurityOptions": ' + options + b"}")
    assert client.id_range()[0] == first


def test_a_log_is_joined_from_its_frames(fake: FakeDocker, client: Engine) -> None:
    """Both streams in their order; a frame that was cut is no error."""
    fake.says(200, b"\1\0\0\0\0\0\0\4one\n\2\0\0\0\0\0\0\4two\n\1\0\0\0\0\0\0\x09cut")
    assert client.last_lines("c", 9) == "one\ntwo\ncut"
    fake.says(404, b"{}")
    assert client.last_lines("c", 9) == ""


def test_404_means_what_it_means_for_each_call(fake: FakeDocker, client: Engine) -> None:
    """A missing image is an error with a remedy; a missing container is gone."""
    fake.says(404, b'{"message": "no such thing"}')
    with pytest.raises(ImageMissingError, match="executor-ml build"):
        client.image("executor-ml:latest")
    assert client.inspect("c") is None
    client.kill("c")
    client.remove("c")
    with pytest.raises(EngineError, match="start the sandbox: no such thing"):
        client.start("c")


IMAGES = json.dumps(
    [
        {"RepoTags": ["executor-base:latest"]},
        {"RepoTags": ["executor-ml:latest", "executor-ml-vision:latest"]},
        {"RepoTags": ["<none>:<none>"]},
        {"RepoTags": None},
    ]
)
THERE = "take one of: executor-ml-vision:latest, executor-ml:latest; or make it: "


@pytest.mark.parametrize(
    ("image", "images", "words"),
    [
        ("executor-ml:latest", IMAGES, ("", "run: executor-ml build")),
        (
            "executor-ml-vison",
            IMAGES,
            (
                "; did you mean 'executor-ml-vision:latest'?",
                f"{THERE}executor-ml build --tag executor-ml-vison",
            ),
        ),
        ("executor-ml-nlp:latest", "[]", ("", "run: executor-ml build --variant nlp")),
        ("mine", IMAGES, ("", f"{THERE}executor-ml build --tag mine")),
        ("mine", "not json", ("", "run: executor-ml build --tag mine")),
    ],
)
def test_a_missing_image_leads_to_the_right_name(
    fake: FakeDocker, client: Engine, image: str, images: str, words: tuple[str, str]
) -> None:
    """The nearest that is there, the others, or the command that makes it."""

    def answer(request: bytes) -> bytes:
        found = b"/v1.41/images/json?filters=" in request
        return f"HTTP/1.0 {200 if found else 404} x\r\n\r\n{images if found else '{}'}".encode()

    fake.answer = answer
    with pytest.raises(ImageMissingError) as caught:
        client.image(image)
    assert str(caught.value).splitlines() == [
        f"the image {image} is not on this machine{words[0]}",
        f"Fix: {words[1]}",
    ]


def test_409_means_taken_ended_or_under_way(fake: FakeDocker, client: Engine) -> None:
    """On create the name is another's; on kill and remove the work is done already."""
    fake.says(409, b'{"message": "conflict"}')
    with pytest.raises(NameTakenError):
        client.create(SPEC, image_id="i", uid=1)
    client.kill("c")
    client.remove("c")


_CALLS: dict[str, Callable[[Engine], object]] = {
    "id_range": lambda e: e.id_range(),
    "image": lambda e: e.image("x"),
    "create": lambda e: e.create(SPEC, image_id="i", uid=1),
    "start": lambda e: e.start("c"),
    "inspect": lambda e: e.inspect("c"),
    "limit_cpu": lambda e: e.limit_cpu("c", 0.5),
    "kill": lambda e: e.kill("c"),
    "remove": lambda e: e.remove("c"),
    "list": lambda e: e.list("a=b"),
}


@pytest.mark.parametrize("call", _CALLS)
def test_500_is_told_in_the_engines_words(fake: FakeDocker, client: Engine, call: str) -> None:
    """Every call maps a failure to an error with what was being done."""
    fake.says(500, b'{"message": "disk on fire"}')
    with pytest.raises(EngineError, match=r"failed to .*: disk on fire"):
        _CALLS[call](client)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "hung up without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP answer"),
        (b"\0\xff\x80", "not an HTTP answer"),
        (b"HTTP/1.0 ok\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "not JSON"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"State": {"Runn', "not JSON"),
        (b"HTTP/1.0 500 Oh\r\n\r\n<html>", "status 500"),
        (b"HTTP/1.0 500 Oh\r\n\r\n", "status 500"),
        (b'HTTP/1.0 500 Oh\r\n\r\n"text"', "status 500"),
    ],
)
def test_garbage_is_an_error_and_no_traceback(
    fake: FakeDocker, client: Engine, answer: bytes, reason: str
) -> None:
    """Whoever listens there, and wherever the answer is cut."""
    fake.answer = lambda _request: answer
    with pytest.raises(EngineError, match=reason):
        client.inspect("c")


def test_warnings_are_limits_that_the_engine_dropped(fake: FakeDocker, client: Engine) -> None:
    """A sandbox that lacks a limit is removed and never started (D6)."""
    fake.says(201, b'{"Id": "abc", "Warnings": ["no swap limit"]}')
    with pytest.raises(LimitNotHeldError, match="no swap limit"):
        client.create(SPEC, image_id="i", uid=1)
    assert fake.requests[-1].startswith(b"DELETE /v1.41/containers/abc?force=1")
    with pytest.raises(LimitNotHeldError, match="no swap limit"):
        client.limit_cpu("abc", 0.5)


def test_an_engine_that_hangs_is_an_error_within_the_deadline(
    fake: FakeDocker, client: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts, and never answers."""
    monkeypatch.setattr(docker, "DEADLINE", 0.2)
    began = time.monotonic()
    with pytest.raises(EngineError, match="answer GET /containers/c/json: not done within"):
        client.inspect("c")
    assert time.monotonic() - began < 2
    assert len(fake.requests) == 1


def test_an_engine_that_trickles_is_an_error_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is the call's, not each byte's."""
    monkeypatch.setattr(docker, "DEADLINE", 0.5)
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "t.sock"))
        listener.listen()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                while not over.wait(0.1):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        began = time.monotonic()
        giving_up = threading.Timer(3, over.set)
        giving_up.start()
        try:
            with pytest.raises(EngineError, match="not done within"):
                DockerEngine(str(tmp_path / "t.sock")).inspect("c")
        finally:
            over.set()
            giving_up.cancel()
            thread.join()
    assert time.monotonic() - began < 2


def test_a_call_ends_by_the_moment_that_was_set(fake: FakeDocker, client: Engine) -> None:
    """Whatever else its deadline would be; after that moment none is made."""
    began = time.monotonic()
    hurried = client.by(began + 0.2)
    for _ in range(2):
        with pytest.raises(EngineError, match="answer GET /containers/c/json: not done within"):
            hurried.inspect("c")
    assert 0.2 <= time.monotonic() - began < 2
    assert len(fake.requests) == 1


@pytest.mark.parametrize("body", [b"[]", b'{"State": {}}', b'{"State": null}', b'"x"'])
def test_an_answer_that_lacks_something(fake: FakeDocker, client: Engine, body: bytes) -> None:
    """The engine's error, and no crash of ours."""
    fake.says(200, body)
    with pytest.raises(EngineError, match=r"inspect the sandbox: its answer was not understood"):
        client.inspect("c")
    with pytest.raises(EngineError, match="not understood"):
        client.image("x")
    with pytest.raises(EngineError, match=r"not understood|not Docker"):
        client.id_range()


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    """A missing file and one that nobody listens on: unreachable, with the path."""
    missing = DockerEngine(f"{tmp_path}/missing.sock")
    with pytest.raises(EngineUnreachableError, match=r"missing\.sock \(No such file"):
        missing.inspect("c")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{tmp_path}/deaf.sock")
        with pytest.raises(EngineUnreachableError, match="Connection refused"):
            DockerEngine(f"{tmp_path}/deaf.sock").inspect("c")


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    """The reason is a reason, and not "Success"."""
    with pytest.raises(EngineUnreachableError, match="too long"):
        DockerEngine(f"{tmp_path}/{'x' * 120}").inspect("c")


def test_a_socket_of_others_is_told_apart_from_none(
    fake: FakeDocker, client: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is another: a group to join, not an engine to start."""

    def refused(path: str, _request: bytes, _patience: float) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(docker, "_exchange", refused)
    with pytest.raises(EnginePermissionError, match="join the group that owns"):
        client.inspect("c")
    assert not fake.requests


def test_a_newer_engine_is_spoken_to_in_its_oldest_version(fake: FakeDocker) -> None:
    """Engines that refuse our version are asked for theirs, once, and then called by it."""

    def answer(request: bytes) -> bytes:
        path = request.split(b" ")[1]
        if path == b"/version":
            body = b'{"ApiVersion": "1.52", "MinAPIVersion": "1.44"}'
        elif path.startswith(b"/v1.44/"):
            body = b"[]"
        else:
            return b'HTTP/1.0 400 Bad\r\n\r\n{"message": "client version 1.41 is too old"}'
        return b"HTTP/1.0 200 OK\r\n\r\n" + body

    fake.answer = answer
    engine = DockerEngine(fake.path)
    assert engine.list("executor-ml") == ()
    assert engine.list("executor-ml") == ()
    paths = [request.split(b" ")[1].split(b"?")[0] for request in fake.requests]
    assert paths == [
        b"/v1.41/containers/json",
        b"/version",
        b"/v1.44/containers/json",
        b"/v1.44/containers/json",
    ]


def test_a_bad_request_to_an_engine_of_our_version_stays_one(fake: FakeDocker) -> None:
    """A 400 that is not about versions is the engine's own complaint."""

    def answer(request: bytes) -> bytes:
        if request.startswith(b"GET /version"):
            return b'HTTP/1.0 200 OK\r\n\r\n{"ApiVersion": "1.41", "MinAPIVersion": "1.12"}'
        return b'HTTP/1.0 400 Bad\r\n\r\n{"message": "invalid mount config"}'

    fake.answer = answer
    with pytest.raises(EngineError, match="invalid mount config"):
        DockerEngine(fake.path).list("executor-ml")
