"""SAM 2, ours against the official package (PyPI sam2, in the bench extra): time and memory, images and videos.

Both sides get the same weights (the formula of tests/parity.py, no download), the same images and the same
clip as a folder of JPEG files. Each measurement is a process of its own, the sides take turns, and the masks
are compared. Needs Linux or macOS for the peak memory.

    python benchmarks/sam2_speed.py                                            # tiny, 1024 pixels, videos at 256
    python benchmarks/sam2_speed.py --parts video --video-size 1024 --frames 40 --many 3   # slow
    python benchmarks/sam2_speed.py --preset sam2.1_hiera_large --parts encoder
    python benchmarks/sam2_speed.py --device cuda --dtype bfloat16 --video-size 1024
    python benchmarks/sam2_speed.py --image-size 128 --video-size 64 --frames 40 --long 60 --rounds 1   # a quick look

Parts: encoder (one image), boxes (many boxes on an encoded image), video (one and several objects, frame by
frame), memory (of a short and a long clip), first (time from opening the long clip to its first mask).
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

import numpy as np
import torch
from peak_memory import peak_mib
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL, FULL_HD = (240, 320), (1080, 1920)  # frames of the clip that is tracked, and of the one that is only opened
CLIP = 32  # so many frames differ, then they repeat
YAML = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


# --- What is measured: images, boxes and a clip -------------------------------------------------------------


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Random coloured squares, uint8 (H, W, 3)."""
    squares = np.random.RandomState(seed).randint(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
    return squares.repeat(40, 0).repeat(40, 1)[:height, :width]


def boxes_on(count: int, height: int, width: int) -> np.ndarray:
    """xyxy boxes (count, 4) in pixels."""
    corner, extent = np.random.RandomState(1).rand(2, count, 2)
    corner = corner * [0.6 * width, 0.6 * height]
    return np.concatenate([corner, corner + (0.1 + 0.3 * extent) * [width, height]], 1)


def write_clip(folder: Path, count: int, size: tuple[int, int]) -> None:
    """A square that moves over a picture, as JPEG files; after CLIP frames they are links to the first ones."""
    folder.mkdir()
    for t in range(count):
        file = folder / f"{t:05d}.jpg"
        if t >= CLIP:
            file.hardlink_to(folder / f"{t % CLIP:05d}.jpg")
            continue
        frame = picture(2, *size) // 2
        frame[60:120, 20 + 5 * t : 80 + 5 * t] = picture(3, 60, 60)
        Image.fromarray(frame).save(file, quality=95)


def weights_of(preset: str) -> dict[str, torch.Tensor]:
    """Formula weights, with objects that are present."""
    import parity

    entries = json.loads((ROOT / "tests/golden/sam2" / f"manifest_{preset}.pt.json").read_text())["entries"]
    state = parity.formula_state({name: tuple(shape) for name, (shape, _) in entries.items()})
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 5
    return state


# --- The sides: each has encode, image and video ------------------------------------------------------------


class Ours:
    """This package, in its faster forms."""

    def __init__(self, args, size: int, weights: dict):
        from dataclasses import replace

        from minisam_glue.sam2 import PRESETS, SAM2, accelerate

        with torch.device("meta"):
            self.model = SAM2(replace(PRESETS[args.preset], image_size=size)).eval()
        self.model.load_state_dict(weights, strict=True, assign=True)
        accelerate(self.model.to(args.device))
        self.encode = self.model.encode_image

    def image(self, image: np.ndarray):
        from minisam_glue.sam2 import ImagePredictor

        predictor = ImagePredictor(self.model)
        predictor.set_image(image)
        return lambda boxes: predictor.predict(boxes=boxes).masks.cpu().numpy()

    def video(self, folder: Path, boxes: np.ndarray):
        """Masks (objects, H, W) of frame 0, 1, ..."""
        from minisam_glue.sam2 import VideoTracker

        # The official package leaves out its hole filling where its extension is not compiled.
        tracker = VideoTracker(self.model, len(list(folder.iterdir())), max_hole=0)
        for t, file in enumerate(sorted(folder.iterdir())):
            result = tracker.step(Image.open(file))
            if t == 0:
                for i, box in enumerate(boxes):
                    result = tracker.prompt(i, box=box)
            yield result.masks().cpu().numpy()


class Official:
    """The official package, as its predictors are called."""

    def __init__(self, args, size: int, weights: dict):
        from sam2.build_sam import build_sam2_video_predictor

        release, name = args.preset.split("_hiera_")
        self.model = build_sam2_video_predictor(
            f"configs/{release}/{release}_hiera_{YAML[name]}.yaml",
            device=args.device,
            hydra_overrides_extra=[f"++model.image_size={size}"],
        )
        self.model.load_state_dict(weights, strict=True)
        self.model.fill_hole_area = 0
        self.encode, self.size = self.model.forward_image, size

    def image(self, image: np.ndarray):
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        predictor = SAM2ImagePredictor(self.model)
        predictor._bb_feat_sizes = [(self.size // s, self.size // s) for s in (4, 8, 16)]  # written for 1024 only
        predictor.set_image(image)
        return lambda boxes: predictor.predict(box=boxes, multimask_output=False)[0] > 0

    def video(self, folder: Path, boxes: np.ndarray):
        state = self.model.init_state(str(folder))
        for i, box in enumerate(boxes):
            masks = self.model.add_new_points_or_box(state, 0, i, box=box.astype(np.float32))[2]
        yield (masks[:, 0] > 0).cpu().numpy()
        for t, _, masks in self.model.propagate_in_video(state):
            if t > 0:
                yield (masks[:, 0] > 0).cpu().numpy()


SIDES = {"ours": Ours, "official": Official}


# --- One measurement, in a process of its own ---------------------------------------------------------------


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(device: str, function, *args) -> tuple[float, object]:
    start = clock(device)
    result = function(*args)
    return clock(device) - start, result


def measure(args) -> dict:
    """Do the work of --worker: times in seconds, peak memory in MiB; masks go to a file."""
    torch.set_num_threads(args.threads)
    still = args.worker in ("encoder", "boxes")
    side = SIDES[args.side](args, args.image_size if still else args.video_size, torch.load(args.weights))
    folder, objects = Path(args.clip), boxes_on(args.objects, *(FULL_HD if args.worker == "first" else SMALL))
    masks, out = np.zeros(0, bool), {}
    half = args.dtype != "float32"
    with torch.inference_mode(), torch.autocast(torch.device(args.device).type, DTYPES[args.dtype], enabled=half):
        if args.worker == "encoder":
            generator = torch.Generator().manual_seed(0)
            image = torch.randn(1, 3, args.image_size, args.image_size, generator=generator).to(args.device)
            side.encode(image)
            out["seconds"] = [timed(args.device, side.encode, image)[0] for _ in range(args.repeats)]
        elif args.worker == "boxes":
            ask = side.image(picture(0, 600, 800))
            boxes = boxes_on(args.boxes, 600, 800)
            ask(boxes)
            times = [timed(args.device, ask, boxes) for _ in range(args.repeats)]
            out["seconds"], masks = [t for t, _ in times], times[-1][1]
        elif args.worker == "first":
            out["seconds"] = [timed(args.device, next, side.video(folder, objects))[0]]
        else:
            frames, last = [], clock(args.device)
            for found in side.video(folder, objects):
                now = clock(args.device)
                frames.append(now - last)
                last, masks = now, found  # those of the last frame are compared
            out["frames"] = frames
    np.save(args.masks, masks.reshape(-1))
    out["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if args.device.startswith("cuda") else peak_mib()
    return out


# --- The comparison -----------------------------------------------------------------------------------------


def compare(args, work: Path, part: str, clip: Path, objects: int = 1) -> dict[str, list[dict]]:
    """`rounds` measurements of both sides, in turns; and the IoU of their last masks."""
    runs, masks = {name: [] for name in SIDES}, {}
    for _ in range(args.rounds):
        for name in SIDES:
            command = [
                sys.executable,
                __file__,
                "--worker",
                part,
                "--side",
                name,
                "--clip",
                str(clip),
                "--objects",
                str(objects),
                "--weights",
                str(work / "weights.pt"),
                "--masks",
                str(work / "masks.npy"),
            ]
            for option in ("preset", "device", "dtype", "threads", "image_size", "video_size", "boxes", "repeats"):
                command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{part} of {name} failed:\n{done.stderr[-2000:]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            masks[name] = np.load(work / "masks.npy")
    union = (masks["ours"] | masks["official"]).sum()
    if part in ("boxes", "video") and not union:
        raise RuntimeError(f"{part}: no side has found a mask, so none can be compared")
    runs["iou"] = float((masks["ours"] & masks["official"]).sum() / union) if union else None  # of what has no masks
    return runs


def seconds(runs: list[dict]) -> float:
    return statistics.median(t for run in runs for t in run["seconds"])


def per_frame(runs: list[dict], start: int, end: int) -> float:
    """Median seconds of a frame between two frame numbers."""
    return statistics.median(t for run in runs for t in run["frames"][start:end])


def report(
    name: str, ours: float, official: float, unit: str, ratio: float, target: float, at_least: bool = True
) -> dict:
    """Print and return one row. ratio is what has the target: a quotient of the two, or our value alone."""
    met = ratio >= target if at_least else ratio <= target
    print(
        f"{name:<42} ours {ours:10.4f}  official {official:10.4f} {unit:<12} compared {ratio:7.2f}  "
        f"target {'>=' if at_least else '<='} {target}: {'met' if met else 'MISSED'}",
        flush=True,
    )
    return {"name": name, "ours": ours, "official": official, "unit": unit, "ratio": ratio, "target": target}


def peak(runs: list[dict]) -> float:
    return max(run["peak_mib"] for run in runs)


def peaks(runs: dict[str, list[dict]]) -> str:
    return ", ".join(f"{name} {peak(runs[name]):.0f}" for name in SIDES)


def video_rows(args, work: Path, clip: Path) -> list[dict]:
    """Frames per second with one object, seconds of each further object, and the speed of late against early frames."""
    settled = min(30, args.frames // 2)  # by then memories and pointers are complete
    one, many = (compare(args, work, "video", clip, n) for n in (1, args.many))
    ours, official = (per_frame(one[name], settled, args.frames) for name in SIDES)
    rows = [report("video, one object", 1 / ours, 1 / official, "frames/s", official / ours, 1.15)]
    ours, official = (
        (per_frame(many[name], settled, args.frames) - single) / (args.many - 1)
        for name, single in zip(SIDES, (ours, official))
    )
    rows.append(
        report(
            f"each further object, up to {args.many}", ours, official, "s/frame", ours / official, 0.9, at_least=False
        )
    )
    span = min(30, args.frames // 4)
    ours, official = (
        per_frame(one[name], settled, settled + span) / per_frame(one[name], args.frames - span, args.frames)
        for name in SIDES
    )
    rows.append(report(f"frames/s at the end over frame {settled}", ours, official, "quotient", ours, 0.98))
    print(f"  masks of the last frame: IoU {one['iou']:.5f} with one object, {many['iou']:.5f} with {args.many}")
    return rows


def memory_row(args, work: Path, short: Path, clip: Path) -> dict:
    few, more = (compare(args, work, "memory", folder) for folder in (short, clip))
    print(f"  peak MiB of the longer clip: {peaks(more)}")
    ours, official = ((peak(more[name]) - peak(few[name])) / (args.frames - args.frames // 4) for name in SIDES)
    return report("memory per further frame", ours, official, "MiB", ours, 0.05, at_least=False)


def still_row(args, work: Path, part: str, title: str, target: float) -> dict:
    runs = compare(args, work, part, work)
    rounds = {name: [seconds([run]) for run in runs[name]] for name in SIDES}
    for name, medians in rounds.items():
        print(f"  {name}: rounds' medians from {min(medians):.4f} to {max(medians):.4f} s")
    print(f"  peak MiB: {peaks(runs)}" + (f"; masks: IoU {runs['iou']:.5f}" if part == "boxes" else ""))
    ratio = statistics.median(theirs / mine for mine, theirs in zip(rounds["ours"], rounds["official"]))
    return report(title, *(statistics.median(rounds[name]) for name in SIDES), "s", ratio, target)


def run(args) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save(weights_of(args.preset), work / "weights.pt")
        if "encoder" in args.parts:
            rows.append(still_row(args, work, "encoder", f"image encoder, {args.image_size} pixels", 1.15))
        if "boxes" in args.parts:
            rows.append(still_row(args, work, "boxes", f"{args.boxes} boxes", 1.5))
        write_clip(work / "short", args.frames // 4, SMALL)
        write_clip(work / "clip", args.frames, SMALL)
        if "video" in args.parts:
            rows += video_rows(args, work, work / "clip")
        if "memory" in args.parts:
            rows.append(memory_row(args, work, work / "short", work / "clip"))
        if "first" in args.parts:
            write_clip(work / "long", args.long, FULL_HD)
            runs = compare(args, work, "first", work / "long")
            ours, official = seconds(runs["ours"]), seconds(runs["official"])
            rows.append(report(f"first mask of {args.long} full-HD frames", ours, official, "s", official / ours, 50))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sam2.1_hiera_tiny")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["encoder", "boxes", "video", "memory", "first"],
        choices=["encoder", "boxes", "video", "memory", "first"],
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="processes per side and measurement")
    parser.add_argument("--repeats", type=int, default=3, help="runs in a process, images only")
    parser.add_argument("--image-size", type=int, default=1024, help="the model's pixels for images")
    parser.add_argument("--video-size", type=int, default=256, help="the model's pixels for videos")
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--many", type=int, default=5, help="objects, for what each of them costs")
    parser.add_argument("--frames", type=int, default=330, help="of the clip that is tracked")
    parser.add_argument("--long", type=int, default=1000, help="frames of the clip for the first mask")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    for name in ("worker", "side", "clip", "weights", "masks"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--objects", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    print(
        f"{args.preset}, {args.device} ({platform.processor() or platform.machine()}), {args.dtype}, "
        f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds; medians"
    )
    rows = run(args)
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items()}
        args.out.write_text(json.dumps({"torch": torch.__version__, "args": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
