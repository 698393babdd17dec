"""Masks that SAM 2 proposes for a seed, and those that are taken.

A seed of a heat map is a region that may hold a part of an object, one object, or several that touch. Each of its
prompts means something else to SAM 2: box and points together this very region, the points alone the object under
them, one point alone a single object. What is proposed is compared with the region.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .masks import box_around, mask_iou
from .models import Models
from .sam2 import EncodedImages
from .sam2.layers import resize_antialiased
from .seeding import Seed, Seeds

MASKS = 3  # that SAM 2 proposes for a prompt that may mean several things
TRUST = 0.5  # weight of SAM 2's own score of a mask beside its agreement with the region
SAME = 0.7  # IoU above which two masks of one phrase are one object, as of two boxes: Thresholds.nms
# Chosen, as TRUST, with the demo weights on the scenes of seeds 2000 to 2119 and 2200 to 2319:
INSIDE = 0.8  # share of a single object's mask that lies in the region
REPEATED = 0.3  # share of the smaller one of two masks from which they show one object
ONE_BETTER = 0.1  # by which the rating of one mask for the region must exceed that of several


def segment_seed(models: Models, seed: Seed, encoded: EncodedImages, image: int = 0) -> tuple[np.ndarray, float]:
    """The mask, bool (H, W), of a seed on image number `image` of those encoded, and SAM 2's own score of it.

    A mask is refined: it goes in as SAM 2's mask prompt, with the box around it if the seed has no box and no points.
    Several masks are proposed for a seed with a region, or with one click alone, which may mean a part or the whole.
    The one of the best rating is taken.
    """
    low, scores = propose(models, seed, encoded, image)
    best = int(rate(low > 0, scores, seed.region).argmax())
    full = models.predictor.enlarge(low[best][None, None], image, encoded)
    return (full[0, 0] > 0).cpu().numpy(), float(scores[best])


def choose_masks(models: Models, seeds: Seeds, encoded: EncodedImages, image: int = 0) -> list[tuple[Seed, np.ndarray]]:
    """The seeds of an image, each with its mask, bool (H, W); without those of too little evidence (HeatSettings)."""
    found = masks_with_evidence(models, seeds, encoded, image)
    return [(seed, mask) for seed, mask, evidence in found if not seed.evidence or evidence >= seed.evidence]


def masks_with_evidence(
    models: Models, seeds: Seeds, encoded: EncodedImages, image: int = 0
) -> list[tuple[Seed, np.ndarray, float]]:
    """All seeds of an image, each with its mask, bool (H, W), and the evidence for it."""
    found = [(seed, *segment_seed(models, seed, encoded, image)) for seed in seeds.objects]
    return [(seed, mask, evidence(seed, mask, score)) for seed, mask, score in found]


def evidence(seed: Seed, mask: np.ndarray, score: float) -> float:
    """SAM 2's score of a mask, bool (H, W), plus its IoU with the seed's region if there is one: 0 to 2."""
    return score + (0.0 if seed.region is None else float(agreement(torch.from_numpy(mask)[None], seed.region)))


def propose(models: Models, seed: Seed, encoded: EncodedImages, image: int = 0) -> tuple[Tensor, Tensor]:
    """Candidate masks, logits (M, s, s), and SAM 2's scores of them (M,).

    Those of all prompts of the seed together and, for a seed with a region, those of its positive points alone.
    """
    box = seed.box if seed.prompts_box else None
    mask = None if seed.mask is None else mask_logits(seed.mask, models)
    if mask is not None and box is None and not seed.points:
        box = box_around(seed.mask)
    one_click = box is None and mask is None and len(seed.points) == 1
    prompts = [
        {
            "boxes": None if box is None else [box],
            "points": seed.points or None,
            "labels": seed.point_labels or None,
            "mask": mask,
            "multimask": one_click or seed.region is not None,
        }
    ]
    inside = points_inside(seed)
    if seed.region is not None and inside and (box or mask is not None or len(inside) < len(seed.points)):
        prompts.append(on_object(inside))
    found = [models.predictor.propose(**prompt, image=image, encoded=encoded) for prompt in prompts]
    return torch.cat([low[0] for low, _ in found]), torch.cat([scores[0] for _, scores in found])


def points_inside(seed: Seed) -> list[tuple[float, float]]:
    """The points of a seed that lie on its object."""
    return [point for point, label in zip(seed.points, seed.point_labels) if label == 1]


def on_object(points: list[tuple[float, float]]) -> dict:
    """The prompt that asks for several masks, MASKS of them, of what lies under all of these points."""
    return {"points": points, "labels": [1] * len(points), "multimask": True}


def rate(masks: Tensor, scores: Tensor, region: np.ndarray | None) -> Tensor:
    """Ratings (M,) of masks, bool (M, h, w): SAM 2's scores (M,) or, with a region (S, S), the agreement with it plus
    TRUST times the scores. SAM 2's best-scored mask may be the background; only a region can tell."""
    return scores if region is None else agreement(masks, region) + TRUST * scores


