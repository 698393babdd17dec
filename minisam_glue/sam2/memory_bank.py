"""The memory bank of one object: what each frame leaves behind, and what a later frame attends to.

SAM 2, arXiv 2408.00714, section 4; the details are those of the official SAM2Base
(_prepare_memory_conditioned_features). Frame t, with time running to the right and P a prompted frame, attends
to the memory maps of all prompted frames (slot 0) and of six frames before it (slots 1 to 6), and to the object
pointers of up to fifteen frames before it:

    frame      P   ...   t-15  ...  t-7  t-6  t-5  t-4  t-3  t-2  t-1 | t
    map slot   0                          1    2    3    4    5    6
    pointer    x          x    ...   x    x    x    x    x    x    x
    kept       both       pointer only   |    map and pointer         |

A prompted frame that lies ahead gives its map, but no pointer; one behind gives its pointer however far it is.
With a stride of 3 and t = 20 the six maps are of frames 6, 9, 12, 15, 18 and 19: the previous frame, and multiples
of the stride before it. So the oldest map lies at most 5 * stride + 1 frames back: the horizon behind which tracked
frames keep their pointer alone. Left out: the random choice of memories that training makes.
"""

from dataclasses import dataclass, field, is_dataclass

import torch
from torch import Tensor

from ..support.reading import Kind, fields, mapping, optional, tensor, whole

SLOTS = 7  # temporal embeddings (num_maskmem): one shared by all prompted frames, and six for the frames before
POINTERS = 16  # pointers of frames less than this far back are attended to (max_obj_ptrs_in_encoder)


@dataclass
class FrameMemory:
    """The memory of one frame for one object. tokens and logits are dropped when no later frame needs them."""

    pointer: Tensor  # (C,)
    object_score_logits: Tensor  # (), positive where the object is in the frame
    tokens: Tensor | None  # (N, mem_dim), bfloat16: the memory map
    logits: Tensor | None  # (S / 4, S / 4): the mask


@dataclass
class MemorySelection:
    """The memories of one object that one frame attends to, in the order of the model's input."""

    maps: list[tuple[int, FrameMemory]]  # with their slot: 0 for prompted frames, 6 for the newest
    pointers: list[tuple[int, FrameMemory]]  # with their offset in frames

    @property
    def layout(self) -> tuple:
        """Slots and offsets. Selections of equal layout can be stacked."""
        return tuple(slot for slot, _ in self.maps), tuple(offset for offset, _ in self.pointers)

    def tokens(self, mem_dim: int) -> Tensor:
        """F maps, then P pointers, each cut into C / mem_dim tokens: (F * N + P * C / mem_dim, mem_dim)."""
        pointers = (m.pointer.view(-1, mem_dim) for _, m in self.pointers)
        return torch.cat([*(m.tokens for _, m in self.maps), *pointers])


def map_frame(frame: int, steps: int, sign: int, stride: int) -> int:
    """Number of the frame whose map is `steps` maps back: the previous frame, then multiples of the stride."""
    if steps == 1:
        return frame - sign
    nearest = (frame - 2) // stride * stride if sign > 0 else -(-(frame + 2) // stride) * stride
    return nearest - sign * (steps - 2) * stride


def map_horizon(stride: int) -> int:
    """The number of frames back at which the oldest of the six maps may lie: 5 * stride + 1."""
    return (SLOTS - 2) * stride + 1


