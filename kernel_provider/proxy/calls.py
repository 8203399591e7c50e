"""Which calls there are, and a request read as one of them: pure functions.

What is passed on is made anew from the parts that were understood, so nothing of a
request reaches the engine that nobody has looked at.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kernel_provider import names
from kernel_provider.engines.docker import NAME_PREFIX
from kernel_provider.engines.wire import quoted

HEAD: Final = 16 * 1024
BODY: Final = 1024 * 1024
"""Bytes; a seccomp profile and all variables of a sandbox are a quarter of it."""

CREATE: Final = "create"
IMAGE: Final = "image"
START: Final = "start"
UPDATE: Final = "update"
LIST: Final = "list"

_CONTAINER: Final = rf"/containers/(?P<container>[0-9a-f]{{64}}|{NAME_PREFIX}[0-9]+)"
_OURS: Final = f"{names.LABEL}={names.KIND_KERNEL}"
_NUMBER: Final = "[0-9]{1,10}"


class RefusedError(Exception):
    """A call that is not let through; its text says why."""

    status = 403


class UnknownContainerError(RefusedError):
    """One to a container that is not this user's: answered as if there were none."""

    status = 404


@dataclass(frozen=True, kw_only=True)
class Route:
    """A kind of call: patterns of its path, and of each key of its query, all needed."""

    name: str
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    has_body: bool = False


def filters(*labels: str) -> str:
    """The engine's filter for containers with all these labels, as it stands in a query."""
    return quoted(json.dumps({"label": list(labels)}))


ROUTES: Final = (
    Route(name="version", method="GET", path="/version"),
    Route(name="info", method="GET", path="/info"),
    Route(name=IMAGE, method="GET", path=r"/images/(?P<image>\w[\w:@-]*([./][\w:@-]+)*)/json"),
    Route(
        name=CREATE,
        method="POST",
        path="/containers/create",
        query={"name": f"{NAME_PREFIX}{_NUMBER}"},
        has_body=True,
    ),
    Route(name=START, method="POST", path=f"{_CONTAINER}/start"),
    Route(name="inspect", method="GET", path=f"{_CONTAINER}/json"),
    Route(name=UPDATE, method="POST", path=f"{_CONTAINER}/update", has_body=True),
    Route(name="kill", method="POST", path=f"{_CONTAINER}/kill", query={"signal": "[A-Z0-9]+"}),
    Route(
        name="logs",
        method="GET",
        path=f"{_CONTAINER}/logs",
        query={"stdout": "1", "stderr": "1", "tail": _NUMBER},
    ),
    Route(
        name=LIST,
        method="GET",
        path="/containers/json",
        query={"all": "1", "filters": re.escape(filters(_OURS))},
    ),
    Route(name="remove", method="DELETE", path=_CONTAINER, query={"force": "1", "v": "1"}),
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that there is; ``container`` and ``image`` are empty where it is to none.

    ``body`` is JSON.
    """

    route: Route
    version: str
    path: str
    query: Mapping[str, str]
    container: str = ""
    image: str = ""
    body: Any = None

    def to_bytes(self) -> bytes:
        """The request that is passed on."""
        query = "&".join(f"{key}={value}" for key, value in self.query.items())
        body = b"" if self.body is None else json.dumps(self.body).encode()
        return (
            f"{self.route.method} {self.version}{self.path}{'?' if query else ''}{query} "
            "HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def body_length(head: str) -> int:
    """How long the body is that follows a request's head.

    Raises RefusedError where that is too long or said in any other way than once.
    """
    fields = [line.partition(":") for line in head.split("\r\n")[1:]]
    said = [value.strip() for name, _, value in fields if name.lower() == "content-length"]
    if any(name.lower() in {"transfer-encoding", "upgrade"} for name, _, _ in fields):
        msg = "its body has no plain length"
        raise RefusedError(msg)
    if not said:
        return 0
    if len(said) > 1 or not re.fullmatch(_NUMBER, said[0]) or int(said[0]) > BODY:
        msg = f"its body is longer than {BODY} bytes, or its length is unclear"
        raise RefusedError(msg)
    return int(said[0])


def read_call(head: str, body: bytes) -> Call:
    """The call that a request is; raises RefusedError where it is none of ``ROUTES``."""
    words = head.split("\r\n", maxsplit=1)[0].split(" ")
    if len(words) != 3 or words[2] not in {"HTTP/1.0", "HTTP/1.1"}:  # noqa: PLR2004  HTTP's
        msg = "not an HTTP request"
        raise RefusedError(msg)
    method, target, _ = words
    versioned = re.match(r"/v1\.[0-9]{1,3}(?=/)", target)
    version = versioned[0] if versioned else ""
    path, _, rest = target.removeprefix(version).partition("?")
    query = _query(rest)
    for route in ROUTES:
        found = re.fullmatch(route.path, path, re.ASCII)
        if found is None or method != route.method or set(query) != set(route.query):
            continue
        if all(re.fullmatch(route.query[key], value) for key, value in query.items()):
            return Call(
                route=route,
                version=version,
                path=path,
                query=query,
                container=found.groupdict().get("container") or "",
                image=found.groupdict().get("image") or "",
                body=_content(body, route),
            )
    msg = "kernels need no such call"
    raise RefusedError(msg)


def _query(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split("&")] if text else []
    query = {key: value for key, _, value in pairs}
    if len(query) != len(pairs):
        msg = "its query says something twice"
        raise RefusedError(msg)
    return query


def _content(body: bytes, route: Route) -> Any:
    """What a body of JSON holds, of a route that has one; None of others."""
    if not route.has_body:
        if body:
            msg = "it has a body"
            raise RefusedError(msg)
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = "its body is not JSON"
        raise RefusedError(msg) from error
