"""SAM 2 and 2.1 (arXiv 2408.00714) in plain PyTorch: masks from prompts in images, and objects through videos.

How a click becomes a mask: preprocess.py scales it to the model's pixels, prompt_encoder.py makes a token of it,
hiera.py makes tokens and two finer maps of the image. In mask_decoder.py prompt tokens and image tokens attend to
each other; the image tokens are upscaled to a map, and the product of that map with a mask token's weights is a mask.

How a memory reaches the next frame: the memory encoder (memory.py) mixes mask and frame into a memory map, and the
mask's token becomes an object pointer. The bank (memory_bank.py) keeps both and selects what the next frame attends
to. In memory attention (memory.py) the tokens of that frame attend to them, and go to the mask decoder.

model.py ties the modules together; image_predictor.py and video_tracker.py are for users. fast.py holds equal and
faster forms of the modules.
"""

from .fast import accelerate, compile_model
from .image_predictor import EncodedImages, ImagePredictor, MaskPrediction
from .model import PRESETS, SAM2, SAM2Config, build, load
from .video_tracker import FrameResult, VideoTracker

__all__ = [
    "PRESETS",
    "SAM2",
    "SAM2Config",
    "EncodedImages",
    "FrameResult",
    "ImagePredictor",
    "MaskPrediction",
    "VideoTracker",
    "accelerate",
    "build",
    "compile_model",
    "load",
]