def agreement(masks: Tensor, region: np.ndarray) -> Tensor:
    """IoU (M,) of bool masks (M, h, w) with a region (S, S), each of which covers the whole image."""
    return mask_iou(masks, resized(region, masks))[:, 0]


def resized(region: np.ndarray, masks: Tensor) -> Tensor:
    """A region, bool (S, S), as a mask of the size of others (M, h, w): (1, h, w). A region too thin
    to fill half of any pixel there is kept where it fills most."""
    grid = torch.from_numpy(region).to(masks.device)[None, None].float()
    share = resize_antialiased(grid, tuple(masks.shape[-2:]))[0]
    return share > min(0.5, 0.99 * float(share.max()))


def mask_logits(mask: np.ndarray, models: Models) -> Tensor:
    """A mask as a mask prompt: logits of +-10, in between along its edge."""
    covered = resize_antialiased(torch.from_numpy(mask)[None, None].float(), models.sam.config.image_size // 4)
    return 20 * covered[0] - 10


def first_of_repeats(labels: Sequence[str | int], masks: Sequence[np.ndarray]) -> list[int]:
    """Indices of the masks, bool (H, W), best first, without those that repeat an earlier one of the same label.

    A heat map shows one object in pieces now and then, and SAM 2 completes each of them to the whole.
    """
    kept, areas = [], [mask.sum() for mask in masks]
    for i, label in enumerate(labels):
        alike = (k for k in kept if labels[k] == label and min(areas[i], areas[k]) > SAME * max(areas[i], areas[k]))
        if all((masks[i] & masks[k]).sum() <= SAME * (masks[i] | masks[k]).sum() for k in alike):
            kept.append(i)
    return kept


# --- Several objects in one region -------------------------------------------------------------------------


def split_seeds(models: Models, seeds: Seeds, encoded: EncodedImages, image: int = 0) -> Seeds:
    """The same, with one seed for each object of a region that holds several, if they are to be told apart."""
    objects = [one for seed in seeds.objects for one in split_seed(models, seed, encoded, image)]
    return replace(seeds, objects=objects)


def split_seed(models: Models, seed: Seed, encoded: EncodedImages, image: int = 0) -> list[Seed]:
    """A seed with a region and points as it is, or one for each object that the points show one by one.

    The masks of single points are taken, best score first, that lie in the region and do not repeat one another. They
    stand for the region unless one mask for all of it is rated clearly better than all of them together.
    """
    inside = points_inside(seed)
    if seed.least_part is None or len(inside) < 2:
        return [seed]
    single = [models.predictor.propose(**on_object([point]), image=image, encoded=encoded) for point in inside]
    masks, scores = torch.cat([low[0] > 0 for low, _ in single]), torch.cat([scores[0] for _, scores in single])
    taken = choose_single(masks, scores, resized(seed.region, masks)[0], seed.least_part)
    if len(taken) < 2:
        return [seed]
    several = rate(masks[taken].any(0, keepdim=True), scores[taken].mean(0, keepdim=True), seed.region)
    together, own = propose(models, seed, encoded, image)
    if float(rate(together > 0, own, seed.region).max()) > float(several) + ONE_BETTER:
        return [seed]
    return [part_of(seed, masks[i].cpu().numpy(), inside[i // MASKS], encoded.sizes[image]) for i in taken]


def choose_single(masks: Tensor, scores: Tensor, region: Tensor, least: float = 0.0) -> list[int]:
    """Indices of those masks, bool (M, h, w), that lie in a region (h, w), best score first, without repeats.

    least: the area of a mask, as a share of the picture, that it must have.
    """
    pixels = masks.flatten(1).float()
    areas = pixels.sum(1).clamp(min=1)
    fits = (masks.sum((1, 2)) >= least * region.numel()) & ((masks & region).sum((1, 2)) / areas >= INSIDE)
    repeats = pixels @ pixels.T >= REPEATED * torch.minimum(areas, areas[:, None])  # of what both share
    fits, repeats = fits.tolist(), repeats.tolist()  # once: a GPU would be waited for at each entry
    taken = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if fits[i] and not any(repeats[i][k] for k in taken):
            taken.append(i)
    return taken


def part_of(seed: Seed, mask: np.ndarray, point: tuple[float, float], size: tuple[int, int]) -> Seed:
    """A seed for one object of a seed's region: a mask (s, s), stretched over a picture of `size`, and its point."""
    box = tuple(map(float, np.array(box_around(mask)) * ([size[1], size[0]] * 2) / len(mask)))
    own = {"points": [point], "point_labels": [1], "prompts_box": False, "mask": None}
    return replace(seed, box=box, region=mask, least_part=None, **own)
