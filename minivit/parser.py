"""The flags of minivit's command line, in groups, and what its help says."""

import argparse
import functools
from pathlib import Path

from minivit import data as datasets
from minivit.checkpoint import RESNETS
from minivit.config import RATES
from minivit.evaluate import TTA
from minivit.precision import NARROW
from minivit.study import EXAMPLE, STUDIES
from minivit.train_config import TRAIN_DEFAULTS
from minivit.vit import PRESETS, STEMS

DESCRIPTION = """Train a Vision Transformer on small images, evaluate it, classify images with it.

    {command} --patch 4 --depth 12                      # preset cifar on CIFAR-10, from scratch
    {command} --data shapes --preset shapes-demo        # no download, minutes on a CPU
    {command} --data folder --data-root my_images       # train/<class>/*.jpg and test/<class>/*.jpg
    {command} --preset vit-b16-last3 --pretrained vit_b_16-c867db91.pth   # torchvision's: the last 3 blocks
    {command} --preset vit-b16 --pretrained vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors   # timm's: all of it
    {command} --preset distilled --teacher train:resnet18   # trains the teacher first; or --teacher FILE
    torchrun --nproc-per-node 2 train_cifar.py          # two processes; the loss curve is that of one
    {command} --resume runs/cifar10-cifar               # continue after Ctrl-C or a power cut
    {command} --config runs/cifar10-cifar --out runs/again
    {command} --eval runs/cifar10-cifar/best.pt   # --data folder: only test/ is needed; the report is in RUN/eval-best/
    {command} --eval runs/a/best.pt runs/b/best.pt --tta flip       # an ensemble
    {command} --predict runs/cifar10-cifar/best.pt cat.png pictures/ --save-predictions answers.csv
    {command} --export runs/cifar10-cifar/best.pt model.onnx
    {command} --predict demo cat.png                    # demo: weights that are installed with this program
    {command} --predict demo cat.png --save-attention maps   # what it looks at

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
ON_OFF = {"action": argparse.BooleanOptionalAction}


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
    """A type of argument: the name of a file or folder. ~ at its beginning is the home folder, also where no shell
    puts it, as in --out=~/runs."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name: name a file or folder")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from None


def add_flag(group, name: str, help: str, **options) -> None:
    """Add one flag; its help ends with the default of TrainConfig, where it has one and the help names none."""
    default = TRAIN_DEFAULTS.get(name[2:].replace("-", "_"))
    if options.get("action") and default is not None:
        default = "on" if default else "off"
    if default not in (None, ()) and "(default" not in help:
        help += f" (default {default})"
    if options.get("type"):
        options.setdefault("metavar", {int: "N", float: "X"}.get(options["type"], "PATH"))
    group.add_argument(name, help=help, **options)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The tasks, and the flags that belong to one of them."""
    flag = functools.partial(add_flag, parser.add_argument_group("task (training, unless one of these is given)"))
    flag("--resume", "continue the run in this folder", metavar="RUN", type=file_name)
    flag(
        "--config",
        "take the arguments of a run, by its folder or config.json; flags on the command line win",
        metavar="RUN",
        type=file_name,
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
    flag(
        "--save-attention",
        "with --predict: write a PNG of each image beside itself, lit where a Vision Transformer looks (rollout)",
        metavar="FOLDER",
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
    flag(
        "--subset",
        "use so many of the images to train and to hold out, and test on at most as many (default 0: all)",
        type=int,
    )
    flag("--skip-bad", "leave out images that cannot be read, instead of stopping", action="store_true")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The settings of ViTConfig, and weights to start from."""
    flag = functools.partial(add_flag, parser.add_argument_group("model (a preset, and changes to it)"))
    presets = ", ".join([*PRESETS, *RESNETS])
    flag("--preset", f"{presets} (default cifar, or that of the checkpoint of --pretrained)", metavar="NAME")
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
    flag("--whiten", "set and freeze the first layer of the whitening stem, instead of learning it", **ON_OFF)
    flag("--mlp-conv", "3x3 depth-wise convolution inside the MLP", **ON_OFF)
    flag(
        "--relative-bias",
        "relative position bias: a learned score for each offset (joint), for row plus column offset (decomposed), or "
        "none",
        choices=("none", "decomposed", "joint"),
    )
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
    flag(
        "--epochs", "passes over the training images, in batches: those that fill none wait for the next pass", type=int
    )
    flag("--batch-size", "images per step", type=int)
    flag("--accumulate", "gradient accumulation: parts in which a batch goes through the model", type=int)
    flag("--optimizer", "AdamW, or Muon for hidden matrices and AdamW for the rest", choices=("adamw", "muon"))
    flag(
        "--schedule",
        "learning rate: warm-up and half a cosine; one-cycle; warm-up and a line to 0",
        choices=("cosine", "one-cycle", "linear"),
    )
    flag("--lr", f"peak learning rate (default {RATES['adamw']}; {RATES['muon']} for --optimizer muon)", type=float)
    flag("--adamw-lr", "peak learning rate of the parameters that Muon leaves to AdamW", type=float)
    flag("--min-lr", "final learning rate of the cosine schedule", type=float)
    flag(
        "--warmup",
        "linear warm-up of the cosine and linear schedules: below 1 a share of all steps, from 1 on epochs",
        type=float,
    )
    flag("--weight-decay", "AdamW's, on weight matrices and convolutions; with muon nothing decays", type=float)
    flag(
        "--layer-decay",
        "factor on the learning rate of each layer, from the head down, such as 0.75; AdamW only",
        type=float,
    )
    flag("--train-last", "fine-tuning: the last N blocks, the final norm and the head learn, nothing else", type=int)
    flag(
        "--balance",
        "classes of unequal size: weigh the loss, or draw images so that all classes are equally likely",
        choices=("none", "weights", "sampler"),
    )
    flag("--clip", "gradient clipping: largest norm, 0 for none", type=float)
    flag("--ema-start", "EMA decay where its rise begins; the first steps have less", type=float)
    flag("--ema-end", "EMA decay at the last step", type=float)
    flag("--patience", "early stopping: epochs without a better hold-out accuracy, 0 for never", type=int)
    flag("--max-bad-steps", "stop after this many steps in a row with non-finite gradients", type=int)
    flag(
        "--seed",
        "random seed of weights, order, augmentation, hold-out and subset, of the splits of class folders, and of the "
        "images of --data shapes, test images too",
        type=int,
    )


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Changes to images and labels during training, and their clean end."""
    title = "augmentation and labels (a preset may have other defaults)"
    flag = functools.partial(add_flag, parser.add_argument_group(title))
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
    flag(
        "--amp",
        f"autocast precision; auto: bf16 on a CPU or NVIDIA GPU that computes in it (on a CPU from --dim {NARROW} on), "
        "fp16 on other NVIDIA GPUs, else off",
        choices=("auto", "bf16", "fp16", "off"),
    )
    flag(
        "--checkpointing",
        "gradient checkpointing: less memory, more time, as blocks that learn are computed twice",
        **ON_OFF,
    )
    flag("--compile", "torch.compile the model: slow to start, then faster on a GPU", **ON_OFF)
    flag("--out", "run folder (default runs/<data>-<preset>)", type=file_name)


ADD_GROUPS = (add_tasks, add_study, add_data, add_model)
ADD_GROUPS += (add_optimisation, add_augmentation, add_distillation, add_machine)
