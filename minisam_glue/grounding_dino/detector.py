"""Text to boxes: prompts, pixels, thresholds and batching around the network.

Paper: Grounding DINO, arXiv 2303.05499, section 3.4. Each phrase of a prompt is scored over its own tokens, so that a
label is always one of the phrases, verbatim; the official predict puts it together of all words above text_threshold.
Images of unequal sizes share a batch after the backbone, with the padding masked, which gives the same as one image at
a time (the official backbone sees the padding). Left out: reading files.
"""

import logging
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..boxes import area, cxcywh_to_xyxy, suppress
from ..layers import WeightsState, autocast_dtype
from ..pixels import Picture, normalise, to_rgb
from ..prompts import Sentence, Thresholds, split_phrases
from ..support.recent import Recent
from .geometry import Shapes
from .model import MAX_TEXT, GroundingDINO
from .tokenizer import WordPieceTokenizer
from .transformer import Text

TEXT_CACHE = 256  # captions
BOX_THRESHOLD, TEXT_THRESHOLD = 0.35, 0.25  # those of the official util/inference.py; its demo script has 0.3 and 0.25
log = logging.getLogger(__name__)


# --- Pixels ------------------------------------------------------------------------------------------------


def resized_size(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(width, height) in pixels after scaling the shorter side to min_size, or less to keep the longer to max_size."""
    short, long = sorted((width, height))
    target = max(1, min(min_size, round(max_size * short / long)))  # rounded as in the official code
    other = min(int(target * long / short), 2 * max_size)  # only an image thinner than a pixel meets this limit
    return (target, other) if width < height else (other, target)


def preprocess(picture: np.ndarray, min_size: int, max_size: int) -> Tensor:
    """RGB uint8 (H, W, 3) -> float (3, h, w): resized (bilinear, by Pillow as in the official code) and normalised."""
    size = resized_size(picture.shape[1], picture.shape[0], min_size, max_size)
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (H, W, 3) -> (3, H, W)
    return normalise(x)


def pad_levels(images: list[list[Tensor]]) -> tuple[list[Tensor], tuple[Shapes, ...]]:
    """Level maps (C, h, w) of each image -> maps (B, C, H, W) on common canvases, and each image's (h, w) per level."""
    image_shapes = tuple(tuple(tuple(level.shape[-2:]) for level in levels) for levels in images)
    batched = []
    for maps in zip(*images):
        H, W = (max(m.shape[i] for m in maps) for i in (1, 2))
        batched.append(torch.stack([F.pad(m, (0, W - m.shape[2], 0, H - m.shape[1])) for m in maps]))
    return batched, image_shapes


# --- Captions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    """Phrases that fit into one pass."""

    ids: tuple[int, ...]  # of the tokens "[CLS] phrase . phrase . [SEP]"
    phrases: tuple[int, ...]  # number of each phrase in the prompt
    spans: tuple[tuple[int, int], ...]  # columns [start, end) of each phrase's tokens, without its full stop


def prompts_per_image(prompts: Sentence | list[Sentence], number: int) -> list[Sentence]:
    """One prompt for each of `number` images: a string serves all. ValueError if a list has another length, TypeError
    for what is no list."""
    if isinstance(prompts, str):
        return [prompts] * number
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"prompts is a {type(prompts).__name__}: give a sentence, or a list with one for each image")
    if len(prompts) != number:
        raise ValueError(
            f"{len(prompts)} prompts for {number} images: give one for each image, or one string for all "
            "(the phrases of one prompt go into a list of their own)"
        )
    return prompts


