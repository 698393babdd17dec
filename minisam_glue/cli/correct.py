"""--correct: on a frame of a finished video objects are prompted again, added or removed, and the rest is done anew.

The settings are those of the result, and its source must be the same: see provenance.py. The tracking goes on from the
last state before the first correction (states.py), or from the first frame if there is none; corrections of earlier
runs are made again. Masks that a correction can't change stay as they are: all before it, and later those of objects
that never meet a corrected one (with --identity off or --propagate flow those of all others), unless a sentence is
asked again on later frames (--redetect). With --direction both the corrected objects are also tracked back from there.
The new result takes the place of the old one when it is complete.
"""

import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from .. import media
from ..boxes import box_iou, overlap
from ..datasets import FORMATS
from ..models import DETECTORS, DTYPES, Models
from ..prompts import CLICKED, Clicks, ObjectPrompt, Thresholds, split_phrases
from ..propagation import BOTH, FORWARD, REVERSE, Tracking
from ..propagators import MEMORY
from ..records import LONGEST_LINE, Segment, Segmented
from ..seeding import Seed
from ..support.lock import FolderLock
from ..support.processes import CLOSED_PIPE, Stopped, on_signals, rank_and_number, shell_word
from ..support.reading import fields, optional, sequence, text, whole
from ..weights import CHECKPOINTS
from .arguments import seeding_of
from .console import Console, count
from .data_sets import say_what_is_behind
from .folders import CORRECTION, UNFINISHED, complete, is_unfinished, read_result
from .job import Job
from .objects import read_objects
from .outputs import OF, Journal, VideoOutput, is_complete
from .parser import parse_arguments, program
from .progress import Progress
from .provenance import CHANGE_NOTHING, STATED_OTHERWISE, UNKNOWN, Facts, differences, facts_of
from .run import check_weights, load
from .states import States, listed, read_state
from .video import VideoRun

RESULT = fields(
    source=text, of=OF, frames=whole(1), size=sequence(whole(1), 2), objects=sequence(fields(id=whole(1), label=text))
)
PROMPTED = fields(id=whole(1), label=optional(text), at=optional(whole()))
OF_THE_PROMPT = ("prompt", "boxes", "points", "masks", "objects")  # facts that are taken from the result itself
IN_PLACE, BY_OBJECT = "--correct writes the new result in place of the old one", "--object corrects"
IDLE = {"out": IN_PLACE, "resume": IN_PLACE, "box": BY_OBJECT, "point": BY_OBJECT, "mask": BY_OBJECT}  # no use here
IDLE |= {"batch": "the frames of a video are segmented one by one"}
SAME = 0.3  # IoU of the boxes of an object, or of its mask, as it was found and as it is found now


def correct(args: Namespace, models: Models | None) -> int:
    """The command with --correct. Returns the exit status. ValueError for what can't be meant: nothing has changed."""
    folder = args.correct
    defaults = vars(parse_arguments([]))
    for name, reason in IDLE.items():
        if getattr(args, name) != defaults[name]:
            raise ValueError(f"--{name}: {reason}; leave it out")
    made = [name for name in args.save if name in FORMATS]
    if made:
        again = f"python -m minisam_glue.datasets {shell_word(os.path.normpath(folder / '..'))} --to {made[0]}"
        raise ValueError(f"--save {made[0]}: a data set is made of the corrected result by: {again}")
    if rank_and_number()[1] > 1:
        raise ValueError("--correct: one process does it; start it without torchrun")
    if args.direction == REVERSE:
        raise ValueError("--direction reverse: a correction goes forward, or with both also back")
    lock, begun = lock_of(folder), time.perf_counter()
    try:
        waits = (folder / UNFINISHED / CORRECTION).exists()
        result = finished(folder)
        source = source_of(args, result)
        settings = flags_of(args, result)
        corrections = read_corrections(args, folder, result)
        if waits and not (folder / UNFINISHED).exists() and are_last(corrections, args.direction, result):
            Console(args.quiet, bool(args.json)).say(f"{folder}: this correction waited, and is in its place now")
            return 0
        job = job_of(settings, result, models)
        changed = differences(result["of"], facts_now(source, settings, job.models, result["of"]))
        if changed:
            raise ValueError(f"--correct {folder}: it is a result of {', '.join(changed)}")
        status = Correction(job, source, folder, result, corrections, args.direction).run()
        if settings.profile:
            job.console.profile(job.models.seconds, time.perf_counter() - begun)
        return status
    finally:
        lock.release()


