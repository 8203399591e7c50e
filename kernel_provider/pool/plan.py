"""How many sandboxes to park: a pure function of what is wanted, there and allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Want:
    """``count`` sandboxes of one digest are to lie on the shelf; ``memory`` is bytes of each."""

    digest: str
    count: int
    memory: int


def plan(
    wants: Sequence[Want], *, parked: Mapping[str, int], held: int, ceiling: int
) -> tuple[str, ...]:
    """Name the digests to park now, one for each sandbox that is missing.

    ``wants`` has the most recently used first. ``parked`` counts by digest what is on the
    shelf or on its way there, ``held`` is the memory that all of it may take and
    ``ceiling`` what it may take at the most, in bytes. Each want gets its first sandbox
    before any gets its second, and one that does not fit leaves room to a smaller one.
    """
    missing = {want.digest: want.count - parked.get(want.digest, 0) for want in wants}
    chosen: list[str] = []
    for level in range(max((want.count for want in wants), default=0)):
        for want in wants:
            has = want.count - missing[want.digest]
            if missing[want.digest] > 0 and has <= level and held + want.memory <= ceiling:
                missing[want.digest] -= 1
                held += want.memory
                chosen.append(want.digest)
    return tuple(chosen)
