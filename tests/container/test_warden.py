"""Whatever fails in a warden, or under it: an error with the real cause, nothing left.

PID 1 is played where ours would not misbehave, the engine's calls are held or refused on
their way, and a warden's own code is changed before it begins.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from kernels import kernel, run
from proxy import CREATE, INSPECT, KILL, LOGS, REMOVE, START, UPDATE, EngineProxy
from sandboxes import (
    KEY,
    containers_of,
    failed_launch,
    left_of,
    look,
    memory,
    session,
    session_of,
    until,
)

from kernel_provider import children, link, names
from kernel_provider.errors import (
    EngineError,
    SandboxError,
    StartError,
    StartMemoryError,
    WardenError,
)
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session, prune
from kernel_provider.warden import cgroup, main

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Sabotage = Callable[[str], None]

SOON = 8.0
"""Seconds for an error that is not to wait for a deadline: the engine has 2 + 2 of them."""


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Have wardens run some code before they begin; ``boom`` raises, ``W`` is the Warden.

    So does whoever removes what a lost warden left: what it runs is not changed by it.
    """

    def change(code: str) -> None:
        boot = """
        import os, signal, socket, sys, time
        sys.path.append(sys.argv[1])
        from kernel_provider.warden import ending, main, rendezvous, sandbox, talk, warden
        from kernel_provider.warden.cgroup import is_alive
        W = warden.Warden
        def boom(*_args, **_named):
            raise KeyError("100% unforeseen")
        """
        text = f"{dedent(boot)}\n{dedent(code)}\n".replace("{", "{{").replace("}", "}}")
        text += "from kernel_provider.{} import main; main()\n"
        monkeypatch.setattr(children, "_BOOT", text)

    return change


# --- errors that nobody foresaw ---------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "warden.open_engine = boom",
        "sandbox.Sandbox.launch = boom",
        "talk.Talk.__init__ = boom",
        "sandbox.Sandbox.meet = boom",
        "W.on_parked = boom",
        "from kernel_provider.warden.relay import Relay; Relay.open = boom",
        "sandbox.Sandbox.launch = boom; ending.Ending.fail = boom",
    ],
)
def test_an_unforeseen_error_of_a_start_is_told(
    sabotage: Sabotage, engine: docker.DockerClient, where: str
) -> None:
    """Wherever it is: by its type and text, in the first line, and at once."""
    sabotage(where)
    began = time.monotonic()
    error = failed_launch(engine)
    assert time.monotonic() - began < SOON
    assert isinstance(error, WardenError)
    first = str(error).splitlines()[0]
    assert first.endswith("failed while it was starting: KeyError: '100 unforeseen'")


def attach(made: Session) -> None:
    """Make a serving warden do what was sabotaged."""
    with pytest.raises(WardenError):
        asyncio.run(Session.attach(made.describe(), key=KEY, environ=os.environ, name="t"))


def running(client: BlockingKernelClient) -> str:
    """Id of a request whose cell runs until its kernel ends."""
    request = client.execute("import time; print('on', flush=True); time.sleep(60)")
    while client.get_iopub_msg(timeout=10)["msg_type"] != "stream":
        pass
    return str(request)


def last_words(client: BlockingKernelClient) -> dict[str, Any]:
    """The error output that comes next."""
    while (message := client.get_iopub_msg(timeout=10))["msg_type"] != "error":
        pass
    return dict(message)


@pytest.mark.parametrize(
    "also",
    [
        "",
        "ending.Ending.die = boom",
        "from kernel_provider.warden import lastwords; lastwords.compose = boom",
        "from kernel_provider.warden.relay import Relay; Relay.close = boom",
    ],
)
def test_an_unforeseen_error_while_it_serves_is_told(
    sabotage: Sabotage, engine: docker.DockerClient, also: str
) -> None:
    """As the death's cause, in the cell that was running, and with the traceback."""
    sabotage(f"W.on_attach = boom\n{also}")
    with kernel() as (km, client):
        made = session_of(km)
        seen = look(made, engine)
        request = running(client)
        attach(made)
        assert until(lambda: made.death is not None)
        death = made.death
        assert death is not None
        assert (death.name, death.expected, death.exit_code) == ("WardenFailed", False, 70)
        assert "(KeyError: '100 unforeseen')" in death.reason
        if not also:
            told = last_words(client)
            assert told["parent_header"]["msg_id"] == request
            assert told["content"]["ename"] == "WardenFailed"
            assert death.reason in told["content"]["evalue"]
        assert "in boom" in "".join(made.troubles())
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)


