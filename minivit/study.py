"""Studies: a table of variants x seeds, each cell a training run of its own, done once and resumable.

    {command} --study grid --seeds 3                 # width, depth and patch size of a plain ViT from scratch
    {command} --study ladder --hours 0.5             # from a plain ViT to a ResNet + transformer, equal hours a run
    {command} --study FILE.json --epochs 10 --subset 5000

A run lies in OUT/<variant>-seed<n>. What is finished is skipped, what was interrupted goes on, so the same command
completes a study that was stopped. After each run table.md, table.csv and table.png are written from all that are
finished. A study is a mapping from the names of variants to their training arguments; "@NAME" as --teacher is the best
checkpoint of another variant of the same seed. Left out: variants in parallel, tests of significance.
"""

import itertools
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minivit import checkpoint, run
from minivit import data as datasets
from minivit.files import write_atomically
from minivit.reading import check_regular, fields, flag_of, mapping, plain, text
from minivit.report import BLUE, GREY, csv_table, draw_png, percent
from minivit.text import complain, count, csv_cell, markdown, say
from minivit.train import Trainer, TrainingError

PLAIN = {"crop": 0, "flip": False, "trivial_augment": False, "erasing": 0.0, "mix_prob": 0.0, "label_smoothing": 0.0}
NOISE = {"trivial_augment": False, "jitter": 0.4, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0}
DISTILLED = {"preset": "distilled"}  # whose own recipe is soft distillation: temperature 2, weight 0.5
HARD = {"distill_temperature": 0.0}
TEACHER = {"preset": "resnet18"}
LADDER = {"preset": "vit-d256-l6"}

# Variants by study: name -> arguments, as flags have them, and settings of ViTConfig.
STUDIES: dict[str, dict[str, dict]] = {
    "grid": {
        "patch 4, dim 128, depth 6, heads 4": {"preset": "vit-d128-l6"},
        "patch 4, dim 256, depth 6, heads 4": {"preset": "vit-d256-l6"},
        "patch 4, dim 128, depth 12, heads 8": {"preset": "vit-d128-l6", "depth": 12, "heads": 8},
        "patch 2, dim 128, depth 6, heads 4": {"preset": "vit-d128-l6", "patch": 2},
    },
    "ladder": {
        "ResNet-18, the teacher": TEACHER,
        "baseline": {**LADDER, **PLAIN, "clean_epochs": 0},
        "+ augmentation and regularisation": {**LADDER, **NOISE},
        "small CNN + transformer": {**LADDER, **NOISE, "stem": "cnn"},
        "explicit blocks with LayerScale": {**LADDER, **NOISE, "layer_scale": 0.1},
        "distilled from ResNet-18": {**LADDER, **NOISE, "layer_scale": 0.1, "teacher": "@ResNet-18, the teacher"},
        "ResNet-18 + transformer": {**LADDER, **NOISE, "stem": "resnet18"},
    },
    "distillation": {
        "teacher, ResNet-18": TEACHER,
        "student alone": DISTILLED,
        "soft, with the token": {**DISTILLED, "teacher": "@teacher, ResNet-18"},
        "hard, with the token": {**DISTILLED, **HARD, "teacher": "@teacher, ResNet-18"},
        "soft, without the token": {**DISTILLED, "distillation": False, "teacher": "@teacher, ResNet-18"},
        "hard, without the token": {**DISTILLED, **HARD, "distillation": False, "teacher": "@teacher, ResNet-18"},
    },
    "ablation": {
        "distilled, without a teacher": DISTILLED,
        "no class-attention tail": {**DISTILLED, "class_attention": 0},
        "no position bias": {**DISTILLED, "relative_bias": "none"},
        "no position at all": {**DISTILLED, "relative_bias": "none", "position": "none"},
        "no averaged weights (EMA)": {**DISTILLED, "ema_start": 0.0, "ema_end": 0.0},
        "no clean end": {**DISTILLED, "clean_epochs": 0},
        "patch 2": {**DISTILLED, "patch": 2},
        "patch 8": {**DISTILLED, "patch": 8},
    },
}
EXAMPLE = '{"base": {"preset": "cifar-small"}, "variants": {"narrow": {"dim": 64}, "lr": {"lr": [5e-4, 1e-3, 2e-3]}}}'
KEYS = run.ARGUMENT_KINDS.keys() - {"out", "seed", "threads", "device"}  # what a variant may say
LISTS = ("sizes",)  # arguments that are lists themselves
COLUMNS = ("variant", "test accuracy %", "std", "n", "parameters", "epochs", "images/s", "minutes")

