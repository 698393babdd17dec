"""A sentence, a box or a click to masks, and masks to tracks: Grounding DINO and SAM 2 in plain PyTorch.

from minisam_glue import frames, load_models, read_image, segment_image, segment_video

models = load_models()
found = segment_image(models, read_image("street.jpg"), "car. person.")
"""

from .heatmap import HeatSettings
from .media import Frames, MediaError, frames, read_image
from .models import Models, load_models
from .pipeline import segment_image, segment_images, segment_video
from .prompts import Clicks, Seeding, Thresholds
from .records import Segment, Segmented
from .weights import WeightsError

__version__ = "0.1.0"
__all__ = [
    "Clicks",
    "Frames",
    "HeatSettings",
    "MediaError",
    "Models",
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
