"""The command line of minivit: what may be asked for, what is done, and what is printed."""

import argparse
import functools
import logging
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from minivit import chain, checkpoint, predict, run, study
from minivit import data as datasets
from minivit.distributed import Ranks, is_told, join, own_ranks
from minivit.evaluate import TTA
from minivit.finetune import learning_share
from minivit.process import CLOSED_PIPE, Stopped, leads_nowhere, on_signals, out_of_memory, stop
from minivit.reading import flag_of, optional, whole, within
from minivit.report import percent
from minivit.study import EXAMPLE, STUDIES
from minivit.text import LogLines, complain, count, one_line, printable, say, shell_word
from minivit.train import TrainConfig, Trainer, TrainingError
from minivit.vit import PRESETS, STEMS

DESCRIPTION = """Train a Vision Transformer on small images, evaluate it, classify images with it.

    {command} --patch 4 --depth 12                      # preset cifar on CIFAR-10, from scratch
    {command} --data shapes --preset shapes-demo        # no download, minutes on a CPU
    {command} --data folder --data-root my_images       # train/<class>/*.jpg and test/<class>/*.jpg
    {command} --preset vit-b16-last3 --pretrained vit_b_16-c867db91.pth   # torchvision's: the last 3 blocks
    {command} --preset vit-b16 --pretrained vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors   # timm's: all of it
    {command} --preset distilled --teacher train:resnet18   # trains the teacher first; or --teacher FILE
    torchrun --nproc-per-node 2 train_cifar.py          # two processes, the same result
    {command} --resume runs/cifar10-cifar               # continue after Ctrl-C or a power cut
    {command} --config runs/cifar10-cifar/config.json --out runs/again
    {command} --eval runs/cifar10-cifar/best.pt         # of a folder needs test/ alone, writes RUN/eval-best/
    {command} --eval runs/a/best.pt runs/b/best.pt --tta flip       # an ensemble
    {command} --predict runs/cifar10-cifar/best.pt cat.png pictures/ --save-predictions answers.csv
    {command} --export runs/cifar10-cifar/best.pt model.onnx
    {command} --predict demo cat.png                    # demo: weights that are installed with this program

    {command} --study ladder --seeds 3 --cpu-minutes 30
    {command} --study mine.json --subset 5000

A study is variants x seeds, each a run of its own, and a table; the same command skips what is done. mine.json names
arguments for all ("base") and for each variant; a list makes a grid, and "@NAME" as teacher is another variant:
    {example}

A run folder holds config.json (every argument, versions, commit), metrics.jsonl (one line per epoch),
last.pt (what --resume needs), best.pt (the chosen weights), result.json and report/. A hold-out (--val-split)
of 100 images or more chooses between epochs and between raw and averaged (EMA) weights; otherwise the averaged
ones of the last epoch are taken. The test images are read once, at the end.
Exit status: 0 when done, 2 for a usage or input error, 130 when stopped by Ctrl-C (128 + its number
by another signal), 141 when the reader of the output has gone (| head)."""
NO_MEMORY = {  # by task
    "study": "out of memory: lower --batch-size",
    "train": "out of memory: lower --batch-size, raise --accumulate, which sends a batch through the model in parts, "
    "or give --checkpointing",
    "eval": "out of memory: take a smaller checkpoint, or fewer images (--subset)",
    "export": "out of memory: take a smaller checkpoint",
    "predict": "out of memory: make the picture smaller, or take a smaller checkpoint",
}

TASKS = ("resume", "eval", "predict", "export", "study")  # beside training
OF_TRAINING = {*run.TRAIN_FIELDS, *run.MODEL_FIELDS, *run.OF_TRAINING}
FLAGS_OF_TASKS = {"tta": ("eval", "predict"), "save_predictions": ("predict",)}
FLAGS_OF_TASKS |= dict.fromkeys(("seeds", "repeat", "hours", "cpu_minutes"), ("study",))
OF_THE_MACHINE = ("device", "threads")
FLAGS_READ = {  # by the tasks that train nothing
    "eval": {"data", "data_root", "subset", "skip_bad", "tta", "out", *OF_THE_MACHINE},
    "predict": {"tta", "save_predictions", *OF_THE_MACHINE},
    "export": set(),
}
ENDS = ("epochs", "hours", "cpu_minutes")  # of a run
DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}
ON_OFF = {"action": argparse.BooleanOptionalAction}


