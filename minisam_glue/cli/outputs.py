"""Results in a folder: the annotated picture or video, masks and cut-outs as PNG, JSON, a web page.

Everything is written to `.unfinished` inside that folder and moved to its place when it is complete. The frames of a
video go to a journal there as they come (JSON lines), with the state of the tracking, from which an interrupted run
continues; at the end the journal becomes result.jsonl in the order of the frames.
"""

import io
import json
import os
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..identity import Notes
from ..media import Frames, MediaError
from ..media.writer import VideoWriter
from ..pixels import JPEG_SIDE
from ..records import LONGEST_LINE, RECORD, HeatMap, Segment, Segmented
from ..render.film_page import FilmPage
from ..render.heat import blend, paint
from ..render.overlay import crop
from ..render.page import write_page
from ..render.story import Panel, Storyteller, panel_words
from ..support.files import is_temporary, whole_file
from ..support.reading import (
    LARGEST,
    anything,
    check_regular,
    fields,
    load,
    mapping,
    optional,
    plain,
    real,
    sequence,
    text,
    whole,
)
from .arguments import last_part
from .folders import CORRECTION, UNFINISHED, check_own, clear, is_unfinished, list_files, publish, read_result
from .provenance import Facts, differences

THUMBNAIL = 240  # pixels of its longer side
VERSION = 7  # of the state of an interrupted run
OF = mapping(text, plain)  # what a result is of, see provenance.py
BEST = optional(fields(label=text, score=real))  # of a frame's record
FOUND = sequence(fields(id=whole(1), box=sequence(real, 4)))  # of a frame's record, see Segmented
STATE = fields(journal=whole(), lost=optional(sequence(whole(-LARGEST))), of=OF, tracking=anything)


def is_complete(folder: Path, name: str) -> bool:
    """Whether a complete result is there, with a file of this name."""
    return (folder / "result.json").is_file() and (folder / name).is_file() and not is_unfinished(folder)


def finished_of(folder: Path) -> Facts | None:
    """The facts of the complete result in a folder; empty if it has none; None without a result."""
    if not is_complete(folder, "result.json"):
        return None
    of = read_result(folder / "result.json").get("of", {})
    try:
        OF(of, "of")
    except (ValueError, RecursionError):
        return {}
    return of


def save_picture(folder: Path, result: Segmented, source: str, facts: dict, save: Collection[str], page: bool) -> None:
    """Write annotated.jpg, masks/, result.json; if asked crops/, heatmaps/, a page. annotated.png unless the source is
    a JPEG, and where that can't hold the picture.

    save: "crops", "heatmap", or both. facts: more fields of result.json, such as the prompt. OSError if they can't be
    written, ValueError as of check_own: then nothing has changed.
    """
    check_own(folder)
    new = folder / UNFINISHED / "results"
    jpeg = Path(source).suffix.lower() in (".jpg", ".jpeg") and max(result.image.shape) <= JPEG_SIDE
    try:
        clear(folder)
        (new / "masks").mkdir(parents=True)
        path = new / ("annotated.jpg" if jpeg else "annotated.png")
        Image.fromarray(result.annotated()).save(path, quality=92, compress_level=3)
        for segment in result.seen:
            save_mask(new / "masks" / f"{name_of(segment)}.png", segment.mask)
        if "heatmap" in save:
            for number, heat in enumerate(result.heat, 1):
                save_heat_map(new / "heatmaps" / label_name(number, heat.phrase), heat, result.image)
        if "crops" in save:
            (new / "crops").mkdir()
            for segment in result.seen:
                save_crop(new / "crops" / f"{name_of(segment)}.png", result.image, segment.mask)
        if page:
            write_page(new / "page.html", result.image, result.seen, title_of(source))
            save_thumbnail(new / "thumbnail.jpg", result.annotated())
        files = {"files": [*list_files(new), "result.json"]}
        save_json(new / "result.json", {"source": source} | facts | result.as_json() | files)
        publish(new, folder)
    finally:
        clear(folder)


def title_of(source: str) -> str:
    """The name of a source as its page shows it: that of its file."""
    return Path(source).name if os.path.exists(source) else last_part(source)


