"""nbgrader's formgrader, on a course that ``executor-ml grade`` has graded."""

import json
from collections.abc import Iterator
from pathlib import Path

import classes
import graders
import pytest
from classes import ASSIGNMENT
from pages import typed
from playwright.sync_api import Browser, expect
from servers import Server, serving

pytestmark = [pytest.mark.browser, pytest.mark.container, pytest.mark.usefixtures("image")]

SCREENSHOTS = Path(__file__).parents[2] / "out/screenshots"
EXTENSION = {"nbgrader.server_extensions.formgrader": True}


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    """A course of three, graded by us alone."""
    tools = graders.installed()
    course = classes.course(tmp_path / "course", classes.pupils("right", "half", "exits"))
    for command in (
        f"nbgrader generate_assignment {ASSIGNMENT}",
        f"executor-ml grade . {ASSIGNMENT}",
    ):
        done = typed(command, course, beside=tools)
        assert done.returncode == 0, done.stderr
    return course


@pytest.fixture
def server(graded: Path) -> Iterator[Server]:
    """A Jupyter server in the course's folder, with the formgrader."""
    (graded / "jupyter_server_config.py").write_text(
        f"c.ServerApp.jpserver_extensions = {json.dumps(EXTENSION).replace('true', 'True')}\n"
    )
    with (graded / "nbgrader_config.py").open("a") as config:
        config.write(f"c.CourseDirectory.root = {str(graded)!r}\n")
    environ = {
        "PYTHONPATH": str(graders.installed()),
        "JUPYTER_CONFIG_DIR": str(graded),
    }
    with serving(graded, command=("jupyter-server",), environ=environ) as made:
        yield made


@pytest.mark.soak
def test_the_formgrader_shows_our_grades(server: Server, browser: Browser) -> None:
    """Submissions as graded, with their points, and a graded notebook to look at."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    home = f"http://127.0.0.1:{server.port}"
    url = f"{home}/formgrader"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    try:
        page.goto(f"{home}/login?token={server.token}&next=/api")  # for the cookie
        page.goto(f"{url}/manage_submissions/{ASSIGNMENT}")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(3)
        expect(page.locator("tbody .label", has_text="graded")).to_have_count(3)
        page.screenshot(path=SCREENSHOTS / "formgrader-submissions.png")
        page.goto(f"{url}/gradebook/{ASSIGNMENT}/problem")
        expect(rows).to_have_count(3)
        page.screenshot(path=SCREENSHOTS / "formgrader-gradebook.png")
        rows.first.locator("a").first.click()
        expect(page.locator("body")).to_contain_text("test-square")
        page.screenshot(path=SCREENSHOTS / "formgrader-notebook.png")
    finally:
        context.close()