# --- What is corrected -------------------------------------------------------------------------------------


def no_result(folder: Path) -> ValueError:
    """The error of a folder without a result."""
    return ValueError(f"--correct {folder}: no result is there; give the folder of one, such as segmented/clip")


def lock_of(folder: Path) -> FolderLock:
    """The lock of the folder that a result lies in. ValueError if there is none."""
    if not folder.is_dir():
        raise no_result(folder)
    return FolderLock(Path(os.path.abspath(folder)).parent)


def finished(folder: Path) -> dict:
    """The result.json of a video. ValueError if there is none that can be corrected."""
    complete(folder)
    if is_unfinished(folder):
        raise ValueError(f"--correct {folder}: it is unfinished; continue it with --resume before")
    if not is_complete(folder, "result.json"):
        raise no_result(folder)
    result = read_result(folder / "result.json")
    if result and not is_complete(folder, "result.jsonl"):
        raise ValueError(f"--correct {folder}: it is a picture's result; segment the picture again with more prompts")
    try:
        RESULT(result, "result.json")
        if "prompts" in result or result["of"].get("prompt") is None:
            sequence(PROMPTED)(result.get("prompts"), "its list of prompts")
        sequence(fields(id=whole(1), at=whole()))(result.get("corrections", []), "its list of corrections")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--correct {folder}: it is damaged, or of an earlier version ({error})") from error
    if result["of"].get("--direction") != FORWARD:
        raise ValueError(f"--correct {folder}: only results of --direction forward can be corrected")
    return result


def source_of(args: Namespace, result: dict) -> str:
    """The source: that of the result, or where it is now."""
    if len(args.words) > 1:
        raise ValueError(f"{args.words[1]!r}: --correct takes one input at most, where the result's source is now")
    source = args.words[0] if args.words else result["source"]
    if not os.path.exists(source):
        raise ValueError(
            f"{source}: it is not there; say where it is now, such as: "
            f"{program()} clip.mp4 --correct {shell_word(args.correct)}"
        )
    return source


def flags_of(args: Namespace, result: dict) -> Namespace:
    """The flags of the result; those that this command has, too, count, and are refused later if they differ."""
    defaults, words = parse_arguments([]), []
    known = vars(defaults).keys() - {*STATED_OTHERWISE, *CHANGE_NOTHING}
    for name in sorted(known):
        flag = "--" + name.replace("_", "-")
        value = result["of"].get(flag)
        if value is True:
            words.append(flag)
        elif isinstance(value, list) and name == "template":
            words += [f"{flag}={item}" for item in value]
        elif isinstance(value, list) and value:
            words += [flag, *map(str, value)]
        elif value is not None and value is not False and value != []:  # 0 counts
            words.append(f"{flag}={value}")
    try:
        settings = parse_arguments(words)
    except ValueError as error:
        raise ValueError(f"--correct {args.correct}: its result.json is damaged ({error})") from error
    for name, value in vars(args).items():
        if value != getattr(defaults, name) and name != "direction":
            setattr(settings, name, value)
    used = {known.file: name for name, known in CHECKPOINTS.items()}
    files = result["of"].get("weights")
    names = [used.get(file, "") for file in files] if isinstance(files, dict) else []
    sams = [name.removeprefix("sam2.1_hiera_") for name in names if name.startswith("sam2.1_hiera_")]
    settings.sam = args.sam or next(iter(sams), None)
    settings.detector = args.detector or next((name for name in names if name in DETECTORS), None)
    precision = result["of"].get("precision")
    if args.dtype == "auto" and isinstance(precision, str) and precision in DTYPES:
        settings.dtype = precision
    if args.weights is None and result.get("weights") not in (None, "official"):
        settings.weights = str(result["weights"])
    return settings


