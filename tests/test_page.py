"""The page of a picture: read back with the standard library's HTML parser and Pillow."""

import errno
import hashlib
import io
import re
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from minisam_glue.records import Segment, Segmented
from minisam_glue.render.film_page import MOST, FilmPage
from minisam_glue.render.index_page import Entry, check_index, write_index
from minisam_glue.render.overlay import OPACITY, colour_of
from minisam_glue.render.page import LONGEST_SIDE, write_page
from minisam_glue.support.text import one_line

HEIGHT, WIDTH = 60, 80
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</section></main>",
    "R&amp;D & 'more'",
    "{title}",
    "two\nlines",
    "قطة",
    "\x07\x1b[31m",
    "\udcff",
    "",
]


class Page(HTMLParser):
    """All elements as (tag, attributes), the text inside each <bdi>, and whether every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.labels, self.open, self.balanced = [], [], [], True
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "bdi":
            self.labels.append("")
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "bdi":
            self.labels[-1] += data

    def all(self, tag, **wanted):
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key.replace("_", "-")) == value for key, value in wanted.items())
        ]


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def record(number: int, label: str = "thing", score: float | None = 0.5) -> SimpleNamespace:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = (y - 9 * number % HEIGHT) ** 2 + (x - 17 * number % WIDTH) ** 2 < 90
    return SimpleNamespace(id=number, label=label, score=score, box=(4.0, 6.0, 20.0, 36.0), mask=mask)


def written(path, records, image=None) -> tuple[str, Page]:
    write_page(path, picture() if image is None else image, records)
    text = path.read_text("utf-8")
    return text, Page(text)


def pixels(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(b64decode(data, validate=True)))


def layer_mask(text: str, layer: dict) -> np.ndarray:
    """What a layer covers of the picture, from its place in per cent and its PNG."""
    left, top, width, height = (
        float(re.search(rf"{side}: ([\d.]+)%", layer["style"])[1]) / 100 for side in ("left", "top", "width", "height")
    )
    uri = re.search(rf'id="{layer["id"]}"[^>]*><img alt="" src="([^"]+)"', text)[1]
    inside = np.asarray(pixels(uri).convert("RGBA"))
    assert inside.shape[:2] == (round(height * HEIGHT), round(width * WIDTH))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    y, x = round(top * HEIGHT), round(left * WIDTH)
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside[..., 3] > 0
    return mask


def test_every_object_has_a_toggle_and_a_layer_that_decodes_to_its_mask(tmp_path):
    records = [record(number) for number in range(1, 12)]
    text, page = written(tmp_path / "a.html", records)
    toggles = page.all("input", type="checkbox")
    assert page.balanced and not page.open and len(toggles) == len(records) and all("checked" in t for t in toggles)
    for toggle, item in zip(toggles, records):
        [layer] = page.all("div", id=toggle["data-layer"])
        assert np.array_equal(layer_mask(text, layer), item.mask)
        assert "--colour: rgb({}, {}, {});".format(*colour_of(item.id)) in layer["style"]
    assert len(page.all("label")) == len(records) and page.labels == ["thing"] * len(records)
    assert page.all("button", id="all") and page.all("button", id="none") and "11 of 11" in text


def test_a_layer_is_tinted_inside_and_solid_at_its_edge(tmp_path):
    text, page = written(tmp_path / "a.html", [record(1)])
    inside = np.asarray(pixels(page.all("img")[1]["src"]).convert("RGBA"))
    assert set(np.unique(inside[..., 3])) == {0, OPACITY, 255}
    middle = inside[inside.shape[0] // 2]
    assert middle[0].tolist() == [*colour_of(1), 255] and middle[len(middle) // 2].tolist() == [*colour_of(1), OPACITY]


def test_the_picture_is_inside_and_nothing_outside_is_referred_to(tmp_path):
    text, page = written(tmp_path / "a.html", [record(1)])
    shown = np.asarray(pixels(page.all("img")[0]["src"]))
    assert shown.shape == (HEIGHT, WIDTH, 3) and np.abs(shown.mean((0, 1)) - picture().mean((0, 1))).max() < 3
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "a")
        assert not {"href", "srcset", "action", "data", "background"} & attrs.keys()
        assert attrs.get("src", "data:").startswith("data:")
    assert "//" not in text.replace(";base64,", "\n").split("<style>")[1].split("</style>")[0] and "url(" not in text
    assert "import" not in re.sub(r"base64,[^\"]+", "", text)


def test_labels_are_text_and_never_markup(tmp_path):
    records = [record(number, label) for number, label in enumerate(NASTY, 1)]
    text, page = written(tmp_path / 'a<b>&"c".html', records)
    shown = [" ".join(label.split()) for label in NASTY]
    shown[7:9] = ["\\x07\\x1b[31m", "\\udcff"]
    assert page.labels == shown and page.balanced and not page.open
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1 + len(records)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.all("img")[0]["alt"] == 'a<b>&"c"'


def test_only_the_script_of_the_page_may_run(tmp_path):
    text, page = written(tmp_path / "a.html", [])
    script = text.split("<script>")[1].split("</script>")[0]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = page.all("meta", http_equiv="Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy["content"] and "default-src 'none'" in policy["content"]


def test_an_empty_mask_shows_its_box_and_no_score_is_no_number(tmp_path):
    lost = record(3, score=None)
    lost.mask[:] = False
    text, page = written(tmp_path / "a.html", [lost])
    [layer] = page.all("div", id="layer0")
    assert "boxed" in layer["class"] and "left: 5%; top: 10%; width: 20%; height: 50%" in layer["style"]
    assert len(page.all("img")) == 1 and "<span></span></label>" in text


def test_two_hundred_objects_on_a_large_picture_stay_small(tmp_path):
    records = [record(number) for number in range(200)]
    for number, item in enumerate(records):
        item.mask = np.zeros((200, 5000), bool)
        item.mask[number // 2 :, 10 * number : 10 * number + 400] = True
    text, page = written(tmp_path / "a.html", records, np.zeros((200, 5000, 3), np.uint8))
    assert len(text) < 200_000 and len(page.all("input")) == 200
    assert pixels(page.all("img")[0]["src"]).width == LONGEST_SIDE


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_text("older")
    wrong = record(1)
    wrong.mask = wrong.mask[:-1]
    with pytest.raises(ValueError, match="the mask of #1 is"):
        write_page(tmp_path / "a.html", picture(), [record(2), wrong])

    def full_disk(self, data):
        with self.open("wb") as file:
            file.write(data[:99])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_page(tmp_path / "a.html", picture(), [])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.html", "older")]


# --- Videos, and the index of many results -----------------------------------------------------------------


def film_page(path, count: int, title: str = "clip.mp4", objects=lambda t: [1]) -> Page:
    page = FilmPage()
    for t in range(count):
        seen = [Segment(o.id, o.label, o.score, o.box, o.mask) for o in (record(n, NASTY[n % 10]) for n in objects(t))]
        page.add(Segmented(picture(), seen, t), t / 25)
    page.write(path, title)
    return Page(path.read_text("utf-8"))


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 200])
def test_key_frames_are_evenly_spaced_and_their_number_is_bounded(count, tmp_path):
    page = film_page(tmp_path / "a.html", count)
    shown = [int(re.match(r"frame (\d+), ", key["data-title"])[1]) for key in page.all("div") if "data-title" in key]
    assert shown == list(range(0, count, shown[1] if len(shown) > 1 else 1)) and shown[0] == 0
    assert min(count, MOST // 2) <= len(shown) <= MOST
    [slider] = page.all("input", type="range")
    assert slider["max"] == str(len(shown) - 1) and page.balanced and not page.open


def test_a_page_of_a_video_is_bounded_in_size_however_long_and_large_the_video_is(tmp_path):
    page, image = FilmPage(), np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    for t in range(40):  # noise is what JPEG is worst at
        page.add(Segmented(image if t % 8 == 0 else image[:, ::-1].copy(), [], t), t / 25)
    page.write(tmp_path / "a.html", "a.mp4")
    assert (tmp_path / "a.html").stat().st_size < 32 * 800_000


def test_the_page_of_a_video_has_a_switch_per_object_and_nothing_from_outside(tmp_path):
    page = film_page(tmp_path / "a.html", 4, NASTY[0], lambda t: range(t, t + 4))
    text = (tmp_path / "a.html").read_text("utf-8")
    switches = [box["data-object"] for box in page.all("input", type="checkbox")]
    assert switches == [f"object{n}" for n in range(7)] and page.balanced and not page.open
    keys = re.split(r'<div class="key"', text)[1:]
    for t, key in enumerate(keys):
        assert re.findall(r'class="layer (object\d+)', key) == [f"object{n}" for n in range(t, t + 4)]
    assert page.labels == [one_line(NASTY[n]) for n in range(7)]
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert len(page.all("script")) == 1 and "alert(1)</script>" not in text and not page.all("link")
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_an_object_between_the_key_frames_has_its_row_too(tmp_path):
    film_page(tmp_path / "a.html", 40, objects=lambda t: [1, 2] if t == 35 else [1])
    text = (tmp_path / "a.html").read_text("utf-8")
    rows = re.findall(r'data-object="(object\d+)".*?</li>', text)
    assert rows == ["object1", "object2"] and text.count("(between the key frames)") == 1
    assert re.search(r'data-object="object2"[^\n]*\(between the key frames\)', text)


def test_the_index_links_every_result_and_shows_names_as_text(tmp_path):
    names = ["a b", "50%", "q?#x", 'x"y', "<b>", "قطة"]
    write_index(tmp_path, [Entry(f"in/{name}.png", name, f"2 {name}") for name in names])
    text = (tmp_path / "index.html").read_text("utf-8")
    page = Page(text)
    assert page.balanced and not page.open and not page.all("script")
    assert [unquote(a["href"]) for a in page.all("a")] == [f"{name}/page.html" for name in names]
    assert [unquote(image["src"]) for image in page.all("img")] == [f"{name}/thumbnail.jpg" for name in names]
    assert not any(set('?#<" ') & set(a["href"]) for a in page.all("a"))
    assert page.labels == [label for name in names for label in (f"in/{name}.png", f"2 {name}")]
    check_index(tmp_path)
    for content in ("dear", ""):
        (tmp_path / "index.html").write_text(content)
        with pytest.raises(ValueError, match="was not made by this program"):
            check_index(tmp_path)
