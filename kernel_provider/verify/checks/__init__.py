"""All checks by their groups; adding one is one entry in a group's file."""

from collections.abc import Mapping
from typing import Final

from kernel_provider.verify.checks import (
    descriptors,
    files,
    guardian,
    leaks,
    lifetime,
    network,
    others,
    privileges,
    resources,
)
from kernel_provider.verify.model import Check

GROUPS: Final[Mapping[str, tuple[Check, ...]]] = {
    "network": network.CHECKS,
    "descriptors and sockets": descriptors.CHECKS,
    "filesystem": files.CHECKS,
    "privileges": privileges.CHECKS,
    "the guardian": guardian.CHECKS,
    "resources": resources.CHECKS,
    "leaks": leaks.CHECKS,
    "other kernels": others.CHECKS,
    "lifetime": lifetime.CHECKS,
}
