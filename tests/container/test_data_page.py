"""What docs/data.md tells people to type works, section by section."""

from pathlib import Path

import nbformat
import pytest
from pages import blocks, commands, read, typed

from kernel_provider.ceilings import read_ceilings
from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image", "own_kernelspecs")]

SECTIONS = dict(part.split("\n", 1) for part in read("docs/data.md").split("\n## ")[1:])


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_works(title: str, tmp_path: Path) -> None:
    """Its cells are a notebook, and its commands end with success, in a person's folder."""
    section = SECTIONS[title]
    (tmp_path / "mine").mkdir()
    for place in (tmp_path, tmp_path / "mine"):
        (place / "table.csv").write_text("a,b\n1,2\n")
    cells = [nbformat.v4.new_code_cell(source) for source in blocks(section, "python")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    assert cells
    assert commands(section)
    for command in commands(section):
        done = typed(command, tmp_path)
        assert done.returncode == 0, done.stderr
    if "extract" in title:
        assert (tmp_path / "results/result.csv").read_text() == "a,b\n1,2\n"


def test_the_policy_file_is_real(tmp_path: Path) -> None:
    """The administrator's example is understood."""
    (example,) = blocks(read("docs/data.md"), "toml")
    (tmp_path / "policy.toml").write_text(example)
    ceilings = read_ceilings({}, policy_file=str(tmp_path / "policy.toml"))
    assert ceilings.limits == {"workspace": "none", "workspace_size": 16 * MIB}
