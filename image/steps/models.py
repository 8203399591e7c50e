# ruff: noqa: INP001  copied into a build stage as single files
"""Let models that came in packages be found by their ids, as if they were mounted.

    models.py LIST SITE_PACKAGES

LIST has a model on each line: its id, and its folder in SITE_PACKAGES. Links go into the
cache of Hugging Face's libraries and to /models/NAME; files are there once.
"""

import hashlib
import sys
from pathlib import Path

MODELS = Path("/models")


def link(model: str, folder: Path, models: Path = MODELS) -> None:
    """Lay out one model, in the layout of the hub's cache and by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        message = f"{model}: there is nothing in {folder}"
        raise SystemExit(message)
    names = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    commit = hashlib.sha1(names.encode()).hexdigest()  # noqa: S324  a name, as the hub has them
    cache = models / "hub" / f"models--{model.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    for path in files:
        target = cache / "snapshots" / commit / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    (models / model.rpartition("/")[2]).symlink_to(folder)


def main() -> None:
    """Lay out all models of the list that the command line names."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.strip() and not line.startswith("#"):
            model, folder = line.split()
            link(model, Path(sys.argv[2], folder))


if __name__ == "__main__":
    main()
