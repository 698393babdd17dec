"""One command: inputs in order, pictures in batches, videos one by one, results into folders."""

import itertools
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import cache, partial
from pathlib import Path
from threading import Semaphore

import numpy as np
import torch

from .. import demo, media, weights
from ..datasets import FORMATS
from ..models import DETECTOR, DETECTORS, Models, load_models
from ..prompts import Clicks, Thresholds, split_phrases
from ..records import Segmented
from ..render import index_page
from ..render.index_page import Entry, check_index, write_index
from ..seeding import check_sentence
from ..support.files import clear_temporaries
from ..support.lock import FolderLock
from ..support.processes import CLOSED_PIPE, Stopped, on_signals, own_gpu, rank_and_number
from ..support.reading import fields, sequence, text
from ..support.text import printable
from .arguments import expand, folders_of, holds_result_of, idle_flags, prompt_of, seeding_of, with_flag
from .console import Console, KeptConsole, out_of_memory, summary, too_large
from .data_sets import data_sets_of, say_what_is_behind
from .folders import check_own, complete, make_folder, read_result
from .job import Job
from .outputs import OF, finished_of, is_complete, save_picture
from .progress import InputProgress
from .provenance import UNKNOWN, Facts, content, differences, settings_of
from .video import VideoRun
from .workers import in_order, shared_cores

LARGE = 1024  # pixels of SAM 2's images, from which a CPU takes seconds for a frame
SLOTS = 2  # pictures, or batches of them, that are in the models of a CPU at the same time
LISTED = fields(of=OF, objects=sequence(fields(label=text)))  # what the index needs of a result.json
BATCH = {"cpu": 1}  # pictures that go through the models together; on a GPU 4
FAULTS = (ValueError, OSError, RuntimeError, MemoryError)  # what an input may end with; see Run.failed


def download(args: Namespace) -> int:
    """--download: a model's vocabulary comes with it; what is there already is kept; restricted licences are said.

    Returns the exit status.
    """
    names = list(weights.CHECKPOINTS) if "all" in args.download else args.download
    unknown = [name for name in names if name not in weights.CHECKPOINTS]
    if unknown:
        known = ", ".join(weights.CHECKPOINTS)
        raise ValueError(f"--download {unknown[0]}: no weights are called so; give all, or some of {known}")
    for name in weights.with_vocabularies(names):
        print(weights.describe(name))
        path = weights.fetch(name, args.weights, None if args.quiet else weights.progress_line())
        print("  ", printable(str(path)))
    return 0


def check_weights(folder: str | None) -> None:
    """ValueError for --weights that are not there."""
    if folder not in (None, "demo") and not (folder and Path(folder).is_dir()):
        raise ValueError(f"--weights {folder!r}: no such folder; give a folder with the weights, or demo")


def load(args: Namespace, clicked: bool) -> Models:
    """The models that the command line names; of several processes each takes its own GPU. clicked: whether there is
    no sentence, and so no need of a detector."""
    device = args.device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = own_gpu(torch.cuda.device_count())
    method, detector = args.method, args.detector or DETECTORS[0]
    if clicked:
        method, detector = DETECTOR, None
    progress, templates = None if args.quiet else weights.progress_line(), args.template or ("{}",)
    return load_models(
        args.weights, detector, args.sam, device, args.dtype, progress, method, args.heat_size, templates, args.size
    )


def is_video_run(source: str, pages: bool) -> bool:
    """Whether an input is segmented as a video; it is opened to tell. pages: whether those of a TIFF are frames."""
    return os.path.isdir(source) or media.is_moving(source) or (pages and media.page_count(source) > 1)


def told_of(folder: Path, settings: Facts) -> str | None:
    """Words for what the result in a folder has found; None if it is damaged, or one of other settings."""
    result = read_result(folder / "result.json")
    try:
        LISTED(result, "result.json")
    except (ValueError, RecursionError):
        return None
    if result["of"] != result["of"] | settings:
        return None
    return summary([record["label"] for record in result["objects"]], None, {})


