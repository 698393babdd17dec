"""Train a Vision Transformer on small images.

    python train_cifar.py --patch 4 --depth 12                      # our best CIFAR-10 model, from scratch
    python train_cifar.py --data shapes --preset shapes-demo        # no download, minutes on a CPU
    python train_cifar.py --data folder --data-root my_images       # train/<class>/*.jpg and test/<class>/*.jpg
    python train_cifar.py --preset vit-b16 --pretrained vit_b_16-c867db91.pth --lr 1e-4 --epochs 10
    python train_cifar.py --preset resnet18 --out runs/teacher      # a teacher for the next line
    python train_cifar.py --preset distilled --teacher runs/teacher/best.pt
    python train_cifar.py --resume runs/cifar                       # go on after Ctrl-C or a power cut
    python train_cifar.py --config runs/cifar/config.json --out runs/again
    python train_cifar.py --eval runs/cifar/best.pt
    python train_cifar.py --predict runs/cifar/best.pt cat.png dog.jpg

A run folder holds config.json (every argument, versions, commit), metrics.jsonl (a line per epoch),
last.pt and best.pt, result.json and report/. The hold-out (--val-split) chooses between epochs and
between raw and averaged weights; the test set is read once, at the end.
"""

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path

from minivit import run
from minivit.train import TrainConfig
from minivit.vit import PRESETS

DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; an argument that was not given is absent, so that presets and --config can fill it."""
    parser = argparse.ArgumentParser(
        usage="python train_cifar.py [options]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )

    def flag(group, name: str, help: str, **options) -> None:
        default = DEFAULTS.get(name[2:].replace("-", "_"))
        if default is not None and options.get("action") is None:
            help += f" (default {default})"
        if options.get("type"):
            options.setdefault("metavar", {int: "N", float: "X", Path: "PATH"}[options["type"]])
        group.add_argument(name, help=help, **options)

    yes_no = {"action": argparse.BooleanOptionalAction}
    g = parser.add_argument_group("what to do (training, unless one of these is given)")
    flag(g, "--resume", "go on with the run in this folder", metavar="RUN", type=Path)
    flag(g, "--config", "take all arguments from a config.json; flags given beside it win", metavar="FILE", type=Path)
    flag(g, "--eval", "accuracy of a checkpoint on the test images", metavar="CHECKPOINT", type=Path)
    flag(g, "--predict", "classify images with a checkpoint", nargs="+", metavar=("CHECKPOINT", "IMAGE"), type=Path)

    g = parser.add_argument_group("data")
    flag(g, "--data", "where images come from (default cifar10); shapes are drawn on the fly", choices=run.DATA)
    flag(g, "--data-root", "folder of the archive or of train/ and test/ (default data)", type=Path)
    flag(
        g,
        "--val-split",
        "hold out this share, or this number, of the training images to choose by (default 0.02)",
        type=float,
    )
    flag(g, "--skip-bad", "leave out images that cannot be read, instead of stopping", action="store_true")

    g = parser.add_argument_group("model (a preset, and what differs from it)")
    flag(g, "--preset", f"{', '.join([*PRESETS, *run.RESNETS])} (default cifar)", metavar="NAME")
    flag(g, "--image-size", "side in pixels that the model takes; smaller images are enlarged on the fly", type=int)
    flag(g, "--patch", "side of a patch in pixels", type=int)
    flag(g, "--dim", "width of a token", type=int)
    flag(g, "--depth", "number of transformer blocks", type=int)
    flag(g, "--heads", "number of attention heads", type=int)
    flag(g, "--mlp-ratio", "width of the MLP, in widths of a token", type=float)
    flag(g, "--stem", "how patches are embedded", choices=("patch", "conv"))
    flag(g, "--mlp-conv", "3x3 depth-wise convolution inside the MLP", **yes_no)
    flag(g, "--relative-bias", "relative position bias", choices=("none", "decomposed", "joint"))
    flag(g, "--class-attention", "number of last blocks that update the class and distillation tokens only", type=int)
    flag(g, "--dropout", "dropout rate", type=float)
    flag(g, "--drop-path", "stochastic depth rate at the last block", type=float)
    flag(
        g,
        "--pretrained",
        "start from a torchvision or timm ViT checkpoint (.pth, .safetensors)",
        type=Path,
        metavar="FILE",
    )

    g = parser.add_argument_group("optimisation")
    flag(g, "--epochs", "passes over the training images", type=int)
    flag(g, "--batch-size", "images per step", type=int)
    flag(g, "--accumulate", "run a batch through the model in this many parts, to save memory", type=int)
    flag(g, "--schedule", "shape of the learning rate", choices=("cosine", "one-cycle"))
    flag(g, "--lr", "highest learning rate", type=float)
    flag(g, "--min-lr", "last learning rate of the cosine", type=float)
    flag(g, "--warmup", "share of the steps in which the cosine's learning rate rises", type=float)
    flag(g, "--weight-decay", "AdamW's decay, on matrices only", type=float)
    flag(g, "--clip", "largest gradient norm, 0 for none", type=float)
    flag(g, "--ema-start", "decay of the averaged weights at the first step", type=float)
    flag(g, "--ema-end", "and at the last", type=float)
    flag(g, "--patience", "stop after this many epochs without a better hold-out accuracy, 0 for never", type=int)
    flag(g, "--max-bad-steps", "stop after this many non-finite steps in a row", type=int)
    flag(g, "--seed", "of weights, order and augmentation", type=int)

    g = parser.add_argument_group("augmentation and labels")
    flag(g, "--crop", "pad by so many pixels and crop at random, 0 for none", type=int)
    flag(g, "--flip", "mirror half of the images", **yes_no)
    flag(g, "--trivial-augment", "TrivialAugmentWide", **yes_no)
    flag(g, "--jitter", "strength of brightness, contrast, saturation and hue jitter", type=float)
    flag(g, "--erasing", "probability of erasing a rectangle", type=float)
    flag(g, "--mixup", "mixup's alpha, 0 for none", type=float)
    flag(g, "--cutmix", "CutMix's alpha, 0 for none", type=float)
    flag(g, "--mix-prob", "share of the batches that are mixed", type=float)
    flag(g, "--label-smoothing", "probability taken from the true class", type=float)
    flag(g, "--clean-epochs", "last epochs without mixing, smoothing and strong augmentation", type=int)

    g = parser.add_argument_group("distillation")
    flag(g, "--teacher", "checkpoint of a trained model whose labels are learned too", type=Path, metavar="CHECKPOINT")
    flag(g, "--distill-weight", "share of the teacher in the loss", type=float)
    flag(g, "--distill-temperature", "temperature of soft labels (default: the teacher's hard ones)", type=float)

    g = parser.add_argument_group("machine")
    flag(g, "--device", "auto, cpu, cuda, cuda:1, mps (default auto)", metavar="NAME")
    flag(g, "--threads", "processor threads (default: PyTorch's choice)", type=int)
    flag(
        g,
        "--amp",
        "precision of the forward pass; auto takes bf16 where the hardware has it",
        choices=("auto", "bf16", "fp16", "off"),
    )
    flag(g, "--compile", "torch.compile the model: slow to start, then faster on a GPU", **yes_no)
    flag(g, "--out", "run folder (default runs/<data>-<preset>)", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; what a user can mend is one line on standard error and exit status 2."""
    given = vars(parse_arguments(argv))
    try:
        if "eval" in given:
            return run.evaluate(given.pop("eval"), given)
        if "predict" in given:
            checkpoint, *images = given.pop("predict")
            return run.classify(checkpoint, images, given)
        return train(given)
    except (ValueError, OSError) as error:  # DataError, TrainingError and what a user can mend
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(given: dict) -> int:
    """Train or resume; Ctrl-C finishes the step, saves, and says how to go on."""
    trainer, arguments = run.prepare(given)

    def stop(signum, frame):
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        finished = run.fit(trainer)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
    if not finished:
        print(
            f"stopped in epoch {trainer.epoch + 1} and saved; go on with: python train_cifar.py --resume {trainer.run}"
        )
        return 130
    run.show_result(trainer.final_report(), trainer.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
