"""What a provisioner makes of who asks: nothing is started here."""

from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_client.multikernelmanager import MultiKernelManager

from kernel_provider.policy import KernelPolicy
from kernel_provider.provisioner import SandboxProvisioner
from kernel_provider.values import MIB


def policy_of(manager: KernelManager, **config: Any) -> KernelPolicy:
    """The policy of a kernel that this manager would start."""
    spec = KernelSpec(argv=[], display_name="n", language="python")
    made = SandboxProvisioner(kernel_id="1", kernel_spec=spec, parent=manager, **config)
    return made._parse()  # noqa: SLF001


@pytest.mark.parametrize(
    ("config", "servers"),
    [({}, 32), ({"output_limit": "64m"}, 64), ({"message_size": "1m"}, 32)],
)
def test_a_server_gets_less_output_unless_it_is_told(config: dict[str, Any], servers: int) -> None:
    """It keeps what browsers don't read; a script that reads for itself gets all of it."""
    alone = KernelManager(kernel_name="n")
    served = KernelManager(kernel_name="n", parent=MultiKernelManager())
    assert policy_of(served, **config).output_limit == servers * MIB
    given = "output_limit" in config
    assert policy_of(alone, **config).output_limit == (servers if given else 128) * MIB