def main(argv: list[str] | None = None, command: str = "minivit") -> int:
    """Run the command line and return its exit status.

    A usage or input error is one line on standard error. command: how the user calls this program.
    """
    show_warnings()
    task = "train"
    try:
        with on_signals(stop):
            given = vars(parse_arguments(argv, command))
            task = next((name for name in NO_MEMORY if name in given), task)
            status = run_task(given, command)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        leads_nowhere(sys.stdout)
        return 128 + CLOSED_PIPE
    except KeyboardInterrupt as stopped:
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # DataError, TrainingError, CheckpointError, files out of reach; or no memory, however that is said
        if not out_of_memory(error) and isinstance(error, RuntimeError):
            raise
        if is_told(error):
            complain(f"error: {NO_MEMORY[task] if out_of_memory(error) else one_line(error)}")
        return 2


def run_task(given: dict, command: str) -> int:
    """Do what the arguments ask for, and return the exit status."""
    check_tasks(given)
    if "eval" in given:
        return predict.evaluate(given.pop("eval"), given)
    if "predict" in given:
        path, *images = given.pop("predict")
        return predict.classify(path, images, given)
    if "study" in given:
        return run_study(given.pop("study"), given, command)
    if "export" in given:
        return export_model(given["export"])
    return train(given, command)


def export_model(words: list[Path]) -> int:
    """Write the model of a checkpoint to a file for other programs."""
    from minivit.export import ExportError, export  # its libraries take seconds

    if len(words) != 2:
        raise ExportError("--export needs a checkpoint and a file: --export best.pt model.onnx")
    export(*words)
    return 0


def run_study(name: str, given: dict, command: str) -> int:
    """Train a table of variants. Ctrl-C finishes a step and saves; the same command goes on."""
    whole(1, 1000)(given.get("seeds", 1), "--seeds")
    optional(within(0, 10_000, "(]"))(given.get("hours"), "--hours")
    optional(within(0, 600_000, "(]"))(given.get("cpu_minutes"), "--cpu-minutes")
    ends = [flag_of(name) for name in ENDS if name in given]
    if len(ends) > 1:
        raise ValueError(f"{ends[1]} and {ends[0]} both end a run: give one of them")
    if "config" in given or "teacher" in given:
        raise ValueError(f"--{'config' if 'config' in given else 'teacher'} goes with a run, not with --study")

    def fit_or_stop(trainer: Trainer) -> bool:
        finished, number = fit_answering(trainer, command)
        if not finished:
            say("stopped and saved; the same command goes on")
            raise Stopped(number)
        return True

    return study.study(name, given, fit_or_stop)


def check_tasks(given: dict) -> None:
    """ValueError for two tasks at once, or for a flag of another task than the one that is asked for."""
    asked = [name for name in TASKS if name in given] or ["train"]
    if asked[0] not in ("train", "resume") and own_ranks().number > 1:
        raise ValueError(f"--{asked[0]} runs in one process: start it without torchrun")
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} are two tasks: ask for one of them")
    for name, tasks in FLAGS_OF_TASKS.items():
        if name in given and asked[0] not in tasks:
            raise ValueError(f"{flag_of(name)} goes with {' and '.join(f'--{task}' for task in tasks)}")
    if asked[0] in FLAGS_READ:
        idle = [name for name in given if name not in FLAGS_READ[asked[0]] | {asked[0]}]
        if idle:
            why = "trains nothing" if any(name in OF_TRAINING for name in idle) else "does not need it"
            raise ValueError(f"--{asked[0]} {why}: leave out {', '.join(map(flag_of, idle))}")
    if asked[0] == "resume" and "out" in given:
        raise ValueError("--resume goes on in its own folder: leave out --out")


def show_warnings() -> None:
    """Print warnings of this package as lines, and letters that a terminal lacks as escapes."""
    log = logging.getLogger(__package__)
    if not any(isinstance(handler, LogLines) for handler in log.handlers):
        log.addHandler(LogLines(logging.WARNING))
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")


# ---- arguments ------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, without the usage before it."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parse_arguments(argv: list[str] | None, command: str) -> argparse.Namespace:
    """Parse the command line. An argument that was not given is absent, so that presets and --config can fill it."""
    return make_parser(command).parse_args(argv)