NOTE = (
    "The standard deviation is that of single runs (n - 1). Minutes are those of training alone. The weights are those "
    "that the hold-out chose, else the averaged ones of the last epoch."
)


class StudyError(ValueError):
    """A study that cannot be run. The message is one line and says what to change."""


@dataclass(frozen=True)
class Row:
    """The finished runs of a variant: test accuracies in [0, 1], parameters, epochs, images per second, minutes."""

    name: str
    accuracies: tuple[float, ...]
    parameters: int | None = None
    epochs: int | None = None
    images_per_s: float | None = None
    minutes: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean accuracy, None without a finished run."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> float | None:
        """Standard deviation of single runs (n - 1), None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


# ---- what is studied ------------------------------------------------------------------------------------


def load_study(name: str) -> dict[str, dict]:
    """The variants of a study of STUDIES, or of a .json file. StudyError for what is neither, and for wrong keys."""
    if name in STUDIES:
        return STUDIES[name]
    if not name.endswith(".json"):
        raise StudyError(f"--study {name}: choose {', '.join(STUDIES)}, or give a .json file")
    try:
        check_regular(name, most=1 << 20)
        content = json.loads(Path(name).read_text())
        fields(variants=mapping(text, mapping(text, plain), least=1))({"variants": {"": {}}} | as_dict(content), "it")
        wrong = sorted(content.keys() - {"base", "variants"})
        if wrong:
            raise ValueError(f"it has the key {wrong[0]!r}, where base and variants are known")
        base = content.get("base", {})
        mapping(text, plain)(base, "base")
        variants = {}
        for variant, arguments in content.get("variants", {"": {}}).items():
            for each, settings in expand(variant, base | arguments):
                variants[each] = settings
    except FileNotFoundError:
        raise StudyError(f"--study {name}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise StudyError(f"--study {name}: {' '.join(str(error).split())[:200]}") from None
    return variants


def as_dict(content: object) -> dict:
    """The content of a study's file. ValueError if it is no dictionary."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds no dictionary; a study looks like {EXAMPLE}")
    return content


def expand(name: str, arguments: dict) -> list[tuple[str, dict]]:
    """A variant, or the grid of its arguments that are lists: one variant for each combination. ValueError for keys."""
    for key, value in arguments.items():
        if key not in KEYS:
            near = [known for known in sorted(KEYS) if known.startswith(str(key)[:3])]
            raise ValueError(f"{name or 'base'!r} has the argument {key!r}, which is none; near: {', '.join(near[:5])}")
        if isinstance(value, dict) or value == []:
            raise ValueError(f"{name or 'base'!r}: {key} is {value!r}, not a value or a list of values")
    many = [key for key, v in arguments.items() if isinstance(v, list) and (key not in LISTS or isinstance(v[0], list))]
    found = []
    for values in itertools.product(*(arguments[key] for key in many)):
        own = dict(zip(many, values))
        label = ", ".join(filter(None, [name, *(f"{key.replace('_', ' ')} {value}" for key, value in own.items())]))
        found.append((label or "base", arguments | own))
    return found


def folder_name(name: str, seed: int) -> str:
    """The run folder of a variant: its name in letters that every system takes, and its seed."""
    return f"{re.sub(r'[^A-Za-z0-9.+=]+', '-', name).strip('-.').lower() or 'variant'}-seed{seed}"


