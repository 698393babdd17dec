"""Text to boxes: prompts, pixels, thresholds and batching around the network.

Each of the user's phrases is scored over its own tokens, so that a label is always one of them,
verbatim. Images of unequal sizes share a batch after the backbone, with the padding masked, which
gives what one image at a time gives (the official batch does not: its backbone sees the padding).
Left out: reading files, which is media.py's part. Paper: arXiv 2303.05499, section 3.4.
"""

import logging
import re
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..boxes import area, cxcywh_to_xyxy, suppress
from ..pixels import Picture, normalise, to_rgb
from ..prompts import split_phrases
from .geometry import Shapes
from .model import MAX_TEXT, GroundingDINO
from .official import decode_words
from .tokenizer import WordPieceTokenizer
from .transformer import Text

TEXT_CACHE = 256  # captions
BOX_THRESHOLD, TEXT_THRESHOLD = 0.35, 0.25  # the official defaults
log = logging.getLogger(__name__)

Prompt = str | list[str]


# --- Pixels ------------------------------------------------------------------------------------------------


def fit(width: int, height: int, sides: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with the shorter side sides[0], unless the longer would pass sides[1]; rounded officially."""
    short, long = sorted((width, height))
    target = max(1, min(sides[0], round(sides[1] * short / long)))
    other = min(int(target * long / short), 2 * sides[1])  # twice: only a line thinner than a pixel meets it
    return (target, other) if width < height else (other, target)


def preprocess(picture: np.ndarray, sides: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) -> float (3, h, w), resized (bilinear, with Pillow as the official code) and normalised."""
    width, height = fit(picture.shape[1], picture.shape[0], sides)
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (H, W, 3) -> (3, H, W)
    return normalise(x)


def pad_levels(images: list[list[Tensor]]) -> tuple[list[Tensor], tuple[Shapes, ...]]:
    """Level maps (C, h, w) of each image -> batched maps on common canvases, and each image's own (h, w) per level."""
    valid = tuple(tuple(tuple(level.shape[-2:]) for level in levels) for levels in images)
    batched = []
    for maps in zip(*images):
        H, W = (max(m.shape[i] for m in maps) for i in (1, 2))
        batched.append(torch.stack([F.pad(m, (0, W - m.shape[2], 0, H - m.shape[1])) for m in maps]))
    return batched, valid


# --- Prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    """Phrases that fit into one pass: token ids, and for each phrase its number and its columns [start, end)."""

    ids: tuple[int, ...]
    phrases: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def prompts_of(prompts: Prompt | list[Prompt], number: int) -> list[Prompt]:
    """One prompt for each of a number of images."""
    if isinstance(prompts, str):
        return [prompts] * number
    if len(prompts) != number:
        raise ValueError(
            f"{len(prompts)} prompts for {number} images: give one for each image, or one string for all "
            "(the phrases of one prompt go into a list of their own)"
        )
    return prompts


def pack_captions(phrases: list[str], tokenizer: WordPieceTokenizer) -> list[Caption]:
    """As few captions "[CLS] phrase . phrase . [SEP]" of at most 256 tokens as hold all phrases in their order."""
    captions, ids, members, spans = [], [tokenizer.cls], [], []
    for number, phrase in enumerate(phrases):
        pieces = tokenizer.pieces(re.sub(r"[.?]", " ", phrase))  # inside a phrase these would end it
        if not 1 <= len(pieces) <= MAX_TEXT - 3:
            raise ValueError(
                f"phrase {number} ({phrase[:40]!r}) has {len(pieces)} tokens: it must have 1 to "
                f"{MAX_TEXT - 3}; shorten it or split it"
            )
        if set(pieces) == {tokenizer.unknown}:
            raise ValueError(f"the phrase {phrase[:40]!r} has no word that the vocabulary knows: write it in English")
        if len(ids) + len(pieces) + 2 > MAX_TEXT:
            captions.append(Caption((*ids, tokenizer.sep), tuple(members), tuple(spans)))
            ids, members, spans = [tokenizer.cls], [], []
        members.append(number)
        spans.append((len(ids), len(ids) + len(pieces)))
        ids += [*pieces, tokenizer.ids["."]]
    return [*captions, Caption((*ids, tokenizer.sep), tuple(members), tuple(spans))]


def limits_of(names: list[str], box_threshold: float | dict[str, float], text_threshold: float) -> Tensor:
    """(phrases,): the score that each phrase has to pass."""
    by_name = box_threshold if isinstance(box_threshold, dict) else dict.fromkeys(names, box_threshold)
    return torch.tensor([by_name.get(name, BOX_THRESHOLD) for name in names]).clamp(min=text_threshold)


def check_names(thresholds: dict[str, float], phrases: list[list[str]]) -> None:
    """ValueError if a threshold is for no phrase of any prompt."""
    unknown = set(thresholds) - {name for names in phrases for name in names}
    if unknown:
        raise ValueError(f"box_threshold names {sorted(unknown)}, which no prompt has: spell phrases as in the prompt")


def pad_texts(texts: list[Text]) -> Text:
    """Texts of one caption each -> one of all; padding sees itself only."""
    L = max(text.features.shape[1] for text in texts)
    alone = torch.eye(L, dtype=torch.bool, device=texts[0].features.device)
    missing = [L - text.features.shape[1] for text in texts]
    return Text(
        torch.cat([F.pad(text.features, (0, 0, 0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.real, (0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.positions, (0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.attention, (0, n, 0, n)) for text, n in zip(texts, missing)]) | alone,
    )


# --- Results -----------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Queries of one pass that passed: boxes (n, 4) cxcywh as fractions, scores, phrase numbers, words, best phrase."""

    boxes: Tensor
    scores: Tensor
    indices: Tensor
    words: list[str]
    best: tuple[int, float]


@dataclass
class Detections:
    """What was found in one image, best first. All tensors are on the CPU."""

    boxes: Tensor  # (n, 4), xyxy, pixels of the original image
    scores: Tensor  # (n,), between 0 and 1
    indices: Tensor  # (n,), which of the prompt's phrases
    labels: list[str]  # these phrases, verbatim
    words: list[str]  # all words above text_threshold, as the official code would name the box
    best: tuple[str, float]  # the best phrase and its score, whether or not it passed

    def __len__(self) -> int:
        return len(self.boxes)


def merge(
    found: list[Found],
    names: list[str],
    size: tuple[int, int],
    nms_iou: float | None,
    class_agnostic: bool,
    max_area: float,
) -> Detections:
    """The passes of one image of (h, w) pixels -> its detections."""
    boxes = cxcywh_to_xyxy(torch.cat([f.boxes for f in found])).clamp(0, 1)  # fractions of the image
    scores, indices = torch.cat([f.scores for f in found]), torch.cat([f.indices for f in found])
    words = [w for f in found for w in f.words]
    order = scores.argsort(descending=True, stable=True)
    order = order[area(boxes[order]) <= max_area]
    pixels = boxes * torch.tensor([size[1], size[0]] * 2)
    if nms_iou is not None:
        order = order[suppress(pixels[order], scores[order], nms_iou, None if class_agnostic else indices[order])]
    phrase, score = max((f.best for f in found), key=lambda best: best[1])
    if not len(order):
        log.info("nothing passes the thresholds; the best is %r with %.3f", names[phrase], score)
    chosen = order.tolist()
    return Detections(
        pixels[order],
        scores[order],
        indices[order],
        [names[indices[i]] for i in chosen],
        [words[i] for i in chosen],
        (names[phrase], score),
    )


# --- The detector ------------------------------------------------------------------------------------------


class Detector:
    """A model, its tokenizer and a cache of encoded captions. `sides`: shorter and longest side fed to the model."""

    def __init__(self, model: GroundingDINO, tokenizer: WordPieceTokenizer, sides: tuple[int, int] = (800, 1333)):
        self.model, self.tokenizer, self.sides = model, tokenizer, sides
        self.texts: OrderedDict[tuple, Text] = OrderedDict()

    @torch.no_grad()
    def detect(
        self,
        images: Picture | list[Picture],
        prompts: Prompt | list[Prompt],
        box_threshold: float | dict[str, float] = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        nms_iou: float | None = None,
        class_agnostic: bool = False,
        max_area: float = 1.0,
        batch_size: int = 4,
    ) -> Detections | list[Detections]:
        """Find phrases in one image, or in each of a list of images.

        prompts: for one image a string such as "car. dog." or a list of phrases; for a list of images
        a string for all of them, or a list with a prompt for each. box_threshold: one, or one for each
        phrase by name (others keep 0.35); scores are strictly above it, and above text_threshold.
        nms_iou: suppress boxes of one phrase (class_agnostic: of any phrase) that overlap more.
        max_area: drop boxes that cover more than this share of the image. batch_size: images, and
        captions, that the model sees at one time. ValueError on empty or too long prompts.
        """
        if not isinstance(images, list):
            return self.detect(
                [images], [prompts], box_threshold, text_threshold, nms_iou, class_agnostic, max_area, batch_size
            )[0]
        phrases = [split_phrases(prompt) for prompt in prompts_of(prompts, len(images))]
        if isinstance(box_threshold, dict):
            check_names(box_threshold, phrases)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        captions = [pack_captions(names, self.tokenizer) for names in phrases]
        results = []
        for start in range(0, len(images), batch_size):
            pictures = [to_rgb(image) for image in images[start : start + batch_size]]
            passes = self.run(pictures, captions[start : start + batch_size], batch_size)
            for picture, names, outputs in zip(pictures, phrases[start:], passes):
                limits = limits_of(names, box_threshold, text_threshold)
                found = [self.select(*output, limits, text_threshold) for output in outputs]
                results.append(merge(found, names, picture.shape[:2], nms_iou, class_agnostic, max_area))
        return results

    def run(
        self, pictures: list[np.ndarray], captions: list[list[Caption]], batch_size: int
    ) -> list[list[tuple[Caption, Tensor, Tensor]]]:
        """For each picture and each of its captions: the caption, similarities (Q, L) and boxes (Q, 4) cxcywh."""
        levels = self.encode_images(pictures)
        jobs = [(i, caption) for i, its_captions in enumerate(captions) for caption in its_captions]
        outputs = [[] for _ in pictures]
        for start in range(0, len(jobs), batch_size):
            some = jobs[start : start + batch_size]
            maps, valid = pad_levels([levels[i] for i, _ in some])
            text = pad_texts([self.encode_caption(caption.ids) for _, caption in some])
            prediction = self.model.ground(maps, valid, text)[0]
            similarity, boxes = prediction.logits.float().sigmoid().cpu(), prediction.boxes.float().cpu()
            for (i, caption), s, b in zip(some, similarity, boxes):
                outputs[i].append((caption, s[:, : len(caption.ids)], b))
        return outputs

    def encode_images(self, pictures: list[np.ndarray]) -> list[list[Tensor]]:
        """Level maps (C, h, w) of each picture; those of equal size go through the backbone together."""
        weight = self.model.feat_map.weight
        inputs = [preprocess(picture, self.sides) for picture in pictures]
        by_size: dict[torch.Size, list[int]] = {}
        for i, x in enumerate(inputs):
            by_size.setdefault(x.shape, []).append(i)
        levels: list = [None] * len(pictures)
        for members in by_size.values():
            maps = self.model.encode_image(torch.stack([inputs[i] for i in members]).to(weight.device, weight.dtype))
            for row, i in enumerate(members):
                levels[i] = [level[row] for level in maps]
        return levels

    def encode_caption(self, ids: tuple[int, ...]) -> Text:
        """Text features of one caption (B = 1), from the cache unless the text weights have changed since."""
        weights = [*self.model.bert.parameters(), *self.model.feat_map.parameters()]
        device, updates = weights[0].device, sum(0 if w.is_inference() else w._version for w in weights)
        key = (ids, device, weights[0].dtype, updates, torch.is_autocast_enabled(device.type))
        if key not in self.texts:
            row = torch.tensor([ids], device=device)
            self.texts[key] = self.model.encode_text(row, torch.ones_like(row, dtype=torch.bool))
            if len(self.texts) > TEXT_CACHE:
                self.texts.popitem(last=False)
        self.texts.move_to_end(key)
        return self.texts[key]

    def select(
        self, caption: Caption, similarity: Tensor, boxes: Tensor, limits: Tensor, text_threshold: float
    ) -> Found:
        """Of Q queries, those of which a phrase passes its limit; each goes to the best phrase that does."""
        phrases = torch.tensor(caption.phrases)
        scores = torch.stack([similarity[:, a:b].amax(1) for a, b in caption.spans], 1)  # (Q, phrases)
        best = scores.amax(0)
        passing, winner = scores.where(scores > limits[phrases], -1.0).max(1)
        keep = passing >= 0
        words = [decode_words(row, list(caption.ids), self.tokenizer, text_threshold) for row in similarity[keep]]
        return Found(
            boxes[keep],
            passing[keep],
            phrases[winner[keep]],
            words,
            (caption.phrases[int(best.argmax())], float(best.max())),
        )
