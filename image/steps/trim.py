# ruff: noqa: INP001  copied into a build stage as single files
"""Take out of a site-packages folder what no notebook in a sandbox uses.

    trim.py SITE_PACKAGES BEGUN

What is older than the file BEGUN belongs to a layer below, and stays. Prints what each
removal saves. A pattern that matches nothing is no error: stacks differ.
"""

import shutil
import sys
from pathlib import Path

TESTED = (
    *("IPython", "comm", "contourpy", "fsspec", "gguf", "ipykernel", "ipywidgets"),
    *("jupyter_client", "kiwisolver", "matplotlib", "mpl_toolkits", "mpmath", "networkx"),
    *("numpy", "pandas", "psutil", "safetensors", "sympy", "tornado", "tqdm", "traitlets"),
    *("joblib", "pyarrow", "scipy", "skimage", "sklearn", "zmq"),
)

REMOVALS = {
    "torch: C++ headers": ["torch/include"],
    "torch: test suite and its programs": [
        "torch/test",
        "torch/bin/*test*",
        "torch/bin/protoc*",
        "torch/lib/*test*",
        "functorch/test",
    ],
    "torch: static libraries, CMake files": ["torch/lib/*.a", "torch/share"],
    "torch: type stubs and code templates": ["torch/**/*.pyi", "torchgen/packaged"],
    "triton: profiler": [
        "triton/_C/libproton*",
        "triton/backends/nvidia/lib/cupti*",
        "../../../bin/proton*",
    ],
    "CUDA: headers and static libraries": ["nvidia/**/include", "nvidia/**/*.a", "**/*.cuh"],
    "tensorflow: C++ headers": ["tensorflow/include"],
    "jedi: type stubs of packages that are not here": [
        "jedi/third_party/typeshed/stubs/*",
        "jedi/third_party/django-stubs",
    ],
    "tests of other packages": [
        *(f"{name}/**/tests" for name in TESTED),
        "tornado/test",
        "accelerate/test_utils/scripts",
        "matplotlib/mpl-data/sample_data",
    ],
    "headers and sources of other packages": [
        "numpy/_core/include",
        "numpy/core/include",
        "numpy/**/*.pxd",
        "numpy/**/*.a",
        "pandas/**/*.pyx",
        "zmq/include",
        "zmq/backend/cython/*.pyx",
        "**/*.pxd",
        "**/*.c",
        "**/*.cpp",
        "**/*.h",
        "**/*.hpp",
        "**/*.pc",
    ],
    "browser side of ipywidgets": [
        "../../../share/jupyter/nbextensions",
        "../../../share/jupyter/labextensions",
        "../../../etc/jupyter",
        "jupyterlab_widgets/labextension",
        "widgetsnbextension/static",
    ],
    "manual pages and C headers of the environment": [
        "../../../share/man",
        "../../../share/applications",
        "../../../include",
    ],
    "installers": [
        "pip",
        "pip-*.dist-info",
        "setuptools*",
        "pkg_resources",
        "_distutils_hack",
    ],
    "lists of installed files, no longer true": ["*.dist-info/RECORD"],
    "bytecode": ["**/__pycache__"],
}


def weight(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if path.is_dir() and not path.is_symlink():
        return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())
    return path.lstat().st_size


def remove(root: Path, patterns: list[str], begun: int = 0) -> int:
    """Remove what matches and is no older (ns); return the bytes that this saves."""
    saved = 0
    for pattern in patterns:
        base = root
        rest = pattern
        while rest.startswith("../"):
            base, rest = base.parent, rest[3:]
        for path in sorted(base.glob(rest)):
            if not path.exists() and not path.is_symlink():
                continue
            if path.lstat().st_mtime_ns < begun:
                continue
            saved += weight(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return saved


def main() -> None:
    """Apply all removals to the folder that the command line names."""
    root = Path(sys.argv[1]).resolve()
    begun = Path(sys.argv[2]).stat().st_mtime_ns
    for what, patterns in REMOVALS.items():
        saved = remove(root, patterns, begun)
        print(f"removed {saved / 1e6:7.1f} MB  {what}")  # noqa: T201
    print(f"kept    {weight(root) / 1e6:7.1f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
