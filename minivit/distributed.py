"""Several processes that train one model: torchrun --nproc-per-node 2 train_cifar.py ...

All processes draw the same random numbers and see the same whole batches; each computes the logits of its rows. N
processes so compute what one computes, up to the order of sums:

- order, augmentation and mixing: each process makes the whole batch and keeps its rows, a small part of a step;
- dropout and stochastic depth: each process draws the numbers of the whole batch and keeps those of its rows;
- batch normalisation: mean and variance are those of the whole batch;
- gradients: averaged by DistributedDataParallel (Li et al., arXiv 2006.15704), of losses that are scaled to make this
  the gradient of the whole batch; losses and hits: summed;
- the hold-out: each process measures its share, the hits are summed.

Optimizer and averaged weights are the same in each process, since the gradients are. Rank 0 alone prints and writes.
Left out: models that are divided among devices, and torch.compile.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from minivit.fast import unused_parameters
from minivit.reading import flag_of
from minivit.text import one_line

Result = TypeVar("Result")


class RanksError(ValueError):
    """Processes that cannot train together. The message is one line and says what to change."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. rank: from 0; number: how many there are, 1 without torchrun."""

    rank: int = 0
    number: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of this process, of so many in a batch."""
        return slice(rows * self.rank // self.number, rows * (self.rank + 1) // self.number)

    def sum(self, *values: Tensor | float) -> list:
        """The sum of each number over the processes; with one process the numbers as they are."""
        if self.number == 1:
            return list(values)
        together = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(together)
        return together.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in a process."""
        return bool(self.sum(flag)[0])

    def gather(self, value: Any) -> list:
        """The values of all processes, in their order."""
        values = [value] * self.number
        if self.number > 1:
            dist.all_gather_object(values, value)
        return values

    def together(self, prepare: Callable[[], Result]) -> Result:
        """Call a function in each process. If it fails in one, RanksError in all, with the message of the first."""
        if self.number == 1:
            return prepare()
        result = message = None
        try:
            result = prepare()
        except (ValueError, OSError) as error:
            message = one_line(error)
        errors = [error for error in self.gather(message) if error is not None]
        if errors:
            raise RanksError(errors[0])
        return result

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose gradients are averaged over the processes; the model itself with one of them."""
        if self.number == 1:
            return model
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since 2.14
        options = {buffers: False, "find_unused_parameters": bool(unused_parameters(model))}
        return DistributedDataParallel(model, [device] if device.type == "cuda" else None, **options)

    @contextmanager
    def part(self, model: nn.Module, rows: int, last: bool) -> Iterator[None]:
        """Pass forward and backward through this process's share of a part with so many rows.

        last: whether it is the last part of a batch, after which the gradients are averaged.
        """
        if self.number == 1:
            yield
            return
        waits = nullcontext() if last else model.no_sync()
        with WholeBatchDraws(rows, self.share(rows)), waits:
            yield

    def leave(self) -> None:
        """Wait for the other processes, and part from them."""
        if self.number > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def own_ranks() -> Ranks:
    """This process as torchrun numbers it. RanksError if RANK and WORLD_SIZE are no such numbers."""
    rank, number = (environment(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < number:
        raise RanksError(f"RANK={rank} and WORLD_SIZE={number}: torchrun sets ranks from 0 to WORLD_SIZE - 1")
    return Ranks(rank, number)


def environment(name: str, default: int) -> int:
    """A whole number that torchrun sets."""
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise RanksError(f"{name}={text}: torchrun sets it to a whole number; unset it to train in one process")
    return int(text)


def is_told(error: BaseException) -> bool:
    """Whether this process prints an error. All processes have the same ValueError, which the first one prints; any
    other error is printed by the process that has it."""
    try:
        return own_ranks().first or not isinstance(error, ValueError)
    except RanksError:
        return True


def join(given: dict) -> Ranks:
    """Meet the other processes that torchrun started. RanksError if their arguments differ."""
    ranks = own_ranks()
    if ranks.number == 1:
        return ranks
    if given.get("compile"):
        raise RanksError("--compile goes with one process: leave it out, or torchrun")
    try:
        on_gpus = torch.cuda.is_available() and dist.is_nccl_available()  # which PyTorch for Windows lacks
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    except (RuntimeError, ValueError) as error:  # also of addresses that torchrun sets
        raise RanksError(f"the processes can't meet ({one_line(error, 150)}): start them with torchrun") from None
    everyone = ranks.gather({name: str(value) for name, value in given.items()})
    for other, theirs in enumerate(everyone):
        for name in sorted(everyone[0].keys() | theirs.keys()):
            if everyone[0].get(name) != theirs.get(name):
                values = [settings.get(name, "not given") for settings in (everyone[0], theirs)]
                raise RanksError(
                    f"{flag_of(name)} is {values[0]} in process 0 and {values[1]} in process {other}: "
                    "give all processes the same arguments"
                )
    return ranks


def own_device(name: str) -> str:
    """The device of this process for a --device: of several processes on GPUs, each takes the one of its LOCAL_RANK."""
    if own_ranks().number == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    local = environment("LOCAL_RANK", 0)
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise RanksError(f"LOCAL_RANK={local}: this machine has {gpus} GPUs; start fewer processes, or give --device")
    return f"cuda:{local}"


# ---- random numbers of the whole batch ------------------------------------------------------------------


class WholeBatchDraws(TorchFunctionMode):
    """Inside, dropout and stochastic depth draw for all rows of a batch and use those of this process.

    rows: of the whole batch; own: those of this process, which the model is shown. Catches torch.nn.functional.dropout
    and torch.rand of tensors whose first dimension counts these rows, or a multiple of them; all else is let be.
    """

    def __init__(self, rows: int, own: slice):
        super().__init__()
        self.rows, self.own = rows, own

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self.dropout(*args, **kwargs)
        if func is torch.rand and args and isinstance(args[0], int) and self.counts_rows(args[0]):
            whole, own = self.whole(args[0])
            return func(whole, *args[1:], **kwargs)[own]
        return func(*args, **kwargs)

    def counts_rows(self, count: int) -> bool:
        """Whether a tensor with this first dimension has the rows of this process, or some for each of them."""
        return count > 0 and count % (self.own.stop - self.own.start) == 0

    def whole(self, count: int) -> tuple[int, slice]:
        """The number of rows in all processes for `count` in this one, and which of them are its own."""
        times = count // (self.own.stop - self.own.start)
        return times * self.rows, slice(times * self.own.start, times * self.own.stop)

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """F.dropout whose mask is the part of the whole batch's that these rows have."""
        if not training or p == 0:
            return x
        if not self.counts_rows(x.shape[0]):
            return F.dropout(x, p, training, inplace)
        count, own = self.whole(x.shape[0])
        # In the layout of x, whose numbers are drawn in their order in memory.
        strides = x.stride() if x.stride(0) == max(x.stride()) else x.contiguous().stride()
        ones = torch.empty_strided((count, *x.shape[1:]), strides, dtype=x.dtype, device=x.device).fill_(1)
        return x * F.dropout(ones, p)[own]


# ---- batch normalisation over all processes -------------------------------------------------------------


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the processes. Each one's loss depends on it, so its gradient is summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverRanks.forward(ctx, gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (arXiv 1502.03167, algorithm 1) by mean and variance of the rows of all processes.

    torch.nn.SyncBatchNorm does the same on GPUs alone. Parameters, buffers and their names are BatchNorm2d's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        sums = SumOverRanks.apply(torch.cat([values.sum((0, 2, 3)), values.new_tensor([x.numel() / x.shape[1]])]))
        n, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = values - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum((0, 2, 3))) / n
        self.follow(mean.detach(), variance.detach() * n / (n - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running mean and (unbiased) variance towards those of a batch."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Let each batch normalisation of `model` see all processes, in place, and return the model."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model
