"""Memory and time of fine-tuning ViT-B/16 at 224 px: the last blocks or all of them, with and without checkpointing.

    python benchmarks/finetune_memory.py                          # batch 32; all blocks at batch 8
    python benchmarks/finetune_memory.py --batch 2 --whole-batch 1 --steps 1        # a rehearsal

Each row is a process of its own, which trains on random pixels from random weights (their values cost nothing) with
minivit's own Trainer: AdamW, averaged weights, clipping, no augmentation. Peak memory on a CPU is the largest resident
set of the process, its 0.4 GB of Python and PyTorch included, on a GPU what PyTorch allocated. Seconds are the median
of the steps after the first one.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peak_memory import peak_mib

ROWS = (  # blocks that learn (None: all), checkpointing
    (3, False),
    (3, True),
    (None, False),
    (None, True),
)


def measure(last: int | None, checkpointing: bool, batch: int, steps: int, device: str, preset: str) -> dict:
    """Train for some steps in this process. Returns peak memory in MiB, seconds of a step, parameters that learn."""
    import torch

    from minivit.checkpoint import build_model
    from minivit.finetune import learning_share
    from minivit.splits import Dataset, Split
    from minivit.train import Trainer
    from minivit.train_config import TrainConfig

    pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    images = Split(pixels, torch.arange(batch) % 10)
    data = Dataset(images, images, [str(number) for number in range(10)], (0.5,) * 3, (0.5,) * 3)
    plain = {"crop": 0, "flip": False, "trivial_augment": False, "erasing": 0.0, "mix_prob": 0.0, "clean_epochs": 0}
    config = TrainConfig(
        epochs=steps + 1, batch_size=batch, lr=1e-4, train_last=last, checkpointing=checkpointing, **plain
    )
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_model(preset, 10, {}), data, config, Path(folder), torch.device(device))
        trainer.forward.train()
        for trainer.epoch in range(steps + 1):
            started = time.perf_counter()
            trainer.train_step(data.train.images.to(device), data.train.labels.to(device))
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    used = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak_mib()
    return {
        "mib": used,
        "seconds": statistics.median(seconds[1:]),
        "learn": learning_share(trainer.model)[0],
        "precision": str(trainer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images a step with the last blocks (default 32)")
    parser.add_argument("--whole-batch", type=int, default=8, help="images a step with all blocks (default 8)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps (default 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--preset", default="vit-b16", help="a preset of 224 px (default vit-b16)")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(**json.loads(args.row))))
        return 0
    print("| blocks that learn | parameters that learn | batch | checkpointing | peak memory | seconds a step |")
    print("|---|---|---|---|---|---|")
    got = None
    for last, checkpointing in ROWS:
        batch = args.whole_batch if last is None else args.batch
        row = {"last": last, "checkpointing": checkpointing, "batch": batch, "steps": args.steps}
        row |= {"device": args.device, "preset": args.preset}
        command = [sys.executable, __file__, "--row", json.dumps(row)]
        done = subprocess.run(command, capture_output=True, text=True)
        blocks, on = last or "all", "yes" if checkpointing else "no"
        if done.returncode:
            reason = done.stderr.strip() or f"exit status {done.returncode}"  # what is killed says nothing
            print(f"| {blocks} | - | {batch} | {on} | failed: {reason.splitlines()[-1][:80]} | - |")
            continue
        got = json.loads(done.stdout.splitlines()[-1])
        size, learn = got["mib"] / 2**10, got["learn"] / 1e6
        print(f"| {blocks} | {learn:.2f}M | {batch} | {on} | {size:.2f} GiB | {got['seconds']:.2f} |", flush=True)
    if got is None:
        return 1
    print(f"\n{got['machine']}, {got['threads']} threads, {got['precision']}, torch {got['torch']}, {args.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
