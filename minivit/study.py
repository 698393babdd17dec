"""Studies: a table of variants x seeds, each cell a training run of its own, done once and resumable.

    python train_cifar.py --study grid --seeds 3             # width, depth and patch size of a plain ViT from scratch
    python train_cifar.py --study ladder --cpu-minutes 30    # from a plain ViT to a ResNet + transformer, equal time
    python train_cifar.py --study ladder --cpu-minutes 30 --seeds 3 --repeat baseline best    # three seeds for two rows
    python train_cifar.py --study FILE.json --epochs 10 --subset 5000

A run lies in OUT/<variant>-seed<n>. Finished runs are skipped and interrupted ones go on, so the same command completes
a study that was stopped. After each run table.md, table.csv and table.png are written from all that are finished.
OUT/study.json holds the time budget, which all runs of a folder share; the seeds of a variant have equal epochs.
A study is a mapping from the names of variants to their training arguments; "@NAME" as --teacher is the best
checkpoint of another variant of the same seed. Left out: variants in parallel, tests of significance.
"""

import copy
import itertools
import json
import math
import re
import statistics
import textwrap
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivit import checkpoint, config, run
from minivit.budget import Budget, epochs_within
from minivit.distill import preset_to_train
from minivit.files import check_ours, write_atomically, write_json
from minivit.reading import fields, flag_of, mapping, optional, plain, positive, read_json, text
from minivit.report import BLUE, GREY, csv_table, draw_png, percent
from minivit.splits import Dataset
from minivit.text import complain, count, csv_cell, markdown, one_line, say
from minivit.train import Trainer
from minivit.train_config import TrainingError

PLAIN = {"crop": 0, "flip": False, "trivial_augment": False, "erasing": 0.0, "mix_prob": 0.0, "label_smoothing": 0.0}
NOISE = {"trivial_augment": False, "jitter": 0.4, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0}
DISTILLED = {"preset": "distilled"}  # whose own recipe is soft distillation: temperature 2, weight 0.5
SOFT, HARD = {"distill_temperature": 2.0}, {"distill_temperature": 0.0}
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
        "+ LayerScale": {**LADDER, **NOISE, "layer_scale": 0.1},
        "distilled from ResNet-18": {
            **LADDER,
            **NOISE,
            **SOFT,
            "layer_scale": 0.1,
            "teacher": "@ResNet-18, the teacher",
        },
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
KEYS = config.ARGUMENT_KINDS.keys() - {"out", "seed", "threads", "device"}  # what a variant may say
LISTS = ("sizes", "mean", "std")  # arguments that are lists themselves
MOST_VARIANTS = 10_000  # of a grid
LONGEST_NAME = 240  # letters of a run folder's name before its seed; file systems take 255
COLUMNS = ("variant", "test accuracy %", "std", "n", "parameters", "epochs", "images/s", "minutes", "CPU minutes")
NUMBERS = {  # of Row, in the order of the columns after n, and how they are written
    "parameters": "{:,}",
    "epochs": "{}",
    "images_per_s": "{:,.0f}",
    "minutes": "{:,.1f}",
    "cpu_minutes": "{:,.1f}",
}
MEANS = ("images_per_s", "minutes", "cpu_minutes", "held_out")  # of Row: means over the runs
BEST = "best"  # of --repeat: the variant with the highest hold-out accuracy

NOTE = (
    "n is the number of runs; the standard deviation is that of single runs (n - 1). Minutes are the elapsed time of "
    "training alone. CPU minutes are processor time over all threads, evaluation on the hold-out included. The weights "
    "are those that the hold-out chose, else the averaged ones of the last epoch."
)
BUDGET_NOTE = (
    "The number of epochs was settled beforehand, by the lower quartile of timed steps; on a busy machine a run then "
    "takes more processor time than its budget, and the columns have what it took. A student's budget does not pay for "
    "its teacher."
)


