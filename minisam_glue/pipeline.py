"""The functions that users call: a sentence, or clicks, to masks in pictures and videos.

    models = load_models()                                     # minisam_glue.models
    found = segment_image(models, image, "car. person.")       # found.objects, found.masks, found.annotated()
    for frame in segment_video(models, frames("clip.mp4"), "car."):
        print(frame.frame, [(o.id, o.label) for o in frame.seen])

A sentence becomes boxes (seeding.py), boxes become masks (SAM 2, mask_proposals.py), masks become tracks
(propagation.py). Coordinates are pixels of the picture as given, boxes xyxy. Left out: files and command lines
(media/, cli/).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from .mask_proposals import choose_masks, first_of_repeats, segment_seed, split_seeds
from .masks import box_around
from .models import Models
from .pixels import Picture, check_list, hint_for, own_rgb
from .prompts import Clicks, Prompt, Seeding, Thresholds
from .propagation import FORWARD, Tracking, check_frames
from .propagators import MEMORY
from .records import Segment, Segmented
from .sam2 import EncodedImages
from .seeding import Seeds, check_settings, find_seeds, seed_of_prompt
from .support.devices import with_cpu_as_default


def segment_image(
    models: Models, image: Picture, prompt: Prompt, thresholds: Thresholds = Thresholds(), seeding: Seeding = Seeding()
) -> Segmented:
    """The objects of one picture, best first; empty lists and arrays if there are none.

    prompt: a sentence, a list of phrases, or Clicks. ValueError for a malformed one. Several threads may call it with
    the same models: see Models.
    """
    return segment_images(models, [image], prompt, thresholds, seeding)[0]


@with_cpu_as_default
def segment_images(
    models: Models,
    images: list[Picture],
    prompt: Prompt,
    thresholds: Thresholds = Thresholds(),
    seeding: Seeding = Seeding(),
) -> list[Segmented]:
    """Segment several pictures, of any sizes, that go through the models together. Arguments: see segment_image.

    ValueError for an empty list; TypeError for a path, or an argument of another kind.
    """
    check_settings(models, thresholds, seeding)
    check_pictures(images)
    arrays = [own_rgb(image) for image in images]
    if isinstance(prompt, Clicks):
        return [_from_clicks(models, image, prompt) for image in arrays]
    found = find_seeds(models, arrays, prompt, thresholds, seeding)
    hits = [i for i, seeds in enumerate(found) if len(seeds)]
    if hits:  # a picture without a detection needs no masks
        with models.stage("encode"):
            encoded = models.predictor.encode([arrays[i] for i in hits])
    objects = {i: _from_seeds(models, found[i], encoded, row) for row, i in enumerate(hits)}
    return [
        Segmented(array, objects.get(i, []), best=found[i].best, heat=found[i].heat) for i, array in enumerate(arrays)
    ]


def segment_video(
    models: Models,
    frames: Iterable[Picture],
    prompt: Prompt,
    thresholds: Thresholds = Thresholds(),
    seed_frame: int | None = None,
    redetect: int = 0,
    direction: str = FORWARD,
    seeding: Seeding = Seeding(),
    propagate: str = MEMORY,
    refine_every: int = 1,
    identity: bool = True,
) -> Iterator[Segmented]:
    """Yield each frame with the objects on it, as it is read: stop whenever you like. Arguments: see Tracking.

    Each call tracks by itself: several threads may go through videos of their own with the same models.
    """
    check_frames(frames)  # now, and not when the first frame is asked for
    settings = (thresholds, seed_frame, redetect, direction, seeding, propagate, refine_every, identity)
    return Tracking(models, prompt, *settings).run(frames)


def check_pictures(images: Sequence[Picture]) -> None:
    """TypeError or ValueError for what holds no pictures: None, one picture, a path, an empty list."""
    check_list(images, ", or call segment_image")
    if not len(images):
        raise ValueError("images is empty: give at least one picture")
    for image in images:
        if not isinstance(image, (Image.Image, np.ndarray)):
            raise TypeError(f"a picture is a PIL image or an array, not a {type(image).__name__}{hint_for(image)}")


def _from_seeds(models: Models, seeds: Seeds, encoded: EncodedImages, row: int) -> list[Segment]:
    """Objects by what a sentence found on image number `row` of those that are encoded."""
    with models.stage("masks"):
        seeds = split_seeds(models, seeds, encoded, row)
        if any(seed.proposed or seed.points for seed in seeds.objects):  # points may differ in number
            found = choose_masks(models, seeds, encoded, row)
        else:  # boxes, all at once
            masks = models.predictor.predict(boxes=seeds.boxes, image=row, encoded=encoded).masks[:, 0].cpu().numpy()
            found = list(zip(seeds.objects, masks))
    if seeds.heat:  # boxes of a detector went through its own suppression
        found = [found[i] for i in first_of_repeats([seed.label for seed, _ in found], [mask for _, mask in found])]
    return [Segment(number, seed.label, seed.score, seed.box, mask) for number, (seed, mask) in enumerate(found, 1)]


def _from_clicks(models: Models, image: np.ndarray, clicks: Clicks) -> Segmented:
    """Objects of boxes, points and masks, each with SAM 2's own score."""
    clicks.check_inside(image.shape[:2])
    prompts = clicks.prompts()
    for prompt in prompts:
        if prompt.at:
            raise ValueError(f"object {prompt.id}: at={prompt.at}: a picture has one frame, which is 0")
    with models.stage("encode"):
        encoded = models.predictor.encode([image])
    objects = []
    for prompt in prompts:
        seed = seed_of_prompt(prompt, image.shape[:2])
        with models.stage("masks"):
            mask, score = segment_seed(models, seed, encoded)
        objects.append(Segment(prompt.id, seed.label, score, seed.box or box_around(mask), mask))
    return Segmented(image, objects)
