"""Figures of tracked objects: what counts as right, merged, switched, lost, empty, found again."""

import json
import sys

import compare_methods
import pytest
import second_renderer
import torch
from helpers.square_masks import square

from minisam_glue.demo import FOLDER, SEGMENTER, evaluate, evaluate_clipseg
from minisam_glue.demo.clip_metrics import (
    OUTCOMES,
    SOON,
    ClipMetrics,
    boundary_f,
    broadcast_iou,
    meeting_metrics,
    meeting_span,
    on_wrong_twin,
    outcome,
    waits,
)
from minisam_glue.demo.evaluate import evaluate_clips, seeded
from minisam_glue.demo.scenes import ALL_KINDS, HELD_OUT, TRAINING_FROM, clip


def squares(lefts, top=10):
    """A mask for each frame (T, 40, 40), with its left side there, or empty for None."""
    return torch.cat([torch.zeros(1, 40, 40, dtype=torch.bool) if x is None else square(top, x) for x in lefts])


@pytest.fixture(scope="module")
def films():
    return {kind: clip(seed, kind, 16, (48, 64)) for seed, kind in enumerate(ALL_KINDS)}


@pytest.fixture(scope="module")
def pair():
    """Two squares that stand side by side for 6 frames: (6, 2, 40, 40)."""
    return torch.stack((squares([0] * 6), squares([20] * 6)), 1)


def test_a_perfect_mask_scores_one_and_a_shifted_one_what_a_hand_finds():
    true = square(10, 10)
    assert broadcast_iou(true, true) == boundary_f(true, true) == 1.0
    # Two pixels aside: 80 of 120 pixels; 22 of each border's 40 pixels lie within one pixel of the other border.
    shifted = square(10, 12)
    assert float(broadcast_iou(shifted, true)) == pytest.approx(2 / 3)
    assert float(boundary_f(shifted, true)) == pytest.approx(0.55)
    assert boundary_f(square(10, 11), true) == 1.0
    nothing = torch.zeros_like(true)
    assert broadcast_iou(nothing, nothing) == boundary_f(nothing, nothing) == 1.0
    assert broadcast_iou(nothing, true) == boundary_f(nothing, true) == 0.0


def test_after_a_meeting_masks_are_right_merged_switched_or_lost(pair):
    one, two, nothing = pair[:, 0], pair[:, 1], torch.zeros_like(pair[:, 0])
    ends = {
        "both_right": [(one, two)],
        "merged": [(one | two, one | two), (one | two, two), (one, one), (nothing, one | two)],
        "switched": [(two, one), (two, nothing), (nothing, one)],
        "lost": [(one, nothing), (nothing, nothing), (one, squares([20] * 6, top=28))],
    }
    for name, cases in ends.items():
        for masks in cases:
            assert outcome(torch.stack(masks, 1), pair) == name
    half = torch.cat((pair[:3], pair[3:].flip(1)))  # right, then switched: neither mask has a mean IoU of 0.5 ...
    half[0] = False
    assert outcome(half, pair) == "switched"


def test_a_meeting_lasts_from_the_first_touch_of_the_boxes_to_the_last():
    one, two = squares([0, 4, 8, 12, 16, 20]), squares([30, 26, 18, 12, 4, 0])
    true = torch.stack((one, two & ~one), 1)  # the second is hidden behind the first on frame 3
    assert meeting_span(true) == (2, 2) and meeting_span(true[[0, 1]]) is None
    true[4, 1] = squares([8])[0] & ~true[4, 0]
    assert meeting_span(true) == (2, 4)
    found = true.clone()
    found[1, 0], found[5] = False, found[5].flip(0)
    metrics = meeting_metrics(found, true)
    assert [metrics[name] for name in OUTCOMES] == [[0.0], [0.0], [1.0], [0.0]]
    assert [metrics[f"j_{part}"] for part in ("before", "during", "after")] == [[0.5], [1.0], [0.0]]
    assert meeting_metrics(true[:4], true[:4]) == {}  # it ends before they part


def test_an_object_that_returns_is_found_when_its_mask_lies_on_it():
    true = squares([5, 5, None, None, None, *[5] * 8])[:, None]
    assert waits(true, true) == [0]
    late = true.clone()
    late[5:8] = False
    assert waits(late, true) == [3]
    assert waits(torch.zeros_like(true), true) == [None]
    assert waits(true[:9], true[:9]) == waits(torch.zeros_like(true[:9]), true[:9]) == []  # ends too early
    short = squares([5, None, None, *[5] * 8])[:, None]
    assert waits(short, short) == []  # away for two frames alone
    sliver = true.clone()
    sliver[5:7] &= squares([14] * 2)[:, None]  # a column of one pixel by ten is long enough, a speck of 4 is not
    assert waits(torch.zeros_like(true), sliver) == [None]
    sliver[5:7, :, 14:] = False
    assert waits(true, sliver) == [0]
    assert SOON < 8


def test_a_mask_over_half_a_twin_lies_on_the_wrong_one():
    twins = torch.stack((squares([20] * 4), squares([None] * 4)), 1)
    assert on_wrong_twin(squares([0, 20, 16, 14]), twins) == [True, True, False]


