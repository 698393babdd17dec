"""Silence for warnings of libraries, whose causes are refused or told in our own words."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock, _inside = threading.Lock(), []  # one filter for all threads that are inside: the filters are the process's


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings, from the first thread that enters until the last one leaves."""
    with _lock:
        if not _inside:
            _inside.append(warnings.catch_warnings())
            _inside[0].__enter__()
            warnings.simplefilter("ignore")
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if len(_inside) == 1:
                _inside.pop().__exit__()
