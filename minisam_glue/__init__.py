"""A sentence, a box or a click to masks, and masks to tracks: Grounding DINO and SAM 2 in plain PyTorch.

from minisam_glue import frames, load_models, read_image, segment_image, segment_video

models = load_models()
found = segment_image(models, read_image("street.jpg"), "car. person.")
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .heatmap import HeatSettings
    from .media import Frames, MediaError, frames, read_image
    from .models import Models, load_models
    from .pipeline import segment_image, segment_images, segment_video
    from .prompts import Clicks, ObjectPrompt, Seeding, Thresholds
    from .records import Segment, Segmented
    from .weights import WeightsError

__version__ = "0.1.0"
__all__ = [
    "Clicks",
    "Frames",
    "HeatSettings",
    "MediaError",
    "Models",
    "ObjectPrompt",
    "Seeding",
    "Segment",
    "Segmented",
    "Thresholds",
    "WeightsError",
    "frames",
    "load_models",
    "read_image",
    "segment_image",
    "segment_images",
    "segment_video",
]
PLACES = {
    "HeatSettings": ".heatmap",
    **dict.fromkeys(("Frames", "MediaError", "frames", "read_image"), ".media"),
    **dict.fromkeys(("Models", "load_models"), ".models"),
    **dict.fromkeys(("segment_image", "segment_images", "segment_video"), ".pipeline"),
    **dict.fromkeys(("Clicks", "ObjectPrompt", "Seeding", "Thresholds"), ".prompts"),
    **dict.fromkeys(("Segment", "Segmented"), ".records"),
    "WeightsError": ".weights",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module, when it is first asked for: torch takes seconds, and Ctrl-C must not print a
    traceback then (see cli/__init__.py)."""
    if name in PLACES:
        return getattr(import_module(PLACES[name], __name__), name)
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """The public names and the modules, which an interpreter then completes."""
    return sorted({*__all__, "__version__", *(module.name for module in iter_modules(__path__))} - {"__main__"})
