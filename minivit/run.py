"""Arguments into a run, and a finished run into its report.

An argument is looked for in this order: the command line, the file of --config, the preset's recipe,
`TrainConfig` and `ViTConfig`. All resolved arguments go to config.json, and the model's into each
checkpoint. The test images are read once, by `final_report`.
"""

import copy
import dataclasses
import json
import logging
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from minivit import checkpoint
from minivit import data as datasets
from minivit.augment import normalise
from minivit.checkpoint import RESNETS, build_model
from minivit.distill import Teacher, preset_to_train, teacher_file
from minivit.distributed import Ranks, own_device
from minivit.evaluate import resize_to_model, top1
from minivit.files import Claim, clear_temporaries, write_atomically
from minivit.pretrained import load_pretrained
from minivit.process import keep_freed_memory
from minivit.reading import (
    check_regular,
    check_weights,
    fields,
    flag,
    flag_of,
    kinds_of,
    mapping,
    one_of,
    optional,
    plain,
    positive,
    real,
    refuse,
    sequence,
    text,
    whole,
)
from minivit.report import percent, write_report
from minivit.splits import DataError, Dataset, Split, hold_out, subset
from minivit.stem import WhiteningStem
from minivit.text import count, name_classes, one_line, shell_word
from minivit.train import (
    LEAST_HOLD_OUT,
    NARROW,
    TrainConfig,
    Trainer,
    TrainingError,
    bf16_is_faster,
    check_crop,
    choose_precision,
    set_up_fine_tuning,
)
from minivit.vit import PRESETS, ViTConfig

log = logging.getLogger(__name__)

CONVOLUTIONAL = {  # a teacher's labels stay sharp without label smoothing (arXiv 1906.02629, section 4)
    "epochs": 40,
    "batch_size": 256,
    "warmup": 0.05,
    "min_lr": 0.0,
    "weight_decay": 0.01,
    "trivial_augment": False,
    "mix_prob": 0.0,
    "erasing": 0.0,
    "label_smoothing": 0.0,
    "clean_epochs": 0,
    "ema_end": 0.999,
}
# Training settings of presets, where they differ from TrainConfig.
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
    "cifar-fast": {
        "epochs": 24,
        "batch_size": 256,
        "optimizer": "muon",
        "schedule": "linear",
        "warmup": 0.05,
        "lr": 0.03,
        "sizes": (24, 24, 32),
        "crop": 3,
        "padding": "reflect",
        "alternate_flip": True,
        "trivial_augment": False,
        "mix_prob": 0.0,
        "erasing": 0.0,
        "clip": 0.0,
        "clean_epochs": 0,
        "ema_start": 0.98,
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
    "distilled": {  # temperature and weight: with --teacher
        "lr": 6e-4,
        "min_lr": 0.0,
        "warmup": 0.05,
        "mixup": 0.4,
        "label_smoothing": 0.05,
        "clean_epochs": 15,
        "distill_temperature": 2.0,
    },
    "resnet18": CONVOLUTIONAL,
    "resnet50": CONVOLUTIONAL,
    "vit-b16": {
        "epochs": 10,
        "batch_size": 128,
        "schedule": "one-cycle",
        "lr": 1e-4,
        "mix_prob": 0.0,
        "erasing": 0.0,
        "clean_epochs": 0,
        "ema_end": 0.999,
        "head_dropout": 0.1,
    },
    "vit-b16-last3": {
        "epochs": 7,
        "batch_size": 128,
        "warmup": 3 / 7,  # 3 epochs
        "lr": 1e-4,
        "min_lr": 0.0,
        "weight_decay": 0.01,
        "train_last": 3,
        "patience": 7,
        "trivial_augment": False,
        "jitter": 0.2,
        "rotate": 15.0,
        "mix_prob": 0.0,
        "clean_epochs": 0,
        "ema_end": 0.999,
    },
}
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
WEIGHTS = ("final", "final_ema", "best")
TRAIN_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)}
MODEL_FIELDS = {f.name for f in dataclasses.fields(ViTConfig)} - {"classes"}
OF_TRAINING = ("config", "preset", "val_split", "pretrained", "mean", "std", "teacher", "teacher_epochs")  # flags
PATHS = ("data_root", "teacher", "pretrained", "out", "resume")
ARGUMENT_KINDS = {  # of config.json
    **{name: kind for name, kind in kinds_of(ViTConfig).items() if name in MODEL_FIELDS},
    "image_size": whole(1),  # images of data sets are square
    **kinds_of(TrainConfig),
    **dict.fromkeys(("optimizer", "schedule", "amp", "padding"), text),  # TrainConfig says which there are
    **dict.fromkeys(("data", "data_root", "preset", "device", "out"), text),
    **dict.fromkeys(("teacher", "pretrained"), optional(text)),
    "teacher_epochs": optional(whole(1)),
    "mean": optional(sequence(real, 3)),
    "std": optional(sequence(positive, 3)),
    "val_split": real,
    "subset": whole(),
    "skip_bad": flag,
    "threads": whole(),
}
MOST_THREADS = 1024  # an operating system that cannot start more ends the process


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