def test_an_error_in_the_last_words_hides_no_cause(sabotage: Sabotage) -> None:
    """What the kernel died of is known by then, and is what is told."""
    sabotage("from kernel_provider.warden import lastwords; lastwords.compose = boom")
    with kernel() as (km, client):
        client.execute("import os; os._exit(7)")
        made = session_of(km)
        assert until(lambda: made.death is not None)
        assert made.death is not None
        assert (made.death.name, made.death.exit_code) == ("KernelExited", 7)


UNTOLD = {
    "killed": "print('the end of the log', file=sys.stderr); os.kill(os.getpid(), 9)",
    "failed in telling": "ending.Ending.crash = boom; raise KeyError('the end of the log')",
}


@pytest.mark.parametrize("how", UNTOLD)
def test_a_lost_warden_is_told_by_its_log(
    sabotage: Sabotage, engine: docker.DockerClient, how: str
) -> None:
    """One that could not tell leaves its log; whoever finds it lost reads the last line."""
    sabotage(f"def lose(*_):\n    {UNTOLD[how]}\nW.on_attach = lose")
    word = "the end of the log" if how == "killed" else "100 unforeseen"
    with session() as made:
        seen = look(made, engine)
        attach(made)
        assert until(lambda: made.death is not None)
        assert made.death is not None
        assert (made.death.name, made.death.expected) == ("WardenLost", False)
        assert word in made.death.reason
        assert until(lambda: not cgroup.is_alive(seen.warden))
        assert Path(seen.warden_folder, "log").exists(), "the control: nobody else removed it"
    assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)


@pytest.mark.parametrize("how", UNTOLD)
def test_a_warden_lost_in_its_start_is_told_by_its_log(
    sabotage: Sabotage, engine: docker.DockerClient, how: str
) -> None:
    """The same before it serves: the error of the launch has the line."""
    sabotage(f"def lose(*_):\n    {UNTOLD[how]}\nW.on_parked = lose")
    error = failed_lost_launch(engine)
    assert isinstance(error, WardenError)
    assert "ended while it was starting: " in str(error)
    assert ("the end of the log" if how == "killed" else "100 unforeseen") in str(error)


def failed_lost_launch(engine: docker.DockerClient) -> SandboxError:
    """As any that fails, but that the owner's end is what removes it."""
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden, folder = made.warden, Path(made.describe()["warden"])
    assert warden is not None
    try:
        with pytest.raises(SandboxError) as caught:
            asyncio.run(made.launched(30))
    finally:
        made.close()
    assert until(lambda: not (prune(os.environ) or containers_of(warden, engine)))
    assert until(lambda: not folder.exists())
    return caught.value


def test_what_a_warden_may_take(sabotage: Sabotage, engine: docker.DockerClient) -> None:
    """Its memory and its files have limits, far above what 100 MB of output take.

    What goes beyond is an error as any other, and no trouble of the machine's.
    """
    sabotage("W.on_attach = lambda *_: bytearray(2 << 30)")
    with kernel() as (km, client):
        made = session_of(km)
        seen = look(made, engine)
        limits = Path(f"/proc/{seen.warden}/limits").read_text()
        assert f" {main.ADDRESS_SPACE} " in limits
        (files,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert 256 <= int(files.split()[3]) <= main.FILES
        outcome = run(client, "for _ in range(100): print('x' * 1_000_000)")
        assert len(outcome.stdout) > 100_000_000
        for _ in range(5):
            made.signal(signal.SIGURG)  # the kernel does not mind; the thread counts
        assert memory(seen.warden, "VmPeak") * 2**20 < main.ADDRESS_SPACE / 2
        attach(made)
        assert until(lambda: made.death is not None)
        assert made.death is not None
        assert "(MemoryError)" in made.death.reason
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)


# --- the sandbox ends at a bad moment ---------------------------------------------------

PLAYED = """
import os, socket, time
warden = socket.socket(socket.AF_UNIX)
def meet():
    warden.connect("/run/executor/rendezvous/s")
    socket.recv_fds(warden, 1, 5)
print("these were its words, 100% of them", flush=True)
"""


