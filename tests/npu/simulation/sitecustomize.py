"""Starts the emulation in a process of the simulated environment, as soon as somebody imports torch_npu.

So the engine and each of its ranks are what they are on a real card: nothing of them knows of this.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Watch(MetaPathFinder):
    """Finds torch_npu, as often as it is looked for, with a loader that starts the emulation after it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch_npu":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader = _Start(spec.loader)
        return spec


class _Start(Loader):
    def __init__(self, own: Any) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        from tests.npu import emulation  # noqa: PLC0415

        emulation.start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


if os.environ.get("SIM_NPU_EMULATE"):
    sys.meta_path.insert(0, _Watch())
