"""Data sets: decoding, layout errors, the cache, the hold-out, CIFAR's error paths, and how hard the shapes are."""

import builtins
import contextlib
import math
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import damage
from helpers.picture_cases import CASES as PICTURES
from helpers.picture_cases import SIDE, Case
from PIL import Image

from minisam_glue.media import images, limits
from minivit import data, folder, run, shapes, splits
from minivit import images as minivit_images
from minivit.files import Claim
from minivit.images import image_size, read_image
from minivit.predict import find_pictures
from minivit.splits import DataError, Dataset, Split


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    home = tmp_path / "cache"
    monkeypatch.setenv("MINIVIT_CACHE", str(home))
    return home


def save(path: Path, colour=(200, 100, 50), size=(8, 8), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Two classes, three images each, in train and test."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for i in range(3):
                save(root / split / name / f"{i}.png", (100 * label, 10 * i, 200 if split == "test" else 0))
    return root


def count_decodes(monkeypatch) -> list:
    calls, original = [], folder.decode
    monkeypatch.setattr(folder, "decode", lambda *args: calls.append(1) or original(*args))
    return calls


def decode(path: Path, size: int = 8) -> torch.Tensor:
    return read_image(path, size)


# Decoding


def test_folder_gives_images_labels_and_sorted_classes(root):
    loaded = data.load("folder", root, image_size=8)
    assert loaded.classes == ["cat", "dog"] and loaded.val is None
    assert loaded.train.images.shape == (6, 3, 8, 8) and loaded.train.images.dtype == torch.uint8
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and loaded.train.labels.dtype == torch.int64
    assert loaded.train.images[:, :, 0, 0].tolist() == [[100 * (i // 3), 10 * (i % 3), 0] for i in range(6)]
    assert loaded.test.images[:, 2].eq(200).all()


@pytest.mark.parametrize(
    "mode, colour, suffix, expected",
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (77, 10), "png", (248, 248, 248)),
        ("RGBA", (10, 20, 30, 40), "png", (217, 218, 220)),
        ("RGB", (10, 20, 30), "bmp", (10, 20, 30)),
        ("RGB", (10, 20, 30), "tiff", (10, 20, 30)),
        ("I;16", 0xAB12, "png", (170, 170, 170)),  # 43794 of 65535
        ("I;16", 0xAB12, "tiff", (170, 170, 170)),
    ],
)
def test_every_mode_becomes_the_rgb_it_shows(tmp_path, mode, colour, suffix, expected):
    image = decode(save(tmp_path / f"a.{suffix}", colour, mode=mode))
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
    assert image[:, 3, 4].tolist() == list(expected) and (image == image[:, :1, :1]).all()


def test_palette_images_give_their_colours_also_with_transparency(tmp_path, recwarn):
    picture = Image.new("RGB", (8, 8), (250, 0, 0))
    picture.paste((0, 0, 250), (4, 0, 8, 8))
    palette = picture.quantize(4)
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=bytes([128, 0, 64, 255]))
    palette.save(tmp_path / "a.gif")
    for name in ("plain.png", "a.gif"):
        assert decode(tmp_path / name)[:, 0, [0, 7]].T.tolist() == [[250, 0, 0], [0, 0, 250]], name
    on_white = [[252, 127, 127], [255, 255, 255]]  # half and wholly transparent
    assert decode(tmp_path / "clear.png")[:, 0, [0, 7]].T.tolist() == on_white
    assert not recwarn.list


def test_webp_and_jpeg_are_read_within_their_loss(tmp_path):
    for name in ("a.webp", "a.jpg"):
        image = decode(save(tmp_path / name, (200, 100, 50), quality=95))
        assert (image.float() - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max() <= 4


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_respected(tmp_path):
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "a.jpg", 16)
    assert image[:, :, 12:].min() > 240 and image[:, :, :4].max() < 15  # what was above is now on the right


def test_a_tiff_that_lies_on_its_side_has_the_size_that_it_shows(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8)).save(tmp_path / "a.tif", exif=exif)
    assert image_size(tmp_path / "a.tif") == (8, 16)


