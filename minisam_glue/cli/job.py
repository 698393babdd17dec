"""The settings of one command, the same for all of its inputs."""

from argparse import Namespace
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..models import CLIPSEG, Models
from ..pipeline import segment_images
from ..prompts import AUTO, Clicks, Prompt, Seeding, Thresholds
from ..records import Segmented
from .console import Console
from .provenance import Facts, facts_of


@dataclass
class Job:
    """The flags, what to look for and how, the models, the console; stopped: the signal that
    asks to stop, such as that of Ctrl-C, or 0."""

    args: Namespace
    prompt: Prompt
    thresholds: Thresholds
    seeding: Seeding
    models: Models
    console: Console
    stopped: int = 0

    def __post_init__(self):
        self.seeding = replace(self.seeding, heat=self.models.heat_settings(self.seeding.heat))

    @property
    def sentence(self) -> str | None:
        """The sentence; None if boxes, points or masks take its place."""
        return None if isinstance(self.prompt, Clicks) else self.prompt

    @property
    def hints(self) -> dict[str, float]:
        """The flags that may keep something from being found, and their values; "auto" and "otsu" are none."""
        if self.args.method == CLIPSEG:
            heat = self.seeding.heat
            return {"--heat-threshold": heat.floor if heat.threshold is None else heat.threshold}
        values = {f"--{name}-threshold": getattr(self.thresholds, name) for name in ("box", "text")}
        return {flag: value for flag, value in values.items() if value != AUTO}

    def segment_images(self, images: list[np.ndarray]) -> list[Segmented]:
        """Pictures that go through the models together."""
        return segment_images(self.models, images, self.prompt, self.thresholds, self.seeding)

    def result_of(self, source: str, moving: bool) -> Facts:
        """The facts of one input's result, see provenance.py. OSError or ValueError if the input can't be read."""
        return facts_of(source, self.args, self.prompt, self.models, moving)

    def facts(self) -> dict:
        """Fields of result.json that are the same for all inputs."""
        clicks = self.prompt if isinstance(self.prompt, Clicks) else None
        return {
            "prompt": self.sentence or "boxes, points or masks",
            **({"prompts": [prompt.as_json() for prompt in clicks.prompts()]} if clicks else {}),
            "method": self.args.method,
            "thresholds": asdict(self.thresholds),
            "seeding": asdict(self.seeding),
            "weights": self.args.weights or "official",
        }