def pack_captions(phrases: list[str], tokenizer: WordPieceTokenizer) -> list[Caption]:
    """Pack phrases in their order into captions of at most 256 tokens. ValueError for a phrase of 0 or over 253, or
    without a word of the vocabulary."""
    captions, ids, members, spans = [], [tokenizer.cls], [], []
    for number, phrase in enumerate(phrases):
        pieces = tokenizer.pieces(re.sub(r"[.?]", " ", phrase))  # inside a phrase these would end it
        if not 1 <= len(pieces) <= MAX_TEXT - 3:
            most = f"it must have 1 to {MAX_TEXT - 3}; shorten it or split it"
            has = f"has {len(pieces)} tokens: {most}" if pieces else "holds no word: name what to look for"
            raise ValueError(f"phrase {number} ({phrase[:40]!r}) {has}")
        if set(pieces) == {tokenizer.unknown}:
            raise ValueError(f"the phrase {phrase[:40]!r} has no word that the vocabulary knows: write it in English")
        if len(ids) + len(pieces) + 2 > MAX_TEXT:
            captions.append(Caption((*ids, tokenizer.sep), tuple(members), tuple(spans)))
            ids, members, spans = [tokenizer.cls], [], []
        members.append(number)
        spans.append((len(ids), len(ids) + len(pieces)))
        ids += [*pieces, tokenizer.ids["."]]
    return [*captions, Caption((*ids, tokenizer.sep), tuple(members), tuple(spans))]


def score_limits(phrases: list[str], box_threshold: float | dict[str, float], text_threshold: float) -> Tensor:
    """(phrases,): the score that each phrase has to exceed."""
    by_name = box_threshold if isinstance(box_threshold, dict) else dict.fromkeys(phrases, box_threshold)
    return torch.tensor([by_name.get(phrase, BOX_THRESHOLD) for phrase in phrases]).clamp(min=text_threshold)


def check_names(thresholds: dict[str, float], phrases: list[list[str]]) -> None:
    """Raise ValueError if a threshold names a phrase that no prompt has."""
    unknown = set(thresholds) - {name for names in phrases for name in names}
    if unknown:
        raise ValueError(f"box_threshold names {sorted(unknown)}, which no prompt has: spell phrases as in the prompt")


def check_limits(
    box_threshold: float | dict[str, float], text_threshold: float, nms_iou: float | None, max_area: float
) -> None:
    """ValueError for limits out of their range; those of Thresholds, and no suppression."""
    for box in box_threshold.values() if isinstance(box_threshold, dict) else [box_threshold]:
        if isinstance(box, str):
            raise ValueError(f"box_threshold is {box!r}: give a number from 0 to 1")
        Thresholds(box, text_threshold, 1.0 if nms_iou is None else nms_iou, max_area)