@dataclass
class MemoryBank:
    """The memories of one object by frame number: prompted frames in the order of their prompts, and tracked ones."""

    prompted: dict[int, FrameMemory] = field(default_factory=dict)
    tracked: dict[int, FrameMemory] = field(default_factory=dict)

    def get(self, frame: int) -> FrameMemory | None:
        """The memory of a frame, if it is kept."""
        return self.prompted.get(frame) or self.tracked.get(frame)

    def nearest_prompted(self, frame: int, limit: int | None) -> list[int]:
        """Choose at most `limit` prompted frames: the nearest before, the nearest from `frame` on, then the others."""
        if limit is None or len(self.prompted) <= limit:
            return list(self.prompted)
        before = max((t for t in self.prompted if t < frame), default=None)
        after = min((t for t in self.prompted if t >= frame), default=None)
        chosen = [t for t in (before, after) if t is not None]
        others = sorted((t for t in self.prompted if t not in chosen), key=lambda t: abs(t - frame))
        return chosen + others[: limit - len(chosen)]

    def select_memories(
        self,
        frame: int,
        reverse: bool = False,
        stride: int = 1,
        limit: int | None = None,
        pointer_count: int = POINTERS,
    ) -> MemorySelection:
        """Select what `frame` attends to, when time runs forwards or in reverse: at most `limit` prompted frames."""
        sign = -1 if reverse else 1
        chosen = self.nearest_prompted(frame, limit)  # the frame itself among them, if it was prompted before
        # Prompted frames that were not chosen still count as ordinary frames.
        past = {t: m for t, m in self.prompted.items() if t not in chosen} | self.tracked
        maps = [(0, self.prompted[t]) for t in chosen]
        for slot in range(1, SLOTS):
            memory = past.get(map_frame(frame, SLOTS - slot, sign, stride))
            if memory and memory.tokens is not None:
                maps.append((slot, memory))
        pointers = [((frame - t) * sign, self.prompted[t]) for t in chosen if (frame - t) * sign >= 0]
        pointers += [(d, past[frame - d * sign]) for d in range(1, pointer_count) if frame - d * sign in past]
        return MemorySelection(maps, pointers)

    def forget(self, frame: int, stride: int = 1, limit: int | None = None) -> None:
        """Drop what no frame from `frame` on, in either direction, will attend to."""
        keep, horizon = self.nearest_prompted(frame, limit), map_horizon(stride)
        for memories, kept in ((self.prompted, keep), (self.tracked, [])):
            for t in [t for t in memories if t not in kept and abs(t - frame) >= max(POINTERS, horizon + 1)]:
                del memories[t]
        for t, memory in self.tracked.items():
            memory.logits = memory.logits if t == frame else None
            memory.tokens = memory.tokens if abs(t - frame) <= horizon else None

    def copy(self) -> "MemoryBank":
        """A bank of the same memories: what one of the two gains or drops later, the other does not."""
        return MemoryBank(dict(self.prompted), dict(self.tracked))

    def state(self) -> dict:
        """Give the content as dictionaries of tensors, which torch.save takes."""
        return {
            "prompted": {t: dict(vars(memory)) for t, memory in self.prompted.items()},
            "tracked": {t: dict(vars(memory)) for t, memory in self.tracked.items()},
        }

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> "MemoryBank":
        """Make the bank whose state() this is, on a device. state: checked by state_kind."""

        def restore(memory: dict) -> FrameMemory:
            return FrameMemory(**{k: None if v is None else v.to(device) for k, v in memory.items()})

        return cls(*({t: restore(m) for t, m in state[name].items()} for name in ("prompted", "tracked")))


def state_kind(dim: int, mem_dim: int, image_size: int) -> Kind:
    """The kind of MemoryBank.state() for a model of these sizes, see SAM2Config."""
    grid, side = image_size // 16, image_size // 4
    memory = fields(
        pointer=tensor(dim),
        object_score_logits=tensor(),
        tokens=optional(tensor(grid * grid, mem_dim)),
        logits=optional(tensor(side, side)),
    )
    prompted = fields(
        pointer=tensor(dim),
        object_score_logits=tensor(),
        tokens=tensor(grid * grid, mem_dim),  # attended to however far the frame is
        logits=tensor(side, side),  # shown when the frame comes again
    )
    return fields(prompted=mapping(whole(), prompted, least=1), tracked=mapping(whole(), memory))


def held_bytes(*kept: object) -> int:
    """Count the bytes of all tensors in dataclasses, dictionaries, lists and tuples; shared memory counts once."""
    storages, todo = {}, list(kept)
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, (list, tuple)):
            todo += item
        elif is_dataclass(item):
            todo += vars(item).values()
    return sum(storages.values())
