"""Jupyter kernels that cannot reach anything: offline, hardened ML containers."""

__version__ = "0.1.0"
