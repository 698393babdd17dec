"""Calls of a function in several threads, so that reading, models and writing overlap, with results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
LISTEN_EVERY = 0.2  # seconds


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """work(item) of each item, in their order. At most `threads` results wait to be taken, and no more items either.

    An exception of `work` is raised in its turn. When the generator is left early, by it or by the caller's exception,
    calls that have not begun never do, and the ends of the others are waited for.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield result_of(waiting[0])
                    waiting.popleft()
            while waiting:
                yield result_of(waiting[0])
                waiting.popleft()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def result_of(future: "Future[Result]") -> Result:
    """The result of a call when it is there. Signals are answered meanwhile, whichever thread the system gave them."""
    while wait([future], LISTEN_EVERY).not_done:
        pass
    return future.result()


@contextmanager
def shared_cores(slots: int) -> Iterator[None]:
    """Let PyTorch take the cores of this process for `slots` threads, which have a share of them each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // slots))
    try:
        yield
    finally:
        torch.set_num_threads(before)
