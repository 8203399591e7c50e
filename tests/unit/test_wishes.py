import json
from collections.abc import Callable
from typing import Any

import pytest

from kernel_provider import __version__
from kernel_provider.errors import UpgradedError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.warden.order import Order
from kernel_provider.warden.wishes import Attach, Claim, Signal, Stop, Wish, parse_wish

OUTPUT = {"limit": 1, "rate": 2, "message": 3, "messages": 4, "parts": 5, "command": 6}
TIMES = {"handshake": 0.5, "cell": 0}
CLAIM = {
    "op": "claim",
    "key": "k",
    "env": {"A": "1"},
    "cwd": "",
    "subscribers": 2,
    "output": OUTPUT,
    "times": TIMES,
}


def test_an_order_arrives_as_it_was_given() -> None:
    """Through a pipe, and equal in all its parts."""
    spec = sandbox_spec(KernelPolicy(env={"A": "1"}), rendezvous="/w/r")
    order = Order(engine="docker", address="/s", spec=spec, folder="/w", startup_timeout=1.5)
    assert Order.from_json(order.to_json()) == order


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(version="0.0.1"),
        lambda told: told.pop("version"),
        lambda told: told.update(colour="red"),
        lambda told: told.pop("folder"),
        lambda told: told["spec"].update(colour="red"),
        lambda told: told["spec"].pop("memory"),
        lambda told: told["spec"].pop("mounts"),
    ],
)
def test_another_versions_order_is_told_apart(change: Callable[[dict[str, Any]], object]) -> None:
    """By its number, and by what it has or lacks where that is the same."""
    spec = sandbox_spec(KernelPolicy(), rendezvous="/w/r")
    order = Order(engine="docker", address="/s", spec=spec, folder="/w", startup_timeout=1.5)
    told = json.loads(order.to_json())
    change(told)
    with pytest.raises(UpgradedError) as caught:
        Order.from_json(json.dumps(told))
    assert caught.value.data == {"old": told.get("version", "unknown"), "new": __version__}


@pytest.mark.parametrize(
    ("told", "wish"),
    [
        (
            CLAIM,
            Claim(key="k", env={"A": "1"}, cwd="", subscribers=2, output=OUTPUT, times=TIMES),
        ),
        ({"op": "attach", "key": "k"}, Attach(key="k")),
        ({"op": "signal", "signal": "INT"}, Signal(signal="INT")),
        ({"op": "stop"}, Stop()),
    ],
)
def test_wishes(told: dict[str, object], wish: Wish) -> None:
    """What an owner may say."""
    assert parse_wish(json.dumps(told).encode()) == wish


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"op": "claim"}',
        b'{"op": "dance"}',
        b'{"op": ["claim"]}',
        b'{"op": "attach", "key": 7}',
        b'{"op": "stop", "now": true}',
        json.dumps({**CLAIM, "env": []}).encode(),
        json.dumps({**CLAIM, "subscribers": "2"}).encode(),
        json.dumps({**CLAIM, "output": {**OUTPUT, "parts": 1.5}}).encode(),
        json.dumps({**CLAIM, "times": {"handshake": "1"}}).encode(),
    ],
)
def test_anything_else_is_a_mistake_of_the_one_who_says_it(line: bytes) -> None:
    """One kind of error for all of it, which costs only the connection."""
    with pytest.raises(ValueError):  # noqa: PT011  its text is for nobody
        parse_wish(line)