def test_an_orientation_that_is_no_number_is_none(tmp_path):
    entry = struct.pack("<HHI4s", 0x0112, 2, 2, b"6")  # of the type ASCII
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    Image.new("RGB", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (16, 8) and decode(tmp_path / "a.jpg", 8).shape == (3, 8, 8)


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_an_image_whose_exif_cannot_be_read_or_written_back_is_good(form, tmp_path):
    white_above = Image.new("RGB", (16, 16))
    white_above.paste((255, 255, 255), (0, 0, 16, 8))
    entries = struct.pack("<HHIhH", 0x0100, 8, 1, -5, 0) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # SSHORT; turned
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    for name, exif, turned in (("damaged", b"Exif\0\0garbage garbage", False), ("odd", odd, True)):
        path = tmp_path / f"{name}.{form}"
        white_above.save(path, exif=exif, **({"lossless": True} if form == "webp" else {"quality": 95}))
        image = decode(path, 16)
        assert (image[:, :, 12:].min() > 240) == turned and (image[:, :4].min() > 240) != turned
        assert image_size(path) == (16, 16)


def test_an_image_of_the_right_size_is_left_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 9).permute(1, 2, 0), pixels)


def test_shorter_side_is_resized_with_antialias_then_centre_cropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(whole, size=(16, 24), mode="bicubic", antialias=True)[0]
    difference = (decode(tmp_path / "a.png", 16) - small[:, :, 4:20].clamp(0, 255)).abs()
    # At the crop's own border Pillow's filter stops where torch's still sees pixels outside the crop.
    assert difference[:, :, 2:-2].max() <= 1.5


def test_a_large_jpeg_decodes_to_the_same_picture(tmp_path):
    wave = np.sin(np.arange(128) * (2 * np.pi / 16))  # decoded too small, the waves would be lost
    Image.fromarray((127 + 120 * np.outer(wave, wave)).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    difference = decode(tmp_path / "a.jpg", 32).float() - decode(tmp_path / "a.png", 32).float()
    assert difference.abs().max() <= 6


# Layout and bad input


def test_a_single_image_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read .*none.png: No such file"):
        read_image(tmp_path / "none.png", 8)
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="cannot decode .*a.png: not an image that Pillow reads"):
        read_image(tmp_path / "a.png", 8)


def test_val_stands_in_for_test_and_is_the_validation_split_beside_it(root):
    for i in range(2):
        save(root / "val" / "cat" / f"{i}.png"), save(root / "val" / "dog" / f"{i}.png")
    both = data.load("folder", root, image_size=8)
    assert len(both.train) == 6 and len(both.test) == 6 and len(both.val) == 4
    (root / "test").rename(root / ".away")
    alone = data.load("folder", root, image_size=8)
    assert len(alone.test) == 4 and alone.val is None


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_hold_out_of_any_usual_name_is_the_hold_out(root, name):
    for animal in ("cat", "dog"):
        save(root / name / animal / "0.png")
    assert len(data.load("folder", root, image_size=8).val) == 2
    (root / "val").mkdir(exist_ok=True), (root / "valid").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="more than one hold-out: keep one of val, valid"):
        data.load("folder", root, image_size=8)


def test_an_empty_hold_out_is_named(root):
    (root / "valid" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="valid has no images: put .* or remove it"):
        data.load("folder", root, image_size=8)


def locked(folder: Path, monkeypatch) -> None:
    """Let nobody list a folder or open what is in it; an administrator may, whatever its permissions."""
    for module, name in ((os, "scandir"), (os, "listdir"), (os, "stat"), (builtins, "open")):

        def refuse(path, *rest, original=getattr(module, name), **options):
            if str(path) == str(folder) or str(path).startswith(f"{folder}{os.sep}"):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *rest, **options)

        monkeypatch.setattr(module, name, refuse)


def test_a_folder_that_cannot_be_read_is_named_and_its_images_do_not_vanish(root, monkeypatch):
    save(root / "train" / "cat" / "more" / "9.png")
    locked(root / "train" / "cat" / "more", monkeypatch)
    with pytest.raises(DataError, match="cannot read the folder .*more: Permission denied"):
        data.load("folder", root, image_size=8)
    told = list(find_pictures([root / "train" / "cat", root / "train" / "dog" / "0.png"]))
    assert told[1:] == [root / "train" / "dog" / "0.png"] and "cannot read the folder" in told[0]


