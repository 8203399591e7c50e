"""What stands between this machine and a kernel in a sandbox: looked at, judged, mended.

``facts`` looks and changes nothing, ``checks`` judges by pure functions, ``mend`` does
what ``executor-ml doctor --fix`` promises.
"""

from kernel_provider.doctor.checks import examine
from kernel_provider.doctor.facts import gather
from kernel_provider.doctor.model import CheckResult, Facts, Status

__all__ = ["CheckResult", "Facts", "Status", "examine", "gather"]
