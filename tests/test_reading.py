"""Files of torch.save from elsewhere, and the kinds of values, which both packages check in the same way."""

import inspect
import os

import numpy as np
import pytest
import torch
from helpers import tamper
from PIL import ExifTags, Image, ImageOps

import minisam_glue.media.inputs
import minisam_glue.pixels
import minisam_glue.support.reading
import minivit.folder
import minivit.images
import minivit.reading

SAME = [minivit.reading, minisam_glue.support.reading]


@pytest.fixture(params=SAME, ids=lambda module: module.__package__)
def reading(request):
    return request.param


def test_what_both_packages_check_they_check_alike():
    ours, theirs = (dict(inspect.getmembers(module, inspect.isroutine)) for module in SAME)
    shared = {
        "load",
        "check_zip",
        "check_regular",
        "check_weights",
        "describe",
        "fields",
        "mapping",
        "sequence",
        "tensor",
    }
    assert shared <= ours.keys() & theirs.keys()
    sources = (
        {name: inspect.getsource(found[name]) for name in ours.keys() & theirs.keys()} for found in (ours, theirs)
    )
    assert next(sources) == next(sources)
    assert inspect.getsource(SAME[0]._Copier) == inspect.getsource(SAME[1]._Copier)


def test_what_both_packages_read_of_folders_and_turned_pictures_they_read_alike():
    pairs = [(minivit.folder, minisam_glue.media.inputs, name) for name in ("walk_once", "place", "find_matches")]
    pairs += [(minivit.images, minisam_glue.pixels, name) for name in ("orientation", "upright")]
    for ours, theirs, name in pairs:
        assert inspect.getsource(getattr(ours, name)) == inspect.getsource(getattr(theirs, name)), name
    assert minivit.images.TURNS == minisam_glue.pixels.TURNS


def test_a_good_file_is_read_to_the_bit_into_memory_of_its_own(tmp_path, reading):
    shared = torch.randn(4, 5)
    content = {
        "a": [shared, shared.T, shared[1:3], None, "text", 1.5, True],
        3: (torch.arange(4), torch.zeros(0), torch.tensor(2.0).half()),
        "images": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }
    for form in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=form)
        read = reading.load(tmp_path / "a.pt")
        os.truncate(tmp_path / "a.pt", 0)
        assert read["a"][3:] == content["a"][3:]
        for one, other in zip(
            (*read["a"][:3], *read[3], read["images"]), (*content["a"][:3], *content[3], content["images"])
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert read["images"].is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_that_repeats_one_number_takes_no_more_than_that(tmp_path, reading):
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "a.pt")
    with tamper.bounded(memory=1 << 29):
        content = reading.load(tmp_path / "a.pt")
        assert content["a"].shape == (2**40,) and content["a"][2**39] == 1
        with pytest.raises(ValueError, match="not a tensor of shape"):
            reading.fields(a=reading.tensor(3))(content, "it")


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are text")
def test_a_name_that_is_no_text_is_opened(tmp_path, reading):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.pt")
    try:
        torch.save({"a": torch.ones(2)}, path)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert reading.load(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"a": torch.zeros(2).to_sparse()}, "a sparse_coo tensor of shape"),
        ({"a": [torch.zeros(2, device="meta")]}, "a float32 tensor of shape (2,) on the device meta"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a complex64 tensor"),
        ({"a": tamper.Runs()}, "not opened for safety"),
    ],
)
def test_what_is_no_plain_tensor_is_told_before_it_takes_memory(content, reason, tmp_path, reading):
    torch.save(content, tmp_path / "a.pt")
    with tamper.bounded(memory=1 << 29), pytest.raises(ValueError) as caught:
        reading.load(tmp_path / "a.pt")
    assert reason in str(caught.value)


def test_damaged_archives_are_refused_or_read_within_their_size(tmp_path, reading):
    torch.save({"model": {"weight": torch.randn(30, 40), "bias": torch.randn(30)}}, tmp_path / "good.pt")
    refused = 0
    for name, data in tamper.broken_archives((tmp_path / "good.pt").read_bytes()):
        (tmp_path / "bad.pt").write_bytes(data)
        with tamper.bounded(memory=1 << 29):
            try:
                reading.load(tmp_path / "bad.pt")
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error), name
    assert refused > 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs the file types of Unix")
def test_a_pipe_or_device_is_no_file_of_weights(tmp_path, reading):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", "/dev/zero", tmp_path):
        with tamper.bounded(5), pytest.raises(ValueError, match="no regular file"):
            reading.load(path)
    with pytest.raises(FileNotFoundError):
        reading.load(tmp_path / "none.pt")


GOOD = {"id": 3, "name": "cat", "box": [0, 1.5], "on": True, "more": None, "map": {1: torch.ones(2)}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": -1}, "it['id'] is -1, not a whole number from 0 to 10"),
        ({"id": True}, "it['id'] is True, not a whole number"),
        ({"id": 10**5000}, "it['id'] is a number of 16610 bits, not"),
        ({"name": 3}, "it['name'] is 3, not a text"),
        ({"name": "x" * 10**6}, None),
        ({"box": [0, 1, 2]}, "it['box'] is a list of 3, not a list of 2"),
        ({"box": [0, float("nan")]}, "it['box'][1] is nan, not a finite number"),
        ({"on": 1}, "it['on'] is 1, not true or false"),
        ({"more": "x"}, "it['more'] is 'x', not a finite number"),
        ({"map": {}}, "it['map'] is a dict of 0, not a dictionary of at least 1"),
        ({"map": {"a": torch.ones(2)}}, "a key of it['map'] is 'a', not a whole number"),
        ({"map": {1: torch.ones(3)}}, "it['map'][1] is a float32 tensor of shape (3,), not a tensor of shape (2,)"),
        ({"map": {1: torch.ones(2, dtype=torch.int32)}}, "is a int32 tensor of shape (2,), not a tensor of shape (2,)"),
        ({"map": {1: torch.tensor([1, float("inf")])}}, "it['map'][1] holds NaN or infinity"),
        ({"other": object()}, None),
    ],
)
def test_a_kind_says_where_a_value_stands_and_what_it_should_be(change, message, reading):
    kind = reading.fields(
        id=reading.whole(0, 10),
        name=reading.text,
        box=reading.sequence(reading.real, 2),
        on=reading.flag,
        more=reading.optional(reading.real),
        map=reading.mapping(reading.whole(), reading.tensor(2), least=1),
    )
    kind(GOOD, "it")
    if message is None:
        kind(GOOD | change, "it")
    else:
        with pytest.raises(ValueError) as caught:
            kind(GOOD | change, "it")
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="it lacks 'box'"):
        kind({name: value for name, value in GOOD.items() if name != "box"}, "it")


def test_large_finite_numbers_are_no_infinity(reading):
    reading.check_finite(torch.full((10,), 3e38), "it")
    reading.check_finite(torch.full((10,), 6e4, dtype=torch.float16), "it")
    reading.check_finite(torch.arange(3), "it")
    for wrong in (-float("inf"), float("nan"), 1e300):  # the last one has no float32
        with pytest.raises(ValueError, match="it holds NaN or infinity"):
            reading.check_finite(torch.tensor([1.0, wrong], dtype=torch.float64), "it")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation, tmp_path):
    pixels, path = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), tmp_path / "a.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(minivit.images.read_image(path, 16).permute(1, 2, 0).numpy(), turned)
    assert np.array_equal(minisam_glue.pixels.to_rgb(Image.open(path)), turned)
