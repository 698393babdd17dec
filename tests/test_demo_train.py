"""Training and evaluating the demo detector."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.demo_training import RECIPE, Oracle

from minisam_glue.boxes import cxcywh_to_xyxy
from minisam_glue.demo import VOCABULARY, load_detector
from minisam_glue.demo.evaluate import attributes, average_precision, evaluate_detector, hits
from minisam_glue.demo.scenes import TRAINING_FROM, scene
from minisam_glue.demo.train_detector import (
    EVALUATED,
    FIGURE_SCENES,
    NAMES,
    DetectorTask,
    Recipe,
    cells_of_objects,
    collate,
    cut_out,
    mosaic,
    name_all,
    naming_losses,
    owners_of_cells,
)
from minisam_glue.demo.training import Trainer, command, export
from minisam_glue.grounding_dino import PRESETS, Detections, Detector, WordPieceTokenizer
from minisam_glue.grounding_dino.losses import Target
from minisam_glue.pixels import IMAGENET_MEAN, IMAGENET_STD
from minisam_glue.support.lock import FolderLock

TOKENIZER = WordPieceTokenizer.load(VOCABULARY)
TASK = DetectorTask(RECIPE)


@pytest.mark.slow  # 45 s
def test_training_overfits_four_scenes(tmp_path):
    recipe = Recipe(steps=160, warmup_steps=15, lr=1e-3, ema_decay=0.9, figure_steps=0)
    trainer = Trainer(DetectorTask(recipe), tmp_path, "cpu")
    scenes = [scene(seed, (80, 80)) for seed in range(4)]
    batch = collate(scenes, TOKENIZER, 80)
    losses = [float(trainer.update(batch)["total"].detach()) for _ in range(160)]
    assert losses[-1] < 0.1 * losses[0]
    metrics = evaluate_detector(Detector(trainer.ema, TOKENIZER, 80, 160), scenes)
    assert metrics["ap50"] > 0.95 and metrics["attributes"] == metrics["true_negative_rate"] == 1.0


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed, (64, 80)) for seed in range(30)]


def test_the_preset_fits_its_vocabulary():
    config = PRESETS["demo"]
    assert config.bert.vocab_size == len(TOKENIZER)
    assert config.separators == tuple(TOKENIZER.ids[token] for token in ("[CLS]", "[SEP]", ".", "?"))


def test_every_caption_is_spelt_without_unknown_words():
    for seed in range(60):
        for phrase in scene(seed, (48, 48)).phrases:
            pieces = TOKENIZER.pieces(phrase.text)
            assert TOKENIZER.unknown not in pieces
            if phrase.shape is None or phrase.shape in TOKENIZER.ids:
                assert len(pieces) == len(phrase.text.split())  # its own words are whole
    assert TOKENIZER.unknown not in TOKENIZER.pieces("a zebra's 42nd violin")


def test_targets_are_the_boxes_and_tokens_of_the_named_objects(scenes):
    batch = collate(scenes[:8], TOKENIZER, 64)
    assert batch.images.shape == (8, 3, 64, 80)
    for s, target, ids, valid in zip(scenes, batch.targets, batch.ids, batch.valid):
        named = [i for i, label in enumerate(s.labels) if label >= 0]
        boxes = cxcywh_to_xyxy(target.boxes) * torch.tensor([80, 64, 80, 64])
        assert torch.allclose(boxes, torch.from_numpy(s.boxes[named]), atol=1e-3)
        for row, i in zip(target.tokens, named):
            assert TOKENIZER.join(ids[: len(row)][row].tolist()) == s.phrases[s.labels[i]].text.lower()
        assert (ids[~valid] == TOKENIZER.ids["[PAD]"]).all() and ids[valid][-1] == TOKENIZER.sep


def test_the_cells_of_an_object_are_those_in_its_middle_on_the_level_of_its_size():
    shapes = ((10, 20), (5, 10), (3, 5), (2, 3))
    tokens = torch.eye(3, dtype=torch.bool)
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.26, 0.31, 0.03, 0.05], [0.5, 0.5, 0.9, 0.9]])
    (wanted,) = cells_of_objects(shapes, [Target(boxes, tokens)], 4, torch.device("cpu"))
    fine, middle, _, coarse = (part.view(*shape, 4) for part, shape in zip(wanted.split([200, 50, 15, 6]), shapes))
    assert middle[..., 0].nonzero().tolist() == [[2, 4], [2, 5]]  # the nearest ones
    assert fine[..., 1].nonzero().tolist() == [[3, 5]]  # too small to have a cell in its middle
    assert coarse[..., 2].nonzero().tolist() == [[0, 1], [1, 1]] and not wanted[:, 3].any()
    assert wanted.sum() == 5


def test_training_never_draws_a_held_out_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "minisam_glue.demo.train_detector.scene", lambda seed, size: drawn.append(seed) or scene(seed, size)
    )
    for step in range(RECIPE.steps):
        TASK.batch(step, step)
    assert len(drawn) == len(set(drawn)) == FIGURE_SCENES + 2 * 4 + 2  # figures, a mosaic, scenes, a mosaic
    assert min(drawn) == TRAINING_FROM > max(EVALUATED)
    drawn_here = set(drawn)
    TASK.batch(2, 7)  # as another process would
    assert not drawn_here & set(drawn[len(drawn_here) :])


def test_every_mosaic_of_a_batch_has_four_scenes(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "minisam_glue.demo.train_detector.mosaic", lambda scenes: drawn.append(len(scenes)) or mosaic(scenes)
    )
    for batch_size in (1, 2, 3):
        DetectorTask(replace(RECIPE, batch_size=batch_size)).batch(RECIPE.figure_steps, 0)
    assert drawn == [4, 4, 4, 4]


def test_a_cut_out_has_its_figure_in_the_middle(scenes):
    one = [replace(s, boxes=s.boxes[-1:], figures=s.figures[-1:]) for s in scenes]  # what lies on top
    figures = cut_out(one, 0.6, np.random.default_rng(0))
    assert figures.images.shape == (len(scenes), 3, 48, 48)
    close = 0
    for image, (colour, shape), s in zip(figures.images, figures.names, one):
        assert (NAMES["colour"][colour], NAMES["shape"][shape]) == (s.figures[0].colour, s.figures[0].shape)
        shown = image.permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
        close += bool(((shown[18:30, 18:30] - torch.tensor(s.figures[0].rgb)).abs().amax(2) < 0.2).any())
    assert close > 0.8 * len(scenes)


def test_in_a_mosaic_all_objects_keep_their_place_their_mask_and_both_names(scenes):
    pictures = [mosaic(scenes[:4]), mosaic(scenes[4:8])]
    batch = name_all(pictures, TASK.words, 128)
    assert batch.images.shape == (2, 3, 128, 160) and len(batch.names) == sum(len(s.boxes) for s in scenes[:8])
    number = 0
    for k, s in enumerate(scenes[:8]):
        y, x = divmod(k % 4, 2)
        picture, target = pictures[k // 4], batch.targets[k // 4]
        first = sum(len(s.boxes) for s in scenes[k // 4 * 4 : k])
        quarter = (slice(64 * y, 64 * y + 64), slice(80 * x, 80 * x + 80))
        assert np.array_equal(picture.image[quarter], s.image)
        for i, (box, figure) in enumerate(zip(s.boxes, s.figures)):
            assert torch.equal(batch.owners[k // 4][quarter] == number, torch.from_numpy(s.masks[i]))
            placed = cxcywh_to_xyxy(target.boxes[first + i]) * torch.tensor([160, 128, 160, 128])
            assert torch.allclose(placed, torch.from_numpy(box) + torch.tensor([80 * x, 64 * y] * 2), atol=1e-3)
            named = batch.ids[k // 4][target.tokens[first + i]].tolist()
            assert named == [TOKENIZER.ids[figure.colour], TOKENIZER.ids[figure.shape]]
            number += 1
    assert (batch.owners >= 0).sum() == sum(s.masks.sum() for s in scenes[:8])


def test_each_object_counts_the_same_in_the_naming_losses():
    names = torch.tensor([[0, 3], [7, 5]])
    owners = torch.tensor([[0, -1, 1, 1, 1, 1]])
    likeness = torch.zeros(1, 6, 16)
    likeness[0, :2, 0] = likeness[0, :2, 8 + 3] = 50.0  # the first is right, and what is nobody's does not matter
    losses = naming_losses(likeness, owners, names)
    assert losses["colour"] == losses["shape"] == pytest.approx(np.log(8) / 2)
    likeness[0, 2:, 7] = 50.0
    assert naming_losses(likeness, owners, names)["colour"] == pytest.approx(0, abs=1e-6)


def test_a_cell_belongs_to_what_is_seen_at_its_centre():
    owners = torch.arange(32 * 48).view(1, 32, 48)
    cells = owners_of_cells(owners, ((4, 6), (2, 3)))
    assert cells.tolist() == [
        [48 * (8 * y + 4) + 8 * x + 4 for y in range(4) for x in range(6)]
        + [48 * (16 * y + 8) + 16 * x + 8 for y in range(2) for x in range(3)]
    ]


def test_the_learning_rate_of_figures_ends_before_that_of_scenes_begins():
    recipe = Recipe(steps=1000, figure_steps=400, warmup_steps=100, cooldown=0.2)
    rates = [recipe.lr_at(step) for step in (0, 99, 199, 300, 399)]
    assert rates == pytest.approx([2e-5, 2e-3, 2e-3, 1e-3, 1e-5])
    assert [recipe.lr_at(step) for step in (400, 499, 799, 900)] == pytest.approx([1e-5, 1e-3, 1e-3, 5e-4])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, one_thread):
    whole, part = (Trainer(TASK, tmp_path / name, "cpu") for name in ("whole", "part"))
    whole.run(0)
    for step in range(2):
        part.update(TASK.batch(step, step))
    part.save()
    resumed = Trainer(TASK, tmp_path / "part", "cpu")
    assert resumed.step == 2
    resumed.run(0)
    for one, two in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key]), key
    lines = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and {"total", "similarity", "l1", "giou"} <= lines[-1].keys()


SHARED_RUN = """
import pathlib, sys
from dataclasses import replace
import torch
import torch.distributed as dist
from helpers.demo_training import RECIPE
from minisam_glue.demo.train_detector import DetectorTask
from minisam_glue.demo.training import Trainer, average_gradients
dist.init_process_group("gloo")
torch.set_num_threads(1)
out = pathlib.Path(sys.argv[1])
trainer = Trainer(DetectorTask(replace(RECIPE, processes=2)), out, "cpu", dist.get_rank())
trainer.run(0)
torch.save(trainer.model.state_dict(), out / f"rank{dist.get_rank()}.pt")
either = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(3))
((1 + dist.get_rank()) * either[dist.get_rank()](torch.ones(1))).backward()
average_gradients(either)
torch.save([float(weight.grad) for weight in either.parameters()], out / f"gradients{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its destroy_process_group hangs now and then")
def test_two_processes_share_a_run_and_end_with_the_same_weights(tmp_path):
    (tmp_path / "run.py").write_text(SHARED_RUN)
    tests = Path(__file__).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            tmp_path / "run.py",
            tmp_path,
        ],
        check=True,
        timeout=120,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"},
    )
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    (tmp_path / "alone").mkdir()
    alone = Trainer(TASK, tmp_path / "alone", "cpu")
    alone.run(0)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert not all(torch.equal(value, one[key]) for key, value in alone.model.state_dict().items())
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
    for rank in range(2):  # a weight that one process alone used, another one, and one that none used
        assert torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True) == [0.5, 1.0, 0.0]


