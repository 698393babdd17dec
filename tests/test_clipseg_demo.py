"""Training and evaluating the demo CLIPSeg."""

import json
from dataclasses import replace
from types import SimpleNamespace

import compare_methods
import numpy as np
import pytest
import torch

from minisam_glue.clipseg import PRESETS
from minisam_glue.demo import FOLDER, HEAT_SIZE, SEGMENTER, clip_tokenizer, load_heat_mapper
from minisam_glue.demo.evaluate_clipseg import evaluate_floors, evaluate_heat_maps, evaluate_heat_to_masks
from minisam_glue.demo.scenes import Phrase, scene
from minisam_glue.demo.train_clipseg import (
    FIGURE,
    NEARBY,
    NOBODY,
    WINDOW,
    CLIPSegTask,
    Recipe,
    absent_wish,
    cut,
    cut_figure,
    dice_loss,
    numbered_scene,
    owners_of_tokens,
    random_phrases,
    random_places,
    target_of,
    tile,
    window_states,
)
from minisam_glue.demo.train_detector import NAMES
from minisam_glue.demo.training import Trainer
from minisam_glue.heatmap import HeatSettings
from minisam_glue.models import load_models
from minisam_glue.pipeline import segment_image
from minisam_glue.prompts import Seeding
from minisam_glue.weights import WeightsError