def make_parser(command: str) -> Parser:
    """The parser of all flags, which calls the program `command`."""
    parser = Parser(
        prog=command,
        usage=f"{command} [options]",
        description=DESCRIPTION.format(command=command, example=EXAMPLE),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for add_group in ADD_GROUPS:
        add_group(parser)
    return parser


def file_name(text: str) -> Path:
    """A type of argument: the name of a file or folder that is there."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name: name a file or folder")
    return Path(text)


def output_folder(text: str) -> Path:
    """A type of argument: the name of a folder; ~ at its beginning is the home folder, also where no shell puts it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name: name a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from None


def add_flag(group, name: str, help: str, **options) -> None:
    """Add one flag; its help ends with the default of TrainConfig, where it has one."""
    default = DEFAULTS.get(name[2:].replace("-", "_"))
    if default not in (None, ()) and options.get("action") is None:
        help += f" (default {default})"
    if options.get("type"):
        options.setdefault("metavar", {int: "N", float: "X"}.get(options["type"], "PATH"))
    group.add_argument(name, help=help, **options)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The tasks, and the flags that belong to one of them."""
    flag = functools.partial(add_flag, parser.add_argument_group("task (training, unless one of these is given)"))
    flag("--resume", "continue the run in this folder", metavar="RUN", type=file_name)
    flag(
        "--config", "take the arguments of a config.json; flags on the command line win", metavar="FILE", type=file_name
    )
    flag(
        "--eval",
        "measure checkpoints, or demo, on the test images, and write a report; several are an ensemble",
        nargs="+",
        metavar="CHECKPOINT",
        type=file_name,
    )
    flag(
        "--predict",
        "classify images with a checkpoint, or with demo; a folder or a pattern in quotes stands for its images",
        nargs="+",
        metavar=("CHECKPOINT", "IMAGE"),
        type=file_name,
    )
    flag(
        "--export",
        "write the model of a checkpoint, or of demo, to a .onnx (extra export) or .pt2 for other programs",
        nargs="+",
        metavar=("CHECKPOINT", "FILE"),
        type=file_name,
    )
    flag(
        "--study",
        f"train a table of variants: {', '.join(STUDIES)}, or a .json file with them (see above); the table is in "
        "runs/study-NAME, or --out",
        metavar="NAME",
    )
    flag("--tta", "test-time augmentation: mean over mirror images, or over ten crops", choices=TTA)
    flag(
        "--save-predictions",
        "with --predict: write class and probabilities of each image to a .csv or .json",
        metavar="FILE",
        type=file_name,
    )


def add_study(parser: argparse.ArgumentParser) -> None:
    """The size of a study: seeds, and the time of a run."""
    flag = functools.partial(add_flag, parser.add_argument_group("studies (with --study)"))
    flag("--seeds", "runs of each variant (default 1)", type=int)
    flag(
        "--repeat",
        "the variants that have all the seeds, the others one; best: the one with the highest hold-out accuracy",
        nargs="+",
        metavar="VARIANT",
    )
    flag(
        "--cpu-minutes",
        "processor minutes of a run, over all threads, in place of --epochs: as many as fit",
        type=float,
    )
    flag("--hours", "the same in hours on an idle machine, or on a GPU", type=float)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The images: data set, hold-out, normalisation."""
    flag = functools.partial(add_flag, parser.add_argument_group("data"))
    flag("--data", "data set (default cifar10); shapes are generated, without a download", choices=datasets.NAMES)
    flag(
        "--data-root", "folder of the CIFAR archive, of train/ and test/, or of classes (default data)", type=file_name
    )
    flag(
        "--val-split",
        "hold-out: a share below 1, or a number, of the training images (default 0.02), unless there is a folder val/",
        type=float,
    )
    by_channel = {"type": float, "nargs": 3, "metavar": ("R", "G", "B")}
    flag("--mean", "mean of the pixels in 0..1 that is subtracted (default: the weights' or the data's)", **by_channel)
    flag("--std", "standard deviation that they are divided by (default: as for --mean)", **by_channel)
    flag("--subset", "train on so many of the images, and test on at most as many (default 0: all)", type=int)
    flag("--skip-bad", "leave out images that cannot be read, instead of stopping", action="store_true")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The settings of ViTConfig, and weights to start from."""
    flag = functools.partial(add_flag, parser.add_argument_group("model (a preset, and changes to it)"))
    flag("--preset", f"{', '.join([*PRESETS, *checkpoint.RESNETS])} (default cifar)", metavar="NAME")
    flag("--image-size", "side of the model's input in pixels; smaller images are enlarged", type=int)
    flag("--patch", "side of a patch in pixels", type=int)
    flag("--dim", "embedding dimension of a token", type=int)
    flag("--depth", "number of transformer blocks", type=int)
    flag("--heads", "number of attention heads", type=int)
    flag("--mlp-ratio", "hidden dimension of the MLP divided by the embedding dimension", type=float)
    flag("--stem", "patch embedding: one linear map, convolutions, or a network's feature map", choices=tuple(STEMS))
    flag(
        "--stem-depth",
        "residual convolutions in each stage of the whitening stem: two stages for patch 4, three for 8",
        type=int,
    )
    flag("--mlp-conv", "3x3 depth-wise convolution inside the MLP", **ON_OFF)
    flag("--relative-bias", "relative position bias", choices=("none", "decomposed", "joint"))
    flag("--class-attention", "number of class-attention blocks at the end (CaiT)", type=int)
    flag("--layer-scale", "LayerScale: learned gains on the branches of each block, and their first value", type=float)
    flag("--dropout", "dropout probability", type=float)
    flag("--head-dropout", "dropout probability before the head", type=float)
    flag("--drop-path", "stochastic depth: drop probability of the last block", type=float)
    flag(
        "--pretrained",
        "ViT weights to start from, or demo: torchvision's, timm's, Hugging Face's .pth or .safetensors, Google's .npz",
        metavar="FILE",
        type=file_name,
    )


def add_optimisation(parser: argparse.ArgumentParser) -> None:
    """Epochs, batches, optimizer and schedule, fine-tuning, averaging, stopping."""
    flag = functools.partial(add_flag, parser.add_argument_group("optimisation (a preset may have other defaults)"))
    flag("--epochs", "passes over the training images", type=int)
    flag("--batch-size", "images per step", type=int)
    flag("--accumulate", "gradient accumulation: parts in which a batch goes through the model", type=int)
    flag("--optimizer", "AdamW, or Muon for hidden matrices and AdamW for the rest", choices=("adamw", "muon"))
    flag("--schedule", "learning rate schedule", choices=("cosine", "one-cycle", "linear"))
    flag("--lr", "peak learning rate", type=float)
    flag("--adamw-lr", "peak learning rate of the parameters that Muon leaves to AdamW", type=float)
    flag("--min-lr", "final learning rate of the cosine schedule", type=float)
    flag(
        "--warmup",
        "linear warm-up of the cosine and linear schedules: below 1 a share of all steps, from 1 on epochs",
        type=float,
    )
    flag("--weight-decay", "AdamW's weight decay, applied to weight matrices only", type=float)
    flag("--layer-decay", "factor on the learning rate of each layer, from the head down, such as 0.75", type=float)
    flag("--train-last", "fine-tuning: the last N blocks, the final norm and the head learn, nothing else", type=int)
    flag(
        "--balance",
        "classes of unequal size: weigh the loss, or draw images so that all classes are equally likely",
        choices=("none", "weights", "sampler"),
    )
    flag("--clip", "gradient clipping: largest norm, 0 for none", type=float)
    flag("--ema-start", "EMA decay at the first step", type=float)
    flag("--ema-end", "EMA decay at the last step", type=float)
    flag("--patience", "early stopping: epochs without a better hold-out accuracy, 0 for never", type=int)
    flag("--max-bad-steps", "stop after this many steps in a row with non-finite gradients", type=int)
    flag(
        "--seed",
        "random seed of weights, order, augmentation, hold-out and subset, and of the splits of class folders",
        type=int,
    )


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Changes to images and labels during training, and their clean end."""
    flag = functools.partial(add_flag, parser.add_argument_group("augmentation and labels"))
    flag(
        "--sizes",
        "sides of the training images in pixels, each for an equal share of the epochs: 24 24 32",
        type=int,
        nargs="+",
    )
    flag("--crop", "random crop: padding in pixels, 0 for none", type=int)
    flag("--padding", "what the crop finds around the image", choices=("zero", "reflect"))
    flag("--flip", "random horizontal flip", **ON_OFF)
    flag("--alternate-flip", "flip one half of the images in even epochs, the other half in odd ones", **ON_OFF)
    flag("--trivial-augment", "TrivialAugmentWide", **ON_OFF)
    flag("--jitter", "strength of the colour jitter (brightness, contrast, saturation, hue), 0 for none", type=float)
    flag("--rotate", "random rotation: largest turn in degrees, 0 for none", type=float)
    flag("--erasing", "probability of random erasing", type=float)
    flag("--mixup", "alpha of mixup, 0 for none", type=float)
    flag("--cutmix", "alpha of CutMix, 0 for none", type=float)
    flag("--mix-prob", "probability that a batch is mixed (mixup or CutMix)", type=float)
    flag("--label-smoothing", "label smoothing", type=float)
    flag("--unsmoothed-epochs", "last epochs without label smoothing, if more than those of --clean-epochs", type=int)
    flag(
        "--clean-epochs",
        "last epochs with crop and flip only: no mixing, smoothing or other augmentation; if not given, a tenth of "
        "all at most",
        type=int,
    )


def add_distillation(parser: argparse.ArgumentParser) -> None:
    """The teacher, and how its labels are used."""
    flag = functools.partial(add_flag, parser.add_argument_group("distillation"))
    flag(
        "--teacher",
        "checkpoint of the teacher, or demo; train:resnet18 or train:resnet50 trains one first, in RUN/teacher",
        metavar="CHECKPOINT",
        type=file_name,
    )
    flag("--teacher-epochs", "epochs of a teacher that is trained first (default: its preset's)", type=int)
    flag("--distill-weight", "weight of the distillation loss, from 0 to 1", type=float)
    flag(
        "--distill-temperature",
        "temperature of soft distillation; 0 for hard, the default but for preset distilled, which has 2",
        type=float,
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Device, threads, precision, memory, and the run folder."""
    flag = functools.partial(add_flag, parser.add_argument_group("machine"))
    flag("--device", "auto, cpu, cuda, cuda:1, mps (default auto)", metavar="NAME")
    flag("--threads", "CPU threads (default: PyTorch's choice)", type=int)
    flag("--amp", "autocast precision; auto: bf16 where it gains", choices=("auto", "bf16", "fp16", "off"))
    flag(
        "--checkpointing",
        "gradient checkpointing: less memory, more time, as each block that learns is computed twice",
        **ON_OFF,
    )
    flag("--compile", "torch.compile the model: slow to start, then faster on a GPU", **ON_OFF)
    flag("--out", "run folder (default runs/<data>-<preset>)", type=output_folder)


ADD_GROUPS = (add_tasks, add_study, add_data, add_model)
ADD_GROUPS += (add_optimisation, add_augmentation, add_distillation, add_machine)


# ---- training -------------------------------------------------------------------------------------------


def train(given: dict, command: str) -> int:
    """Train or resume; a teacher that is to be trained comes first. Returns the exit status."""
    ranks = join(given)
    args, resume = ranks.together(lambda: run.arguments(given))
    to_continue = f"{command} --resume {shell_word(args['out'])}"
    teacher = None if resume else ranks.together(lambda: chain.teacher_of(args, ranks.number))
    if teacher:
        status = train_one(*run.arguments(teacher), to_continue, ranks, lambda: chain.begin(args, say))
        if status:
            return status
    return train_one(args, resume, to_continue, ranks)


def train_one(
    args: dict, resume: bool, to_continue: str, ranks: Ranks, prepared: Callable[[], None] = lambda: None
) -> int:
    """Do one run, from what run.arguments returned, and return the exit status.

    Ctrl-C finishes the step, saves a checkpoint, and prints how to continue; a second one ends at once, with the
    checkpoint of before. to_continue: the command for that. prepared: called before the first step.
    """
    tell = say if ranks.first else lambda line: None
    trainer, _ = ranks.together(lambda: run.prepare_run(args, resume, tell, ranks))
    prepared()
    try:
        finished, number = fit_answering(trainer, to_continue)
        if not finished:
            if ranks.first:
                say(f"stopped in epoch {trainer.epoch + 1} and saved; continue with: {to_continue}")
            return 128 + number
        if not ranks.first:
            return 0
        show_result(run.final_report(trainer), trainer.run)
        return 0
    finally:
        if trainer.claim:
            trainer.claim.release()


def fit_answering(trainer: Trainer, to_continue: str) -> tuple[bool, int]:
    """Train, and stop after the current step when a signal asks for it: whether it is finished, and the signal."""
    asked = []

    def save_and_stop(number: int, frame: object) -> None:
        if trainer.stop_requested and trainer.ranks.number == 1:  # torchrun sends a signal more than once
            raise Stopped(number)
        trainer.stop_requested = True
        asked.append(number)

    with on_signals(save_and_stop):
        finished = fit_together(trainer, to_continue)
    return finished, (asked or [signal.SIGTERM])[0]


def fit_together(trainer: Trainer, to_continue: str) -> bool:
    """Train as `fit` does. TrainingError in all processes that are left when one of several has ended before."""
    try:
        finished = fit(trainer) if trainer.ranks.first else trainer.fit()
        trainer.ranks.leave()
        return finished
    except RuntimeError as error:  # of the connection to a process that is no longer there
        if trainer.ranks.number == 1 or out_of_memory(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", one_line(error))[:80]  # without a file of PyTorch's sources
        raise TrainingError(
            f"another of the {trainer.ranks.number} processes has ended ({reason}): continue from the last epoch, with "
            f"any number of processes: {to_continue}"
        ) from None


def fit(trainer: Trainer) -> bool:
    """Train with a progress bar on a terminal, a line per epoch elsewhere. False when stopped and saved."""
    say(first_line(trainer))
    bar, started, first = make_bar(trainer), time.perf_counter(), trainer.step

    def on_step() -> None:
        if bar is None:
            return
        if trainer.batch % 10 == 0:
            loss, hits, images = (float(s) for s in trainer.sums)
            images = max(images, 1)  # there are none if no step of this epoch was finite
            bar.set_postfix(
                epoch=f"{trainer.epoch + 1}/{trainer.config.epochs}",
                loss=f"{loss / images:.3f}",
                acc=f"{hits / images:.1%}",
                lr=f"{trainer.lr:.1e}",
                refresh=False,
            )
        bar.update(trainer.batch_size)

    def on_epoch() -> None:
        line = epoch_line(trainer, started, first)
        say(line) if bar is None else bar.write(printable(line))

    finished = trainer.fit(on_step=on_step, on_epoch=on_epoch)
    if bar is not None:
        bar.close()
    return finished


def make_bar(trainer: Trainer):
    """A tqdm bar that counts images; None without a terminal or without tqdm."""
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


def first_line(trainer: Trainer) -> str:
    """Describe the run: preset, parameters, images, epochs, device, precision."""
    learning, parameters = learning_share(trainer.model)
    size = f"{parameters / 1e6:.2f}M parameters"
    if trainer.config.train_last is not None:
        size = f"{learning / 1e6:.2f}M of {size} learn ({percent(learning / parameters)} %)"
    precision = str(trainer.dtype).removeprefix("torch.")
    return (
        f"{trainer.describe['preset']}: {size}, "
        f"{count(len(trainer.train_split), 'image')}, {count(trainer.config.epochs, 'epoch')}, "
        f"{trainer.device}, {precision}"
    )


def epoch_line(trainer: Trainer, started: float, first: int) -> str:
    """The last finished epoch, and the minutes left at the speed since `started` (perf_counter, at step `first`)."""
    row = trainer.history[-1]
    left = (trainer.total_steps - trainer.step) * (time.perf_counter() - started) / max(trainer.step - first, 1)
    held_out = ""
    if "val_acc" in row:
        held_out = f"  hold-out {percent(row['val_acc'])}% (EMA {percent(row['val_acc_ema'])}%)"
    accuracy = percent(row["train_acc"])
    return (
        f"epoch {row['epoch']:>3}/{trainer.config.epochs}  loss {row['train_loss']:.4f}  acc {accuracy}%"
        f"{held_out}  lr {row['lr']:.2e}  {row['images_per_s']:.0f} img/s  {left / 60:.0f} min left"
    )


def show_result(result: dict, folder: Path) -> None:
    """Print the test accuracy of all weights of a run, and where its report is."""
    if result["stopped_early"]:
        say(f"stopped early, after epoch {result['epochs']}: the hold-out accuracy no longer rose (--patience)")
    for name in run.WEIGHTS:
        if f"test_acc_{name}" in result:
            by = " by the hold-out" if name == "best" else ""
            mark = f"  <- chosen{by}, best.pt" if name == result["chosen"] else ""
            say(f"test accuracy, {run.weights_name(name):<14} {percent(result[f'test_acc_{name}'])} %{mark}")
    if result["val_acc"] is not None:
        say(f"hold-out accuracy of the chosen weights: {percent(result['val_acc'])} %")
    say(f"report: {folder / 'report' / 'report.md'}")


if __name__ == "__main__":
    sys.exit(main())
