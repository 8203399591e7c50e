"""Names and numbers that more than one stage, or somebody outside, relies on."""

from typing import Final

PROTOCOL: Final = 1
"""Version of what host and image say to each other; both sides refuse another one."""

IMAGE: Final = "executor-ml:latest"
BASE_IMAGE: Final = "executor-base:latest"
COMMON_IMAGE: Final = "executor-common"
"""What all kernels' images of a stack stand on; its tag is the stack's name."""

LABEL: Final = "executor-ml"
"""Every container and image of ours carries this label; its value is the kind."""

KIND_KERNEL: Final = "kernel"
KIND_IMAGE: Final = "image"

LABEL_PROTOCOL: Final = "executor-ml.protocol"
LABEL_WARDEN: Final = "executor-ml.warden"
LABEL_POLICY: Final = "executor-ml.policy"
LABEL_STACK: Final = "executor-ml.stack"
LABEL_LOCK: Final = "executor-ml.lock"
LABEL_VERSIONS: Final = "executor-ml.versions"
LABEL_VARIANT: Final = "executor-ml.variant"
LABEL_MODELS: Final = "executor-ml.models"
"""On an image with models of the registry in it: which."""
LABEL_WORKSPACE: Final = "executor-ml.workspace"
"""Images with this label take a copy of the notebook's folder with the claim."""

PRELOAD_FAILED: Final = 3
"""Exit code of a sandbox's kernel that could not import what ``preload`` names."""

POLICY_FILE: Final = "/etc/executor-ml/policy.toml"

ENGINE_SOCKET: Final = "/run/executor-ml/docker.sock"
"""The engine that ``executor-ml engine start`` runs, where no other is reachable."""

WORKSPACE: Final = "/tmp/workspace"  # noqa: S108  the sandbox's own /tmp
"""Where the copy lies in the sandbox, and where its kernel then works."""

NOT_UNPACKED: Final = 74
"""Exit code of a kernel that could not unpack the copy, as its launcher knows it, too."""

SANDBOX_PYTHON: Final = "/opt/venv/bin/python3"
SANDBOX_GUARDIAN: Final = "/opt/executor/guardian.py"
"""PID 1 of a sandbox; run as ``SANDBOX_PYTHON -I -S SANDBOX_GUARDIAN``."""
