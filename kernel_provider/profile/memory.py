"""What a sandbox's memory is used for, by its control group, looked at from outside."""

import os
from dataclasses import dataclass

from kernel_provider.warden.cgroup import Cgroup


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Memory by kind, now, and what was read again since the group was made; all bytes.

    ``shared`` is what lies in tmpfs. ``files`` give way where memory is short, and are
    read again where they are still needed: ``reread``. ``major_faults`` is a number.
    """

    anonymous: int
    shared: int
    files: int
    kernel: int
    reread: int
    major_faults: int

    @property
    def total(self) -> int:
        """All that counts against the limit."""
        return self.anonymous + self.shared + self.files + self.kernel


def kinds(group: Cgroup) -> Kinds | None:
    """Read what memory is used for; None once the group is gone.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html
    """
    pairs = (line.split() for line in group.text("memory", "memory.stat").splitlines())
    stat = {name: int(value) for name, value in pairs}
    if not stat:
        return None
    if group.unified:
        anonymous, cached, kernel = (stat.get(name, 0) for name in ("anon", "file", "kernel"))
    else:
        anonymous, cached = stat.get("rss", 0), stat.get("cache", 0)
        kernel = int(group.text("memory", "memory.kmem.usage_in_bytes") or 0)
    shared = stat.get("shmem", 0)
    again = stat.get("workingset_refault_file", stat.get("workingset_refault", 0))
    return Kinds(
        anonymous=anonymous,
        shared=shared,
        files=max(0, cached - shared),
        kernel=kernel,
        reread=again * os.sysconf("SC_PAGE_SIZE"),
        major_faults=stat.get("pgmajfault", 0),
    )
