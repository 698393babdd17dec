"""Generated scenes: seeds, truth, captions, colours, clips."""

import numpy as np
import pytest

from minisam_glue.demo.drawing import COLOURS, SHAPES, SMALL, footprint, stamp
from minisam_glue.demo.scenes import ALL_KINDS, SMALLEST, VISIBLE, clip, extents, scene

SEEDS = range(40)
HUES = {"red": 0, "orange": 29, "yellow": 56, "green": 120, "blue": 225, "purple": 280}


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def clips():
    return {kind: [clip(seed, kind, frames=24, size=(64, 96)) for seed in range(6)] for kind in ALL_KINDS}


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]


def name_of(rgb):
    """The nearest of the eight colour names: black and white by lightness, the rest by hue."""
    high, low = rgb.max(), rgb.min()
    if high < 60:
        return "black"
    if low > 0.8 * high and high > 170:
        return "white"
    r, g, b = (rgb - low) / (high - low)
    hue = 60 * (((g - b) % 6) if r == 1 else b - r + 2 if g == 1 else r - g + 4)
    return min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))


def test_a_seed_gives_the_same_scene_and_another_seed_another():
    one, two, other = scene(5), scene(5), scene(6)
    assert (one.image == two.image).all() and (one.masks == two.masks).all() and one.figures == two.figures
    assert one.phrases == two.phrases and one.labels == two.labels
    assert one.image.shape != other.image.shape or (one.image != other.image).any()
    first, second = (clip(5, frames=6, size=(48, 64)) for _ in range(2))
    assert (first.frames == second.frames).all() and (first.masks == second.masks).all()
    assert first.phrases == second.phrases and first.kind == second.kind


def test_the_global_random_state_neither_matters_nor_changes():
    np.random.seed(0)
    before, one = np.random.get_state()[1].copy(), scene(9)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(1)
    assert (scene(9).image == one.image).all()


def test_boxes_are_the_extents_of_the_visible_masks(scenes, clips):
    for s in scenes:
        assert s.boxes.tolist() == [tight_box(mask) for mask in s.masks]
    for c in clips["occlusion"] + clips["leaving"]:
        assert c.boxes.tolist() == [[tight_box(mask) for mask in frame] for frame in c.masks]


def test_a_pixel_belongs_to_the_topmost_object_only(scenes, clips):
    assert max(s.masks.sum(0).max() for s in scenes) == 1
    assert max(c.masks.sum(1).max() for some in clips.values() for c in some) == 1
    hidden = 0
    for s in scenes:
        height, width = s.image.shape[:2]
        whole = [stamp(footprint(figure, height, width), height, width) for figure in s.figures]
        for i, mask in enumerate(s.masks):
            above = np.any([np.zeros_like(mask), *whole[i + 1 :]], axis=0)
            assert (mask == whole[i] & ~above).all() and mask.sum() >= VISIBLE * whole[i].sum()
            hidden += mask.sum() < whole[i].sum()
    assert hidden > 5


def test_objects_measure_from_6_pixels_to_half_the_frame():
    scenes = [scene(seed, (120, 160)) for seed in range(150)]
    sides = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]).max(1) for s in scenes])
    assert sides.min() >= SMALLEST and (sides < 9).any() and 70 < sides.max() <= 0.5 * 160 * 1.2
    counts = {len(s.boxes) for s in scenes}
    assert 1 in counts and max(counts) >= 7


def test_any_aspect_is_drawn(scenes):
    aspects = [s.image.shape[1] / s.image.shape[0] for s in scenes]
    assert min(aspects) < 0.65 and max(aspects) > 1.5
    assert scene(3, (40, 150)).image.shape == (40, 150, 3)
    with pytest.raises(ValueError, match="32 x 32"):
        scene(0, (20, 100))


def test_captions_say_what_is_there(scenes):
    for s in scenes:
        assert 1 <= len(s.phrases) <= 5
        for figure, label in zip(s.figures, s.labels):
            fitting = [i for i, phrase in enumerate(s.phrases) if phrase.matches(figure)]
            assert fitting == ([label] if label >= 0 else [])
        for phrase in s.phrases:
            words = phrase.text.split()
            assert phrase.colour is None or phrase.colour in words
            assert phrase.shape is None or any(word.startswith(phrase.shape) for word in words)
            assert (phrase.colour is None) == (not set(words) & set(COLOURS))


