"""A video's story as a picture."""

import sys

import numpy as np
import pytest
from helpers.sam2_tiny import tiny_model
from PIL import Image

from minisam_glue.demo import evaluate
from minisam_glue.demo.clip_story import meeting, tell
from minisam_glue.demo.evaluate import seeded
from minisam_glue.demo.scenes import clip
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.render.overlay import colour_of
from minisam_glue.render.story import GAP, Panel, draw_panel, key_frames, story
from minisam_glue.sam2 import VideoTracker


def blank(**more):
    masks = np.zeros((1, 120, 160), bool)
    masks[0, 40:80, 40:80] = True
    return Panel(np.full((120, 160, 3), 90, np.uint8), masks, [1], "frame 3", **more)


def test_key_frames_are_the_ends_the_moments_and_some_between():
    assert key_frames(60, [], 4) == [0, 29, 44, 59] and key_frames(60, [20, 25], 4) == [0, 20, 25, 59]
    assert key_frames(3, [1], 8) == [0, 1, 2] and key_frames(1, [], 5) == [0]
    many = key_frames(60, range(10, 40), 6)
    assert len(many) == 6 and {0, 10, 39, 59} <= set(many)


def test_a_panel_shows_mask_title_words_and_the_predicted_box_in_the_colour_of_its_object():
    plain, told = draw_panel(blank()), draw_panel(blank(words="#1 absent", predicted={1: (100, 20, 150, 60)}))
    assert plain.shape == told.shape and plain.shape[1] == 320  # small frames are enlarged
    top = (plain.shape[0] - 240) // 2
    differs = (plain != told).any(-1)
    assert differs[top + 40, 200:300].any() and (told[top : top + 240] == colour_of(1)).all(-1).any()
    assert not differs[top + 50 : top + 110, 210:290].any()  # the inside of the box
    assert differs[top + 240 :].any() and (told[:top] < 100).all(-1).any()
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
        assert meeting(tracker) == frozenset()
    tracker = MemoryPropagator(tiny_model())
    wanted = {}

    def meet(frame, look):
        first, *_ = frame.ids
        frame.measure()
        if first not in tracker.identity.tracks:
            tracker.identity.tracks[first] = type(
                "Track", (), {"motion": type("M", (), {"predict": lambda s, t: (8.0, 8.0, 4.0, 6.0)})()}
            )
        tracker.identity.meeting = {first}
        wanted[frame.number] = first
        return {}

    tracker.identity.settle = meet
    panels = tell(tracker, film, seeded(film), count=5)
    side = tracker.model.config.image_size // 4
    box = panels[-1].predicted[wanted[4]]
    assert box == pytest.approx(np.array((6 * 64, 5 * 48, 10 * 64, 11 * 48)) / side)
    assert panels[-1].words.startswith(f"#{wanted[4]} meet")


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
    printed = run("--identity", "both", "--clips", 2, "--kinds", "free", "twins")
    metrics = evaluate.json.loads(printed)
    assert metrics.keys() == {"off", "on"} and metrics["on"]["seconds_per_frame"] > 0
    assert {"jf_free", "wrong_twin"} <= metrics["off"].keys()
    for words, wrong in (
        (("--story", tmp_path / "x.jpg"), "ends with .png"),
        (("--story", tmp_path / "no" / "x.png"), "in a folder that is there"),
        (("--story", tmp_path / "x.png", "--clips", 0), "--clips 1 or more"),
        (("--identity", "on", "--propagate", "flow"), "leave out --propagate flow"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == 2 and wrong in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "story.png"]