def plan(variants: Mapping[str, dict], given: dict, out: Path, seeds: int) -> list[tuple[str, int, dict]]:
    """The runs of a study in their order: (variant, seed, arguments), by seed first, teachers before their students.

    given: arguments of the command line, which hold where a variant says nothing. StudyError if one cannot be.
    """
    names = sorted(variants, key=lambda name: is_student(variants[name]))  # stable: else in the order of the study
    folders = {folder_name(name, 0): name for name in variants}
    if len(folders) < len(variants):
        raise StudyError("two variants have names that differ in nothing but signs: rename one")
    for name in names:
        check_variant(name, {**given, **variants[name]}, variants)
    runs = []
    for seed in range(given.get("seed", 0), given.get("seed", 0) + seeds):
        for name in names:
            arguments = {**given, **variants[name], "seed": seed, "out": out / folder_name(name, seed)}
            if is_student(arguments):
                teacher = out / folder_name(arguments["teacher"][1:], seed)
                arguments["teacher"] = teacher / "best.pt"
            runs.append((name, seed, arguments))
    return runs


def is_student(arguments: Mapping) -> bool:
    """Whether another variant teaches this one."""
    return str(arguments.get("teacher") or "").startswith("@")


def check_variant(name: str, arguments: dict, variants: Mapping[str, dict]) -> None:
    """StudyError unless the arguments of a variant can be those of a run, as far as that is known without its data."""
    try:
        if is_student(arguments) and (
            arguments["teacher"][1:] not in variants or is_student(variants[arguments["teacher"][1:]])
        ):
            raise ValueError(f"its teacher {arguments['teacher']!r} is no variant without a teacher of its own")
        known = {key: kind for key, kind in run.ARGUMENT_KINDS.items() if key in arguments and key in KEYS}
        fields(**{key: kind for key, kind in known.items() if key not in run.PATHS})(arguments, "it")
        args = run.resolve(arguments)
        run.TrainConfig(**{key: args[key] for key in run.TRAIN_FIELDS & args.keys()})
        checkpoint.outline_model(args["preset"], 1, {key: args[key] for key in run.MODEL_FIELDS & args.keys()})
    except ValueError as error:
        raise StudyError(f"variant {name!r}: {' '.join(str(error).split())}") from None


# ---- running it -----------------------------------------------------------------------------------------


def study(name: str, given: dict, fit: Callable[[Trainer], bool]) -> int:
    """Run what is not finished of a study and write its table; returns the exit status.

    given: the arguments of the command line; seeds, hours and out among them. fit: trains, False when it was stopped.
    A run that diverges is told, and the others go on; the status is then 2.
    """
    seeds, hours = given.pop("seeds", 1), given.pop("hours", None)
    variants = load_study(name)
    out = given.pop("out", None) or Path("runs") / f"study-{Path(name).stem}"
    run.check_out(out)
    runs = plan(variants, given, out, seeds)
    done = [is_done(arguments) for _, _, arguments in runs]
    loader, failed = Loader(), 0
    for number, (variant, seed, arguments) in enumerate(runs):
        label = f"[{number + 1}/{len(runs)}] {variant}, seed {seed}"
        if done[number]:
            say(f"{label}: done")
            continue
        say(f"{label}: {arguments['out']}")
        try:
            if is_student(variants[variant]) and not arguments["teacher"].exists():
                raise TrainingError("its teacher is not trained")
            if not finish(arguments, hours, fit, loader):
                return 130
        except TrainingError as error:
            failed += 1
            complain(f"error: {label}: {error}")
        write_tables(out, name, variants, runs)
    write_tables(out, name, variants, runs)
    if (out / "table.md").exists():
        say(f"table: {out / 'table.md'}")
    return 2 if failed else 0


def is_done(arguments: dict) -> bool:
    """Whether the run of these arguments is finished. StudyError if its folder holds another one."""
    folder = arguments["out"]
    if not (folder / "config.json").exists():
        return False
    saved, wanted = run.read_config(folder / "config.json"), run.resolve(arguments)
    free = {"out", "device", "threads", "amp", *({"epochs", "clean_epochs"} - arguments.keys())}
    other = sorted(key for key in wanted.keys() - free if key in saved and saved[key] != wanted[key])
    if other:
        raise StudyError(
            f"{folder} was trained with another {flag_of(other[0])} ({saved[other[0]]}): choose another --out, or "
            "remove it"
        )
    return (folder / "result.json").exists()


