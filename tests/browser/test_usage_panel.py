"""jupyter-resource-usage's panel in a real JupyterLab, beside a sandbox."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from lab_servers import Lab, serving_lab
from labs import Notebook
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.container, pytest.mark.soak]
Shot = Callable[[str], None]
EXTENSION = (
    "jupyter-resource-usage==1.3.0 "
    "--hash=sha256:a221fdec498c243d0f771688e839d586d09e932e862ca8b2ccb78c377045d5ec\n"
)


@pytest.fixture(scope="module")
def lab(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with the extension, which is where only this one finds it."""
    assert image
    folder, notebooks, home = (
        tmp_path_factory.mktemp(name) for name in ("extension", "notebooks", "usage-panel")
    )
    wanted = folder / "requirements.txt"
    wanted.write_text(EXTENSION)
    options = ["--quiet", "--no-deps", "--no-input", "--require-hashes", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "-r", wanted], check=True)
    environ = {
        "PYTHONPATH": str(folder),
        "JUPYTER_PATH": str(folder / "share" / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(folder / "etc" / "jupyter"),
    }
    with serving_lab(notebooks, home, environ=environ) as made:
        yield made


def test_the_panel_shows_the_sandboxs_limits(page: Page, notebook: Notebook, shot: Shot) -> None:
    """512 MB and half a processor, of which a busy cell takes a part; no figure is missing."""
    page.locator('.lm-TabBar-tab[data-id="kernelusage-panel-id"]').click()
    panel = page.locator(".jp-KernelUsage-view")
    cell = notebook.start("import time; held = bytearray(b'x') * (100 << 20)\nwhile True: pass")
    expect(panel).to_contain_text("used on 0.5 CPUs", timeout=60_000)
    shot("usage-panel")
    told = panel.inner_text()
    notebook.button("interrupt").click()
    notebook.wait_interrupted(cell)
    assert "Total: 512.00 MB" in told
    assert "NaN" not in told
    assert "undefined" not in told
    figures = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    held, unit = figures["Memory"].split()
    assert unit == "MB"
    assert 120 < float(held) < 250
    assert 0 < float(figures["CPU"]) < 100
