"""Real CIFAR-10 under a budget of CPU minutes: our best small preset against a plain timm ViT.

Both sides have the images of one folder as uint8 tensors in memory, and the same processor time, counted
over all threads (so 120 CPU minutes are 60 minutes of two cores). The plain side follows a textbook: it
learns from all training images, its learning rate is a function of the share of the budget that is spent,
evaluation is not charged. Our side is `train_cifar.py --preset cifar-fast` with as many epochs as fit
(minivit/budget.py: told by timed steps beforehand); it holds a fiftieth of the training images out, and
its evaluations of these are charged. Further flags are those of train_cifar.py, for ablations:
`--depth 0`, `--optimizer adamw --lr 2e-3`, `--sizes 32`. The same command goes on with a run that was interrupted.

    python benchmarks/cpu_budget.py --data-root cifar10-jpeg --side timm --cpu-minutes 120 --out runs/budget_timm
    python benchmarks/cpu_budget.py --data-root cifar10-jpeg --side ours --cpu-minutes 120 --out runs/budget_ours

`--data-root` holds train/<class>/*.jpg and test/<class>/*.jpg.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minivit import cli, config, run, study
from minivit import data as datasets
from minivit.budget import Budget
from minivit.evaluate import top1
from minivit.files import write_json
from minivit.parser import parse_arguments
from minivit.reading import flag_of
from minivit.splits import Dataset

MEAN, STD = datasets.CIFAR_MEAN_STD["cifar10"]
NOT_HERE = {"epochs", "config", *cli.TASKS, *cli.FLAGS_OF_TASKS}  # flags of train_cifar.py that would do nothing


def normalise(x: torch.Tensor) -> torch.Tensor:
    return (x.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def crop_flip(x: torch.Tensor) -> torch.Tensor:
    """The textbook augmentation: 4 pixels of zero padding, a random 32 x 32 crop and flip for each image."""
    B, _, H, W = x.shape
    rows = torch.randint(0, 9, (B, 1)) + torch.arange(H)
    cols = torch.randint(0, 9, (B, 1)) + torch.arange(W)
    cols = torch.where(torch.rand(B, 1) < 0.5, cols.flip(1), cols)
    return F.pad(x, (4,) * 4)[torch.arange(B)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model, x, y) -> float:
    model.eval()
    hits = sum((model(normalise(a)).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500)))
    model.train()
    return 100 * hits / len(y)


def train_timm(data: Dataset, seconds: float, out: Path, seed: int) -> None:
    """A plain ViT (patch 4, dim 128, depth 6, 4 heads) and the textbook loop: AdamW, warm-up, cosine."""
    import timm

    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    x, y, x_test, y_test = data.train.images, data.train.labels, data.test.images, data.test.labels
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, num_classes=10
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    log = open(out / "metrics.jsonl", "w")  # noqa: SIM115, open until the process ends
    start, epoch, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        for index in torch.randperm(len(x)).split(128):
            spent = time.process_time() - start
            if spent >= seconds:
                break
            share = spent / seconds
            lr = 1e-3 * (share / 0.05 if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95)))
            optimizer.param_groups[0]["lr"] = lr
            loss = F.cross_entropy(model(normalise(crop_flip(x[index]))), y[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        epoch += 1
        tick = time.process_time()
        row = {
            "epoch": epoch,
            "loss": loss.item(),
            "lr": lr,
            "cpu_minutes": spent / 60,
            "test_acc": accuracy(model, x_test, y_test),
        }
        start += time.process_time() - tick  # evaluation is not charged to the budget
        print(json.dumps(row), file=log, flush=True)
        print(row, flush=True)
    torch.save(model.state_dict(), out / "last.pt")


def check_folder(given: dict, budget: Budget, out: Path) -> None:
    """ValueError if the folder has a finished run, or one of other arguments."""
    if not (out / "config.json").exists():
        run.check_new(out)
    study.check_budget(out, budget)
    study.is_done(given | {"out": out})  # which compares the arguments
    if (out / "budget.json").exists():
        raise ValueError(f"{out} holds a finished run: choose another --out")


def train_ours(given: dict, budget: Budget, out: Path) -> None:
    """Our preset through the code that train_cifar.py runs, which `given` are the arguments of, as a study of one."""
    check_folder(given, budget, out)
    trainer = study.Study("budget", {}, out, budget, cli.fit, study.Loader()).finish(given | {"out": out}, [out])
    minutes, epochs = trainer.cpu_seconds / 60, trainer.config.epochs
    result = json.loads((out / "result.json").read_text()) | {"cpu_minutes": minutes, "epochs": epochs}
    model, test = run.candidates_of(trainer)[result["chosen"]], trainer.data.test
    result["test_acc_with_flips"] = top1(trainer.evaluator.predict(model, test.images, "flip"), test.labels)
    write_json(out / "budget.json", result)
    cli.show_result(result, out)
    print(f"chosen weights, mean probability of the image and its mirror image: {result['test_acc_with_flips']:.2%}")
    print(f"{epochs} epochs in {minutes:.1f} CPU minutes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train/<class> and test/<class>")
    parser.add_argument("--side", choices=("ours", "timm"), required=True)
    parser.add_argument(
        "--cpu-minutes", type=float, default=120, help="processor minutes over all threads (default 120)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.jsonl and the weights")
    args, further = parser.parse_known_args()
    if not 0 < args.cpu_minutes < math.inf or args.threads < 1:
        parser.error("--cpu-minutes and --threads: give more than 0")
    torch.set_num_threads(args.threads)
    if args.side == "ours":
        given = {
            "data": "folder",
            "data_root": args.data_root,
            "preset": "cifar-fast",
            "device": "cpu",
            "threads": args.threads,
            "seed": args.seed,
        }
        try:
            given |= vars(parse_arguments(further, parser.prog))
            idle = sorted(NOT_HERE & given.keys())
            if idle:
                raise ValueError(f"{flag_of(idle[0])} does nothing here: leave it out")
            run.check(config.resolve(given | {"out": args.out}))
            train_ours(given, Budget(cpu_minutes=args.cpu_minutes), args.out)
        except ValueError as error:
            parser.error(str(error))
        return
    if further:
        parser.error(f"the textbook has no {' '.join(further)}")
    try:
        run.check_new(args.out)
        data = datasets.load("folder", args.data_root)
        train_timm(data, 60 * args.cpu_minutes, args.out, args.seed)
    except (ValueError, ImportError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
