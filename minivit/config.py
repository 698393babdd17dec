"""The arguments of a run: where each of them comes from, and the config.json that keeps them.

An argument is looked for in this order: the command line, the file of --config, the preset's recipe, the preset's
model, the defaults of `TrainConfig` and `ViTConfig`. The preset itself may be that of the weights to start from. Some
defaults depend on other arguments: the learning rate on the optimizer, the image sizes of a recipe on the sides of
image and patch, whether the model takes smaller images on these sizes, the clean epochs on the epochs, the run folder
on the data and the preset.
"""

import dataclasses
import platform
import subprocess
from pathlib import Path

import torch
from torch import nn

from minivit import data as datasets
from minivit.checkpoint import RESNETS, described
from minivit.distill import preset_to_train
from minivit.files import write_json
from minivit.reading import (
    DEVIATIONS,
    MEANS,
    fields,
    flag,
    flag_of,
    kinds_of,
    mapping,
    one_of,
    optional,
    plain,
    read_json,
    real,
    refuse,
    text,
    whole,
)
from minivit.recipes import RECIPES
from minivit.text import one_line
from minivit.train import Trainer
from minivit.train_config import TRAIN_DEFAULTS, TrainConfig, TrainingError
from minivit.vit import PRESETS, ViTConfig

DEFAULTS = {
    "data": "cifar10",
    "data_root": Path("data"),
    "val_split": 0.02,
    "subset": 0,
    "skip_bad": False,
    "preset": "cifar",
    "device": "auto",
    "threads": 0,
    "teacher": None,
    "teacher_epochs": None,
    "pretrained": None,
    "mean": None,
    "std": None,
}
RATES = {"adamw": TRAIN_DEFAULTS["lr"], "muon": 0.03}  # where the recipe's rate is of another optimizer
TRAIN_FIELDS = {*TRAIN_DEFAULTS}
MODEL_FIELDS = {f.name for f in dataclasses.fields(ViTConfig)} - {"classes"}
OF_TRAINING = {"config", "preset", "val_split", "pretrained", "mean", "std", "teacher", "teacher_epochs"}  # flags
OF_TRAINING |= TRAIN_FIELDS | MODEL_FIELDS
PATHS = ("data_root", "teacher", "pretrained", "out", "resume")
ARGUMENT_KINDS = {  # of config.json
    **{name: kind for name, kind in kinds_of(ViTConfig).items() if name in MODEL_FIELDS},
    "image_size": whole(1),  # images of data sets are square
    **kinds_of(TrainConfig),
    **dict.fromkeys(("optimizer", "schedule", "amp", "padding"), text),  # TrainConfig says which there are
    **dict.fromkeys(("data", "data_root", "preset", "device", "out"), text),
    **dict.fromkeys(("teacher", "pretrained"), optional(text)),
    "teacher_epochs": optional(whole(1)),
    "mean": optional(MEANS),
    "std": optional(DEVIATIONS),
    "val_split": real,
    "subset": whole(),
    "skip_bad": flag,
    "threads": whole(),
}


def hold_out_amount(value: object, where: str) -> None:
    """A share of the training images, or a number of them."""
    real(value, where)
    if value < 0 or (value >= 1 and value != int(value)):
        refuse(value, where, "a share from 0 to below 1, or a whole number of images")


# What the arguments may be that are no settings of the model or of the training; machine: set_up_machine.
OTHER_KINDS = {
    "data": one_of(datasets.NAMES),
    "val_split": hold_out_amount,
    "subset": whole(),
    "preset": one_of([*PRESETS, *RESNETS]),
}
OTHER_KINDS |= {name: ARGUMENT_KINDS[name] for name in ("mean", "std", "teacher_epochs")}


