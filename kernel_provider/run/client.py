"""nbclient with a bound on what a sandbox can make this process keep."""

from collections.abc import Callable
from typing import Any, Final

from nbclient import NotebookClient
from nbformat import NotebookNode

from kernel_provider.run.model import KernelProtocolError
from kernel_provider.run.protocol import judging

MOST_OUTPUT: Final = 100 * 1024 * 1024
"""Characters of outputs and widgets that a run keeps, cleared ones included; writing them
takes five times as much memory."""

_ALWAYS: Final = ("status", "execute_input", "clear_output")
_NOTE: Final = f"\nexecutor-ml: outputs beyond {MOST_OUTPUT // 2**20} MB are not kept.\n"


class BoundedClient(NotebookClient):
    """Drops outputs beyond ``most_output``, and says so once."""

    most_output = MOST_OUTPUT
    report: Callable[[KernelProtocolError], None] = staticmethod(lambda _: None)
    _heard = 0

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        """As nbclient's, unless there is no room, or it can't be: that is reported."""
        with judging(self.report):
            return self._process(msg, cell, cell_index)

    def _process(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        full = self._heard > self.most_output
        if msg["msg_type"] not in _ALWAYS:
            if full:
                return None
            self._heard += size(msg["content"])
            if self._heard > self.most_output:
                msg = {**msg, "msg_type": "stream", "content": {"name": "stderr", "text": _NOTE}}
                msg["header"] = {**msg["header"], "msg_type": "stream"}
        return super().process_message(msg, cell, cell_index)


def size(content: Any) -> int:
    """Characters in a message's content, about."""
    if isinstance(content, str):
        return len(content)
    if isinstance(content, dict):
        return sum(size(value) for value in content.values()) + 8 * len(content)
    if isinstance(content, (list, tuple)):
        return sum(size(value) for value in content) + 8 * len(content)
    return 8
