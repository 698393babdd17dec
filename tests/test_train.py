import copy
import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from minivit import checkpoint, files, train
from minivit import data as datasets
from minivit.precision import choose_precision
from minivit.run import final_report
from minivit.splits import Split, hold_out
from minivit.train import Trainer
from minivit.train_config import TrainConfig, TrainingError
from minivit.vit import VisionTransformer, ViTConfig

MODEL = ViTConfig(
    image_size=16,
    patch=4,
    dim=16,
    depth=2,
    heads=2,
    stem="conv",
    mlp_conv=True,
    class_token=False,
    pool="mean",
    dropout=0.1,
    drop_path=0.1,
)
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=1e-3, amp="off", clean_epochs=1, mix_prob=1.0)


@pytest.fixture(scope="module")
def data():
    return hold_out(datasets.shapes(0, 60, 20, image_size=16), 10)


def trainer(data, run, config=CONFIG, model=MODEL, **options) -> Trainer:
    torch.manual_seed(7)
    run.mkdir(exist_ok=True)
    return Trainer(VisionTransformer(model), data, config, run, torch.device("cpu"), **options)


def assert_same_state(a: Trainer, b: Trainer) -> None:
    for x, y in ((a.model, b.model), (a.ema.module, b.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(x.state_dict().values(), y.state_dict().values()))
    for s, t in zip(a.optimizer.state.values(), b.optimizer.state.values()):
        assert all(torch.equal(torch.as_tensor(s[k]), torch.as_tensor(t[k])) for k in s)


def without_speed(rows):
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "cpu_minutes")} for row in rows]


FAST = dataclasses.replace(
    CONFIG, optimizer="muon", schedule="linear", sizes=(8, 16), padding="reflect", alternate_flip=True
)
FAST_MODEL = dataclasses.replace(MODEL, stem="whitening", smaller_images=True, relative_bias="joint", init="norm")


CLASS_TOKEN = dataclasses.replace(MODEL, class_token=True, pool="cls")  # the last convolution learns nothing


@pytest.mark.parametrize(
    "config, model",
    [(CONFIG, MODEL), (FAST, FAST_MODEL), (CONFIG, CLASS_TOKEN)],
    ids=["adamw", "muon and sizes", "class token"],
)
def test_two_epochs_and_two_more_after_a_restart_equal_four_bit_for_bit(config, model, data, tmp_path):
    whole = trainer(data, tmp_path / "whole", config, model)
    whole.fit()
    first = trainer(data, tmp_path / "parts", config, model)
    first.fit(until=2)
    second = trainer(data, tmp_path / "parts", config, model)
    second.load_state_dict(torch.load(tmp_path / "parts" / "last.pt", weights_only=True))
    second.fit()
    assert_same_state(whole, second)
    assert without_speed(whole.history) == without_speed(second.history)


def test_a_stop_that_is_asked_for_while_processes_agree_is_not_lost(data, tmp_path, monkeypatch):
    run = trainer(data, tmp_path)

    def agree(mine: bool) -> bool:
        run.stop_requested = True  # a signal comes after this process has said no
        return mine

    monkeypatch.setattr(run, "ranks", SimpleNamespace(any=agree))
    assert not run.stopping() and run.stopping()


def test_a_run_stopped_inside_an_epoch_goes_on_bit_for_bit(data, tmp_path, monkeypatch):
    whole = trainer(data, tmp_path / "whole")
    whole.fit()
    first = trainer(data, tmp_path / "parts")
    steps = []

    def stop_at_the_fifth():
        steps.append(first.step)
        first.stop_requested = len(steps) == 5  # 3 steps an epoch: in the middle of the second

    assert first.fit(on_step=stop_at_the_fifth) is False
    second = trainer(data, tmp_path / "parts")
    second.load_state_dict(torch.load(tmp_path / "parts" / "last.pt", weights_only=True))
    assert (second.epoch, second.batch) == (1, 2)
    ticks = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(ticks))
    second.fit()
    speeds = [row["images_per_s"] for row in second.history]
    assert speeds[1:] == [16, 48, 48]  # of the second epoch one batch was left; each took a tick
    assert_same_state(whole, second)
    assert without_speed(whole.history) == without_speed(second.history)