def test_class_folders_alone_are_split_by_the_seed_and_that_is_said(tmp_path, caplog):
    for number, animal in enumerate(("cat", "dog")):
        for i in range(20):
            save(tmp_path / "pets" / animal / f"{i}.png", number * 100 + i)
    parts = data.load("folder", tmp_path / "pets", image_size=8, seed=3)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [32, 4, 4]
    assert "split 80/10/10 by seed 3 (32 train, 4 val, 4 test)" in caplog.text
    assert all(torch.bincount(part.labels).tolist() == [len(part) // 2] * 2 for part in (parts.val, parts.test))
    shades = [part.images[:, 0, 0, 0].tolist() for part in (parts.train, parts.val, parts.test)]
    assert sorted(sum(shades, [])) == [*range(20), *range(100, 120)]  # each image once
    again, other = (data.load("folder", tmp_path / "pets", image_size=8, seed=seed) for seed in (3, 4))
    assert torch.equal(again.test.images, parts.test.images) and not torch.equal(other.test.images, parts.test.images)


def test_what_this_program_made_in_a_folder_of_classes_is_no_class(tmp_path, caplog):
    for name in ("cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png", "dog/b.png", "dog/c.png"):
        save(tmp_path / name)
    for made in ("run", "runs/folder-cifar", "cat/run"):
        save(tmp_path / made / "report" / "curves.png")
        for name in ("config.json", "metrics.jsonl"):
            (tmp_path / made / name).touch()
    save(tmp_path / "study" / "table.png")
    for name in ("study.json", "table.md"):
        (tmp_path / "study" / name).touch()
    assert data.load("folder", tmp_path, image_size=8).classes == ["cat", "dog"]
    assert "left out what this program made: cat/run, run, runs/folder-cifar, study" in caplog.text


def test_one_class_alone_is_refused(root):
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dog")
    with pytest.raises(DataError, match="has one class, cat: add a folder"):
        data.load("folder", root)


def test_a_class_that_the_test_split_lacks_is_told_and_the_others_are_measured(root, caplog):
    for path in (root / "test" / "dog").iterdir():
        path.unlink()
    loaded = data.load("folder", root, image_size=8)
    assert loaded.classes == ["cat", "dog"] and set(loaded.test.labels.tolist()) == {0}
    assert "no test images of dog, which stays unmeasured" in caplog.text


def test_labels_of_test_images_count_through_the_classes_of_each_checkpoint(root):
    for classes, labels in ((["cat", "dog"], [0, 1]), (["bird", "cat", "dog"], [1, 2]), (["cat", "dog"], [0, 1])):
        assert sorted(set(data.load_test("folder", root, 8, classes).labels.tolist())) == labels


def test_hidden_files_are_ignored_and_subfolders_are_read(root):
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    save(root / "train" / "cat" / "more" / "9.png")
    (root / "train" / ".cache").mkdir()
    assert len(data.load("folder", root, image_size=8).train) == 7


def test_links_to_folders_of_images_are_followed_but_not_in_circles(root):
    save(root.parent / "more" / "deep" / "9.png")
    for name, target in (("more", "../../../more"), ("again", "../../../more"), ("up", ".."), ("itself", ".")):
        (root / "train" / "cat" / name).symlink_to(target)
    (root.parent / "more" / "deep" / "back").symlink_to("..")
    assert len(data.load("folder", root, image_size=8).train) == 7


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_missing_root_or_split_says_what_layout_is_expected(root, missing):
    (root / missing).rename(root.parent / "away")
    with pytest.raises(DataError, match=r"train/<class>/\* and .*test/<class>/\*") as error:
        data.load("folder", root)
    assert missing in str(error.value) and "\n" not in str(error.value)


def test_images_without_class_folders_are_refused(tmp_path):
    save(tmp_path / "train" / "0.png"), save(tmp_path / "test" / "0.png")
    with pytest.raises(DataError, match="has no train images"):
        data.load("folder", tmp_path)


def test_pictures_outside_of_class_folders_are_told(root, caplog):
    for number in range(2):
        save(root / "train" / f"loose{number}.png")
    assert len(data.load("folder", root, image_size=8).train) == 6
    assert "left out 2 pictures that lie in no class folder: loose0.png, loose1.png" in caplog.text


def test_a_folder_beside_train_that_looks_like_a_split_is_named_as_it_must_be(root):
    save(root / "Valid" / "cat" / "0.png")
    with pytest.raises(DataError, match="Valid looks like a split and no class: call it val/"):
        data.load("folder", root, image_size=8)
    (root / "Valid").rename(root / "testing")  # there is test/
    assert len(data.load("folder", root, image_size=8).test) == 6
    (root / "test").rename(root / "val")  # which stands in for test/
    with pytest.raises(DataError, match="testing looks like a split and no class: call it test/"):
        data.load("folder", root, image_size=8)


def test_empty_class_folder_is_named(root):
    (root / "train" / "ant").mkdir()
    with pytest.raises(DataError, match="train/ant is empty"):
        data.load("folder", root)


def test_class_folders_that_differ_are_named(root):
    save(root / "test" / "cow" / "0.png")
    (root / "test" / "dog").rename(root / "test" / "hound")
    with pytest.raises(DataError, match="cow, hound in .* are among the test images and not in train/"):
        data.load("folder", root)


def test_unreadable_images_are_named_and_skipped_only_on_request(root, caplog):
    cut = root / "train" / "cat" / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    (root / "train" / "dog" / "notes.png").write_text("not an image")
    for _ in range(2):  # the second time from whatever the first left behind
        with pytest.raises(DataError, match=r"2 unreadable images: train/cat/cut.jpg \(.*truncated.*notes.png"):
            data.load("folder", root, image_size=8)
    for _ in range(2):
        caplog.clear()
        loaded = data.load("folder", root, image_size=8, skip_bad=True)
        assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 0, 0, 100, 100, 100]
        assert "left out 2 unreadable images: train/cat/cut.jpg" in caplog.text
    with pytest.raises(DataError, match="2 unreadable images"):
        data.load("folder", root, image_size=8)


def test_a_class_left_without_images_by_skipping_is_refused(root):
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="no readable image is left of train/dog"):
        data.load("folder", root, image_size=8, skip_bad=True)