def test_a_process_without_a_gpu_of_its_own_is_one_line(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("sys.argv", ["train", "--device", "cuda", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        command("", DetectorTask, RECIPE, "")
    assert "GPUs 0 to 1; start fewer processes" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(SystemExit, match="2"):
        command("", DetectorTask, RECIPE, "")
    assert "RANK=x" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--steps", "-5"], "'-5' is out of range: give a whole number from 1"),
        (["--batch-size", "0"], "give a whole number from 1"),
        (["--lr", "nan"], "give a number above 0"),
        (["--seed", "-1"], "give a whole number from 0"),
        (["--workers", "-1"], "give a whole number from 0"),
        (["--minutes", "nan"], "give a number above 0"),
        (["--device", "warp"], "device 'warp': there is no such device"),
        (["--start", "nowhere.pt"], "--start nowhere.pt"),
        (["--out", "taken"], "taken"),
        (["--out", "damaged"], "damaged/last.pt: it is damaged"),
        (["--out", "other"], "other/last.pt: its content lacks 'recipe'"),
        (["--out", "model"], "model/last.pt: "),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_meant_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    for name in ("damaged", "other"):
        Path(name).mkdir()
    Path("damaged/last.pt").write_bytes(b"PK" + bytes(99))
    torch.save({"step": 1}, "other/last.pt")
    if "model" in words:
        torch.save(Trainer(TASK, Path("model"), "cpu").state() | {"model": {}}, "model/last.pt")
    monkeypatch.setattr("sys.argv", ["train", "--device", "cpu", *words])
    with pytest.raises(SystemExit) as ended:
        command("", DetectorTask, RECIPE, "out")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error.splitlines()[-1] and "Traceback" not in error


def test_ctrl_c_ends_a_training_after_its_step_and_the_same_line_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--device", "cpu", "--out", str(tmp_path / "run")])
    update = Trainer.update

    def interrupted(trainer: Trainer, batch: object) -> dict:
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(SystemExit) as ended:
            command("", DetectorTask, RECIPE, "")
    assert ended.value.code == 130 and "stopped at step 2 of" in capsys.readouterr().out
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "tot')  # of a process that was killed while it wrote
    with pytest.raises(SystemExit) as ended:
        command("", DetectorTask, RECIPE, "")
    whole = Trainer(TASK, tmp_path / "whole", "cpu")
    whole.run(0)
    one, two = (torch.load(tmp_path / name / "detector.pt")["model"] for name in ("run", "whole"))
    assert ended.value.code == 0 and all(torch.equal(one[key], two[key]) for key in two)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [RECIPE.steps]


def test_two_trainings_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    lock = FolderLock(tmp_path)
    monkeypatch.setattr("minisam_glue.support.lock.PATIENCE", 0.1)
    monkeypatch.setattr("sys.argv", ["train", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        command("", DetectorTask, RECIPE, "")
    assert "another run writes into this folder" in capsys.readouterr().err
    lock.release()


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    trainer = Trainer(TASK, tmp_path, "cpu")
    next(trainer.ema.parameters()).data.fill_(torch.nan)
    trainer.step = RECIPE.steps
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        trainer.run(0)
    assert not (tmp_path / "detector.pt").exists()


def test_a_run_of_another_recipe_is_not_continued(tmp_path):
    Trainer(TASK, tmp_path, "cpu").save()
    with pytest.raises(ValueError, match="another lr:"):
        Trainer(DetectorTask(replace(RECIPE, lr=1.0, steps=5)), tmp_path, "cpu")


def test_a_run_may_be_lengthened_until_the_learning_rate_falls(tmp_path):
    plain = replace(RECIPE, cooldown=0.5, figure_steps=0)
    short, long = (DetectorTask(replace(plain, steps=steps)) for steps in (4, 8))
    assert [short.recipe.lr_at(step) / RECIPE.lr for step in range(4)] == [0.5, 1, 1, 0.5]
    trainer = Trainer(short, tmp_path, "cpu")
    trainer.run(0)
    with pytest.raises(ValueError, match="another steps"):
        Trainer(long, tmp_path, "cpu")
    (tmp_path / "plateau.pt").rename(tmp_path / "last.pt")
    longer = Trainer(long, tmp_path, "cpu")
    assert longer.step == 2 and longer.recipe.lr_at(3) == RECIPE.lr
    with pytest.raises(ValueError, match="another steps"):  # there the learning rate would have begun to fall
        Trainer(DetectorTask(replace(plain, steps=2)), tmp_path, "cpu")


def test_a_run_may_begin_with_exported_weights_and_goes_on_with_its_own(tmp_path):
    earlier = Trainer(TASK, tmp_path / "earlier", "cpu")
    for weight in earlier.ema.parameters():
        weight.data.fill_(0.25)  # a value that fp16 holds exactly
    export(earlier.ema, tmp_path / "detector.pt")
    task = DetectorTask(replace(RECIPE, start=str(tmp_path / "detector.pt")))
    trainer = Trainer(task, tmp_path / "run", "cpu")
    assert all((weight == 0.25).all() for model in (trainer.model, trainer.ema) for weight in model.parameters())
    trainer.run(0)
    (tmp_path / "detector.pt").unlink()  # a run that has begun needs the file no more
    resumed = Trainer(task, tmp_path / "run", "cpu")
    assert resumed.step == RECIPE.steps
    assert not all((weight == 0.25).all() for weight in resumed.model.parameters())


@pytest.mark.parametrize("content", [None, b"no weights", {"model": {"weight": torch.zeros(2)}}, {"step": 3}, [1]])
def test_a_start_that_is_no_weights_of_the_model_is_one_line(tmp_path, monkeypatch, capsys, content):
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "run"), "--start", str(file)])
    with pytest.raises(SystemExit) as stop:
        command("A training.", DetectorTask, RECIPE, "unused")
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert f"--start {file}" in capsys.readouterr().err.splitlines()[-1]


def test_exported_weights_load_strictly_and_are_small(tmp_path):
    trainer = Trainer(TASK, tmp_path, "cpu")
    export(trainer.ema, tmp_path / "detector.pt")
    detector = load_detector(tmp_path / "detector.pt")
    for key, value in trainer.ema.state_dict().items():
        got = detector.model.state_dict()[key]
        assert got.dtype == value.dtype and torch.allclose(got, value, rtol=1e-3, atol=1e-6), key
    assert (tmp_path / "detector.pt").stat().st_size < 5.5e6
    assert detector.detect(scene(0).image, "red circle. the squares.").best[0] in ("red circle", "the squares")


def test_the_truth_itself_scores_one(scenes):
    metrics = evaluate_detector(Oracle(scenes), scenes)
    assert metrics["ap50"] == metrics["ap"] == metrics["attributes"] == metrics["true_negative_rate"] == 1.0
    assert metrics["scenes"] == 30 and metrics["negative_scenes"] > 5


def test_wrong_phrases_and_false_alarms_cost(scenes):
    several = [s for s in scenes if len(s.phrases) > 1 and any(label >= 0 for label in s.labels)]
    metrics = evaluate_detector(Oracle(several, lambda labels: [0] * len(labels)), several)
    assert metrics["ap50"] < 0.9 and metrics["attributes"] < 0.9
    absent = [s for s in several if s.absent]
    first = evaluate_detector(Oracle(absent, lambda labels: [absent[0].absent[0]] * len(labels)), absent[:1])
    assert first["true_negative_rate"] == 0.0


def test_average_precision_of_known_lists():
    assert average_precision(np.array([0.9, 0.8]), np.array([True, True]), 2) == 1.0
    assert average_precision(np.array([0.8, 0.9]), np.array([True, False]), 1) == pytest.approx(0.5)
    assert average_precision(np.array([0.9]), np.array([True]), 2) == pytest.approx(51 / 101)
    assert average_precision(np.array([]), np.array([], dtype=bool), 3) == 0.0


def test_a_second_box_on_an_object_is_no_hit(scenes):
    s = next(s for s in scenes if s.labels[0] >= 0)
    box = torch.from_numpy(s.boxes[:1])
    twice = Detections(box.repeat(2, 1), torch.tensor([0.9, 0.8]), torch.tensor([s.labels[0]] * 2), [], ("", 0.0))
    assert hits(twice, s, 0.5) == [True, False] and attributes(twice, s) == [True, True]
