"""Grades as files: for people, and for programs."""

import json
from collections.abc import Sequence
from pathlib import Path

from kernel_provider.grading.model import SubmissionRecord, to_json
from kernel_provider.run.files import write


def write_reports(folder: Path, records: Sequence[SubmissionRecord]) -> tuple[Path, ...]:
    """Write them below the folder of the grades. Raises OutputError."""
    lines = folder / "records.jsonl"
    write(lines, "".join(json.dumps(to_json(record)) + "\n" for record in records))
    return (lines,)