def test_the_truth_is_right_in_every_respect_and_a_twin_is_never_tracked(films):
    def truth(model, film, objects):
        assert not set(objects) & set(film.twins)
        return torch.from_numpy(film.masks[:, objects])

    metrics = evaluate_clips(None, films.values(), truth)
    for kind in ALL_KINDS:
        assert metrics[f"jf_{kind}"] == metrics[f"j_{kind}"] == 1.0
    assert metrics["jf"] == metrics["absent_empty"] == metrics["both_right"] == metrics["returns_found"] == 1.0
    assert metrics["merged"] == metrics["switched"] == metrics["lost"] == metrics["wrong_twin"] == 0.0
    assert metrics["meetings"] == 3 and metrics["returns"] >= 1 and metrics["return_frames"] == 0.0


def test_masks_that_stay_where_they_were_fail_where_it_matters(films):
    def still(model, film, objects):
        return torch.from_numpy(film.masks[:1, objects]).expand(16, -1, -1, -1)

    metrics = evaluate_clips(None, films.values(), still)
    assert metrics["absent_empty"] == 0.0 and metrics["both_right"] < 1.0 and metrics["jf"] < 0.7
    assert metrics["returns_found_return"] == 0.0


def test_a_mask_on_the_twin_is_counted_only_where_there_is_one(films):
    metrics = ClipMetrics()
    for kind in ("twins", "free"):
        film = films[kind]
        found = torch.from_numpy(film.masks[:, seeded(film)].copy())
        found[:, seeded(film).index(film.leads[0])] = torch.from_numpy(film.masks[:, film.leads[0] - 1])
        if film.twins:
            found[:, seeded(film).index(film.leads[0])] = torch.from_numpy(film.masks[:, film.twins[0]])
        metrics.add(film, seeded(film), found)
    values = metrics.metrics()
    assert values["wrong_twin"] == values["wrong_twin_twins"] > 0.9 and "wrong_twin_free" not in values


def test_both_renderers_draw_the_kinds_and_seeds_that_are_asked_for(monkeypatch, capsys):
    drawn = []

    def measured(model, clips, trackers):
        drawn.append([(film.kind, len(film.twins)) for film in clips])
        return {"memory": ClipMetrics(frames=4, seconds=1.0)}

    monkeypatch.setattr(evaluate, "measure_trackers", measured)
    seeds = []
    monkeypatch.setattr(evaluate, "clip", lambda seed, kind: seeds.append(seed) or clip(seed, kind, 2, (48, 64)))
    short = second_renderer.second_clip
    monkeypatch.setattr(second_renderer, "second_clip", lambda *args, **more: short(*args, frames=2, **more))
    arguments = ["--clips", "3", "--kinds", "twins", "bounce", "--held-out", "--propagate", "flow"]
    for main in (evaluate.main, second_renderer.main):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        main()
        assert json.loads(capsys.readouterr().out) == {"memory": {"seconds_per_frame": 0.25}}
    assert drawn == [[("twins", 2), ("bounce", 0), ("twins", 2)]] * 2
    assert seeds == list(HELD_OUT[:3]) and HELD_OUT.stop < TRAINING_FROM


def test_the_values_of_pieces_add_up_to_those_of_the_whole_and_damage_is_said(films, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        evaluate.main()
        return json.loads(capsys.readouterr().out)

    whole, paths = ClipMetrics(), []
    for kind in ("twins", "return", "crossing"):
        film, piece = films[kind], ClipMetrics(frames=16, seconds=2.0)
        for metrics in (whole, piece):
            metrics.add(film, seeded(film), torch.from_numpy(film.masks[::-1][:, seeded(film)].copy()))
        paths.append(tmp_path / f"{kind}.json")
        paths[-1].write_text(json.dumps({"on": piece.as_json()}))
    assert run("--add", *paths) == {"on": whole.metrics() | {"seconds_per_frame": 0.125}}
    damaged = [json.dumps({"on": {"values": {"": {"j": [j]}}, "frames": 1, "seconds": 1}}) for j in ("x", None)]
    for wrong in ("{", "[]", *damaged):
        paths[1].write_text(wrong)
        with pytest.raises(SystemExit) as ended:
            run("--add", *paths)
        assert ended.value.code == 2 and f"--add {paths[1]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, given", [([], ["Detector", "FastSAM2"]), (["--segmenter", FOLDER / SEGMENTER], ["NoneType", "FastSAM2"])]
)
def test_without_files_the_weights_of_the_package_are_measured(words, given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words), "--scenes", "0", "--clips", "0"])
    monkeypatch.setattr(evaluate, "evaluate", lambda *parts: [type(model).__name__ for model in parts[:2]])
    evaluate.main()
    assert json.loads(capsys.readouterr().out) == given


@pytest.mark.parametrize(
    "main, words, said",
    [
        (evaluate.main, ["--kinds", "swap"], "swap"),
        (evaluate.main, ["--first-seed", "999999", "--scenes", "0", "--clips", "2"], "training draws the seeds from"),
        (evaluate_clipseg.main, ["--clipseg", "none", "--first-seed", "1000000"], "training draws the seeds from"),
        (compare_methods.main, ["--first-seed", "999701"], "training draws the seeds from"),
    ],
)
def test_unknown_kinds_and_seeds_of_training_are_usage_errors(main, words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
