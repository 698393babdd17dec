"""From arguments to a trainer, and from a finished run to its report.

All resolved arguments go to config.json, and the model's into each checkpoint. The test images are read once, by
`final_report`.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from minivit import checkpoint
from minivit import data as datasets
from minivit.checkpoint import build_model
from minivit.config import DEFAULTS, MODEL_FIELDS, TRAIN_FIELDS, arguments, as_given, resolve, write_config
from minivit.distill import Teacher, teacher_file
from minivit.distributed import Ranks, own_device
from minivit.evaluate import top1
from minivit.files import Claim, check_ours, clear_temporaries, write_json
from minivit.folder import is_split_by_seed, listing
from minivit.precision import NARROW, amp_of, choose_precision
from minivit.pretrained import knows_others, load_pretrained
from minivit.process import keep_freed_memory
from minivit.reading import check_weights, flag_of, whole
from minivit.recipes import RECIPES
from minivit.report import percent, write_report
from minivit.splits import DataError, Dataset, Split, hold_out, subset
from minivit.text import count, name_classes, one_line, shell_word, some_of
from minivit.train import LEAST_HOLD_OUT, Trainer, check_sizes, set_up_fine_tuning
from minivit.train_config import TrainConfig, TrainingError, check_crop
from minivit.vit import PRESETS, VisionTransformer

log = logging.getLogger(__name__)

WEIGHTS = ("final", "final_ema", "best")
MOST_THREADS = 1024  # an operating system that cannot start more ends the process


def prepare(
    given: dict, say: Callable[[str], None] = lambda line: None, ranks: Ranks = Ranks(), dataset: Dataset | None = None
) -> tuple[Trainer, dict]:
    """Build a trainer from the arguments that were given, and resolve all others. Writes config.json.

    say: is called with each line that a user wants to read. ranks: of several processes, the first one alone writes.
    dataset: what load_data gives for these arguments, if it is loaded already. Raises ValueError (TrainingError,
    DataError, CheckpointError among them) for what cannot be used, before anything is written.
    """
    return prepare_run(*arguments(given), say, ranks, dataset)


def check(args: dict, resume: bool = False, processes: int = 1) -> tuple[TrainConfig, dict]:
    """The settings of training and of the model, checked before any data is read. ValueError as for `prepare`."""
    check_out(args["out"])
    config = TrainConfig(**{k: args[k] for k in TRAIN_FIELDS & args.keys()})
    overrides = {k: args[k] for k in MODEL_FIELDS & args.keys()}
    model = checkpoint.outline_model(args["preset"], 1, overrides)
    set_up_fine_tuning(model, config, processes)
    check_sizes(config.sizes, model)
    if args["pretrained"] and not resume:
        check_pretrained(checkpoint.find(args["pretrained"]), model)
    if not args["val_split"] and args["data"] != "folder":  # which may bring a hold-out of its own
        check_patience(config)
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
    if args["pretrained"] and not resume:
        args = resolve(as_given(args) | settings_of_weights(args, say))  # image sizes follow the patch
    config, overrides = check(args, resume, ranks.number)
    dataset = dataset or load_data(args)
    torch.manual_seed(args["seed"])  # the weights the model starts with
    model = build_model(args["preset"], len(dataset.classes), overrides)
    if args["pretrained"] and not resume:
        loaded = load_pretrained(model, checkpoint.find(args["pretrained"]), dataset.classes)
        check_optimizer(loaded.checkpoint, args)
        check_unseen("--pretrained", loaded.checkpoint, args)
        args |= {name: args[name] or value for name, value in zip(("mean", "std"), loaded.normalisation)}
        say(loaded.line)
        if dataset.val is not None:
            warn_of_seen(loaded.checkpoint, args, dataset.classes, say)
    dataset = dataclasses.replace(dataset, mean=args["mean"] or dataset.mean, std=args["std"] or dataset.std)
    if args["pretrained"] and not resume:
        say(f"images are normalised by mean {listed(dataset.mean)} and std {listed(dataset.std)} (--mean, --std)")
    if not resume:
        args["amp"] = settle_amp(config, model, device)
    elif args["amp"] == "auto" and state.get("precision"):  # a run from before this was settled keeps its precision
        args["amp"] = amp_of(getattr(torch, state["precision"]))
    config = dataclasses.replace(config, amp=args["amp"])
    teacher = load_teacher(teacher_file(args["teacher"], out), dataset, device, args) if args["teacher"] else None
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


def settings_of_weights(args: dict, say: Callable[[str], None]) -> dict:
    """The settings of the model that a checkpoint of ours was trained with and that are not its preset's, where the
    arguments do not name them.

    Nothing if it is of another preset, or no checkpoint of ours. Not the image size: positions are interpolated.
    """
    about = checkpoint.described(args["pretrained"])
    if about is None or about.get("preset") != args["preset"]:
        return {}
    trained_with = about.get("overrides") if isinstance(about.get("overrides"), dict) else {}
    usual = all_settings(args["preset"], {})
    missing = sorted(MODEL_FIELDS & trained_with.keys() - args.keys() - {"image_size"})
    missing = [name for name in missing if trained_with[name] != usual.get(name)]
    if missing:
        say(
            f"as {args['pretrained'].name} was trained: "
            + ", ".join(f"{flag_of(name)} {trained_with[name]}" for name in missing)
        )
    return {name: trained_with[name] for name in missing}


def check_new(out: Path) -> None:
    """TrainingError if a run folder holds a run already, ValueError if it holds other files of the names of ours."""
    if (out / "last.pt").exists():
        raise TrainingError(
            f"{out} holds a run already: continue it with --resume {shell_word(out)}, or choose another --out"
        )
    if (out / "best.pt").exists() or (out / "result.json").exists():
        raise TrainingError(f"{out} holds what is left of a run: choose another --out, or move it away")
    check_ours(out, ("config.json", "metrics.jsonl", "report"), "config.json", "arguments", "a run")


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


def check_pretrained(path: Path, model: nn.Module) -> None:
    """TrainingError unless there is such a file, and the model is one that takes published weights."""
    if not isinstance(model, VisionTransformer):
        raise TrainingError("--pretrained starts Vision Transformers alone: choose another --preset, or leave it out")
    if not path.exists():
        raise TrainingError(f"--pretrained: there is no weights file {path}")


def check_patience(config: TrainConfig) -> None:
    """TrainingError if early stopping has no hold-out to go by."""
    if config.patience:
        raise TrainingError(f"--patience {config.patience} needs a hold-out: give --val-split above 0, or --patience 0")


def check_hold_out(val: Split | None, config: TrainConfig, say: Callable[[str], None]) -> None:
    """Say that a small hold-out chooses nothing. TrainingError if early stopping has none to go by."""
    if val is None:
        check_patience(config)
    elif len(val) < LEAST_HOLD_OUT:
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
        flags = ", ".join(map(flag_of, changed))
        raise checkpoint.CheckpointError(f"{path} holds a model of another {flags}: resume it with the same settings")


def all_settings(preset: str, overrides: dict) -> dict:
    """The settings of a model, with those that its preset and the preset's recipe have."""
    of_recipe = {name: value for name, value in RECIPES.get(preset, {}).items() if name in MODEL_FIELDS}
    return {"preset": preset, **(vars(PRESETS[preset]) if preset in PRESETS else {}), **of_recipe, **overrides}


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
    except RuntimeError:
        raise TrainingError(f"--device {name!r}: no such device; give auto, cpu, cuda, cuda:1 or mps") from None
    try:
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # the last of a plug-in that is not installed
        reason = str(error).splitlines()[0]
        reason = "this PyTorch has no such device" if reason.startswith("Could not run") else reason
        raise TrainingError(f"--device {name!r} cannot be used here ({reason}): try --device cpu") from None
    return device


