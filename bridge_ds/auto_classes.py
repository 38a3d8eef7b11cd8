"""Lets transformers' AutoConfig, AutoModelForCausalLM and AutoProcessor know the bridge, at no cost until then.

`import bridge_ds` must stay free of torch and transformers (`--help` answers in a tenth of a second), yet after it
`AutoModelForCausalLM.from_pretrained` must know the model type. So only the import of one module of transformers is
waited for, the one that holds the table of model types; our config class is entered as soon as that module has been
executed. Model and processor are entered when a config is made (see `bridge_ds.hub.config`), for whoever has a config
of ours is about to want them, and nobody else pays for their imports.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register_when_imported"]

_TABLE = "transformers.models.auto.configuration_auto"
_CONFIG = "bridge_ds.hub.config"


def register_when_imported() -> None:
    """Enter our config class in AutoConfig's table now if that is imported already, else when it is."""
    if _TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    importlib.import_module(_CONFIG).register()


class _Watcher:
    """A finder that finds nothing itself: it has the table's own loader call us once it is done, and goes away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, for the one module that is waited for."""
        if name != _TABLE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _then(spec.loader, _register)
        return spec


def _then(loader: Any, action: Any) -> None:
    """Have `action` follow the loader's next `exec_module`; the loader itself stays the one it was."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        execute(module)
        action()

    loader.exec_module = exec_module
