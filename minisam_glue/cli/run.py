"""One command of segment.py: inputs in order, pictures in batches, videos frame by frame, results into folders."""

import json
import signal
import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from .. import media, weights
from ..media.images import is_picture
from ..models import Models, load_models
from ..pipeline import segment_images
from ..processes import own_gpu, rank_and_number
from ..prompts import Clicks, Thresholds
from ..propagation import FORWARD, Tracking
from .arguments import folders_of, prompt_of
from .outputs import VideoOutput, finished, save_picture
from .progress import Progress

BATCH = {"cpu": 1}  # pictures that go through the models together; on a GPU 4
SAVE_EVERY = 10.0  # seconds between saved states of a video


def failed(error: Exception | str) -> int:
    """One line on standard error, and the exit status of what a user can mend."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def download(args: Namespace) -> int:
    """--download: files that are there already are kept; restricted licences are said. The exit status."""
    names = list(weights.CHECKPOINTS) if args.download == ["all"] else args.download
    for name in names:
        print(weights.describe(name))
        print("  ", weights.fetch(name, args.weights, None if args.quiet else weights.progress_line()))
    return 0


class Run:
    """One command: inputs, models, and what is asked of them."""

    def __init__(self, args: Namespace, models: Models | None):
        self.args = args
        sources, self.prompt = prompt_of(args)
        self.thresholds = Thresholds(args.box_threshold, args.text_threshold, args.nms, args.max_area)
        inputs = list(dict.fromkeys(self.expand(sources)))
        self.folders = folders_of(inputs, args.out)
        rank, ranks = rank_and_number()
        self.inputs = inputs[rank::ranks]
        args.out.mkdir(parents=True, exist_ok=True)  # before the long loading: it may fail
        self.models = models or self.load()
        self.stopped = False

    def load(self) -> Models:
        """The models that the command line names; of several processes each takes its own GPU."""
        args, device = self.args, self.args.device
        if device in ("auto", "cuda") and torch.cuda.is_available():
            device = own_gpu()
        detector = None if isinstance(self.prompt, Clicks) else args.detector
        progress = None if args.quiet else weights.progress_line()
        return load_models(args.weights, detector, args.sam, device, args.dtype, progress)

    def expand(self, sources: list[str]) -> list[str]:
        if not self.args.frames:
            return media.expand_inputs(sources)
        return [
            path
            for source in sources
            for path in ([source] if Path(source).is_dir() else media.expand_inputs([source]))
        ]

    def all(self) -> int:
        """Every input; one that can't be read does not stop the others. The exit status."""
        previous = {s: signal.signal(s, self.stop) for s in (signal.SIGINT, signal.SIGTERM)}
        status, begun = 0, time.perf_counter()
        try:
            groups = self.groups()
            for number, (moving, group) in enumerate(groups, 1):
                status = max(status, self.one_group(moving, group))
                if self.stopped:
                    status = 130 if number < len(groups) else status
                    break
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)
        if self.args.profile:
            self.show_profile(time.perf_counter() - begun)
        return status

    def stop(self, signum: int, frame: object) -> None:
        """Ctrl-C: end after the current frame; a second one ends at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def groups(self) -> list[tuple[bool, list[str]]]:
        """Pictures in batches, videos (True) alone, in the order given. Each input is opened once to tell."""
        groups: list[tuple[bool, list[str]]] = []
        most = 1 if isinstance(self.prompt, Clicks) else BATCH.get(self.models.sam.device.type, 4)
        for source in self.inputs:
            if self.args.resume and finished(self.folders[source]):
                self.say(f"{source}: finished before, {self.folders[source]}")
                continue
            moving = self.moving(source)
            if moving or not groups or groups[-1][0] or len(groups[-1][1]) == most:
                groups.append((moving, []))
            groups[-1][1].append(source)
        return groups

    def moving(self, source: str) -> bool:
        return Path(source).is_dir() or media.is_moving(source)

    def one_group(self, moving: bool, group: list[str]) -> int:
        try:
            return self.video(group[0]) if moving else self.pictures(group)
        except BrokenPipeError:
            raise
        except OSError as error:  # of writing: "No space left on device" names no file
            return failed(error if error.filename else f"{self.folders[group[0]]}: {error.strerror or error}")
        except ValueError as error:
            return failed(error if len(self.folders) == 1 or group[0] in str(error) else f"{group[0]}: {error}")

    def pictures(self, group: list[str]) -> int:
        status, images = 0, {}
        for source in group:
            try:
                with self.models.stage("read"):
                    images[source] = media.read_image(source)
            except media.MediaError as error:
                status = failed(error)
        begun = time.perf_counter()
        results = segment_images(self.models, list(images.values()), self.prompt, self.thresholds) if images else []
        seconds = (time.perf_counter() - begun) / max(len(images), 1)
        for source, result in zip(images, results):
            with self.models.stage("write"):
                save_picture(
                    self.folders[source], result, source, self.facts(), "crops" in self.args.save, self.args.html
                )
            self.print_json({"source": source} | result.as_json())
            text = self.summary([o.label for o in result.objects], result.best)
            self.say(f"{source}: {text} ({seconds:.2f} s) -> {self.folders[source]}")
        return status

    def video(self, source: str) -> int:
        """One video, frame by frame. On Ctrl-C a file can be resumed; a camera or pipe is simply over."""
        args = self.args
        with media.frames(source, args.start, args.stride, args.max_seconds, args.fps) as video:
            tracking = Tracking(
                self.models, self.prompt, self.thresholds, args.seed_frame, args.redetect, args.direction
            )
            sound = source if Path(source).is_file() and not is_picture(source) else None
            output = VideoOutput(
                self.folders[source],
                video,
                self.picture_name(source),
                args.direction == FORWARD,
                "masks" in args.save,
                "crops" in args.save,
                sound,
                args.resume,
            )
            try:
                best = self.frames(source, video, tracking, output)
                if self.stopped and video.seekable:
                    self.save(tracking, output)
                    output.abort()
                    self.say("stopped and saved; go on with the same command and --resume")
                    return 130
                with self.models.stage("write"):
                    summary = output.finish(source, self.facts())
            except BaseException:
                output.abort()
                raise
        if video.damaged:
            print(f"warning: {source}: {video.damaged} damaged pieces left out", file=sys.stderr)
        text = self.summary([o["label"] for o in summary["objects"]], best)
        self.say(f"{source}: {summary['frames']} frames, {text} -> {self.folders[source]}")
        return 0

    def frames(self, source: str, video: media.Frames, tracking: Tracking, output: VideoOutput) -> tuple | None:
        """Segment frame after frame into the output. Returns the best score seen while nothing was found."""
        if output.state:
            self.check_settings(output.state["settings"], source)
            tracking.restore(output.state["tracking"])
        best, saved = None, time.monotonic()
        with Progress(source, video.count, not self.args.quiet, len(output.journal.places)) as progress:
            for result in tracking.run(video):
                with self.models.stage("write"):
                    record = output.add(result)
                self.print_json({"source": source} | record)
                best = max(filter(None, (best, result.best)), key=lambda b: b[1], default=None)
                progress.step(len(result.seen))
                if self.stopped:
                    break
                if video.seekable and time.monotonic() - saved > SAVE_EVERY:
                    self.save(tracking, output)
                    saved = time.monotonic()
        return best

    def save(self, tracking: Tracking, output: VideoOutput) -> None:
        output.save_state({"tracking": tracking.state(), "settings": self.settings()})

    def settings(self) -> dict:
        """What the results of a video depend on, for comparison by --resume."""
        args, names = (
            self.args,
            (
                "weights",
                "detector",
                "sam",
                "dtype",
                "start",
                "stride",
                "max_seconds",
                "fps",
                "seed_frame",
                "redetect",
                "direction",
                "box",
                "point",
                "mask",
                "save",
            ),
        )
        text = None if isinstance(self.prompt, Clicks) else self.prompt
        return {"prompt": text, "thresholds": asdict(self.thresholds)} | {name: getattr(args, name) for name in names}

    def check_settings(self, before: dict, source: str) -> None:
        changed = [name for name, value in self.settings().items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"{self.folders[source]} holds an interrupted run with another {', '.join(changed)}: "
                "repeat its settings, choose another --out, or leave out --resume"
            )

    def picture_name(self, source: str) -> str:
        suffix = Path(source).suffix.lower()
        kind = self.args.format or (suffix[1:] if suffix in (".gif", ".webp") else "mp4")
        if kind == "mp4" and not self.args.format and not media.has_av():
            self.say("without PyAV the annotated video is an animated WebP: pip install 'minivit-minisam[cli]' for mp4")
            kind = "webp"
        return "annotated" if kind == "png" else f"annotated.{kind}"

    def facts(self) -> dict:
        """What result.json says of the run."""
        text = "boxes, points or masks" if isinstance(self.prompt, Clicks) else self.prompt
        return {"prompt": text, "thresholds": asdict(self.thresholds), "weights": self.args.weights or "official"}

    def summary(self, labels: list[str], best: tuple[str, float] | None) -> str:
        """ "2 car, 1 person", or a hint."""
        return ", ".join(f"{count} {label}" for label, count in Counter(labels).items()) or self.nothing(best)

    def nothing(self, best: tuple[str, float] | None) -> str:
        if best is None:
            return "nothing found"
        label, score = best
        summary = f"nothing found; the best is {label!r} with {score:.2f}"
        if score < 0.05:
            return f"{summary}: nothing here looks like it"
        lower = score - 0.01
        options = [
            f"--{name}-threshold {lower:.2f}" for name in ("box", "text") if getattr(self.thresholds, name) > lower
        ] or ["a larger --max-area"]
        return f"{summary}: try {' '.join(options)}"

    def say(self, text: str) -> None:
        if not self.args.quiet:
            print(text, file=sys.stderr if self.args.json else sys.stdout, flush=True)

    def print_json(self, record: dict) -> None:
        if self.args.json:
            print(json.dumps(record), flush=True)

    def show_profile(self, total: float) -> None:
        seconds = self.models.seconds
        seconds["other"] = max(0.0, total - sum(seconds.values()))
        for stage, spent in seconds.most_common():
            print(f"{stage:<8}{spent:9.2f} s {spent / total:6.1%}", file=sys.stderr)