class StudyError(ValueError):
    """A study that cannot be run. The message is one line and says what to change."""


@dataclass(frozen=True)
class Row:
    """The finished runs of a variant: test and hold-out accuracies in [0, 1], and the means of their other numbers."""

    name: str
    accuracies: tuple[float, ...]
    parameters: int | None = None
    epochs: int | None = None
    images_per_s: float | None = None
    minutes: float | None = None
    cpu_minutes: float | None = None
    held_out: float | None = None  # mean hold-out accuracy

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
        return copy.deepcopy(STUDIES[name])
    if not name.endswith(".json"):
        raise StudyError(f"--study {name}: choose {', '.join(STUDIES)}, or give a .json file")
    try:
        content = read_json(name)
        fields(variants=mapping(text, mapping(text, plain), least=1))({"variants": {"": {}}} | as_dict(content), "it")
        wrong = sorted(content.keys() - {"base", "variants"})
        if wrong:
            raise ValueError(f"it has the key {wrong[0]!r}, where base and variants are known")
        base = content.get("base", {})
        mapping(text, plain)(base, "base")
        variants = {}
        for variant, arguments in content.get("variants", {"": {}}).items():
            for each, settings in expand(variant, base | arguments):
                if each in variants:
                    raise ValueError(f"two variants are called {each!r}: give one of them another name")
                variants[each] = config.from_json(settings)
    except FileNotFoundError:
        raise StudyError(f"--study {name}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise StudyError(f"--study {name}: {one_line(error, 200)}") from None
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
            hint = f"; near: {', '.join(near[:5])}" if near else ", of a training run"
            raise ValueError(f"{name or 'base'!r} has the argument {key!r}, which is none{hint}")
        if isinstance(value, dict) or value == []:
            raise ValueError(f"{name or 'base'!r}: {key} is {value!r}, not a value or a list of values")
    many = [key for key, v in arguments.items() if isinstance(v, list) and (key not in LISTS or isinstance(v[0], list))]
    if math.prod(len(arguments[key]) for key in many) > MOST_VARIANTS:
        raise ValueError(f"{name or 'base'!r} is a grid of more than {MOST_VARIANTS} variants: give fewer values")
    found = []
    for values in itertools.product(*(arguments[key] for key in many)):
        own = dict(zip(many, values))
        label = ", ".join(filter(None, [name, *(f"{key.replace('_', ' ')} {value}" for key, value in own.items())]))
        for key, value in (arguments | own).items():
            config.ARGUMENT_KINDS[key](value, f"{label or 'base'!r}: {key}")
        found.append((label or "base", arguments | own))
    return found


def folder_name(name: str, seed: int) -> str:
    """The run folder of a variant: its name in letters that every system takes, and its seed."""
    letters = re.sub(r"[^A-Za-z0-9.+=]+", "-", name).strip("-.").lower() or "variant"
    if len(letters) > LONGEST_NAME:
        letters = f"{letters[: LONGEST_NAME - 9]}-{zlib.crc32(letters.encode()):08x}"
    return f"{letters}-seed{seed}"


def plan(
    variants: Mapping[str, dict], given: dict, out: Path, seeds: int, repeated: Collection[str] | None = None
) -> list[tuple[str, int, dict]]:
    """The runs of a study in their order: (variant, seed, arguments), by seed first, teachers before their students.

    given: arguments of the command line, which hold where a variant says nothing. repeated: the variants that have
    all the seeds, their teachers with them, where the others have the first one; None for all. StudyError if one of the
    runs cannot be.
    """
    names = sorted(variants, key=lambda name: is_student(variants[name]))  # stable: else in the order of the study
    folders = {folder_name(name, 0): name for name in variants}
    if len(folders) < len(variants):
        raise StudyError("two variants have names that differ in nothing but signs: rename one")
    for name in names:
        check_variant(name, combine(given, variants[name]), variants)
    again = names if repeated is None else with_teachers(repeated, variants)
    runs, first = [], given.get("seed", 0)
    for seed in range(first, first + seeds):
        for name in names:
            if seed > first and name not in again:
                continue
            arguments = combine(given, variants[name]) | {"seed": seed, "out": out / folder_name(name, seed)}
            if is_student(arguments):
                arguments["teacher"] = out / folder_name(teacher_of(arguments), seed) / "best.pt"
            runs.append((name, seed, arguments))
    return runs


def is_student(arguments: Mapping) -> bool:
    """Whether another variant teaches this one."""
    return teacher_of(arguments) is not None


def teacher_of(arguments: Mapping) -> str | None:
    """The variant that teaches this one, None without."""
    name = str(arguments.get("teacher") or "")
    return name[1:] if name.startswith("@") else None


def combine(given: dict, variant: dict) -> dict:
    """The arguments of a variant and, where it says nothing, those given; of ViTConfig's a ResNet takes none."""
    if variant.get("preset") in checkpoint.RESNETS:
        given = {key: value for key, value in given.items() if key not in config.MODEL_FIELDS}
    return {**given, **variant}


def with_teachers(names: Collection[str], variants: Mapping[str, dict]) -> set[str]:
    """These variants, and those that teach them."""
    return {*names, *filter(None, (teacher_of(variants[name]) for name in names))}


def check_repeated(names: Collection[str], variants: Mapping[str, dict], given: dict) -> None:
    """StudyError unless these are variants, or BEST with a hold-out that can tell."""
    unknown = [name for name in names if name not in variants and name != BEST]
    if unknown:
        raise StudyError(f"--repeat {unknown[0]!r}: choose {BEST}, {', '.join(variants)}")
    if BEST in names and BEST not in variants and given.get("val_split") == 0:
        raise StudyError("--repeat best is told by the hold-out: give --val-split above 0, or name the variant")


def check_variant(name: str, arguments: dict, variants: Mapping[str, dict]) -> None:
    """StudyError unless the arguments of a variant can be those of a run, as far as that is known without its data."""
    try:
        teacher = teacher_of(arguments)
        if teacher is not None and (teacher not in variants or is_student(variants[teacher])):
            raise ValueError(f"its teacher {str(arguments['teacher'])!r} is no variant without a teacher of its own")
        if preset_to_train(arguments.get("teacher")):
            raise ValueError(f"--teacher {arguments['teacher']}: make it a variant of the study, and name it @VARIANT")
        known = {key: kind for key, kind in config.ARGUMENT_KINDS.items() if key in arguments and key in KEYS}
        fields(**{key: kind for key, kind in known.items() if key not in config.PATHS})(arguments, "it")
        args = config.resolve(arguments)
        run.check(args)
    except ValueError as error:
        raise StudyError(f"variant {name!r}: {one_line(error)}") from None


# ---- running it -----------------------------------------------------------------------------------------


@dataclass
class Study:
    """A study at work: its variants, its folder and its time budget.

    fit: trains a run; what it raises, as after Ctrl-C, ends the study. failed: the number of runs that diverged.
    """

    name: str
    variants: Mapping[str, dict]
    out: Path
    budget: Budget
    fit: Callable[[Trainer], None]
    loader: "Loader"
    failed: int = 0

    def complete(self, runs: list[tuple[str, int, dict]], begin: int = 0) -> None:
        """Train the unfinished runs from number `begin` on, and write the table."""
        done = [is_done(arguments) for _, _, arguments in runs]
        for number, (variant, seed, arguments) in list(enumerate(runs))[begin:]:
            label = f"[{number + 1}/{len(runs)}] {variant}, seed {seed}"
            if done[number]:
                say(f"{label}: done")
                continue
            say(f"{label}: {arguments['out']}")
            try:
                if is_student(self.variants[variant]) and not arguments["teacher"].exists():
                    raise TrainingError("its teacher is not trained")
                self.finish(arguments, [other["out"] for name, _, other in runs if name == variant])
            except TrainingError as error:
                self.failed += 1
                complain(f"error: {label}: {error}")
            write_tables(self, runs)
        write_tables(self, runs)

    def finish(self, arguments: dict, folders: list[Path]) -> Trainer:
        """Train a run, or go on with it, to its report. Returns its trainer.

        folders: of this variant's seeds, which have as many epochs under a budget as the first of them.
        """
        arguments = dict(arguments)
        dataset = self.loader.load(config.resolve(arguments))
        if (arguments["out"] / "last.pt").exists():
            machine = {key: arguments[key] for key in ("device", "threads") if key in arguments}
            arguments = {"resume": arguments["out"]} | machine
        elif self.budget:
            begun = [path for folder in folders if (path := folder / "config.json").exists()]
            before = config.resolve(config.read_config(begun[0])) if begun else None
            epochs = before["epochs"] if before else epochs_within(self.budget, arguments, dataset)
            arguments["epochs"] = epochs
            say(f"{count(epochs, 'epoch')} in {self.budget}")
        trainer, _ = run.prepare(arguments, say, dataset=dataset)
        write_json(self.out / "study.json", asdict(self.budget))
        try:
            self.fit(trainer)
            run.final_report(trainer)
        finally:
            trainer.claim.release()
        return trainer

    def best(self, runs: list[tuple[str, int, dict]]) -> str:
        """The variant with the highest hold-out accuracy of those that teach no other. StudyError if none has one."""
        teachers = {teacher_of(arguments) for arguments in self.variants.values()}
        rows = [row for row in collect(self.variants, runs) if row.name not in teachers and row.held_out is not None]
        if not rows:
            raise StudyError("--repeat best: no finished run has a hold-out that could tell; name the variant")
        return max(rows, key=lambda row: row.held_out).name


def study(name: str, given: dict, fit: Callable[[Trainer], None]) -> int:
    """Run what is not finished of a study and write its table; returns the exit status.

    given: the arguments of the command line; seeds, repeat, hours, cpu_minutes and out among them. fit: as
    Study has it. A run that diverges is told, and the others go on; the status is then 2.
    """
    seeds, repeated = given.pop("seeds", 1), given.pop("repeat", None)
    budget = Budget(given.pop("hours", None), given.pop("cpu_minutes", None))
    variants = load_study(name)
    timed = [variant for variant, arguments in variants.items() if budget and "epochs" in arguments]
    if timed:
        raise StudyError(f"variant {timed[0]!r} has epochs, where {budget} end each run: leave out one of them")
    out = given.pop("out", None) or Path("runs") / f"study-{Path(name).stem}"
    run.check_out(out)
    check_repeated(repeated or (), variants, given)
    planned = plan(variants, given, out, seeds)  # raises before anything is written
    check_budget(out, budget)
    if not any((arguments["out"] / "config.json").exists() for _, _, arguments in planned):
        check_ours(out, ("table.md", "table.csv", "table.png"), "study.json", "cpu_minutes", "a study")
    this = Study(name, variants, out, budget, fit, Loader())
    waits = BEST in (repeated or ()) and BEST not in variants
    runs = plan(variants, given, out, seeds, () if waits else repeated)
    this.complete(runs)
    if waits:
        best = this.best(runs)
        say(f"best on the hold-out: {best}")
        names = [best if variant == BEST else variant for variant in repeated]
        this.complete(plan(variants, given, out, seeds, names), begin=len(runs))
    if (out / "table.md").exists():
        say(f"table: {out / 'table.md'}")
    return 2 if this.failed else 0


def check_budget(out: Path, budget: Budget) -> None:
    """StudyError if study.json in this folder holds another time budget, or is damaged."""
    path, wanted = out / "study.json", asdict(budget)
    try:
        there = read_json(path)
        fields(**dict.fromkeys(wanted, optional(positive)))(there, "it")
    except FileNotFoundError:
        return
    except (ValueError, RecursionError) as error:
        reason = one_line(error, 100)
        raise StudyError(f"{path} is damaged ({reason}): remove it, and the same command goes on") from None
    if there != wanted:
        held, now = (f"with {each} a run" if each else "without a time budget" for each in (Budget(**there), budget))
        raise StudyError(f"{out} holds a study {held}, not {now}: give the same, or choose another --out")


def is_done(arguments: dict) -> bool:
    """Whether the run of these arguments is finished. StudyError if its folder holds another one."""
    folder = arguments["out"]
    if not (folder / "config.json").exists():
        return False
    saved = with_model(config.resolve(config.read_config(folder / "config.json")))
    wanted = with_model(config.resolve(arguments))
    settled = {"epochs", "clean_epochs", "mean", "std", "amp"}  # by the budget, the length, the file, the machine
    asked = arguments.keys() - ({"amp"} if arguments.get("amp") == "auto" else set())
    free = {"out", "device", "threads", *(settled - asked)}
    if arguments.get("pretrained"):
        free |= config.MODEL_FIELDS - asked  # those that are not given may be those of the file
    other = sorted(key for key in wanted.keys() - free if key in saved and saved[key] != wanted[key])
    if other:
        raise StudyError(
            f"{folder} was trained with another {flag_of(other[0])} ({saved[other[0]]}): choose another --out, or "
            "remove it"
        )
    return (folder / "result.json").exists()


def with_model(args: dict) -> dict:
    """Resolved arguments with all the settings of their model: those that were not given are the preset's."""
    given = {name: args[name] for name in config.MODEL_FIELDS & args.keys()}
    return args | run.all_settings(args["preset"], given)


class Loader:
    """Loads data sets, and keeps the last one for the next run."""

    def __init__(self):
        self.key, self.dataset = None, None

    def load(self, args: dict) -> Dataset:
        """The data of resolved arguments, with its hold-out. Raises DataError."""
        names = ("data", "data_root", "seed", "skip_bad", "val_split", "subset")
        key = (run.image_side(args), *(str(args[name]) for name in names))
        if key != self.key:
            self.key, self.dataset = None, None  # not both in memory
            self.dataset = run.load_data(args)
            self.key = key
        return self.dataset


# ---- the table ------------------------------------------------------------------------------------------


def collect(variants: Mapping[str, dict], runs: list[tuple[str, int, dict]]) -> list[Row]:
    """The results of the finished runs, a row for each variant. Raises TrainingError for a file that is damaged."""
    rows = []
    for name in variants:
        folders = [arguments["out"] for variant, _, arguments in runs if variant == name]
        found = [read_run(folder) for folder in folders if (folder / "result.json").exists()]
        if not found:
            rows.append(Row(name, ()))
            continue
        means = {key: mean_of([each[key] for each in found]) for key in MEANS}
        accuracies = tuple(each["accuracy"] for each in found)
        rows.append(Row(name, accuracies, found[0]["parameters"], max(each["epochs"] for each in found), **means))
    return rows


def mean_of(values: list[float | None]) -> float | None:
    """The mean, None if a value is missing."""
    return None if None in values else statistics.fmean(values)


def read_run(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run, named as those of Row; None where it has none. Raises TrainingError.

    The minutes are those of training alone, without evaluation, as its metrics.jsonl has them.
    """
    try:
        names = ("result.json", "config.json", "metrics.jsonl")
        *texts, log = ((folder / name).read_text(encoding="utf-8") for name in names)
        (result, settings), rows = map(json.loads, texts), [json.loads(line) for line in log.splitlines()]
        images, speeds = int(settings["images"]), [float(row["images_per_s"]) for row in rows]
        images -= images % min(int(settings["arguments"]["batch_size"]), images)  # what fills no batch is left out
        minutes = sum(images / speed for speed in speeds) / 60
        found = {"accuracy": float(result["test_acc"]), "parameters": int(settings["parameters"]), "epochs": len(rows)}
        found |= {"images_per_s": images * len(rows) / (60 * minutes), "minutes": minutes}
        optional_ones = {"held_out": result.get("val_acc"), "cpu_minutes": rows[-1].get("cpu_minutes")}
        found |= {key: None if value is None else float(value) for key, value in optional_ones.items()}
        given = [value for value in found.values() if value is not None]
        if not (0 <= found["accuracy"] <= 1 and all(math.isfinite(value) and value >= 0 for value in given)):
            raise ValueError("its numbers are out of range")
        return found
    except (ValueError, KeyError, TypeError, ArithmeticError, IndexError, OSError, RecursionError) as error:
        reason = one_line(error, 100)
        raise TrainingError(f"{folder} holds a damaged run ({reason}): remove it, and it is trained again") from None


def write_tables(study: Study, runs: list[tuple[str, int, dict]]) -> None:
    """Write table.md, table.csv and, with matplotlib, table.png."""
    rows = collect(study.variants, runs)
    if not any(row.accuracies for row in rows):
        return
    write_json(study.out / "study.json", asdict(study.budget))  # it says whose the tables are
    title = f"Study {Path(study.name).stem} on {told_data([config.resolve(arguments) for _, _, arguments in runs])}"
    if study.budget:
        title += f", {study.budget} a run"
    seeds = sorted({seed for _, seed, _ in runs})
    lines = [f"# {markdown(title)}", "", f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. {NOTE}"]
    if study.budget:
        lines[-1] += " " + BUDGET_NOTE
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "| :-- |" + " --: |" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join([markdown(row.name), *cells(row)]) + " |" for row in rows]
    files = {"table.md": ("\n".join(lines) + "\n").encode()}
    numbers = [[row.mean, row.std, len(row.accuracies), *(getattr(row, key) for key in NUMBERS)] for row in rows]
    exact = [[csv_cell(row.name), *values] for row, values in zip(rows, numbers)]
    files["table.csv"] = csv_table([("variant", "test_accuracy", *COLUMNS[2:]), *exact])
    picture = draw_png(lambda shown: draw(rows, title, shown), "".join([title, *(row.name for row in rows)]))
    if picture is not None:
        files["table.png"] = picture
    for file, content in files.items():
        write_atomically(study.out / file, lambda path, content=content: path.write_bytes(content))


def told_data(runs: list[dict]) -> str:
    """The data of runs in words, from their resolved arguments: what they have in common."""
    names = {Path(args["data_root"]).resolve().name if args["data"] == "folder" else args["data"] for args in runs}
    subsets = {args["subset"] for args in runs}
    told = names.pop() if len(names) == 1 else "several data sets"
    if subsets == {0}:
        return told
    return told + (f", {subsets.pop()} training images" if len(subsets) == 1 else ", of unequal size")


def cells(row: Row) -> list[str]:
    """The cells of a row after its name; a dash where there is nothing."""
    dash = percent(None)
    std = dash if row.std is None else f"{100 * row.std:.2f}"
    rest = [dash if getattr(row, key) is None else form.format(getattr(row, key)) for key, form in NUMBERS.items()]
    return [percent(row.mean), std, str(len(row.accuracies)), *rest]


def draw(rows: list[Row], title: str, shown: Callable[[str], str]) -> Any:
    """A figure: the mean accuracy of each variant, its standard deviation, and a point for each run.

    shown: turns letters that can't be drawn into escapes.
    """
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
    axes.set_yticks(places, [shown(row.name) for row in done], fontsize=9, parse_math=False)
    axes.set_xlabel("test accuracy (%)", fontsize=9)
    figure.suptitle(textwrap.fill(shown(title), 80), fontsize=11, x=0.01, ha="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
