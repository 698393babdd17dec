"""Vision Transformers for small images, written by hand in plain PyTorch.

from minivit import PRESETS, ViTConfig, VisionTransformer

model = VisionTransformer(PRESETS["cifar"])
"""

from .vit import PRESETS, VisionTransformer, ViTConfig

__version__ = "0.1.0"
__all__ = ["PRESETS", "ViTConfig", "VisionTransformer"]