def prepare(
    given: dict, say: Callable[[str], None] = lambda line: None, ranks: Ranks = Ranks(), dataset: Dataset | None = None
) -> tuple[Trainer, dict]:
    """Build a trainer from the arguments that were given, and resolve all others. Writes config.json.

    say: is called with each line that a user wants to read. ranks: of several processes, the first one alone writes.
    dataset: what load_data gives for these arguments, if it is loaded already. Raises ValueError (TrainingError,
    DataError, CheckpointError among them) for what cannot be used, before anything is written.
    """
    return prepare_run(*arguments(given), say, ranks, dataset)


def arguments(given: dict) -> tuple[dict, bool]:
    """Return all arguments, those that were given and the defaults, and whether the run goes on from its last.pt.

    A run whose teacher is still to be trained has arguments and no checkpoint yet. ValueError as for `prepare`.
    """
    given = dict(given)
    resume = given.pop("resume", None)
    if resume and "config" in given:
        raise TrainingError("--config does not go with --resume: a run continues with its own arguments")
    if resume:
        given = {**read_config(resume / "config.json"), **given, "out": resume}
    elif "config" in given:
        before = read_config(given.pop("config"))
        other = {name: value for name, value in before.items() if name != "clean_epochs"}
        if "epochs" in given and before.get("clean_epochs") == resolve(other)["clean_epochs"]:
            before = other  # nobody gave the clean end: it is of that run's epochs
        given = {**before, **given}
    args = resolve(given)
    waits = preset_to_train(args["teacher"]) and not (args["out"] / "last.pt").exists()
    return args, bool(resume) and not waits


def check(args: dict) -> tuple[TrainConfig, dict]:
    """The settings of training and of the model, checked before any data is read. ValueError as for `prepare`."""
    check_out(args["out"])
    config = TrainConfig(**{k: args[k] for k in TRAIN_FIELDS & args.keys()})
    overrides = {k: args[k] for k in MODEL_FIELDS & args.keys()}
    set_up_fine_tuning(checkpoint.outline_model(args["preset"], 1, overrides), config)
    check_crop(config.crop, image_side(args))
    return config, overrides


def prepare_run(
    args: dict,
    resume: bool,
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks = Ranks(),
    dataset: Dataset | None = None,
) -> tuple[Trainer, dict]:
    """Do what `prepare` does, from what `arguments` returned."""
    out = args["out"]
    check_out(out)
    if not resume:
        check_new(out)
    claim = claim_folder(out) if out.is_dir() and ranks.first else None
    state = checkpoint.read(args["out"] / "last.pt") if resume else None
    if state:
        check_same_model(args, state)
    device = set_up_machine(args)
    config, overrides = check(args)
    dataset = dataset or load_data(args)
    torch.manual_seed(args["seed"])  # the weights the model starts with
    model = build_model(args["preset"], len(dataset.classes), overrides)
    check_sizes(config.sizes, model, "the model")
    if args["pretrained"] and not resume:
        loaded = load_pretrained(model, checkpoint.find(args["pretrained"]))
        args |= {name: args[name] or value for name, value in zip(("mean", "std"), loaded.normalisation)}
        say(loaded.line)
    dataset = dataclasses.replace(dataset, mean=args["mean"] or dataset.mean, std=args["std"] or dataset.std)
    if args["pretrained"] and not resume:
        say(f"images are normalised by mean {listed(dataset.mean)} and std {listed(dataset.std)} (--mean, --std)")
    elif not resume:
        fit_whitening(model, dataset)
    if not resume:  # which keeps its precision
        args["amp"] = settle_amp(config, model, dataset, device, measure=ranks.number == 1)
        config = dataclasses.replace(config, amp=args["amp"])
    teacher = load_teacher(teacher_file(args["teacher"], out), dataset, device) if args["teacher"] else None
    check_hold_out(dataset.val, config, say)
    if ranks.first:
        claim = claim or make_folder(out)
    if not resume:
        check_new(out)  # again: another run may have come while the data were loaded
    trainer = Trainer(model, dataset, config, out, device, teacher, describe_model(args, model), ranks)
    if state:
        resume_from(trainer, state)
    if ranks.first:
        trainer.claim = claim
        clear_temporaries(out)
        write_config(out / "config.json", args, model, trainer)
    return trainer, args