GRID = HEAT_SIZE // 8  # patches on a side of a whole scene
RECIPE = Recipe(steps=4, batch_size=1, warmup_steps=2, naming_steps=1, whole_from=3, phrases=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps: names of single figures, heat maps of single figures, of windows and of a whole scene."""
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
    s, picture = scene(3), numbered_scene(3)
    figure = s.figures[0]
    phrase = Phrase("it", figure.colour, figure.shape)
    mask = s.masks[[phrase.matches(f) for f in s.figures]].any(0)
    assert np.array_equal(target_of(picture, phrase).numpy() > 0, mask)
    assert not target_of(picture, Phrase("a dog", None, "dog")).any()


def test_every_other_phrase_names_nothing_that_is_shown_and_mostly_shares_a_word_with_it():
    rng = np.random.default_rng(0)
    present, absent, shared = [], [], []
    for number in range(40):
        picture = numbered_scene(number)
        phrases = random_phrases(rng, picture, 4)
        shown = [bool(target_of(picture, phrase).any()) for phrase in phrases]
        present += shown[::2]
        absent += shown[1::2]
        shared += [any(p.colour == f.colour or p.shape == f.shape for f in picture.figures) for p in phrases[1::2]]
    assert 0.5 < np.mean(present) < 0.95 and np.mean(absent) < 0.05 and np.mean(shared) > 0.7


def test_a_wish_for_what_is_absent_mostly_shares_a_word_with_a_figure_and_seldom_means_it():
    rng, figure = np.random.default_rng(0), scene(0).figures[0]
    wishes = [Phrase("", *absent_wish(rng, figure)) for _ in range(400)]
    assert np.mean([wish.matches(figure) for wish in wishes]) < 0.2
    assert 0.5 < np.mean([wish.colour == figure.colour or wish.shape == figure.shape for wish in wishes]) < 1


def test_dice_is_nothing_for_the_truth_and_grows_with_what_an_empty_map_shows():
    target = torch.zeros(2, 8, 8)
    target[0, 2:6, 2:6] = 1
    assert float(dice_loss(40 * target - 20, target)) < 1e-4
    assert float(dice_loss(20 - 40 * target, target)) > 0.9
    empty, dark = torch.zeros(1, 8, 8), torch.full((1, 8, 8), -20.0)
    spot = dark.clone()
    spot[0, 0, 0] = 20.0
    assert float(dice_loss(dark, empty)) < 1e-4 < 0.5 < float(dice_loss(spot, empty))


def test_every_weight_learns_from_heat_maps_and_the_decoder_alone_not_from_names():
    task = CLIPSegTask(RECIPE)
    model = task.build()
    for step, idle in ((0, {"decoder"}), (2, set())):
        model.zero_grad()
        task.losses(model, task.batch(step, step))["total"].backward()
        assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is None} == idle


def test_figures_begin_large_and_upright_on_plain_ground_and_end_of_any_size():
    easy, hard = ([tile(np.random.default_rng(i), difficulty) for i in range(40)] for difficulty in (0.0, 1.0))
    shares = [[(picture.owners == 0).mean() for picture in pictures] for pictures in (easy, hard)]
    assert min(shares[0]) > 0.1 and min(shares[1]) < 0.07 < 0.25 < max(shares[1])
    assert all(abs(picture.figures[0].angle) == 0 for picture in easy)
    assert len({(picture.figures[0].colour, picture.figures[0].shape) for picture in easy}) > 20
    assert max(abs(picture.figures[0].angle) for picture in hard) > 2


def test_a_cut_keeps_owners_on_their_figures():
    rng = np.random.default_rng(0)
    for number in range(6):
        picture = numbered_scene(number)
        whole = cut(picture, rng, 64, 1.0)
        assert whole.image.shape == (64, 64, 3)
        shares = [[(p.owners == i).mean() for i in range(len(p.figures))] for p in (picture, whole)]
        assert np.allclose(*shares, atol=0.01)
        for i in range(len(picture.figures)):
            if shares[1][i] > 0.03:
                inks = [p.image[p.owners == i].mean(0) for p in (picture, whole)]
                assert np.abs(inks[0] - inks[1]).max() < 12


def test_a_picture_of_the_whole_grid_goes_through_the_encoder_as_ever():
    vision = CLIPSegTask(RECIPE).build().clip.vision_model
    images, places = torch.randn(1, 3, HEAT_SIZE, HEAT_SIZE), torch.arange(GRID**2)[None]
    ours, theirs = window_states(vision, images, places), vision.hidden_states(images)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_windows_lie_inside_of_the_grid_row_by_row():
    places = random_places(np.random.default_rng(0), 200, 6, 24)
    rows, columns = places // 24, places % 24
    assert places.shape == (200, 36) and len({int(p[0]) for p in places}) > 100
    for cells in (rows, columns):
        assert int(cells.min()) == 0 and int(cells.max()) == 23
        assert bool((cells - cells[:, :1] < 6).all())
    assert bool((places[:, 1] - places[:, 0] == 1).all()) and bool((places[:, 6] - places[:, 0] == 24).all())


def test_heads_begin_with_the_patch_at_their_own_offset():
    model = CLIPSegTask(RECIPE).build()
    vision, grid = model.clip.vision_model, GRID
    attention, C = vision.encoder["layers"][0].self_attn, 128
    table = vision.embeddings.position_embedding.weight[1:]
    x = torch.nn.functional.layer_norm(table, (C,))
    q, k = (proj(x).view(grid**2, attention.num_heads, -1) for proj in (attention.q_proj, attention.k_proj))
    row, column = 12, 10
    for head, (down, right) in enumerate(NEARBY[0]):
        best = int((q[row * grid + column, head] @ k[:, head].T).argmax())
        assert (best // grid, best % grid) == (row + down, column + right)


def test_steps_name_single_figures_then_show_them_and_windows_in_turn_then_whole_scenes():
    task = CLIPSegTask(RECIPE)
    batches = [task.batch(step, step) for step in range(4)]
    sides = [(32, FIGURE), (8, FIGURE), (2, WINDOW), (1, HEAT_SIZE)]
    assert [tuple(b.images.shape) for b in batches] == [(count, 3, side, side) for count, side in sides]
    assert [b.ids.shape[1] for b in batches] == [0, 2, 4, 4]
    for batch in batches[1:]:
        assert batch.targets.shape[2:] == batch.owners.shape[1:] and batch.places.max() < GRID**2
        shown = (batch.owners >= 0) | (batch.targets.amax(1) == 0)  # what a phrase names is somebody's
        assert bool(shown.all()) and int(batch.owners.max()) < len(batch.names) < NOBODY
    assert owners_of_tokens(batches[0], 8)[:, 0].tolist() == list(range(32))
    assert (owners_of_tokens(batches[1], 8)[:, 0] == -1).all()


def test_a_run_that_begins_with_weights_shows_windows_and_figures_at_once_then_whole_scenes():
    task = CLIPSegTask(replace(RECIPE, start="clipseg.pt", steps=2_000))
    sides = [task.batch(step, step).images.shape[-1] for step in (0, 1, 1199, 1200, 1201)]
    assert sides == [WINDOW, FIGURE, FIGURE, HEAT_SIZE, HEAT_SIZE]
    assert task.batch(0, 0).ids.shape[1] == RECIPE.phrases  # names alone are for runs from nothing


def test_a_figure_cut_from_a_scene_is_whole_and_alone():
    rng = np.random.default_rng(0)
    for number in range(8):
        picture = numbered_scene(number)
        for i, figure in enumerate(picture.figures):
            alone = cut_figure(picture, i, rng, FIGURE)
            assert alone.figures == [figure] and set(np.unique(alone.owners)) <= {0, NOBODY}
            rows, columns = np.nonzero(alone.owners == 0)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 > 0.3 * FIGURE
            assert (alone.owners[FIGURE // 4 : -FIGURE // 4, FIGURE // 4 : -FIGURE // 4] == 0).any()


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
    assert nothing["heat_iou"] == 0 and nothing["heat_true_negative_rate"] == 1


def test_from_the_true_heat_maps_sam_2_makes_the_masks_of_the_objects():
    models, scenes = load_models("demo", detector=None, device="cpu"), [scene(seed) for seed in range(8)]
    metrics = evaluate_heat_to_masks(Oracle(scenes), models.sam, scenes)
    assert metrics["text_iou"] > 0.6 and metrics["true_negative_rate"] == 1.0
    spoiled = Oracle(scenes, lambda objects: objects or [0])
    assert evaluate_heat_to_masks(spoiled, models.sam, scenes)["true_negative_rate"] < 0.5


def test_each_floor_least_area_and_evidence_gives_what_heat_settings_of_them_give():
    models, scenes = load_models("demo", detector=None, device="cpu"), [scene(seed) for seed in range(3)]
    oracle = Oracle(scenes)
    rows = evaluate_floors(oracle, models.sam, scenes, (0.6, 1.0), (60, 3000), (0.0, 1.7))
    found = {(row.pop("floor"), row.pop("min_area"), row.pop("evidence")): row for row in rows}
    assert len(found) == 8
    for area, evidence in ((60, 0.0), (60, 1.7), (3000, 0.0)):
        seeding = Seeding(heat=HeatSettings(floor=0.6, min_area=area, evidence=evidence))
        assert found[0.6, area, evidence] == evaluate_heat_to_masks(oracle, models.sam, scenes, seeding)
    values = [found[key]["text_iou"] for key in ((0.6, 60, 0.0), (0.6, 3000, 0.0), (1.0, 60, 0.0))]
    assert values[0] > values[1] > values[2] == 0  # logits of 6 are not 1.0
    assert values[0] > found[0.6, 60, 1.7]["text_iou"] > 0
    with pytest.raises(ValueError, match="floor 0.3: give 0.5 or more"):
        evaluate_floors(oracle, models.sam, scenes, (0.3,))


def test_methods_are_compared_on_the_same_scenes(trained, capsys):
    compare_methods.main(
        ["--scenes", "2", "--clips", "0", "--first-seed", "5", "--clipseg", str(trained / "clipseg.pt")]
    )
    metrics = json.loads(capsys.readouterr().out)
    scenes = [scene(5), scene(6)]
    named, absent = sum(label >= 0 for s in scenes for label in s.labels), sum(bool(s.absent) for s in scenes)
    for method in ("detector", "clipseg"):
        assert metrics[method]["text_objects"] == named and metrics[method]["negative_scenes"] == absent > 0
    assert metrics["detector"]["text_iou"] > 0.5 > metrics["clipseg"]["text_iou"]  # four steps teach nothing


def test_a_comparison_without_weights_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        compare_methods.main(["--clipseg", str(tmp_path / "none.pt")])
    assert end.value.code == 2 and "none.pt" in capsys.readouterr().err.splitlines()[-1]


def test_clips_of_four_kinds_in_turn_are_tracked_by_memory_and_flow(monkeypatch, capsys):
    def measure(segmenter, films, trackers):
        return {name: SimpleNamespace(metrics=lambda: [film.kind for film in films]) for name in trackers}

    monkeypatch.setattr(compare_methods, "measure_trackers", measure)
    compare_methods.main(["--scenes", "0", "--clips", "4", "--first-seed", "8"])
    kinds = ["free", "crossing", "occlusion", "leaving"]
    printed = json.loads(capsys.readouterr().out)
    names = ["memory", "memory, with the rules of --identity", "flow", "flow, each third frame"]
    assert printed == dict.fromkeys(names, kinds)