def test_the_random_numbers_of_an_apple_gpu_are_saved_and_set_again(data, tmp_path, monkeypatch):
    numbers, t = [torch.arange(4, dtype=torch.uint8)], trainer(data, tmp_path)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: numbers[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", numbers.append)
    t.device = torch.device("mps")
    state = t.state_dict()
    numbers.append(torch.zeros(4, dtype=torch.uint8))
    t.load_state_dict(state)
    assert torch.equal(numbers[-1], numbers[0])
    t.load_state_dict({name: value for name, value in state.items() if name != "rng_mps"})  # of an older run


def test_resuming_with_other_settings_is_refused_by_name(data, tmp_path):
    first = trainer(data, tmp_path)
    other = trainer(data, tmp_path, dataclasses.replace(CONFIG, lr=2e-3, warmup=0.5))
    with pytest.raises(TrainingError, match="another lr, warmup"):
        other.load_state_dict(first.state_dict())
    longer = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=5))
    with pytest.raises(TrainingError, match="--epochs 5: .* ends with epoch 4, .*--pretrained .*best.pt"):
        longer.load_state_dict(first.state_dict())


def test_a_longer_run_of_a_model_that_takes_no_pretrained_weights_gets_no_such_hint(data, tmp_path):
    def of(epochs: int) -> Trainer:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
        return Trainer(model, data, dataclasses.replace(CONFIG, epochs=epochs), tmp_path, torch.device("cpu"))

    with pytest.raises(TrainingError, match="ends with epoch 4, so it can't have another number of epochs$"):
        of(5).load_state_dict(of(4).state_dict())


def test_resuming_with_a_teacher_of_other_weights_is_refused(data, tmp_path):
    def teacher(level: float) -> torch.nn.Module:
        linear = torch.nn.Linear(3 * 16 * 16, 10)
        torch.nn.init.constant_(linear.weight, level), torch.nn.init.zeros_(linear.bias)
        return torch.nn.Sequential(torch.nn.Flatten(), linear)

    state = trainer(data, tmp_path, teacher=teacher(0.1)).state_dict()
    trainer(data, tmp_path, teacher=teacher(0.1)).load_state_dict(state)
    for other in (teacher(0.2), None):
        with pytest.raises(TrainingError, match="another --teacher, whose weights differ"):
            trainer(data, tmp_path, teacher=other).load_state_dict(state)
    older = {name: value for name, value in state.items() if name != "teacher_weights"}
    trainer(data, tmp_path, teacher=teacher(0.2)).load_state_dict(older)


def test_training_until_no_epoch_at_all_trains_none(data, tmp_path):
    run = trainer(data, tmp_path)
    run.fit(until=0)
    assert run.epoch == 0 and run.step == 0


def test_a_checkpoint_without_the_best_epoch_that_it_must_have_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LEAST_HOLD_OUT", 1)
    first = trainer(data, tmp_path)
    first.fit(until=1)
    with pytest.raises(ValueError, match="the run has no best epoch"):
        trainer(data, tmp_path).load_state_dict(first.state_dict() | {"best": None})


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(data, tmp_path):
    first = trainer(data, tmp_path)
    state = first.state_dict()
    del state["config"]["optimizer"], state["config"]["sizes"], state["cpu_seconds"]
    trainer(data, tmp_path).load_state_dict(state)
    with pytest.raises(TrainingError, match="another optimizer, schedule, sizes"):
        trainer(data, tmp_path, FAST, FAST_MODEL).load_state_dict(state)