class Loader:
    """Loads data sets, and keeps the last one for the next run."""

    def __init__(self):
        self.key, self.dataset = None, None

    def load(self, args: dict) -> datasets.Dataset:
        """The data of resolved arguments, with its hold-out. Raises DataError."""
        names = ("data", "data_root", "seed", "skip_bad", "val_split", "subset")
        key = (run.image_side(args), *(str(args[name]) for name in names))
        if key != self.key:
            self.key, self.dataset = None, None  # not both in memory
            self.dataset = run.load_data(args)
            self.key = key
        return self.dataset


def finish(arguments: dict, hours: float | None, fit: Callable[[Trainer], bool], loader: Loader) -> bool:
    """Train a run, or go on with it, to its report. False when it was stopped, and saved."""
    folder, arguments = arguments["out"], dict(arguments)
    dataset = loader.load(run.resolve(arguments))
    if (folder / "last.pt").exists():
        arguments = {"resume": folder}
    elif hours:
        arguments["epochs"] = epochs_within(hours, arguments, dataset)
        say(f"{count(arguments['epochs'], 'epoch')} in {hours:g} h")
    trainer, _ = run.prepare(arguments, say, dataset=dataset)
    try:
        if not fit(trainer):
            return False
        run.final_report(trainer)
        return True
    finally:
        trainer.claim.release()


