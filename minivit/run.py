"""From arguments to a run: which data, model and settings a set of names means, and what is printed.

The order in which an argument is looked for: the command line, the file of --config, the preset's
recipe, `TrainConfig` and `ViTConfig`. The resolved whole goes to config.json and into each checkpoint.
"""

import dataclasses
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from minivit import data as datasets
from minivit.fast import accelerate
from minivit.files import write_atomically
from minivit.pretrained import load_pretrained
from minivit.resnet import resnet18, resnet50
from minivit.train import TrainConfig, Trainer, TrainingError, predict
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

DATA = ("cifar10", "cifar100", "folder", "shapes")
RESNETS = {"resnet18": resnet18, "resnet50": resnet50}

# What a preset wants to be trained with, where it differs from TrainConfig.
RECIPES: dict[str, dict] = {
    "cifar-small": {
        "epochs": 24,
        "batch_size": 128,
        "schedule": "one-cycle",
        "lr": 1.2e-3,
        "trivial_augment": False,
        "mix_prob": 0.0,
        "erasing": 0.0,
        "clean_epochs": 0,
        "ema_end": 0.998,
    },
    "shapes-demo": {
        "epochs": 12,
        "batch_size": 64,
        "schedule": "one-cycle",
        "lr": 3e-3,
        "trivial_augment": False,
        "mix_prob": 0.0,
        "erasing": 0.0,
        "clean_epochs": 0,
        "ema_start": 0.98,
        "ema_end": 0.99,
    },
    "vit-b16": {"epochs": 10, "batch_size": 128, "lr": 1e-4, "clean_epochs": 2, "ema_end": 0.999},
}
OTHER = {
    "data": "cifar10",
    "data_root": Path("data"),
    "val_split": 0.02,
    "skip_bad": False,
    "preset": "cifar",
    "device": "auto",
    "threads": 0,
    "teacher": None,
    "pretrained": None,
}
TRAIN_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)}
MODEL_FIELDS = {f.name for f in dataclasses.fields(ViTConfig)} - {"classes"}
PATHS = ("data_root", "teacher", "pretrained", "out", "resume")


def prepare(given: dict) -> tuple[Trainer, dict]:
    """A trainer ready to fit, from the arguments that were given. Writes config.json into the run folder."""
    resume = given.pop("resume", None)
    if resume:
        given = {**read_config(resume / "config.json"), **given, "out": resume}
    elif "config" in given:
        given = {**read_config(given.pop("config")), **given}
    a = resolve(given)
    device = choose_device(a["device"])
    if a["threads"]:
        torch.set_num_threads(a["threads"])
    config = TrainConfig(**{k: a[k] for k in TRAIN_FIELDS & a.keys()})
    dataset = load_data(a)
    torch.manual_seed(a["seed"])  # the weights the model starts with
    model = build_model(a["preset"], len(dataset.classes), {k: a[k] for k in MODEL_FIELDS & a.keys()})
    if a["pretrained"] and not resume:
        print(load_pretrained(model, a["pretrained"]))
    teacher = load_checkpoint(a["teacher"], device)[0].requires_grad_(False) if a["teacher"] else None
    out = a["out"]
    state = read_checkpoint(out / "last.pt") if resume else None
    if not resume and (out / "last.pt").exists():
        raise TrainingError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    trainer = Trainer(model, dataset, config, out, device, teacher, describe_model(a, model))
    if state:
        trainer.load_state_dict(state)
    out.mkdir(parents=True, exist_ok=True)
    write_config(out / "config.json", a, model, trainer)
    return trainer, a


