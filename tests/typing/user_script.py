"""A script as a user writes it; check.py beside it runs a type checker over it."""

import numpy as np
import torch
from PIL import Image

from minisam_glue import Segmented, frames, load_models, segment_image, segment_video
from minivit import PRESETS, VisionTransformer, ViTConfig

models = load_models(sam="tiny")
found: Segmented = segment_image(models, Image.open("street.jpg"), "car. traffic light.")
masks: np.ndarray = found.masks
labels: list[str] = [o.label for o in found.objects]
for result in segment_video(models, frames("clip.mp4"), "dog.", redetect=30):
    ids: list[int] = [o.id for o in result.objects]
model = VisionTransformer(PRESETS["cifar"])
logits: torch.Tensor = model(torch.randn(8, 3, 32, 32))

# Mistakes that a checker reports only if it knows the types; it also reports a comment here that hides no mistake.
segment_image(models, Image.open("street.jpg"), 3)  # type: ignore[arg-type]
found.count = 1  # type: ignore[attr-defined]
load_models(sam=1)  # type: ignore[arg-type]
VisionTransformer("cifar")  # type: ignore[arg-type]
ViTConfig(depht=12)  # type: ignore[call-arg]
