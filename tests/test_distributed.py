"""minivit/distributed.py: several processes compute what one computes; one that goes ends all in one line."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.drawn_shapes import save_shapes
from torch import nn

import train_cifar
from minivit import data as datasets
from minivit import distributed
from minivit.distributed import Ranks, SyncBatchNorm2d, WholeBatchDraws
from minivit.fast import accelerate, unused_parameters
from minivit.splits import DataError
from minivit.train import Trainer
from minivit.train_config import TrainConfig, TrainingError
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

SCRIPT = Path(train_cifar.__file__)
NOISY = ViTConfig(image_size=16, patch=4, dim=16, depth=3, heads=2, dropout=0.3, drop_path=0.5)


def test_each_row_of_a_batch_belongs_to_one_process_and_one_process_changes_nothing():
    for rows in range(1, 9):
        for number in range(1, 5):
            shares = [list(range(rows))[Ranks(rank, number).share(rows)] for rank in range(number)]
            assert sum(shares, []) == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    loss = torch.tensor(1 / 3, dtype=torch.float64)
    assert Ranks().sum(loss, 3)[0] is loss and Ranks().gather("x") == ["x"] and Ranks().together(lambda: 5) == 5


@pytest.mark.parametrize("form", ["plain", "fast"])
@pytest.mark.parametrize("changes", [{}, {"distillation": True, "class_attention": 1, "mlp_conv": True}], ids=str)
def test_dropout_and_stochastic_depth_of_shares_are_those_of_the_whole_batch(changes, form):
    model = VisionTransformer(ViTConfig(**(vars(NOISY) | changes)))
    model = (accelerate(model) if form == "fast" else model).train()
    x = torch.randn(7, 3, 16, 16)
    torch.manual_seed(3)
    whole, after = model(x), torch.get_rng_state()
    parts = []
    for rank in range(3):
        own = Ranks(rank, 3).share(7)
        torch.manual_seed(3)
        with WholeBatchDraws(7, own):
            parts.append(model(x[own]))
        assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(whole, model(x), atol=1e-3)  # other numbers give other scores


def test_a_layer_that_sees_several_rows_of_an_image_draws_as_one_process_does():
    x, layer = torch.randn(4, 6).repeat_interleave(3, 0), nn.Dropout(0.5)
    torch.manual_seed(1)
    whole = layer(x)
    torch.manual_seed(1)
    with WholeBatchDraws(4, slice(1, 4)):
        assert torch.equal(layer(x[3:12]), whole[3:12])
        assert torch.equal(layer.eval()(x), x) and torch.rand(2).shape == (2,)


class Meeting:
    """all_reduce of threads, which stand for processes."""

    def __init__(self, number: int):
        self.barrier, self.slots, self.own = threading.Barrier(number, timeout=30), [None] * number, threading.local()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.slots[self.own.rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.slots)
        self.barrier.wait()
        tensor.copy_(total)


def test_batch_normalisation_of_shares_is_that_of_the_whole_batch_with_its_gradients(monkeypatch):
    torch.manual_seed(0)
    x, weights = torch.randn(5, 4, 3, 3) * 2 + 3, torch.randn(5, 4, 3, 3)
    norms = [nn.BatchNorm2d(4, momentum=0.3) for _ in range(3)]
    for norm in norms:
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    whole = x.clone().requires_grad_()
    (norms[2](whole) * weights).sum().backward()
    meeting, gradients = Meeting(2), [None, None]
    monkeypatch.setattr(distributed.dist, "all_reduce", meeting.all_reduce)

    def work(rank: int) -> None:
        meeting.own.rank = rank
        own, norm = Ranks(rank, 2).share(5), distributed.synchronise_norms(norms[rank])
        part = x[own].clone().requires_grad_()
        (norm(part) * weights[own]).sum().backward()
        gradients[rank] = part.grad

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(gradients), whole.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norms[0].weight.grad + norms[1].weight.grad, norms[2].weight.grad, atol=1e-5, rtol=1e-4)
    for norm in norms[:2]:
        assert type(norm) is SyncBatchNorm2d and norm.state_dict().keys() == norms[2].state_dict().keys()
        for name, value in norms[2].named_buffers():
            torch.testing.assert_close(norm.get_buffer(name), value, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.eval()(x), norms[2].eval()(x), atol=1e-5, rtol=1e-5)


SMALL = {"dim": 16, "heads": 2, "depth": 2}


@pytest.mark.parametrize("changes", [{}, {"mlp_conv": True}], ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_it_is_known_which_parameters_get_no_gradient(name, changes):
    config = vars(PRESETS[name]) | SMALL | {"class_attention": min(1, PRESETS[name].class_attention)} | changes
    side = 2 * config["patch"] if config["stem"] == "patch" else 8
    model = accelerate(VisionTransformer(ViTConfig(**(config | {"image_size": side, "classes": 3}))))
    model(torch.randn(2, 3, side, side)).sum().backward()
    unused = [id(p) for p in model.parameters() if p.requires_grad and p.grad is None]
    assert unused == [id(p) for p in unused_parameters(model)]


def test_processes_that_cannot_train_together_are_told_so_in_one_line(monkeypatch, capsys, tmp_path):
    data = datasets.shapes(0, 30, 10, image_size=16)
    config = TrainConfig(epochs=1, batch_size=8, accumulate=4)
    with pytest.raises(TrainingError, match="3 processes can't share a batch of 8 images in 4 parts, one"):
        Trainer(VisionTransformer(NOISY), data, config, tmp_path, torch.device("cpu"), ranks=Ranks(1, 3))
    with pytest.raises(TrainingError, match="--compile goes with one process"):  # also of --config and --resume
        Trainer(
            VisionTransformer(NOISY),
            data,
            TrainConfig(epochs=1, batch_size=8, compile=True),
            tmp_path,
            torch.device("cpu"),
            ranks=Ranks(1, 2),
        )
    for environment, words, said in (
        ({"RANK": "x", "WORLD_SIZE": "2"}, [], "RANK=x: torchrun sets it to a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, [], "RANK=2 and WORLD_SIZE=2: torchrun sets ranks from 0 to WORLD_SIZE - 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["--compile"], "--compile goes with one process"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["--eval", "demo"], "--eval runs in one process"),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert train_cifar.main([*words, "--out", str(tmp_path / "r")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_failure_in_one_process_is_that_of_all_with_its_message(monkeypatch):
    def fail() -> None:
        raise DataError("there is no\nsuch folder")

    monkeypatch.setattr(Ranks, "gather", lambda ranks, value: [None, value, "later"])
    with pytest.raises(distributed.RanksError, match="^there is no such folder$"):
        Ranks(1, 3).together(fail)
    with pytest.raises(distributed.RanksError, match="^later$"):
        Ranks(0, 3).together(lambda: "done")


# --- With processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_shapes(tmp_path_factory.mktemp("shapes"))


def command(images: Path, out: Path, *more: str) -> list[str]:
    """A run with everything that is drawn at random, batch normalisation, parts of batches and a hold-out."""
    model = "--preset shapes-demo --dim 16 --depth 2 --heads 2 --image-size 16 --dropout 0.2 --drop-path 0.2"
    noise = "--trivial-augment --erasing 0.5 --mix-prob 1 --alternate-flip --epochs 3 --clean-epochs 1 --lr 0.02"
    rest = "--batch-size 15 --accumulate 2 --val-split 10 --amp off --device cpu --threads 1 --optimizer muon"
    return [
        "--data",
        "folder",
        "--data-root",
        str(images),
        "--out",
        str(out),
        *f"{model} {noise} {rest}".split(),
        *more,
    ]


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path) -> None:
    """The loss curves of two runs are equal to 1e-4, and so are their weights, raw and averaged."""
    rows = rows_of(one), rows_of(other)
    assert [row["epoch"] for row in rows[0]] == [row["epoch"] for row in rows[1]]
    for a, b in zip(*rows):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        for name in ("lr", "train_acc", "val_acc", "val_acc_ema"):
            assert a[name] == pytest.approx(b[name], abs=1e-9), name
    states = [torch.load(run / "last.pt", weights_only=True) for run in (one, other)]
    for weights in ("model", "ema"):
        for name, tensor in states[0][weights].items():
            torch.testing.assert_close(tensor, states[1][weights][name], atol=1e-3, rtol=1e-3)
    assert torch.equal(states[0]["rng"], states[1]["rng"]) and torch.equal(*(s["generator"] for s in states))


def start(rank: int, port: int, words: list[str]) -> subprocess.Popen:
    """One of two processes, as torchrun starts them."""
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    environment = os.environ | places | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(SCRIPT), *words], env=environment, cwd=SCRIPT.parent, **pipes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert train_cifar.main(command(images, out)) == 0
    return out


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_loss_curve_the_weights_and_the_result_of_one(alone, images, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    words = [*launcher, str(SCRIPT), *command(images, tmp_path / "two")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=SCRIPT.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/3") == 1 and done.stdout.count("test accuracy, final averaged") == 1
    assert_alike(alone, tmp_path / "two")
    results = [json.loads((run / "result.json").read_text()) for run in (alone, tmp_path / "two")]
    assert results[0] == pytest.approx(results[1])
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_process_that_is_killed_or_stopped_ends_the_other_in_one_line_and_one_goes_on(
    number, alone, images, tmp_path
):
    out, port = tmp_path / "run", free_port()
    both = [start(rank, port, command(images, out)) for rank in range(2)]
    deadline = time.monotonic() + 200
    while not (out / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    both[1].send_signal(number)
    (told, error), _ = (process.communicate(timeout=100) for process in both)
    assert both[0].returncode != 0, "the run ended before its process was stopped"
    if number == signal.SIGKILL:
        assert both[0].returncode == 2 and error.count("\n") == 1, error
        assert error.startswith("error: another of the 2 processes has ended (") and f"--resume {out}" in error
    else:
        assert [process.returncode for process in both] == [143, 143] and error == ""
        assert "and saved; continue with: " in told.splitlines()[-1] and f"--resume {out}" in told
    assert train_cifar.main(["--resume", str(out)]) == 0
    assert_alike(alone, out)


@pytest.mark.slow
def test_what_one_process_began_two_go_on_with(alone, images, tmp_path, monkeypatch):
    out, port, end_epoch = tmp_path / "run", free_port(), Trainer.end_epoch

    def end_and_stop(trainer: Trainer) -> None:
        end_epoch(trainer)
        trainer.stop_requested = True

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", end_and_stop)
        assert train_cifar.main(command(images, out)) == 143
    assert len(rows_of(out)) == 1
    gc.collect()  # the stopped run lets go of its folder, as the end of its process does
    both = [start(rank, port, ["--resume", str(out)]) for rank in range(2)]
    printed = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert_alike(alone, out)


@pytest.mark.slow
def test_unequal_settings_of_processes_are_one_line_and_nothing_is_written(images, tmp_path):
    port = free_port()
    both = [start(rank, port, command(images, tmp_path / "run", "--seed", str(rank))) for rank in range(2)]
    printed = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [2, 2]
    said = "error: --seed is 0 in process 0 and 1 in process 1: give all processes the same arguments\n"
    assert [error for _, error in printed] == [said, ""]
    assert list(tmp_path.iterdir()) == []
