"""Run the demo's notebook cell by cell and show what it says."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any, Final

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from kernel_provider.run.text import shown, title
from kernel_provider.steps import Steps

CELL_TIMEOUT: Final = 300
"""Seconds; at half a processor the slowest cell was seen to take 15."""


def load() -> NotebookNode:
    """The notebook that travels in the package."""
    text = resources.files(__package__).joinpath("demo.ipynb").read_text()
    book: NotebookNode = nbformat.reads(text, as_version=4)
    return book


def write_kernelspec(share: Path, *, kernel: str, models: Sequence[str], suffix: str) -> None:
    """Copy the installed kernelspec to ``share``, with ``models`` in its configuration.

    ``share`` then belongs on JUPYTER_PATH, where it goes before the installed one.

    Raises:
        jupyter_client.kernelspec.NoSuchKernel: ``kernel`` is not installed.
    """
    installed = Path(KernelSpecManager().get_kernel_spec(kernel).resource_dir)
    target = share / "kernels" / kernel
    if installed != target:
        shutil.copytree(installed, target, dirs_exist_ok=True)
    path = target / "kernel.json"
    path.write_text(json.dumps(with_models(json.loads(path.read_text()), models, suffix)))


def with_models(spec: Mapping[str, Any], models: Sequence[str], suffix: str) -> dict[str, Any]:
    """The kernelspec with ``models`` configured and ``suffix`` in its name; once."""
    stanza = spec["metadata"]["kernel_provisioner"]
    config = {**stanza.get("config", {}), "models": list(models)}
    metadata = {**spec["metadata"], "kernel_provisioner": {**stanza, "config": config}}
    name = spec["display_name"].removesuffix(suffix) + suffix
    return {**spec, "display_name": name, "metadata": metadata}


def run(notebook: NotebookNode, *, kernel: str, folder: Path, steps: Steps) -> None:
    """Execute all cells in one kernel, in place; the kernel is gone afterwards.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; its output is shown.
        nbclient.exceptions.DeadKernelError: the kernel died; so is its reason.
    """
    client = NotebookClient(
        notebook,
        kernel_name=kernel,
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
    )
    client.reset_execution_trackers()
    indices = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with ExitStack() as stack:
        with steps.step(f"kernel {kernel}, from nothing to ready"):
            stack.enter_context(client.setup_kernel())
        for number, index in enumerate(indices, 1):
            _run_cell(client, index, f"cell {number} of {len(indices)}", steps)
        client.set_widgets_metadata()


def _run_cell(client: NotebookClient, index: int, label: str, steps: Steps) -> None:
    cell = client.nb.cells[index]
    try:
        with steps.step(f"{label}: {title(cell.source)}"):
            client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
    finally:
        for line in shown(cell.outputs, figures="the HTML file"):
            steps.say(f"      | {line}")


def save(notebook: NotebookNode, folder: Path) -> tuple[Path, Path]:
    """Write the notebook and an HTML of it that loads nothing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path, page = folder / "demo.ipynb", folder / "demo.html"
    nbformat.write(notebook, path)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    body, _ = exporter.from_notebook_node(notebook)
    page.write_text(body)
    return path, page
