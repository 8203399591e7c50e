"""Which uids an engine has for sandboxes: asked once in its life, and remembered."""

import json
import os
from contextlib import suppress

from kernel_provider.engines import Engine
from kernel_provider.errors import EngineUnreachableError

Life = list[str | int]


def engine_life(address: str) -> Life:
    """Tell the engine at a socket from the next one there.

    Every engine makes its socket anew when it starts. Raises EngineUnreachableError.
    """
    try:
        facts = os.stat(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineUnreachableError(socket=address, reason=reason) from error
    return [address, facts.st_dev, facts.st_ino, facts.st_ctime_ns]


def id_range(engine: Engine, life: Life, memo: str) -> tuple[int, int]:
    """First uid and count; a third of a fast start would go into asking each time.

    ``memo`` is the file that remembers. Raises EngineError.
    """
    try:
        with open(memo, encoding="utf-8") as file:
            known, first, count = json.load(file)
        if known == life:
            return int(first), int(count)
    except (OSError, ValueError, TypeError):
        pass
    first, count = engine.id_range()
    scratch = f"{memo}.{os.getpid()}"
    with suppress(OSError):  # a full disk makes starts slower, and no more
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump([life, first, count], file)
        os.replace(scratch, memo)
    return first, count