@pytest.mark.parametrize("sizes", [[16], [8, 16], [8, 8, 16], [8, 8, 8, 16], [8, 8, 8, 8, 16, 16]], ids=len)
def test_each_size_has_an_equal_share_of_the_epochs_and_short_runs_have_the_last_ones(sizes, data, tmp_path):
    config = dataclasses.replace(FAST, epochs=len(sizes), sizes=(8, 8, 16), clean_epochs=0, warmup=0.0)
    run, seen = trainer(data, tmp_path, config, FAST_MODEL), []
    run.model.patch_embed.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[-1]))
    for run.epoch in range(len(sizes)):
        run.train_step(data.train.images[:4], data.train.labels[:4])
    assert seen == sizes


def test_two_epochs_show_every_image_once_as_it_is_and_once_mirrored(data, tmp_path):
    run = trainer(data, tmp_path, FAST, FAST_MODEL)
    index, images = torch.arange(50), data.train.images
    first = run.flipped(index)
    run.epoch = 1
    second = run.flipped(index)
    as_is = (first == images).flatten(1).all(1)
    assert 10 < as_is.sum() < 40
    assert torch.equal(first[as_is], images[as_is]) and torch.equal(first[~as_is], images[~as_is].flip(3))
    assert torch.equal(second[as_is], images[as_is].flip(3)) and torch.equal(second[~as_is], images[~as_is])


def test_without_flip_no_image_is_mirrored(data, tmp_path):
    run = trainer(data, tmp_path, dataclasses.replace(FAST, flip=False), FAST_MODEL)
    assert torch.equal(run.flipped(torch.arange(50)), data.train.images) and not run.strong.flip


def test_parts_of_a_batch_add_up_to_the_whole_batch(data, tmp_path):
    plain = dataclasses.replace(
        MODEL, stem="patch", mlp_conv=False, dropout=0.0, drop_path=0.0
    )  # no batch norm, no noise
    weights = []
    for parts in (1, 3):
        t = trainer(data, tmp_path / str(parts), dataclasses.replace(CONFIG, accumulate=parts), plain)
        t.forward.train()
        t.train_step(data.train.images[:15], data.train.labels[:15])
        weights.append(torch.cat([p.grad.flatten() for p in t.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing_and_too_many_end_the_run(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, max_bad_steps=2))
    t.forward.train()
    stem = t.model.patch_embed.convs[0].register_forward_hook(lambda module, inputs, output: output * float("nan"))
    before = copy.deepcopy(t.model.state_dict())
    t.train_step(data.train.images[:8], data.train.labels[:8])
    assert all(torch.equal(value, before[name]) for name, value in t.model.state_dict().items()) and t.bad_steps == 1
    with pytest.raises(
        TrainingError, match=r"2 steps in a row were not finite: step 0, learning rate .*, loss scale 1"
    ):
        t.train_step(data.train.images[:8], data.train.labels[:8])
    stem.remove()
    t.bad_in_a_row = 1
    t.train_step(data.train.images[:8], data.train.labels[:8])
    assert t.bad_in_a_row == 0 and t.bad_steps == 2


def test_training_lowers_the_loss_and_the_average_follows(data, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        epochs=40,
        lr=3e-3,
        mix_prob=0.0,
        trivial_augment=False,
        erasing=0.0,
        crop=0,
        flip=False,
        label_smoothing=0.0,
        ema_start=0.9,
        ema_end=0.95,
    )
    t = trainer(data, tmp_path, config, dataclasses.replace(MODEL, dropout=0.0, drop_path=0.0))
    t.fit()
    assert t.history[-1]["train_loss"] < 0.7 * t.history[0]["train_loss"]
    assert t.evaluator.accuracy(t.ema.module, data.train) > 0.5


def test_the_test_set_is_not_read_before_the_report(data, tmp_path):
    class Sealed(Split):
        opened = True

        def __getattribute__(self, name):
            if name in ("images", "labels") and not Sealed.opened:
                raise AssertionError("the test set was read during training")
            return super().__getattribute__(name)

    sealed = dataclasses.replace(data, test=Sealed(data.test.images, data.test.labels))
    Sealed.opened = False
    t = trainer(sealed, tmp_path, dataclasses.replace(CONFIG, epochs=1, clean_epochs=0))
    t.fit()
    Sealed.opened = True
    result = final_report(t)
    assert {"test_acc_final", "test_acc_final_ema", "test_acc", "val_acc", "chosen"} <= result.keys()


def test_weights_whose_scores_are_not_finite_end_a_run_as_divergence_does(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=1, clean_epochs=0))
    t.fit()
    for model in (t.model, t.ema.module):
        model.head.weight.data.fill_(3e38)  # finite themselves
    with pytest.raises(TrainingError, match="scores that are NaN or infinite"):
        final_report(t)
    assert not (tmp_path / "result.json").exists()


def test_the_rate_of_an_epochs_row_is_the_one_of_its_last_step(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=2, schedule="linear", warmup=0.0))
    used = []
    t.fit(on_step=lambda: used.append(t.optimizer.param_groups[0]["lr"]))
    assert [row["lr"] for row in t.history] == pytest.approx([used[t.steps_per_epoch - 1], used[-1]]) and used[-1] > 0


