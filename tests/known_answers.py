"""Compare our models, with the official weights, with answers that others have published for these weights.

    python tests/known_answers.py                   # weights and pictures from the cache, downloaded where missing
    python tests/known_answers.py --weights DIR     # from a folder, downloaded into it where missing

The cases stand in known_answers.json: outputs of SAM 2.1 tiny, Grounding DINO and CLIPSeg in the integration tests of
huggingface/transformers. Resizing there differs slightly from ours, so scores may differ by 0.01, and logits by 0.1 and
5 %.
Exit status: 0 if all cases that could be run are within that, 1 if one is off, 2 if none could be run.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent)]

from minisam_glue import grounding_dino, media, sam2, weights
from minisam_glue.clipseg import model as clipseg
from minisam_glue.clipseg.heat_mapper import HeatMapper
from minisam_glue.clipseg.tokenizer import CLIPTokenizer
from minisam_glue.grounding_dino import Detector
from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer
from minisam_glue.sam2 import ImagePredictor, VideoTracker

KNOWN = json.loads((ROOT / "known_answers.json").read_text())
SCORES = (0.01, 0.0)  # absolute and relative tolerance
TEXT = (0.001, 0.0)  # without a picture nothing is resized
LOGITS = (0.1, 0.05)
PIXELS = (2.0, 0.0)
SAM = "sam2.1_hiera_tiny"
Answers = dict[str, tuple[object, object, tuple[float, float]]]  # name -> ours, published, tolerance


# --- Files -------------------------------------------------------------------------------------------------


class Files:
    """Weights and pictures from a folder, or from the cache; downloaded and checked where they are missing."""

    def __init__(self, folder: Path | None):
        self.folder, self.failed = folder, {}
        for name, facts in KNOWN["images"].items():
            url, digest = facts["url"], facts.get("sha256_16")
            file = name if "." in name else url.rsplit("/", 1)[1]
            entry = weights.Checkpoint("picture", file, (url,), None, digest, "unknown")
            weights.CHECKPOINTS.setdefault(name, entry)

    def path(self, name: str) -> Path:
        """The file of a model or picture. WeightsError if it can't be had, or is another one."""
        if name in self.failed:  # not asked for again for each case
            raise self.failed[name]
        try:
            path = weights.fetch(name, self.folder)
        except weights.WeightsError as error:
            self.failed[name] = error
            raise
        if name in KNOWN["images"] and (wrong := weights.verify(path, weights.CHECKPOINTS[name])):
            raise weights.WeightsError(f"{path}: {wrong}")
        return path

    @lru_cache(maxsize=1)  # noqa: B019, one model at a time is enough, and the tool ends with it
    def model(self, name: str) -> object:
        """SAM 2, a Detector, or a HeatMapper. WeightsError if its files can't be had or read."""
        if name == SAM:
            return self.read(SAM, lambda path: sam2.load(path, SAM)).eval()
        if name == "swin-t":
            model = self.read(name, lambda path: grounding_dino.load(path, name)).eval()
            return Detector(model, self.read("bert-vocab", WordPieceTokenizer.load))
        model = self.read("clipseg", clipseg.load).eval()
        return HeatMapper(model, self.read("clip-bpe", CLIPTokenizer.load))

    def read(self, name: str, load: Callable[[Path], object]) -> object:
        """A model or vocabulary by its loader. WeightsError if its file can't be had, or holds something else."""
        path = self.path(name)
        try:
            return load(path)
        except (ValueError, OSError) as error:
            raise weights.WeightsError(f"{path}: {error}") from error

    def picture(self, name: str) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return media.read_image(str(self.path(name)))

    def frames(self, name: str, count: int) -> list[np.ndarray]:
        """The first frames of a video. MediaError without PyAV."""
        with media.frames(str(self.path(name))) as video:
            return list(islice(video, count))


# --- Cases -------------------------------------------------------------------------------------------------


def run_case(case: dict, files: Files) -> Answers:
    """Ours and the published numbers of one case. WeightsError or MediaError if its files can't be had."""
    if case["model"] == SAM:
        return video_case(case, files) if "video" in case else picture_case(case, files)
    return detector_case(case, files) if "box_threshold" in case else heat_case(case, files)


