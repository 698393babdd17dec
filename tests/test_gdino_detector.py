"""Prompts, batches, thresholds and pictures of the detector."""

import dataclasses
import inspect
import json
import struct

import numpy as np
import own_numbers
import parity
import pytest
import torch
from helpers.gdino_tiny import TOKENIZER, tiny_model
from parity_groundingdino import VOCABULARY
from PIL import Image

from minisam_glue.boxes import cxcywh_to_xyxy
from minisam_glue.grounding_dino.detector import (
    Caption,
    Detector,
    PassedQueries,
    merge,
    pack_captions,
    pad_texts,
    pass_limits,
    preprocess,
    resized_size,
    score_limits,
)
from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer
from minisam_glue.media.images import read_image, read_masks
from minisam_glue.pixels import to_rgb
from minisam_glue.prompts import split_phrases

EVERYTHING = {"box_threshold": 0.0, "text_threshold": 0.0}


@pytest.fixture(scope="module")
def detector():
    return Detector(tiny_model(), TOKENIZER, min_size=48, max_size=80)


@pytest.fixture(scope="module")
def bert_tokenizer():
    return WordPieceTokenizer.load(VOCABULARY)


def picture(seed, height=40, width=60):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def same(a, b):
    return (
        torch.allclose(a.boxes, b.boxes, atol=1e-3)
        and torch.allclose(a.scores, b.scores, atol=1e-4)
        and a.indices.tolist() == b.indices.tolist()
    )


# --- Prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Car, Dog", ["car", "dog"], "car;dog", " CAR . dog . ", ["Car", "DOG"]])
def test_separators_and_case_make_no_difference(detector, prompt):
    want = detector.detect(picture(0), "car. dog.", **EVERYTHING)
    got = detector.detect(picture(0), prompt, **EVERYTHING)
    assert len(want) and same(got, want)


def test_labels_are_the_phrases_verbatim_with_their_index(detector):
    phrases = ["the RED car!", "Traffic Light", "dog"]
    found = detector.detect(picture(1), phrases, **EVERYTHING)
    assert len(found) and found.labels == [phrases[i] for i in found.indices]
    assert split_phrases("Car,  a Dog on grass ;cat.") == ["Car", "a Dog on grass", "cat"]


@pytest.mark.parametrize("prompt", ["", " . ; ", [], ["car", ""]])
def test_an_empty_prompt_is_a_clear_error(prompt):
    with pytest.raises(ValueError, match="phrase: write it as"):
        split_phrases(prompt)


@pytest.mark.parametrize("number", [1, 20, 300])
def test_captions_hold_every_phrase_once_and_at_most_256_tokens(bert_tokenizer, number):
    words = ["cat", "skateboarding dog", "hairdryer", "traffic light", "St. Bernard", "is it a car?"]
    phrases = [f"{words[i % 6]} {i}" for i in range(number)]
    captions = pack_captions(phrases, bert_tokenizer)
    assert [p for caption in captions for p in caption.phrases] == list(range(number))
    for caption in captions:
        assert len(caption.ids) <= 256 and caption.ids[0] == 101 and caption.ids[-2:] == (1012, 102)
        for phrase, (start, end) in zip(caption.phrases, caption.spans):
            plain = phrases[phrase].replace(".", " ").replace("?", " ")
            assert list(caption.ids[start:end]) == bert_tokenizer.pieces(plain) and caption.ids[end] == 1012


def test_a_phrase_too_long_for_one_pass_is_a_clear_error(bert_tokenizer):
    assert len(pack_captions(["cat", "cat " * 253], bert_tokenizer)) == 2
    with pytest.raises(ValueError, match="phrase 1 .* has 254 tokens: it must have 1 to 253"):
        pack_captions(["dog", "cat " * 254], bert_tokenizer)
    with pytest.raises(ValueError, match="phrase 0 .* holds no word"):
        pack_captions(["?"], bert_tokenizer)