def test_unknown_name_and_size_are_refused():
    with pytest.raises(DataError, match="unknown data set 'mnist': choose one of cifar10, cifar100, folder, shapes"):
        data.load("mnist")
    with pytest.raises(DataError, match="image size 0"):
        data.load("shapes", image_size=0)


# The cache


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)]
    equal = all(torch.equal(p.images, q.images) and torch.equal(p.labels, q.labels) for p, q in pairs)
    return equal and a.mean == b.mean and a.std == b.std


def test_second_load_comes_from_the_cache_and_is_equal(root, monkeypatch, cache_home):
    calls = count_decodes(monkeypatch)
    first = data.load("folder", root, image_size=8)
    assert len(calls) == 12 and len(list(cache_home.iterdir())) == 1
    assert same(first, data.load("folder", root, image_size=8)) and len(calls) == 12


def test_changed_bytes_another_place_or_another_size_miss_the_cache(root, monkeypatch):
    data.load("folder", root, image_size=8)
    calls = count_decodes(monkeypatch)
    path = root / "train" / "cat" / "0.bmp"
    for colour, count in ((98, 13), (99, 26)):  # both files have the same name and size: only their bytes differ
        save(path, (colour, 0, 0))
        assert data.load("folder", root, image_size=8).train.images[0, 0, 0, 0] == colour and len(calls) == count
    (root / "train" / "cat" / "2.png").rename(root / "train" / "dog" / "-.png")  # the same order, another class
    assert data.load("folder", root, image_size=8).train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] and len(calls) == 39
    data.load("folder", root, image_size=4)
    assert len(calls) == 52


def test_a_user_without_a_home_folder_is_told_where_the_cache_may_lie(root, monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIVIT_CACHE")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(DataError, match="no home folder for the cache of images: set MINIVIT_CACHE"):
        data.load("folder", root, image_size=8)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_cache_is_rebuilt_and_logged(root, cache_home, damage, caplog):
    first = data.load("folder", root, image_size=8)
    (cache,) = cache_home.iterdir()
    content = bytearray(cache.read_bytes())
    if damage == "flipped":  # one bit of one pixel
        content[content.index(first.train.images.numpy().tobytes())] ^= 1
    cache.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "foreign": b"hello"}[damage])
    assert same(first, data.load("folder", root, image_size=8)) and "is damaged" in caplog.text
    caplog.clear()
    assert same(first, data.load("folder", root, image_size=8)) and not caplog.text