def test_a_stop_within_an_epoch_keeps_the_processor_time_of_all_processes(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path)
    monkeypatch.setattr(type(t.ranks), "sum", lambda ranks, *values: tuple(2 * value for value in values))  # of two
    t.stop_requested, t.clock = True, 0.0
    monkeypatch.setattr(train.time, "process_time", lambda: 3.0)
    assert not t.fit()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["cpu_seconds"] == 6.0


def test_best_pt_holds_the_weights_that_the_hold_out_chose_and_says_which(data, tmp_path):
    t = trainer(hold_out(datasets.shapes(0, 160, 20, image_size=16), 100), tmp_path)
    t.fit()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    row = t.history[best["epoch"] - 1]
    assert best["val_acc"] == max(max(r["val_acc"], r["val_acc_ema"]) for r in t.history) == t.best["score"]
    assert best["val_acc"] == row["val_acc_ema" if best["weights"] == "averaged" else "val_acc"]
    assert "optimizer" not in best and "ema" not in best
    model = copy.deepcopy(t.model)
    model.load_state_dict(best["model"])
    assert t.evaluator.accuracy(model, t.val_split) == best["val_acc"]
    result = final_report(t)
    assert result["chosen"] == "best" and result["test_acc"] == t.evaluator.accuracy(model, t.data.test)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert json.loads((tmp_path / "report" / "report.json").read_text())["top1"] == pytest.approx(result["test_acc"])


def test_a_small_hold_out_or_none_chooses_nothing_and_the_last_averaged_weights_are_best_pt(data, tmp_path):
    for val in (data.val, None):
        t = trainer(dataclasses.replace(data, val=val), tmp_path / str(val is None))
        t.fit()
        assert final_report(t)["chosen"] == "final_ema"
        best = torch.load(t.run / "best.pt", weights_only=True)
        assert (best["weights"], best["epoch"], best["val_acc"]) == ("averaged", 4, None)
        assert all(torch.equal(best["model"][k], v) for k, v in t.ema.state_dict().items())


@pytest.mark.parametrize("moment", ["before the first step", "at an epoch's border", "during evaluation"])
def test_a_stop_at_a_border_resumes_bit_for_bit(moment, data, tmp_path):
    whole = trainer(data, tmp_path / "whole")
    whole.fit()
    first = trainer(data, tmp_path / "parts")

    class Stops(type(first.evaluator)):
        def accuracy(self, model, split):
            first.stop_requested = True
            return super().accuracy(model, split)

    if moment == "during evaluation":
        first.evaluator = Stops(*vars(first.evaluator).values())
    stop = (lambda: setattr(first, "stop_requested", True)) if moment == "at an epoch's border" else (lambda: None)
    first.stop_requested = moment == "before the first step"
    assert not first.fit(on_epoch=stop)
    resumed = trainer(data, tmp_path / "parts")
    resumed.load_state_dict(checkpoint.read(tmp_path / "parts" / "last.pt"))
    assert resumed.fit()
    assert_same_state(whole, resumed)
    assert without_speed(whole.history) == without_speed(resumed.history)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("fault", ["learning rate", "weights"])