def test_300_classes_are_all_scored(detector):
    letters = "bcdefghijklmnopqrstuvwxyz"
    phrases = [f"{a} {b}" for a in letters for b in letters][:300]
    assert len(pack_captions(phrases, TOKENIZER)) > 3
    found = detector.detect(picture(2), phrases, **EVERYTHING)
    assert found.labels == [phrases[i] for i in found.indices]
    assert len(set((found.indices // 80).tolist())) > 3  # the winners come from every pass


def test_each_phrase_is_scored_over_its_own_tokens(detector):
    phrases = ["red car", "dog", "traffic light"]
    (caption,) = pack_captions(phrases, TOKENIZER)
    ((_, similarity, boxes),) = detector.run([picture(3)], [[caption]], 1)[0]
    found = detector.detect(picture(3), phrases, **EVERYTHING)
    best = torch.stack([similarity[:, [1, 2]].amax(1), similarity[:, 4], similarity[:, [6, 7]].amax(1)], 1).max(1)
    order = best.values.argsort(descending=True, stable=True)
    assert torch.allclose(found.scores, best.values[order]) and found.indices.tolist() == best.indices[order].tolist()
    pixels = cxcywh_to_xyxy(boxes[order]).clamp(0, 1) * torch.tensor([60, 40, 60, 40])
    assert torch.allclose(found.boxes, pixels, atol=1e-4)


def test_encoded_captions_are_reused_until_the_weights_change(monkeypatch):
    detector, calls = Detector(tiny_model(), TOKENIZER, min_size=48, max_size=80), []
    encode = detector.model.encode_text
    monkeypatch.setattr(detector.model, "encode_text", lambda *a: calls.append(a) or encode(*a))
    first = detector.detect(picture(0), "car. dog.", **EVERYTHING)
    assert same(detector.detect(picture(0), ["Car", "Dog"], **EVERYTHING), first) and len(calls) == 1
    with torch.no_grad():
        detector.model.feat_map.weight.mul_(1.5)
    assert not same(detector.detect(picture(0), "car. dog.", **EVERYTHING), first) and len(calls) == 2


@pytest.mark.parametrize("swin", own_numbers.SWINS)
def test_from_pixels_to_boxes_the_answer_is_what_it_was_before(swin):
    found, before = own_numbers.detections(swin), json.loads(own_numbers.FILE.read_text())["detector"][swin]
    assert found["labels"] == before["labels"] and found["scores"] == pytest.approx(before["scores"], abs=1e-4)
    np.testing.assert_allclose(found["boxes"], before["boxes"], atol=0.01)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_where_the_likest_word_is_of_a_phrase_scores_and_boxes_are_the_official_ones(bert_tokenizer, number):
    with np.load(parity.ROOT / "golden" / "groundingdino" / "postprocess.npz") as file:
        logits, boxes = (torch.from_numpy(file[f"in_{name}{number}"]) for name in ("logits", "boxes"))
        cases = [case for case in json.loads(str(file["out_cases"])) if case.get("caption_index") == number]
    official = next(case for case in cases if case["kind"] == "predict_with_caption")
    words = next(case["phrases"] for case in cases if case.get("remove_combined") and case["box_threshold"] == 0.35)
    phrases, similarity = split_phrases(official["caption"]), logits.sigmoid()
    (caption,) = pack_captions(phrases, bert_tokenizer)
    assert len(caption.ids) == logits.shape[1]
    # Officially [CLS], [SEP] and full stops count like words; here the phrases' own words alone.
    in_phrase = torch.tensor([any(a <= i < b for a, b in caption.spans) for i in similarity.argmax(1).tolist()])
    limits = score_limits(phrases, official["box_threshold"], official["text_threshold"])
    passed = pass_limits(similarity[in_phrase], boxes[in_phrase], caption, limits)
    found = merge([passed], phrases, tuple(official["source_hw"]), None, False, 1.0)
    rows = in_phrase[similarity.amax(1) > official["box_threshold"]].nonzero()[:, 0].tolist()
    rows.sort(key=lambda row: -official["confidence"][row])
    assert len(rows) > 3 and len(found) == len(rows)
    h, w = official["source_hw"]
    inside = np.array(official["xyxy"])[rows].clip(0, [w, h, w, h])
    np.testing.assert_allclose(found.scores, np.array(official["confidence"])[rows], atol=1e-6)
    np.testing.assert_allclose(found.boxes, inside, atol=1e-4)
    for row, label in zip(rows, found.labels):
        assert words[row].replace("##", "").split()[0] in label.replace(
            "é", "e"
        )  # official labels are parts of phrases


# --- Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_a_batch_of_unequal_images_and_prompts_equals_one_by_one(detector, batch_size):
    images = [picture(0), picture(1, 60, 33), picture(2, 25, 90), picture(3), picture(4, 3, 200)]
    prompts = ["car. dog.", ["the red square"], "traffic light, cat, a green car on grass", ["dog", "blue"], "cat"]
    together = detector.detect(images, prompts, batch_size=batch_size, **EVERYTHING)
    for image, prompt, got in zip(images, prompts, together):
        want = detector.detect(image, prompt, **EVERYTHING)
        assert len(want) and same(got, want)


def test_a_shorter_caption_of_a_batch_is_padded_by_tokens_that_see_themselves_alone(detector):
    short, long = (
        detector.encode_caption(caption.ids)
        for caption in pack_captions(["dog"], TOKENIZER) + pack_captions(["red car"], TOKENIZER)
    )
    text, words = pad_texts([short, long]), short.features.shape[1]
    assert torch.equal(text.features[0, :words], short.features[0]) and not text.valid[0, words:].any()
    padding = torch.eye(long.features.shape[1], dtype=torch.bool)[words:]
    assert torch.equal(text.attention[0, 0, words:], padding)  # a row without any would be no softmax
    assert not text.attention[0, 0, :words, words:].any() and torch.equal(text.attention[1], long.attention[0])


def test_one_string_serves_all_images_and_a_wrong_number_of_prompts_is_an_error(detector):
    assert len(detector.detect([picture(0), picture(1)], "car. dog.")) == 2
    assert detector.detect([], "car") == []
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        detector.detect([picture(0), picture(1)], ["car", "dog", "cat"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        detector.detect(picture(0), "car", batch_size=0)


# --- Thresholds and filters --------------------------------------------------------------------------------


def test_scores_are_above_both_thresholds(detector):
    everything = detector.detect(picture(5), "car. dog. cat.", **EVERYTHING)
    middle = float(everything.scores.median())
    for limits in ({"box_threshold": middle, "text_threshold": 0.0}, {"box_threshold": 0.0, "text_threshold": middle}):
        found = detector.detect(picture(5), "car. dog. cat.", **limits)
        assert found.scores.tolist() == [s for s in everything.scores.tolist() if s > middle]


def test_a_threshold_for_one_phrase_leaves_the_others(detector):
    before = detector.detect(picture(5), "car. dog.", box_threshold={"car": 0.0, "dog": 0.0}, text_threshold=0.0)
    after = detector.detect(picture(5), "car. dog.", box_threshold={"car": 1.0, "dog": 0.0}, text_threshold=0.0)
    assert "car" in before.labels and set(after.labels) == {"dog"} and len(after) >= before.labels.count("dog")
    with pytest.raises(ValueError, match=r"names \['cow'\]"):
        detector.detect(picture(5), "car. dog.", box_threshold={"cow": 0.5})


def test_thresholds_and_sizes_that_are_not_given_are_the_official_ones():
    options = inspect.signature(Detector.detect).parameters
    assert (options["box_threshold"].default, options["text_threshold"].default) == (0.35, 0.25)
    assert score_limits(["car", "dog"], {"car": 0.5}, 0.25).tolist() == pytest.approx([0.5, 0.35])
    sizes = inspect.signature(Detector).parameters
    assert (sizes["min_size"].default, sizes["max_size"].default) == (800, 1333)


def test_nothing_found_has_shape_0_4_and_reports_the_best(detector, caplog):
    with caplog.at_level("INFO"):
        found = detector.detect(picture(6), "car. dog.", box_threshold=1.0)
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.indices.shape == (0,)
    assert found.labels == [] and len(found) == 0
    everything = detector.detect(picture(6), "car. dog.", **EVERYTHING)
    assert found.best == (everything.labels[0], pytest.approx(float(everything.scores[0])))
    assert f"the best is {found.best[0]!r}" in caplog.text


def found_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.21], [0.5, 0.5, 0.21, 0.2], [0.5, 0.5, 1.0, 1.0]])
    return [PassedQueries(boxes, torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([0, 1, 0, 0]), (1, 0.9))]


@pytest.mark.parametrize(
    "options, scores",
    [
        ((None, False, 1.0), [0.9, 0.8, 0.7, 0.6]),
        ((0.5, False, 1.0), [0.9, 0.8, 0.7]),
        ((0.5, True, 1.0), [0.9, 0.8]),
        ((None, False, 0.5), [0.9, 0.7, 0.6]),
        ((0.5, True, 0.5), [0.9]),
    ],
)
def test_suppression_per_phrase_or_across_and_the_area_limit(options, scores):
    got = merge(found_boxes(), ["car", "dog"], (100, 200), *options)
    assert got.scores.tolist() == pytest.approx(scores)
    assert got.labels[0] == "dog"
    assert torch.allclose(got.boxes[0], torch.tensor([80.0, 39.5, 120.0, 60.5]))


def test_results_are_ordinary_tensors_that_may_be_changed_and_so_is_text_that_is_kept(detector, monkeypatch):
    modes, ground = [], detector.model.ground
    monkeypatch.setattr(
        detector.model, "ground", lambda *a: modes.append(torch.is_inference_mode_enabled()) or ground(*a)
    )
    detector.texts.clear()
    found = detector.detect(picture(7), "car. dog.", **EVERYTHING)
    found.boxes += 1
    found.scores *= 2
    assert modes == [True]  # a tenth faster at small sizes
    (text,) = detector.texts.values.values()
    for tensor in (found.boxes, found.scores, found.indices, *vars(text).values()):
        assert not tensor.is_inference() and not tensor.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_detection_runs_in_half_precision(dtype):
    detector = Detector(tiny_model().to(dtype), TOKENIZER, min_size=48, max_size=80)
    found = detector.detect([picture(7), picture(8, 60, 33)], "car. dog.", **EVERYTHING)[1]
    assert len(found) and found.boxes.dtype == found.scores.dtype == torch.float32 and found.boxes.isfinite().all()


def test_boxes_stay_inside_the_image(detector):
    found = detector.detect(picture(7, 30, 50), "car. dog.", **EVERYTHING)
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([50, 30, 50, 30])).all()


# --- Pictures ----------------------------------------------------------------------------------------------


def test_strange_pictures_have_defined_results(detector):
    image, transparent = Image.fromarray(picture(0)), np.dstack([picture(0), picture(1)[..., :1]])
    pictures = [
        picture(0, 1, 1),
        picture(0, 30, 4000),
        picture(0)[..., 0],
        transparent,
        picture(0).astype(np.uint16) * 257,
        image.convert("P"),
        image.convert("LA"),
        image.convert("1"),
    ]
    for found in detector.detect(pictures, "car. dog.", **EVERYTHING):
        assert len(found) and found.boxes.isfinite().all()


def test_equal_pixels_in_other_modes_are_equal_pictures(tmp_path):
    rgb = picture(0)
    image, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    assert np.array_equal(to_rgb(image), rgb) and np.array_equal(to_rgb(image.convert("RGBA")), rgb)
    assert np.array_equal(to_rgb(rgb.astype(np.uint16) * 257), rgb)
    assert np.array_equal(to_rgb(grey), np.repeat(rgb[..., :1], 3, 2))
    for mode in (np.uint16, np.int32):
        sixteen_bits = Image.fromarray(rgb[..., 0].astype(mode) * 257)
        assert np.array_equal(to_rgb(sixteen_bits), to_rgb(grey))


def test_scores_that_are_no_numbers_are_not_taken_for_nothing_found(detector, monkeypatch):
    ground = detector.model.ground

    def overflown(*args: object) -> list:
        (out, *others) = ground(*args)
        return [dataclasses.replace(out, logits=out.logits * torch.nan), *others]

    monkeypatch.setattr(detector.model, "ground", overflown)
    with pytest.raises(ValueError, match="no numbers .NaN.: take --dtype float32"):
        detector.detect(picture(0), "car.")


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    image, exif = Image.fromarray(picture(0)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(to_rgb(Image.open(tmp_path / "turned.png")), np.rot90(picture(0), -1))


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_a_picture_whose_exif_cannot_be_read_or_written_back_is_good(form, tmp_path):
    entries = struct.pack("<HHIhH", 0x0100, 8, 1, -5, 0) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # SSHORT; turned
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    plain = Image.fromarray(picture(0))
    for name, exif, turns in (("damaged", b"Exif\0\0garbage garbage", 0), ("odd", odd, -1)):
        path = tmp_path / f"{name}.{form}"
        plain.save(path, exif=exif, **({"lossless": True} if form == "webp" else {"quality": 95}))
        for read in (read_image, lambda path: to_rgb(Image.open(path)), lambda path: read_masks(path)[0][..., None]):
            assert read(path).shape[:2] == np.rot90(picture(0), turns).shape[:2]
        assert form == "jpg" or np.array_equal(read_image(path), np.rot90(picture(0), turns))


def test_of_an_animation_the_current_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    animation = Image.open(tmp_path / "two.gif")
    assert to_rgb(animation)[0, 0].tolist() == [255, 0, 0]
    animation.seek(1)
    assert to_rgb(animation)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "photo.jpg",
        torch.zeros(3, 4, 4),
    ],
)
def test_what_is_no_picture_is_a_clear_error(bad):
    with pytest.raises(ValueError, match="an image"):
        to_rgb(bad)


@pytest.mark.parametrize(
    "size, want",
    [
        ((640, 480), (1066, 800)),
        ((480, 640), (800, 1066)),
        ((4000, 30), (1333, 10)),
        ((500, 500), (800, 800)),
        ((1, 1), (800, 800)),
        ((100000, 10), (2666, 1)),
    ],
)
def test_pictures_are_resized_as_officially(size, want):
    assert resized_size(*size, 800, 1333) == want


def test_pixels_are_normalised_like_imagenet():
    x = preprocess(np.full((10, 10, 3), 255, np.uint8), 16, 32)
    assert x.shape == (3, 16, 16)
    assert torch.allclose(x[:, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))


def test_limits_by_name_are_those_of_the_phrases_of_the_caption():
    similarity, boxes = torch.tensor([[0.0, 0.6, 0.5, 0.0]]), torch.full((1, 4), 0.5)
    second = Caption((1, 7, 8, 2), (2, 3), ((1, 2), (2, 3)))  # phrases 2 and 3 of four
    found = pass_limits(similarity, boxes, second, torch.tensor([0.0, 0.9, 0.7, 0.4]))
    assert found.indices.tolist() == [3] and found.scores.tolist() == [0.5] and found.best[0] == 2
