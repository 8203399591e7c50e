"""What set-up decides to change, as values."""

import dataclasses

import pytest

from kernel_provider.setup.plan import BrowserFacts, Facts, Plan, describe, plan
from kernel_provider.steps import SetupError

READY = Facts(
    root=True,
    debian=True,
    ensurepip=True,
    venv="current",
    engine="/var/run/docker.sock",
    engine_problem="",
    engine_remedy="",
    engine_chosen=False,
    engine_refused=False,
    dockerd=True,
    debootstrap=True,
    base_image=True,
)
BARE = dataclasses.replace(
    READY,
    ensurepip=False,
    venv="all",
    engine=None,
    engine_problem="no container engine answers",
    dockerd=False,
    debootstrap=False,
    base_image=False,
)
BROWSER = BrowserFacts(missing=("chromium", "libatomic1"), refused=False)
NOTHING = Plan(packages=(), venv="current", start_engine=False)


def test_a_ready_machine_is_not_changed() -> None:
    """Nothing is planned, said or asked where everything is there."""
    assert plan(READY, engine=True) == NOTHING
    assert list(describe(NOTHING, log="L", data="D")) == []


def test_a_bare_debian_gets_all_in_one_step() -> None:
    """Root on a fresh Debian: three packages, a virtual environment, an engine."""
    assert plan(BARE, engine=True) == Plan(
        packages=("python3-venv", "docker.io", "debootstrap"), venv="all", start_engine=True
    )


def test_checks_alone_need_no_engine() -> None:
    """``make check`` neither installs nor starts an engine."""
    assert plan(BARE, engine=False) == Plan(
        packages=("python3-venv",), venv="all", start_engine=False
    )


def test_an_installed_engine_is_started_only() -> None:
    """A dockerd without anybody answering needs no package, on any distribution."""
    facts = dataclasses.replace(BARE, dockerd=True, debian=False, ensurepip=True)
    assert plan(facts, engine=True) == Plan(packages=(), venv="all", start_engine=True)


def test_debootstrap_only_while_the_base_is_missing() -> None:
    """It makes the base image where no registry is reachable, and is of no other use."""
    facts = dataclasses.replace(READY, debootstrap=False)
    assert plan(facts, engine=True) == NOTHING
    facts = dataclasses.replace(facts, base_image=False)
    assert plan(facts, engine=True).packages == ("debootstrap",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine_refused": True}, "ENGINE=no"),
        ({"root": False, "ensurepip": True}, "root may just repeat this"),
        ({"debian": False, "ensurepip": True}, "install Docker"),
        ({"engine_chosen": True}, "unset DOCKER_HOST"),
        ({"engine_remedy": "join the group"}, "Fix: join the group"),
        ({"root": False}, "ensurepip"),
    ],
)
def test_refusals_say_what_to_do(change: dict[str, object], words: str) -> None:
    """Each refusal is exit code 2 and names its own remedy."""
    facts = dataclasses.replace(BARE, **change)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=words) as caught:
        plan(facts, engine=True)
    assert caught.value.exit_code == 2


def test_a_refused_engine_that_answers_is_used() -> None:
    """ENGINE=no forbids installing and starting, not using."""
    facts = dataclasses.replace(READY, engine_refused=True)
    assert plan(facts, engine=True) == NOTHING


def test_a_browser_is_for_those_who_ask_for_one() -> None:
    """``make demo`` never installs one, ``make test`` what is missing of it."""
    assert plan(READY, engine=True).browser == ()
    needed = plan(READY, engine=True, browser=BROWSER)
    assert needed == dataclasses.replace(NOTHING, browser=("chromium", "libatomic1"))
    text = "\n".join(describe(needed, log="L", data="D"))
    assert "apt-get install -y --no-remove --no-install-recommends chromium libatomic1" in text
    assert "BROWSER=no" in text


@pytest.mark.parametrize(
    ("change", "browser"),
    [
        ({}, dataclasses.replace(BROWSER, refused=True)),
        ({}, dataclasses.replace(BROWSER, missing=())),
        ({"root": False}, BROWSER),
        ({"debian": False}, BROWSER),
    ],
)
def test_without_a_browser_the_rest_goes_on(
    change: dict[str, object], browser: BrowserFacts
) -> None:
    """Refused, there already, not root, not Debian: nothing is installed, nobody stopped."""
    facts = dataclasses.replace(READY, **change)  # type: ignore[arg-type]
    assert plan(facts, engine=True, browser=browser) == NOTHING


def test_the_plan_is_told_before_it_is_done() -> None:
    """The person reads the very command, and where the engine keeps its data."""
    text = "\n".join(describe(plan(BARE, engine=True), log="/the/log", data="/the/data"))
    assert "apt-get install -y --no-remove --no-install-recommends python3-venv" in text
    assert "/the/log" in text
    assert "/the/data" in text
    assert ".venv" in text
