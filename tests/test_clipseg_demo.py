"""Training and evaluating the demo CLIPSeg."""

import json

import numpy as np
import pytest
import torch

from minisam_glue.clipseg import PRESETS
from minisam_glue.demo import FOLDER, SEGMENTER, clip_tokenizer, load_heat_mapper
from minisam_glue.demo.evaluate_clipseg import evaluate_heat_maps, evaluate_heat_to_masks
from minisam_glue.demo.scenes import Phrase, scene
from minisam_glue.demo.train_clipseg import (
    SIDE,
    CLIPSegTask,
    Recipe,
    dice_loss,
    figure_grid,
    random_phrases,
    shifted,
    target_of,
    tile,
)
from minisam_glue.demo.train_detector import NAMES
from minisam_glue.demo.training import Trainer
from minisam_glue.models import load_models
from minisam_glue.pipeline import segment_image
from minisam_glue.weights import WeightsError

RECIPE = Recipe(steps=4, batch_size=2, warmup_steps=2, figure_steps=2, phrases=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps: two on figures alone, two on all kinds of pictures."""
    folder = tmp_path_factory.mktemp("run")
    Trainer(CLIPSegTask(RECIPE), folder, "cpu").run(0)
    return folder


class Oracle:
    """Answers with heat maps of the truth, 96 x 96, or of what `spoil` makes of the objects of a phrase."""

    def __init__(self, scenes, spoil=lambda objects: objects):
        self.by_image, self.spoil = {s.image.tobytes(): s for s in scenes}, spoil

    def heat_maps(self, images, phrases):
        (s,) = (self.by_image[image.tobytes()] for image in images)
        maps = torch.full((1, len(phrases), 96, 96), -6.0)
        for number in range(len(phrases)):
            objects = self.spoil([i for i, label in enumerate(s.labels) if label == number])
            if objects:
                mask = torch.from_numpy(s.masks[objects].any(0))[None, None].float()
                maps[0, number] = 12 * torch.nn.functional.interpolate(mask, (96, 96))[0, 0] - 6
        return maps


def test_the_preset_fits_the_tokenizer_which_spells_what_it_does_not_know():
    tokenizer, config = clip_tokenizer(), PRESETS["demo"].clip.text
    assert config.vocab_size == len(tokenizer.ids) and tokenizer.ids["<|endoftext|>"] == config.vocab_size - 1
    for colour in NAMES["colour"]:
        for shape in NAMES["shape"]:
            assert len(tokenizer.encode(f"the {colour} {shape}")) <= 12
    assert len(tokenizer.encode("zyx")) == 5


def test_targets_lie_where_the_objects_of_a_phrase_are():
    s = scene(3)
    figure = s.figures[0]
    phrase = Phrase("it", figure.colour, figure.shape)
    target = target_of(s, phrase, 64)
    mask = s.masks[[phrase.matches(f) for f in s.figures]].any(0)
    assert target.shape == (64, 64) and float(target.mean()) == pytest.approx(mask.mean(), abs=0.01)
    assert not target_of(s, Phrase("a dog", None, "dog"), 64).any()


def test_phrases_for_a_scene_name_what_is_there_and_what_is_not():
    rng = np.random.default_rng(0)
    shown = [
        any(phrase.matches(figure) for figure in s.figures)
        for s in map(scene, range(20)) for phrase in random_phrases(rng, s, 8)
    ]  # fmt: skip
    assert len(shown) == 160 and 0.5 < np.mean(shown) < 0.95


def test_dice_is_nothing_for_the_truth_and_without_anything_to_show():
    target = torch.zeros(2, 8, 8)
    target[0, 2:6, 2:6] = 1
    assert float(dice_loss(40 * target - 20, target)) < 1e-4
    assert float(dice_loss(20 - 40 * target, target)) > 0.9
    assert float(dice_loss(torch.randn(2, 8, 8), torch.zeros(2, 8, 8))) == 0


def test_every_weight_learns_from_every_step():
    task = CLIPSegTask(RECIPE)
    model = task.build()
    task.losses(model, task.batch(0, 0))["total"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_figures_begin_large_and_upright_on_plain_ground_and_end_of_any_size():
    easy, hard = ([tile(np.random.default_rng(i), difficulty) for i in range(40)] for difficulty in (0.0, 1.0))
    assert all(abs(figure.angle) == 0 and mask.mean() > 0.15 for _, mask, figure in easy)
    assert len({(figure.colour, figure.shape) for _, _, figure in easy}) > 20
    areas = [mask.mean() for _, mask, _ in hard]
    assert min(areas) < 0.1 and max(areas) > 0.3
    assert max(abs(figure.angle) for _, _, figure in hard) > 2


def test_a_grid_moved_around_its_border_keeps_each_mask_on_its_figure():
    grid = figure_grid(np.random.default_rng(0), 0.0)
    moved = shifted(grid, 10, -20)
    assert len(grid.masks) == 9 and grid.image.shape == (SIDE, SIDE, 3)
    for before, after in zip(grid.masks, moved.masks):
        assert before.sum() == after.sum() and not np.array_equal(before, after)
        assert np.array_equal(np.sort(grid.image[before], 0), np.sort(moved.image[after], 0))


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(trained, tmp_path):
    task = CLIPSegTask(RECIPE)
    first = Trainer(task, tmp_path, "cpu")
    for step in range(3):
        first.update(task.batch(step, step))
    first.save()
    again = Trainer(task, tmp_path, "cpu")
    assert again.step == 3
    again.run(0)
    whole, resumed = (torch.load(f / "clipseg.pt", weights_only=True)["model"] for f in (trained, tmp_path))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]


def test_the_weights_of_a_run_are_used_by_method_clipseg(trained, tmp_path):
    for source in (trained / "clipseg.pt", FOLDER / SEGMENTER):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    models = load_models(tmp_path, method="clipseg", device="cpu", heat_size=64)
    assert models.detector is None and models.heat_mapper.size == 64 and models.demo
    assert segment_image(models, scene(1).image, "red circle. blue star.").best is not None
    assert load_heat_mapper(trained / "clipseg.pt").templates == ("{}",)
    (tmp_path / "clipseg.pt").unlink()
    with pytest.raises(WeightsError, match=r"clipseg.pt is missing: .*train_clipseg makes it"):
        load_models(tmp_path, method="clipseg")


def test_the_truth_reaches_full_marks_and_nothing_none():
    scenes = [scene(seed) for seed in range(8)]
    assert evaluate_heat_maps(Oracle(scenes), scenes)["heat_iou"] > 0.8
    nothing = evaluate_heat_maps(Oracle(scenes, lambda objects: []), scenes)
    assert nothing["heat_iou"] == 0 and nothing["heat_silence"] == 1


def test_from_the_true_heat_maps_sam_2_makes_the_masks_of_the_objects():
    models, scenes = load_models("demo", detector=None, device="cpu"), [scene(seed) for seed in range(8)]
    metrics = evaluate_heat_to_masks(Oracle(scenes), models.sam, scenes)
    assert metrics["text_iou"] > 0.6 and metrics["text_silence"] == 1.0
    spoiled = evaluate_heat_to_masks(Oracle(scenes, lambda objects: objects or [0]), models.sam, scenes)
    assert spoiled["text_silence"] < 0.5