def test_absent_phrases_match_no_object_and_are_common():
    scenes = [scene(seed, (64, 64)) for seed in range(100)]
    for s in scenes:
        assert not any(s.phrases[i].matches(figure) for i in s.absent for figure in s.figures)
    assert sum(bool(s.absent) for s in scenes) > 40
    confused = [
        phrase
        for s in scenes
        for phrase in (s.phrases[i] for i in s.absent)
        if phrase.colour in {f.colour for f in s.figures} and phrase.shape in {f.shape for f in s.figures}
    ]
    assert len(confused) > 10  # "red square" beside a red circle and a blue square


def test_plurals_and_articles_are_english(scenes):
    texts = [phrase.text for s in scenes for phrase in s.phrases]
    assert any(text.startswith("the ") for text in texts) and any(text.endswith("s") for text in texts)
    assert any(text.startswith("all the ") for text in texts) and "crosss" not in " ".join(texts)
    for text in texts:
        first, *rest = text.split()
        assert first not in ("a", "an") or (first == "an") == (rest[0][0] in "aeiou")


def test_every_colour_looks_like_its_name():
    """Median of the pixels inside filled figures, whatever background, shading, noise, blur and JPEG do."""
    seen = dict.fromkeys(COLOURS, 0)
    for seed in range(200):
        s = scene(seed, (96, 96))
        for figure, mask in zip(s.figures, s.masks):
            if figure.stroke == 0 and figure.radius > 2 * SMALL and mask.sum() > 200:
                assert name_of(np.median(s.image[mask], axis=0)) == figure.colour, (seed, figure)
                seen[figure.colour] += 1
    assert min(seen.values()) >= 5


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_their_disc_and_differ(shape):
    figure = next(f for seed in range(200) for f in scene(seed, (64, 64)).figures if f.shape == shape)
    areas = {}
    for other in SHAPES:
        mask = stamp(
            footprint(
                type(figure)(
                    **{**vars(figure), "shape": other, "x": 50, "y": 50, "radius": 30.0, "squash": 1.0, "angle": 0.0}
                ),
                100,
                100,
            ),
            100,
            100,
        )
        left, top, right, bottom = tight_box(mask)
        assert min(left, top) >= 19 and max(right, bottom) <= 81
        areas[other] = mask
    assert all((areas[shape] ^ mask).sum() > 100 for other, mask in areas.items() if other != shape)


def test_objects_keep_their_column_all_along_a_clip(clips):
    """From frame to frame the centre of a column moves by little, so that no two columns are ever swapped."""
    for some in clips.values():
        for c in some:
            assert c.frames.shape == (24, 64, 96, 3) and c.masks.shape == (24, len(c.figures), 64, 96)
            areas = c.masks.sum((2, 3))
            for column in range(len(c.figures)):
                full = areas[:, column] > 0.8 * areas[:, column].max()
                centres = (c.boxes[:, column, :2] + c.boxes[:, column, 2:]) / 2
                steps = np.abs(np.diff(centres, axis=0)).max(1)[full[1:] & full[:-1]]
                assert (steps < 24).all()


def test_crossing_look_alikes_meet_and_part(clips):
    for c in clips["crossing"]:
        one, two = c.leads
        assert (c.figures[one].colour, c.figures[one].shape) == (c.figures[two].colour, c.figures[two].shape)
        centres = (c.boxes[..., :2] + c.boxes[..., 2:]) / 2
        seen = c.masks.any((2, 3))[:, [one, two]].all(1)
        apart = np.abs(centres[seen, one] - centres[seen, two]).max(1)
        radius = c.figures[one].radius
        assert apart[0] > 4 * radius and apart[-1] > 4 * radius and (apart.min() < 2 * radius or not seen.all())


def test_an_occluded_object_vanishes_and_returns(clips):
    for c in clips["occlusion"]:
        seen = c.masks[:, c.leads[0]].any((1, 2))
        gone = np.flatnonzero(~seen)
        assert seen[0] and seen[-1] and len(gone) and 4 < gone[0] <= gone[-1] < 20


def test_a_leaving_object_is_out_of_the_frame_and_returns(clips):
    for c in clips["leaving"]:
        seen = c.masks[:, c.leads[0]].any((1, 2))
        assert seen[0] and seen[-1] and not seen[12]


def centres(c):
    return (c.boxes[..., :2] + c.boxes[..., 2:]) / 2


