"""Train the demo detector from nothing on generated scenes (Grounding DINO, arXiv 2303.05499, section 3.5).

    python -m minisam_glue.demo.train --out runs/demo-detector      # again with the same line: goes on

The folder gets metrics.jsonl (a line every LOG_EVERY steps), last.pt (the whole state of the run) and, at
the end, detector.pt: the averaged weights in fp16. A step depends on the recipe and its number alone.
Left out: mixed precision, several devices.
"""
import argparse
import copy
import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..boxes import xyxy_to_cxcywh
from ..grounding_dino import PRESETS, Detector, GroundingDINO, WordPieceTokenizer
from ..grounding_dino.detector import normalise, pack_captions
from ..grounding_dino.losses import Target, detection_loss, token_map
from .evaluate import SIDES, VOCABULARY, judge
from .scenes import TRAINING_FROM, Scene, random_size, scene

LOG_EVERY, SAVE_EVERY, JUDGE_EVERY = 50, 250, 2500  # steps
JUDGED = range(900_000, 900_100)  # seeds of the scenes that training watches itself with; not those of the results


@dataclass(frozen=True)
class Recipe:
    """All that the result depends on."""
    steps: int = 12_000
    batch_size: int = 16
    side: int = SIDES[0]  # shorter side of what the model sees, on average, pixels
    lr: float = 6e-4
    warmup_steps: int = 500
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    averaging: float = 0.998  # decay of the average of the weights
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine to nothing."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Batch:
    """B pictures of one size with a caption each."""
    images: Tensor  # (B, 3, H, W), normalised
    ids: Tensor  # (B, L)
    real: Tensor  # (B, L), False at padding
    targets: list[Target]


def collate(scenes: list[Scene], tokenizer: WordPieceTokenizer, sides: tuple[int, int]) -> Batch:
    """Scenes of one size -> a batch; sides: shorter and longest side of what the model sees."""
    height, width = scenes[0].image.shape[:2]
    captions = [pack_captions([phrase.text for phrase in s.phrases], tokenizer)[0] for s in scenes]
    L = max(len(caption.ids) for caption in captions)
    ids = torch.full((len(scenes), L), tokenizer.ids["[PAD]"])
    for row, caption in zip(ids, captions):
        row[:len(caption.ids)] = torch.tensor(caption.ids)
    targets = []
    for s, caption in zip(scenes, captions):
        named = [i for i, label in enumerate(s.labels) if label >= 0]
        boxes = torch.from_numpy(s.boxes[named]) / torch.tensor([width, height, width, height])
        tokens = token_map(caption.spans, [s.labels[i] for i in named], len(caption.ids))
        targets.append(Target(xyxy_to_cxcywh(boxes), tokens))
    images = torch.stack([normalise(s.image, sides) for s in scenes])
    real = torch.arange(L) < torch.tensor([len(caption.ids) for caption in captions])[:, None]
    return Batch(images, ids, real, targets)


class Batches(Dataset):
    """The batch of each step, drawn on the fly: pictures of one size, which differs from step to step."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, WordPieceTokenizer.load(VOCABULARY)

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        if get_worker_info():
            torch.set_num_threads(1)  # many processes share the cores
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 3)), self.recipe
        size, short = random_size(rng), round(recipe.side * math.exp(rng.uniform(-0.15, 0.15)))
        first = TRAINING_FROM + (recipe.seed * recipe.steps + step) * recipe.batch_size
        return collate([scene(first + i, size) for i in range(recipe.batch_size)], self.tokenizer, (short, 2 * short))


class Trainer:
    """One run: model, average, optimiser and step, in a folder. A run that is there already goes on."""

    def __init__(self, recipe: Recipe, out: Path, device: str):
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.device, self.step = recipe, out, device, 0
        self.model = GroundingDINO(PRESETS["demo"]).to(device).train()
        # Normed queries times normed words would begin with logits of +-10 and a loss in the thousands.
        torch.nn.init.constant_(self.model.transformer.encoder.text_layers[-1].norm2.weight, 0.1)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": recipe.weight_decay},
                                            {"params": rest, "weight_decay": 0.0}], lr=recipe.lr)
        out.mkdir(parents=True, exist_ok=True)
        if (out / "last.pt").exists():
            self.resume(torch.load(out / "last.pt", map_location=device, weights_only=True))

    def resume(self, state: dict) -> None:
        """Go on from a saved state. ValueError if it is of another recipe."""
        recipe = dataclasses.asdict(self.recipe)
        changed = sorted(name for name in recipe if recipe[name] != state["recipe"].get(name))
        if changed:
            raise ValueError(f"{self.out} holds a run with another {', '.join(changed)}: repeat its settings, or "
                             "choose another --out")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        log = self.out / "metrics.jsonl"
        if log.exists():  # lines after the checkpoint will be written again
            lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in lines))

    def save(self) -> None:
        """The whole state, to last.pt."""
        save_atomically({"recipe": dataclasses.asdict(self.recipe), "step": self.step,
                         "model": self.model.state_dict(), "average": self.average.state_dict(),
                         "optimizer": self.optimizer.state_dict()}, self.out / "last.pt")

    def run(self, workers: int) -> None:
        """Train to the last step and write detector.pt."""
        steps = range(self.step, self.recipe.steps)
        loader = DataLoader(Batches(self.recipe), batch_size=None, sampler=steps, num_workers=workers)
        start, begun = time.perf_counter(), self.step
        for batch in loader:
            losses = self.update(batch)
            if self.step % LOG_EVERY == 0 or self.step == self.recipe.steps:
                rate = (self.step - begun) / (time.perf_counter() - start)
                self.log({name: float(value.detach()) for name, value in losses.items()} | {"steps_per_s": rate})
            if self.step % JUDGE_EVERY == 0:
                self.log(self.judge())
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()
        export(self.average, self.out / "detector.pt")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the optimiser: the losses before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        text = self.model.encode_text(batch.ids.to(self.device), batch.real.to(self.device))
        losses = detection_loss(self.model(batch.images.to(self.device), text), batch.targets)
        self.optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(self.recipe.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self.model.parameters()):
                average.lerp_(weight, 1 - decay)
        return losses

    def judge(self) -> dict[str, float]:
        """The figures of the averaged weights on a few held-out scenes."""
        detector = Detector(self.average, WordPieceTokenizer.load(VOCABULARY), SIDES)
        return judge(detector, map(scene, JUDGED))

    def log(self, values: dict[str, float]) -> None:
        """A line on the screen and in metrics.jsonl."""
        line = {"step": self.step} | {name: round(value, 5) for name, value in values.items()}
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        left = (self.recipe.steps - self.step) / values["steps_per_s"] if "steps_per_s" in values else None
        print(json.dumps(line), f"{left / 3600:.2f} h left" if left is not None else "", flush=True)


def save_atomically(content: dict, path: Path) -> None:
    """The old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def export(model: GroundingDINO, path: Path) -> None:
    """The weights alone, floats in fp16; what the model holds under two names is stored once."""
    state, halves = model.state_dict(), {}
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = halves.setdefault(value.data_ptr(), value.detach().cpu().half())
    save_atomically({"model": dict(state)}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-detector"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="steps of the optimiser (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size, help="scenes a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=Recipe.lr, help="highest learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes; with a GPU take 8 or more")
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    try:
        trainer = Trainer(recipe, args.out, args.device)
    except ValueError as error:
        parser.error(str(error))  # exit status 2
    trainer.run(args.workers)


if __name__ == "__main__":
    main()
