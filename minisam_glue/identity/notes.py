"""Notes of what the rules saw and did on a frame, words and numbers: for a story of the video, see render/story.py."""

import re
from dataclasses import dataclass, field

from ..support.reading import fields, optional, real, sequence, text, whole

Corners = tuple[float, float, float, float]  # xyxy, pixels of the video


@dataclass
class RivalBox:
    """The box that was predicted for a look-alike of the objects of these ids."""

    of: list[int]
    box: Corners


@dataclass
class Notes:
    """Object scores, the boxes that were predicted for objects in a meeting, and what was done."""

    scores: dict[int, float] = field(default_factory=dict)  # by id, 0 to 1
    predicted: dict[int, Corners] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    rivals: list[RivalBox] = field(default_factory=list)  # predicted for look-alikes that an object meets

    def as_json(self) -> dict:
        """A record that json.dumps takes."""
        objects = [
            {"id": number, "score": round(score, 4), "predicted": self.box_as_json(number)}
            for number, score in self.scores.items()
        ]
        rivals = [{"of": rival.of, "predicted": rounded(rival.box)} for rival in self.rivals]
        return {"objects": objects, "did": self.words} | ({"rivals": rivals} if rivals else {})

    def box_as_json(self, number: int) -> list[float] | None:
        """The predicted box of an object, if it has one."""
        box = self.predicted.get(number)
        return None if box is None else rounded(box)

    def after(self, earlier: "Notes") -> "Notes":
        """The notes of a second pass over a frame: those of the first stay for all objects that came in it alone."""
        again = self.scores.keys()
        words = [did for did in earlier.words if not again & set(map(int, re.findall(r"#(\d+)", did)))]
        predicted = {number: box for number, box in earlier.predicted.items() if number not in again}
        rivals = [rival for rival in earlier.rivals if not again & set(rival.of)]
        return Notes(earlier.scores | self.scores, predicted | self.predicted, words + self.words, rivals + self.rivals)

    @classmethod
    def from_json(cls, record: object) -> "Notes":
        """Read what as_json wrote. ValueError if it is damaged."""
        NOTES(record, "what the rules did")
        objects = record["objects"]
        boxes = {o["id"]: tuple(o["predicted"]) for o in objects if o["predicted"] is not None}
        records = record.get("rivals", [])  # left out where there are none
        RIVALS(records, "what the rules did: rivals")
        rivals = [RivalBox(list(rival["of"]), tuple(rival["predicted"])) for rival in records]
        return cls({o["id"]: o["score"] for o in objects}, boxes, list(record["did"]), rivals)


BOX = sequence(real, 4)
RIVALS = sequence(fields(of=sequence(whole(1)), predicted=BOX))
NOTES = fields(objects=sequence(fields(id=whole(1), score=real, predicted=optional(BOX))), did=sequence(text))


def rounded(box: Corners) -> list[float]:
    """A box as JSON has it."""
    return [round(side, 2) for side in box]
