"""A video's story as a picture."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.commands import command, lines
from helpers.sam2_tiny import tiny_model
from helpers.squares import save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue.cli import video
from minisam_glue.cli.outputs import VideoOutput
from minisam_glue.demo import evaluate
from minisam_glue.demo.clip_story import tell
from minisam_glue.demo.evaluate import seeded
from minisam_glue.demo.scenes import clip
from minisam_glue.identity import Notes
from minisam_glue.identity.notes import RivalBox
from minisam_glue.identity.rules import Contact, Track
from minisam_glue.media import frames
from minisam_glue.propagation import Tracking
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.records import Segmented
from minisam_glue.render.overlay import colour_of
from minisam_glue.render.story import COLUMNS, GAP, MOST, Panel, Storyteller, draw_panel, key_frames, panel_words, story
from minisam_glue.sam2 import VideoTracker


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def blank(**more):
    masks = np.zeros((1, 120, 160), bool)
    masks[0, 40:80, 40:80] = True
    return Panel(np.full((120, 160, 3), 90, np.uint8), masks, [1], "frame 3", **more)


def test_key_frames_are_the_ends_the_moments_and_some_between():
    there = range(60)
    assert key_frames(there, [], 4) == [0, 29, 44, 59] and key_frames(there, [20, 25], 4) == [0, 20, 25, 59]
    assert key_frames(range(3), [1], 8) == [0, 1, 2] and key_frames([0], [], 5) == [0]
    assert key_frames([0, 8, 9, 40, 50], [9], 4) == [0, 9, 40, 50]
    many = key_frames(there, range(10, 40), 6)
    assert len(many) == 6 and {0, 10, 39, 59} <= set(many)


def test_a_long_video_is_told_by_its_moments_and_few_panels_are_held():
    teller = Storyteller()
    for t in range(100):
        teller.add(blank(words=f"frame {t}"), happened=t // 45)
        assert len(teller.even) <= 2 * MOST and len(teller.moments) <= 2 * MOST
    assert list(teller.moments) == [45, 90] and max(teller.even) > 75
    shown = teller.panels()
    assert len(shown) == MOST
    for t in (0, 45, 90, 99):
        assert any(np.array_equal(draw_panel(blank(words=f"frame {t}")), panel) for panel in shown)
    tall, wide = shown[0].shape[:2]
    assert teller.picture().shape == (3 * (tall + GAP) - GAP, COLUMNS * (wide + GAP) - GAP, 3)
    busy = Storyteller()
    for t in range(40):
        busy.add(blank(), happened=t)
    assert len(busy.moments) <= 2 * MOST and len(busy.panels()) == MOST
    with pytest.raises(ValueError, match="a video without frames"):
        Storyteller().panels()


def test_what_is_hidden_is_not_said_to_be_absent_as_well():
    assert panel_words(["#1 hidden: x", "#1 and #4 meet"], [1, 2, 12]) == "#1 hidden: x; #1 and #4 meet; #2, #12 absent"
    assert panel_words(["#12 hidden: x"], [1]) == "#12 hidden: x; #1 absent" and panel_words([], []) == ""


def test_a_large_frame_is_shown_smaller_with_its_mask_and_box_where_they_are():
    masks = np.zeros((1, 600, 960), bool)
    masks[0, 100:300, 200:400] = True
    panel = Panel(np.full((600, 960, 3), 90, np.uint8), masks, [1], "frame 0", predicted={1: (600, 400, 800, 500)})
    drawn = draw_panel(panel)
    top = (drawn.shape[0] - 300) // 4  # one line above the frame, three lines in all
    assert drawn.shape[1] == 480
    assert (drawn[top + 60 : top + 140, 110:190] != 90).any(-1).all() and (drawn[top + 5 : top + 40, 220:] == 90).all()
    assert (drawn[top + 195 : top + 256, 295:406] == colour_of(1)).all(-1).any()


def test_a_panel_shows_mask_title_words_and_the_predicted_box_in_the_colour_of_its_object():
    plain, told = draw_panel(blank()), draw_panel(blank(words="#1 absent", predicted={1: (100, 20, 150, 60)}))
    assert plain.shape == told.shape and plain.shape[1] == 320  # small frames are enlarged
    top = (plain.shape[0] - 240) // 3
    differs = (plain != told).any(-1)
    assert differs[top + 40, 200:300].any() and (told[top : top + 240] == colour_of(1)).all(-1).any()
    assert not differs[top + 50 : top + 110, 210:290].any()  # the inside of the box
    assert differs[top + 240 :].any() and (told[:top] < 100).all(-1).any()
    rival = draw_panel(blank(rivals=[(100, 20, 150, 60)]))
    assert (rival[top : top + 240] == 255).all(-1).any() and (rival[:top] == plain[:top]).all()
    outside = draw_panel(blank(predicted={1: (-30, -30, 500, 500)}))
    assert np.array_equal(outside[:top], plain[:top])  # a box beyond the frame leaves the title readable


def test_a_story_has_a_row_for_each_tracker_and_refuses_frames_of_several_sizes():
    tall, wide = draw_panel(blank()).shape[:2]
    assert story([[blank(), blank()], [blank()]]).shape == (2 * tall + GAP, 2 * wide + GAP, 3)
    other = Panel(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8), bool), [], "frame 0")
    with pytest.raises(ValueError, match="frames of one size, not of 2"):
        story([[blank(), other]])


def test_a_clip_is_told_with_the_rules_and_without():
    film = clip(5, "crossing", 5, (48, 64))
    for tracker in (VideoTracker(tiny_model()), MemoryPropagator(tiny_model())):
        panels = tell(tracker, film, seeded(film), "off", count=4)
        assert [p.title for p in panels][:1] == ["off: frame 0"] and panels[-1].title == "frame 4"
        assert all(p.masks.shape == (len(seeded(film)), 48, 64) and len(p.scores) == len(p.ids) for p in panels)
        assert not any(p.predicted for p in panels)
    tracker = MemoryPropagator(tiny_model())
    wanted = {}

    def meet(frame, look):
        first, second, *_ = frame.ids
        frame.measure()
        track = tracker.identity.tracks.setdefault(first, Track())
        track.motion.predict = lambda t: (8.0, 8.0, 4.0, 6.0)
        tracker.identity.in_meeting, tracker.identity.contacts = {first}, {(first, second): Contact(True, True)}
        wanted[frame.t] = first
        return {}

    tracker.identity.settle = meet
    panels = tell(tracker, film, seeded(film), count=5)
    side = tracker.model.config.image_size // 4
    box = panels[-1].predicted[wanted[4]]
    assert box == pytest.approx(np.array((6 * 64, 5 * 48, 10 * 64, 11 * 48)) / side)
    assert panels[-1].words.startswith(f"#{wanted[4]} and #") and " meet" in panels[-1].words


def test_the_command_evaluates_or_draws_both_ways_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_segmenter", lambda path, device: tiny_model())
    monkeypatch.setattr(evaluate, "accelerate", lambda model: model)
    monkeypatch.setattr(evaluate, "clip", lambda seed, kind: clip(seed, kind, 4, (48, 64)))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        evaluate.main()
        return capsys.readouterr().out

    run("--story", tmp_path / "story.png", "--kinds", "twins", "--identity", "both")
    wide, tall = Image.open(tmp_path / "story.png").size
    run("--story", tmp_path / "one.png", "--kinds", "twins", "--identity", "on")
    assert Image.open(tmp_path / "one.png").size == (wide, (tall - GAP) // 2)
    printed = run("--identity", "both", "--clips", 2, "--kinds", "free", "twins", "--values", tmp_path / "values.json")
    metrics = json.loads(printed)
    assert json.loads(run("--add", tmp_path / "values.json")) == metrics
    assert metrics.keys() == {"off", "on"} and metrics["on"]["seconds_per_frame"] > 0
    assert {"jf_free", "wrong_twin"} <= metrics["off"].keys()
    for words, wrong in (
        (("--story", tmp_path / "x.jpg"), "ends with .png"),
        (("--story", tmp_path / "no" / "x.png"), "in a folder that is there"),
        (("--story", tmp_path / "x.png", "--clips", 0), "--clips 1 or more"),
        (("--identity", "on", "--propagate", "flow"), "leave out --propagate flow"),
        (("--values", tmp_path / "v.json"), "give --identity or"),
        (("--values", tmp_path / "no" / "v.json", "--identity", "on"), "in a folder that is there"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2 and wrong in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "story.png", "values.json"]


# --- segment.py --story ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_story_of_a_resumed_video_is_that_of_a_whole_one(direction, tmp_path, monkeypatch, models):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--story", "--seed-frame", 2]
    words += ["--direction", direction, "--quiet", "--out"]
    assert command(*words, tmp_path / "whole", models=models) == 0
    stop_after(4, monkeypatch)
    assert command(*words, tmp_path / "out", models=models) == 2
    assert not (tmp_path / "out" / "film" / "story.png").exists()
    monkeypatch.undo()
    assert command(*words, tmp_path / "out", "--resume", models=models) == 0
    whole, resumed = (tmp_path / name / "film" for name in ("whole", "out"))
    assert (whole / "story.png").read_bytes() == (resumed / "story.png").read_bytes()
    assert "story.png" in json.loads((whole / "result.json").read_text())["files"]
    record = lines(whole / "result.jsonl")[3]
    assert record == lines(resumed / "result.jsonl")[3] and 0 <= record["rules"]["objects"][0]["score"] <= 1


def stop_after(count: int, monkeypatch) -> None:
    """Let the next run save its state after each frame, and fail after `count` frames."""
    run = Tracking.run

    def broken(self, frames):
        for done, result in enumerate(run(self, frames)):
            if done == count:
                raise OSError(28, "No space left on device")
            yield result

    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(Tracking, "run", broken)


def test_a_frame_that_comes_twice_keeps_the_notes_of_its_first_pass(tmp_path):
    film = frames(save_film(tmp_path / "film", 2))
    output = VideoOutput(tmp_path / "out", film, "annotated.gif", in_order=False, story=True)
    box = (1.0, 2.0, 3.0, 4.0)
    rivals = [RivalBox(ids, box) for ids in ([1], [1, 2], [4])]
    first = Notes({1: 0.5, 2: 0.25}, {1: box, 2: box}, ["#1 and #2 meet", "#3 not found: IoU 0.10"], rivals[:2])
    second = Notes({2: 0.75, 4: 1.0}, {4: box}, ["#4 found: IoU 0.90"], rivals[2:])
    for notes in (first, second, None):
        record = output.add(Segmented(film[1], [], 1, notes=notes))
    words, boxes = ["#3 not found: IoU 0.10", "#4 found: IoU 0.90"], {1: box, 4: box}
    joined = Notes({1: 0.5, 2: 0.75, 4: 1.0}, boxes, words, [rivals[0], rivals[2]])
    assert Notes.from_json(record["rules"]) == output.journal.notes(1) == joined
    output.abort()


def test_what_the_rules_did_survives_a_file_and_damage_is_refused():
    notes = Notes({1: 0.5, 2: 0.25}, {2: (1.0, 2.0, 3.5, 4.0)}, ["#1 and #2 meet"])
    for some in (notes, replace(notes, rivals=[RivalBox([1, 2], (0.0, 1.0, 2.0, 3.0))])):
        assert Notes.from_json(json.loads(json.dumps(some.as_json()))) == some
    damaged = {"objects": [{"id": 1, "score": "x", "predicted": None}], "did": []}
    for wrong in (5, {}, damaged, {"objects": [], "did": [], "rivals": [[1]]}):
        with pytest.raises(ValueError, match="what the rules did"):
            Notes.from_json(wrong)


def test_a_correction_tells_the_story_anew(tmp_path, models):
    words = [save_film(tmp_path / "film", 4), "--frames", "--format", "gif", "--story", "--quiet"]
    assert command(*words, "--box", "5,10,15,22", "--out", tmp_path / "out", models=models) == 0
    folder = tmp_path / "out" / "film"
    before = lines(folder / "result.jsonl")
    assert command("--correct", folder, "--object", "id=1 at=2 box=20,10,40,30", "--quiet", models=models) == 0
    after = lines(folder / "result.jsonl")
    assert (folder / "story.png").exists() and all("rules" in record for record in after)
    assert after[1]["rules"] == before[1]["rules"] and after[2]["rules"] != before[2]["rules"]
