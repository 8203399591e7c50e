# ruff: noqa: INP001  copied into a build stage as single files
"""Give Matplotlib its font list ready made, in the read-only environment.

Matplotlib keeps the list in a folder that it can write, which in a sandbox is empty
at each start; without this, the first ``import matplotlib.pyplot`` scans all fonts.
One line is added to its look-up, so that it falls back to the list beside its data.
"""

import os
import shutil
import tempfile
from pathlib import Path

ANCHOR = (
    "    fm_path = Path(\n"
    '        mpl.get_cachedir(), f"fontlist-v{FontManager.__version__}.json")\n'
)
FALLBACK = (
    '    if not fm_path.exists():\n        fm_path = Path(mpl.get_data_path(), "fontlist.json")\n'
)


def main() -> None:
    """Build the list with the installed Matplotlib, then add the fallback."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        import matplotlib.font_manager as manager  # noqa: PLC0415  reads the setting

        (made,) = Path(folder).glob("fontlist-*.json")
        shutil.move(made, Path(manager.mpl.get_data_path(), "fontlist.json"))
    source = Path(manager.__file__)
    text = source.read_text(encoding="utf-8")
    if text.count(ANCHOR) != 1:
        message = f"fonts.py does not know this Matplotlib: look at {source}"
        raise SystemExit(message)
    source.write_text(text.replace(ANCHOR, ANCHOR + FALLBACK), encoding="utf-8")


if __name__ == "__main__":
    main()