def test_look_alikes_that_pass_end_on_the_other_side_and_those_that_bounce_on_their_own(clips):
    for passing, bouncing in zip(clips["pass"], clips["bounce"]):
        radius = passing.figures[passing.leads[0]].radius
        for c, changed in ((passing, True), (bouncing, False)):
            one, two = (c.figures[i] for i in c.leads)
            assert (one.colour, one.shape, one.rgb, one.radius) == (two.colour, two.shape, two.rgb, two.radius)
            apart = centres(c)[:, c.leads[0]] - centres(c)[:, c.leads[1]]
            axis = int(np.abs(apart[0]).argmax())
            assert (apart[0, axis] * apart[-1, axis] < 0) == changed
            seen = c.masks.any((2, 3))[:, list(c.leads)].all(1)
            assert np.abs(apart[seen]).max(1).min() < 2.2 * radius < 3 * radius < np.abs(apart[[0, -1]]).max(1).min()
        # Until they touch nothing tells which of the two it will be.
        assert np.abs(centres(passing)[:8] - centres(bouncing)[:8]).max() < 2


def test_twins_are_like_the_tracked_object_and_only_one_is_tracked(clips):
    for c in clips["twins"]:
        assert len(c.leads) == 1 and len(c.twins) == 2 and c.leads[0] not in c.twins
        looks = {(f.colour, f.shape, f.rgb, f.radius) for f in (c.figures[i] for i in (*c.leads, *c.twins))}
        assert len(looks) == 1
        assert c.masks.any((2, 3))[:, [*c.leads, *c.twins]].mean() > 0.8
    assert not any(c.twins for kind in ALL_KINDS if kind != "twins" for c in clips[kind])


def test_an_object_returns_at_another_border(clips):
    for c in clips["return"]:
        lead = c.leads[0]
        gone = np.flatnonzero(~c.masks[:, lead].any((1, 2)))
        assert 4 <= len(gone) == gone[-1] - gone[0] + 1 and 0 < gone[0] and gone[-1] < 23
        before, after = c.boxes[gone[0] - 1, lead], c.boxes[gone[-1] + 1, lead]
        touched = [np.isclose(box, (0, 0, 96, 64)) for box in (before, after)]
        assert touched[0].any() and touched[1].any() and not (touched[0] & touched[1]).any()


def test_an_object_of_another_size_comes_out_of_hiding(clips):
    larger = []
    for c in clips["scale"]:
        areas = c.masks[:, c.leads[0]].sum((1, 2))
        assert not areas[12] and min(areas[0], areas[-1]) > 0
        larger.append(areas[-1] > areas[0])
        assert max(areas[0], areas[-1]) > 1.5 * min(areas[0], areas[-1])
    assert 0 < sum(larger) < len(larger)


def test_clips_of_a_seed_stay_what_they_are():
    """Weights and results were made with these clips: new kinds must not move the old ones."""
    last = {"free": (41, 28, 51, 37), "crossing": (52, 15, 64, 27), "occlusion": (52, 15, 63, 26)}
    for kind, box in (last | {"leaving": (41, 28, 51, 37)}).items():
        c = clip(11, kind, 5, (48, 64), [4])
        assert c.leads[0] == 1 and c.boxes[0, 1] == pytest.approx(box, abs=1)
    assert [clip(seed, frames=1, size=(32, 40)).kind for seed in range(5)] == [
        "leaving",
        "occlusion",
        "occlusion",
        "leaving",
        "crossing",
    ]


def test_every_object_of_a_clip_sets_itself_off_from_the_ground():
    for seed in range(120):
        c = clip(seed, frames=2, size=(64, 96))
        background = c.frames[~c.masks.any(1)].mean(0) / 255
        for figure in c.figures:
            assert np.abs(background - figure.stroke_rgb).max() > 0.1, (seed, figure)


def test_chosen_frames_show_what_the_whole_clip_shows():
    whole, part = clip(3, "occlusion", 12, (40, 56)), clip(3, "occlusion", 12, (40, 56), [7, 2])
    assert np.array_equal(part.masks, whole.masks[[7, 2]]) and np.array_equal(part.boxes, whole.boxes[[7, 2]])
    difference = np.abs(part.frames.astype(int) - whole.frames[[7, 2]])
    assert difference.mean() < 20 < np.abs(part.frames[0].astype(int) - whole.frames[2]).max()


def test_an_unknown_kind_of_clip_is_a_clear_error():
    with pytest.raises(ValueError, match="there are free, crossing, occlusion, leaving, pass, bounce"):
        clip(0, "swap")


def test_extents_of_nothing_are_zero():
    assert extents(np.zeros((2, 5, 7), dtype=bool)).tolist() == [[0, 0, 0, 0]] * 2
