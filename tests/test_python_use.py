"""minisam_glue from a script of one's own: pictures in memory, results, settings, copies, PyTorch's modes."""

import copy
import pickle
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from helpers.squares import film, picture
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue import Clicks, ObjectPrompt, segment_image, segment_images, segment_video
from minisam_glue.media import read_image
from minisam_glue.sam2 import ImagePredictor, VideoTracker

BOX = Clicks(boxes=[(5, 10, 15, 22)])


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(autouse=True)
def one_thread_each(one_thread):
    """The sums of these small models are the same in any thread."""


def areas(results) -> list:
    return [[(o.id, int(o.mask.sum())) for o in result.objects] for result in results]


# --- Pictures in, pictures out -----------------------------------------------------------------------------


def test_frames_that_come_in_one_array_are_kept_apart(models):
    frames, buffer = film(3), np.empty_like(film(1)[0])

    def read():
        for frame in frames:
            buffer[:] = frame
            yield buffer

    results = list(segment_video(models, read(), BOX))
    assert all(np.array_equal(result.image, frame) for result, frame in zip(results, frames))


@pytest.mark.parametrize("make", [np.array, Image.fromarray])
def test_the_picture_of_a_result_is_a_copy_that_may_be_drawn_on(models, make):
    given = make(picture(5))
    found = segment_image(models, given, BOX)
    found.image[:] = 0
    found.objects[0].mask[:] = True
    assert np.array_equal(np.asarray(given), picture(5))


def test_a_picture_that_is_read_may_be_drawn_on(tmp_path):
    Image.fromarray(picture(5)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    image[0, 0] = 7
    assert image[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "image, hint",
    [
        ("a.png", "read_image"),
        (torch.zeros(3, 8, 8), "permute"),
        (np.zeros((8, 8, 3)), "astype"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8, 3), np.int64), "not an array of int64$"),
    ],
)
def test_what_is_no_picture_is_answered_with_the_way_to_one(models, image, hint):
    with pytest.raises((TypeError, ValueError), match=hint):
        segment_image(models, image, BOX)
    with pytest.raises((TypeError, ValueError), match=hint):
        next(segment_video(models, [image], BOX))


def test_no_frames_are_one_error_whatever_they_would_have_come_in(models):
    for frames in ([], iter([])):
        for prompt in (BOX, "bright."):
            with pytest.raises(ValueError, match="frames is empty"):
                list(segment_video(models, frames, prompt))


# --- Prompts and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"points": (9, 15, 1)}, {"masks": np.ones((40, 56), bool)}, {"boxes": torch.ones(4)}]
)
def test_one_box_point_or_mask_in_place_of_a_list_is_told(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is a single one: give a list of them"):
        Clicks(**given)


def test_masks_and_boxes_may_be_tensors(models):
    mask = picture(5).min(2) > 139
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = (
            segment_image(models, picture(5), Clicks(objects=[ObjectPrompt(mask=m), ObjectPrompt(box=b)]))
            for m, b in ((mask, (5, 10, 15, 22)), (torch.from_numpy(mask), torch.tensor([5, 10, 15, 22])))
        )
    assert np.array_equal(ours.masks, theirs.masks) and np.array_equal(ours.boxes, theirs.boxes)


def test_an_argument_of_another_kind_is_named_before_anything_is_computed(models):
    for name, value in (("models", models.sam), ("thresholds", 0.3), ("seeding", "box")):
        given = {"models": models, "prompt": BOX, name: value}
        with pytest.raises(TypeError, match=f"^{name} is a "):
            segment_image(image=picture(5), **given)
        with pytest.raises(TypeError, match=f"^{name} is a "):
            segment_video(frames=film(1), **given)
    with pytest.raises(ValueError, match="identity is 'off': give True or False"):
        segment_video(models, film(1), BOX, identity="off")


# --- Results as tensors and objects ------------------------------------------------------------------------


def test_masks_and_features_can_be_written_to_and_learned_from(models):
    predictor = ImagePredictor(models.sam)
    encoded = predictor.encode([picture(5)])
    found = predictor.predict(boxes=[(5, 10, 15, 22)], logits=True, encoded=encoded)
    tracker = VideoTracker(models.sam)
    tracker.step(picture(5))
    tracker.prompt(1, box=(5, 10, 15, 22))
    result = tracker.step(picture(6))
    weight = torch.ones(1, requires_grad=True)
    for value in (encoded.features.tokens, found.masks, found.scores, found.low_res, result.low_res, result.logits()):
        (value * weight).sum().backward()
        value.mul_(2)
    assert weight.grad.isfinite().all()


def test_an_object_s_number_is_a_whole_number_of_any_kind(models):
    tracker = VideoTracker(models.sam)
    tracker.step(picture(5))
    tracker.prompt(np.int64(3), box=(5, 10, 15, 22))
    assert [type(number) for number in tracker.prompt(3, box=(5, 10, 15, 22)).ids] == [int]
    for number in ("dog", 1.5, None, True):
        with pytest.raises(ValueError, match="object_id is .*: give a whole number"):
            tracker.prompt(number, box=(5, 10, 15, 22))
    with pytest.raises(ValueError, match="no frame yet"):
        VideoTracker(models.sam).result().masks()


def test_results_are_compared_and_found_in_lists_as_objects(models):
    found = segment_image(models, picture(5, 30), "bright.")
    first, second = found.objects
    assert first == first and first != second and found.objects.index(second) == 1
    assert found != segment_image(models, picture(5, 30), "bright.")


def test_copies_of_models_give_the_same_masks(models):
    want = segment_image(models, picture(5), "bright.").masks
    for other in (copy.deepcopy(models), pickle.loads(pickle.dumps(models))):
        assert np.array_equal(segment_image(other, picture(5), "bright.").masks, want)
        assert other.sam is not models.sam and other.predictor.model is other.sam and not other.ended.is_set()
    assert len(repr(models)) < 100 and "cpu" in repr(models)


# --- The process around the call ---------------------------------------------------------------------------


def test_a_call_leaves_random_numbers_threads_modes_and_warnings_as_they_are(models):
    def surroundings() -> tuple:
        return (
            *(torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
            *(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
            *(torch.is_inference_mode_enabled(), list(warnings.filters), Image.MAX_IMAGE_PIXELS),
        )

    before = surroundings()
    frames = segment_video(models, film(3), "bright.", redetect=1)
    next(frames)
    assert surroundings() == before  # between two frames, too
    list(frames)
    segment_images(models, [picture(5)], BOX)
    assert surroundings() == before and threading.active_count() == 1
