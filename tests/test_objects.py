"""Several objects by boxes, points and masks: each has its label, its id, and the frame on which it joins."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.commands import command, lines
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import tiny_models

from minisam_glue import Clicks, ObjectPrompt, segment_image, segment_video
from minisam_glue.cli.objects import objects_of, parse_object, read_prompts
from minisam_glue.masks import decode_rle
from minisam_glue.media.writer import VideoWriter
from minisam_glue.propagation import Tracking

FILM = [picture(4 + 2 * t, 40, seed=t) for t in range(3)]
LEFT, RIGHT = (5, 10, 15, 22), (40, 10, 50, 22)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def masks_by_id(results) -> dict[tuple[int, int], np.ndarray]:
    """(frame, id) -> mask, of all that a video gives; a frame may come twice, an object of a frame only once."""
    found = {}
    for result in results:
        for o in result.objects:
            assert (result.frame, o.id) not in found
            found[result.frame, o.id] = o.mask
    return found


def test_objects_of_a_picture_have_their_ids_labels_and_the_masks_of_the_short_form(models):
    prompts = [ObjectPrompt(box=RIGHT, label="cup"), ObjectPrompt(box=LEFT, points=[(9, 15, 1)], id=1)]
    found = segment_image(models, FILM[0], Clicks(objects=prompts)).objects
    assert [(o.id, o.label) for o in found] == [(2, "cup"), (1, "object")]
    short = [Clicks(boxes=[RIGHT]), Clicks(boxes=[LEFT], points=[(9, 15, 1)])]
    for o, clicks in zip(found, short):
        [expected] = segment_image(models, FILM[0], clicks).objects
        assert np.array_equal(o.mask, expected.mask) and o.score == expected.score


@pytest.mark.parametrize("propagate", ["memory", "flow"])
def test_objects_join_on_their_frames_and_have_the_masks_that_they_have_alone(propagate, models):
    settings = {"direction": "both", "propagate": propagate}
    prompts = [ObjectPrompt(box=(8, 10, 18, 22), at=2, id=2, label="a"), ObjectPrompt(box=RIGHT, at=1, label="b")]
    together = masks_by_id(segment_video(models, FILM, Clicks(objects=prompts), **settings))
    assert together.keys() == {(t, number) for t in range(3) for number in (1, 2)}
    for prompt, number in zip(prompts, (2, 1)):
        alone = masks_by_id(segment_video(models, FILM, Clicks(objects=[prompt]), **settings))
        assert all(np.array_equal(mask, together[frame, number]) for (frame, _), mask in alone.items())


def test_an_object_without_a_frame_is_for_the_seed_frame(models):
    def first(direction, **settings):
        clicks = Clicks(objects=[ObjectPrompt(box=LEFT), ObjectPrompt(box=RIGHT, at=1)])
        results = segment_video(models, FILM, clicks, direction=direction, **settings)
        return list(islice(((r.frame, [o.id for o in r.objects]) for r in results if r.objects), 2))

    assert first("forward") == [(0, [1]), (1, [1, 2])] and first("forward", seed_frame=2) == [(1, [2]), (2, [2, 1])]
    assert first("reverse") == [(2, [1]), (1, [1, 2])]


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([ObjectPrompt(box=LEFT, id=2)] * 2, "object 2 is shown more than once"),
        ([ObjectPrompt(label="dog")], "object 1: no prompt: give a box, a point or a mask"),
        ([ObjectPrompt(box=LEFT), ObjectPrompt(points=[(9, 15, 0)])], "object 2: point 9,15,0: give at least one"),
        ([ObjectPrompt(id=3, remove=True)], "object 3: remove: it ends an object that is known"),
        ([ObjectPrompt(box=(60, 0, 70, 9))], "object 1: box 60,0,70,9: it lies outside the picture of 56 x 40"),
        ([ObjectPrompt(box=LEFT, at=3)], "object 1: at=3: the video has no such frame, it ends before"),
    ],
)
def test_objects_that_can_not_be_meant_are_clear_errors(prompts, message, models):
    with pytest.raises(ValueError, match=message):
        list(segment_video(models, FILM, Clicks(objects=prompts)))


@pytest.mark.parametrize(
    "change, direction, message",
    [
        ({"at": None}, "forward", "at is None: a correction needs"),
        ({"id": None}, "both", "id is None: a correction needs"),
        ({}, "sideways", "direction 'sideways': choose forward or both"),
        ({}, "reverse", "a tracking that runs forward"),
    ],
)
def test_a_correction_that_can_not_be_made_is_told_when_it_is_asked(change, direction, message, models):
    correction = replace(ObjectPrompt(box=(5, 10, 15, 22), id=1, at=1), **change)
    with pytest.raises(ValueError, match=message):
        Tracking(models, Clicks(boxes=[(5, 10, 15, 22)])).correct([correction], direction=direction)


@pytest.mark.parametrize(
    "corrections, order",
    [
        ([{"id": 1, "at": 2, "remove": True}], [0, 1, 2, 3]),
        ([{"id": 1, "at": 1, "box": LEFT}, {"id": 1, "at": 3, "box": LEFT}], [0, 1, 2, 3, 0]),
        ([{"id": 1, "at": 1, "box": LEFT}, {"id": 2, "at": 2, "box": RIGHT}], [0, 1, 2, 3, 1, 0]),
    ],
)
def test_the_way_back_begins_at_the_last_object_that_joins_it(corrections, order, models):
    tracking = Tracking(models, Clicks(boxes=[LEFT]))
    tracking.correct([ObjectPrompt(**correction) for correction in corrections], direction="both")
    assert [result.frame for result in tracking.run(film(4))] == order
    assert tracking.counted(4) == (len(order), len(order))


def test_a_correction_with_numbers_of_an_array_leaves_plain_numbers_in_the_state(models):
    tracking = Tracking(models, Clicks(boxes=[(5, 10, 15, 22)]))
    tracking.correct([ObjectPrompt(box=(30, 10, 40, 22), id=np.int64(2), at=np.int64(1))])
    list(tracking.run(film(3)))
    state = tracking.state()
    Tracking(models, Clicks(boxes=[(5, 10, 15, 22)])).restore(state)
    assert [record["id"] for record in state["known"]] == [1, 2]


def test_labels_that_differ_by_blanks_are_one_name():
    assert [ObjectPrompt(box=LEFT, label=label).label for label in ("red car", " red  car\n")] == ["red car"] * 2


def test_objects_and_the_short_form_do_not_mix():
    with pytest.raises(ValueError, match="none beside them"):
        Clicks(boxes=[LEFT], objects=[ObjectPrompt(box=RIGHT)])
    with pytest.raises(TypeError, match="objects holds a dict"):
        Clicks(objects=[{"box": LEFT}])
    for wrong, message in (({"at": -1}, "at is -1"), ({"id": True}, "id is True"), ({"label": " "}, "label is ' '")):
        with pytest.raises(ValueError, match=message):
            ObjectPrompt(box=LEFT, **wrong)


# --- One object, prompted on several frames ---------------------------------------------------------------


AGAIN = [ObjectPrompt(points=[(30, 15, 1), (2, 2, 0)], id=1, at=2), ObjectPrompt(box=RIGHT, id=2, at=3)]


@pytest.mark.parametrize("later", [AGAIN, [ObjectPrompt(id=1, at=2, remove=True), ObjectPrompt(box=RIGHT, id=1, at=3)]])
def test_later_prompts_of_an_object_are_corrections_of_it(later, models):
    first = ObjectPrompt(box=LEFT, id=1, at=0, label="dog")
    together = list(segment_video(models, film(5), Clicks(objects=[*later, first])))
    tracking = Tracking(models, Clicks(objects=[first]))
    tracking.correct(later)
    for one, other in zip(together, tracking.run(film(5)), strict=True):
        assert [o.id for o in one.objects] == [o.id for o in other.objects]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(one.objects, other.objects))
    assert {o.label for one in together for o in one.objects if o.id == 1} == {"dog"}


def test_back_in_time_the_last_frame_of_an_object_is_the_first_one_that_counts(models):
    frames, prompts = film(5), [ObjectPrompt(box=LEFT, id=1, at=1), ObjectPrompt(points=[(9, 9, 0)], id=1, at=3)]
    backward = [replace(prompt, at=4 - prompt.at) for prompt in prompts]
    clicks = Clicks(objects=[backward[0], backward[1]])
    with pytest.raises(ValueError, match="object 1, on the first of its frames: point 9,9,0"):
        Tracking(models, clicks)
    ahead = masks_by_id(segment_video(models, frames[::-1], Clicks(objects=prompts)))
    back = masks_by_id(segment_video(models, frames, clicks, direction="reverse"))
    assert ahead.keys() == {(4 - t, number) for t, number in back} and len(back) == 4
    assert all(np.array_equal(mask, ahead[4 - t, number]) for (t, number), mask in back.items())


def test_on_the_way_back_an_object_goes_on_from_its_first_frame(models):
    prompts = [ObjectPrompt(box=LEFT, id=1, at=1), ObjectPrompt(box=RIGHT, id=1, at=3), ObjectPrompt(box=RIGHT, at=4)]
    both = [
        (r.frame, [o.id for o in r.objects])
        for r in segment_video(models, film(6), Clicks(objects=prompts), direction="both")
    ]
    assert [frame for frame, _ in both] == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0]
    assert [ids for frame, ids in both[-4:]] == [[2], [2], [2], [2, 1]]


@pytest.mark.parametrize(
    "later, message",
    [
        ({"box": LEFT, "at": 0}, "object 1 is shown more than once"),
        ({"box": LEFT}, "object 1 is shown more than once"),
        ({"at": 2}, "object 1: no prompt"),
        ({"box": (60, 0, 70, 9), "at": 1}, "object 1: box 60,0,70,9: it lies outside"),
        ({"box": LEFT, "at": 9}, "object 1: at=9: the video has no such frame"),
    ],
)
def test_a_later_prompt_that_can_not_be_meant_is_a_clear_error(later, message, models):
    first = ObjectPrompt(box=LEFT, id=1, at=0)
    for frames in (FILM, iter(FILM)):
        with pytest.raises(ValueError, match=message):
            list(segment_video(models, frames, Clicks(objects=[first, ObjectPrompt(id=1, **later)])))
    with pytest.raises(ValueError):
        segment_image(models, FILM[0], Clicks(objects=[first, ObjectPrompt(id=1, **later)]))


def test_an_object_of_several_frames_goes_on_from_a_state(models):
    clicks = Clicks(objects=[ObjectPrompt(box=LEFT, id=1, at=0), ObjectPrompt(box=RIGHT, id=1, at=3), *AGAIN])
    whole = masks_by_id(segment_video(models, film(6), clicks))
    first, second = Tracking(models, clicks), Tracking(models, clicks)
    begun = masks_by_id(islice(first.run(film(6)), 2))
    second.restore(first.state())
    rest = masks_by_id(second.run(film(6)))
    assert whole.keys() == begun.keys() | rest.keys()
    assert all(np.array_equal(mask, whole[key]) for key, mask in (begun | rest).items())


@pytest.mark.parametrize("propagate", ["memory", "flow"])
def test_a_prompt_without_a_frame_is_not_repeated_when_a_reverse_run_goes_on(propagate, models, monkeypatch):
    settings = {"direction": "reverse", "propagate": propagate}
    frames = film(5)
    whole = masks_by_id(segment_video(models, frames, Clicks(boxes=[LEFT]), **settings))
    for done in range(1, 5):
        first, second = (Tracking(models, Clicks(boxes=[LEFT]), **settings) for _ in range(2))
        begun = masks_by_id(islice(first.run(frames), done))
        second.restore(first.state())
        monkeypatch.setattr(second.tracker, "prompt", None)  # is not called
        rest = masks_by_id(second.run(frames))
        assert whole.keys() == begun.keys() | rest.keys()
        assert all(np.array_equal(mask, whole[key]) for key, mask in (begun | rest).items())


def test_a_run_keeps_the_brightness_of_frames_of_16_bits_when_it_goes_on(models):
    frames = [image.astype(np.uint16) * factor for image, factor in zip(film(4), (257, 16, 16, 16))]
    whole = [result.image for result in segment_video(models, frames, Clicks(boxes=[LEFT]))]
    first, second = (Tracking(models, Clicks(boxes=[LEFT])) for _ in range(2))
    next(first.run(frames))
    second.restore(first.state())
    assert all(np.array_equal(result.image, image) for result, image in zip(second.run(frames), whole[1:], strict=True))


def test_what_a_program_does_with_its_prompts_later_changes_nothing(models):
    mask, points, box = np.zeros(FILM[0].shape[:2], bool), [[10.0, 16.0, 1.0]], torch.tensor(LEFT, dtype=torch.float32)
    mask[10:22, 5:15] = True
    objects = [ObjectPrompt(mask=mask, id=1, at=1), ObjectPrompt(points=points, id=2, at=2)]
    objects.append(ObjectPrompt(box=box, id=3, at=2))
    whole = masks_by_id(segment_video(models, film(5), Clicks(objects=objects)))
    run = segment_video(models, film(5), Clicks(objects=objects))
    begun = masks_by_id(islice(run, 1))
    mask[:], points[0][:], box[:] = ~mask, (30, 15, 1), torch.tensor(RIGHT)
    objects.clear()
    again = begun | masks_by_id(run)
    assert whole.keys() == again.keys() and all(np.array_equal(again[key], whole[key]) for key in whole)


def test_a_correction_is_copied_too(models):
    mask = np.zeros(FILM[0].shape[:2], bool)
    mask[10:22, 5:15] = True

    def corrected(change: bool) -> dict:
        given = mask.copy()
        tracking = Tracking(models, Clicks(boxes=[RIGHT]))
        tracking.correct([ObjectPrompt(mask=given, id=1, at=2)])
        given[:] = given ^ change
        return masks_by_id(tracking.run(film(4)))

    one, other = corrected(False), corrected(True)
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_the_result_of_an_object_of_several_frames_can_be_corrected(tmp_path):
    words = [save_film(tmp_path / "film", 6), "--frames", "--format", "gif"]
    words += [
        "--object",
        "box=5,10,15,22 id=1 at=0",
        "--object",
        "point=30,15 id=1 at=2",
        "--object",
        "id=1 at=4 remove",
    ]
    assert command(*words, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "film"
    records = lines(folder / "result.jsonl")
    frames = {r["frame"] for r in records if r["objects"]}
    assert frames and max(frames) == 3 and len(json.loads((folder / "result.json").read_text())["objects"]) == 1
    assert command("--correct", folder, "--object", "id=1 at=1 box=8,10,18,22") == 0
    corrected = lines(folder / "result.jsonl")
    assert corrected[0] == records[0] and max(r["frame"] for r in corrected if r["objects"]) == 3


# --- The command -------------------------------------------------------------------------------------------


def test_words_and_a_file_say_the_same(tmp_path):
    save(np.full((40, 56), 255, np.uint8), tmp_path / "mask.png")
    content = [
        {"box": [5, 10, 15, 22.5], "points": [[9, 15], [30, 30, 0]], "label": "big dog", "id": 4, "at": 2},
        {"mask": "mask.png", "label": None},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps({"objects": content}))
    words = ["box=5,10,15,22.5 point=9,15 point=30,30,0 label='big dog' id=4 at=2", f"mask={tmp_path}/mask.png"]
    one, other = [parse_object(word) for word in words], read_prompts(tmp_path / "prompts.json")
    assert [vars(o) | {"mask": None} for o in one] == [vars(o) | {"mask": None} for o in other]
    assert one[0].points == [(9, 15, 1), (30, 30, 0)] and one[1].mask.all() and other[1].mask.all()
    with pytest.raises(ValueError, match="^--object: object 4 is shown more than once"):
        objects_of(words[:1], tmp_path / "prompts.json")


def test_a_video_of_several_objects_has_their_labels_in_records_names_and_page(tmp_path):
    words = [save_film(tmp_path / "film", 3), "--frames", "--format", "png", "--html", "--save", "masks"]
    words += ["--object", "box=5,10,15,22 label='big dog'", "--object", "box=40,10,50,22 label=cat id=9 at=2"]
    assert command(*words, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "film"
    records = lines(folder / "result.jsonl")
    assert {(o["id"], o["label"]) for r in records for o in r["objects"]} <= {(1, "big dog"), (9, "cat")}
    result = json.loads((folder / "result.json").read_text())
    assert {o["label"] for o in result["objects"]} == {"big dog", "cat"} and "big dog" in (
        folder / "page.html"
    ).read_text()
    assert [o["first"] for o in result["objects"] if o["id"] == 9] == [2]
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["001_big_dog", "009_cat"]
    assert command(*words, "--out", tmp_path / "out", "--resume") == 0
    words[-1] = words[-1].replace("cat", "cow")
    assert command(*words, "--out", tmp_path / "out", "--resume") == 0
    assert {o["label"] for o in json.loads((folder / "result.json").read_text())["objects"]} == {"big dog", "cow"}


def test_frames_before_the_last_mark_keep_the_masks_of_the_way_ahead(tmp_path):
    words = [save_film(tmp_path / "film", 3), "--frames", "--format", "gif", "--direction", "both"]
    words += ["--object", "box=5,10,15,22 at=1", "--object", "box=8,10,18,22 at=2", "--out", tmp_path / "out"]
    assert command(*words) == 0
    both = lines(tmp_path / "out" / "film" / "result.jsonl")
    clicks = Clicks(objects=[ObjectPrompt(box=LEFT, at=1)])
    alone = masks_by_id(
        segment_video(tiny_models(), [picture(4 + 2 * t, seed=t) for t in range(5)], clicks, direction="both")
    )
    for record in both:
        seen = {o["id"]: decode_rle(o["mask"]) for o in record["objects"]}
        assert np.array_equal(seen.get(1, np.zeros((40, 56), bool)), alone[record["frame"], 1])


def test_a_frame_beyond_the_end_of_a_film_leaves_nothing(tmp_path, capsys):
    words = [save_film(tmp_path / "film", 3), "--frames", "--format", "gif", "--out", tmp_path / "out", "--object"]
    assert command(*words, "box=5,10,15,22", "--object", "box=5,10,15,22 at=3") == 2
    said = capsys.readouterr().err
    assert "object 2: at=3: the video has no such frame" in said and said.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "webp", "mp4", "mkv"])
@pytest.mark.parametrize(
    "words",
    [
        ["--object", "box=5,10,15,22", "--object", "box=5,10,15,22 at=6"],
        ["bright.", "--seed-frame", "6"],
        ["--object", "box=5,10,15,22 at=3", "--max-seconds", "0.6"],
        ["--object", "box=5,10,15,22 at=3", "--stride", "2"],
    ],
)
def test_a_frame_beyond_the_end_is_refused_before_the_first_one(kind, words, tmp_path, monkeypatch, capsys):
    source = tmp_path / f"film.{kind}"
    if kind == "folder":
        save_film(source, 6)
    else:
        with VideoWriter(source, 5, (56, 40)) as writer:
            for frame in film(6):
                writer.write(frame)
    monkeypatch.setattr(Tracking, "_step", lambda *args: pytest.fail("a frame was tracked"))
    words = [source, *words, "--frames", "--fps", "5", "--format", "gif", "--quiet", "--out", tmp_path / "out"]
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert "the video has no such frame" in error and error.count("\n") == 1 and not list((tmp_path / "out").iterdir())


def test_a_frame_beyond_the_end_of_a_list_is_refused_before_the_first_one(models, monkeypatch):
    monkeypatch.setattr(Tracking, "_step", lambda *args: pytest.fail("a frame was tracked"))
    with pytest.raises(ValueError, match="object 1: at=3"):
        list(segment_video(models, FILM, Clicks(objects=[ObjectPrompt(box=LEFT, at=3)])))


def test_prompts_are_compared_by_identity():
    mask = np.ones((4, 4), bool)
    one, other = ObjectPrompt(mask=mask), ObjectPrompt(mask=mask.copy())
    assert one == one and one != other and Clicks(objects=[one]) != Clicks(objects=[other])
