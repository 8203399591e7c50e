"""Messages of Jupyter's as the warden writes them: signed like the kernel's own.

https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kernel_provider.warden import zmtp

DELIMITER: Final = b"<IDS|MSG>"
LONGEST_ESCAPE: Final = 12
"""Bytes of one character in JSON at most: a pair of surrogates."""
FRAMES: Final = 6
"""Of each message: delimiter, signature, header, parent, metadata, content; buffers follow."""


def signed(
    kind: str, content: Mapping[str, Any], *, parent: bytes, key: str, reply: bool = False
) -> bytes:
    """An iopub message on the wire, or a shell ``reply``, which has no topic.

    ``parent`` is the header that it answers, as JSON.
    """
    header = _header(kind, os.urandom(16).hex(), json.loads(parent).get("session", ""))
    parts = [header, parent, b"{}", json.dumps(content).encode()]
    topic = [] if reply else [kind.encode()]
    return zmtp.message([*topic, DELIMITER, _proof(parts, key), *parts])


def question(kind: str, name: str, *, key: str) -> bytes:
    """A request without content, as a client has it on the wire; ``name`` is its msg_id."""
    parts = [_header(kind, name, name), b"{}", b"{}", b"{}"]
    return zmtp.message([DELIMITER, _proof(parts, key), *parts])


def _header(kind: str, name: str, session: str) -> bytes:
    header = {
        "msg_id": name,
        "msg_type": kind,
        "username": "executor-ml",
        "session": session,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime()),
        "version": "5.3",
    }
    return json.dumps(header).encode()


def _proof(parts: Sequence[bytes], key: str) -> bytes:
    """What signs these parts; nothing without a key."""
    import hashlib  # noqa: PLC0415  4 MB that most wardens need only at an end
    import hmac  # noqa: PLC0415

    signature = hmac.new(key.encode(), digestmod=hashlib.sha256)
    for part in parts:
        signature.update(part)
    return signature.hexdigest().encode() if key else b""


def end_of_text(content: bytes) -> str:
    """The text at the end of a stream's content, whose beginning was cut off anywhere."""
    text = content.removesuffix(b'"}')
    for start in range(LONGEST_ESCAPE):
        try:
            return str(json.loads(b'"' + text[start:] + b'"', strict=False))
        except ValueError:
            continue
    return ""


def kind_of(parts: Sequence[bytes]) -> str:
    """What a message says that it is, with or without a topic; empty for nonsense."""
    try:
        header = json.loads(parts[parts.index(DELIMITER, 0, 2) + 2])
        return str(header["msg_type"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
