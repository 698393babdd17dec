"""Phrases and pictures to heat maps: pixels, tokens, templates and a cache around the network.

CLIPSeg, arXiv 2112.10003. An image is encoded once for all its prompts, and a phrase once for all images. What is
made of the heat maps (thresholds, instances, points) is the business of minisam_glue/heatmap.py.
"""

from collections.abc import Sequence
from itertools import product
from numbers import Integral

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..layers import WeightsState, autocast_dtype
from ..masks import as_bool, mask_box
from ..pixels import IMAGENET_MEAN, Picture, check_list, is_picture, normalise, to_rgb
from ..support.recent import Recent
from .model import CLIPSeg
from .tokenizer import CLIPTokenizer

SIZE = 352  # pixels, as in the official notebook and in transformers' processor
TEXT_CACHE = 1024  # phrases
MAPS_AT_ONCE = 16  # heat maps decoded together: they need about 20 MB each at 352 x 352 pixels
LARGEST_SIZE = 4096  # pixels of a side, at most


def preprocess(picture: np.ndarray, size: int) -> Tensor:
    """uint8 (H, W, 3) -> normalised (3, size, size). As officially, stretched with Pillow's bilinear filter."""
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((size, size), Image.Resampling.BILINEAR)
    return normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255)  # (H, W, 3) -> (3, H, W)


def highlight(
    picture: Picture, mask: np.ndarray, brightness: float = 0.1, blur: float = 2.0, context: float = 0.5
) -> np.ndarray:
    """A picture prompt that shows one object: background grey and blurred, cropped to the object.

    The paper calls this visual prompt engineering. In its training (crop_blur_highlight352 in datasets/utils.py) the
    normalised pixels of the background are multiplied by 0.1, which fades them to the mean grey, and the crop is padded
    to a square with that grey, as here. It blurs by 3 and leaves 0.1 around the object: these two are our choice.
    mask: bool (H, W). brightness: what is left of the background's distance from the mean grey. blur: deviation of its
    Gaussian in pixels. context: margins of the crop, as shares of the object's width and height. ValueError if the mask
    is empty or of another size.
    """
    image, mask = to_rgb(picture), as_bool(np.asarray(mask))
    box = mask_box(mask) if mask.ndim == 2 else None
    if box is None or mask.shape != image.shape[:2]:
        raise ValueError(f"a mask {mask.shape} of {mask.sum()} pixels for a picture {image.shape[:2]}: show the object")
    blurred = np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(ImageFilter.GaussianBlur(blur)))
    mean = np.multiply(IMAGENET_MEAN, 255)
    background = np.clip(np.rint(mean + brightness * (blurred - mean)), 0, 255).astype(np.uint8)
    image = np.where(mask[..., None], image, background)
    left, top, right, bottom = box
    across, down = round(context * (right - left)), round(context * (bottom - top))
    crop = image[max(0, top - down) : bottom + down, max(0, left - across) : right + across]
    h, w = crop.shape[:2]
    square = np.full((max(h, w), max(h, w), 3), np.rint(mean), np.uint8)
    y, x = (len(square) - h) // 2, (len(square) - w) // 2
    square[y : y + h, x : x + w] = crop
    return square


def pad_ids(texts: list[list[int]], length: int) -> Tensor:
    """Ids of T texts -> (T, length), zeros behind the end, which change nothing."""
    return torch.tensor([ids + [0] * (length - len(ids)) for ids in texts])


