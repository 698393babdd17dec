"""Token-wise work in parts, on a CPU: small temporaries stay in cache and need no fresh pages of memory.

At 800 x 1066 the encoder takes a quarter less time with it than without: there the 146 MB between the
two layers of its MLP are mapped and faulted in anew in every layer. On a GPU nothing is split.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PART = 2**21  # numbers in the largest temporary: 8 MB in float32


def rows_at_once(x: Tensor, width: int) -> int:
    """How many tokens to treat at one time, when each needs a temporary of `width` numbers."""
    return max(1, PART // width) if x.device.type == "cpu" else max(1, x.numel())


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """function(x) for x (..., C), where the function treats each token alone."""
    rows = rows_at_once(x, width)
    if x.shape[:-1].numel() <= rows:
        return function(x)
    return torch.cat([function(part) for part in x.flatten(0, -2).split(rows)]).unflatten(0, x.shape[:-1])
