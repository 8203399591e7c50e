"""Which mounts are an engine's, as text."""

from kernel_provider.setup.leftovers import engine_mounts

MOUNTS = r"""
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 254:0 /var/lib/x/engine /var/lib/x/engine rw shared:1 - ext4 /dev/vda rw
31 30 0:50 / /var/lib/x/engine/overlay2/ab/merged rw - overlay overlay rw
32 22 0:51 / /var/lib/x/engine2 rw - tmpfs tmpfs rw
33 22 0:52 / /var/lib/a\040b/engine/c rw - tmpfs tmpfs rw
34 22 254:9 / /srv/engine rw - ext4 /dev/vdb rw
35 22 254:9 /@/mnt /mnt rw - btrfs /dev/vdb rw
36 35 254:9 /@/mnt/var/engine /mnt/var/engine rw - btrfs /dev/vdb rw
37 22 254:0 /big/disk /opt/engine rw - ext4 /dev/vda rw
""".strip()


def test_innermost_first() -> None:
    """What lies on the bind goes before the bind."""
    assert engine_mounts(MOUNTS, "/var/lib/x/engine") == [
        "/var/lib/x/engine/overlay2/ab/merged",
        "/var/lib/x/engine",
    ]


def test_a_disk_of_the_persons_own_stays() -> None:
    """A whole file system on the folder is where the person wants the data."""
    assert engine_mounts(MOUNTS, "/srv/engine") == []
    assert engine_mounts(MOUNTS, "/opt/engine") == []


def test_a_bind_on_a_subvolume_is_known() -> None:
    """What is bound is told from where the file system below begins."""
    assert engine_mounts(MOUNTS, "/mnt/var/engine") == ["/mnt/var/engine"]


def test_blanks_are_read_back() -> None:
    """The kernel writes them in octal."""
    assert engine_mounts(MOUNTS, "/var/lib/a b/engine") == ["/var/lib/a b/engine/c"]
