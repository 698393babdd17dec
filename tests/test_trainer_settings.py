"""Each setting of training reaches what it is about: the functions themselves have their own tests."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from minivit import checkpoint, mix, run, train
from minivit import data as datasets
from minivit.augment import Augment
from minivit.config import DEFAULTS, arguments, resolve, write_arguments
from minivit.ema import decay_ramp
from minivit.finetune import freeze
from minivit.losses import distillation_loss
from minivit.mix import one_hot
from minivit.optim import one_cycle, warmup_linear
from minivit.splits import Dataset, hold_out, subset
from minivit.train import Trainer
from minivit.train_config import TrainConfig, TrainingError
from minivit.vit import VisionTransformer, ViTConfig

MODEL = ViTConfig(image_size=16, patch=4, dim=16, depth=1, heads=2)
CONFIG = TrainConfig(epochs=4, batch_size=16, amp="off", clean_epochs=1, crop=0, flip=False, mix_prob=1.0)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return datasets.shapes(0, 60, 20, image_size=16)


TRAINING = {
    "epochs": 300,
    "batch_size": 192,
    "accumulate": 1,
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 1e-3,
    "adamw_lr": 3e-3,
    "min_lr": 1e-5,
    "warmup": 0.04,
    "weight_decay": 0.05,
    "layer_decay": 1.0,
    "train_last": None,
    "checkpointing": False,
    "balance": "none",
    "clip": 1.0,
    "amp": "auto",
    "compile": False,
    "patience": 0,
    "max_bad_steps": 20,
    "ema_start": 0.995,
    "ema_end": 0.9995,
    "sizes": (),
    "crop": 4,
    "padding": "zero",
    "flip": True,
    "alternate_flip": False,
    "trivial_augment": True,
    "jitter": 0.0,
    "rotate": 0.0,
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_prob": 0.5,
    "label_smoothing": 0.1,
    "unsmoothed_epochs": 0,
    "clean_epochs": 10,
    "distill_weight": 0.5,
    "distill_temperature": None,
    "seed": 0,
}


def test_defaults_stay_what_they_are_since_runs_from_before_a_setting_go_on_with_its_default():
    now = asdict(TrainConfig())
    assert {name: now[name] for name in TRAINING} == TRAINING  # newer settings may come


def trainer(data, path, teacher=None, model=MODEL, **settings) -> Trainer:
    torch.manual_seed(7)
    config, cpu = replace(CONFIG, **settings), torch.device("cpu")
    return Trainer(VisionTransformer(model), data, config, path, cpu, teacher)


def seen_in(t: Trainer, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loss is given in a step of this epoch."""
    seen, loss = [], t.loss
    t.loss = lambda x, target: seen.append((x, target)) or loss(x, target)
    t.epoch = epoch
    t.train_step(t.train_split.images[:16], t.train_split.labels[:16])
    return seen[0]


def test_images_are_mixed_and_augmented_until_the_clean_epochs(data, tmp_path):
    t = trainer(data, tmp_path)
    plain = t.plain(data.train.images[:16], torch.Generator())
    hard = one_hot(data.train.labels[:16], 10)
    for epoch in range(3):
        x, target = seen_in(t, epoch)
        assert not torch.equal(x, plain) and not torch.equal(target, one_hot(data.train.labels[:16], 10, 0.1))
    x, target = seen_in(t, 3)
    assert torch.equal(x, plain) and torch.equal(target, hard)
    assert torch.equal(seen_in(trainer(data, tmp_path, mix_prob=0.0, label_smoothing=0.0), 0)[1], hard)


def test_each_augmentation_is_the_one_that_was_asked_for(data, tmp_path):
    settings = {"trivial_augment": True, "jitter": 0.3, "rotate": 7.0, "erasing": 0.4}
    t = trainer(data, tmp_path, crop=2, flip=True, padding="reflect", **settings)
    plain = Augment(data.mean, data.std, 2, True, padding="reflect")
    assert t.plain == plain and t.strong == replace(plain, **settings)


def test_the_gradient_is_clipped_to_the_norm_that_was_asked_for(data, tmp_path):
    for clip in (1e-3, 1e-2):
        t = trainer(data, tmp_path, clip=clip)
        seen_in(t, 0)
        norm = torch.cat([p.grad.flatten() for p in t.model.parameters()]).norm()
        assert float(norm) == pytest.approx(clip, rel=1e-3)


def test_the_learning_rate_follows_the_schedule_that_was_asked_for(data, tmp_path):
    cycle, line = (trainer(data, tmp_path, schedule=name, lr=0.01, warmup=0.25) for name in ("one-cycle", "linear"))
    for step in (0, 4, 11):
        for t in (cycle, line):
            t.epoch, t.batch = divmod(step, t.steps_per_epoch)
        assert cycle.lr == one_cycle(step, 12, 0.01) and line.lr == warmup_linear(step, 12, 3, 0.01)


