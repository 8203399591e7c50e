"""What can be profiled: a model of the registry, or a notebook."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kernel_provider.models.entry import MAIN, Entry
from kernel_provider.models.store import Registry
from kernel_provider.profile.model import Subject

_LOAD: Final = """\
import transformers
transformers.utils.logging.disable_progress_bar()
model = {model!r}
kinds = transformers.AutoConfig.from_pretrained(model{revision}).architectures or [""]
writes = kinds[0].endswith(("ForCausalLM", "LMHeadModel"))
task = "text-generation" if writes else "feature-extraction"
options = {{"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}} if writes else {{}}
pipe = transformers.pipeline(task, model=model{revision})
"""
_ASK: Final = """\
result = pipe("The quick brown fox jumps over the lazy dog.", **options)
print(str(result)[:200])
"""
WARM: Final = 3


def of_model(entry: Entry, registry: Registry, *, kernel: str, folder: Path) -> Subject:
    """Load it and ask it twice: the second time is what a result costs from then on."""
    revision = "" if entry.revision == MAIN else f", revision={entry.revision!r}"
    load = _LOAD.format(model=entry.id, revision=revision)
    notebook = folder / "profile.ipynb"
    notebook.write_text(json.dumps(book([load, _ASK, _ASK])), encoding="utf-8")
    snapshot = registry.snapshot(entry)
    return Subject(
        name=entry.label,
        notebook=notebook,
        kernel=kernel,
        overrides={"models": [entry.label]},
        files=tuple(snapshot / file.path for file in entry.files),
        warm=WARM,
    )


def of_notebook(
    path: Path, entries: list[Entry], registry: Registry, *, kernel: str, more: Mapping[str, Any]
) -> Subject:
    """A person's own notebook, with the models that it is given."""
    models = {"models": [entry.label for entry in entries]} if entries else {}
    return Subject(
        name=path.name,
        notebook=path,
        kernel=kernel,
        overrides={**more, **models},
        files=tuple(registry.snapshot(e) / file.path for e in entries for file in e.files),
    )


def book(sources: list[str]) -> dict[str, Any]:
    """A notebook of such cells, as its file has it."""
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(sources, 1)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