def epochs_within(hours: float, arguments: dict, dataset: datasets.Dataset, least: float = 5.0) -> int:
    """How many epochs of training take `hours`, from the time of some steps; at least 1.

    On a CPU processor time is measured and divided by the threads, so that other work on the machine does not count.
    least: seconds of measurement at each image size.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = run.resolve(arguments)["sizes"] or (None,)
        probe = {**arguments, "out": Path(folder) / "probe", "epochs": len(sizes), "clean_epochs": 0}
        trainer, _ = run.prepare(probe, dataset=dataset)
        trainer.forward.train()
        seconds = []
        for trainer.epoch in range(len(sizes)):
            step_seconds(trainer)  # the first one allocates, and may compile
            measured = []
            while not measured or (sum(measured) < least and len(measured) < 20):
                measured.append(step_seconds(trainer))
            seconds.append(statistics.fmean(measured))
        trainer.claim.release()
    return max(1, int(3600 * hours / (statistics.fmean(seconds) * trainer.steps_per_epoch)))


def step_seconds(trainer: Trainer) -> float:
    """Seconds of one training step."""
    on_gpu = trainer.device.type != "cpu"
    clock, threads = (time.perf_counter, 1) if on_gpu else (time.process_time, torch.get_num_threads())
    index = torch.randint(len(trainer.train_split), (trainer.batch_size,)).to(trainer.device)
    started = clock()
    trainer.train_step(trainer.flipped(index), trainer.train_split.labels[index])
    if on_gpu:
        float(trainer.sums[0])  # waits for the device
    return (clock() - started) / threads


# ---- the table ------------------------------------------------------------------------------------------


def collect(variants: Mapping[str, dict], runs: list[tuple[str, int, dict]]) -> list[Row]:
    """What the finished runs of each variant say. Raises TrainingError for a file that is damaged."""
    rows = []
    for name in variants:
        folders = [arguments["out"] for variant, _, arguments in runs if variant == name]
        found = [read_run(folder) for folder in folders if (folder / "result.json").exists()]
        if not found:
            rows.append(Row(name, ()))
            continue
        means = {key: statistics.fmean(each[key] for each in found) for key in ("images_per_s", "minutes")}
        accuracies = tuple(each["accuracy"] for each in found)
        rows.append(Row(name, accuracies, found[0]["parameters"], max(each["epochs"] for each in found), **means))
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """Accuracy, parameters, epochs, images per second and minutes of training of a finished run. Raises TrainingError.

    The minutes are those of training alone, without evaluation, as its metrics.jsonl has them.
    """
    try:
        result, config = (json.loads((folder / name).read_text()) for name in ("result.json", "config.json"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        images, speeds = int(config["images"]), [float(row["images_per_s"]) for row in rows]
        minutes = sum(images / speed for speed in speeds) / 60
        found = {"accuracy": float(result["test_acc"]), "parameters": int(config["parameters"]), "epochs": len(rows)}
        found |= {"images_per_s": images * len(rows) / (60 * minutes), "minutes": minutes}
        if not (0 <= found["accuracy"] <= 1 and all(map(math.isfinite, found.values()))):
            raise ValueError("its numbers are out of range")
        return found
    except (ValueError, KeyError, TypeError, ArithmeticError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise TrainingError(f"{folder} holds a damaged run ({reason}): remove it, and it is trained again") from None


def write_tables(out: Path, name: str, variants: Mapping[str, dict], runs: list[tuple[str, int, dict]]) -> None:
    """Write table.md, table.csv and, with matplotlib, table.png."""
    rows = collect(variants, runs)
    if not any(row.accuracies for row in rows):
        return
    args = run.resolve(runs[0][2])
    about = f"{args['data']}" + (f", {args['subset']} training images" if args["subset"] else "")
    seeds = sorted({seed for _, seed, _ in runs})
    title = f"Study {Path(name).stem} on {about}"
    lines = [f"# {markdown(title)}", ""]
    lines += [f"Seeds {', '.join(map(str, seeds))}. {NOTE}"]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "| :-- |" + " --: |" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join([markdown(row.name), *cells(row)]) + " |" for row in rows]
    files = {"table.md": ("\n".join(lines) + "\n").encode()}
    exact = [[csv_cell(row.name), row.mean, row.std, len(row.accuracies), row.parameters, row.epochs] for row in rows]
    exact = [[*cells_, row.images_per_s, row.minutes] for cells_, row in zip(exact, rows)]
    files["table.csv"] = csv_table([("variant", "test_accuracy", *COLUMNS[2:]), *exact])
    picture = draw_png(lambda: draw(rows, title), "".join([title, *(row.name for row in rows)]))
    if picture is not None:
        files["table.png"] = picture
    for file, content in files.items():
        write_atomically(out / file, lambda path, content=content: path.write_bytes(content))


def cells(row: Row) -> list[str]:
    """The cells of a row after its name; a dash where there is nothing."""
    dash = percent(None)
    number = {"parameters": row.parameters, "epochs": row.epochs, "images/s": row.images_per_s, "minutes": row.minutes}
    forms = {"parameters": "{:,}", "epochs": "{}", "images/s": "{:,.0f}", "minutes": "{:,.1f}"}
    std = dash if row.std is None else f"{100 * row.std:.2f}"
    rest = [dash if value is None else forms[key].format(value) for key, value in number.items()]
    return [percent(row.mean), std, str(len(row.accuracies)), *rest]


def draw(rows: list[Row], title: str) -> Any:
    """A figure: the mean accuracy of each variant, its standard deviation, and a point for each run."""
    from matplotlib.figure import Figure

    done = [row for row in rows if row.accuracies][::-1]  # the first one on top
    figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(done)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    places = range(len(done))
    errors = [100 * (row.std or 0) for row in done]
    axes.barh(places, [100 * row.mean for row in done], xerr=errors, color=BLUE, alpha=0.7, height=0.6, ecolor=GREY)
    for place, row in zip(places, done):
        axes.plot([100 * a for a in row.accuracies], [place] * len(row.accuracies), ".", color="black", markersize=4)
        axes.annotate(
            percent(row.mean), (0, place), (4, 0), textcoords="offset points", va="center", fontsize=8, color="white"
        )
    axes.set_yticks(places, [row.name for row in done], fontsize=9, parse_math=False)
    axes.set_xlabel("test accuracy (%)", fontsize=9)
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
