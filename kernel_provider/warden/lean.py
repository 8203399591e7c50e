"""Modules that are imported by others and hardly ever used: read when they are used.

``dataclasses`` imports ``inspect``, and that the compiler's modules, for classes without
a docstring: a sixth of a warden's start, on the path of every launch, and 1 MB of it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands in for a module until somebody wants something of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system, which must not be answered
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


def read_later(name: str) -> None:
    """Have a module read when it is used; one that was read already stays."""
    sys.modules.setdefault(name, _Later(name))