def check_new(out: Path) -> None:
    """TrainingError if a run folder holds a run already."""
    if (out / "last.pt").exists():
        raise TrainingError(
            f"{out} holds a run already: continue it with --resume {shell_word(out)}, or choose another --out"
        )


def make_folder(out: Path) -> Claim:
    """Make a run folder, and hold it. TrainingError if another run is at work there."""
    out.mkdir(parents=True, exist_ok=True)
    return claim_folder(out)


def listed(values: tuple[float, ...]) -> str:
    """Numbers of a line of text: (0.5, 0.25) -> "0.5 0.25"."""
    return " ".join(f"{value:.4g}" for value in values)


def claim_folder(out: Path) -> Claim:
    """Hold a run folder. TrainingError if another run is at work there."""
    try:
        return Claim(out)
    except BlockingIOError:
        raise TrainingError(f"another run is at work in {out}: wait for it, stop it, or choose another --out") from None


def check_hold_out(val: Split | None, config: TrainConfig, say: Callable[[str], None]) -> None:
    """Say that a small hold-out chooses nothing. TrainingError if early stopping has none to go by."""
    if val is None and config.patience:
        raise TrainingError(f"--patience {config.patience} needs a hold-out: give --val-split above 0, or --patience 0")
    if val is not None and len(val) < LEAST_HOLD_OUT:
        say(
            f"the hold-out has {count(len(val), 'image')}, too few to choose weights by ({LEAST_HOLD_OUT} are needed): "
            "the averaged weights of the last epoch are taken"
        )


def check_same_model(args: dict, state: dict) -> None:
    """Raise ValueError if a run would go on with another model than its checkpoint has, before any is built."""
    path = args["out"] / "last.pt"
    checkpoint.check_fits(path, state)
    saved = all_settings(state["describe"]["preset"], state["describe"]["overrides"])
    ours = all_settings(args["preset"], {name: args[name] for name in MODEL_FIELDS & args.keys()})
    changed = sorted(name for name in saved.keys() | ours.keys() if saved.get(name) != ours.get(name))
    if changed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise checkpoint.CheckpointError(f"{path} holds a model of another {flags}: resume it with the same settings")


def all_settings(preset: str, overrides: dict) -> dict:
    """The settings of a model, with those that its preset has."""
    return {"preset": preset, **(vars(PRESETS[preset]) if preset in PRESETS else {}), **overrides}


def resume_from(trainer: Trainer, state: dict) -> None:
    """Continue from a checkpoint that was read. Raises ValueError if it is of another run, or damaged."""
    try:
        trainer.load_state_dict(state)
    except TrainingError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = one_line(error, 120)
        raise checkpoint.CheckpointError(
            f"{trainer.run / 'last.pt'} cannot be resumed ({reason}): "
            "it is damaged, of another version of this program, or holds weights alone; start a new run"
        ) from None