def resolve(given: dict) -> dict:
    """Fill what was not given from the preset's recipe and the defaults."""
    preset = given.get("preset", OTHER["preset"])
    if preset not in PRESETS and preset not in RESNETS:
        raise TrainingError(f"there is no preset {preset!r}: choose from {', '.join([*PRESETS, *RESNETS])}")
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    a = {**OTHER, **defaults, **RECIPES.get(preset, {}), **given, "preset": preset}
    if "clean_epochs" not in {**RECIPES.get(preset, {}), **given}:
        a["clean_epochs"] = min(a["clean_epochs"], a["epochs"] // 10)
    a.setdefault("out", Path("runs") / f"{a['data']}-{preset}")
    return a


def choose_device(name: str) -> torch.device:
    """auto takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"device {name!r} cannot be used here ({reason}): try --device cpu") from None
    return device


def load_data(a: dict) -> datasets.Dataset:
    """The data set that the arguments name, with its hold-out."""
    side = a.get("image_size") or (PRESETS[a["preset"]].size[0] if a["preset"] in PRESETS else 32)
    side = 32 if a["data"].startswith("cifar") else side  # CIFAR stays small in memory and is enlarged on the device
    dataset = datasets.load(a["data"], a["data_root"], side, a["seed"], a["skip_bad"])
    held_out = dataset.val is not None  # a folder with train, val and test brings its own
    return datasets.hold_out(dataset, a["val_split"], a["seed"]) if a["val_split"] and not held_out else dataset


def build_model(preset: str, classes: int, overrides: dict) -> nn.Module:
    """A preset's model with some of its settings changed."""
    if preset in RESNETS:
        if overrides:
            flag = next(iter(overrides)).replace("_", "-")
            raise TrainingError(f"preset {preset} is a ResNet: --{flag} does not apply to it")
        return RESNETS[preset](classes)
    return VisionTransformer(dataclasses.replace(PRESETS[preset], classes=classes, **overrides))


def describe_model(a: dict, model: nn.Module) -> dict:
    """What a checkpoint has to say about its model so that it can be built again."""
    overrides = {k: a[k] for k in MODEL_FIELDS & a.keys()}
    return {"preset": a["preset"], "overrides": overrides, "data": a["data"], "data_root": str(a["data_root"])}


# ---- checkpoints and configurations on disk ------------------------------------------------------------


def read_config(path: Path) -> dict:
    """The arguments of an earlier run, from its config.json."""
    try:
        a = json.loads(Path(path).read_text())["arguments"]
    except FileNotFoundError:
        raise TrainingError(f"there is no {path}: name a run folder or its config.json") from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise TrainingError(f"{path} is not the config.json of a run") from None
    return {k: Path(v) if k in PATHS and v else v for k, v in a.items() if k != "out"}


def write_config(path: Path, a: dict, model: nn.Module, trainer: Trainer) -> None:
    """config.json: every resolved argument, the model, and what it runs on."""
    gpu = trainer.device.type == "cuda"
    content = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in a.items()},
        "model": dataclasses.asdict(model.config) if hasattr(model, "config") else a["preset"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": str(trainer.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(trainer.device) if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "images": len(trainer.train_split),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": commit()},
    }
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)))


def commit() -> str | None:
    """The commit of the code that runs, None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None


def read_checkpoint(path: Path) -> dict:
    """The content of one of our checkpoints."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"there is no checkpoint {path}") from None
    except Exception:
        raise TrainingError(f"{path} cannot be read as a checkpoint: it is damaged, or another kind of file") from None
    if not isinstance(state, dict) or "describe" not in state:
        raise TrainingError(f"{path} is not a checkpoint of this program; official weights go to --pretrained")
    return state