def test_the_average_begins_with_one_decay_and_ends_with_the_other(data, tmp_path):
    t = trainer(data, tmp_path, ema_start=0.1, ema_end=0.9)
    for step, decay in ((0, 0.1), (11, decay_ramp(11, 0.1, 0.9, 12))):
        before = [p.clone() for p in t.ema.module.parameters()]
        with torch.no_grad():
            t.model.head.weight.add_(1)
        t.ema.update(t.model, step)
        for old, new, current in zip(before, t.ema.module.parameters(), t.model.parameters()):
            torch.testing.assert_close(new, decay * old + (1 - decay) * current)


def test_muon_gives_all_but_hidden_matrices_a_rate_of_their_own(data, tmp_path):
    t = trainer(data, tmp_path, optimizer="muon", lr=0.02, adamw_lr=0.005, schedule="linear", warmup=0.0)
    t.set_lr()
    rates = {id(p): group["lr"] for group in t.optimizer.param_groups for p in group["params"]}
    assert rates[id(t.model.blocks[0].mlp.fc1.weight)] == pytest.approx(0.02)
    assert rates[id(t.model.head.weight)] == rates[id(t.model.cls_token)] == pytest.approx(0.005)


@pytest.mark.parametrize(
    "given, rate",
    [
        ({"preset": "cifar-fast"}, 0.03),
        ({"preset": "cifar-fast", "optimizer": "adamw"}, 1e-3),
        ({"preset": "cifar-fast", "optimizer": "adamw", "lr": 0.002}, 0.002),
        ({"preset": "cifar-small"}, 1.2e-3),
        ({"preset": "cifar-small", "optimizer": "muon"}, 0.03),
        ({"preset": "cifar-small", "optimizer": "adamw"}, 1.2e-3),
    ],
)
def test_another_optimizer_than_the_recipes_has_a_rate_of_its_own(given, rate):
    assert resolve(given)["lr"] == rate


def test_the_rate_of_an_earlier_run_is_of_its_optimizer(tmp_path):
    write_arguments(tmp_path / "config.json", resolve({"preset": "cifar-fast", "lr": 0.02}))
    for given, rate in (({}, 0.02), ({"optimizer": "adamw"}, 1e-3), ({"optimizer": "adamw", "lr": 0.5}, 0.5)):
        assert arguments({"config": tmp_path / "config.json"} | given)[0]["lr"] == rate
    with pytest.raises(ValueError, match="optimizer"):
        run.check(resolve({"optimizer": ["adamw"]}))


@pytest.mark.parametrize(
    "given, sizes",
    [
        ({}, (24, 24, 32)),
        ({"patch": 4}, (24, 24, 32)),
        ({"image_size": 64}, (48, 48, 64)),
        ({"image_size": 28, "patch": 4}, (20, 20, 28)),  # multiples of the patch
        ({"image_size": 64, "sizes": (32,)}, (32,)),
        ({"patch": 0}, (24, 24, 32)),  # which the model refuses
    ],
)
def test_the_image_sizes_of_a_recipe_are_shares_of_the_models_side(given, sizes):
    assert resolve({"preset": "cifar-fast"} | given)["sizes"] == sizes


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_a_teacher_teaches_at_the_temperature_that_was_asked_for(temperature, data, tmp_path):
    torch.manual_seed(3)
    teacher = VisionTransformer(MODEL).eval()
    torch.nn.init.normal_(teacher.head.weight)  # of opinions
    settings = {"distill_weight": 0.7, "distill_temperature": temperature}
    t = trainer(data, tmp_path, teacher, replace(MODEL, distillation=True), **settings)
    x, target = torch.randn(4, 3, 16, 16), one_hot(torch.arange(4), 10)
    with torch.no_grad():
        heads, wanted = t.model(x, each_head=True), teacher(x)
        loss, scores = t.loss(x, target)
    torch.testing.assert_close(loss, distillation_loss(*heads, wanted, target, 0.7, temperature))
    assert torch.equal(scores, heads[0])
    other = distillation_loss(*heads, wanted, target, 0.7, 2.0 if temperature is None else None)
    assert abs(float(loss - other)) > 1e-3


def test_the_row_of_an_epoch_has_the_means_over_its_images_and_the_speed_since_the_run_went_on(
    data, tmp_path, monkeypatch
):
    t, seen, clock = trainer(data, tmp_path, accumulate=3), [], iter((10.0, 14.0))
    loss = t.loss

    def recorded(x, target):
        value, scores = loss(x, target)
        hits = (scores.argmax(1) == target.argmax(1)).sum().item()
        seen.append((value.item() * len(x), hits, len(x)))
        return value, scores

    monkeypatch.setattr(t, "loss", recorded)
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: 90.0))
    t.clock, t.cpu_seconds = 60.0, 30.0
    t.order, t.batch = t.draw_order(), 1  # as after a stop behind the first of three steps
    t.train_epoch(lambda: None)
    t.end_epoch()
    (row,), (losses, hits, images) = t.history, map(sum, zip(*seen))
    assert images == 32 and row["epoch"] == 1 and row["images_per_s"] == 32 / 4 and row["cpu_minutes"] == 1
    assert (row["train_loss"], row["train_acc"]) == pytest.approx((losses / images, hits / images))


