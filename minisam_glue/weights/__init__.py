"""Published checkpoints: a table of files (table.py), a cache folder (cache.py), a checked download (transfer.py)."""

from .cache import Progress, cache_dir, download, fetch, find, progress_line
from .table import CHECKPOINTS, Checkpoint, WeightsError, describe, with_vocabularies
from .transfer import verify

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "Progress",
    "WeightsError",
    "cache_dir",
    "describe",
    "download",
    "fetch",
    "find",
    "progress_line",
    "verify",
    "with_vocabularies",
]