def load_data(args: dict) -> Dataset:
    """Load the data set that the arguments name, with its hold-out. Raises DataError."""
    dataset = datasets.load(args["data"], args["data_root"], image_side(args), args["seed"], args["skip_bad"])
    if args["subset"]:
        whole, dataset = dataset, subset(dataset, args["subset"], args["seed"])
        warn_of_lost(whole, dataset)
    if dataset.val is not None:  # a folder may bring its own
        if args["val_split"] != DEFAULTS["val_split"]:
            log.warning("--val-split %g does nothing: the data have a hold-out of their own", args["val_split"])
        return dataset
    if not args["val_split"]:
        return dataset
    try:
        return hold_out(dataset, args["val_split"], args["seed"])
    except DataError:
        if args["val_split"] != DEFAULTS["val_split"]:
            raise
        log.warning("too few images for a hold-out of %g: none is made; --val-split sets another", args["val_split"])
        return dataset


def warn_of_lost(whole: Dataset, part: Dataset) -> None:
    """Warn of classes of which a subset has no image left to train on, or to test on."""
    for name, splits in (("training", (whole.train, part.train)), ("test", (whole.test, part.test))):
        before, after = (torch.bincount(split.labels, minlength=len(whole.classes)) for split in splits)
        lost = [whole.classes[c] for c in ((before > 0) & (after == 0)).nonzero().flatten().tolist()]
        if lost:
            log.warning("--subset leaves no %s images of %s: give a larger number", name, some_of(lost))