def play(proxy: EngineProxy, code: str) -> None:
    """Have sandboxes run this instead of our PID 1."""
    entry = [names.SANDBOX_PYTHON, "-I", "-S", "-c", PLAYED + dedent(code)]
    proxy.requests[CREATE] = lambda body: {**body, "Entrypoint": entry}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        pytest.param("os._exit(5)", "", id="at once"),
        pytest.param(
            "warden.connect('/run/executor/rendezvous/s'); os._exit(5)",
            "S.meet = once_dead(S.meet)",
            id="before it was met",
        ),
        pytest.param(
            "warden.connect('/run/executor/rendezvous/s'); os._exit(5)",
            "S._hand_over = once_dead(S._hand_over)",
            id="before it was looked at",
        ),
        pytest.param(
            "warden.connect('/run/executor/rendezvous/s'); os._exit(5)",
            "rendezvous.is_pid_one_of = lambda *_, **__: True\nS.meet = once_dead(S.meet)",
            id="before it got its sockets",
        ),
        pytest.param(
            "meet(); warden.sendall(b'parked\\n'); os._exit(5)",
            "S.close_limits = once_dead(S.close_limits)",
            id="before its limits were closed",
        ),
        pytest.param(
            "meet(); warden.shutdown(socket.SHUT_RD); warden.sendall(b'parked\\n')\n"
            "time.sleep(0.3); os._exit(5)",
            "",
            id="before it read its claim",
        ),
        pytest.param(
            "meet(); warden.sendall(b'parked\\n'); warden.recv(1 << 16); os._exit(5)",
            "",
            id="before it was ready",
        ),
    ],
)
def test_a_sandbox_that_ends_in_its_start_is_told_by_its_end(
    proxy: EngineProxy, sabotage: Sabotage, engine: docker.DockerClient, code: str, change: str
) -> None:
    """Not by the step that failed for it: exit code and last words, whichever it was."""
    play(proxy, code)
    sabotage(f"""
S = sandbox.Sandbox
def once_dead(step):
    def late(self, *args):
        while is_alive(self.pid):
            time.sleep(0.01)
        return step(self, *args)
    return late
{change}
""")
    error = failed_launch(engine)
    assert type(error) is StartError
    first = str(error).splitlines()[0]
    assert "the kernel process ended with exit code 5; its last words: these were" in first
    assert "%" not in first


@pytest.mark.parametrize("says", ["b'exit soon\\n'", "b'x' * 5000"])
def test_a_pid_one_that_talks_nonsense(
    proxy: EngineProxy, engine: docker.DockerClient, says: str
) -> None:
    """What it says is bounded, and what is not understood counts as no word."""
    play(proxy, f"meet(); warden.sendall({says}); time.sleep(60)")
    assert isinstance(failed_launch(engine), StartError)


def test_a_claim_that_is_not_read(
    proxy: EngineProxy, sabotage: Sabotage, engine: docker.DockerClient
) -> None:
    """A sandbox that stopped (``docker pause``) does not stop its warden."""
    play(proxy, "meet(); warden.sendall(b'parked\\n'); time.sleep(60)")
    sabotage("""
talk.CLAIM_WITHIN = 0.3
hand_over = sandbox.Sandbox._hand_over
def narrow(self, connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    hand_over(self, connection)
sandbox.Sandbox._hand_over = narrow
""")
    error = failed_launch(engine, env={"LONG": "x" * 100_000})
    assert isinstance(error, StartError)
    assert "it did not read its claim within 0.3 s" in str(error)


@pytest.mark.parametrize("after", ["", "warden.sendall(b'parked\\n'); warden.recv(1 << 16);"])
def test_a_start_that_stands_still(
    proxy: EngineProxy, engine: docker.DockerClient, after: str
) -> None:
    """The time that a start may take counts until it serves, claimed or not."""
    play(proxy, f"meet(); {after} time.sleep(60)")
    error = failed_launch(engine, KernelPolicy(startup_timeout=3))
    assert isinstance(error, StartError)
    assert "it was not ready within 3 s; its last words: these were" in str(error)


def test_a_start_that_takes_too_much_memory(engine: docker.DockerClient) -> None:
    """The limit is named, and what to do about it."""
    small = KernelPolicy(memory=128 << 20, tmp_size=8 << 20, shm_size=8 << 20, preload=("torch",))
    error = failed_launch(engine, small)
    assert isinstance(error, StartMemoryError)
    assert "did not start: the kernel used more than its 128 MB of memory" in str(error)
    assert 'Fix: preload less, or raise "memory"' in str(error)


