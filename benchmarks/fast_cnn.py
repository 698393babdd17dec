"""A network without attention beside ours: a CNN of the shape and recipe of airbench94_muon.py, on the same files.

On the original images of CIFAR-10 that recipe reaches 94 % in 8 epochs (Jordan, arXiv 2404.00498, and the file of
github.com/KellerJordan/cifar10-airbench, whose widths, rates and smoothing stand below). What it reaches on JPEG files
says how much of the rest is theirs. Changed: SiLU, which costs less on a CPU, in place of GELU; no multi-crop at test
time. Ours: minivit's newton_schulz, Whitening, crops and data.

    python benchmarks/fast_cnn.py --data-root cifar10-jpeg --threads 1
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minisam_glue.support.processes import run_program
from minisam_glue.support.values import whole_number
from minivit import data as datasets
from minivit.augment import normalise, random_crop
from minivit.evaluate import Evaluator, top1
from minivit.muon import newton_schulz
from minivit.precision import choose_precision
from minivit.stem import Whitening

MEAN, STD = datasets.CIFAR_MEAN_STD["cifar10"]
WIDTHS = 64, 256, 256
BATCH, SMOOTHING, PADDING = 2000, 0.2, 2
MUON, MUON_MOMENTUM = 0.24, 0.6  # relative change of a matrix in one step
BIASES, HEAD, MOMENTUM = 0.053, 0.67, 0.85  # SGD, of the summed loss
WHITENING_EPOCHS = 3  # in which the bias of the whitening layer learns


class Norm(nn.BatchNorm2d):
    """Batch normalisation with a bias alone; the running mean follows quickly, as there are few steps."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad_(False)


class Group(nn.Module):
    """Two 3x3 convolutions that start as the identity, max-pooling by 2 after the first."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, c_out, 3, padding=1, bias=False) for c in (c_in, c_out))
        self.norms = nn.ModuleList(Norm(c_out) for _ in range(2))
        for conv, c in zip(self.convs, (c_in, c_out)):
            nn.init.dirac_(conv.weight.data[:c])

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        return F.silu(self.norms[1](self.convs[1](x)))


class FastCNN(nn.Module):
    """Images (B, 3, 32, 32), normalised, to scores (B, classes)."""

    def __init__(self, classes: int):
        super().__init__()
        self.whiten = Whitening()
        self.bias = nn.Parameter(torch.zeros(self.whiten.channels, 1, 1))
        self.groups = nn.Sequential(*map(Group, (self.whiten.channels, *WIDTHS), WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)
        self.head.weight.data.div_(self.head.weight.data.std())

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.silu(self.whiten(x) + self.bias))  # (B, C, 3, 3)
        return self.head(F.max_pool2d(x, 3).flatten(1)) / WIDTHS[-1]


def prepared(x: Tensor) -> Tensor:
    return normalise(x, MEAN, STD).contiguous(memory_format=torch.channels_last)


def shifted(x: Tensor, mirrored: Tensor) -> Tensor:
    """Each image mirrored or not, and moved by up to PADDING pixels; its borders are reflected."""
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    return random_crop(x, PADDING, torch.default_generator, "reflect")


def train(model: FastCNN, images: Tensor, labels: Tensor, epochs: int, dtype: torch.dtype) -> None:
    matrices = [p for p in model.groups.parameters() if p.ndim == 4]
    averages = [torch.zeros_like(p) for p in matrices]
    biases = [norm.bias for norm in model.modules() if isinstance(norm, Norm)]
    groups = [([model.bias], BIASES), (biases, BIASES), ([model.head.weight], HEAD)]
    decay = 2e-6 * BATCH  # in the summed loss
    sgd = torch.optim.SGD(
        [{"params": params, "lr": lr, "start": lr, "weight_decay": decay / lr} for params, lr in groups],
        momentum=MOMENTUM,
        nesterov=True,
    )
    per_epoch, step = len(images) // BATCH, 0
    first = torch.rand(len(images)) < 0.5
    started = time.process_time()
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(images))[: per_epoch * BATCH].split(BATCH):
            left = 1 - step / (epochs * per_epoch)
            x = prepared(shifted(images[index], first[index] ^ (epoch % 2 == 1)))
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                found = model(x)
            loss = F.cross_entropy(found.float(), labels[index], label_smoothing=SMOOTHING, reduction="sum")
            loss.backward()
            for group in sgd.param_groups:
                group["lr"] = group["start"] * left
            sgd.param_groups[0]["lr"] = BIASES * max(0.0, 1 - step / (WHITENING_EPOCHS * per_epoch))
            sgd.step()
            muon_step(matrices, averages, MUON * left)
            model.zero_grad(set_to_none=True)
            step += 1
        minutes = (time.process_time() - started) / 60
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item() / BATCH:.3f}, {minutes:.1f} CPU minutes", flush=True)


@torch.no_grad()
def muon_step(matrices: list[Tensor], averages: list[Tensor], lr: float) -> None:
    """Muon as in airbench94_muon.py: momentum of sums, and updates of the norm that Newton-Schulz leaves them."""
    for matrix, average in zip(matrices, averages):
        average.mul_(MUON_MOMENTUM).add_(matrix.grad)
        update = newton_schulz(matrix.grad.add(average, alpha=MUON_MOMENTUM).flatten(1)[None])[0]
        matrix.mul_(len(matrix) ** 0.5 / matrix.norm()).sub_(lr * update.view_as(matrix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train/<class> and test/<class>")
    parser.add_argument("--epochs", type=whole_number(1), default=8)
    parser.add_argument("--threads", type=whole_number(1), default=2)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    dtype = choose_precision("auto", torch.device("cpu"))
    data = datasets.load("folder", args.data_root)
    model = FastCNN(len(data.classes))
    some = data.train.images[:: max(1, len(data.train) // 5000)]  # of each class, as they lie in order
    model.whiten.fit([prepared(some)])
    train(model.to(memory_format=torch.channels_last), data.train.images, data.train.labels, args.epochs, dtype)
    test, evaluator = data.test, Evaluator(MEAN, STD, "cpu", dtype)
    alone, mirrored = (top1(evaluator.predict(model, test.images, tta), test.labels) for tta in (None, "flip"))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, test accuracy {alone:.2%}")
    print(f"mean probability of the image and its mirror image: {mirrored:.2%}")


if __name__ == "__main__":
    sys.exit(run_program(main))