class Run:
    """The inputs of a command, the models, and what is asked of them."""

    def __init__(self, args: Namespace, models: Models | None):
        self.args, self.console = args, Console(args.quiet, bool(args.json))
        sources, prompt = prompt_of(args)
        seeding = seeding_of(args)
        thresholds = Thresholds(args.box_threshold, args.text_threshold, args.nms, args.max_area)
        rank, ranks = rank_and_number()
        inputs = expand(sources, args.frames, args.out, self.console.warn if rank == 0 else lambda _: None)
        self.moving = cache(partial(is_video_run, pages=args.frames))  # of an input
        self.slots = Semaphore()  # of threads that are in the models
        self.lacking: list[str] = []  # inputs finished before, which the data sets lack
        taken = FORMATS.keys() & set(args.save) | ({index_page.NAME} if args.html else set())
        self.folders = folders_of(inputs, args.out, taken)
        self.inputs = inputs[rank::ranks]
        check_weights(args.weights)
        make_folder(args.out)  # before the long loading: it may fail
        self.lock = FolderLock(args.out)
        try:
            if self.has_index and rank == 0:
                check_index(args.out)
                clear_temporaries(args.out, index_page.NAME)  # of runs that were killed
            models = models or load(args, isinstance(prompt, Clicks))
            self.job = Job(args, prompt, thresholds, seeding, models, self.console)
            if self.job.sentence:
                check_sentence(self.job.models, self.job.sentence)
            self.sets = data_sets_of(args, prompt, settings_of(args, prompt, self.job.models, False), self.folders)
        except BaseException:
            self.lock.release()
            raise
        self.console.on_closed = self.reader_gone

    @property
    def has_index(self) -> bool:
        """Whether the pages of several inputs get an index."""
        return self.args.html and len(self.folders) > 1

    def all(self) -> int:
        """Do every input; one that can't be read does not stop the others. Returns the exit status."""
        try:
            status = self.each()
            if status and not self.job.stopped and rank_and_number()[1] > 1:
                self.lock.wait_for_others()  # torchrun ends them all when one ends so
            return status
        finally:
            self.job.models.ended.clear()
            self.lock.release()

    def each(self) -> int:
        """See all; the folder is locked."""
        status, begun = 0, time.perf_counter()
        with on_signals(self.stop):
            groups = self.groups()
            if not self.job.stopped:
                self.note(groups)
            left = len(self.lacking) + sum(len(group) for _, group in groups)
            for source in self.lacking:
                if self.job.stopped:
                    break
                status, left = max(status, self.into_data_sets(source, self.console)), left - 1
            with InputProgress(not self.args.quiet, len(self.inputs) - left, len(self.inputs)) as progress:
                self.console.aside = progress.aside
                with closing(self.outcomes(groups)) as outcomes:  # its threads end with it
                    for ended, done in outcomes:
                        status, left = max(status, ended), left - done
                        progress.step(done)
            self.console.aside = nullcontext
            if self.job.stopped not in (0, CLOSED_PIPE) and left and len(self.inputs) > 1:
                done = f"{len(self.inputs) - left} of {len(self.inputs)} inputs are done"
                self.console.say(f"stopped: {done}; continue with the same command and --resume")
            if self.has_index:
                self.index()
            if self.sets is not None:
                self.sets.finish()
            say_what_is_behind([self.folders[source] for source in self.inputs], self.console)
        if (self.job.stopped and left) or self.job.stopped == CLOSED_PIPE:
            status = 128 + self.job.stopped
        if self.args.profile:
            self.console.profile(self.job.models.seconds, time.perf_counter() - begun)
        return status

    def outcomes(self, groups: list[tuple[bool, list[str]]]) -> Iterator[tuple[int, int]]:
        """The exit status of each group, and how many inputs it has, in order, until a signal asks to stop.

        Several groups of pictures in a row are worked on in threads; what they tell is told in their order.
        """
        for moving, some in itertools.groupby(groups, key=lambda group: group[0]):
            parts = [group for _, group in some]
            if moving or len(parts) == 1:
                for part in parts:
                    if self.job.stopped:
                        return
                    yield self.one_group(moving, part, self.console), len(part)
            else:
                yield from self.together(parts)

    def together(self, parts: list[list[str]]) -> Iterator[tuple[int, int]]:
        """See outcomes. As many threads are in the models as the processor bears, and one more reads or writes."""
        slots = min(SLOTS, torch.get_num_threads()) if self.job.models.sam.device.type == "cpu" else 1
        self.slots = Semaphore(slots)

        def work(part: list[str]) -> tuple[int, int, KeptConsole]:
            kept = KeptConsole(self.args.quiet, bool(self.args.json))
            if self.job.stopped:  # not begun yet
                return 0, 0, kept
            return self.one_group(False, part, kept), len(part), kept

        begun = (part for part in parts if not self.job.stopped)
        with shared_cores(slots), closing(in_order(work, begun, slots + 1)) as results:
            for part, (status, done, kept) in zip(parts, results):
                if kept.ran_out:  # beside others: once more in its turn, when those before it have ended
                    status, kept = self.one_group(False, part, self.console), KeptConsole(True, False)
                for line, error in kept.lines:
                    self.console.tell(line, error)
                yield status, done

    def note(self, groups: list[tuple[bool, list[str]]]) -> None:
        """Say what has no effect: flags, and words that the weights do not know. ValueError for a story of pictures."""
        if self.args.story and not any(map(self.moving, self.folders)):
            raise ValueError("--story tells of videos, and no input is one: leave it out for pictures")
        if not self.lock.held:
            self.console.say(f"note: {self.args.out} can't be locked on this system: start no second run into it")
        for note in idle_flags(self.args, self.job.prompt, list(self.folders), self.moving):
            self.console.say(f"note: {note}")
        sam = self.job.models.sam
        moving = any(moving for moving, _ in groups)
        if moving and sam.device.type == "cpu" and sam.config.image_size >= LARGE and self.args.size is None:
            self.console.say(
                "note: a frame takes seconds on a CPU; --size 512 is more than 7 times as fast, its masks coarser"
            )
        foreign = demo.foreign(split_phrases(self.job.sentence)) if self.job.sentence and self.job.models.demo else []
        if foreign:
            self.console.say(f"note: the demo weights know {demo.KNOWN}; not {', '.join(map(repr, foreign))}")

    def stop(self, signum: int, frame: object) -> None:
        """Ctrl-C, or another signal: end after the current frame; a second one ends at once."""
        if self.job.stopped:
            self.job.models.ended.set()  # for other threads; cleared by all
            raise Stopped(signum)
        self.job.stopped = signum

    def reader_gone(self) -> None:
        """Nobody reads standard output any more: end as after Ctrl-C."""
        self.job.stopped = self.job.stopped or CLOSED_PIPE

    def groups(self) -> list[tuple[bool, list[str]]]:
        """Pictures in batches, videos (True) alone, in the order given. Each input is opened once to tell."""
        groups: list[tuple[bool, list[str]]] = []
        usual = 1 if self.job.sentence is None else BATCH.get(self.job.models.sam.device.type, 4)
        most = self.args.batch or usual
        for number, source in enumerate(self.inputs):
            if self.job.stopped:  # the rest is left, and not looked at
                groups.append((False, self.inputs[number:]))
                break
            moving = self.moving(source)
            if self.args.resume and self.finished(source, moving):
                if self.sets is not None and not self.sets.has(self.folders[source]):
                    self.lacking.append(source)
                continue
            if moving or not groups or groups[-1][0] or len(groups[-1][1]) == most:
                groups.append((moving, []))
            groups[-1][1].append(source)
        return groups

    def finished(self, source: str, moving: bool) -> bool:
        """Whether a complete result of just this is there; that, and what another one is of, is said."""
        folder = self.folders[source]
        try:
            complete(folder)
            before = finished_of(folder)
            if before is None:
                return False
            changed = differences(before, self.job.result_of(source, moving))
        except (ValueError, OSError):  # told when it is its turn
            return False
        if not before:
            self.console.say(f"{source}: the result in {folder} does not say what it is of: done again")
        elif changed:
            self.console.say(f"{source}: the result in {folder} is of {', '.join(changed)}: done again")
        else:
            self.console.say(f"{source}: finished before, {folder}")
        return not changed

    def index(self) -> None:
        """index.html of all results of these settings that have pages, those of other processes of this run too.

        It is written again until no result has come in the meantime, so that the last process to end lists them all.
        """
        args, prompt, models = self.args, self.job.prompt, self.job.models
        settings = {moving: settings_of(args, prompt, models, moving) for moving in (False, True)}
        found: dict[str, str | None] = {}
        while new := [s for s, folder in self.folders.items() if s not in found and is_complete(folder, "page.html")]:
            for source in new:
                found[source] = told_of(self.folders[source], settings[self.moving(source)])
            entries = [Entry(s, folder.name, found[s]) for s, folder in self.folders.items() if found.get(s)]
            write_index(self.args.out, entries)

    def one_group(self, moving: bool, group: list[str], console: Console) -> int:
        """A batch of pictures, or a video. What can't be done is told to `console`; returns the exit status."""
        if not moving:
            images, of, status = self.read(group, console)
            return max(status, self.pictures(images, of, console)) if images else status
        try:
            if self.args.resume:
                complete(self.folders[group[0]])  # what still can't be put in its place is not made again
            self.check_earlier(group[0], console)
            status = VideoRun(self.job, group[0], self.folders[group[0]]).segment()
            return status or self.into_data_sets(group[0], console)
        except FAULTS as error:
            return self.failed(group[0], error, console)

    def check_earlier(self, source: str, console: Console) -> None:
        """Warn of a result of another input in this one's folder, which it will replace. ValueError for a result with
        corrections: nothing else has them."""
        folder = self.folders[source]
        earlier = read_result(folder / "result.json")
        if earlier.get("corrections"):
            mend = "choose another --out, or remove that folder to begin anew"
            raise ValueError(f"{source}: the result in {folder} has corrections, which would be lost: {mend}")
        if isinstance(earlier.get("source"), str) and not holds_result_of(folder, source):
            then = (finished_of(folder) or {}).get("content", UNKNOWN)
            if then == UNKNOWN or then != content(source):
                console.warn(f"{folder}: the result of {earlier['source']} there is replaced by that of {source}")

    def failed(self, source: str, error: Exception, console: Console) -> int:
        """Tell what is wrong with one input. Returns the exit status. A RuntimeError for another reason than memory is
        raised."""
        if out_of_memory(error):
            console.ran_out = True
            return console.fail(f"{source}: {too_large(self.args)}")
        if isinstance(error, OSError):  # while writing: "No space left on device" names no file
            words = error.errno, error.strerror or str(error), str(self.folders[source])
            return console.fail(error if error.filename else OSError(*words))
        if isinstance(error, RuntimeError):
            raise error
        text = self.with_earlier(source, error, with_flag(error))
        return console.fail(text if len(self.folders) == 1 or source in text else f"{source}: {text}")

    def with_earlier(self, source: str, error: Exception, text: Exception | str) -> Exception | str:
        """The words for an error; of an input that can't be read any more also that its earlier result stays."""
        folder = self.folders[source]
        if isinstance(error, media.MediaError) and is_complete(folder, "result.json"):
            return f"{text}; its earlier result stays in {folder}"
        return text

    def into_data_sets(self, source: str, console: Console, image: np.ndarray | None = None) -> int:
        """Put the result of an input into the data sets; image: its picture, if it is at hand. What can't be done is
        told; returns the exit status."""
        if self.sets is not None:
            try:
                with self.job.models.stage("write"):
                    self.sets.add(self.folders[source], image, source)
            except FAULTS as error:
                return self.failed(source, error, console)
        return 0

    def pictures(self, images: dict[str, np.ndarray], of: dict[str, Facts], console: Console) -> int:
        """Pictures that go through the models together, each into its folder; one by one if together they can't.
        Returns the exit status. Arguments: see read."""
        results, status = None, 0
        try:
            with self.slots:
                begun = time.perf_counter()
                results = self.job.segment_images(list(images.values()))
                seconds = (time.perf_counter() - begun) / len(images)
        except FAULTS as error:
            if len(images) == 1 or (isinstance(error, RuntimeError) and not out_of_memory(error)):
                return self.failed(next(iter(images)), error, console)
        if results is None:  # out of the `except`, which holds what is in memory
            return max(self.pictures({source: image}, of, console) for source, image in images.items())
        for source, result in zip(images, results):
            try:
                self.write(source, result, of[source], seconds, console)
                status = max(status, self.into_data_sets(source, console, result.image))
            except FAULTS as error:
                status = self.failed(source, error, console)
        return status

    def write(self, source: str, result: Segmented, of: Facts, seconds: float, console: Console) -> None:
        """Write the result of a picture, and tell it. ValueError or OSError if that can't be done."""
        folder, job = self.folders[source], self.job
        with job.models.stage("write"):
            save_picture(folder, result, source, job.facts() | {"of": of}, self.args.save, self.args.html)
        console.record({"source": source} | result.as_json())
        text = summary([o.label for o in result.seen], result.best, job.hints)
        console.say(f"{source}: {text} ({seconds:.2f} s) -> {folder}")

    def read(self, group: list[str], console: Console) -> tuple[dict[str, np.ndarray], dict[str, Facts], int]:
        """The pictures that can be read, by name, what the result of each is of, and the exit status: the others are
        told."""
        images, of, status = {}, {}, 0
        for source in group:
            try:
                with self.job.models.stage("read"):
                    check_own(self.folders[source])
                    self.check_earlier(source, console)
                    image = media.read_image(source, console.warn)
                    of[source] = self.job.result_of(source, False)
                    images[source] = image
            except (ValueError, OSError, MemoryError) as error:
                console.ran_out |= isinstance(error.__cause__, MemoryError)
                told = self.with_earlier(source, error, error)
                status = self.failed(source, error, console) if out_of_memory(error) else console.fail(told)
        return images, of, status
