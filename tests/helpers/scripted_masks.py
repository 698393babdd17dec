"""Scripted masks, and what a decoder would say of them: squares on a small frame, with image tokens and colours."""

import torch

SIDE, GRID, CHANNELS = 48, 12, 8
TWIN, GROUND, OTHER = torch.eye(CHANNELS)[:3]  # image tokens


def square(x: float, y: float = 24, size: int = 10) -> torch.Tensor:
    """A square mask, bool (SIDE, SIDE), around a centre; what is beyond the frame is cut off."""
    place = torch.arange(SIDE) + 0.5
    return ((place - y).abs() < size / 2)[:, None] & ((place - x).abs() < size / 2)


def logits_of(masks: list[torch.Tensor]) -> torch.Tensor:
    return torch.where(torch.stack(masks), 8.0, -8.0)


def tokens_of(twins: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Image tokens (N, C), less their mean: of twins, of other objects, and of the ground."""
    cells = [m.view(GRID, 4, GRID, 4).float().mean((1, 3)).flatten()[:, None] for m in (twins, others)]
    tokens = GROUND + cells[0] * (TWIN - GROUND) + cells[1] * (OTHER - GROUND)
    return tokens - tokens.mean(0)


def painted(*parts: tuple[torch.Tensor, float]) -> torch.Tensor:
    """A frame (3, SIDE, SIDE), black but for masks that have a shade of grey."""
    image = torch.zeros(3, SIDE, SIDE)
    for mask, shade in parts:
        image[:, mask] = shade
    return image


def answers(masks: list[torch.Tensor], iou: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The answers of a decoder to box prompts: logits, predicted IoUs, pointers."""
    return logits_of(masks), torch.full((len(masks),), iou), torch.zeros(len(masks), CHANNELS)