def save_thumbnail(path: Path, picture: np.ndarray) -> None:
    """Write a small JPEG of a picture, uint8 RGB (H, W, 3), for the index of many results."""
    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(path, quality=80)


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool (H, W), as a grey PNG of 0 and 255."""
    with whole_file(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, "PNG", compress_level=3)


def save_frame(path: Path, image: np.ndarray) -> None:
    """Write a plain frame, uint8 (H, W, 3), as PNG."""
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG", compress_level=3)


def save_heat_map(stem: Path, heat: HeatMap, image: np.ndarray) -> None:
    """Write the confidences in false colours, the pixels above the threshold, and both over the picture: <stem>.png,
    <stem>_mask.png, <stem>_overlay.png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    confidence = heat.at(image.shape[:2])
    above = confidence > heat.threshold
    for ending, picture in (("", paint(confidence)), ("_overlay", blend(image, confidence, above))):
        with whole_file(stem.with_name(f"{stem.name}{ending}.png")) as temporary:
            Image.fromarray(picture).save(temporary, "PNG", compress_level=3)
    save_mask(stem.with_name(f"{stem.name}_mask.png"), above)


def save_crop(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    """Write the object alone, cut out of uint8 (H, W, 3), as an RGBA PNG."""
    with whole_file(path) as temporary:
        Image.fromarray(crop(image, mask)).save(temporary, "PNG", compress_level=3)


def save_json(path: Path, content: dict) -> None:
    """Write indented JSON in ASCII."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def name_of(segment: Segment) -> str:
    """File name of an object: its number and as much of its label as any file system takes."""
    return label_name(segment.id, segment.label)


def label_name(number: int, label: str) -> str:
    """A number and as much of a label as any file system takes, in letters that this system has for names."""
    encoding = sys.getfilesystemencoding()
    words = re.sub(r"[^\w-]+", "_", label.encode(encoding, "replace").decode(encoding)).strip("_")
    return f"{number:03d}_{words[:40]}" if words else f"{number:03d}"


def panel_of(result: Segmented, time: float) -> tuple[Panel, object]:
    """A frame as a panel of the story, and what differs on frames on which something happens."""
    notes, seen = result.notes or Notes(), result.seen
    shown = {o.id for o in seen}
    absent = [number for number in notes.scores if number not in shown]
    happened = (notes.predicted.keys(), shown, [words.partition(":")[0] for words in notes.words])
    masks = np.array([o.mask for o in seen], bool).reshape(-1, *result.image.shape[:2])
    scores = [notes.scores.get(o.id, o.score) for o in seen]
    title, words = f"frame {result.frame}, {time:.2f} s", panel_words(notes.words, absent)
    rivals = [rival.box for rival in notes.rivals]
    panel = Panel(result.image, masks, [o.id for o in seen], title, scores, notes.predicted, words, rivals)
    return panel, happened


class Journal:
    """Records of frames as JSON lines in one file, found again by frame; if a frame has several lines the last counts.

    size, shape: bytes of an earlier journal to keep, and the (height, width) of its frames; without them a new one is
    begun. ValueError if the earlier one is damaged: it stays as it was.
    """

    def __init__(self, path: Path, size: int | None = None, shape: tuple[int, int] | None = None):
        self.places = {}  # frame -> offset and length: only a few numbers are held per frame
        if size is not None:
            check_regular(path)
        self.file = open(path, "w+b" if size is None else "r+b")  # noqa: SIM115, close() ends it
        try:
            if size is not None:
                self._read(size, shape)
                self.file.truncate(size)  # lines after the saved state come again
        except BaseException:
            self.close()
            raise

    def _read(self, size: int, shape: tuple[int, int]) -> None:
        there, end = self.size, 0
        if size > there:
            raise ValueError(f"the journal has {there} bytes, not {size}")
        self.file.seek(0)
        while end < size:
            line, where = (
                self.file.readline(min(size - end, LONGEST_LINE)),
                f"line {len(self.places) + 1} of the journal",
            )
            if not line.endswith(b"\n"):
                raise ValueError(f"{where} is cut off")
            record = json.loads(line)
            RECORD(record, where)
            if {tuple(held["mask"]["size"]) for held in record["objects"]} - {shape}:
                raise ValueError(f"the journal has masks of another size than {shape}")
            self.places[record["frame"]] = (end, len(line))
            end += len(line)
        if self.places and max(self.places) - min(self.places) >= len(self.places):
            raise ValueError("the journal lacks frames")

    def append(self, record: dict) -> None:
        """Write a record, and hand it to the system: it outlives this process, if not a power cut."""
        line = json.dumps(record).encode() + b"\n"
        self.file.seek(0, os.SEEK_END)
        self.places[record["frame"]] = (self.file.tell(), len(line))
        self.file.write(line)
        self.file.flush()

    def line(self, frame: int) -> bytes | None:
        """The line of a frame, if there is one."""
        if frame not in self.places:
            return None
        offset, length = self.places[frame]
        self.file.seek(offset)
        return self.file.read(length)

    def record(self, frame: int) -> dict:
        """The record of a frame; {} if there is none."""
        line = self.line(frame)
        return {} if line is None else json.loads(line)

    def objects(self, frame: int) -> list[Segment]:
        """The objects seen on a frame."""
        return [Segment.from_json(o) for o in self.record(frame).get("objects", [])]

    def best(self, frame: int) -> tuple[str, float] | None:
        """The best phrase and its score on a frame, if a sentence was asked there. ValueError if that is damaged."""
        best = self.record(frame).get("best")
        BEST(best, "the best phrase of a frame")
        return best and (best["label"], best["score"])

    def found(self, frame: int) -> dict[int, tuple[float, ...]]:
        """The boxes of what a sentence found first on a frame; none in results of before. ValueError if damaged."""
        found = self.record(frame).get("found", [])
        FOUND(found, "what was found on a frame")
        return {record["id"]: tuple(record["box"]) for record in found}

    def notes(self, frame: int) -> Notes | None:
        """The notes of the rules on a frame, if they were kept. ValueError if it is damaged."""
        rules = self.record(frame).get("rules")
        return None if rules is None else Notes.from_json(rules)

    @property
    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        with suppress(OSError):  # a last line that could not be written was reported then
            self.file.close()


class VideoOutput:
    """The results of one video.

    video: the frames that are segmented; `picture`: name of the annotated video, as VideoWriter takes it. in_order:
    frames come one after another from the first on, so they are drawn as they come; else at the end. save: also write
    masks/<object>/<frame>.png, crops/<object>/<frame>.png, frames/<frame>.png, and of the frames that were looked at
    heatmaps/<phrase>/<frame>.png. resume: go on from the state that save_state left; see `state`. of: what the result
    is of, see provenance.py; ValueError if that state is of something else, or as of check_own. page: also
    write page.html and its thumbnail. story: also write story.png, and what the rules did to the record of each frame.
    corrects: a whole result is there, and stays so until this one takes its place.
    MediaError or OSError if it can't be written.
    """

    def __init__(
        self,
        folder: Path,
        video: Frames,
        picture: str,
        in_order: bool,
        save: Collection[str] = (),
        audio_from: str | None = None,
        resume: bool = False,
        of: Facts | None = None,
        page: bool = False,
        story: bool = False,
        corrects: bool = False,
    ):
        check_own(folder)
        self.of = {} if of is None else of
        self.folder, self.video, self.in_order, self.save = folder, video, in_order, save
        self.unfinished, self.new = folder / UNFINISHED, folder / UNFINISHED / "results"
        self.state_path, self.start = self.unfinished / "state.pt", video.time(0)  # seconds
        self.page, self.thumbnail, self.shown = FilmPage() if page else None, None, False  # shown: with an object
        self.story = Storyteller() if story else None
        self.drawn, self.state, self.journal, self.writer = 0, None, None, None
        if resume and self.state_path.is_file():
            self._reopen()
        try:
            if self.state is None:
                self._begin(corrects)
            self.writer = VideoWriter(
                self.new / picture, video.fps, video.size, audio_from, self.start, video.pixel_aspect
            )
            if self.in_order and self.state:
                self._draw_from_journal(len(self.journal.places))
        except BaseException:
            self.abort()
            raise

    def _begin(self, corrects: bool) -> None:
        clear(self.folder)
        self.unfinished.mkdir(parents=True)
        if corrects:
            (self.unfinished / CORRECTION).touch()
        self.new.mkdir()
        self.journal = Journal(self.unfinished / "journal.jsonl")

    def _reopen(self) -> None:
        """State and journal of an interrupted run. MediaError if they are damaged."""
        try:
            state = load(self.state_path)
            version = state.get("version", VERSION) if isinstance(state, dict) else VERSION
            if type(version) is not int or version != VERSION:
                raise ValueError("it is of another version of this program")
            STATE(state, "the state")
        except (ValueError, OSError, RecursionError) as error:
            raise self.damaged(error) from error
        changed = differences(state["of"], self.of)
        if changed:  # nothing has been touched yet
            raise ValueError(
                f"--resume: the unfinished result in {self.folder} is of {', '.join(changed)}: "
                "leave out --resume to begin anew"
            )
        try:
            self.journal = Journal(self.unfinished / "journal.jsonl", state["journal"], self.video.size[::-1])
            self.video.forget(state["lost"])
        except (ValueError, OSError, RecursionError) as error:
            raise self.damaged(error) from error
        self.state = state
        for path in list(self.unfinished.rglob(".*")):
            if is_temporary(path.name):  # left by a process that was killed
                path.unlink()

    def damaged(self, error: Exception) -> MediaError:
        """The error of an interrupted run that can't be gone on with."""
        reason = " ".join(str(error).split())[:200]
        return MediaError(f"{self.unfinished} can't be continued ({reason}): leave out --resume to begin anew")

    def check_next(self, frame: int | None) -> None:
        """ValueError unless the frame to come is beside one that the journal has."""
        places = self.journal.places
        if places and (frame is None or not {frame - 1, frame + 1} & places.keys()):
            raise ValueError(f"frame {frame} is to come, but the journal has frames {min(places)} to {max(places)}")

    def add(self, result: Segmented) -> dict:
        """Add a frame: journal, masks, cut-outs, and its picture if it is the next. Returns its JSON record, with its
        time in seconds of the source. A frame that comes twice keeps what the second time does not have: objects, the
        best phrase of a detection and the boxes of what it found, and the notes of what the rules did."""
        result.best = result.best or self.journal.best(result.frame)
        result.found = self.journal.found(result.frame) | result.found
        earlier = self.journal.notes(result.frame)
        result.notes = result.notes.after(earlier) if result.notes and earlier else result.notes or earlier
        tracked = {segment.id for segment in result.objects}
        result.objects[:0] = [o for o in self.journal.objects(result.frame) if o.id not in tracked]
        record = {"time": round(self.video.time(result.frame), 4)} | result.as_json()
        if self.story is not None and result.notes is not None:
            record["rules"] = result.notes.as_json()
        self.journal.append(record)
        if "frames" in self.save:
            save_frame(self.new / "frames" / f"{result.frame:06d}.png", result.image)
        if "heatmap" in self.save:
            for number, heat in enumerate(result.heat, 1):
                stem = self.new / "heatmaps" / label_name(number, heat.phrase) / f"{result.frame:06d}"
                save_heat_map(stem, heat, result.image)
        for segment in result.objects:
            if not segment.mask.any():  # a frame that comes twice may have shown it the first time
                self._forget(segment, result.frame)
        for segment in result.seen:
            if "masks" in self.save:
                save_mask(self._place("masks", segment, result.frame), segment.mask)
            if "crops" in self.save:
                save_crop(self._place("crops", segment, result.frame), result.image, segment.mask)
        if self.in_order and result.frame == self.drawn:
            # With the numbers of the record, which are rounded: a run that goes on draws this frame from there.
            pairs = zip(result.seen, record["objects"])
            objects = [replace(o, score=r["score"], box=tuple(r["box"])) for o, r in pairs]
            notes = Notes.from_json(record["rules"]) if "rules" in record else None
            self._draw(Segmented(result.image, objects, result.frame, notes=notes))
        return record

    def _forget(self, segment: Segment, frame: int) -> None:
        """Remove the mask and the cut-out of an object on a frame, if there are any."""
        for kind in ("masks", "crops"):
            folder = self.new / kind / name_of(segment)
            (folder / f"{frame:06d}.png").unlink(missing_ok=True)
            with suppress(OSError):  # it is not there, or not empty
                folder.rmdir()

    def _place(self, kind: str, segment: Segment, frame: int) -> Path:
        folder = self.new / kind / name_of(segment)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{frame:06d}.png"

    def _draw(self, result: Segmented) -> None:
        picture, time = result.annotated(), self.video.time(result.frame)
        self.writer.write(picture, time)
        if self.page is not None:
            self.page.add(result, time)
            if self.thumbnail is None or (result.seen and not self.shown):
                self.thumbnail, self.shown = picture, bool(result.seen)
        if self.story is not None:
            self.story.add(*panel_of(result, time))
        self.drawn += 1

    def _draw_from_journal(self, end: int) -> None:
        """Bring the annotated video up to frame `end` with what the journal knows."""
        # islice, because a camera, of which nothing is left to draw, must not be asked for a frame
        for image in islice(self.video.forward(self.drawn), end - self.drawn):
            objects, notes = self.journal.objects(self.drawn), self.journal.notes(self.drawn)
            self._draw(Segmented(image, objects, self.drawn, notes=notes))

    def save_state(self, state: dict) -> None:
        """Let a later run continue after the frames so far. OSError if there is no room: an older state stays then."""
        content = io.BytesIO()  # because torch.save does not raise OSError when a disk is full
        held = {"version": VERSION, "of": self.of, "journal": self.journal.size, "lost": self.video.lost}
        torch.save(state | held, content)
        with whole_file(self.state_path) as path:
            path.write_bytes(content.getbuffer())

    def finish(self, source: str, facts: dict) -> dict:
        """Complete the annotated video, result.jsonl and result.json, a record per object. Returns the latter."""
        frames = 1 + max(self.journal.places, default=-1)
        if not frames:
            raise MediaError(f"{source}: no frame came")
        self._draw_from_journal(frames)
        self.writer.close(self.video.end)
        if self.page is not None:
            self.page.write(self.new / "page.html", title_of(source))
            save_thumbnail(self.new / "thumbnail.jpg", self.thumbnail)
        if self.story is not None:
            save_frame(self.new / "story.png", self.story.picture())
        summary = (
            {"source": source}
            | facts
            | {
                "of": self.of,
                "fps": self.video.fps,
                "size": list(self.video.size[::-1]),
                "frames": frames,
                "objects": self._write_lines(),
            }
        )
        files = {"files": [*list_files(self.new), "result.json"]}
        save_json(self.new / "result.json", summary | files)
        self.journal.close()
        check_own(self.folder)  # what came in the meantime; the state stays then
        self.state_path.unlink(missing_ok=True)  # what is moved away now can't be gone on with
        publish(self.new, self.folder)
        clear(self.folder)
        return summary

    def _write_lines(self) -> list[dict]:
        """result.jsonl, the journal in the order of the frames. Returns a summary of each object."""
        objects = {}
        with open(self.new / "result.jsonl", "wb") as file:
            for frame in sorted(self.journal.places):
                line = self.journal.line(frame)
                file.write(line)
                for record in json.loads(line)["objects"]:
                    self._summarise(objects, record, frame)
        return list(objects.values())

    def _summarise(self, objects: dict[int, dict], record: dict, frame: int) -> None:
        kept = objects.setdefault(
            record["id"],
            {
                "id": record["id"],
                "label": record["label"],
                "score": record["score"],
                "first": frame,
                "last": frame,
                "frames": 0,
            },
        )
        kept["score"] = max(kept["score"], record["score"])
        kept["last"], kept["frames"] = frame, kept["frames"] + 1

    def abort(self) -> None:
        """Stop in the middle. The saved state stays, if save_state was called, and a result that is whole and could not
        be put in its place; otherwise everything is removed."""
        if self.writer is not None:
            self.writer.abort()
        if self.journal is not None:
            self.journal.close()
        if not self.state_path.is_file() and not read_result(self.new / "result.json"):
            clear(self.folder)
