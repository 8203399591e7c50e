import json
from dataclasses import replace

import pytest
from jupyter_client.session import Session

from kernel_provider.warden.cgroup import Usage
from kernel_provider.warden.death import Facts, decide, in_one_line, of_crash, of_time
from kernel_provider.warden.lastwords import compose
from kernel_provider.warden.pair import Request
from kernel_provider.warden.zmtp import Follower, FrameLimits, greeting, ready

MB = 2**20


def facts(  # noqa: PLR0913  each is a fact of its own
    status: int | None,
    *,
    engine: int | None = None,
    flag: bool = False,
    kills: int = 0,
    before: int = 0,
    refused: int = 0,
    violation: str = "",
    gone: bool = False,
    kernel: str = "",
) -> Facts:
    """What was seen, with a limit of 512 MB and a peak above it."""
    return Facts(
        status=status,
        engine_status=engine,
        oom_flag=flag,
        usage=Usage(memory_peak=513 * MB, oom_kills=kills, pids_refused=refused),
        memory=512 * MB,
        pids=128,
        before=Usage(memory_peak=9 * MB, oom_kills=before, pids_refused=before),
        violation=violation,
        engine_gone=gone,
        kernel=kernel,
    )


@pytest.mark.parametrize(
    ("seen", "name", "code", "word"),
    [
        (facts(-9, kills=1), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(-9, kills=2, before=1), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(-9, kills=1, before=1), "KernelKilled", 137, "SIGKILL"),
        (facts(-9, flag=True), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(None, engine=137, flag=True), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(-9), "KernelKilled", 137, "SIGKILL"),
        (facts(None), "KernelKilled", 137, "neither it nor the engine said"),
        (facts(None, kills=1), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(None, engine=137), "KernelKilled", 137, "SIGKILL"),
        (facts(-15), "KernelKilled", 143, "SIGTERM"),
        (facts(-11), "SegmentationFault", 139, "SIGSEGV"),
        (facts(None, engine=139), "SegmentationFault", 139, "SIGSEGV"),
        (facts(-6), "KernelKilled", 134, "SIGABRT"),
        (facts(-4), "KernelKilled", 132, "native code gave up"),
        (facts(-1), "KernelKilled", 129, "somebody on this machine"),
        (facts(-99), "KernelKilled", 227, "signal 99"),
        (facts(0), "KernelExited", 0, "exit code 0"),
        (facts(3), "KernelExited", 3, "exit code 3"),
        (facts(None, engine=3), "KernelExited", 3, "exit code 3"),
        # a child was killed for memory, and the kernel ended otherwise
        (facts(1, kills=1, flag=True), "KernelExited", 1, "exit code 1"),
        (facts(-11, kills=1), "SegmentationFault", 139, "SIGSEGV"),
        (facts(None, violation="iopub: frame"), "ProtocolViolation", 137, "iopub: frame"),
        (facts(-9, kills=1, violation="x"), "ProtocolViolation", 137, "(x)"),
        (facts(-7), "SharedMemoryExceeded", 135, "/dev/shm or /tmp was full"),
        (facts(-9, kills=1, kernel="ml-1g"), "MemoryLimitExceeded", 137, "kernelspec ml-1g"),
        # an engine that goes ends its sandboxes as anybody would
        (facts(-15, gone=True), "EngineGone", 69, '"live-restore"'),
        (facts(None, gone=True), "EngineGone", 69, "stopped or restarted"),
        (facts(-9, kills=1, gone=True), "MemoryLimitExceeded", 137, "512 MB"),
        (facts(-11, gone=True), "SegmentationFault", 139, "SIGSEGV"),
        (facts(3, gone=True), "KernelExited", 3, "exit code 3"),
        # libraries that can't start a thread abort, and seldom say why
        (facts(1, refused=1), "KernelExited", 1, "its limit of 128 processes and threads"),
        (
            facts(-6, refused=2, before=1, kernel="x"),
            "KernelKilled",
            134,
            "in kernelspec x)",
        ),
    ],
)
def test_causes(seen: Facts, name: str, code: int, word: str) -> None:
    """Each end has its name, its exit code, and the fact that shows it in the text."""
    cause = decide(seen)
    assert (cause.name, cause.exit_code) == (name, code)
    assert word in str(cause)
    assert cause.remedy
    assert cause.to_wire() == {
        "name": name,
        "reason": cause.reason,
        "remedy": cause.remedy,
        "exit_code": code,
        "memory_peak": 512 * MB,
    }
    assert "%" not in str(cause)


