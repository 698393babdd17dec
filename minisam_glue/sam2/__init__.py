"""SAM 2 and 2.1 (arXiv 2408.00714) in plain PyTorch: masks from prompts in images, and objects through videos."""

from .fast import accelerate, compile_model
from .image_predictor import ImagePredictor, MaskPrediction
from .model import PRESETS, SAM2, SAM2Config, build, load
from .video_tracker import FrameResult, VideoTracker

__all__ = [
    "PRESETS",
    "SAM2",
    "SAM2Config",
    "FrameResult",
    "ImagePredictor",
    "MaskPrediction",
    "VideoTracker",
    "accelerate",
    "build",
    "compile_model",
    "load",
]
