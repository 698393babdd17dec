"""The CIFAR-10 weights that ship: make the file from a run, and measure what is in it.

    python benchmarks/cifar_demo.py --run runs/cifar-fast --last                # writes minivit/demo/cifar10.pt
    python benchmarks/cifar_demo.py --calibrate --data-root cifar10-jpeg        # makes its confidences true
    python benchmarks/cifar_demo.py --data-root cifar10-jpeg                    # measures that file
    python benchmarks/cifar_demo.py --plot                                      # draws the curves of benchmarks/logs

The first takes the averaged weights of the last epoch (without --last those that the hold-out chose), in fp16
and without the state of the training, and begins minivit/demo/cifar10.json, the facts beside them. The second
divides the logits by the temperature that suits the hold-out of that run, train/<class>/*.jpg being what it learned
from: no answer changes by it, but the confidences do. The third reads the test images of `--data-root`
(test/<class>/*.jpg) in fp32 and bf16, with and without the mirror image, and the 200 images of
tests/cifar10_test_200.zip; it writes a report of minivit.report and summary.json, with images/s and peak
memory, and puts the accuracies into the facts.
"""

import argparse
import io
import json
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peak_memory import peak_mib

from minisam_glue.support.processes import run_program
from minivit import checkpoint, config, run
from minivit import data as datasets
from minivit.evaluate import Evaluator, top1
from minivit.files import write_json
from minivit.report import write_report

STATED = "test_images", "parameters", "float32", "bfloat16", "calibration_error"  # the same on every machine
FIXED = Path(__file__).resolve().parent.parent / "tests" / "cifar10_test_200.zip"
LOGS = Path(__file__).resolve().parent / "logs"
CURVES = (  # log, its accuracy, minutes of the whole run where the log has none, style, label
    ("cifar_fast_120.jsonl", "val_acc_ema", None, "D-", "cifar-fast, EMA, hold-out (Xeon with AMX)"),
    ("cifar_fast.jsonl", "val_acc_ema", None, "o-", "cifar-fast --patch 4, EMA, hold-out (Xeon with AMX)"),
    ("cpu_budget_ours.jsonl", "val_acc_ema", 111.2, "s-", "cifar-small, EMA, hold-out (Zen 4)"),
    ("cpu_budget_timm.jsonl", "test_acc", None, "^-", "timm's textbook ViT, test (Zen 4)"),
)
WHOLE_RUNS = (  # logs, each with a result, style, label
    (("cpu_budget_5", "cpu_budget_10", "cpu_budget_40_patch8", "cifar_fast_120"), "k*", "bf16 (Xeon, Zen 4)"),
    (("cpu_budget_20_fp32", "cpu_budget_40_fp32", "cpu_budget_80_fp32"), "k+", "fp32 (Zen 3)"),
)


def export(folder: Path, last: bool = False) -> None:
    """Write weights of a run as the demo file: those that its hold-out chose, or the last averaged ones."""
    state = checkpoint.read(folder / ("last.pt" if last else "best.pt"))
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    if last:
        state |= {"model": state["ema"], "weights": "averaged", "val_acc": json.loads(rows[-1])["val_acc_ema"]}
    weights, chosen = state["model"], checkpoint.name_weights(state)
    about = state["describe"] | {"data": "cifar10", "data_root": "data"}
    content = {key: state[key] for key in ("config", "classes", "mean", "std")} | {"describe": about}
    content |= {key: state[key] for key in ("weights", "epoch", "val_acc") if key in state}
    content["ema"] = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    trained = json.loads((folder / "config.json").read_text())
    facts = {"weights": chosen, "hold_out_accuracy": state["val_acc"]}
    facts |= {name: trained[name] for name in ("device", "threads", "versions")}
    places = ("data_root", "out")  # of the machine where it was trained
    facts["arguments"] = {name: value for name, value in trained["arguments"].items() if name not in places}
    if facts["arguments"].get("pretrained"):  # the run that it went on from, and which of its weights
        facts["arguments"]["pretrained"] = "/".join(Path(facts["arguments"]["pretrained"]).parts[-2:])
    facts["cpu_minutes"] = json.loads(rows[-1])["cpu_minutes"]
    checkpoint.DEMO.parent.mkdir(exist_ok=True)
    checkpoint.save(checkpoint.DEMO, content)  # once everything is read: no new weights beside old facts
    write_json(checkpoint.DEMO.with_suffix(".json"), facts)
    print(f"{checkpoint.DEMO}: {chosen}, {checkpoint.DEMO.stat().st_size / 1e6:.2f} MB")


def temperature(logits: torch.Tensor, target: torch.Tensor) -> float:
    """The number in [0.5, 4] by which to divide logits (N, C) for the least cross-entropy with classes (N,).

    Guo et al., arXiv 1706.04599, section 4.2: a network that was trained until it knew all its images is surer of new
    ones than it is right. Images that it did not learn from tell by how much.
    """
    candidates = [hundredths / 100 for hundredths in range(50, 401)]
    return min(candidates, key=lambda t: F.cross_entropy(logits / t, target).item())


