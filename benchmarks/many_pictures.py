"""Many small pictures by one command: seconds and peak memory, of this checkout and of another one, and of torchrun.

    python benchmarks/many_pictures.py                     # 500 generated pictures, demo weights, two threads
    git worktree add /tmp/before 750e341
    python benchmarks/many_pictures.py --before /tmp/before --rounds 3
    python benchmarks/many_pictures.py --pictures 20       # a rehearsal

Runs are interleaved: one of each in every round. Each is a process of its own, so that the seconds hold the import of
PyTorch and the loading of the weights, about as long for each. A run with a fifth of the pictures tells by its peak
memory whether memory grows with their number. The last one is torchrun with two processes of one thread each; its
peak is that of the larger process. Output folders go to a temporary folder. The machine must be idle.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peak_memory import rusage_mib

from minisam_glue.demo.scenes import scene
from minisam_glue.support.processes import run_program

HERE = Path(__file__).resolve().parents[1]
FIRST_SEED = 20_000  # held out
SENTENCE = "red circle. blue square. green star."
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]


def make_pictures(folder: Path, number: int) -> None:
    """Scenes of 96 to 448 pixels, every other one as a JPEG."""
    folder.mkdir()
    for i in range(number):
        image = Image.fromarray(scene(FIRST_SEED + i).image)
        image.save(folder / f"{i:05d}.{'jpg' if i % 2 else 'png'}", quality=92)


def run(checkout: Path, pictures: Path, out: Path, threads: int, launcher: list[str], more: list[str]) -> tuple:
    """Seconds, and the peak memory in MiB of the largest process."""
    words = [str(checkout / "segment.py"), str(pictures), SENTENCE, "--weights", "demo", "--device", "cpu", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *launcher, *words, "--out", str(out), *more], cwd=checkout, env=environment
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(launcher)} {checkout}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, rusage_mib(used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout, to compare with")
    parser.add_argument("--batch", type=int, help="also this checkout with --batch N")
    args = parser.parse_args()
    kinds = {"this checkout": (HERE, "all", args.threads, [], [])}
    if args.before:
        kinds = {"before": (args.before.resolve(), "all", args.threads, [], [])} | kinds
    if args.batch:
        kinds[f"--batch {args.batch}"] = (HERE, "all", args.threads, [], ["--batch", str(args.batch)])
    kinds |= {
        "torchrun, 2 x 1 thread": (HERE, "all", 1, TORCHRUN, []),
        "a fifth": (HERE, "fifth", args.threads, [], []),
    }
    found = {name: [] for name in kinds}
    print(
        f"torch {torch.__version__}, {platform.machine()}, {args.pictures} pictures, {args.threads} threads", flush=True
    )
    with tempfile.TemporaryDirectory() as place:
        folders = {"all": args.pictures, "fifth": max(1, args.pictures // 5)}
        for folder, number in folders.items():
            make_pictures(Path(place) / folder, number)
        for number in range(args.rounds):
            for name, (checkout, folder, threads, launcher, more) in kinds.items():
                out = Path(place) / f"out-{number}-{len(found[name])}-{name.replace(' ', '-').replace(',', '')}"
                found[name].append(run(checkout, Path(place) / folder, out, threads, launcher, more))
                seconds, peak = found[name][-1]
                print(f"round {number + 1}, {name}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
    base = statistics.median(seconds for seconds, _ in found.get("before", found["this checkout"]))
    print("| run | s (median) | pictures a second | times as fast | peak MiB |\n|---|---|---|---|---|")
    for name, runs in found.items():
        seconds, peak = statistics.median(s for s, _ in runs), max(p for _, p in runs)
        number = folders["fifth" if name == "a fifth" else "all"]
        times = "" if name == "a fifth" else f"{base / seconds:.2f}"
        print(f"| {name} | {seconds:.1f} | {number / seconds:.2f} | {times} | {peak:.0f} |")


if __name__ == "__main__":
    sys.exit(run_program(main))