def image_side(args: dict) -> int:
    """The side in pixels at which the training images are read."""
    side = args.get("image_size") or (PRESETS[args["preset"]].size[0] if args["preset"] in PRESETS else 32)
    return datasets.stored_side(args["data"], side)


def settle_amp(config: TrainConfig, model: nn.Module, device: torch.device) -> str:
    """The precision of a new run as a word of --amp, for "auto" too: another machine would choose another.

    By facts alone, not by timing, so that the same command and seed train the same weights on a busy machine.
    """
    amp = amp_of(choose_precision(config.amp, device))
    settings = getattr(model, "config", None)  # a ResNet has none; its convolutions gain
    is_narrow = settings is not None and settings.dim < NARROW
    return "off" if config.amp == "auto" and amp == "bf16" and device.type == "cpu" and is_narrow else amp


def load_teacher(path: Path, dataset: Dataset, device: torch.device, args: dict) -> Teacher:
    """The model of a checkpoint whose labels are to be learned. Raises ValueError if it does not fit."""
    teacher, state = checkpoint.load_model(path, device)
    check_unseen("--teacher", state, args)
    if state["classes"] != dataset.classes:
        raise TrainingError(
            f"the teacher {path} knows {name_classes(state['classes'])}, the data has "
            f"{name_classes(dataset.classes)}: choose a teacher that was trained on the same classes"
        )
    return Teacher(teacher, (state["mean"], state["std"]), (dataset.mean, dataset.std)).to(device)


def check_optimizer(state: dict | None, args: dict) -> None:
    """TrainingError if Muon would train weights that it did not train before: its first step changes their norms.

    state: the checkpoint of ours that the weights are from, None for others.
    """
    if args["optimizer"] == "muon" and (state is None or state["config"].get("optimizer", "adamw") != "muon"):
        raise TrainingError(
            f"--pretrained {args['pretrained']}: Muon gives each matrix a norm of its own, which undoes what another "
            "optimizer has learned: give --optimizer adamw"
        )


def check_unseen(name: str, state: dict | None, args: dict) -> None:
    """TrainingError if a checkpoint was trained on images that are test images here.

    So it is where class folders without a test/ were split by another seed.
    """
    if state is None or not is_split_by_seed(args["data"], args["data_root"]):
        return
    about, seed = state["describe"], state["config"].get("seed", args["seed"])
    check_listing(f"{name} {args[name.removeprefix('--')]}", about, args)
    if is_same_data(about, args) and seed != args["seed"]:
        raise TrainingError(
            f"{name} {args[name.removeprefix('--')]}: {args['data_root']} has no test/, so its class folders are split "
            f"by the seed, and this checkpoint saw test images of seed {args['seed']}: give --seed {seed}, or make a "
            "test/"
        )