def read_corrections(args: Namespace, folder: Path, result: dict) -> list[ObjectPrompt]:
    """The corrections of the command, each with the id and label of its object, in the order of their frames."""
    given = read_objects(args.object, args.prompts)
    if not given:
        raise ValueError('--correct needs --object "id=2 at=40 point=50,60", or --prompts')
    labels = {o["id"]: o.get("label") for o in [*result["objects"], *result.get("prompts", [])]}
    labels |= {o["id"]: o.get("label") for o in result.get("corrections", [])}
    firsts = {o["id"]: o.get("first") for o in result["objects"]}
    following = highest_number(folder, result)
    corrections = []
    for prompt in given:
        new = prompt.id is None
        following += new
        number = following if new else prompt.id
        try:
            check_correction(prompt, result["frames"], labels, new)
            check_removal(prompt, firsts.get(prompt.id))
        except ValueError as error:
            raise ValueError(f"--object {'of a new object' if new else number}: {error}") from error
        label = (prompt.label or CLICKED) if new else labels[number]
        made = {"box": prompt.box, "points": prompt.points, "mask": prompt.mask, "remove": prompt.remove}
        corrections.append(ObjectPrompt(**made, label=label, id=number, at=prompt.at))
        if [(c.id, c.at) for c in corrections].count((number, prompt.at)) > 1:
            raise ValueError(f"--object {number}: two corrections on frame {prompt.at}: make them one")
    return sorted(corrections, key=lambda c: c.at)


def ids_of(result: dict) -> set[int]:
    """The ids of all objects that a result knows."""
    return {o["id"] for name in ("objects", "prompts", "corrections") for o in result.get(name, [])}


def highest_number(folder: Path, result: dict) -> int:
    """The highest number that anything of a result has, also what a sentence found first and was never seen: a saved
    state may track it still. 0 if there is nothing."""
    numbers = ids_of(result)
    with suppress(OSError), open(folder / "result.jsonl", "rb") as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            with suppress(ValueError, TypeError, KeyError, RecursionError):  # of a damaged file, which is told later
                numbers |= {int(record["id"]) for record in json.loads(line)["found"]} if b'"found"' in line else set()
    return max(numbers, default=0)


def records_of(corrections: list[ObjectPrompt], direction: str) -> list[dict]:
    """The corrections as a result.json holds them."""
    both = {"both": True} if direction == BOTH else {}
    return [prompt.as_json() | both for prompt in corrections]


def are_last(corrections: list[ObjectPrompt], direction: str, result: dict) -> bool:
    """Whether these are the last corrections of a result; an object that they add has another number there."""
    known, last = ids_of(result), result.get("corrections", [])[-len(corrections) :]
    asked = records_of(corrections, direction)
    numbered = [now if now["id"] in known else now | {"id": then["id"]} for now, then in zip(asked, last)]
    return numbered == last and len(last) == len(asked)


def check_correction(prompt: ObjectPrompt, frames: int, labels: dict[int, str], new: bool) -> None:
    """ValueError for a correction that can't be meant. labels: of the objects of the result."""
    if prompt.at is None:
        raise ValueError("its frame is missing: give at=, the number in result.jsonl")
    if prompt.at >= frames:
        raise ValueError(f"at={prompt.at}: the result has {count(frames, 'frame')}, counted from 0")
    if new:
        prompt.check_new()
        return
    if prompt.id not in labels:
        there = ", ".join(map(str, sorted(labels))) or "none"
        raise ValueError(f"the result has no such object, but {there}; leave out id= for a new one")
    if prompt.label not in (None, labels[prompt.id]):
        raise ValueError(f"label={prompt.label}: the object is called {labels[prompt.id]}, and stays so; leave it out")
    if not prompt.shows and not prompt.remove:
        raise ValueError("no prompt: give a box, a point, a mask, or remove")


