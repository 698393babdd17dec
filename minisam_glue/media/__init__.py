"""Pictures and moving pictures: in (images.py, sources.py, inputs.py) and out (writer.py)."""

from .images import IMAGE_SUFFIXES, MediaError, is_url, natural_key, read_image
from .inputs import VIDEO_SUFFIXES, Frames, expand_inputs, frames, has_av, is_moving
from .video import DEFAULT_FPS, load_av, open_video

__all__ = [
    "DEFAULT_FPS",
    "Frames",
    "IMAGE_SUFFIXES",
    "MediaError",
    "VIDEO_SUFFIXES",
    "expand_inputs",
    "frames",
    "has_av",
    "is_moving",
    "is_url",
    "load_av",
    "natural_key",
    "open_video",
    "read_image",
]
