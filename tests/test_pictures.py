"""Pictures as people have them: depths, alpha, pages, HEIC, masks, folders, views of arrays."""

import io
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from helpers.commands import command, lines
from helpers.picture_cases import CASES as TABLE
from helpers.picture_cases import Case, png_of_16_bits
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue import Clicks, load_models, segment_image, segment_video
from minisam_glue.media import MediaError, expand_inputs, frames, heif, is_moving, read_image, read_masks
from minisam_glue.media.images import is_picture, page_count
from minisam_glue.media.sources import SAMPLES
from minisam_glue.pixels import to_rgb

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_every_kind_of_picture_is_read_as_the_table_says_or_refused_by_name(case: Case, tmp_path):
    path = tmp_path / f"a.{case.suffix}"
    case.write(path)
    if case.expected is None:
        with pytest.raises(MediaError, match=f"a.{case.suffix}: .*{case.refusal}"):
            read_image(path)
    else:
        assert np.array_equal(read_image(path), case.expected)


def grey_page(peak: int) -> np.ndarray:
    """uint16 (24, 32) of 800, with a square of another value."""
    page = np.full((24, 32), 800, np.uint16)
    page[8:16, 8:16] = peak
    return page


@pytest.mark.parametrize("kind", ["grey", "colours", "stack"])
@pytest.mark.parametrize("peaks", [(4000, 4095, 4096, 4200), (4200, 4100, 4095, 4000), (900, 2100, 4000, 3900)])
def test_one_scale_serves_all_pictures_of_more_than_8_bits_of_one_source(kind, peaks, tmp_path):
    source, pages = tmp_path / "in", [grey_page(peak) for peak in peaks]
    if kind == "stack":
        first, *others = map(Image.fromarray, pages)
        first.save(source, "TIFF", save_all=True, append_images=others)
    else:
        source.mkdir()
        for number, page in enumerate(pages):
            png_of_16_bits(np.repeat(page[..., None], 1 if kind == "grey" else 3, 2))(source / f"{number}.png")
    bits = 14 if max(peaks) > 4095 else 12
    values = [np.uint16(page) >> 8 << 8 if kind == "colours" else page for page in pages]
    white = (2**bits - 1) >> 8 << 8 if kind == "colours" else 2**bits - 1
    expected = [page.astype(int) * 255 // white for page in values]
    clip = frames(source)
    assert [image[..., 0].tolist() for image in clip] == [page.tolist() for page in expected]
    assert np.array_equal(clip[2][..., 0], expected[2])


def test_what_is_brighter_than_all_samples_of_a_source_is_clipped(tmp_path):
    peaks = [1000] * 2 * SAMPLES
    peaks[2] = 2000  # between two samples
    for number, peak in enumerate(peaks):
        Image.fromarray(grey_page(peak)).save(tmp_path / f"{number}.png")
    pictures = list(frames(tmp_path))
    assert {int(image[0, 0, 0]) for image in pictures} == {800 * 255 // 1023}
    assert [int(image[10, 10, 0]) for image in pictures] == [min(peak * 255 // 1023, 255) for peak in peaks]


def test_a_pipe_of_more_than_8_bits_keeps_the_widest_scale_so_far(monkeypatch):
    data = io.BytesIO()
    for peak in (4095, 4096, 4095, 4096):
        Image.fromarray(grey_page(peak)).save(data, "PNG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.getvalue())))
    assert [int(image[0, 0, 0]) for image in frames("-")] == [800 * 255 // 4095] + [800 * 255 // (2**14 - 1)] * 3


# --- Views of arrays -----------------------------------------------------------------------------------------------


def scene() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


VIEWS = {
    "reversed channels": lambda p: np.ascontiguousarray(p[..., ::-1])[..., ::-1],
    "upside down": lambda p: np.ascontiguousarray(p[::-1])[::-1],
    "read-only": read_only,
    "in Fortran's order": np.asfortranarray,
    "every second pixel": lambda p: np.repeat(np.repeat(p, 2, 0), 2, 1)[::2, ::2],
    "uint16, high byte first": lambda p: (p.astype(">u2") * 257).astype(">u2"),
    "channels first": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_arrays_are_the_pictures_that_they_show(name, recwarn):
    view, models = VIEWS[name](scene()), tiny_models()
    plain = to_rgb(view)
    assert np.array_equal(plain, scene()) and plain.flags.c_contiguous and plain.dtype == np.uint8
    expected = segment_image(models, scene(), Clicks(boxes=[[4, 4, 20, 20]]))
    found = segment_image(models, view, Clicks(boxes=[[4, 4, 20, 20]]))
    assert np.array_equal(found.masks, expected.masks) and np.array_equal(found.annotated(), expected.annotated())
    [frame] = segment_video(models, [view], Clicks(boxes=[[4, 4, 20, 20]]))
    [plain_frame] = segment_video(models, [scene()], Clicks(boxes=[[4, 4, 20, 20]]))
    assert np.array_equal(frame.masks, plain_frame.masks) and not recwarn.list


def test_views_can_be_prompts(recwarn):
    models, image = tiny_models(), scene()
    mask = np.zeros((24, 32), bool)
    mask[4:20, 6:18] = True
    expected = segment_image(models, image, Clicks(boxes=[[4, 4, 20, 20]], masks=[mask])).masks
    box = read_only(np.array([[20.0, 20.0, 4.0, 4.0]], ">f8"))[:, ::-1]
    turned = read_only(np.asfortranarray(mask[::-1]))[::-1]
    assert np.array_equal(segment_image(models, image, Clicks(boxes=box, masks=[turned])).masks, expected)
    assert not recwarn.list


def test_four_channels_are_colours_and_alpha_and_others_are_refused():
    page = np.full((4, 4, 4), 200, np.uint8)
    page[..., 3] = 0
    assert (to_rgb(page) == 255).all() and (to_rgb(page.astype(np.uint16) * 257) == 255).all()
    arrays = (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int64), np.zeros((4, 4, 2), np.uint8))
    for wrong in (*arrays, None, b"", "a"):
        with pytest.raises(ValueError, match="an image"):
            to_rgb(wrong)


# --- HEIC ----------------------------------------------------------------------------------------------------------


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_a_heic_grid_is_one_picture():
    path = CASES / "heic" / "iphone_grid.heic"
    picture, truth = read_image(path), read_image(CASES / "heic" / "truth.jpg")
    assert picture.shape == (512, 512, 3) and difference(picture, truth) < 3
    assert not is_moving(path) and is_picture(path)
    [frame] = frames(path)
    assert np.array_equal(frame, picture)


def test_a_heic_of_one_tile_is_a_picture_and_gets_a_picture_s_outputs(tmp_path):
    source = CASES / "heic" / "IMG_0001.HEIC"
    assert read_image(source).shape == (192, 256, 3)
    assert command(source, "bright.", "--out", tmp_path, "--quiet") == 0
    names = {path.name for path in (tmp_path / "IMG_0001").iterdir()}
    assert names == {"annotated.png", "masks", "result.json"}


def test_heic_is_read_whatever_its_name_and_damage_is_one_line(tmp_path):
    data = (CASES / "heic" / "iphone_grid.heic").read_bytes()
    (tmp_path / "photo.jpg").write_bytes(data)
    assert read_image(tmp_path / "photo.jpg").shape == (512, 512, 3)
    rng = np.random.default_rng(0)
    for trial in range(60):
        spoiled = bytearray(data)
        for at in rng.integers(0, 1200, 4):
            spoiled[at] ^= 1 << rng.integers(8)
        cut = len(data) if trial % 3 else int(rng.integers(100, len(data)))
        (tmp_path / "a.heic").write_bytes(spoiled[:cut])
        try:
            assert read_image(tmp_path / "a.heic").ndim == 3
        except MediaError as error:
            assert "a.heic: " in str(error) and "\n" not in str(error)
    for part in (b"hvcC", b"ipco"):
        (tmp_path / "a.heic").write_bytes(data.replace(part, b"none"))
        with pytest.raises(MediaError, match=r"a.heic: damaged \(KeyError\)$"):
            read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("sizes, count, length", [(0x0000, 65535, 0), (0x4400, 9, 8)])
def test_a_heic_that_claims_more_than_its_bytes_is_refused_at_once(sizes, count, length, tmp_path):
    def box(kind: bytes, *content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(b"".join(content)), kind) + b"".join(content)

    entry = box(b"infe", struct.pack(">IHH", 2 << 24, 1, 0), b"grid")
    places = struct.pack(">IHHHHH", 0, sizes, 1, 1, 0, count)
    places += bytes(count * length)  # an item in so many pieces, each from the beginning to the end of the file
    parts = box(b"pitm", struct.pack(">IH", 0, 1)), box(b"iinf", struct.pack(">IH", 0, 1), entry), box(b"iloc", places)
    meta = box(b"meta", bytes(4), *parts, box(b"iprp", box(b"ipco")))
    (tmp_path / "a.heic").write_bytes(box(b"ftyp", b"heic", bytes(4)) + meta)
    with pytest.raises(MediaError, match="a.heic: damaged: (pieces of a picture without a place|a picture is longer)"):
        read_image(tmp_path / "a.heic")


def test_a_tile_that_a_heic_names_often_is_decoded_once_and_tiles_beyond_all_bounds_are_not(tmp_path, monkeypatch):
    decode, decoded = heif._File._decoded, []
    monkeypatch.setattr(heif._File, "_decoded", lambda self, item: decoded.append(item) or decode(self, item))
    data = (CASES / "heic" / "iphone_grid.heic").read_bytes()
    named, once = (struct.pack(">4s6H", b"dimg", 5, 4, *tiles) for tiles in ((1, 2, 3, 4), (1, 1, 1, 1)))
    assert data.count(named) == 1
    first, again = heif.read_heif(data), heif.read_heif(data.replace(named, once))
    assert decoded == [1, 2, 3, 4, 1]
    assert np.array_equal(again, np.tile(first[:256, :256], (2, 2, 1)))
    size = struct.pack(">HBBHH", 0, 1, 1, 512, 512)
    small = data.replace(size, struct.pack(">HBBHH", 0, 1, 1, 4, 4))
    assert data.count(size) == 1 and heif.read_heif(small).shape == (4, 4, 3)
    monkeypatch.setattr(heif, "MAX_PIXELS", 256 * 256)
    decoded.clear()
    with pytest.raises(MediaError, match="damaged: tiles of far more than 4x4 pixels"):
        heif.read_heif(small)
    assert decoded == [1, 2, 3]


def test_a_heic_without_pyav_says_what_to_do():
    path = CASES / "heic" / "IMG_0001.HEIC"
    program = (
        "import sys; sys.modules['av'] = None\n"
        "from minisam_glue.media import MediaError, read_image\n"
        f"try: read_image({str(path)!r})\n"
        "except MediaError as error: assert '[cli]' in str(error) and 'IMG_0001.HEIC' in str(error), error\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CASES.parent.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Pages, masks, folders -----------------------------------------------------------------------------------------


def test_pages_that_are_left_out_are_counted_and_frames_takes_them_all(tmp_path, capsys):
    stack, told = CASES / "pictures" / "stack.tif", []
    first = read_image(stack, told.append)
    assert len(told) == 1 and "5 pages" in told[0] and "4 left out" in told[0] and not is_moving(stack)
    film = list(frames(stack))
    assert len(film) == 5 and np.array_equal(film[0], first)
    assert command(stack, "bright.", "--out", tmp_path / "one", "--quiet") == 0
    assert "stack.tif: the first of 5 pages is read, 4 left out" in capsys.readouterr().err
    assert command(stack, "bright.", "--out", tmp_path / "all", "--quiet", "--frames", "--fps", "4") == 0
    records = lines(tmp_path / "all" / "stack" / "result.jsonl")
    assert [record["time"] for record in records] == [0, 0.25, 0.5, 0.75, 1] and not capsys.readouterr().err


def test_a_palette_mask_has_one_object_for_each_colour():
    first, second = read_masks(CASES / "masks" / "davis.png")
    [one] = read_masks(CASES / "masks" / "mask.png")
    assert np.array_equal(first, one) and second.sum() == 2652 and not (first & second).any()


def test_the_alpha_of_a_mask_is_its_shape():
    [shape], [one] = (read_masks(CASES / "masks" / name) for name in ("alpha-mask.png", "mask.png"))
    assert np.array_equal(shape, one)


def palette(numbers: np.ndarray, colours: list[int], path: Path, **options) -> Path:
    image = Image.frombytes("P", numbers.shape[::-1], numbers.astype(np.uint8).tobytes())
    image.putpalette(colours)
    image.save(path, **options)
    return path


def test_a_mask_file_gives_an_object_for_each_colour_but_the_background_and_void(tmp_path):
    numbers = np.arange(12).reshape(3, 4) % 4
    found = read_masks(palette(numbers, [0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 0, 0], tmp_path / "twice.png"))
    assert [mask.tolist() for mask in found] == [np.isin(numbers, (1, 3)).tolist(), (numbers == 2).tolist()]
    colours = [9] * 3 + [255, 0, 0, 0, 255, 0, 1, 1, 1]
    found = read_masks(palette(numbers, colours, tmp_path / "hole.png", transparency=0))
    assert [mask.tolist() for mask in found] == [(numbers == n).tolist() for n in (1, 2, 3)]
    void = [0, 0, 0, 128, 0, 0] + [0] * 759 + [224, 224, 192]
    [found] = read_masks(palette(np.where(numbers == 2, 255, numbers == 1), void, tmp_path / "voc.png"))
    assert np.array_equal(found, numbers == 1)
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "labels.png")
    [found] = read_masks(tmp_path / "labels.png")  # too few to be seen as grey, and a shape all the same
    assert np.array_equal(found, numbers > 0)
    Image.fromarray(np.dstack([np.full((3, 4), 255, np.uint8)] * 4)).save(tmp_path / "opaque.png")
    assert read_masks(tmp_path / "opaque.png")[0].all()
    many = palette(np.arange(256).reshape(16, 16), list(range(1, 256)) * 3 + [0] * 3, tmp_path / "photo.png")
    with pytest.raises(MediaError, match="photo.png: .* colours: a mask has one for each object"):
        read_masks(many)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("quality", [75, 90])
def test_a_mask_does_not_grow_by_the_noise_of_its_compression(kind, quality, tmp_path):
    rows, columns = np.mgrid[:200, :200]
    disc = (rows - 100) ** 2 + (columns - 90) ** 2 < 50**2
    Image.fromarray(disc.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "mask", kind, quality=quality)
    assert (np.asarray(Image.open(tmp_path / "mask")).any(2) & ~disc).sum() > 500
    [found] = read_masks(tmp_path / "mask")
    assert not (disc & ~found).any() and (found & ~disc).sum() < 5


def test_a_palette_mask_becomes_two_objects_and_an_alpha_mask_one(tmp_path):
    for mask, count in (("davis.png", 2), ("alpha-mask.png", 1)):
        words = (CASES / "masks" / "a.png", "--mask", CASES / "masks" / mask, "--out", tmp_path / mask, "--quiet")
        assert command(*words) == 0
        found = json.loads((tmp_path / mask / "a" / "result.json").read_text())["objects"]
        assert [o["id"] for o in found] == list(range(1, count + 1))


PHOTOS = ("a.jpg", "b.JFIF", "c.jpe", "d.PNG", "e.HEIC", "scan")
FILMS = ("f.3gp", "g.MTS", "h.m2ts", "i.h264", "j.MP4", "film.bin")


def fill(folder: Path) -> list[str]:
    """A folder of files that work when they are named, under the endings that people's files have."""
    (folder / "old").mkdir(parents=True)
    Image.fromarray(scene()).save(folder / "old" / "x.png")
    (folder / "notes.txt").write_text("none")
    (folder / "song.mp3").write_bytes(b"ID3" + bytes(100))
    (folder / ".hidden").write_text("none")
    for name in PHOTOS + FILMS:
        suffix = Path(name).suffix.lower()
        if suffix in (".jpg", ".jfif", ".jpe", ".png", ""):
            Image.fromarray(scene()).save(folder / name, "PNG" if suffix == ".png" else "JPEG")
        elif suffix == ".heic":
            (folder / name).write_bytes((CASES / "heic" / "IMG_0001.HEIC").read_bytes())
        else:
            kind = {".mts": "mpegts", ".m2ts": "mpegts", ".h264": "h264", ".3gp": "3gp"}.get(suffix, "mp4")
            clip(folder / name, kind)
    return [*PHOTOS, *FILMS]


def clip(path: Path, kind: str) -> None:
    with av.open(str(path), "w", format=kind) as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(scene(), format="rgb24")))
        output.mux(stream.encode(None))


def test_what_works_when_named_works_in_a_folder_and_the_rest_is_counted_and_named(tmp_path):
    names, told = fill(tmp_path / "in"), []
    found = expand_inputs([str(tmp_path / "in")], told.append)
    assert sorted(Path(path).name for path in found) == sorted(names)
    for path in found:
        assert len(list(frames(path))) == 3 if is_moving(path) else read_image(path).ndim == 3
    assert len(told) == 1 and "3 left out" in told[0]
    assert all(name in told[0] for name in ("notes.txt", "song.mp3", "old/")) and "hidden" not in told[0]


def test_the_command_line_says_what_it_leaves_out_of_a_folder(tmp_path, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(scene()).save(tmp_path / "in" / "a.JPE", "JPEG")
    for number in range(7):
        (tmp_path / "in" / f"{number}.txt").write_text("none")
    for words in ((), ("--frames", "--format", "gif")):
        assert command(tmp_path / "in", "bright.", "--out", tmp_path / "out", "--quiet", *words) == 0
        [line] = capsys.readouterr().err.splitlines()
        assert "8 left out" in line and "0.txt" in line and "and 3 more" in line and line.startswith("warning: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs the file types of Unix")
def test_pipes_and_devices_are_no_pictures_and_are_not_waited_for(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(scene()).save(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    for read in (expand_inputs, lambda paths, warn: frames(paths[0], warn=warn)):
        told = []
        read([str(tmp_path / "in")], told.append)
        assert len(told) == 1 and "2 left out" in told[0] and "pipe.png, zero.png" in told[0]
    for name in ("pipe.png", "zero.png"):
        for read in (read_image, read_masks):
            with pytest.raises(MediaError, match=f"{name}: it is no regular file"):
                read(tmp_path / "in" / name)
        for read in (frames, lambda path: expand_inputs([path])):
            with pytest.raises(MediaError, match=f"{name}: it is no regular file; .* come by - on standard input"):
                read(str(tmp_path / "in" / name))
    assert page_count(tmp_path / "in" / "pipe.png") == 1


def test_a_folder_with_nothing_says_what_is_there_instead(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(MediaError, match="no pictures or videos in this folder, only sub/"):
        expand_inputs([str(tmp_path)])


def test_a_folder_of_thousands_of_pictures_is_listed_at_once(tmp_path):
    for number in range(6000):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "notes.txt").touch()
    begun, told = time.process_time(), []
    assert len(expand_inputs([str(tmp_path)], told.append)) == 6000 and "1 left out" in told[0]
    assert time.process_time() - begun < 2


# --- With the demo's weights, on the pictures of tests/cases --------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return load_models("demo")


@pytest.mark.parametrize(
    "name,labels",
    [
        ("sixteen.tif", ["circle", "square"]),
        ("twelve.tif", ["circle", "square"]),
        ("sticker.png", ["circle"]),
        ("hidden.png", ["circle"]),  # and not the square, which is under an alpha of 0
    ],
)
def test_the_demo_s_detector_finds_what_one_sees(name, labels, demo):
    found = segment_image(demo, read_image(CASES / "pictures" / name), "circle. square.")
    assert sorted(o.label for o in found.objects) == labels


def test_the_demo_s_detector_finds_the_same_in_a_heic_grid_as_in_its_truth(demo):
    grid, truth = (
        segment_image(demo, read_image(CASES / "heic" / name), "circle. square. triangle. star.")
        for name in ("iphone_grid.heic", "truth.jpg")
    )
    assert [o.label for o in grid.objects] == [o.label for o in truth.objects] and len(grid.objects) == 4
    assert np.abs(grid.boxes - truth.boxes).max() < 4