def check_removal(prompt: ObjectPrompt, first: int | None) -> None:
    """ValueError for the removal of an object before it comes. first: the frame on which the result first shows it."""
    if prompt.remove and isinstance(first, int) and prompt.at < first:
        raise ValueError(f"at={prompt.at}: it first comes on frame {first}; remove it from there on")


def job_of(settings: Namespace, result: dict, models: Models | None) -> Job:
    """The settings and models of the result; its prompt is read when the size of the video is known."""
    prompt = result["of"].get("prompt")
    try:
        if prompt is not None:
            split_phrases(prompt)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--correct {settings.correct}: its result.json is damaged ({error})") from error
    thresholds = Thresholds(settings.box_threshold, settings.text_threshold, settings.nms, settings.max_area)
    console = Console(settings.quiet, bool(settings.json))
    check_weights(settings.weights)
    models = models or load(settings, clicked=prompt is None)
    return Job(settings, prompt, thresholds, seeding_of(settings), models, console)


def facts_now(source: str, settings: Namespace, models: Models, of: Facts) -> Facts:
    """The facts of a result of the same prompt, made now. A source of the same content may have another name."""
    facts = facts_of(source, settings, "", models, True)
    given = OF_THE_PROMPT if facts["content"] == UNKNOWN else (*OF_THE_PROMPT, "source")
    return {name: value for name, value in facts.items() if name not in given} | {
        name: of[name] for name in given if name in of
    }


# --- The new result ----------------------------------------------------------------------------------------