def test_a_cache_write_that_fails_leaves_nothing_behind(root, cache_home, monkeypatch, caplog):
    def full_disk(stored, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    assert len(data.load("folder", root, image_size=8).train) == 6
    assert list(cache_home.iterdir()) == [] and "No space left" in caplog.text


def test_a_full_disk_that_torch_met_is_told_in_our_words(root, cache_home, monkeypatch, caplog):
    def full_disk(stored, path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1152 vs 1046")

    monkeypatch.setattr(torch, "save", full_disk)
    assert len(data.load("folder", root, image_size=8).train) == 6
    assert "the disk may be full" in caplog.text and "enforce" not in caplog.text


def test_a_cache_out_of_reach_costs_the_cache_alone(root, cache_home, monkeypatch, caplog):
    cache_home.mkdir()
    locked(cache_home, monkeypatch)
    assert len(data.load("folder", root, image_size=8).train) == 6
    assert "no cache written" in caplog.text and "damaged" not in caplog.text


def test_writers_at_the_same_time_agree(root, cache_home):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: data.load("folder", root, image_size=8), range(4)))
    assert all(same(loaded[0], other) for other in loaded[1:])
    assert [path.suffix for path in cache_home.iterdir()] == [".pt"]


# Hold-out and statistics


def small_dataset() -> Dataset:
    shuffle = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 70)[shuffle]
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 3, 2, 2).contiguous()
    return Dataset(Split(images, labels), Split(images[:1], labels[:1]), ["a", "b", "c"], (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    "amount, per_class", [(0.1, [1, 2, 7]), (10, [1, 2, 7]), (0.5, [5, 10, 35]), (13, [1, 3, 9]), (1, [0, 0, 1])]
)
def test_hold_out_is_stratified_and_disjoint_from_the_rest(amount, per_class):
    whole = small_dataset()
    held = splits.hold_out(whole, amount, seed=1)
    assert torch.bincount(held.val.labels, minlength=3).tolist() == per_class
    kept, out = held.train.images[:, 0, 0, 0].tolist(), held.val.images[:, 0, 0, 0].tolist()
    assert not set(kept) & set(out) and sorted(kept + out) == list(range(100))
    for split in (held.train, held.val):
        assert torch.equal(split.labels, whole.train.labels[split.images[:, 0, 0, 0].long()])
    assert held.test is whole.test and whole.val is None


def test_hold_out_follows_its_seed():
    first, again, other = (splits.hold_out(small_dataset(), 0.3, seed).val.images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("amount", [0, -0.1, 0.001, 0.96, 100, 1000])
def test_hold_out_that_empties_a_split_or_a_class_is_refused(amount):
    with pytest.raises(DataError, match="hold-out of .* from 100 training images"):
        splits.hold_out(small_dataset(), amount)


def test_a_subset_may_have_all_images_of_a_class():
    labels = torch.tensor([0] + [1] * 100)
    one = data.Dataset(
        *[data.Split(torch.zeros(101, 3, 2, 2, dtype=torch.uint8), labels)] * 2, ["a", "b"], (0,) * 3, (1,) * 3
    )
    assert torch.bincount(splits.subset(one, 90).train.labels).tolist() == [1, 89]


def test_classes_that_a_subset_loses_are_named(caplog):
    labels = torch.tensor([0, 1, 1, 1])
    one = data.Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), labels)
    whole = data.Dataset(one, one, ["a", "b"], (0,) * 3, (1,) * 3)
    part = data.Dataset(one, one[labels == 1], ["a", "b"], (0,) * 3, (1,) * 3)
    run.warn_of_lost(whole, part)
    assert "no test images of a: give a larger number" in caplog.text and "training" not in caplog.text
    caplog.clear()
    run.warn_of_lost(part, part)  # there was none before
    assert not caplog.text


def test_a_second_hold_out_is_refused():
    with pytest.raises(DataError, match="already has a validation split"):
        splits.hold_out(splits.hold_out(small_dataset(), 0.1), 0.1)


def test_images_of_one_colour_can_be_normalised():
    mean, std = splits.channel_stats(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,) * 3) and std == (1 / 255,) * 3


def test_channel_stats_equal_numpy():
    images = torch.randint(0, 256, (50, 3, 7, 7), dtype=torch.uint8)
    images[:, 1] //= 4
    mean, std = splits.channel_stats(images)
    pixels = images.double().numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-9)