def test_a_run_that_is_not_finite_ends_in_one_line_however_short_it_is(fault, steps, data, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, clean_epochs=0, batch_size=len(data.train) // steps, warmup=0.0)
    t = trainer(data, tmp_path, dataclasses.replace(config, lr=1e38) if fault == "learning rate" else config)
    if fault == "weights":
        t.model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="not finite after epoch 1: lower --lr") as error:
        t.fit()
    assert "\n" not in str(error.value) and not (t.run / "last.pt").exists()


def test_one_step_that_is_not_finite_leaves_the_loss_of_the_epoch_finite(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=1, clean_epochs=0))
    loss, calls = t.loss, []

    def once(x, target):
        calls.append(1)
        value, logits = loss(x, target)
        return (value * float("nan") if len(calls) == 3 else value), logits

    t.loss = once
    t.fit()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["bad_steps"] == 1 and 0 < row["train_loss"] < 10


def test_early_stopping_ends_a_run_that_no_longer_improves(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=30, lr=1e-9, min_lr=0.0, patience=2))
    assert t.fit() and t.epoch < 30 and t.stopped_early
    resumed = trainer(data, tmp_path, t.config)
    resumed.load_state_dict(checkpoint.read(tmp_path / "last.pt"))
    assert resumed.fit() and resumed.epoch == t.epoch
    assert final_report(resumed)["stopped_early"] and "stopped early" in (tmp_path / "report" / "report.md").read_text()
    whole = trainer(data, tmp_path / "whole", dataclasses.replace(t.config, epochs=t.epoch))
    assert whole.fit() and whole.stopped_early and not final_report(whole)["stopped_early"]  # it did all its epochs


def test_a_teacher_trains_the_distillation_head_by_its_labels(data, tmp_path):
    class Teacher(torch.nn.Module):
        def forward(self, x):
            return torch.eye(10)[torch.full((len(x),), 3)] * 10

    model = dataclasses.replace(
        MODEL, class_token=True, pool="cls", distillation=True, mlp_conv=False, dropout=0.0, drop_path=0.0
    )
    config = dataclasses.replace(CONFIG, epochs=20, lr=3e-3, distill_weight=0.5, ema_start=0.5, ema_end=0.6)
    t = trainer(data, tmp_path, config, model, teacher=Teacher())
    t.fit()
    _, distilled = t.model.eval()(torch.randn(20, 3, 16, 16), each_head=True)
    assert (distilled.argmax(1) == 3).float().mean() > 0.9


def test_checkpoints_load_without_running_code_and_leave_no_temporary_files(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(CONFIG, epochs=1))
    t.fit()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {"model", "ema", "optimizer", "scaler", "rng", "generator", "epoch", "config"} <= state.keys()
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", "best.pt", "metrics.jsonl"}


@pytest.mark.parametrize("amp, dtype", [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_what_was_asked_for(amp, dtype):
    assert choose_precision(amp, torch.device("cpu")) == dtype


def test_bf16_and_fp16_training_stay_close_to_fp32_and_fp16_scales_the_loss(data, tmp_path):
    losses, norms = {}, {}
    for amp in ("off", "bf16", "fp16"):
        config = dataclasses.replace(CONFIG, epochs=1, amp=amp, clip=0.01, optimizer="muon", lr=0.1)
        t = trainer(data, tmp_path / amp, config, dataclasses.replace(MODEL, dropout=0.0))
        assert t.scaler.is_enabled() == (amp == "fp16")
        t.fit()
        losses[amp] = t.history[0]["train_loss"]
        # What a step is made of has been scaled back and clipped.
        norms[amp] = float(torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None]).norm())
    for amp in ("bf16", "fp16"):
        assert losses[amp] == pytest.approx(losses["off"], rel=0.02) and losses[amp] != losses["off"]
    assert list(norms.values()) == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.slow