def calibrate(data_root: Path) -> None:
    """Divide the head of the demo file by the temperature of its hold-out, and put that number into the facts."""
    facts_file = checkpoint.DEMO.with_suffix(".json")
    facts = json.loads(facts_file.read_text())
    model, state = checkpoint.load_model(Path("demo"), torch.device("cpu"))
    held_out = run.load_data(facts["arguments"] | {"data_root": data_root}).val
    evaluator = Evaluator(state["mean"], state["std"], torch.device("cpu"), torch.float32)
    t = temperature(evaluator.predict(model, held_out.images), held_out.labels)
    for name in ("head.weight", "head.bias"):
        state["ema"][name] = (state["ema"][name].float() / t).half()
    checkpoint.save(checkpoint.DEMO, state)
    write_json(facts_file, facts | {"temperature": round(t * facts.get("temperature", 1), 2)})
    print(f"{checkpoint.DEMO}: logits are divided by {t:.2f}, by {len(held_out)} images held out")


def fixed_images() -> tuple[torch.Tensor, torch.Tensor]:
    """The 200 test images in the repository, uint8 (200, 3, 32, 32), and their classes (200,), in order of name."""
    with zipfile.ZipFile(FIXED) as archive:
        names = sorted(archive.namelist())
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    classes = sorted({name.split("/")[0] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), labels


def measure(data_root: Path, out: Path) -> None:
    """Read the test images, write report/ and summary.json."""
    device = torch.device("cpu")
    model, state = checkpoint.load_model(Path("demo"), device)
    test = datasets.load_test("folder", data_root, 32, state["classes"])
    summary = {"file_bytes": checkpoint.DEMO.stat().st_size, "parameters": sum(p.numel() for p in model.parameters())}
    summary |= {"test_images": len(test), "images_per_s": {}}
    for dtype in (torch.float32, torch.bfloat16):
        evaluator = Evaluator(state["mean"], state["std"], device, dtype)
        evaluator.predict(model, test.images[:500])  # untimed: sets up memory
        start = time.perf_counter()
        scores = evaluator.predict(model, test.images)
        seconds = time.perf_counter() - start
        images, labels = fixed_images()
        precision = str(dtype).removeprefix("torch.")
        summary["images_per_s"][precision] = len(test) / seconds
        summary[precision] = {
            "accuracy": top1(scores, test.labels),
            "with_flips": top1(evaluator.predict(model, test.images, "flip"), test.labels),
            "right_of_200_fixed": round(200 * top1(evaluator.predict(model, images), labels)),
        }
        if dtype == torch.float32:
            facts = {"weights": "minivit/demo/cifar10.pt"}
            report = write_report(out, scores, test.labels, state["classes"], test.images, title="demo", facts=facts)
            summary["calibration_error"] = report["calibration_error"]
    summary["peak_mib"] = peak_mib()
    summary["threads"], summary["commit"] = torch.get_num_threads(), config.commit()
    write_json(out / "summary.json", summary)
    facts = checkpoint.DEMO.with_suffix(".json")
    write_json(facts, json.loads(facts.read_text()) | {name: summary[name] for name in STATED})
    print(json.dumps(summary, indent=1))


def plot(logs: Path = LOGS) -> None:
    """Draw accuracy against CPU minutes, a curve for each run of CURVES; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, key, total, style, label in CURVES:
        rows = [json.loads(line) for line in (logs / name).read_text().splitlines()]
        minutes = [row.get("cpu_minutes", (total or 0) * row["epoch"] / len(rows)) for row in rows]
        values = [row[key] if key == "test_acc" else 100 * row[key] for row in rows]
        axes.plot(minutes, values, style, ms=3, label=label)
    for names, style, label in WHOLE_RUNS:
        ends = [json.loads((logs / f"{name}.jsonl").read_text().splitlines()[-1])["cpu_minutes"] for name in names]
        results = [json.loads((logs / f"{name}_result.json").read_text()) for name in names]
        reached = [100 * result["test_acc_final_ema"] for result in results]
        axes.plot(ends, reached, style, ms=8, label=f"cifar-fast, EMA, test: whole runs, {label}")
    axes.set(xlabel="CPU minutes, one thread", ylabel="accuracy (%)", ylim=(35, 95))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(logs.parent / "pictures" / "cpu_minutes.png", dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--run", type=Path, help="run folder of train_cifar.py whose weights are to ship")
    task.add_argument("--calibrate", action="store_true", help="divide the logits by the temperature of the hold-out")
    task.add_argument("--plot", action="store_true", help="draw benchmarks/pictures/cpu_minutes.png from the logs")
    parser.add_argument("--data-root", type=Path, help="folder with test/<class>, and train/<class> for --calibrate")
    parser.add_argument("--last", action="store_true", help="with --run: the averaged weights of its last epoch")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-report"))
    args = parser.parse_args()
    if args.run:
        export(args.run, args.last)
    elif args.plot:
        plot()
    elif not args.data_root:
        parser.error("give --data-root, --run or --plot")
    elif args.calibrate:
        calibrate(args.data_root)
    else:
        measure(args.data_root, args.out)


if __name__ == "__main__":
    sys.exit(run_program(main))
