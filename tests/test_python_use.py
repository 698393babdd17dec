"""minisam_glue from a script of one's own: pictures in memory, results, settings, copies, PyTorch's modes."""

import copy
import inspect
import pickle
import random
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import clipseg_tiny, gdino_tiny, sam2_tiny
from helpers.squares import film, picture
from helpers.tiny_segment import tiny_models
from PIL import Image
from torch import nn

from minisam_glue import Clicks, ObjectPrompt, load_models, pipeline, sam2, segment_image, segment_images, segment_video
from minisam_glue.clipseg import HeatMapper
from minisam_glue.flow import window_taps
from minisam_glue.grounding_dino import Detector, accelerate
from minisam_glue.grounding_dino.detector import pack_captions
from minisam_glue.media import read_image
from minisam_glue.models import Models
from minisam_glue.prompts import Seeding, Thresholds
from minisam_glue.propagation import Tracking
from minisam_glue.propagators import FlowPropagator, MemoryPropagator
from minisam_glue.sam2 import ImagePredictor, VideoTracker
from minisam_glue.sam2.fast import rotary_table, sine_table
from minivit import checkpoint, run

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


def test_what_is_above_0_in_a_mask_is_the_object(models):
    shown = np.zeros((40, 56), bool)
    shown[10:22, 5:15] = True
    masks = shown, np.where(shown, 3.0, -1.0), torch.from_numpy(shown).half(), shown.tolist()
    one, *others = (segment_image(models, picture(5), Clicks(masks=[mask])).masks for mask in masks)
    assert one.any() and all(np.array_equal(one, other) for other in others)
    assert ObjectPrompt(mask=masks[1]).as_json() == ObjectPrompt(mask=shown).as_json()


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

    before, threads = surroundings(), set(threading.enumerate())
    frames = segment_video(models, film(3), "bright.", redetect=1)
    next(frames)
    assert surroundings() == before  # between two frames, too
    list(frames)
    segment_images(models, [picture(5)], BOX)
    assert surroundings() == before and set(threading.enumerate()) <= threads


def test_another_default_precision_of_pytorch_changes_nothing():
    sam, grounding, clipseg = sam2_tiny.tiny_model(fast=True), gdino_tiny.tiny_model(), clipseg_tiny.tiny_model()

    def run() -> list:
        for table in (sine_table, rotary_table, window_taps):
            table.cache_clear()
        detector = Detector(accelerate(grounding), gdino_tiny.TOKENIZER, 64, 96)
        found = detector.detect(picture(5), "red car. dog.", box_threshold=0.0, text_threshold=0.0)
        heat = HeatMapper(clipseg, clipseg_tiny.TOKENIZER, 32).heat_maps([picture(5)], ["dog"])
        logits = []
        for tracker in (MemoryPropagator(sam), FlowPropagator(sam), VideoTracker(sam, max_hole=8)):
            tracker.seek(0, picture(5))
            tracker.prompt(1, points=[(9, 15)], labels=[1])
            tracker.prompt(2, box=(20, 10, 40, 30))
            tracker.seek(1, picture(8))
            logits.append(tracker.track().low_res)
        clicks = Clicks(boxes=[(5, 10, 15, 22), (20, 10, 40, 30)])
        masks = segment_image(Models(None, sam), picture(5), clicks).masks
        return [found.boxes, found.scores, heat, *logits, torch.from_numpy(masks)]

    want = run()
    torch.set_default_dtype(torch.float64)
    try:
        got = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in want]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_another_default_device_of_pytorch_changes_nothing():
    def run() -> list:
        masks = []
        for method in ("detector", "clipseg"):
            models = load_models("demo", device="cpu", method=method, size=64)
            masks.append(segment_image(models, film(1)[0], "red square. black square.").masks)
        masks.append(segment_image(models, film(1)[0], Clicks(boxes=[(5, 10, 15, 22)])).masks)
        for settings in ({"direction": "both", "redetect": 1}, {"propagate": "flow"}):
            masks += [result.masks for result in segment_video(models, film(3), "red square.", **settings)]
        masks += [result.masks for result in segment_video(models, film(3), Clicks(points=[(9, 15, 1)]))]
        return masks

    want = run()
    torch.set_default_device("meta")
    try:
        got = run()
        read = checkpoint.read(checkpoint.DEMO)
    finally:
        torch.set_default_device(None)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(tensor.device.type == "cpu" for tensor in checkpoint.weights_of(read).values())


# --- Models that are changed -------------------------------------------------------------------------------


class WithAdapter(nn.Linear):
    """A linear layer with something added beside its weights, as LoRA does."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.mean(-1, keepdim=True)


def with_adapters(model: nn.Module) -> nn.Module:
    """A copy of a model whose linear layers all have an adapter."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WithAdapter
    return model


def track_two_frames(sam) -> torch.Tensor:
    tracker = VideoTracker(sam)
    tracker.step(picture(5))
    tracker.prompt(1, box=(5, 10, 15, 22))
    return tracker.step(picture(8)).low_res


def similarities(grounding) -> torch.Tensor:
    detector = Detector(grounding, gdino_tiny.TOKENIZER, 64, 96)
    captions = pack_captions(["red car", "dog"], gdino_tiny.TOKENIZER)
    return detector.run([picture(5)], [captions], 1)[0][0][1]


@pytest.mark.parametrize(
    "answer, model, switch",
    [(track_two_frames, sam2_tiny.tiny_model, sam2.accelerate), (similarities, gdino_tiny.tiny_model, accelerate)],
)
def test_adapters_in_linear_layers_act_in_the_fast_forms_too(answer, model, switch):
    plain = model()
    changed = with_adapters(plain)
    want = answer(changed)
    assert (want - answer(plain)).abs().max() > 1e-3
    torch.testing.assert_close(answer(switch(copy.deepcopy(changed))), want, atol=1e-4, rtol=1e-4)


def test_the_memory_alone_can_be_trained_in_the_fast_form():
    plain, gradients = sam2_tiny.tiny_model(), []
    for model in (plain, sam2.accelerate(copy.deepcopy(plain))):
        attention = model.memory_attention.layers[0].cross_attn_image
        side, dim = model.config.image_size // 16, model.config.dim
        generator = torch.Generator().manual_seed(0)
        q = torch.randn(1, side**2, dim, generator=generator)
        memory = torch.randn(1, side**2, model.config.mem_dim, generator=generator)
        memory.requires_grad_()
        attention.requires_grad_(False)
        attention(q, memory, memory).square().sum().backward()
        gradients.append(memory.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_each_argument_of_segment_video_reaches_the_tracking(monkeypatch):
    given, signature = [], inspect.signature(Tracking)
    fake = SimpleNamespace(run=iter)
    monkeypatch.setattr(pipeline, "Tracking", lambda *a, **k: given.append(signature.bind(*a, **k).arguments) or fake)
    wanted = {
        "thresholds": Thresholds(0.3),
        "seed_frame": 4,
        "redetect": 3,
        "direction": "both",
        "seeding": Seeding(("points",)),
        "propagate": "flow",
        "refine_every": 2,
        "identity": False,
    }
    assert next(segment_video("models", ["frame"], "car.", **wanted)) == "frame"
    assert given == [{"models": "models", "prompt": "car."} | wanted]


def test_the_threads_that_are_asked_for_are_set_and_none_where_nobody_asks(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads in ({}, {"threads": 0}, {"threads": 3}):
        assert run.set_up_machine({"device": "cpu", **threads}) == torch.device("cpu")
    assert asked == [3]