def pad_texts(texts: list[Text]) -> Text:
    """Texts of one caption each -> one Text of all; a padding token attends to itself only."""
    L = max(text.features.shape[1] for text in texts)
    itself = torch.eye(L, dtype=torch.bool, device=texts[0].features.device)
    missing = [L - text.features.shape[1] for text in texts]
    return Text(
        torch.cat([F.pad(text.features, (0, 0, 0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.valid, (0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.positions, (0, n)) for text, n in zip(texts, missing)]),
        torch.cat([F.pad(text.attention, (0, n, 0, n)) for text, n in zip(texts, missing)]) | itself,
    )


# --- Results -----------------------------------------------------------------------------------------------


@dataclass
class Detections:
    """Boxes found in one image, best first. All tensors are on the CPU."""

    boxes: Tensor  # (n, 4), xyxy, pixels of the original image
    scores: Tensor  # (n,), between 0 and 1
    indices: Tensor  # (n,), which of the prompt's phrases
    labels: list[str]  # these phrases, verbatim
    best: tuple[str, float]  # the phrase of highest score and that score, whether or not it passed

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class PassedQueries:
    """The queries of one pass that exceed a limit."""

    boxes: Tensor  # (n, 4), cxcywh as fractions of the image
    scores: Tensor  # (n,)
    indices: Tensor  # (n,), numbers of phrases
    best: tuple[int, float]  # the phrase of highest score and that score, whether or not it passed


def phrase_scores(similarity: Tensor, caption: Caption) -> Tensor:
    """Similarity (Q, L) of queries and tokens -> (Q, phrases): that of each phrase's most similar token."""
    return torch.stack([similarity[:, start:end].amax(1) for start, end in caption.spans], 1)


def pass_limits(similarity: Tensor, boxes: Tensor, caption: Caption, limits: Tensor) -> PassedQueries:
    """Give each query the best phrase whose limit it exceeds, and drop queries that exceed none.

    similarity (Q, L) between 0 and 1, boxes (Q, 4); limits: of all phrases of the prompt.
    """
    numbers, scores = torch.tensor(caption.phrases), phrase_scores(similarity, caption)
    passing, winner = scores.where(scores > limits[numbers], -1.0).max(1)
    keep, best = passing >= 0, scores.amax(0)
    return PassedQueries(
        boxes[keep], passing[keep], numbers[winner[keep]], (caption.phrases[int(best.argmax())], float(best.max()))
    )


def merge(
    passes: list[PassedQueries],
    phrases: list[str],
    size: tuple[int, int],
    nms_iou: float | None,
    class_agnostic: bool,
    max_area: float,
) -> Detections:
    """Join the passes of one image of (h, w) pixels, and filter by area and overlap."""
    boxes = cxcywh_to_xyxy(torch.cat([p.boxes for p in passes])).clamp(0, 1)  # fractions of the image
    scores, indices = torch.cat([p.scores for p in passes]), torch.cat([p.indices for p in passes])
    order = scores.argsort(descending=True, stable=True)
    order = order[area(boxes[order]) <= max_area]
    pixels = boxes * torch.tensor([size[1], size[0]] * 2)
    if nms_iou is not None:
        order = order[suppress(pixels[order], scores[order], nms_iou, None if class_agnostic else indices[order])]
    phrase, score = max((p.best for p in passes), key=lambda best: best[1])
    if not len(order):
        log.info("nothing passes the thresholds; the best is %r with %.3f", phrases[phrase], score)
    labels = [phrases[i] for i in indices[order].tolist()]
    return Detections(pixels[order], scores[order], indices[order], labels, (phrases[phrase], score))


# --- The detector ------------------------------------------------------------------------------------------


class Detector:
    """A model with its tokenizer and a cache of encoded captions.

    min_size, max_size: pixels that the shorter side of an image is resized to, and that the longer may have at most;
    the defaults are those of the official load_image.
    ValueError for sizes that can't be.
    Threads: `detect` may be called from several at once; the caches of words and captions are made for it.
    """

    def __init__(self, model: GroundingDINO, tokenizer: WordPieceTokenizer, min_size: int = 800, max_size: int = 1333):
        if not 1 <= min_size <= max_size:
            raise ValueError(f"min_size {min_size}, max_size {max_size}: give pixels from 1, the second no less")
        self.model, self.tokenizer, self.min_size, self.max_size = model, tokenizer, min_size, max_size
        self.texts: Recent[tuple, Text] = Recent(TEXT_CACHE)
        self.weights_state = WeightsState()

    @torch.no_grad()
    def detect(
        self,
        images: Picture | list[Picture],
        prompts: Sentence | list[Sentence],
        box_threshold: float | dict[str, float] = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        nms_iou: float | None = None,
        class_agnostic: bool = False,
        max_area: float = 1.0,
        batch_size: int = 4,
    ) -> Detections | list[Detections]:
        """Find phrases in one image, or in each of a list of images.

        prompts: for one image a string such as "car. dog." or a list of phrases; for a list of images a string for all
        of them, or a list with a prompt for each. box_threshold: one number, or one for each phrase by name (others
        keep 0.35); scores are strictly above it, and above text_threshold. nms_iou: IoU above which overlapping boxes
        of one phrase (class_agnostic: of any phrase) are suppressed; None for no suppression. max_area: largest share
        of the image that a box may cover. batch_size: images, and captions, in one pass.
        A Pillow image is turned as its EXIF says, and boxes are in its pixels then. ValueError for a phrase that is
        empty, too long or without a known word, an unknown name in box_threshold, a limit out of its range, another
        number of prompts than images, what is no picture, or batch_size below 1.
        """
        if not isinstance(images, list):
            return self.detect(
                [images], [prompts], box_threshold, text_threshold, nms_iou, class_agnostic, max_area, batch_size
            )[0]
        phrases = [split_phrases(prompt) for prompt in prompts_per_image(prompts, len(images))]
        if isinstance(box_threshold, dict):
            check_names(box_threshold, phrases)
        check_limits(box_threshold, text_threshold, nms_iou, max_area)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        captions = [pack_captions(names, self.tokenizer) for names in phrases]
        results = []
        for start in range(0, len(images), batch_size):
            pictures = [to_rgb(image) for image in images[start : start + batch_size]]
            outputs = self.run(pictures, captions[start : start + batch_size], batch_size)
            for picture, names, its_outputs in zip(pictures, phrases[start:], outputs):
                limits = score_limits(names, box_threshold, text_threshold)
                passes = [pass_limits(similarity, boxes, caption, limits) for caption, similarity, boxes in its_outputs]
                results.append(merge(passes, names, picture.shape[:2], nms_iou, class_agnostic, max_area))
        return results

    @torch.inference_mode()  # a tenth faster at small sizes than without gradients alone
    def run(
        self, pictures: list[np.ndarray], captions: list[list[Caption]], batch_size: int
    ) -> list[list[tuple[Caption, Tensor, Tensor]]]:
        """For each picture and each of its captions: the caption, similarities (Q, L) and boxes (Q, 4) cxcywh."""
        levels = self.encode_images(pictures)
        jobs = [(i, caption) for i, its_captions in enumerate(captions) for caption in its_captions]
        outputs = [[] for _ in pictures]
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            maps, image_shapes = pad_levels([levels[i] for i, _ in batch])
            text = pad_texts([self.encode_caption(caption.ids) for _, caption in batch])
            output = self.model.ground(maps, image_shapes, text)[0]
            similarity, boxes = output.logits.float().sigmoid().cpu(), output.boxes.float().cpu()
            for (i, caption), s, b in zip(batch, similarity, boxes):
                if s[:, : len(caption.ids)].isnan().any():
                    raise ValueError("the detector's scores are no numbers (NaN): take --dtype float32")
                outputs[i].append((caption, s[:, : len(caption.ids)], b))
        return outputs

    def encode_images(self, pictures: list[np.ndarray]) -> list[list[Tensor]]:
        """Level maps (C, h, w) of each picture; those of equal size go through the backbone together."""
        weight = self.model.feat_map.weight
        inputs = [preprocess(picture, self.min_size, self.max_size) for picture in pictures]
        by_size: dict[torch.Size, list[int]] = {}
        for i, x in enumerate(inputs):
            by_size.setdefault(x.shape, []).append(i)
        levels: list = [None] * len(pictures)
        for members in by_size.values():
            maps = self.model.encode_image(torch.stack([inputs[i] for i in members]).to(weight.device, weight.dtype))
            for row, i in enumerate(members):
                levels[i] = [level[row] for level in maps]
        return levels

    @torch.inference_mode(False)  # what is kept must serve training too
    @torch.no_grad()
    def encode_caption(self, ids: tuple[int, ...]) -> Text:
        """Text of one caption (B = 1), from the cache unless the weights that encode it have changed since."""
        weights = [*self.model.bert.parameters(), *self.model.feat_map.parameters()]
        device = weights[0].device
        key = (ids, device, weights[0].dtype, self.weights_state(weights), autocast_dtype(device))
        row = torch.tensor([ids], device=device)
        return self.texts.get(key, lambda: self.model.encode_text(row, torch.ones_like(row, dtype=torch.bool)))
