"""Wheels for the image, collected by the host's pip with the user's own configuration.

A collection is kept by the digest of a layer's locks, so that the same layer is built
again without any download. https://pip.pypa.io/en/stable/cli/pip_download/
"""

import hashlib
import importlib.util
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_provider.builder.layers import Layer
from kernel_provider.builder.lock import CPU_INDEX, normalised, refuse_cuda, required
from kernel_provider.builder.process import follow, last_words
from kernel_provider.errors import BuildError

PYTHON: Final = "3.11"
NEWEST_GLIBC: Final = 36
"""Minor version of glibc 2 in the base, Debian 12."""

OLDEST_GLIBC: Final = 5

MANYLINUX_YEARS: Final[Mapping[str, int]] = {"2014": 17, "2010": 12, "1": 5}
"""Minor versions of glibc 2 by the older names of platforms (PEP 600)."""

PLATFORM: Final = f"CPython {PYTHON}, Linux, x86-64, glibc 2.{NEWEST_GLIBC}"
"""The image's, in words."""

_NOT_FOUND: Final = re.compile(
    r"(?:No matching distribution found for|satisfies the requirement) ([^\s;]+)"
)
_METADATA: Final = re.compile(r"[^/]+\.dist-info/METADATA")
_TOP: Final = re.compile(r"([A-Za-z]\w*)(?:/__init__\.py|\.py|(?:\.[\w-]+)?\.so)$")
"""A module at the top of a wheel."""
_NOT_MEANT: Final = {"benchmarks", "docs", "examples", "scripts", "setup", "test", "tests"}
"""What gets into wheels by mistake."""

KEPT_FOR: Final = 30 * 24 * 3600
"""Seconds that wheels are kept after their last use."""


def glibc_platforms(newest: int = NEWEST_GLIBC, machine: str = "x86_64") -> list[str]:
    """Every platform whose wheels run with glibc 2.``newest``, the best first."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    years = [year for year, minor in MANYLINUX_YEARS.items() if minor <= newest]
    platforms += [f"manylinux{year}_{machine}" for year in years]
    return [*platforms, f"linux_{machine}"]


def target_options(python: str = PYTHON, platforms: Sequence[str] = ()) -> list[str]:
    """Options of pip for a CPython and its platforms, by default the image's.

    The host's do not matter.
    """
    abi = f"cp{python.replace('.', '')}"
    return [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        *(f"--abi={abi}" for abi in (abi, "abi3", "none")),
        *(f"--platform={platform}" for platform in platforms or glibc_platforms()),
    ]


def pip_download(folder: Path) -> list[str]:
    """How pip is asked for what is named, and nothing else; it goes into ``folder``."""
    return [
        *(sys.executable, "-m", "pip", "download", "--no-input", "--no-deps"),
        *("--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}"),
    ]


def pip_resolve(
    requirements: Path, constraints: Path, report: Path, folders: Sequence[Path]
) -> list[str]:
    """How pip is asked what it would install for the image; it installs nothing."""
    return [
        *(sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
        *("--dry-run", "--ignore-installed", f"--target={report.parent}"),
        *(f"--report={report}", f"--requirement={requirements}", f"--constraint={constraints}"),
        *(f"--find-links={folder}" for folder in folders),
        *target_options(),
    ]


def download_command(
    requirements: Sequence[Path],
    target: Path,
    *,
    hashed: bool = True,
    cpu_index: bool = False,
) -> list[str]:
    """How pip is asked for exactly what the files pin, and nothing else."""
    hashes = ["--require-hashes"] if hashed else []
    index = [f"--extra-index-url={CPU_INDEX}", "--retries=1"] if cpu_index else []
    return [
        *pip_download(target),
        *hashes,
        *index,
        *target_options(),
        *(f"--requirement={path}" for path in requirements),
    ]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where wheels are kept: in the user's cache."""
    base = environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "executor-ml"


