"""The settings of one command, the same for all of its inputs."""

from argparse import Namespace
from dataclasses import asdict, dataclass

from ..models import Models
from ..prompts import Clicks, Prompt, Thresholds
from .console import Console


@dataclass
class Job:
    """The flags, what to look for, the models, the console; stopped: Ctrl-C was pressed."""

    args: Namespace
    prompt: Prompt
    thresholds: Thresholds
    models: Models
    console: Console
    stopped: bool = False

    @property
    def sentence(self) -> str | None:
        """The sentence; None if boxes, points or masks take its place."""
        return None if isinstance(self.prompt, Clicks) else self.prompt

    def facts(self) -> dict:
        """Fields of result.json that are the same for all inputs."""
        prompt = self.sentence or "boxes, points or masks"
        return {"prompt": prompt, "thresholds": asdict(self.thresholds), "weights": self.args.weights or "official"}
