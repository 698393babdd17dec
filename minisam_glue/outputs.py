"""Results into a folder: the annotated picture or video, masks and cut-outs as PNG, JSON, a page for the browser.

Pictures are written when they are done. A video's frames go to a journal as they come (JSON lines, in `.unfinished`
with the state of the tracking), from where an interrupted run goes on; at the end the journal becomes result.jsonl
in the order of the frames. Whatever has its final name is complete.
"""
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .draw import crop
from .files import whole_file, whole_folder
from .media import Frames, MediaError
from .page import write_page
from .records import Segment, Segmented
from .writer import VideoWriter


def save_picture(folder: Path, result: Segmented, source: str, facts: dict, crops: bool, page: bool) -> None:
    """annotated.jpg (of a JPEG, else .png), masks/, result.json, and as asked crops/ and page.html.

    facts: what else result.json says, such as the prompt. OSError if it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jpeg = Path(source).suffix.lower() in (".jpg", ".jpeg")
    with whole_file(folder / ("annotated.jpg" if jpeg else "annotated.png")) as path:
        Image.fromarray(result.annotated()).save(path, *(("JPEG",) if jpeg else ("PNG",)), quality=92)
    with whole_folder(folder / "masks") as masks:
        for segment in result.objects:
            save_mask(masks / f"{name_of(segment)}.png", segment.mask)
    shutil.rmtree(folder / "crops", ignore_errors=True)  # those of an earlier run would belie result.json
    (folder / "page.html").unlink(missing_ok=True)
    if crops:
        with whole_folder(folder / "crops") as cuts:
            for segment in result.seen:
                save_crop(cuts / f"{name_of(segment)}.png", result.image, segment.mask)
    if page:
        write_page(folder / "page.html", result.image, result.objects)
    save_json(folder / "result.json", {"source": source} | facts | result.as_json())


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Bool (H, W) as a grey PNG of 0 and 255."""
    with whole_file(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, "PNG", compress_level=3)


def save_crop(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    """The object alone, cut out of uint8 (H, W, 3), as an RGBA PNG."""
    with whole_file(path) as temporary:
        Image.fromarray(crop(image, mask)).save(temporary, "PNG", compress_level=3)


def save_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def name_of(segment: Segment) -> str:
    """Its number and as much of its label as any file system takes."""
    words = re.sub(r"[^\w-]+", "_", segment.label).strip("_")
    return f"{segment.id:03d}_{words[:40]}" if words else f"{segment.id:03d}"


class Journal:
    """Records of frames as JSON lines in one file, found again by frame; of several lines of a frame the last counts.

    `size`: bytes of an earlier journal to keep; by default it begins empty.
    """

    def __init__(self, path: Path, size: int = 0):
        self.file = open(path, "r+b" if size else "w+b")
        self.file.truncate(size)
        self.places = {}  # frame -> offset and length: a few numbers are all that is held of a frame
        for line in self.file:
            self.places[json.loads(line)["frame"]] = (self.file.tell() - len(line), len(line))

    def append(self, record: dict) -> None:
        """Write a record, on disk before this returns."""
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

    def objects(self, frame: int) -> list[Segment]:
        """The objects seen on a frame."""
        line = self.line(frame)
        return [] if line is None else [Segment.from_json(o) for o in json.loads(line)["objects"]]

    @property
    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self.file.close()


class VideoOutput:
    """The results of one video.

    video: the frames that are segmented; `picture`: where the annotated video goes, as VideoWriter takes it (relative
    to `folder`). in_order: frames come one after another from the first on, so they are drawn as they come; else at
    the end. masks, crops: also write masks/<object>/<frame>.png, crops/<object>/<frame>.png. resume: go on from the
    state that save_state left; see `state`. MediaError or OSError if it can't be written.
    """

    def __init__(self, folder: Path, video: Frames, picture: str, in_order: bool, masks: bool = False,
                 crops: bool = False, audio_from: str | None = None, audio_start: float = 0.0, resume: bool = False):
        self.folder, self.video, self.in_order, self.masks, self.crops = folder, video, in_order, masks, crops
        self.unfinished, self.drawn, self.state = folder / ".unfinished", 0, None
        if resume and (self.unfinished / "state.pt").is_file():
            self.state = torch.load(self.unfinished / "state.pt", map_location="cpu", weights_only=True)
        self.unfinished.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.unfinished / "journal.jsonl", self.state["journal"] if self.state else 0)
        try:
            self.writer = VideoWriter(folder / picture, video.fps, video.size, audio_from, audio_start)
            if self.in_order and self.state:
                self._draw_from_journal(len(self.journal.places))
        except BaseException:
            self.abort()
            raise

    def add(self, result: Segmented) -> dict:
        """One frame: journal, masks, cut-outs, and its picture if it is the next one. Returns its JSON record."""
        record = {"time": round(result.frame / self.video.fps, 4)} | result.as_json()
        self.journal.append(record)
        for segment in result.seen:
            if self.masks:
                save_mask(self._place("masks", segment, result.frame), segment.mask)
            if self.crops:
                save_crop(self._place("crops", segment, result.frame), result.image, segment.mask)
        if self.in_order and result.frame == self.drawn:
            self._draw(result)
        return record

    def _place(self, kind: str, segment: Segment, frame: int) -> Path:
        folder = self.folder / kind / name_of(segment)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{frame:06d}.png"

    def _draw(self, result: Segmented) -> None:
        self.writer.write(result.annotated())
        self.drawn += 1

    def _draw_from_journal(self, end: int) -> None:
        """Bring the annotated video up to frame `end` with what the journal knows."""
        for image in self.video.forward(self.drawn):
            if self.drawn >= end:
                return
            self._draw(Segmented(image, self.journal.objects(self.drawn), self.drawn))

    def save_state(self, state: dict) -> None:
        """Let a later run go on after the frames that came so far."""
        with whole_file(self.unfinished / "state.pt") as path:
            torch.save(state | {"journal": self.journal.size}, path)

    def finish(self, source: str, facts: dict) -> dict:
        """Complete the annotated video, result.jsonl and result.json, a record per object. Returns the latter."""
        frames = 1 + max(self.journal.places, default=-1)
        if not frames:
            raise MediaError(f"{source}: no frame came")
        self._draw_from_journal(frames)
        self.writer.close()
        objects = {}
        with whole_file(self.folder / "result.jsonl") as path, open(path, "wb") as lines:
            for frame in sorted(self.journal.places):
                line = self.journal.line(frame)
                lines.write(line)
                for record in json.loads(line)["objects"]:
                    self._summarise(objects, record, frame)
        summary = {"source": source} | facts | {"fps": self.video.fps, "size": list(self.video.size[::-1]),
                                                "frames": frames, "objects": list(objects.values())}
        save_json(self.folder / "result.json", summary)
        self.journal.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)
        return summary

    def _summarise(self, objects: dict[int, dict], record: dict, frame: int) -> None:
        kept = objects.setdefault(record["id"], {"id": record["id"], "label": record["label"], "score": record["score"],
                                                 "first": frame, "last": frame, "frames": 0})
        kept["score"] = max(kept["score"], record["score"])
        kept["last"], kept["frames"] = frame, kept["frames"] + 1

    def abort(self) -> None:
        """Stop in the middle. What a later run needs stays, if save_state was called; else nothing does."""
        if hasattr(self, "writer"):
            self.writer.abort()
        self.journal.close()
        if not (self.unfinished / "state.pt").is_file():
            shutil.rmtree(self.unfinished, ignore_errors=True)
