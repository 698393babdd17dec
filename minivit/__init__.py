"""Vision Transformers for small images, written by hand in plain PyTorch.

from minivit import PRESETS, ViTConfig, VisionTransformer

model = VisionTransformer(PRESETS["cifar"])
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .vit import PRESETS, VisionTransformer, ViTConfig

__version__ = "0.1.0"
__all__ = ["PRESETS", "ViTConfig", "VisionTransformer"]
PLACES = dict.fromkeys(__all__, ".vit")


def __getattr__(name: str) -> Any:
    """Import a public name, or a module, when it is first asked for: torch takes seconds, and Ctrl-C must not print a
    traceback then (see __main__.py)."""
    if name in PLACES:
        return getattr(import_module(PLACES[name], __name__), name)
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """The public names and the modules, which an interpreter then completes."""
    return sorted({*__all__, "__version__", *(module.name for module in iter_modules(__path__))} - {"__main__"})
