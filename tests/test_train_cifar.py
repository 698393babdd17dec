"""The command line, end to end on tiny folders of real image files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train_cifar
from minivit import checkpoint, cli, config, parser, run, train
from minivit.files import Claim
from minivit.precision import choose_precision
from minivit.report import percent
from minivit.train_config import TrainingError

SCRIPT = Path(train_cifar.__file__)
SMALL = [
    "--preset",
    "shapes-demo",
    "--dim",
    "16",
    "--depth",
    "2",
    "--heads",
    "2",
    "--image-size",
    "16",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--amp",
    "off",
    "--batch-size",
    "8",
    "--val-split",
    "4",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes, bright and dark, as PNG files."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, low in (("bright", 150), ("dark", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


def command(images: Path, out: Path, *more: str) -> list[str]:
    return ["--data", "folder", "--data-root", str(images), "--out", str(out), *SMALL, *more]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    assert train_cifar.main(command(images, out, "--epochs", "4", "--lr", "3e-3")) == 0
    return out


def test_a_run_leaves_its_arguments_metrics_checkpoints_and_report(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["arguments"]["dim"] == 16 and config["arguments"]["weight_decay"] == 0.05
    assert {"torch", "python", "commit"} <= config["versions"].keys() and config["precision"] == "float32"
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and {
        "train_loss",
        "val_acc_ema",
        "lr",
        "images_per_s",
    } <= rows[0].keys()
    assert (finished / "best.pt").exists() and (finished / "last.pt").exists()
    result = json.loads((finished / "result.json").read_text())
    report = json.loads((finished / "report" / "report.json").read_text())
    assert report["top1"] == result["test_acc"] and "confusion" in report
    assert (finished / "report" / "report.md").read_text().count("bright") >= 1


def test_a_run_is_replayed_from_its_config_to_the_same_numbers(finished, tmp_path):
    assert train_cifar.main(["--config", str(finished / "config.json"), "--out", str(tmp_path / "again")]) == 0
    by_folder = config.arguments({"config": finished, "out": tmp_path})
    assert by_folder == config.arguments({"config": finished / "config.json", "out": tmp_path})

    def metrics(run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("images_per_s", "cpu_minutes")} for row in rows]

    assert metrics(tmp_path / "again") == metrics(finished)


def test_eval_gives_the_accuracy_of_the_checkpoint(finished, capsys):
    assert train_cifar.main(["--eval", str(finished / "last.pt"), "--device", "cpu"]) == 0
    result = json.loads((finished / "result.json").read_text())
    assert f"{percent(result['test_acc_final_ema'])} % of 8 test images" in capsys.readouterr().out


def test_predict_names_a_class_for_each_image(finished, images, capsys):
    files = [str(images / "test" / name / "0.png") for name in ("bright", "dark")]
    assert train_cifar.main(["--predict", str(finished / "last.pt"), *files, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == files
    assert all("bright" in line and "dark" in line and "%" in line for line in lines)


def test_ctrl_c_saves_and_the_printed_command_goes_on(images, tmp_path):
    out = tmp_path / "r"
    args = [sys.executable, str(SCRIPT), *command(images, out, "--epochs", "100000", "--val-split", "0")]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in printed
    assert f"continue with: python train_cifar.py --resume {out}" in printed
    before = len((out / "metrics.jsonl").read_text().splitlines())

    trainer, _ = run.prepare({"resume": out})
    trainer.fit(until=trainer.epoch + 1)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == before + 1


def test_auto_trains_a_narrow_model_in_fp32_on_a_processor_with_bf16_whatever_else_it_does(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr("minivit.precision.cpu_has_bf16", lambda: True)
    for dim, asked, precision in ((16, "auto", "float32"), (64, "auto", "bfloat16"), (16, "bf16", "bfloat16")):
        out = tmp_path / f"{dim}-{asked}"
        trainer, args = run.prepare(given(images, out) | {"dim": dim, "amp": asked})
        config = json.loads((out / "config.json").read_text())
        assert str(trainer.dtype) == f"torch.{precision}" and config["precision"] == precision
        assert args["amp"] == {"float32": "off", "bfloat16": "bf16"}[precision]


@pytest.mark.parametrize("able", [True, False])
def test_an_older_pytorch_knows_a_processor_that_computes_in_bf16(able, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: torch.ones(2) @ torch.ones(3), raising=False)
    assert choose_precision("auto", torch.device("cpu")) == torch.float32  # a RuntimeError: it cannot tell
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == (torch.bfloat16 if able else torch.float32)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_precision("auto", torch.device("cpu")) == torch.float32


def test_a_run_goes_on_in_its_precision_where_auto_would_choose_another(images, tmp_path, monkeypatch):
    monkeypatch.setattr("minivit.precision.cpu_has_bf16", lambda: True)
    out = tmp_path / "r"
    trainer, _ = run.prepare(given(images, out) | {"dim": 128, "epochs": 2})
    trainer.fit(until=1)
    trainer.claim.release()
    settings, state = json.loads((out / "config.json").read_text()), torch.load(out / "last.pt", weights_only=True)
    assert settings["arguments"]["amp"] == state["config"]["amp"] == "bf16"
    monkeypatch.setattr("minivit.precision.cpu_has_bf16", lambda: False)
    for amp in ("bf16", "auto"):  # "auto" stood in the files of older runs
        settings["arguments"]["amp"] = state["config"]["amp"] = amp
        (out / "config.json").write_text(json.dumps(settings))
        torch.save(state, out / "last.pt")
        trainer, _ = run.prepare({"resume": out})
        assert trainer.dtype == torch.bfloat16 and trainer.epoch == 1
        trainer.claim.release()
    with pytest.raises(ValueError, match="another amp"):
        run.prepare({"resume": out, "amp": "off"})


def given(images: Path, out: Path) -> dict:
    """The arguments of `command` without --amp."""
    words = [word for word in command(images, out) if word not in ("--amp", "off")]
    return vars(parser.parse_arguments(words, "minivit"))


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        train_cifar.main(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and "python train_cifar.py --patch 4 --depth 12" in printed
    for words in (
        "task (",
        "data:",
        "model (",
        "optimisation",
        "augmentation",
        "distillation:",
        "machine:",
        "(default 0.05)",
    ):
        assert words in printed


def test_the_installed_command_is_the_script_under_another_name(capsys):
    helps = []
    for main, command in ((train_cifar.main, "python train_cifar.py"), (cli.main, "minivit")):
        with pytest.raises(SystemExit):
            main(["--help"])
        printed = capsys.readouterr().out
        assert f"usage: {command} " in printed and f"    {command} --patch 4" in printed
        helps.append(" ".join(printed.replace(command, "COMMAND").split()))
    assert helps[0] == helps[1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--preset", "vit-z"], "--preset is 'vit-z', not one of vit-d128-l6"),
        (
            ["--data", "shapes", "--patch", "5"],
            "patch 5 does not divide a 32x32 image; the nearest --patch that does is 4",
        ),
        (["--data", "folder", "--data-root", "nowhere"], "nowhere"),
        (["--data", "shapes", "--preset", "resnet18", "--patch", "4"], "--patch does not apply"),
        (["--resume", "nowhere"], "there is no nowhere"),
        (["--config", "nowhere.json"], "there is no nowhere.json"),
        (["--eval", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
        (["--predict", "nowhere.pt", "cat.png"], "there is no checkpoint nowhere.pt"),
        (
            ["--data", "shapes", "--device", "warp"],
            "device 'warp': no such device; give auto, cpu, cuda, cuda:1 or mps",
        ),
        (["--data", "shapes", "--device", "vulkan"], "'vulkan' cannot be used here (this PyTorch has no such device)"),
        (["--data", "shapes", "--val-split", "0.9999"], "hold-out"),
        (
            ["--data", "shapes", "--preset", "vit-d128-l6", "--pretrained", "none.pth"],
            "there is no weights file none.pth",
        ),
        (["--data", "shapes", "--epochs", "0"], "--epochs"),
        (["--data", "shapes", "--sizes", "24", "30"], "--sizes 30: the model takes no 30x30 images"),
        (["--data", "shapes", "--sizes", "40"], "the nearest that it takes: 28, 32"),
        (["--data", "shapes", "--preset", "distilled", "--sizes", "24"], "takes images of one size"),
        (["--data", "shapes", "--preset", "cifar-fast", "--patch", "2"], "--patch 4 or --stem conv"),
        (["--data", "shapes", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_mistake_is_one_line_exit_two_and_nothing_written(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        train_cifar.main([*arguments, "--out", "r"] if arguments[0] not in ("--resume", "--predict") else arguments)
        == 2
    )
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_does_not_exist_is_named_with_those_that_do(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_cifar.main(["--optimizer", "sgdx", "--out", "r"]) == 2
    assert "--optimizer: invalid choice: 'sgdx' (choose from" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"arguments": {"data": "shapes", "optimizer": "sgdx"}}))
    assert train_cifar.main(["--config", "config.json", "--out", "r"]) == 2
    assert capsys.readouterr().err == "error: --optimizer is 'sgdx', not one of adamw, muon\n"
    assert not (tmp_path / "r").exists()


def test_a_second_run_does_not_overwrite_the_first(finished, images, capsys):
    assert train_cifar.main(command(images, finished, "--epochs", "1")) == 2
    assert f"continue it with --resume {finished}" in capsys.readouterr().err


def test_damaged_and_foreign_checkpoints_are_named(finished, images, tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes((finished / "last.pt").read_bytes()[:5000])
    assert train_cifar.main(["--eval", str(tmp_path / "cut.pt")]) == 2
    assert "cut.pt cannot be read as a checkpoint" in capsys.readouterr().err
    import torch

    torch.save({"model": {}}, tmp_path / "foreign.pt")
    assert train_cifar.main(["--eval", str(tmp_path / "foreign.pt")]) == 2
    assert "official weights go to --pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no optimizer", "no weights", "other shapes", "other classes"])
def test_a_damaged_checkpoint_is_not_resumed(finished, tmp_path, capsys, damage):
    import torch

    shutil.copytree(finished, tmp_path / "run")
    state = torch.load(finished / "last.pt", weights_only=True)
    if damage == "no optimizer":
        del state["optimizer"]
    elif damage == "no weights":
        state["model"] = dict.fromkeys(state["model"], "no tensor")
    elif damage == "other shapes":
        state["ema"] = {name: tensor[..., None] for name, tensor in state["ema"].items()}
    else:
        state["classes"] = [1, 2]
    torch.save(state, tmp_path / "run" / "last.pt")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "last.pt" in printed
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path, capsys):
    import torch

    state = torch.load(finished / "last.pt", weights_only=True)
    state["describe"]["overrides"]["dim"] = 32
    torch.save(state, tmp_path / "other.pt")
    assert train_cifar.main(["--eval", str(tmp_path / "other.pt"), "--device", "cpu"]) == 2
    assert "another architecture" in capsys.readouterr().err


def test_unreadable_images_are_named_and_skipped_only_on_request(images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "train" / "dark" / "broken.png").write_bytes(b"not an image")
    arguments = command(tmp_path / "data", tmp_path / "r", "--epochs", "1")
    assert train_cifar.main(arguments) == 2
    assert "broken.png" in capsys.readouterr().err and not (tmp_path / "r").exists()
    assert train_cifar.main([*arguments, "--skip-bad"]) == 0


def test_an_image_that_cannot_be_read_is_named_by_predict(finished, tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"no")
    assert train_cifar.main(["--predict", str(finished / "last.pt"), str(tmp_path / "x.png")]) == 2
    assert "x.png" in capsys.readouterr().err


def test_a_trained_model_teaches_another(finished, images, tmp_path):
    losses = []
    for name, more in (("alone", []), ("taught", ["--teacher", str(finished / "best.pt")])):
        assert train_cifar.main(command(images, tmp_path / name, "--epochs", "1", *more)) == 0
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["train_loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_teacher_of_other_classes_is_refused(finished, tmp_path, capsys):
    teacher = ["--teacher", str(finished / "best.pt"), "--data", "shapes", "--preset", "shapes-demo"]
    assert train_cifar.main([*teacher, "--out", str(tmp_path / "r")]) == 2
    assert "knows 2 classes (bright, dark), the data has 10 classes (striped disc, checked disc" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()


def test_a_picture_of_another_size_is_resized_and_predict_says_so(finished, tmp_path, capsys):
    Image.new("RGB", (50, 30), (200, 200, 200)).save(tmp_path / "wide.png")
    assert (
        train_cifar.main(["--predict", str(finished / "best.pt"), str(tmp_path / "wide.png"), "--device", "cpu"]) == 0
    )
    assert capsys.readouterr().out.endswith("%  (50x30: resized, centre crop of 16x16)\n")


def test_no_name_of_a_class_file_or_folder_steers_the_terminal(finished, images, tmp_path, capsys):
    import torch

    state = torch.load(finished / "best.pt", weights_only=True)
    state["classes"] = ["\x1b[31mred\n", "caf\udce9"]
    torch.save(state, tmp_path / "best\x1b[2J.pt")
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "train" / "dark" / "notes\x07.txt").write_text("words")
    (tmp_path / "data" / "test" / "dark" / "x\x9b.png").write_bytes(b"no image")
    picture = str(images / "test" / "dark" / "0.png")
    said = ""
    for words, status in (
        (["--predict", f"{tmp_path}/best\x1b[2J.pt", picture, "--device", "cpu"], 0),
        (["--eval", f"{tmp_path}/best\x1b[2J.pt", "--data-root", str(images), "--device", "cpu"], 2),
        (["--predict", str(finished / "best.pt"), "no\x1b[2Jfile.png"], 2),
        (command(tmp_path / "data", tmp_path / "r\x1b[2J", "--epochs", "1", "--config", "\x07"), 2),
        (command(tmp_path / "data", tmp_path / "r\x1b[2J", "--epochs", "1"), 2),
        (command(tmp_path / "data", tmp_path / "r\x1b[2J", "--epochs", "1", "--skip-bad"), 0),
    ):
        assert train_cifar.main(words) == status
        printed = capsys.readouterr()
        assert {c for c in printed.out + printed.err if not c.isprintable()} <= {"\n"}
        assert printed.err.count("error: ") == (status == 2)
        said += printed.out + printed.err
    for shown in (r"\x1b[31mred\n", r"caf\udce9", r"notes\x07.txt", r"x\x9b.png", r"r\x1b[2J/report", r"no\x1b[2Jfile"):
        assert shown in said, shown
    assert train_cifar.main(["--no\x1b[2Jflag"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_weights_of_the_best_epoch_that_were_changed_are_told_at_the_end(tmp_path, monkeypatch, capsys):
    draw = run.datasets.shapes
    monkeypatch.setattr(run.datasets, "shapes", lambda seed, image_size: draw(seed, 600, 20, image_size=image_size))
    words = ["--data", "shapes", "--out", str(tmp_path / "run"), *SMALL[:-1], "100", "--batch-size", "512"]
    assert train_cifar.main([*words, "--epochs", "1", "--clean-epochs", "0"]) == 0
    capsys.readouterr()
    state = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    shapes = {name: tensor[..., None] for name, tensor in state["model"].items()}
    fit = train.Trainer.fit  # before it a run that goes on would mend the file
    for change in ({"model": None}, {"model": {}}, {"model": shapes}, {"epoch": 7}, {"weights": None}):
        changed = state | change
        monkeypatch.setattr(
            train.Trainer, "fit", lambda t, c=changed, **on: torch.save(c, t.run / "best.pt") or fit(t, **on)
        )
        assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert "best.pt is" in error and "damaged" in error and error.count("\n") == 1


def test_a_run_is_not_resumed_with_another_model(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    assert train_cifar.main(["--resume", str(tmp_path / "run"), "--dim", "32", "--mlp-ratio", "3"]) == 2
    assert "last.pt holds a model of another --dim, --mlp-ratio: resume it" in capsys.readouterr().err
    assert train_cifar.main(["--resume", str(tmp_path / "run"), "--dim", "16", "--mlp-ratio", "2"]) == 0


def test_a_run_is_not_resumed_with_another_teacher_or_other_weights_to_start_from(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    for flag in ("--teacher", "--pretrained"):
        assert train_cifar.main(["--resume", str(tmp_path / "run"), flag, "other.pt"]) == 2
        assert capsys.readouterr().err == (
            f"error: {flag} other.pt: this run was started with none; resume it with the same\n"
        )
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_teacher_that_was_moved_still_teaches_a_run_that_goes_on(tmp_path):
    was = {"teacher": Path("a/best.pt"), "pretrained": None}
    config.check_same_files(was, {"teacher": tmp_path / "best.pt"})
    for other in (tmp_path / "last.pt", None):
        with pytest.raises(ValueError, match="this run was started with a/best.pt"):
            config.check_same_files(was, {"teacher": other})


def test_a_run_from_a_config_has_the_normalisation_of_its_own_weights(tmp_path):
    settled = {"mean": (0.1,) * 3, "std": (0.2,) * 3, "pretrained": Path("a.pth")}
    config.write_arguments(tmp_path / "config.json", config.resolve(settled))
    same, _ = config.arguments({"config": tmp_path / "config.json"})
    other, _ = config.arguments({"config": tmp_path / "config.json", "pretrained": Path("b.npz")})
    given, _ = config.arguments({"config": tmp_path / "config.json", "pretrained": Path("b.npz"), "mean": [0.3] * 3})
    assert (same["mean"], other["mean"], given["mean"]) == ((0.1,) * 3, None, (0.3,) * 3)


def test_the_commit_of_a_run_is_that_of_this_code_not_of_a_checkout_around_it(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        words = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a", *words)
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    if not shutil.which("git"):
        pytest.skip("needs git")
    code = tmp_path / "lib" / "config.py"
    code.parent.mkdir()
    code.write_text("")
    monkeypatch.setattr(config, "__file__", str(code))
    git("init"), git("commit", "--allow-empty", "-m", "other code")
    assert config.commit() is None
    git("add", "lib"), git("commit", "-m", "this code")
    assert config.commit() == git("rev-parse", "HEAD")


def test_what_is_left_of_a_run_is_not_overwritten(finished, images, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "last.pt").unlink()
    kept = (tmp_path / "run" / "best.pt").read_bytes()
    assert train_cifar.main(command(images, tmp_path / "run", "--epochs", "1")) == 2
    assert "holds what is left of a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "best.pt").read_bytes() == kept


@pytest.mark.parametrize(
    "words, told",
    [
        (["--preset", "resnet18", "--pretrained", "demo"], "--pretrained starts Vision Transformers alone"),
        (["--pretrained", "nowhere.pth"], "--pretrained: there is no weights file nowhere.pth"),
        (["--sizes", "25"], "--sizes 25: the model takes no 25x25 images"),
        (["--patience", "5", "--val-split", "0"], "--patience 5 needs a hold-out"),
        (["--study", "ladder", "--checkpointing"], "variant 'ResNet-18, the teacher': "),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_data_are_read_or_a_teacher_is_trained(
    words, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.datasets, "load", lambda *_: pytest.fail("the data were read"))
    teacher = (
        [] if "--preset" in words or "--study" in words else ["--preset", "cifar-fast", "--teacher", "train:resnet18"]
    )
    assert train_cifar.main([*words, *teacher, "--data", "shapes"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert not list(tmp_path.iterdir())


def test_weights_that_saw_images_that_are_held_out_now_are_said_to(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    args = {"data": "folder", "data_root": tmp_path, "seed": 0, "subset": 0, "val_split": 0.02, "pretrained": "a.pt"}
    about, lines = {"data": "folder", "data_root": str(tmp_path), "subset": 0, "val_split": 0.02}, []
    for describe, seed in ((about, 1), (about | {"val_split": 0.0}, 0), (about | {"subset": 500}, 0)):
        run.warn_of_seen({"describe": describe, "config": {"seed": seed}}, args, (), lines.append)
    assert [line.partition("was trained with ")[2] for line in lines] == ["--seed 1", "--val-split 0.0", "--subset 500"]
    assert all(line.startswith("a.pt may have been trained on images that are held out now") for line in lines)
    run.warn_of_seen({"describe": about, "config": {"seed": 0}}, args, (), lines.append)  # the same hold-out
    run.warn_of_seen({"describe": about | {"data_root": "b"}, "config": {"seed": 1}}, args, (), lines.append)
    shapes, args_of_shapes = about | {"data": "shapes"}, args | {"data": "shapes"}
    other_images = {"describe": shapes, "config": {"seed": 1}}  # as another seed draws others
    run.warn_of_seen(other_images, args_of_shapes, (), lines.append)
    run.warn_of_seen(None, args, (), lines.append)  # weights from elsewhere
    assert len(lines) == 3
    run.warn_of_seen({"describe": shapes | {"subset": 500}, "config": {"seed": 0}}, args_of_shapes, (), lines.append)
    assert len(lines) == 4 and lines[3].endswith("--subset 500")


def test_a_hold_out_of_cifar_10_is_said_to_be_known_to_the_weights_that_ship(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    state, lines = checkpoint.read(checkpoint.DEMO), []
    for data, root in (("folder", tmp_path), ("cifar10", Path("data"))):  # whatever the seed and the order of files
        args = {"data": data, "data_root": root, "seed": 0, "subset": 0, "val_split": 0.02, "pretrained": Path("demo")}
        run.warn_of_seen(state, args, list(state["classes"]), lines.append)
        run.warn_of_seen(state, args, ["cat", "dog"], lines.append)  # other images
    assert len(lines) == 2 and all("49,000 of CIFAR-10's 50,000 training images" in line for line in lines)


def test_weights_that_saw_the_test_images_of_another_split_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    args = {"data": "folder", "data_root": tmp_path, "seed": 0, "teacher": Path("best.pt")}
    state = {"describe": {"data": "folder", "data_root": str(tmp_path)}, "config": {"seed": 1}}
    with pytest.raises(ValueError, match=r"--teacher best.pt: .* saw test images of seed 0: give --seed 1, or make a"):
        run.check_unseen("--teacher", state, args)
    elsewhere = {"describe": {"data": "folder", "data_root": str(tmp_path / "a")}, "config": {"seed": 1}}
    for fine in (state | {"config": {"seed": 0}}, elsewhere, state | {"describe": {"data": "folder"}}, None):
        run.check_unseen("--teacher", fine, args)
    (tmp_path / "test").mkdir()  # whose images are nobody's training images
    run.check_unseen("--teacher", state, args)


def test_a_second_run_in_one_folder_is_refused_at_once_and_touches_nothing(finished, images, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "new").mkdir()

    def content(folder: Path) -> dict:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content(tmp_path)
    held = [Claim(tmp_path / name) for name in ("run", "new")]
    for words in (["--resume", str(tmp_path / "run")], command(images, tmp_path / "new", "--epochs", "1")):
        assert train_cifar.main(words) == 2
        error = capsys.readouterr().err
        assert "another run is at work in" in error and error.count("\n") == 1
    assert content(tmp_path) == before
    for claim in held:
        claim.release()
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0


def test_what_a_killed_run_left_half_written_goes_and_other_files_stay(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    ours, others = tmp_path / "run" / ".last.pt.123.456.tmp", tmp_path / "run" / "notes.tmp"
    ours.write_bytes(b"half"), others.write_bytes(b"mine")
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0
    assert not ours.exists() and others.read_bytes() == b"mine"


def test_early_stopping_without_a_hold_out_is_refused_and_a_longer_schedule_says_how(
    finished, images, tmp_path, capsys
):
    assert train_cifar.main(command(images, tmp_path / "r", "--val-split", "0", "--patience", "1")) == 2
    assert "--patience 1 needs a hold-out: give --val-split" in capsys.readouterr().err
    assert train_cifar.main(["--resume", str(finished), "--epochs", "9"]) == 2
    assert "--epochs 9: " in (error := capsys.readouterr().err) and "--pretrained" in error


@pytest.mark.parametrize("left", [0, 8, 40, 100])
def test_a_disk_that_is_full_in_training_is_one_line_and_the_run_goes_on_when_there_is_room(
    left, disk, images, tmp_path, monkeypatch, capsys
):
    folder, end_epoch = disk(2048), train.Trainer.end_epoch
    words = command(images, folder / "run", "--epochs", "3", "--val-split", "0")

    def fill(trainer):
        if trainer.epoch == 2:  # the disk has room for `left` KiB
            (folder / "other").write_bytes(bytes(shutil.disk_usage(folder).free - left * 1024))
        end_epoch(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "end_epoch", fill)
        assert train_cifar.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "run" in error
    assert torch.load(folder / "run" / "last.pt", weights_only=True)["epoch"] == 2
    assert not list((folder / "run").glob(".*.tmp"))
    (folder / "other").unlink()
    assert train_cifar.main(["--resume", str(folder / "run")]) == 0


def test_a_progress_bar_outlasts_steps_that_are_not_finite(monkeypatch):
    bar, shown = SimpleNamespace(update=lambda n: None, close=lambda: None), []
    bar.set_postfix = lambda **values: shown.append(values["loss"])
    trainer = SimpleNamespace(sums=[0.0, 0.0, 0], batch=10, epoch=0, lr=0.1, batch_size=4, step=0)
    trainer.config = SimpleNamespace(epochs=3)
    trainer.fit = lambda on_step, on_epoch: on_step() is None
    monkeypatch.setattr(cli, "make_bar", lambda trainer: bar)
    monkeypatch.setattr(cli, "first_line", lambda trainer: "")
    assert cli.fit(trainer) and shown == ["0.000"]


def test_a_run_folder_without_a_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_cifar.main(["--data", "shapes", "--preset", "shapes-demo", "--out", ""]) == 2
    assert "--out: an empty name" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--out", "--save-predictions", "--save-attention", "--data-root", "--teacher"])
def test_a_tilde_is_the_home_folder_in_every_name(flag, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert [*vars(parser.parse_arguments([f"{flag}=~/a.csv"], "minivit")).values()] == [tmp_path / "a.csv"]
    with pytest.raises(ValueError, match=f"{flag}.*: ~nobody-x/a.csv: there is no such home folder"):
        parser.parse_arguments([f"{flag}=~nobody-x/a.csv"], "minivit")


@pytest.mark.parametrize(
    "words", [["--predict", "demo", ""], ["--eval", " "], ["--data-root", ""], ["--pretrained", ""], ["--teacher", ""]]
)
def test_an_empty_name_is_not_the_current_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_cifar.main(words) == 2
    assert f"{words[0]}: an empty name" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_data_set_too_small_for_the_default_hold_out_is_trained_on_without_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    for split, images in (("train", 8), ("test", 2)):
        for name, colour in (("dark", 40), ("light", 200)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(images):
                Image.new("RGB", (8, 8), (colour, number, 0)).save(tmp_path / "images" / split / name / f"{number}.png")
    words = ["--data", "folder", "--data-root", str(tmp_path / "images"), "--preset", "shapes-demo", "--epochs", "1"]
    assert train_cifar.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "too few images for a hold-out of 0.02" in capsys.readouterr().err
    assert train_cifar.main([*words, "--val-split", "0.01", "--out", str(tmp_path / "other")]) == 2
    assert "give another --val-split" in capsys.readouterr().err


def test_a_shorter_run_by_the_settings_of_a_longer_one_has_a_clean_end_of_its_own_length(tmp_path):
    def clean(given: dict, **more) -> int:
        (tmp_path / "config.json").write_text(json.dumps({"arguments": config.resolve(given)}, default=str))
        return config.arguments({"config": tmp_path / "config.json", **more})[0]["clean_epochs"]

    assert clean({"preset": "cifar"}) == 10 and clean({"preset": "cifar"}, epochs=10) == 1
    assert clean({"preset": "cifar", "clean_epochs": 7}, epochs=20) == 7


def test_image_sizes_that_nobody_gave_follow_image_and_patch_of_a_later_run(tmp_path, monkeypatch):
    def sizes(given: dict, **more) -> tuple | None:
        (tmp_path / "config.json").write_text(json.dumps({"arguments": config.resolve(given)}, default=str))
        args, _ = config.arguments({"config": tmp_path / "config.json", **more})
        run.check(args)
        return args["sizes"]

    fast = {"preset": "cifar-fast", "data": "shapes"}
    assert sizes(fast) == (24, 24, 32)
    assert sizes(fast, image_size=64) == (48, 48, 64) and sizes(fast, image_size=24, crop=2) == (16, 16, 24)
    assert sizes(fast, patch=16) == sizes(fast | {"patch": 16}, patch=16) == (32, 32, 32)
    assert sizes(fast, preset="distilled", lr=1e-3, optimizer="adamw") == ()
    assert sizes(fast | {"sizes": (16, 32)}, patch=8) == (16, 32)  # somebody gave them


def test_sizes_follow_the_patch_of_the_weights_that_a_run_begins_with(tmp_path, monkeypatch):
    small = ["--data", "shapes", "--preset", "cifar-fast", "--dim", "16", "--heads", "1", "--depth", "1", "--subset"]
    small += ["40", "--epochs", "1", "--batch-size", "20", "--val-split", "0", "--amp", "off", "--device", "cpu"]
    monkeypatch.setattr(run, "write_report", lambda *_, **__: None)
    assert train_cifar.main([*small, "--patch", "16", "--out", str(tmp_path / "first")]) == 0
    weights = str(tmp_path / "first" / "best.pt")
    assert train_cifar.main([*small, "--pretrained", weights, "--out", str(tmp_path / "second")]) == 0
    saved = json.loads((tmp_path / "second" / "config.json").read_text())["arguments"]
    assert (saved["patch"], saved["sizes"]) == (16, [32, 32, 32])


def test_weights_of_ours_bring_their_preset_and_a_preset_that_is_given_wins(finished, tmp_path):
    def preset(**more) -> str:
        return config.resolve({"data": "shapes", **more})["preset"]

    assert preset(pretrained=finished / "best.pt") == "shapes-demo" and preset() == "cifar"
    assert preset(pretrained=Path("demo")) == "cifar-fast"
    assert preset(pretrained=finished / "best.pt", preset="cifar-small") == "cifar-small"
    for name in ("none.pt", "published.pth"):
        torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "published.pth")
        assert preset(pretrained=tmp_path / name) == "cifar"


@pytest.mark.parametrize(
    "words, note",
    [
        ("--distill-weight 0.3 --teacher-epochs 2", "--distill-weight, --teacher-epochs do nothing without --teacher"),
        ("--adamw-lr 1e-3", "--adamw-lr does nothing without --optimizer muon"),
        ("--optimizer muon --weight-decay 0.1", "--weight-decay does nothing with --optimizer muon"),
        ("--schedule one-cycle --min-lr 1e-5 --warmup 1", "--min-lr does nothing with --schedule one-cycle"),
        ("--schedule one-cycle --warmup 1", "--warmup does nothing with --schedule one-cycle"),
        ("--no-flip --alternate-flip", "--alternate-flip does nothing without --flip"),
        ("--crop 0 --padding zero", "--padding does nothing without --crop"),
        ("--mixup 0 --cutmix 0 --mix-prob 0.5", "--mix-prob does nothing without --mixup or --cutmix"),
        ("--data-root x --skip-bad", "--data-root does nothing with --data shapes"),
        ("--skip-bad", "--skip-bad does nothing without --data folder"),
    ],
)
def test_a_flag_that_changes_nothing_is_named(words, note):
    flags = vars(parser.parse_arguments(["--data", "shapes", *words.split()], "minivit"))
    assert any(line.startswith(note) for line in config.idle_flags(flags, config.resolve(flags)))


def test_flags_that_do_something_are_not_named(finished, images, tmp_path, monkeypatch, capsys):
    useful = "--teacher demo --distill-weight 0.3 --optimizer muon --adamw-lr 1e-3 --alternate-flip --mix-prob 0.5"
    flags = vars(parser.parse_arguments(["--data", "shapes", "--warmup", "1", *useful.split()], "minivit"))
    assert config.idle_flags(flags, config.resolve(flags)) == []
    monkeypatch.setattr(cli, "train_one", lambda *arguments: arguments[-1]() or 0)
    assert train_cifar.main(command(images, tmp_path / "r", "--adamw-lr", "1e-3")) == 0
    assert capsys.readouterr().out == "note: --adamw-lr does nothing without --optimizer muon\n"
    assert train_cifar.main(["--resume", str(finished)]) == 0 and capsys.readouterr().out == ""


def test_a_hold_out_of_the_data_own_is_told_where_another_is_asked_for(images, tmp_path, caplog):
    shutil.copytree(images, tmp_path / "own")
    shutil.copytree(images / "test", tmp_path / "own" / "val")
    for amount, told in ((0.0, "--val-split 0 does nothing"), (0.25, "--val-split 0.25 does nothing"), (0.02, "")):
        caplog.clear()
        args = config.resolve(given(images, tmp_path) | {"data_root": tmp_path / "own", "val_split": amount})
        assert len(run.load_data(args).val) == 8 and caplog.text.count("--val-split") == bool(told)
        assert told in caplog.text


def test_muon_does_not_begin_with_weights_of_another_optimizer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda *_, **__: None)
    small = ["--data", "shapes", "--preset", "shapes-demo", "--dim", "16", "--depth", "1", "--heads", "1", "--subset"]
    small += ["40", "--epochs", "1", "--batch-size", "20", "--val-split", "0", "--amp", "off", "--device", "cpu"]
    for optimizer in ("adamw", "muon"):
        words = [*small, "--optimizer", optimizer, "--out", str(tmp_path / optimizer)]
        assert train_cifar.main(words) == 0
        capsys.readouterr()
        again = [*small, "--optimizer", "muon", "--pretrained", str(tmp_path / optimizer / "best.pt")]
        out = tmp_path / f"{optimizer}-muon"
        assert train_cifar.main([*again, "--out", str(out)]) == (2 if optimizer == "adamw" else 0)
        said = "undoes what another optimizer has learned: give --optimizer adamw"
        assert (said in capsys.readouterr().err) == (optimizer == "adamw") != out.exists()


def test_a_variant_is_named_as_a_teacher_alone():
    named = config.from_json({"teacher": "@a", "pretrained": "@a", "data_root": "@a"})
    assert named == {"teacher": "@a", "pretrained": Path("@a"), "data_root": Path("@a")}


def test_what_several_processes_cannot_do_is_told_before_data_are_read(tmp_path):
    args = config.resolve({"data": "shapes", "checkpointing": True, "out": tmp_path / "run"})
    run.check(args)
    with pytest.raises(TrainingError, match="--checkpointing goes with one process"):
        run.check(args, processes=2)