def arguments(given: dict) -> tuple[dict, bool]:
    """Return all arguments, those that were given and the defaults, and whether the run goes on from its last.pt.

    A run whose teacher is still to be trained has arguments and no checkpoint yet. ValueError as for `prepare`.
    """
    given = dict(given)
    resume = given.pop("resume", None)
    if resume and "config" in given:
        raise TrainingError("--config does not go with --resume: a run continues with its own arguments")
    if resume:
        before = read_config(resume / "config.json")
        check_same_files(before, given)
        given = {**before, **given, "out": resume}
    elif "config" in given:
        before = read_config(given.pop("config"))
        before = as_given(before)
        if given.get("pretrained", before.get("pretrained")) != before.get("pretrained"):
            before = {name: value for name, value in before.items() if name not in ("mean", "std")}  # of that file
        if given.get("optimizer", before.get("optimizer")) != before.get("optimizer"):
            before = {name: value for name, value in before.items() if name != "lr"}  # of that optimizer
        given = {**before, **given}
    args = resolve(given)
    waits = preset_to_train(args["teacher"]) and not (args["out"] / "last.pt").exists()
    return args, bool(resume) and not waits


def idle_flags(given: dict, args: dict) -> list[str]:
    """Notes on flags of the command line that change nothing beside the others. args: all arguments, resolved."""
    teacher, schedule, muon = args["teacher"], args["schedule"], args["optimizer"] == "muon"
    rules = (
        (not teacher, ("distill_weight", "distill_temperature", "teacher_epochs"), "without --teacher"),
        (teacher and not preset_to_train(teacher), ("teacher_epochs",), "with a teacher that is trained already"),
        (not muon, ("adamw_lr",), "without --optimizer muon"),
        (muon, ("weight_decay",), "with --optimizer muon, where nothing decays"),
        (schedule != "cosine", ("min_lr",), f"with --schedule {schedule}"),
        (schedule == "one-cycle", ("warmup",), f"with --schedule {schedule}"),
        (not args["flip"], ("alternate_flip",), "without --flip"),
        (not args["crop"], ("padding",), "without --crop"),
        (not (args["mixup"] or args["cutmix"]), ("mix_prob",), "without --mixup or --cutmix"),
        (args["data"] == "shapes", ("data_root",), "with --data shapes, which are drawn"),
        (args["data"] != "folder", ("skip_bad",), "without --data folder"),
    )
    notes = []
    for idle, names, why in rules:
        flags = [flag_of(name) for name in names if idle and given.get(name)]
        notes += [f"{', '.join(flags)} {'does' if len(flags) == 1 else 'do'} nothing {why}"] if flags else []
    return notes


def as_given(args: dict) -> dict:
    """Resolved arguments without the sizes and clean epochs that nobody gave, which follow others that may change."""
    derived = ("sizes", "smaller_images", "clean_epochs")
    rest = {name: value for name, value in args.items() if name not in derived}
    made = resolve(rest)
    if args.get("sizes"):
        made["smaller_images"] = True
    return rest | {name: args[name] for name in derived if name in args and args[name] != made.get(name)}


def check_same_files(before: dict, given: dict) -> None:
    """TrainingError if a run that goes on would have another teacher, or other weights to start from.

    A teacher's file may lie in another place by now: resume.py compares its weights.
    """
    for name in ("teacher", "pretrained"):
        was, now = (args.get(name) and Path(args[name]) for args in (before, {**before, **given}))
        moved = name == "teacher" and was and now and was.name == now.name
        if was != now and not moved:
            raise TrainingError(
                f"--{name} {now or 'none'}: this run was started with {was or 'none'}; resume it with the same"
            )