def load_checkpoint(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """The averaged model of a checkpoint, in evaluation mode, and the checkpoint."""
    state = read_checkpoint(path)
    about = state["describe"]
    model = build_model(about["preset"], len(state["classes"]), about["overrides"])
    try:
        model.load_state_dict(state["ema"])
    except RuntimeError:
        raise TrainingError(
            f"{path} does not fit the model it describes ({about['preset']}): it comes from another "
            "architecture or another version of this program"
        ) from None
    return accelerate(model.to(device)).eval(), state


# ---- what the command line does -------------------------------------------------------------------------


def fit(trainer: Trainer) -> bool:
    """Train with a progress bar on a terminal, a line per epoch elsewhere. False when stopped and saved."""
    c = trainer.config
    print(
        f"{trainer.describe['preset']}: {sum(p.numel() for p in trainer.model.parameters()) / 1e6:.2f}M parameters, "
        f"{len(trainer.train_split)} images, {c.epochs} epochs, {trainer.device}, "
        f"{str(trainer.dtype).removeprefix('torch.')}",
        flush=True,
    )
    bar, started, first = make_bar(trainer), time.perf_counter(), trainer.step

    def on_step() -> None:
        if bar is None:
            return
        if trainer.batch % 10 == 0:
            loss, hits, images = (float(s) for s in trainer.sums)
            bar.set_postfix(
                epoch=f"{trainer.epoch + 1}/{c.epochs}",
                loss=f"{loss / images:.3f}",
                acc=f"{hits / images:.1%}",
                lr=f"{trainer.lr:.1e}",
                refresh=False,
            )
        bar.update(trainer.batch_size)

    def on_epoch() -> None:
        line = epoch_line(trainer, started, first)
        print(line, flush=True) if bar is None else bar.write(line)

    finished = trainer.fit(on_step=on_step, on_epoch=on_epoch)
    if bar is not None:
        bar.close()
    return finished


def make_bar(trainer: Trainer):
    """tqdm's bar over the steps, in images per second; None without a terminal or without tqdm."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=trainer.total_steps * trainer.batch_size,
        initial=trainer.step * trainer.batch_size,
        unit="img",
        unit_scale=True,
        dynamic_ncols=True,
    )


def epoch_line(trainer: Trainer, started: float, first: int) -> str:
    """The last finished epoch in one line."""
    row = trainer.history[-1]
    left = (trainer.total_steps - trainer.step) * (time.perf_counter() - started) / max(trainer.step - first, 1)
    held_out = f"  hold-out {row['val_acc']:.2%} (averaged {row['val_acc_ema']:.2%})" if "val_acc" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{trainer.config.epochs}  loss {row['train_loss']:.4f}  acc {row['train_acc']:.2%}"
        f"{held_out}  lr {row['lr']:.2e}  {row['images_per_s']:.0f} img/s  {left / 60:.0f} min left"
    )


def show_result(result: dict, folder: Path) -> None:
    """The end of a run, in words."""
    for name in ("final", "final_ema", "best", "best_ema"):
        if f"test_acc_{name}" in result:
            mark = "  <- chosen" + (" by the hold-out" if result["val_acc"] else "") if name == result["chosen"] else ""
            print(f"test accuracy, {name.replace('_ema', ', averaged'):<16} {result[f'test_acc_{name}']:.2%}{mark}")
    if result["val_acc"]:
        print(f"hold-out accuracy of the chosen weights: {result['val_acc']:.2%}")
    print(f"report: {folder / 'report' / 'report.md'}")


def evaluate(path: Path, given: dict) -> int:
    """Accuracy of a checkpoint on the test images of the data it was trained on, or of --data."""
    device = choose_device(given.get("device", "auto"))
    model, state = load_checkpoint(path, device)
    about = state["describe"]
    a = resolve({"data": about["data"], "data_root": Path(about["data_root"]), "preset": about["preset"], **given})
    size = input_side(model)
    dataset = datasets.load(a["data"], a["data_root"], size, state["config"]["seed"], a["skip_bad"])
    if dataset.classes != state["classes"]:
        known, there = (
            f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in (state["classes"], dataset.classes)
        )
        raise TrainingError(f"{path} knows {known}, the data has {there}: name the data it was trained on")
    scores = predict(model, dataset.test.images, state["mean"], state["std"], device).cpu()
    hits = (scores.argmax(1) == dataset.test.labels).double().mean().item()
    print(f"{path}: {hits:.2%} of {len(dataset.test)} test images ({a['data']})")
    return 0


def classify(path: Path, images: list[Path], given: dict) -> int:
    """Classify image files: a line each, with the three likeliest classes."""
    if not images:
        raise TrainingError("--predict needs a checkpoint and at least one image: --predict best.pt cat.png")
    device = choose_device(given.get("device", "auto"))
    model, state = load_checkpoint(path, device)
    size = input_side(model)
    for file in images:
        image = datasets.read_image(file, size)
        scores = predict(model, image[None], state["mean"], state["std"], device)[0]
        best = scores.softmax(0).topk(min(3, len(scores)))
        likeliest = (f"{state['classes'][c]} {p:.1%}" for p, c in zip(best.values.tolist(), best.indices.tolist()))
        print(f"{file}: {', '.join(likeliest)}")
    return 0


def input_side(model: nn.Module) -> int:
    """The side in pixels at which images are read for a model: a ResNet takes any, and is trained on CIFAR's 32."""
    return model.config.size[0] if hasattr(model, "config") else 32
