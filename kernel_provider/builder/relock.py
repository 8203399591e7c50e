"""Write a stack's lock from its requirements.in; for maintainers, not for builds.

    python3 -m kernel_provider.builder.relock current

pip resolves for the image's Python and platform with the user's own configuration,
and what it chose is written down with its hashes. Packages that an image must not
hold are left out of the lock, which builds install with ``--no-deps``. A torch that is
not a CPU build is pinned as one in ``unhashed.txt``, for its hash is not known here.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from kernel_provider.builder.context import find_folder
from kernel_provider.builder.lock import normalised
from kernel_provider.builder.wheels import target_options

LEFT_OUT: Final = {
    "cmake": "torch 2.0 asks for it, through triton",
    "hf-xet": "a downloader; images have no network",
    "lit": "torch 2.0 asks for it, through triton",
    "setuptools": "torch asks for it to compile extensions; images have no compiler",
    "triton": "for GPUs",
    "wheel": "packages of CUDA ask for it",
}


def resolve(requirements: Path) -> list[dict[str, Any]]:
    """What pip would install for the image, as the entries of its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", f"--target={folder}", f"--report={report}"),
                *target_options(),
                f"--requirement={requirements}",
            ],
            check=True,
        )
        entries: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return entries


def split(entries: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Lines of the lock, and of the pins without hashes, sorted by name."""
    hashed, unhashed = [], []
    for entry in entries:
        name = normalised(entry["metadata"]["name"])
        version = entry["metadata"]["version"]
        if name in LEFT_OUT or name.startswith(("nvidia-", "cuda-")):
            continue
        if name == "torch" and not version.endswith("+cpu"):
            unhashed.append(f"{name}=={version.partition('+')[0]}+cpu")
            continue
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        hashed.append(f"{name}=={version} \\\n    --hash=sha256:{digest}")
    return sorted(hashed), sorted(unhashed)


def main() -> None:
    """Write the lock beside the requirements of the stack that the command names."""
    (stack,) = sys.argv[1:]
    folder = find_folder() / "stacks" / stack
    hashed, unhashed = split(resolve(folder / "requirements.in"))
    target = f"for stack {stack}: CPython 3.11, Linux, x86-64"
    header = f"# Written by kernel_provider.builder.relock {target}."
    write(folder / "requirements.lock", [header, *hashed])
    (folder / "unhashed.txt").unlink(missing_ok=True)
    if unhashed:
        why = "# Not on the index that this was locked with: pinned, but without a hash."
        write(folder / "unhashed.txt", [header, why, *unhashed])


def write(path: Path, lines: list[str]) -> None:
    """Write lines to a file."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