def resolve(given: dict) -> dict:
    """Fill in the arguments that were not given, from the preset's recipe and the defaults.

    ValueError for those of OTHER_KINDS that are out of range.
    """
    unknown = sorted(given.keys() - ARGUMENT_KINDS.keys())
    if unknown:
        raise TrainingError(f"there is no argument {unknown[0]!r}")
    preset = given["preset"] if "preset" in given else preset_of_weights(given.get("pretrained"))
    for name, kind in OTHER_KINDS.items():
        kind(given.get(name, DEFAULTS[name]), flag_of(name))
    recipe = {**DEFAULTS, **TRAIN_DEFAULTS, **RECIPES.get(preset, {})}
    args = {**recipe, **given, "preset": preset}
    if args["optimizer"] != recipe["optimizer"] and "lr" not in given:  # the recipe's rate is of its own optimizer
        args["lr"] = RATES.get(str(args["optimizer"]), args["lr"])
    if recipe["sizes"] and "sizes" not in given and preset in PRESETS:
        args["sizes"] = sizes_for(recipe["sizes"], PRESETS[preset], given)
    args |= {name: tuple(args[name]) for name in ("sizes", "mean", "std") if args[name] is not None}
    if args["sizes"] and preset in PRESETS:
        args["smaller_images"] = True
    if "clean_epochs" not in given:  # a short run has a short clean end
        args["clean_epochs"] = min(args["clean_epochs"], args["epochs"] // 10)
    args.setdefault("out", Path("runs") / f"{args['data']}-{preset}")
    return args


def preset_of_weights(path: Path | str | None) -> str:
    """The preset of the checkpoint that a run starts from, if it is one of ours; else the default."""
    preset = (described(Path(path)) or {}).get("preset") if path else None
    return preset if preset in (*PRESETS, *RESNETS) else DEFAULTS["preset"]


def sizes_for(sizes: tuple[int, ...], model: ViTConfig, given: dict) -> tuple[int, ...]:
    """The image sizes of a recipe for another image size or patch than its model has: the same shares of the side."""
    side, patch = (given.get(name, getattr(model, name)) for name in ("image_size", "patch"))
    if not (isinstance(side, int) and isinstance(patch, int) and side > 0 and patch > 0):
        return sizes  # ViTConfig says what is wrong
    return tuple(max(1, round(size * side / model.image_size / patch)) * patch for size in sizes)


def read_config(path: Path) -> dict:
    """Read the arguments of an earlier run from its config.json, or its folder. Raises TrainingError.

    Settings of its model that its preset has no longer are among them.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        content = read_json(path)
        fields(arguments=mapping(text, plain))(content, "its content")
        args = settings_of_model(content) | content["arguments"]
        unknown = sorted(args.keys() - ARGUMENT_KINDS.keys())
        if unknown:
            raise ValueError(f"arguments[{unknown[0]!r}] is not known to this version of the program: take it out")
        fields(**{name: kind for name, kind in ARGUMENT_KINDS.items() if name in args})(args, "arguments")
    except (FileNotFoundError, NotADirectoryError):
        folder = Path(path).parent.parent  # of a checkpoint that was named in place of its run
        hint = f"{folder} is one" if (folder / "config.json").is_file() else "or its config.json"
        raise TrainingError(f"there is no {path}: name a run folder; {hint}") from None
    except (ValueError, RecursionError) as error:  # JSON that is none, too
        reason = one_line(error, 200)
        raise TrainingError(f"{path} is not the config.json of a run: {reason}") from None
    return from_json({name: value for name, value in args.items() if name != "out"})


def settings_of_model(content: dict) -> dict:
    """The settings of the model in a config.json that are not its preset's, which may have changed since."""
    model, preset = content.get("model"), PRESETS.get(str(content["arguments"].get("preset")))
    if preset is None or not isinstance(model, dict):
        return {}
    return {name: model[name] for name in MODEL_FIELDS & model.keys() if model[name] != getattr(preset, name)}


def from_json(args: dict) -> dict:
    """Arguments from JSON: lists become tuples, and the names of files and folders paths."""
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
    variants = {"teacher"} if str(tuples.get("teacher")).startswith("@") else set()  # of a study, no files
    return {k: Path(v) if k in {*PATHS} - variants and v else v for k, v in tuples.items()}


def write_config(path: Path, args: dict, model: nn.Module, trainer: Trainer) -> None:
    """Write config.json: every resolved argument, the model, and the machine."""
    gpu = trainer.device.type == "cuda"
    content = {
        "arguments": plain_arguments(args),
        "model": dataclasses.asdict(model.config) if hasattr(model, "config") else args["preset"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": str(trainer.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(trainer.device) if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": trainer.ranks.number,
        "images": len(trainer.train_split),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": commit()},
    }
    write_json(path, content)


def write_arguments(path: Path, args: dict) -> None:
    """Write a config.json of the arguments alone, for a run that has not begun."""
    write_json(path, {"arguments": plain_arguments(args)})


def plain_arguments(args: dict) -> dict:
    """Arguments as JSON has them."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in args.items()}


def commit() -> str | None:
    """The commit of the code that runs, None outside a git checkout, and inside one of other code."""
    here = Path(__file__)
    command = ["git", "-C", str(here.parent), "rev-parse", "HEAD", f"HEAD:./{here.name}"]  # fails if it is not in HEAD
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.split()[0] if answer.returncode == 0 else None
