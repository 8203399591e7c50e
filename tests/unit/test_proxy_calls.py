"""Requests to the proxy before the engine: which are calls of a kernel's life, and which not."""

import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from pages import read, rows

from kernel_provider.engines.docker import DockerEngine
from kernel_provider.proxy.calls import BODY, ROUTES, RefusedError, body_length, filters, read_call

ID = "0123456789abcdef" * 4


def head(line: str, *fields: str) -> str:
    """A request's head."""
    return "\r\n".join([f"{line} HTTP/1.0", "Host: docker", *fields])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("GET /v1.41/version", "version"),
        ("GET /version", "version"),
        ("GET /v1.44/info", "info"),
        ("GET /v1.41/images/executor-ml:latest/json", "image"),
        ("GET /v1.41/images/registry.example:5000/team/executor-ml@sha256:0a/json", "image"),
        ("POST /v1.41/containers/create?name=executor-ml-1879048193", "create"),
        (f"POST /v1.41/containers/{ID}/start", "start"),
        (f"GET /v1.41/containers/{ID}/json", "inspect"),
        ("GET /v1.41/containers/executor-ml-1879048193/json", "inspect"),
        (f"POST /v1.41/containers/{ID}/update", "update"),
        (f"POST /v1.41/containers/{ID}/kill?signal=KILL", "kill"),
        (f"GET /v1.41/containers/{ID}/logs?stdout=1&stderr=1&tail=20", "logs"),
        (f"DELETE /v1.41/containers/{ID}?force=1&v=1", "remove"),
    ],
)
def test_calls_of_a_kernels_life(line: str, name: str) -> None:
    """Each is one of the table, and is passed on as what it was understood to be."""
    body = b"{}" if name in {"create", "update"} else b""
    call = read_call(head(line), body)
    assert call.route.name == name
    first, _, rest = call.to_bytes().partition(b"\r\n")
    assert first.decode() == f"{line} HTTP/1.0"
    assert rest.endswith(b"\r\n\r\n" + body)


class Recorder(DockerEngine):
    """The engine's client, whose requests are kept and answered with nothing."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.sent: list[tuple[str, bytes]] = []

    def _send(self, method: str, path: str, payload: bytes) -> tuple[int, bytes]:
        self.sent.append((f"{method} {path}", payload))
        return 200, b"{}"


@pytest.mark.parametrize(
    "act",
    [
        lambda engine: engine.list("executor-ml=kernel"),
        lambda engine: engine.start(ID),
        lambda engine: engine.inspect(ID),
        lambda engine: engine.limit_cpu(ID, 0.5),
        lambda engine: engine.kill(ID),
        lambda engine: engine.kill(ID, "2"),
        lambda engine: engine.remove(ID),
        lambda engine: engine.last_lines(ID, 40),
        lambda engine: engine.image("executor-ml:latest"),
        lambda engine: engine.version(),
        lambda engine: engine.info(),
    ],
)
def test_what_our_own_client_sends_comes_through(act: Callable[[DockerEngine], object]) -> None:
    """Word for word: the table is not of what the client sent at some time."""
    engine = Recorder()
    with suppress(Exception):  # the empty answer is of no use to some
        act(engine)
    ((line, body),) = engine.sent
    read_call(head(line), body)


@pytest.mark.parametrize(
    "line",
    [
        f"POST /v1.41/containers/{ID}/exec",
        f"POST /v1.41/containers/{ID}/attach?stream=1",
        f"PUT /v1.41/containers/{ID}/archive?path=/",
        f"GET /v1.41/containers/{ID}/archive?path=/etc",
        f"POST /v1.41/containers/{ID}/restart",
        "POST /v1.41/containers/prune",
        "POST /v1.41/volumes/create",
        "POST /v1.41/networks/create",
        "POST /v1.41/build?remote=x",
        "POST /v1.41/images/create?fromImage=x",
        "DELETE /v1.41/images/executor-ml:latest",
        "POST /v1.41/swarm/init",
        "POST /session",
        "GET /v1.41/containers/json?all=1",
        f"GET /v1.41/containers/json?all=1&filters={filters('other=1')}",
        f"GET /v1.41/containers/json?all=1&filters={filters('executor-ml=kernel')}&size=1",
        "POST /v1.41/containers/create",
        "POST /v1.41/containers/create?name=mine",
        "POST /v1.41/containers/create?name=executor-ml-7&platform=x",
        f"DELETE /v1.41/containers/{ID}?force=1&v=1&link=1",
        f"POST /v1.41/containers/{ID}/kill?signal=KILL&signal=KILL",
        f"POST /v1.41/containers/{ID}/kill?signal=%4bILL",
        f"POST /v1.41/containers/{ID}/../{ID}/start",
        "GET /v1.41/images/../containers/json/json",
        "GET /v1.41/images/%2e%2e/json",
        "GET /v1.41/images/a/../../info/json",
        "GET //v1.41/info",
        "GET /v1.41/v1.41/info",
        "GET /v2.0/info",
        "GET http://docker/info",
        "get /info",
        f"GET /v1.41/containers/{ID}/logs?stdout=1&stderr=1&tail=20&follow=1",
        "GET /v1.41/containers/executor-ml-1x/json",
        "GET /v1.41/containers/nginx/json",
        f"GET /v1.41/containers/{ID[:12]}/json",
        "GET /info\n/x",
        "GET /v1.41/\xe9/json",
    ],
)
def test_anything_else_is_refused(line: str) -> None:
    """Other calls, other parameters, and other ways to write a path."""
    for body in (b"", b"{}"):
        with pytest.raises(RefusedError):
            read_call(head(line), body)


def test_a_request_is_read_in_one_way_only() -> None:
    """Lengths that are said twice, or otherwise; bodies where none belong, or that are none."""
    assert body_length(head("GET /info", "Content-Length: 12")) == 12
    assert body_length(head("GET /info")) == 0
    for fields in (
        ("Content-Length: 1", "Content-Length: 1"),
        ("content-length: 1", "Content-Length: 20"),
        ("Content-Length: -1",),
        ("Content-Length: +1",),
        ("Content-Length: 0x1",),
        ("Content-Length: \u0661",),
        (f"Content-Length: {BODY + 1}",),
        ("Transfer-Encoding: chunked",),
        ("Content-Length: 3", "transfer-encoding: identity"),
        ("Upgrade: tcp",),
    ):
        with pytest.raises(RefusedError):
            body_length(head("POST /info", *fields))
    with pytest.raises(RefusedError, match="has a body"):
        read_call(head("GET /info"), b"{}")
    update = head(f"POST /containers/{ID}/update")
    for body in (b"", b"{", b"[" * 100_000):
        with pytest.raises(RefusedError, match="not JSON"):
            read_call(update, body)
    for line in ("GET /info", "GET  /info HTTP/1.1", "GET /info HTTP/2", "GET /info HTTP/1.1 x"):
        with pytest.raises(RefusedError):
            read_call(line, b"")


def test_the_table_is_that_of_the_page() -> None:
    """docs/admin.md has each call, and no other."""
    told = [row[0] for row in rows(read("docs/admin.md"), "call", "when")]
    paths = {route.name: f"{route.method} {route.path}" for route in ROUTES}
    paths["image"] = "GET /images/NAME/json"
    written = [re.sub(r"\(\?P<container>.*?\)", "ID", path) for path in paths.values()]
    assert sorted(told) == sorted(written)