def test_a_setting_that_allows_for_more_is_named() -> None:
    """With the kernelspec that has it; what nothing allows for has no such advice."""
    broken = facts(None, violation="iopub: a message of more than 16 parts", kernel="mine")
    assert "raise" not in decide(broken).remedy
    told = decide(replace(broken, setting="message_parts")).remedy
    assert told.endswith('then raise "message_parts" in kernelspec mine.')


@pytest.mark.parametrize(("kernel", "where"), [("mine", "kernelspec mine"), ("", "the kernelspec")])
def test_a_cell_that_ran_too_long(kernel: str, where: str) -> None:
    """Its name is that of a run's own limit."""
    cause = of_time(90.5, kernel)
    assert (cause.name, cause.exit_code) == ("CellTimeout", 137)
    assert "longer than 90.5 s" in cause.reason
    assert f'raise "cell_timeout" in {where}.' in cause.remedy


def test_what_was_refused_before_is_not_blamed() -> None:
    """As with memory: the counter alone decides nothing."""
    assert "its limit" not in decide(facts(1, refused=1, before=1)).reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (OSError("No such\nfile"), "OSError: No such file"),
        (ValueError("100%\r\n\tof it"), "ValueError: 100 of it"),
        (ValueError("x" * 900), "ValueError: " + "x" * 288),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    """Its type and text; no line ends, no per cent signs, and not without end."""
    assert in_one_line(error) == line
    cause = of_crash(error)
    assert (cause.name, cause.exit_code) == ("WardenFailed", 70)
    assert f"({line})" in cause.reason


def test_the_peak_is_told_where_it_is_known() -> None:
    """Never above the limit: the counter of cgroup v1 is a page ahead at times."""
    assert "(peak 512 MB)" in decide(facts(-9, kills=1)).reason


@pytest.mark.parametrize("key", ["secret", ""])
def test_last_words_are_a_jupyter_message(key: str) -> None:
    """A client of the same key takes them for an error output of the running cell."""
    client = Session(key=key.encode(), session="clients")
    header = client.msg_header("execute_request")
    asked = json.dumps(header, default=str).encode()
    cause = decide(facts(-11))
    wire = compose(cause, Request(header=asked, kind="execute_request", number=1), key)
    parts: list[bytes] = []
    follower = Follower(
        FrameLimits(), lambda index, body: parts.append(body) if index >= 0 else None
    )
    follower.feed(memoryview(greeting() + ready(b"XPUB") + wire))
    assert follower.messages == 1
    identities, rest = client.feed_identities(parts)
    assert identities == [b"error"]
    message = client.deserialize(rest)
    assert message["msg_type"] == "error"
    assert message["parent_header"]["msg_id"] == header["msg_id"]
    assert message["content"]["ename"] == "SegmentationFault"
    assert "SIGSEGV" in message["content"]["evalue"]
    assert "SegmentationFault" in "".join(message["content"]["traceback"])
    assert message["header"]["session"] == "clients"
    if key:
        other = Session(key=b"another")
        with pytest.raises(ValueError, match="Signature"):
            other.deserialize(other.feed_identities(parts)[1])


def test_an_engine_that_stops_is_suspected_of_what_it_does() -> None:
    """It ends its containers by SIGTERM when it is stopped in order."""
    assert "the engine, as it was stopped" in decide(facts(-15)).remedy
    assert "the engine" not in decide(facts(-9)).remedy
