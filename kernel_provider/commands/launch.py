"""``executor-ml launch``: what clients run that know nothing of provisioners.

VS Code and others start a kernelspec's ``argv`` themselves, on this machine. A plain
ipykernel there would run notebooks without a sandbox, so ``argv`` names this command,
which refuses: closed, and with words that such clients show (D6).
"""

import argparse

from kernel_provider.errors import SandboxError


class ProvisionerIgnoredError(SandboxError):
    """The client runs ``argv`` itself, which would be outside of any sandbox."""

    exit_code = 69
    summary = "this client starts kernels without Jupyter's provisioners, so without a sandbox"
    fix = (
        "start a Jupyter server (jupyter lab) and connect the client to it as an existing "
        "server; there this kernel runs in its sandbox"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Clients that support kernel provisioners (JupyterLab, jupyter console, nbclient, "
        "papermill) never call this. Others do, and get an error instead of a kernel "
        "outside of the sandbox."
    )
    parser.add_argument("connection_file", help="the connection file that the client wrote")


def main(_args: argparse.Namespace) -> int:
    """Refuse."""
    raise ProvisionerIgnoredError
