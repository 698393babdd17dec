"""SAM 2 and 2.1 (arXiv 2408.00714) in plain PyTorch: masks from prompts in images, and objects through videos."""

from .image_predictor import ImagePredictor, Prediction
from .model import PRESETS, SAM2, SAM2Config, build, compile_model, load
from .video_tracker import FrameResult, VideoTracker

__all__ = [
    "PRESETS",
    "SAM2",
    "SAM2Config",
    "FrameResult",
    "ImagePredictor",
    "Prediction",
    "VideoTracker",
    "build",
    "compile_model",
    "load",
]