def collection(layer: Layer, installer: Path, cache: Path) -> Path:
    """The folder for the wheels of a layer's locks, whether it exists or not."""
    digest = hashlib.sha256()
    for path in (layer.lock, installer, *layer.locks[1:]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return cache / "wheels" / digest.hexdigest()[:32]


def collect(
    layer: Layer, installer: Path, image: str, cache: Path, say: Callable[[str], None]
) -> list[Path]:
    """The wheels of a layer's locks, downloaded unless they are kept already.

    Raises:
        BuildError: pip is missing, or could not get them all; names ``image``.
        CudaTorchError: the lock, or the torch that pip found, needs CUDA packages, and the
            layer is not for GPUs.
    """
    if not layer.gpu:
        refuse_cuda("the lock", layer.pins())
    place = collection(layer, installer, cache)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(place.parent) as folder:
            _download(layer, installer, image, folder, say)
            for wheel in [] if layer.gpu else sorted(folder.glob("*.whl")):
                refuse_cuda(wheel.name, required(read_metadata(wheel)))
            folder.rename(place)
    place.touch()
    _forget_old(place.parent)
    return sorted(place.glob("*.whl"))


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="part-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forget_old(parent: Path) -> None:
    """Remove collections that no build has used for long."""
    for folder in parent.iterdir():
        if time.time() - folder.stat().st_mtime > KEPT_FOR:
            shutil.rmtree(folder, ignore_errors=True)


def need_pip(image: str, doing: str) -> None:
    """Raise BuildError where this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise BuildError(
            image=image,
            step=doing,
            last_words=f"\n    {sys.executable} has no pip",
            remedy="python3 -m ensurepip, or on Debian: apt-get install python3-pip",
        )


def _download(
    layer: Layer, installer: Path, image: str, folder: Path, say: Callable[[str], None]
) -> None:
    need_pip(image, "collecting wheels")
    batches = [([layer.lock, installer], True)]
    if layer.unhashed:
        batches.append(([layer.unhashed], False))
    for files, hashed in batches:
        command = download_command(files, folder, hashed=hashed)
        code, lines = run_pip(command, say)
        if code and "torch" in layer.pins() and not layer.gpu:
            say(f"once more, with PyTorch's own index, {CPU_INDEX}")
            command = download_command(files, folder, hashed=hashed, cpu_index=True)
            code, lines = run_pip(command, say)
        if code:
            raise not_to_be_had(image, "collecting wheels", lines)


def not_to_be_had(image: str, doing: str, lines: Sequence[str]) -> BuildError:
    """The error for what pip could not get, with the names of the wheels if it told them."""
    missing = sorted({found[1] for line in lines if (found := _NOT_FOUND.search(line))})
    if not missing:
        remedy = f"give pip an index that has them; CPU builds of torch: {CPU_INDEX}"
        return BuildError(image=image, step=doing, last_words=last_words(lines), remedy=remedy)
    return BuildError(
        image=image,
        step=f"{doing}: there is no wheel of {', '.join(missing)} for {PLATFORM}",
        last_words=last_words(lines),
        remedy="give pip an index that has it, or name another version in the requirements; "
        f"CPU builds of torch: {CPU_INDEX}",
    )


def run_pip(command: Sequence[str], say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run pip, tell what it gets, and return its exit code and all lines."""

    def tell(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in {"Collecting", "Downloading"}:
            say(f"{word.lower()} {rest.split(' (from')[0].split('==')[0]}")

    with tempfile.TemporaryDirectory(prefix="executor-ml-pip-") as folder:  # pip leaves its own
        return follow(command, {"PYTHONUNBUFFERED": "1", "TMPDIR": folder}, tell)


def modules_of(wheels: Iterable[Path], distributions: Sequence[str]) -> list[str]:
    """What ``import`` takes of each distribution: the module of its name, or all it has."""
    found: list[str] = []
    for wheel in wheels:
        name = normalised(wheel.name.partition("-")[0])
        if name not in distributions:
            continue
        with zipfile.ZipFile(wheel) as archive:
            tops = {match[1] for item in archive.namelist() if (match := _TOP.match(item))}
        own = name.replace("-", "_")
        found += [own] if own in tops else sorted(tops - _NOT_MEANT)
    return sorted(found)


def read_metadata(wheel: Path) -> str:
    """METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        # Wheels may hold copies of other packages, with a METADATA of their own further down.
        (name,) = [item for item in archive.namelist() if _METADATA.fullmatch(item)]
        return archive.read(name).decode("utf-8", errors="replace")
