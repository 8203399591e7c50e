"""A process that leaves the host's network: what its sockets tell, and who it is then."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CODE = """
import ctypes, fcntl, json, os, socket, struct, sys
from kernel_provider.warden.netns import leave_network

def interfaces(s):
    found = []
    for number in range(1, 64):
        try:
            answer = fcntl.ioctl(s.fileno(), 0x8910, struct.pack("16si20x", b"", number))
        except OSError:
            continue
        found.append(answer[:16].rstrip(b"\\0").decode())
    return found

own, outside, leave, uid = sys.argv[1:]
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as who was never root is
left = leave == "leave" and leave_network()
listener, client, other = (socket.socket(socket.AF_UNIX) for _ in range(3))
listener.bind(own)
listener.listen()
client.connect(own)
accepted, _ = listener.accept()
other.connect(outside)
def peer(s):
    return struct.unpack("iII", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
print(json.dumps({
    "left": left,
    "interfaces": [interfaces(s) for s in (listener, client, accepted)],
    "who": [os.getuid(), os.getgid()],
    "peers": [peer(accepted), peer(other)],
}))
"""
SOMEBODY = 54_321
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="plays root and another user")


@pytest.fixture
def engine(short_folder: Path) -> Iterator[Path]:
    """A socket with a path that root serves, in this network, in a folder for all."""
    short_folder.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_folder / "engine"))
        (short_folder / "engine").chmod(0o666)
        listener.listen()
        yield short_folder / "engine"


def seen(engine: Path, uid: int, word: str) -> dict[str, Any]:
    """What a process of that user sees, which leaves the network or does not."""
    own = engine.with_name(f"own-{uid}-{word}")
    done = subprocess.run(
        [sys.executable, "-I", "-c", CODE, str(own), str(engine), word, str(uid)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("uid", [0, SOMEBODY], ids=["root", "somebody"])
def test_sockets_tell_nothing_of_the_host(engine: Path, uid: int) -> None:
    """Listening, connecting and accepted ones; and the engine is reached all the same."""
    stays, leaves = seen(engine, uid, "stay"), seen(engine, uid, "leave")
    here = [name for _, name in socket.if_nameindex()]
    assert stays["interfaces"] == [here] * 3, "the control: they would tell"
    if not leaves["left"]:
        pytest.skip("this machine has no namespaces for this user")
    assert leaves["interfaces"] == [["lo"]] * 3
    assert leaves["who"] == [uid, uid], "peers are compared with this"
    assert leaves["peers"][0] == uid
    assert leaves["peers"][1] == (0 if uid == 0 else 65_534), "others are not taken for it"


def test_who_has_capabilities_keeps_them(tmp_path: Path) -> None:
    """And stays where it is: it may be by them alone that it reads its own modules."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").touch()
    code = (
        "import sys; from kernel_provider.warden.netns import leave_network\n"
        "left = leave_network(); open(sys.argv[1]).close(); print(left)"
    )
    rights = "dac_read_search"
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"),
            *(f"--{kind}=-all,+{rights}" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
            *(sys.executable, "-I", "-c", code, str(closed / "file")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
