"""A cache of the entries that were used last, for several threads."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """A cache of at most `most` values by their keys; the one that was not used for the longest time goes first.

    Threads may share it. A value that two of them miss at the same time is made twice. A copy begins empty.
    """

    def __init__(self, most: int):
        self.most, self.lock = most, Lock()
        self.values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key; what `make` returns if there is none."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()  # without the lock: it may take long
        with self.lock:
            self.values[key] = value
            self.values.move_to_end(key)
            while len(self.values) > self.most:
                self.values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget all values."""
        with self.lock:
            self.values.clear()

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple:
        return type(self), (self.most,)  # a lock can't be copied
