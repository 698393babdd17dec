"""Small components of a mask by a flood fill: what faster code is compared with."""

import torch


def flood(mask: torch.Tensor, max_area: int) -> torch.Tensor:
    """The pixels of a bool mask (H, W) in components of at most max_area pixels, pixel by pixel, with 8 neighbours."""
    small, seen = torch.zeros_like(mask), torch.zeros_like(mask)
    for start in mask.nonzero().tolist():
        if seen[tuple(start)]:
            continue
        component, queue = [], [start]
        seen[tuple(start)] = True
        while queue:
            y, x = queue.pop()
            component.append((y, x))
            for b in range(max(y - 1, 0), min(y + 2, len(mask))):
                for a in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                    if mask[b, a] and not seen[b, a]:
                        seen[b, a] = True
                        queue.append([b, a])
        if len(component) <= max_area:
            for pixel in component:
                small[pixel] = True
    return small