def check_listing(name: str, about: dict, args: dict) -> None:
    """TrainingError if class folders that are split by a seed have changed since a checkpoint was trained on them:
    another list of files is split otherwise. about: the checkpoint's description."""
    known = about.get("listing")
    if known is None or not is_same_data(about, args) or known == listing(args["data"], args["data_root"]):
        return
    raise TrainingError(
        f"{name}: images were added to {args['data_root']}, removed or renamed since, and its class folders are split "
        "by the seed: test images of now may have been trained on; make a test/ of images that are new to it"
    )


def is_same_data(about: dict, args: dict) -> bool:
    """Whether a checkpoint, described by `about`, was trained on the images that the arguments name: those of the same
    folder or, where class folders are split by a seed, of a copy with the same names."""
    if about.get("data") != args["data"] or "data_root" not in about:
        return False
    known = [about[name] for name in ("place", "data_root") if name in about]  # moved with the run, the second is right
    if Path(args["data_root"]).resolve() in map(Path.resolve, map(Path, known)):
        return True
    return about.get("listing") is not None and about["listing"] == listing(args["data"], args["data_root"])


def warn_of_seen(state: dict | None, args: dict, classes: Sequence[str], say: Callable[[str], None]) -> None:
    """Say that a checkpoint may have been trained on images that are held out now: its hold-out was drawn otherwise."""
    if state is None or is_split_by_seed(args["data"], args["data_root"]):
        return
    seen = f"{args['pretrained']} may have been trained on images that are held out now, which makes the hold-out's "
    seen += "accuracies too high to choose by: it was trained "
    if checkpoint.find(args["pretrained"]) == checkpoint.DEMO:  # on files in an order that another copy need not have
        if not knows_others(state, classes):
            say(f"{seen}on 49,000 of CIFAR-10's 50,000 training images")
        return
    was = {"seed": state["config"].get("seed", args["seed"])} | state["describe"]
    if args["data"] == "shapes" and was["seed"] != args["seed"]:
        return  # another seed draws other images
    changed = [name for name in ("seed", "subset", "val_split") if was.get(name, args[name]) != args[name]]
    if changed and is_same_data(was, args):
        say(f"{seen}with {', '.join(f'{flag_of(name)} {was[name]}' for name in changed)}")


def describe_model(args: dict, model: nn.Module) -> dict:
    """Describe the model, and the data, for its checkpoints."""
    data = {name: args[name] for name in ("data", "subset", "val_split")} | {"data_root": str(args["data_root"])}
    names = listing(args["data"], args["data_root"])
    split_by_seed = {"listing": names, "place": str(Path(args["data_root"]).resolve())} if names else {}
    return checkpoint.describe(model, args["preset"]) | data | split_by_seed


def final_report(trainer: Trainer) -> dict:
    """Evaluate a finished run on the test images, once. Writes result.json and report/, returns the result.

    The weights of the last epoch, raw and averaged, are measured, and those of the best epoch where the hold-out could
    choose one. best.pt holds the chosen ones, and is written here if the hold-out chose nothing; `test_acc` is theirs.
    Accuracies are shares in [0, 1]. TrainingError if the scores of the chosen weights are not finite.
    """
    evaluator, data = trainer.evaluator, trainer.data
    candidates = candidates_of(trainer)
    chosen = "best" if "best" in candidates else "final_ema"
    scores = {name: evaluator.predict(model, data.test.images).cpu() for name, model in candidates.items()}
    if not bool(scores[chosen].isfinite().all()):
        raise TrainingError("the weights give scores that are NaN or infinite: start a new run, with a lower --lr")
    result = {f"test_acc_{name}": top1(s, data.test.labels) for name, s in scores.items()}
    result |= {"chosen": chosen, "test_acc": result[f"test_acc_{chosen}"], "bad_steps": trainer.bad_steps}
    result["val_acc"] = evaluator.accuracy(candidates[chosen], trainer.val_split) if trainer.val_split else None
    if chosen == "final_ema":
        trainer.save_best("averaged", None)
    best = checkpoint.read(trainer.run / "best.pt")
    result |= {"weights": best["weights"], "epoch": best["epoch"], "epochs": trainer.epoch}
    result["stopped_early"] = trainer.stopped_early and trainer.epoch < trainer.config.epochs
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


def candidates_of(trainer: Trainer) -> dict[str, nn.Module]:
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