# CIFAR


def write_cifar(root: Path, base: str, files: dict[str, int], label_key: str, meta: tuple[str, str], classes: int):
    """A tiny archive, unpacked, in CIFAR's layout: {file name: number of images}."""
    (root / base).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in files.items():
        entry = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), label_key: [i % classes for i in range(n)]}
        (root / base / name).write_bytes(pickle.dumps(entry))
    (root / base / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"class {i}" for i in range(classes)]}))


@pytest.fixture
def any_checksum(monkeypatch):
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda *args: True)


def test_cifar10_is_read_channels_first(tmp_path, any_checksum):
    files = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 6}
    write_cifar(tmp_path, "cifar-10-batches-py", files, "labels", ("batches.meta", "label_names"), 10)
    loaded = data.load("cifar10", tmp_path)
    assert loaded.train.images.shape == (20, 3, 32, 32) and loaded.test.images.shape == (6, 3, 32, 32)
    assert loaded.train.labels.tolist() == [0, 1, 2, 3] * 5 and loaded.classes[9] == "class 9"
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    assert np.array_equal(loaded.test.images.flatten(1), raw)  # CIFAR stores all red, then green, then blue
    assert loaded.mean == (0.4914, 0.4822, 0.4465) and loaded.std == (0.2470, 0.2435, 0.2616)
    larger = data.load("cifar10", tmp_path, image_size=48).test
    assert larger.images.shape == (6, 3, 48, 48) and larger.images.dtype == torch.uint8


def test_cifar100_gives_the_fine_labels(tmp_path, any_checksum):
    files = {"train": 100, "test": 5}
    write_cifar(tmp_path, "cifar-100-python", files, "fine_labels", ("meta", "fine_label_names"), 100)
    loaded = data.load("cifar100", tmp_path)
    assert loaded.train.labels.tolist() == list(range(100)) and len(loaded.classes) == 100
    assert loaded.mean == (0.5071, 0.4865, 0.4409)


@pytest.mark.parametrize("state", ["missing", "damaged"])
@pytest.mark.parametrize(
    "name, size, md5", [("cifar10", "170,498,071", "c58f3010"), ("cifar100", "169,001,437", "eb9058c3")]
)
def test_cifar_out_of_reach_names_file_url_size_md5_and_alternative(tmp_path, monkeypatch, name, size, md5, state):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    archive = tmp_path / f"cifar-{name[5:]}-python.tar.gz"
    if state == "damaged":
        archive.write_bytes(b"truncated")
    with pytest.raises(DataError) as error:
        data.load(name, tmp_path)
    message = str(error.value)
    for part in (str(archive), state, "no route to host", f"kriz/{archive.name}", size, md5, "--data shapes"):
        assert part in message
    assert "\n" not in message


