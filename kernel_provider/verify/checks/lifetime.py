"""Stopped means stopped: nothing outlives a sandbox, whoever ends it."""

from pathlib import Path
from typing import Any, Final

from kernel_provider.verify.judges import listed
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Check, Judge, Verdict, Where, verdict
from kernel_provider.warden import cgroup


def _counted(report: Any, look: Look) -> Verdict:
    inside = len(look.group.processes())
    held = inside >= report >= 3
    return verdict(held, f"{report} processes inside, {inside} in its control group")


def _gone(least: int) -> Judge:
    """At least so many processes were there, and none is."""

    def judge(report: Any, look: Look) -> Verdict:
        left = look.alive()
        happened = f"{len(look.pids)} processes ended, {report['what']} among them"
        if left:
            happened = f"still there: {listed(left)}"
        return verdict(not left and len(look.pids) >= least, happened)

    return judge


def _container(_report: Any, look: Look) -> Verdict:
    state = look.engine.inspect(look.container)
    return verdict(state is None, "removed" if state is None else "the engine still has it")


def _folders(_report: Any, look: Look) -> Verdict:
    left = [look.warden_folder] if Path(look.warden_folder).exists() else []
    return verdict(not left, f"still there: {listed(left)}" if left else "removed")


def _group(_report: Any, look: Look) -> Verdict:
    left = look.group.processes()
    return verdict(not left, f"in it: {listed(left)}" if left else "empty")


def _warden(_report: Any, look: Look) -> Verdict:
    alive = cgroup.is_alive(look.warden) or cgroup.is_alive(look.guardian)
    return verdict(not alive, "one of them runs" if alive else "both ended")


def _soon(_report: Any, look: Look) -> Verdict:
    left = look.alive()
    told = f"{len(left)} processes were" if left else "nothing was"
    return verdict(not left, f"{told} left after {look.ending:.1f} s")


_LEAVE = """
def leave(work):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            try:
                work()
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
"""
DETACHED: Final = f"""{_LEAVE}
leave(lambda: time.sleep(600))
report = {{"what": "one detached and deaf to signals"}}
"""
HALTED: Final = f"""{_LEAVE}
leave(lambda: (os.kill(os.getpid(), signal.SIGSTOP), time.sleep(600)))
report = {{"what": "one that was halted"}}
"""
BOMB: Final = f"""{_LEAVE}
def bomb():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if os.fork() == 0:
                continue
        except OSError:
            pass
        time.sleep(0.5)
leave(bomb)
time.sleep(0.5)
report = {{"what": "a fork bomb"}}
"""


def _ending(name: str, promise: str, tried: str, code: str, judge: Judge) -> tuple[Check, Check]:
    """The same after a stop, and after an end of the kernel's own."""
    return (
        Check(
            name=f"{name}-stopped",
            promise=f"after a stop {promise}",
            tried=tried,
            code=code,
            judge=judge,
            where=Where.STOPPED,
        ),
        Check(
            name=f"{name}-exited",
            promise=f"after the kernel's own exit {promise}",
            tried=tried,
            code=code,
            judge=judge,
            where=Where.EXITED,
        ),
    )


_NOTHING = 'report = {"what": "nothing"}'

CHECKS: Final = (
    Check(
        name="background",
        promise="processes that a cell leaves behind stay under the limits",
        tried="a detached one after its cell; counting on the host",
        code=f"{_LEAVE}\nleave(lambda: time.sleep(20))\nreport = len(processes())",
        judge=_counted,
        where=Where.ROUGH,
    ),
    *_ending(
        "detached",
        "no process of a session of its own is left",
        "a daemon that ignores signals",
        DETACHED,
        _gone(3),
    ),
    *_ending("halted", "no halted process is left", "one that stopped itself", HALTED, _gone(3)),
    *_ending("group", "its control group is empty", "looking on the host", _NOTHING, _group),
    *_ending("container", "the engine has no container of it", "asking it", _NOTHING, _container),
    *_ending("folders", "its sockets and folders are gone", "looking", _NOTHING, _folders),
    *_ending("warden", "its warden and guardian are gone", "looking", _NOTHING, _warden),
    # The last to begin: nothing answers quickly beside it.
    *_ending("bomb", "no fork bomb goes on", "one that grows again", BOMB, _soon),
)