def test_of_equal_hold_out_accuracies_the_earlier_epoch_and_the_average_count(data, tmp_path, monkeypatch):
    held_out = data.train[torch.arange(100) % 60]
    t = trainer(replace(data, val=held_out), tmp_path)
    monkeypatch.setattr(t, "accuracy", lambda model, split: 0.5)
    t.fit(until=2)
    best = checkpoint.read(tmp_path / "best.pt")
    assert t.best == {"score": 0.5, "epoch": best["epoch"]} == {"score": 0.5, "epoch": 1}
    assert best["weights"] == "averaged" and t.can_choose
    assert not trainer(replace(data, val=held_out[:99]), tmp_path).can_choose


def test_the_products_of_muon_are_in_fp32_in_a_run_in_fp32(data, tmp_path):
    kinds = {amp: trainer(data, tmp_path, optimizer="muon", amp=amp).optimizer.dtype for amp in ("off", "bf16")}
    assert kinds == {"off": torch.float32, "bf16": torch.bfloat16}


def test_all_draws_of_a_run_come_from_its_seed(data, tmp_path):
    orders = []
    for seed in (3, 4):
        orders.append(trainer(data, tmp_path, seed=seed).draw_order())
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(seed).get_state())
    assert not torch.equal(*orders)


def test_the_images_of_a_run_are_drawn_by_its_seed(data, monkeypatch):
    asked = []
    monkeypatch.setattr(run.datasets, "load", lambda *arguments: asked.append(arguments) or data)
    args = DEFAULTS | {"data": "shapes", "seed": 5, "subset": 40, "val_split": 10}
    for seed in (5, 6):
        got, want = run.load_data(args | {"seed": seed}), hold_out(subset(data, 40, seed), 10, seed)
        assert torch.equal(got.train.images, want.train.images) and torch.equal(got.val.images, want.val.images)
        assert asked[-1][3] == seed


def test_a_run_is_evaluated_in_the_precision_of_its_training(data, tmp_path):
    t = trainer(data, tmp_path, amp="bf16")
    assert t.evaluator.dtype == torch.bfloat16 and t.about()["precision"] == "bfloat16"


def test_the_decay_of_the_average_rises_over_the_whole_run(data, tmp_path, monkeypatch):
    t, steps = trainer(data, tmp_path), []
    monkeypatch.setattr(t.ema, "update", lambda model, step: steps.append(step))
    t.fit(until=2)
    assert steps == list(range(2 * t.steps_per_epoch))


def test_the_cosine_ends_at_the_least_rate_that_was_asked_for(data, tmp_path):
    t, rates = trainer(data, tmp_path, schedule="cosine", lr=0.01, min_lr=0.002, warmup=0.25), []
    for step in range(t.total_steps):
        t.epoch, t.batch = divmod(step, t.steps_per_epoch)
        rates.append(t.lr)
    falling = [0.002 + 0.008 * (1 + math.cos(math.pi * k / 9)) / 2 for k in range(9)]
    assert rates == pytest.approx([1e-6 + (0.01 - 1e-6) * k / 3 for k in range(3)] + falling)


def test_mixup_and_cutmix_have_the_alphas_that_were_asked_for(data, tmp_path, monkeypatch):
    called = []
    for name in ("mixup", "cutmix"):
        monkeypatch.setattr(mix, name, lambda x, target, how, name=name: called.append(name) or (x, target))
    for alphas in ({"mixup": 0.5, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 0.5}):
        seen_in(trainer(data, tmp_path, **alphas), 0)
    assert called == ["mixup", "cutmix"]


def test_what_was_frozen_by_hand_stays_as_it_is_in_training(data, tmp_path):
    model = VisionTransformer(replace(MODEL, stem="conv", depth=2, dropout=0.5))
    freeze(model, 1)
    t = Trainer(model, data, replace(CONFIG, epochs=1), tmp_path, "cpu")
    before = {name: value.clone() for name, value in model.patch_embed.state_dict().items()}
    t.fit()
    assert all(torch.equal(value, before[name]) for name, value in model.patch_embed.state_dict().items())


def test_sides_of_squares_are_refused_for_a_model_of_other_images(data, tmp_path):
    model = VisionTransformer(replace(MODEL, image_size=(16, 32), smaller_images=True))
    with pytest.raises(TrainingError, match="the side of a square"):
        Trainer(model, data, replace(CONFIG, sizes=(16,)), tmp_path, "cpu")


def test_weights_decay_as_much_as_was_asked_for(data, tmp_path):
    t = trainer(data, tmp_path, weight_decay=0.3)
    decays = {id(p): group["weight_decay"] for group in t.optimizer.param_groups for p in group["params"]}
    assert decays[id(t.model.blocks[0].mlp.fc1.weight)] == 0.3 and decays[id(t.model.head.bias)] == 0