def check_size(size: int, patch: int) -> None:
    """ValueError unless a side of `size` pixels splits into patches, LARGEST_SIZE at most."""
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise ValueError(f"heat_size {size!r}: give a whole number of pixels")
    if not patch <= size <= LARGEST_SIZE or size % patch:
        nearest = min(max(patch, round(size / patch) * patch), LARGEST_SIZE // patch * patch)
        raise ValueError(f"heat_size {size}: give a multiple of {patch} up to {LARGEST_SIZE}, such as {nearest}")


class HeatMapper:
    """A CLIPSeg model, its tokenizer and a cache of encoded phrases.

    size: side in pixels of the square that pictures are stretched to; more shows smaller objects and costs more.
    templates: a phrase is put into each of them, and the mean of their embeddings stands for it (CLIP, section 3.1.4).
    openai/CLIP brings each to length 1 before the mean; here they keep their lengths, which matter to CLIPSeg.
    ValueError if the model takes no such size, or a template has no {}.
    Threads: `heat_maps` may be called from several at once; the cache of phrases is made for it.
    """

    def __init__(self, model: CLIPSeg, tokenizer: CLIPTokenizer, size: int = SIZE, templates: Sequence[str] = ("{}",)):
        if isinstance(templates, str):
            raise ValueError(f"templates is a text, {templates!r:.40}: give a list of templates")
        check_size(size, model.config.clip.vision.patch_size)
        wrong = [template for template in templates if "{}" not in template]
        if wrong or not templates:
            raise ValueError(f"template {''.join(wrong[:1])!r}: mark the place of the phrase with {{}}")
        self.model, self.tokenizer, self.size, self.templates = model, tokenizer, size, tuple(templates)
        self.texts: Recent[tuple, Tensor] = Recent(TEXT_CACHE)
        self.weights_state = WeightsState()

    @torch.no_grad()
    def heat_maps(self, images: list[Picture], prompts: Sequence[str | Picture]) -> Tensor:
        """Heat maps of P prompts on B images: logits (B, P, size, size), float32 on the CPU.

        prompts: phrases, or pictures of the object (see `highlight`). A heat map covers the whole image, stretched.
        ValueError for no prompt, for a phrase that is empty or longer than the model takes, and where a narrow number
        format gives NaN; TypeError for images that are no list.
        """
        check_list(images)
        conditions = self.encode_prompts(prompts)
        size = (self.size, self.size)
        if not len(images):
            return torch.zeros(0, len(prompts), *size)
        activations = self.model.encode_image(self.pixels(images))
        prompts_at_once = max(1, MAPS_AT_ONCE // len(images))
        parts = [self.model.decode(activations, some, size) for some in conditions.split(prompts_at_once)]
        logits = torch.cat(parts, 1).float().cpu()
        if logits.isnan().any():
            raise ValueError("the heat maps are no numbers (NaN): take --dtype float32")
        return logits

    def pixels(self, images: list[Picture]) -> Tensor:
        """(B, 3, size, size) in the precision and on the device of the model."""
        weight = self.model.decoder.film_mul.weight
        return torch.stack([preprocess(to_rgb(image), self.size) for image in images]).to(weight.device, weight.dtype)

    def encode_prompts(self, prompts: Sequence[str | Picture]) -> Tensor:
        """Phrases and pictures -> conditions (P, E). ValueError as for `heat_maps`."""
        one = isinstance(prompts, str) or is_picture(prompts)
        if one or not len(prompts):
            what = f"one {type(prompts).__name__}" if one else "empty"
            raise ValueError(f'prompts is {what}: give a list of phrases or pictures, such as ["cat"]')
        phrases = self.encode_phrases([prompt for prompt in prompts if isinstance(prompt, str)])
        pictures = [prompt for prompt in prompts if not isinstance(prompt, str)]
        examples = iter(self.model.clip.encode_image(self.pixels(pictures)) if pictures else ())
        return torch.stack([phrases[p] if isinstance(p, str) else next(examples) for p in prompts])

    def encode_phrases(self, phrases: list[str]) -> dict[str, Tensor]:
        """Conditions (D,) of the phrases, from the cache unless the text weights have changed since."""
        clip = self.model.clip
        weights = [*clip.text_model.parameters(), clip.text_projection.weight]
        device = weights[0].device
        state = (device, weights[0].dtype, self.weights_state(weights), autocast_dtype(device), self.templates)
        return {p: self.texts.get((p, state), lambda p=p: self.encode_phrase(p, device)) for p in phrases}

    @torch.no_grad()
    def encode_phrase(self, phrase: str, device: torch.device) -> Tensor:
        """The condition (D,) of one phrase: the mean over the templates.

        It goes through the network alone, so that its last digits do not depend on the phrases beside it, and without
        gradients, which a cache would keep alive.
        """
        self.check_phrases([phrase])
        ids = [self.tokens(template.replace("{}", phrase)) for template in self.templates]
        return self.model.clip.encode_text(pad_ids(ids, max(map(len, ids))).to(device)).mean(0)

    def check_phrases(self, phrases: list[str]) -> None:
        """ValueError for a phrase that is empty or longer than the model takes."""
        for phrase, template in product(phrases, self.templates):
            if not phrase.strip():
                raise ValueError("an empty phrase: name what to look for")
            self.tokens(template.replace("{}", phrase))

    def tokens(self, text: str) -> list[int]:
        """Ids of one text, with the start and the end token. ValueError if there are none between, or too many."""
        ids, most = self.tokenizer.encode(text), self.model.config.clip.text.max_tokens
        if not 3 <= len(ids) <= most:
            raise ValueError(
                f"the phrase {text[:40]!r} has {len(ids) - 2} tokens: it must have 1 to {most - 2}; "
                "shorten it or split it"
            )
        return ids
