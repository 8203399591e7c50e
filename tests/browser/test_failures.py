"""Kernels that can't start, as JupyterLab's dialog tells it to a person who is not root."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab_servers import JUPYTERLAB, Lab, set_up
from labs import accept, ask_for, cards, choose, dialog, open_notebook
from persons import ROOT, Person, give, person
from playwright.sync_api import Page, expect

from kernel_provider.engines.docker import find_socket

pytestmark = [pytest.mark.browser, pytest.mark.container, pytest.mark.soak]
Shot = Callable[[str], None]
Place = AbstractContextManager[object]

CEILING = {"EXECUTOR_ML_MAX_PIDS": "200"}


@pytest.fixture(scope="module")
def somebody(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """One for all, with a JupyterLab of theirs and a ceiling above them."""
    assert image
    config = tmp_path_factory.mktemp("config")
    set_up(config)
    give(config)
    with person({"JUPYTER_CONFIG_DIR": str(config), **CEILING}, command=JUPYTERLAB) as made:
        yield made


@pytest.fixture
def their_lab(somebody: Person) -> Lab:
    """Their server."""
    return Lab(server=somebody.server, folder=somebody.folder)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is wrong, and what the dialog says: of the cause, and of the remedy."""

    says: str
    fix: str
    config: Mapping[str, object] = field(default_factory=dict)
    where: Callable[[Person], Place] = lambda _who: nullcontext()


def the_engine_of_root(who: Person) -> Place:
    """Its socket is for root and a group."""
    if not ROOT:
        pytest.skip("whoever runs these tests may use the engine")
    return who.engine_at(Path(find_socket(os.environ)))


FAILURES = {
    "engine": Failure(
        says="no container engine answers at",
        fix="start Docker",
        where=lambda who: who.engine_at(None),
    ),
    "permission": Failure(
        says="this user may not use the container engine at",
        fix="group",
        where=the_engine_of_root,
    ),
    "image": Failure(
        says="the image no-such:1 is not on this machine",
        fix="executor-ml build",
        config={"image": "no-such:1"},
    ),
    "key": Failure(
        says="there is no setting 'memroy'; did you mean 'memory'?",
        fix="use one of: image, memory, cpus",
        config={"memroy": "1g"},
    ),
    "ceiling": Failure(
        says="pids = 300 is above the ceiling of 200 set in EXECUTOR_ML_MAX_PIDS",
        fix="200",
        config={"pids": 300},
    ),
    "machine": Failure(
        says="cpus = 4096 is more than this machine has",
        fix="ask for at most",
        config={"cpus": 4096},
    ),
    "model": Failure(
        says="no/such-model",
        fix="executor-ml models",
        config={"models": ["no/such-model"]},
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_why_it_cannot_start_is_in_the_dialog(
    page: Page, somebody: Person, their_lab: Lab, what: str, shot: Shot
) -> None:
    """The first line tells what, the second what to do; both are in view."""
    failure = FAILURES[what]
    with somebody.kernelspec(f"lost-{what}", failure.config), failure.where(somebody):
        page.goto(their_lab.page_url())
        cards(page, f"lost-{what}").first.click()
        failed = dialog(page, "Error Starting Kernel")
        expect(failed).to_be_visible()
        shot(f"13-lost-{what}")
        summary, fix = failed.locator("pre").inner_text().strip().split("\n")
    assert failure.says in summary
    assert fix.startswith("Fix: ")
    assert failure.fix in fix


def test_a_change_to_a_kernel_that_cannot_start(
    page: Page, somebody: Person, their_lab: Lab, display_name: str, shot: Shot
) -> None:
    """The dialog has the same words, in one line there, and the sandbox can be had back."""
    with somebody.kernelspec("lost", {"image": "no-such:1"}):
        notebook = open_notebook(page, their_lab.page_url(), display_name)
        ask_for(page, notebook, "lost")
        failed = dialog(page, "Error Starting Kernel")
        expect(failed).to_contain_text("the image no-such:1 is not on this machine")
        expect(failed).to_contain_text("Fix: ")
        shot("13-change-to-lost")
        accept(failed)
        page.keyboard.press("Escape")
        choose(page, notebook, display_name)
        notebook.wait_idle()
        assert notebook.run("6 * 7").endswith("42")