class Correction(VideoRun):
    """The video of a result, and what is corrected. direction: forward, or both."""

    def __init__(
        self, job: Job, source: str, folder: Path, result: dict, corrections: list[ObjectPrompt], direction: str
    ):
        super().__init__(job, source, folder)
        self.result, self.corrections, self.direction = result, corrections, direction
        self.first = corrections[0].at
        self.console.on_closed = self.reader_gone
        removed = {c.id: c.at for c in corrections if c.remove}
        again = {(c.id, c.at) for c in corrections}
        self.earlier = [
            record
            for record in result.get("corrections", [])
            if (record["id"], record["at"]) not in again and not record["at"] >= removed.get(record["id"], np.inf)
        ]
        ids, both = {c.id for c in corrections}, [record for record in self.earlier if record.get("both")]
        self.last = max(highest_number(folder, result), *ids)  # number that an object has
        self.gone = set(removed) if direction == BOTH else set()  # from all frames
        stay = {r["id"] for r in self.earlier if not r.get("remove")} | {c.id for c in corrections if not c.remove}
        self.gone |= {r["id"] for r in both if r.get("remove")} - stay
        # Earlier corrections whose objects were tracked back from there, and are not corrected now.
        self.back = [r for r in both if not r.get("remove") and r["id"] not in ids]
        self.met: set[int] = set()  # objects that the rules of identity may have changed with the corrected ones

    def run(self) -> int:
        """Do all of it. Returns the exit status; the old result stays if anything goes wrong, or after Ctrl-C."""
        with on_signals(self.stop), media.frames(*self.reading()) as video:
            self.size = video.size[::-1]
            for prompt in self.corrections:
                self.check_inside(prompt)
            tracking, earlier = self.tracking()
            old = Old(self.folder, self.size, self.result)
            try:
                self.begin(tracking)
                number_of = partial(self.number_of, tracking, old)
                tracking.correct(self.corrections, earlier, self.direction, number_of)
                return self.write(video, tracking, old)
            finally:
                old.close()

    def stop(self, signum: int, frame: object) -> None:
        """Ctrl-C, or another signal: end after the current frame; a second one ends at once."""
        if self.job.stopped:
            raise Stopped(signum)
        self.job.stopped = signum

    def reader_gone(self) -> None:
        """Nobody reads standard output any more: end as after Ctrl-C."""
        self.job.stopped = self.job.stopped or CLOSED_PIPE

    def check_inside(self, prompt: ObjectPrompt) -> None:
        """ValueError for what lies outside the frames."""
        try:
            prompt.check_inside(self.size)
        except ValueError as error:
            raise ValueError(f"--object {prompt.id}: {error}") from error

    def tracking(self) -> tuple[Tracking, list[ObjectPrompt]]:
        """The tracking of the result from its first frame, and its earlier corrections."""
        try:
            earlier = [ObjectPrompt.from_json(record, self.size) for record in self.earlier]
            if self.job.prompt is None:
                records = self.result["prompts"]
                self.job.prompt = Clicks(objects=[ObjectPrompt.from_json(record, self.size) for record in records])
        except (ValueError, TypeError) as error:
            raise ValueError(f"--correct {self.folder}: its result.json is damaged ({error})") from error
        return self.new_tracking(), earlier

    def number_of(self, tracking: Tracking, old: "Old", index: int, seed: Seed) -> int:
        """The number of an object that the sentence finds: that of the object of the result there, else a new one.

        An object that was found there is where its detection was, whatever its mask was: of a part of it, or empty.
        """
        there = {o.id: o.box for o in old.journal.objects(index)} | old.found(index)
        shares = {
            number: box_iou(box, seed.box)
            for number, box in there.items()
            if old.labels.get(number) == seed.label and number not in tracking.known
        }
        nearest = max(shares, key=shares.get, default=None)
        if nearest and shares[nearest] > SAME:
            return nearest
        self.last += 1
        return self.last

    def begin(self, tracking: Tracking) -> None:
        """Take the last state before the first correction that can be read."""
        for number, path in listed(self.folder / "states"):
            if number > self.first:
                continue
            try:
                state = read_state(path, self.result["of"])
                if not isinstance(state, dict) or state.get("next") != number:
                    raise ValueError("it is of another frame")
                tracking.restore(state)
                return
            except (ValueError, OSError, RecursionError) as error:
                self.console.warn(f"{path} can't be used ({error})")
        if self.first:
            self.console.say(f"{self.folder}: no state before frame {self.first}: tracking again from the first frame")

    def write(self, video: media.Frames, tracking: Tracking, old: "Old") -> int:
        """Write the new result in place of the old one."""
        output = self.open_output(video, self.result["of"], in_order=self.direction == FORWARD, corrects=True)
        try:
            self.keep_files(output)
            self.every_frame(video, tracking, old, output)
            if self.job.stopped:
                output.abort()
                self.console.say(f"stopped: the result in {self.folder} stays as it was")
                return 128 + self.job.stopped
            records = [*self.earlier, *records_of(self.corrections, self.direction)]
            facts = self.job.facts() | {"corrections": records}
            old.close()  # a file that is open can't be replaced on Windows
            result = output.finish(self.source, facts)
        except BaseException:
            output.abort()
            raise
        self.report(result, None, video)
        say_what_is_behind([self.folder], self.console)
        return 0

    def keep_files(self, output: VideoOutput) -> None:
        """Copy what stays of the old result and is not made again: earlier states, heat maps."""
        for number, path in listed(self.folder / "states"):
            if number <= self.first and self.args.states:
                (output.new / "states").mkdir(exist_ok=True)
                shutil.copyfile(path, output.new / "states" / path.name)
        if (self.folder / "heatmaps").is_dir():
            shutil.copytree(self.folder / "heatmaps", output.new / "heatmaps")

    def every_frame(self, video: media.Frames, tracking: Tracking, old: "Old", output: VideoOutput) -> None:
        """Write all frames into the output, the old ones and the new ones."""
        states = States(output.new / "states", self.args.states * 1e6, self.result["of"], self.note)
        total = tracking.counted(video.count)[1]
        with Progress(self.source, not self.args.quiet, 0, total) as progress:
            for done, result in enumerate(self.results(video, tracking, old), 1):
                with self.job.models.stage("write"):
                    record = output.add(result)
                    if result.frame >= self.first and tracking.next == result.frame + 1:
                        states.keep(tracking)
                self.console.record({"source": self.source} | record)
                progress.step(len(result.seen), done, total)
                if self.job.stopped:
                    return

    def results(self, video: media.Frames, tracking: Tracking, old: "Old") -> Iterator[Segmented]:
        """The frames in order; with `both` those before the corrections once more, with the corrected objects alone."""
        for index, image in zip(range(tracking.next), video.forward(0)):
            yield old.frame(index, image, self.gone)
        for new in tracking.run(video):
            if tracking.reverse:
                yield new
                continue
            before = old.frame(new.frame, new.image, self.gone)
            if new.frame >= self.first:
                before.objects, before.heat = self.merged(new, before.objects), new.heat
                before.best, before.notes = before.best or new.best, new.notes
                before.found |= new.found
            yield before

    def merged(self, new: Segmented, old: list[Segment]) -> list[Segment]:
        """The objects of one frame: old ones that no correction can have changed, and new ones."""
        if self.args.redetect:  # any object may join, return or go elsewhere now
            records = self.result.get("prompts", []) + self.earlier
            later = {record["id"] for record in records if (record["at"] or 0) > new.frame}
            ours = {o.id for o in new.objects} | {o.id for o in old if o.id not in later}
            ours |= {c.id for c in self.corrections if c.at <= new.frame}
        else:
            ours = {c.id for c in self.corrections if c.at <= new.frame}
            if self.args.identity != "off" and self.args.propagate == MEMORY:
                self.met |= touched(ours | self.met, [*old, *new.objects]) & {o.id for o in new.objects}
                ours |= self.met
        ours -= {record["id"] for record in self.back if record["at"] > new.frame}
        return [o for o in old if o.id not in ours] + [o for o in new.objects if o.id in ours - self.gone]


