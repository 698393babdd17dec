"""Pictures and moving pictures: in (inputs.py, by way of all others) and out (writer.py)."""

from .images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_url, natural_key, page_count, read_image, read_masks
from .inputs import Frames, expand_inputs, frames, has_av, is_moving
from .limits import MediaError, ReadError, load_av
from .video import DEFAULT_FPS, open_video

__all__ = [
    "DEFAULT_FPS",
    "Frames",
    "IMAGE_SUFFIXES",
    "MediaError",
    "ReadError",
    "VIDEO_SUFFIXES",
    "expand_inputs",
    "frames",
    "has_av",
    "is_moving",
    "is_url",
    "load_av",
    "natural_key",
    "open_video",
    "page_count",
    "read_image",
    "read_masks",
]
