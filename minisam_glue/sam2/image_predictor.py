"""Masks in images: encode an image once, then ask with boxes, points and masks.

    predictor = ImagePredictor(load("sam2.1_hiera_tiny.pt"))
    predictor.set_image(image)  # uint8 (H, W, 3) or Pillow
    found = predictor.predict(boxes=[[30, 40, 150, 130]])  # found.masks: bool (1, 1, H, W)

From several threads at once, each call brings its own images:

    encoded = predictor.encode([image])
    found = predictor.predict(boxes=[[30, 40, 150, 130]], encoded=encoded)

SAM 2, arXiv 2408.00714. Left out: the automatic mask generator (a grid of points over the whole image).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..pixels import to_rgb
from .components import clean
from .model import SAM2, ImageFeatures
from .preprocess import Array, finite_tensor, image_pixels, prompt_points


@dataclass(frozen=True)
class EncodedImages:
    """Images after the image encoder: any number of prompts can be answered from them, in any order."""

    features: ImageFeatures
    sizes: list[tuple[int, int]]  # (height, width) of each in pixels


@dataclass
class MaskPrediction:
    """The masks of B prompts on an image, M for each."""

    masks: Tensor  # (B, M, H, W): bool, or logits if asked for
    scores: Tensor  # (B, M): predicted IoU, 0 to 1
    low_res: Tensor  # (B, M, S / 4, S / 4): logits clamped to +-32, to be given back as a mask prompt


class ImagePredictor:
    """Prompts to masks. Prompts are in pixels of the image as given; a Pillow image is turned as its EXIF says.

    max_hole, max_sprinkle: components of at most that many pixels of the low-resolution mask are filled, removed.
    chunk: prompts decoded at once, by default 4 on a CPU, whose cache they should fit, and 32 elsewhere.
    Raises ValueError for a chunk below 1.

    Threads: encode, and predict with `encoded`, keep nothing between calls, so that one predictor serves any number of
    threads. set_image and set_images keep the images in the predictor: use them from one thread only.
    """

    def __init__(self, model: SAM2, max_hole: int = 0, max_sprinkle: int = 0, chunk: int | None = None):
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk {chunk}: give at least 1")
        self.model, self.max_hole, self.max_sprinkle = model, max_hole, max_sprinkle
        self.chunk = chunk or (4 if model.device.type == "cpu" else 32)
        self.encoded: EncodedImages | None = None

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encode an image, uint8 (H, W, 3) or Pillow. Grey and RGBA are converted. Raises ValueError for others."""
        self.set_images([image])

    def set_images(self, images: list[np.ndarray | Image.Image]) -> None:
        """Encode several images, of any sizes, as one batch; predict then takes image = 0, 1, ..."""
        self.encoded = None  # should the new ones fail, the old ones must not answer for them
        self.encoded = self.encode(images)

    @torch.no_grad()  # not in inference mode, whose tensors can't be learned from: features may train a decoder
    def encode(self, images: list[np.ndarray | Image.Image]) -> EncodedImages:
        """Encode images, of any sizes, as one batch, and keep none of them. Raises ValueError as set_image does."""
        if isinstance(images, (Image.Image, np.ndarray)) and getattr(images, "ndim", 2) < 4:
            raise ValueError("images is one image: give a list, or call set_image")
        if not hasattr(images, "__len__"):
            raise ValueError(f"images is a {type(images).__name__}: give a list")
        if not len(images):
            raise ValueError("no images: give at least one")
        arrays = [to_rgb(image) for image in images]
        size, device = self.model.config.image_size, self.model.device
        features = self.model.encode_image(torch.cat([image_pixels(a, size, device) for a in arrays]))
        return EncodedImages(features, [a.shape[:2] for a in arrays])

    @torch.no_grad()
    def predict(
        self,
        boxes: Array | None = None,
        points: Array | None = None,
        labels: Array | None = None,
        mask: Array | None = None,
        multimask: bool = False,
        logits: bool = False,
        image: int = 0,
        encoded: EncodedImages | None = None,
    ) -> MaskPrediction:
        """Masks for B prompts on one image: number `image` of `encoded`, by default of what set_images encoded.

        boxes: (4,) or (B, 4) xyxy pixels. points: (P, 2) or (B, P, 2) xy pixels, with labels of the same leading
        shape, 1 positive, 0 negative and -1 for none, to fill up rows of fewer points. mask: logits (S / 4, S / 4),
        with or without leading axes of 1 or B, as in MaskPrediction.low_res. One set of points or one mask serves all
        boxes. multimask gives three masks per prompt, for prompts that may mean several things, such as one click;
        otherwise one mask, chosen by its stability.
        No boxes, (0, 4), give no masks. Raises ValueError for prompts that are missing, malformed or not finite.
        """
        parts = []
        for low, scores in self.chunks(boxes, points, labels, mask, multimask, image, encoded):
            full = self.enlarge(low, image, encoded)
            parts.append((full if logits else full > 0, scores, low.clamp(-32, 32)))
        return MaskPrediction(*map(torch.cat, zip(*parts)))

    @torch.no_grad()
    def propose(
        self,
        boxes: Array | None = None,
        points: Array | None = None,
        labels: Array | None = None,
        mask: Array | None = None,
        multimask: bool = False,
        image: int = 0,
        encoded: EncodedImages | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks for B prompts, before predict enlarges them: logits (B, M, S / 4, S / 4), and scores (B, M).

        Arguments: see predict. To compare masks, and then `enlarge` only the one that is taken: of a large image that
        saves time and memory.
        """
        parts = self.chunks(boxes, points, labels, mask, multimask, image, encoded)
        return tuple(map(torch.cat, zip(*parts)))

    @torch.no_grad()
    def enlarge(self, low: Tensor, image: int = 0, encoded: EncodedImages | None = None) -> Tensor:
        """Logits (B, M, S / 4, S / 4) -> (B, M, H, W) at the size of an image, small components filled or removed."""
        size = self.chosen(encoded, image).sizes[image]
        low = clean(low, self.max_hole, self.max_sprinkle, 10.0, -10.0)  # as SAM2Transforms.postprocess_masks
        return F.interpolate(low, size=size, mode="bilinear", align_corners=False)

    def chunks(
        self,
        boxes: Array | None,
        points: Array | None,
        labels: Array | None,
        mask: Array | None,
        multimask: bool,
        image: int,
        encoded: EncodedImages | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits and scores of some prompts at a time."""
        encoded = self.chosen(encoded, image)
        features, size = encoded.features[image : image + 1], encoded.sizes[image]
        xy, labels, mask = self.prompts(boxes, points, labels, mask, size)
        for i in range(0, max(len(xy), 1), self.chunk):
            chunk = (None if t is None else t[i : i + self.chunk] for t in (xy, labels, mask))
            with torch.inference_mode():  # faster for small images; what is joined outside of it is as any other tensor
                out = self.model.decode(self.model.without_memory(features), features.high_res, *chunk, multimask)
                low, scores = out.masks.float(), out.ious.float()
            yield low, scores

    def chosen(self, encoded: EncodedImages | None, image: int) -> EncodedImages:
        """The images that are asked for. ValueError if there are none, or no such one among them."""
        encoded = self.encoded if encoded is None else encoded
        if not isinstance(encoded, EncodedImages):
            raise ValueError("no image yet: call set_image first, or give what encode returns")
        if not 0 <= image < len(encoded.sizes):
            raise ValueError(f"image {image}: there are {len(encoded.sizes)}, counted from 0")
        return encoded

    def prompts(
        self, boxes: Array | None, points: Array | None, labels: Array | None, mask: Array | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Checked prompts as points (B, P, 2), labels (B, P) and mask (B, 1, S / 4, S / 4) or None, on the device."""
        device = self.model.device
        found = prompt_points(boxes, points, labels, size, self.model.config.image_size)
        if mask is not None:
            side = self.model.config.image_size // 4
            if getattr(mask, "dtype", None) in (torch.bool, np.dtype(bool)):
                raise ValueError("mask is bool: give logits, such as low_res of an earlier prediction")
            mask = finite_tensor(mask, "mask")
            if mask.shape[-2:] != (side, side) or mask.ndim > 4 or (mask.ndim == 4 and mask.shape[1] != 1):
                raise ValueError(
                    f"mask has shape {tuple(mask.shape)}: give logits ({side}, {side}) or "
                    f"(B, 1, {side}, {side}), such as low_res of an earlier prediction"
                )
            mask = mask.reshape(-1, 1, side, side).to(device)
        if mask is None and (found is None or not found[0].shape[1]):
            raise ValueError("no prompt: give boxes, points with labels, or a mask")
        if found is None:
            found = mask.new_zeros(len(mask), 0, 2), torch.zeros(len(mask), 0, dtype=torch.long)
        xy, labels = (t.to(device) for t in found)
        if mask is not None and len(mask) != len(xy):
            if len(mask) != 1 and len(xy) != 1:
                raise ValueError(f"{len(xy)} prompts but {len(mask)} masks: give one mask, or one per prompt")
            B = len(mask) * len(xy)
            xy, labels, mask = xy.expand(B, -1, -1), labels.expand(B, -1), mask.expand(B, -1, -1, -1)
        return xy, labels, mask