def raw_masks(case: dict, files: Files, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, M, 256, 256), which the predictor would clamp, and scores (B, M)."""
    model = files.model(case["model"])
    predictor, picture = ImagePredictor(model), files.picture(case["image"])
    features = predictor.encode([picture]).features
    prompts = predictor.prompts(case.get("boxes"), case.get("points"), case.get("labels"), mask, picture.shape[:2])
    with torch.inference_mode():
        out = model.decode(model.without_memory(features), features.high_res, *prompts, case["multimask"])
    return out.masks.float(), out.ious.float()


def picture_case(case: dict, files: Files) -> Answers:
    mask = None
    if "mask_input" in case:
        masks, scores = raw_masks(KNOWN["cases"][0], files)
        mask = masks[0, scores[0].argmax()]
    masks, scores = raw_masks(case, files, mask)
    if "scores_sorted" in case:
        best = masks[0, scores[0].argmax()]
        return {
            "scores": (scores[0].sort(descending=True).values, case["scores_sorted"], SCORES),
            "mask corner": (best[:3, :3], case["mask_corner_of_best"], LOGITS),
        }
    answers = {"scores": (scores[:, 0], case["scores"], SCORES)}
    if "mask_corner" in case:
        answers["mask corner"] = (masks[0, 0, :3, :3], case["mask_corner"], LOGITS)
    if "mask_corner_2x2" in case:
        answers["mask corners"] = (masks[:, 0, :2, :2], case["mask_corner_2x2"], LOGITS)
    return answers


def video_case(case: dict, files: Files) -> Answers:
    published = case["logits_corner_2x2_at_video_size_frames_0_to_2"]
    tracker, corners = VideoTracker(files.model(case["model"]), max_hole=0), []
    for index, frame in enumerate(files.frames(case["video"], len(published))):
        tracker.seek(index, frame)
        if index == case["frame"]:
            tracker.prompt(1, points=case["points"], labels=case["labels"])
        corners.append(tracker.track().logits()[0, :2, :2])
    return {"logits corners": (torch.stack(corners), published, (max(LOGITS[0], case["tolerance"]), LOGITS[1]))}


def detector_case(case: dict, files: Files) -> Answers:
    detector, picture = files.model(case["model"]), files.picture(case["image"])
    found = detector.detect(picture, case["text"], case["box_threshold"], case["text_threshold"])
    return {
        "scores": (found.scores, case["scores"], SCORES),
        "first box": (found.boxes[:1].flatten(), case["first_box_xyxy"], PIXELS),
        "labels": (found.labels, case["labels"], SCORES),
    }


def heat_case(case: dict, files: Files) -> Answers:
    mapper, picture = files.model(case["model"]), files.picture(case["image"])
    maps = mapper.heat_maps([picture], case["texts"])
    with torch.inference_mode():
        condition = mapper.encode_prompts(case["texts"][:1])[0, :3]
        image = mapper.model.clip.encode_image(mapper.pixels([picture]))[0, :3]
    return {
        "heat map corner": (maps[0, 0, :3, :3], case["logits_corner_of_first_352"], LOGITS),
        "text embedding": (condition, case["conditional_embedding_first3"], TEXT),
        "image embedding": (image, case["pooled_output_first3"], SCORES),
    }


# --- The report --------------------------------------------------------------------------------------------


def compare(name: str, ours: object, published: object, tolerance: tuple[float, float]) -> tuple[list[str], bool]:
    """Printed rows for one answer, and whether it is within tolerance."""
    if published and isinstance(published[0], str):
        ok = list(ours) == published
        return [f"  {name}: ours {ours}, published {published}  {'ok' if ok else 'off'}"], ok
    a, b = np.asarray(torch.as_tensor(ours).detach().float().cpu()), np.asarray(published, np.float32)
    if a.shape != b.shape:
        return [f"  {name}: ours has shape {a.shape}, published {b.shape}  off"], False
    difference = np.abs(a - b)
    ok = bool((difference <= tolerance[0] + tolerance[1] * np.abs(b)).all())
    rows = [f"  {name}: largest difference {difference.max():.4f}  {'ok' if ok else 'off'}"]
    for word, values in (("ours", a), ("published", b)):
        rows.append(f"    {word:<9} " + " ".join(f"{value:.4f}" for value in values.ravel()))
    return rows, ok


def title(number: int, case: dict) -> str:
    """One line that says what is asked."""
    asked = [key for key in ("points", "boxes", "mask_input", "text", "texts") if key in case]
    return f"{number}. {case['model']}, {case.get('image') or case['video']}, {', '.join(asked)}"


def report(files: Files, say: Callable[[str], None] = print) -> int:
    """Run all cases and print what comes of them. Returns the exit status."""
    outcomes = []
    for number, case in enumerate(KNOWN["cases"], 1):
        try:
            answers = run_case(case, files)
        except (weights.WeightsError, media.MediaError) as error:
            say(f"{title(number, case)}: skipped ({str(error)[:300]})")
            continue
        compared = [compare(name, *answer) for name, answer in answers.items()]
        outcomes.append(all(ok for _, ok in compared))
        say(f"{title(number, case)}: {'ok' if outcomes[-1] else 'off'}")
        for row in rows_of(compared):
            say(row)
    total = len(KNOWN["cases"])
    say(f"{sum(outcomes)} ok, {len(outcomes) - sum(outcomes)} off, {total - len(outcomes)} skipped, of {total} cases")
    return 2 if not outcomes else 0 if all(outcomes) else 1


def rows_of(compared: list[tuple[list[str], bool]]) -> Iterator[str]:
    for rows, _ in compared:
        yield from rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder of weights and pictures, instead of the cache"
    )
    args = parser.parse_args(argv)
    if args.weights is not None and not args.weights.is_dir():
        print(f"--weights {args.weights}: no such folder", file=sys.stderr)
        return 2
    return report(Files(args.weights))


if __name__ == "__main__":
    sys.exit(main())