def resolve(given: dict) -> dict:
    """Fill in the arguments that were not given, from the preset's recipe and the defaults.

    ValueError for those of OTHER_KINDS that are out of range.
    """
    preset = given.get("preset", DEFAULTS["preset"])
    for name, kind in OTHER_KINDS.items():
        kind(given.get(name, DEFAULTS[name]), flag_of(name))
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    args = {**DEFAULTS, **defaults, **RECIPES.get(preset, {}), **given, "preset": preset}
    args["sizes"] = tuple(args["sizes"])
    if args["sizes"] and preset in PRESETS:
        args["smaller_images"] = True
    if "clean_epochs" not in given:  # a short run has a short clean end
        args["clean_epochs"] = min(args["clean_epochs"], args["epochs"] // 10)
    args.setdefault("out", Path("runs") / f"{args['data']}-{preset}")
    return args


def check_out(out: Path) -> None:
    """TrainingError if something else than a folder stands where the run is to be written."""
    there = next((path for path in (out, *out.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise TrainingError(f"--out {out}: {there} is no folder, choose another --out")


def set_up_machine(given: dict) -> torch.device:
    """Set the threads of this process, if any are given, and its memory; return the device.

    ValueError for what is not there.
    """
    threads = given.get("threads", DEFAULTS["threads"])
    whole(0, MOST_THREADS)(threads, "--threads")
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    return choose_device(given.get("device", DEFAULTS["device"]))


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one. TrainingError if it cannot be used."""
    name = own_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"--device {name!r} cannot be used here ({reason}): try --device cpu") from None
    return device


def load_data(args: dict) -> Dataset:
    """Load the data set that the arguments name, with its hold-out. Raises DataError."""
    dataset = datasets.load(args["data"], args["data_root"], image_side(args), args["seed"], args["skip_bad"])
    if args["subset"]:
        dataset = subset(dataset, args["subset"], args["seed"])
    if not args["val_split"] or dataset.val is not None:  # a folder may bring its own
        return dataset
    try:
        return hold_out(dataset, args["val_split"], args["seed"])
    except DataError:
        if args["val_split"] != DEFAULTS["val_split"]:
            raise
        log.warning("too few images for a hold-out of %g: none is made; --val-split sets another", args["val_split"])
        return dataset


def image_side(args: dict) -> int:
    """The side in pixels at which the training images are read."""
    side = args.get("image_size") or (PRESETS[args["preset"]].size[0] if args["preset"] in PRESETS else 32)
    return datasets.stored_side(args["data"], side)


def check_sizes(sizes: tuple[int, ...], model: nn.Module, name: str) -> None:
    """Raise TrainingError if a VisionTransformer does not take images of these sides."""
    config = getattr(model, "config", None)
    wrong = [side for side in sizes if config and not config.takes(side, side)]
    if wrong:
        step, height, width = (config.patch, *config.size)
        fits = range(step, min(height, width) + 1, step) if config.smaller_images else [height]
        near = sorted(sorted(fits, key=lambda side: abs(side - wrong[0]))[:2])
        raise TrainingError(
            f"--sizes {wrong[0]}: {name} takes no {wrong[0]}x{wrong[0]} images; "
            f"the nearest that it takes: {', '.join(map(str, near))}"
        )


def fit_whitening(model: nn.Module, dataset: Dataset) -> None:
    """Set the frozen first layer of a whitening stem from about 5,000 training images."""
    stem = getattr(model, "patch_embed", None)
    if isinstance(stem, WhiteningStem):
        images = dataset.train.images[:: max(1, len(dataset.train) // 5000)]
        stem.whiten.fit(resize_to_model(normalise(images, dataset.mean, dataset.std), model))


def settle_amp(
    config: TrainConfig, model: nn.Module, dataset: Dataset, device: torch.device, measure: bool = True
) -> str:
    """--amp of a new run. For "auto" with a narrow model on a CPU with bf16, the faster of "bf16" and "off".

    measure False: "off" without these steps, which may tell each of several processes something else.
    """
    settings = getattr(model, "config", None)  # a ResNet has none; its convolutions gain
    auto = config.amp == "auto" and device.type == "cpu" and choose_precision("auto", device) == torch.bfloat16
    if not auto or settings is None or settings.dim >= NARROW:
        return config.amp
    if not measure:
        return "off"
    batch = max(1, min(config.batch_size, len(dataset.train)) // config.accumulate)
    images = dataset.train.images[:batch]
    return (
        "bf16" if bf16_is_faster(model, resize_to_model(normalise(images, dataset.mean, dataset.std), model)) else "off"
    )


def load_teacher(path: Path, dataset: Dataset, device: torch.device) -> Teacher:
    """The model of a checkpoint whose labels are to be learned. Raises ValueError if it does not fit."""
    teacher, state = checkpoint.load_model(path, device)
    if state["classes"] != dataset.classes:
        raise TrainingError(
            f"the teacher {path} knows {name_classes(state['classes'])}, the data has "
            f"{name_classes(dataset.classes)}: choose a teacher that was trained on the same classes"
        )
    return Teacher(teacher, (state["mean"], state["std"]), (dataset.mean, dataset.std)).to(device)


def describe_model(args: dict, model: nn.Module) -> dict:
    """Describe the model for its checkpoints, so that it can be built again."""
    overrides = {k: args[k] for k in MODEL_FIELDS & args.keys()}
    data = {"data": args["data"], "data_root": str(args["data_root"]), "subset": args["subset"]}
    return {"preset": args["preset"], "overrides": overrides, **data}


# ---- config.json ----------------------------------------------------------------------------------------


def read_config(path: Path) -> dict:
    """Read the arguments of an earlier run from its config.json. Raises TrainingError."""
    try:
        check_regular(path, most=1 << 20)
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fields(arguments=mapping(text, plain))(content, "its content")
        args = content["arguments"]
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


def from_json(args: dict) -> dict:
    """Arguments from JSON: lists become tuples, and the names of files and folders paths."""
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
    return {k: Path(v) if k in PATHS and v else v for k, v in tuples.items()}


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
    """The commit of the code that runs, None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() or None


# ---- the final report -----------------------------------------------------------------------------------


def final_report(trainer: Trainer) -> dict:
    """Evaluate a finished run on the test images, once. Writes best.pt, result.json and report/, returns the result.

    The weights of the last epoch, raw and averaged, are measured, and those of the best epoch where the hold-out could
    choose one. best.pt holds the chosen ones; `test_acc` is theirs. Accuracies are shares in [0, 1].
    """
    evaluator, data = trainer.evaluator, trainer.data
    candidates = weights_of(trainer)
    chosen = "best" if "best" in candidates else "final_ema"
    scores = {name: evaluator.predict(model, data.test.images).cpu() for name, model in candidates.items()}
    result = {f"test_acc_{name}": top1(s, data.test.labels) for name, s in scores.items()}
    result |= {"chosen": chosen, "test_acc": result[f"test_acc_{chosen}"], "bad_steps": trainer.bad_steps}
    result["val_acc"] = evaluator.accuracy(candidates[chosen], trainer.val_split) if trainer.val_split else None
    if chosen == "final_ema":
        trainer.save_best("averaged", None)
    best = checkpoint.read(trainer.run / "best.pt")
    result |= {"weights": best["weights"], "epoch": best["epoch"], "epochs": trainer.epoch}
    result["stopped_early"] = trainer.stopped_early
    write_report(
        trainer.run / "report",
        scores[chosen],
        data.test.labels,
        data.classes,
        data.test.images.cpu(),
        trainer.history,
        title=f"{trainer.describe.get('preset', 'model')} on {trainer.describe.get('data', 'its test images')}",
        facts=report_facts(result),
    )
    write_json(trainer.run / "result.json", result)
    return result


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON, whole or not at all. ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))


def weights_of(trainer: Trainer) -> dict[str, nn.Module]:
    """The weights a run offers: "final", "final_ema" and, if the hold-out could choose, "best", those of best.pt."""
    models = {"final": trainer.model, "final_ema": trainer.ema.module}
    if trainer.can_choose:
        path = trainer.run / "best.pt"
        saved = checkpoint.read(path)
        try:
            if saved.get("epoch") != trainer.best["epoch"] or saved.get("weights") is None:
                raise ValueError(f"it is not of epoch {trainer.best['epoch']}")
            check_weights(saved["model"], trainer.model.state_dict())
        except ValueError as error:
            raise checkpoint.CheckpointError(
                f"{path} is of another run, or damaged ({error}): the last checkpoint is whole"
            ) from None
        models["best"] = copy.deepcopy(trainer.ema.module)
        models["best"].load_state_dict(saved["model"])
    return models


def report_facts(result: dict) -> dict[str, str]:
    """The rows of a result at the head of report.md, percentages cut to two decimals like all others there."""
    by = ", chosen by the hold-out" if result["chosen"] == "best" else ""
    facts = {"weights": f"{result['weights']}, epoch {result['epoch']} of {result['epochs']}{by}"}
    for name in WEIGHTS:
        if f"test_acc_{name}" in result:
            facts[f"test accuracy, {weights_name(name)}"] = f"{percent(result[f'test_acc_{name}'])} %"
    if result["val_acc"] is not None:
        facts["hold-out accuracy of these weights"] = f"{percent(result['val_acc'])} %"
    if result["stopped_early"]:
        facts["stopped early"] = "the hold-out accuracy no longer rose (--patience)"
    return facts


def weights_name(name: str) -> str:
    """A name of WEIGHTS in words: "final_ema" -> "final averaged"."""
    return name.replace("_ema", " averaged")