def test_a_server_that_sends_nothing_is_not_waited_for(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz")
        monkeypatch.setattr(data, "PATIENCE", 0.2)
        with pytest.raises(DataError, match="could not be downloaded .*timed out"):
            data.load("cifar10", tmp_path / "new")
    assert not (tmp_path / "new").exists() and socket.getdefaulttimeout() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_one_process_at_a_time_downloads_into_a_folder(tmp_path, capsys):
    entered, order = threading.Event(), []

    def other() -> None:
        entered.set()
        with data._alone(tmp_path):
            order.append("other")

    claim = Claim(tmp_path)  # of a run whose --out is the folder of its data: another lock
    with data._alone(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait(10), time.sleep(0.2)
        order.append("first")
    thread.join(10)
    claim.release()
    assert order == ["first", "other"] and f"another process downloads into {tmp_path}" in capsys.readouterr().out


# Shapes


def test_shapes_follow_their_seed_and_have_equal_classes():
    first, again, other = (data.shapes(seed, 200, 100) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first.train.images, other.train.images)
    assert torch.bincount(first.train.labels).tolist() == [20] * 10 and len(set(first.classes)) == 10
    assert first.train.images.shape == (200, 3, 32, 32) and first.train.images.dtype == torch.uint8


def test_shapes_test_images_are_new_and_do_not_depend_on_the_training_images():
    short, long = data.shapes(0, 100, 100), data.shapes(0, 300, 100)
    assert torch.equal(short.test.images, long.test.images)
    for loaded in (short, long):  # the short one has two splits of one length
        seen = {image.numpy().tobytes() for image in loaded.train.images}
        assert not any(image.numpy().tobytes() in seen for image in loaded.test.images)


def test_shapes_are_drawn_at_any_size_with_the_same_area():
    axis = {size: (torch.arange(size) + 0.5) * (2 / size) - 1 for size in (32, 128)}
    area = {}
    for size, x in axis.items():
        v, u = torch.meshgrid(x, x, indexing="ij")
        distance = shapes._distance(u.expand(5, size, size), v.expand(5, size, size), torch.arange(5))
        area[size] = shapes._coverage(distance, torch.ones(5, 1, 1), size).mean((1, 2)) * 4
    overlap = 0.15 * (0.4**2 - 0.15**2) ** 0.5 + 0.4**2 * math.asin(0.15 / 0.4)  # of a disc's half with the bar
    dumbbell = 2 * (math.pi * 0.4**2 + 0.55 * 0.3 - overlap)
    cross, triangle, ring = 4 * (2 * 0.95 * 0.3) - 0.6**2, 3 * 3**0.5 * 0.5**2, math.pi * (0.95**2 - 0.45**2)
    exact = [math.pi * 0.9**2, dumbbell, triangle, cross, ring]
    assert torch.allclose(area[128], torch.tensor(exact), rtol=0.01)
    assert torch.allclose(area[32], area[128], rtol=0.02)
    assert data.shapes(0, 10, 10, image_size=57).train.images.shape == (10, 3, 57, 57)


def test_too_few_shapes_are_refused():
    with pytest.raises(DataError, match="5 generated images are too few"):
        data.shapes(0, 100, 5)


def test_a_linear_model_stays_below_60_percent_on_shapes():
    loaded = data.shapes(0, 3000, 1000)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (loaded.mean, loaded.std))
    x, unseen = (((part.images / 255 - mean) / std).flatten(1) for part in (loaded.train, loaded.test))
    torch.manual_seed(0)
    model = torch.nn.Linear(3072, 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(300):
        batch = torch.randint(0, len(x), (100,))
        loss = torch.nn.functional.cross_entropy(model(x[batch]), loaded.train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model(unseen).argmax(1) == loaded.test.labels).float().mean().item()
    assert (model(x).argmax(1) == loaded.train.labels).float().mean() > 0.25  # it did learn its training images
    assert accuracy < 0.60


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
def test_every_kind_of_picture_is_read_as_the_table_of_both_packages_says(case: Case, tmp_path):
    path = tmp_path / f"a.{case.suffix}"
    case.write(path)
    if case.expected is None:
        with pytest.raises(DataError, match=f"a.{case.suffix}: .*{case.refusal}"):
            read_image(path, SIDE)
    else:
        assert np.array_equal(read_image(path, SIDE).permute(1, 2, 0).numpy(), case.expected)


def test_pages_and_frames_that_are_left_out_are_counted_and_named_each_time(root, caplog):
    pages = [Image.new("RGB", (8, 8), (0, 0, level)) for level in (0, 90)]
    for name in ("scan.tif", "film.gif"):
        pages[0].save(root / "train" / "cat" / name, save_all=True, append_images=pages[1:])
    for _ in range(2):  # decoded, then read from the cache
        assert len(folder.load(root, 8).train) == 8
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "2 files have several pages or frames, of which only the first is read: train/cat/film.gif, train/cat/scan.tif"
    ] * 2


def test_a_heic_picture_is_refused_with_the_way_out():
    path = Path(__file__).parent / "cases" / "heic" / "IMG_0001.HEIC"
    with pytest.raises(DataError, match="HEIC is not supported: convert it to JPEG"):
        read_image(path, 32)


# Files from elsewhere


def test_files_that_are_no_images_are_left_out_with_a_count_in_one_line(root, caplog):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "notes.txt", "README", "film.mp4"):
        (root / "train" / "cat" / name).write_bytes(b"no image")
    save(root / "train" / "__MACOSX" / "0.png"), save(root / "train" / "dog" / "__MACOSX" / "0.png")
    (root / "train" / "dog" / "nameless").write_bytes((root / "train" / "dog" / "0.png").read_bytes())
    loaded = data.load("folder", root, image_size=8)
    assert loaded.classes == ["cat", "dog"] and loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "left out 5 files that are no images: train/cat/README, train/cat/Thumbs.db, train/cat/desktop.ini, "
        "train/cat/film.mp4, train/cat/notes.txt"
    ]
    for path in (root / "test" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
        path.with_suffix(".txt").write_text("words")
    with pytest.raises(DataError, match=r"test/dog holds no images, only 0.txt, 1.txt, 2.txt: put images there"):
        data.load("folder", root, image_size=8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs the file types of Unix")
def test_pipes_devices_and_links_to_nothing_are_told_and_not_waited_for(root):
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    os.mkfifo(root / "train" / "cat" / "pipe")
    (root / "train" / "cat" / "zero.png").symlink_to("/dev/zero")
    (root / "train" / "dog" / "nothing.png").symlink_to("nowhere.png")
    reasons = r"pipe.png \(no regular file\), .*zero.png \(no regular file\), .*nothing.png \(No such file"
    with pytest.raises(DataError, match=rf"3 unreadable images: train/cat/{reasons}"):
        data.load("folder", root, image_size=8)
    assert len(data.load("folder", root, image_size=8, skip_bad=True).train) == 6
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(DataError, match=f"cannot read .*{name}: no regular file"):
            read_image(root / "train" / "cat" / name, 8)


def test_no_program_is_run_for_an_image_and_none_is_larger_than_segments(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: pytest.fail("a program was started"))
    for name, content in damage.misled(b""):
        if name.endswith(("png", "eps")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match="not an image that Pillow reads"):
                read_image(tmp_path / name, 8)
    for name, content in damage.enormous((save(tmp_path / "good.png")).read_bytes()):
        (tmp_path / name).write_bytes(content)
        with contextlib.suppress(DataError):  # all but two, whose other chunks alone are damaged
            read_image(tmp_path / name, 8)
    with pytest.raises(DataError, match="20000x5000.png: more than 89478485 pixels: make it smaller"):
        read_image(tmp_path / "20000x5000.png", 8)
    monkeypatch.setattr(minivit_images, "MAX_BYTES", 50)
    with pytest.raises(DataError, match="cannot read .*good.png: more than 50 bytes"):
        read_image(tmp_path / "good.png", 8)
    assert (
        not recwarn.list and minivit_images.MAX_PIXELS == limits.MAX_PIXELS and minivit_images.FORMATS == images.FORMATS
    )
    assert minivit_images.SUFFIXES == images.IMAGE_SUFFIXES


def test_names_in_any_encoding_and_of_any_letters_are_read(root):
    names = [b"caf\xe9", "\u732b".encode(), b"a|b", b"\x1b[31mred", b"<b>", b"two\nlines", b"$x$"]
    try:
        for name in names:
            for split in ("train", "test"):
                save(root / split / "place.png")
                os.makedirs(os.fsencode(root / split) + b"/" + name)
                os.rename(root / split / "place.png", os.fsencode(root / split) + b"/" + name + b"/x" + name + b".png")
    except OSError:
        pytest.skip("this file system takes no such names")
    for _ in range(2):  # the second time from the cache
        loaded = data.load("folder", root, image_size=8)
        assert sorted(loaded.classes) == sorted([*map(os.fsdecode, names), "cat", "dog"])


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("train_set", "VALIDATION")])
def test_folders_that_are_called_almost_as_splits_are_not_taken_for_classes(names, tmp_path):
    for name in names:
        for label in ("cat", "dog"):
            save(tmp_path / name / label / "a.png")
    with pytest.raises(DataError, match="looks like a split and no class: call it (train|test|val)/"):
        data.load("folder", tmp_path, image_size=8)


def test_classes_that_are_called_as_splits_and_hold_images_are_classes(tmp_path):
    for name in ("Test", "Training"):
        for number in range(3):
            save(tmp_path / name / f"{number}.png")
    assert data.load("folder", tmp_path, image_size=8).classes == ["Test", "Training"]


def test_generated_test_images_are_the_same_scenes_at_every_size():
    count = 1100  # in more than two parts
    full = data.shapes(0, 10, count, image_size=32).test.images.float()
    small = data.shapes(0, 10, count, image_size=16).test.images.float()
    pooled = torch.nn.functional.avg_pool2d(full, 2)
    assert (pooled - small).abs().mean((1, 2, 3)).max() < 30  # other scenes: about 96
