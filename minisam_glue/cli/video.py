"""One video of a command: frame by frame into its output, saved from time to time, continued if it was interrupted."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .. import media
from ..datasets import FORMATS
from ..media.images import is_picture
from ..prompts import Clicks
from ..propagation import FORWARD, Tracking
from ..propagators import FLOW
from ..support.processes import install_command
from .console import count, summary
from .job import Job
from .outputs import VideoOutput
from .progress import Progress
from .provenance import Facts
from .states import EVERY, States

SAVE_EVERY = 10.0  # seconds between saved states of a video


class VideoRun:
    """One video, and the folder of its results."""

    def __init__(self, job: Job, source: str, folder: Path):
        self.job, self.source, self.folder = job, source, folder
        self.args, self.console = job.args, job.console

    def segment(self) -> int:
        """The whole video, or up to Ctrl-C: then a file can be resumed; a camera or pipe is simply over.

        Returns the exit status.
        """
        stage = self.job.models.stage
        with media.frames(*self.reading()) as video:
            tracking = self.new_tracking()
            if isinstance(self.job.prompt, Clicks):
                self.job.prompt.check_inside(video.size[::-1])  # before there is a folder
            of, in_order = self.job.result_of(self.source, True), self.args.direction == FORWARD
            output = self.open_output(video, of, in_order, self.args.resume)
            self.states = States(output.new / "states", self.args.states * 1e6, output.of, self.note)
            try:
                best = self.frames(video, tracking, output)
                if self.job.stopped and video.seekable:
                    self.save(tracking, output)
                    output.abort()
                    self.console.say("stopped and saved; continue with the same command and --resume")
                    return 128 + self.job.stopped
                with stage("write"):
                    result = output.finish(self.source, self.job.facts())
            except media.ReadError as error:
                if video.seekable and output.journal.places:
                    with suppress(OSError):  # this disk may be the one that fails
                        self.save(tracking, output)
                output.abort()
                hint = "; continue with the same command and --resume" if output.state_path.is_file() else ""
                raise media.ReadError(f"{error}{hint}") from error
            except BaseException:
                output.abort()
                raise
        self.report(result, best, video)
        return 0

    def reading(self) -> tuple:
        """The arguments of media.frames."""
        args = self.args
        return self.source, args.start, args.stride, args.max_seconds, args.fps, self.console.warn

    def new_tracking(self) -> Tracking:
        """The tracking that the flags ask for, before its first frame."""
        job, args = self.job, self.args
        refine_every = args.refine_every if args.propagate == FLOW else 1
        how = (args.seed_frame, args.redetect, args.direction, job.seeding, args.propagate, refine_every)
        return Tracking(job.models, job.prompt, job.thresholds, *how, identity=args.identity != "off")

    def open_output(
        self, video: media.Frames, of: Facts, in_order: bool, resume: bool = False, corrects: bool = False
    ) -> VideoOutput:
        """The output folder, as --format and --save ask for it. of: what the result is of. Others: see VideoOutput."""
        sound = self.source if Path(self.source).is_file() and not is_picture(self.source) else None
        picture, save = self.picture_name(), set(self.args.save)
        if save & FORMATS.keys() and not video.seekable:  # a data set needs the frames, which come once
            save.add("frames")
        pages = self.args.html, self.args.story
        return VideoOutput(self.folder, video, picture, in_order, save, sound, resume, of, *pages, corrects)

    def frames(self, video: media.Frames, tracking: Tracking, output: VideoOutput) -> tuple[str, float] | None:
        """Segment frame after frame into the output. Returns the best phrase and score of any detection."""
        best, saved = None, time.monotonic()
        if output.state:
            try:
                tracking.restore(output.state["tracking"])
                output.check_next(tracking.next)
                self.states.go_on(output.state.get("every", EVERY))
                best = best_of(map(output.journal.best, output.journal.places))
            except ValueError as error:
                raise output.damaged(error) from error
        kept = video.seekable and self.args.direction == FORWARD  # for --correct
        with Progress(self.source, not self.args.quiet, *tracking.counted(video.count)) as progress:
            for result in tracking.run(video):
                with self.job.models.stage("write"):
                    record = output.add(result)
                    thinned = kept and self.states.keep(tracking)
                self.console.record({"source": self.source} | record)
                best = best_of((best, result.best))
                progress.step(len(result.seen), *tracking.counted(video.count))
                if self.job.stopped:
                    break
                if video.seekable and (thinned or time.monotonic() - saved > SAVE_EVERY):
                    self.save(tracking, output)
                    saved = time.monotonic()
        return best

    def note(self, text: str) -> None:
        """Say what is worth knowing about this video, in one line."""
        self.console.say(f"note: {self.source}: {text}")

    def save(self, tracking: Tracking, output: VideoOutput) -> None:
        """Save the state that --resume continues from."""
        output.save_state({"tracking": tracking.state(), "every": self.states.every})

    def picture_name(self) -> str:
        """The file name of the annotated video, or "annotated" for a folder of PNG."""
        suffix = Path(self.source).suffix.lower()
        kind = self.args.format or (suffix[1:] if suffix in (".gif", ".webp") else "mp4")
        if kind == "mp4" and not self.args.format and not media.has_av():
            self.console.say(f"without PyAV the annotated video is an animated WebP; for mp4: {install_command('cli')}")
            kind = "webp"
        return "annotated" if kind == "png" else f"annotated.{kind}"

    def report(self, result: dict, best: tuple[str, float] | None, video: media.Frames) -> None:
        """The last lines: what the source lacked; how many frames, which objects, where."""
        if video.damaged:
            self.console.warn(f"{self.source}: {count(video.damaged, 'damaged piece')} left out")
        if video.cut_off:
            stated, read = video.cut_off
            ends = f"it should last {stated:.1f} s and ends after {read:.1f} s"
            self.console.warn(f"{self.source}: {ends}: is it cut off?")
        text = summary([o["label"] for o in result["objects"]], best, self.job.hints)
        self.console.say(f"{self.source}: {count(result['frames'], 'frame')}, {text} -> {self.folder}")


def best_of(found: Iterable[tuple[str, float] | None]) -> tuple[str, float] | None:
    """The phrase with the highest score, if there is one."""
    return max(filter(None, found), key=lambda best: best[1], default=None)