def test_a_rendezvous_that_somebody_cleared_away(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """A cleaner of old files costs the start, and leaves no container."""
    gate = proxy.hold(START)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden = made.warden
    assert warden is not None
    assert proxy.arrived[START].wait(20)
    Path(made.describe()["warden"], "r", "s").unlink()
    gate.set()
    with pytest.raises(StartError, match="ended with exit code 1; its last words"):
        asyncio.run(made.launched(30))
    assert not containers_of(warden, engine)
    made.close()


# --- the engine fails, or hangs ---------------------------------------------------------


@pytest.mark.parametrize("call", [INSPECT, LOGS])
@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_an_engine_that_does_not_say_how_a_start_ended(
    proxy: EngineProxy, engine: docker.DockerClient, call: str, how: str
) -> None:
    """What else is known is told, and soon: not that the warden was silent."""
    play(proxy, "meet(); time.sleep(0.2); os._exit(5)")
    proxy.first[call] = 1 if call == INSPECT else 0
    gate = proxy.hold(call) if how == "hangs" else None
    proxy.answers[call] = 500
    began = time.monotonic()
    error = failed_launch(engine)
    assert time.monotonic() - began < SOON
    assert type(error) is StartError
    if call == INSPECT:
        assert "neither it nor the engine said how it ended" in str(error)
        assert "; its last words: these were" in str(error)
    else:
        assert "the kernel process ended with exit code 5" in str(error)
        assert ("its last words are not known" in str(error)) is (how == "hangs")
    if gate is not None:
        gate.set()


def test_an_engine_that_hangs_at_the_removal(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """The cause is said first: whoever waits for it does not wait for the engine."""
    play(proxy, "meet(); os._exit(5)")
    gate = proxy.hold(REMOVE)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden = made.warden
    assert warden is not None
    began = time.monotonic()
    with pytest.raises(StartError, match="exit code 5"):
        asyncio.run(made.launched(30))
    assert time.monotonic() - began < SOON
    assert containers_of(warden, engine), "the control: the engine did hang"
    gate.set()
    made.close()
    assert until(lambda: not cgroup.is_alive(warden))
    assert not containers_of(warden, engine)


@pytest.mark.parametrize("call", ["GET /images/NAME/json", CREATE, START, INSPECT, UPDATE])
def test_an_engine_that_hangs_in_a_start(
    proxy: EngineProxy, engine: docker.DockerClient, call: str
) -> None:
    """The start's own deadline is every call's: the error names the one that hung."""
    gate = proxy.hold(call)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(startup_timeout=1.5), key=KEY, env={})
    warden = made.warden
    assert warden is not None
    began = time.monotonic()
    with pytest.raises(EngineError, match="not done within"):
        asyncio.run(made.launched(1.5))
    assert time.monotonic() - began < 1.5 + link.GRACE
    gate.set()
    made.close()
    assert until(lambda: not cgroup.is_alive(warden))
    # what an engine makes after it was given up is swept, with what dead wardens left
    assert until(lambda: not (prune(os.environ) or containers_of(warden, engine)))


def test_an_engine_that_cannot_limit_and_does_not_remove(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """No second sandbox is started beside one that may still be there."""
    proxy.answers = {UPDATE: 500, REMOVE: 500}
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden = made.warden
    assert warden is not None
    with pytest.raises(EngineError, match="the test says no"):
        asyncio.run(made.launched(30))
    assert proxy.calls.count(CREATE) == 1
    made.close()
    assert until(lambda: not cgroup.is_alive(warden))
    (left,) = containers_of(warden, engine)
    state = engine.api.inspect_container(left)["State"]
    engine.close()
    assert not state["Running"], "its PID 1 ends by itself"
    del proxy.answers[REMOVE]
    assert until(lambda: not (prune(os.environ) or containers_of(warden, engine)))


def test_an_engine_that_hangs_when_a_kernel_died(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """PID 1 was killed, and nobody says how: the cell hears of it all the same."""
    with kernel() as (km, client):
        made = session_of(km)
        seen = look(made, engine)
        gates = [proxy.hold(call) for call in (INSPECT, REMOVE)]
        client.execute("import time; time.sleep(60)")
        os.kill(seen.guardian, signal.SIGKILL)
        assert until(lambda: made.death is not None, SOON)
        assert made.death is not None
        assert made.death.name == "KernelKilled"
        assert "neither it nor the engine said how it ended" in made.death.reason
        for gate in gates:
            gate.set()
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)


def test_signals_keep_their_order(proxy: EngineProxy) -> None:
    """An engine that takes its time gets them one after the other, and none is lost."""
    with session() as made:
        gate = proxy.hold(KILL)
        for number in (signal.SIGURG, signal.SIGURG, signal.SIGTERM):
            made.signal(number)
        assert proxy.arrived[KILL].wait(10)
        time.sleep(0.2)
        assert proxy.calls.count(KILL) == 1
        gate.set()
        assert until(lambda: made.death is not None)
        assert proxy.calls.count(KILL) == 3
        assert made.death is not None
        assert (made.death.expected, made.death.exit_code) == (True, 143)


# --- the warden is told to end, or killed -----------------------------------------------


def test_a_warden_that_is_told_to_end_says_so(engine: docker.DockerClient) -> None:
    """SIGTERM: in the cell, to the owner, and nothing is left."""
    with kernel() as (km, client):
        made = session_of(km)
        seen = look(made, engine)
        request = running(client)
        os.kill(seen.warden, signal.SIGTERM)
        told = last_words(client)
        assert told["parent_header"]["msg_id"] == request
        assert told["content"]["ename"] == "WardenLost"
        assert until(lambda: made.death is not None)
        assert made.death is not None
        assert (made.death.name, made.death.expected) == ("WardenLost", False)
        assert "SIGTERM" in made.death.reason
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)