def test_a_compiled_model_trains_like_an_eager_one(data, tmp_path):
    losses = []
    for compiled in (False, True):
        config = dataclasses.replace(CONFIG, epochs=1, compile=compiled)
        t = trainer(data, tmp_path / str(compiled), config, dataclasses.replace(MODEL, dropout=0.0, drop_path=0.0))
        t.fit()
        losses.append(t.history[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_resuming_with_other_images_or_another_normalisation_is_refused(data, tmp_path):
    first = trainer(data, tmp_path)
    for other, words in (
        (hold_out(datasets.shapes(0, 60, 20, image_size=16), 20), "50 training and 10 hold-out .* 40 and 20"),
        (dataclasses.replace(data, mean=(0.0, 0.0, 0.0)), "another --mean"),
        (dataclasses.replace(data, std=(1.0, 1.0, 1.0)), "another --std"),
    ):
        with pytest.raises(TrainingError, match=words):
            trainer(other, tmp_path).load_state_dict(first.state_dict())
    older = first.state_dict()
    del older["images"]
    trainer(data, tmp_path).load_state_dict(older)


@pytest.mark.parametrize("killed_at", ["last.pt", "best.pt"])
def test_a_kill_at_a_checkpoint_leaves_a_run_that_ends_with_the_best_weights_also_where_best_pt_is_damaged(
    killed_at, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "LEAST_HOLD_OUT", 1)
    run = trainer(data, tmp_path)
    accuracies = iter([0.1, 0.1, 0.5, 0.4])
    monkeypatch.setattr(Trainer, "accuracy", lambda *_: next(accuracies))
    run.fit(until=1)

    class Killed(BaseException):
        pass

    def kill(*paths):
        if paths[-1].name == killed_at:
            raise Killed
        return replace(*paths)

    replace = files.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "replace", kill)
        run.fit(until=2)
    (tmp_path / "best.pt").write_bytes(b"half")
    again = trainer(data, tmp_path)
    again.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True))
    assert again.epoch == (1 if killed_at == "last.pt" else 2)
    lower = itertools.chain([0.05, 0.05] if killed_at == "last.pt" else [], itertools.repeat(0.01))
    monkeypatch.setattr(Trainer, "accuracy", lambda *_: next(lower))
    again.fit()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["epoch"] == again.best["epoch"] == (1 if killed_at == "last.pt" else 2)
    assert best["val_acc"] == (0.1 if killed_at == "last.pt" else 0.5)


def test_the_hold_out_accuracy_of_a_result_is_that_of_the_chosen_weights(tmp_path):
    t = trainer(hold_out(datasets.shapes(0, 160, 20, image_size=16), 100), tmp_path)
    t.fit(until=1)
    with torch.no_grad():  # as if later epochs had ruined them: one class for all
        for model in (t.model, t.ema.module):
            model.head.weight.zero_()
            model.head.bias.copy_(torch.arange(10.0))
    t.best = {"score": 1.0, "epoch": 1}
    best = checkpoint.read(tmp_path / "best.pt")
    model = VisionTransformer(t.model.config)
    model.load_state_dict(best["model"])
    wanted, ruined = (t.evaluator.accuracy(m, t.val_split) for m in (model, t.model))
    assert wanted != ruined
    result = final_report(t)
    assert (result["val_acc"], result["chosen"]) == (wanted, "best")
    assert result["test_acc"] == t.evaluator.accuracy(model, t.data.test)