def touched(ids: set[int], objects: list[Segment]) -> set[int]:
    """The ids of objects whose boxes overlap those of `ids`, or of each other in a row. An object may be there twice:
    as it was and as it is."""
    found, seen = set(ids), [o for o in objects if o.mask.any()]
    grown = True
    while grown:
        boxes = [o.box for o in seen if o.id in found]
        new = {o.id for o in seen if o.id not in found and any(overlap(o.box, box) for box in boxes)}
        found, grown = found | new, bool(new)
    return found - ids


class Old:
    """The frames of a result as it was. ValueError if it is damaged. size: (height, width)."""

    def __init__(self, folder: Path, size: tuple[int, int], result: dict):
        path, frames = folder / "result.jsonl", result["frames"]
        known = [*result["objects"], *result.get("corrections", [])]  # these too of objects that were removed
        self.labels = {record["id"]: record.get("label") for record in known}
        try:
            self.journal = Journal(path, path.stat().st_size, size)
            if len(self.journal.places) != frames or 0 not in self.journal.places:
                self.journal.close()
                raise ValueError(f"it has not the frames 0 to {frames - 1}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"--correct {folder}: its result.jsonl is damaged ({error})") from error

    def frame(self, index: int, image: np.ndarray, without: set[int]) -> Segmented:
        """A frame as it was, but for some objects."""
        objects = [o for o in self.journal.objects(index) if o.id not in without]
        found = self.found(index)
        return Segmented(image, objects, index, self.journal.best(index), notes=self.journal.notes(index), found=found)

    def found(self, index: int) -> dict[int, tuple[float, ...]]:
        """The boxes of what was found first on a frame, without objects that were never seen: their numbers are free
        for others."""
        return {number: box for number, box in self.journal.found(index).items() if number in self.labels}

    def close(self) -> None:
        """Close the file."""
        self.journal.close()
