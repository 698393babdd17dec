"""The demo models on drawings by another hand: polygons of Pillow, drawn large and reduced.

    python benchmarks/second_renderer.py --detector detector.pt --segmenter segmenter.pt --photos DIR
    python benchmarks/second_renderer.py --sheet sheet.png --photos DIR     # only look at what it draws

Nothing of the drawing is shared with minisam_glue/demo: outlines are polygons, colours are names of CSS,
edges come from reducing the picture, backgrounds are photographs, Pillow's noise or CSS colours. The captions
are the same, as they are the task, and so are the ways in which objects move. Training never sees any of
it. Without --photos the backgrounds are drawn.
"""

import math
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minisam_glue.demo.drawing import Figure
from minisam_glue.demo.evaluate import arguments, run
from minisam_glue.demo.scenes import KINDS, Clip, Scene, extents, random_caption, stage, tracked_and_twins
from minisam_glue.support.processes import run_program

PICTURES = (".jpg", ".jpeg", ".png")
SCALE = 4  # how much larger the figures are drawn
INKS = {
    "red": ("red", "crimson", "firebrick"),
    "green": ("green", "forestgreen", "limegreen"),
    "blue": ("blue", "royalblue", "mediumblue"),
    "yellow": ("yellow", "gold"),
    "orange": ("darkorange", "orange"),
    "purple": ("purple", "darkviolet", "darkorchid"),
    "white": ("white", "snow"),
    "black": ("black", "#101010"),
}
PAPERS = ("lightgray", "slategray", "tan", "rosybrown", "darkseagreen", "lightsteelblue", "dimgray", "wheat")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "hexagon")
Points = list[tuple[float, float]]


def around(*radii: float, number: int) -> Points:
    """`number` points about the origin, the first at the top, at these distances in turn."""
    turns = ((2 * math.pi * i / number, radii[i % len(radii)]) for i in range(number))
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in turns]


def heart() -> Points:
    """The usual parametric curve."""
    steps = (2 * math.pi * i / 72 for i in range(72))
    return [
        (
            0.98 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in steps
    ]


def outline(shape: str) -> Points:
    """The corners of a shape in the unit disc; a ring is drawn as a circle with a hole."""
    if shape == "cross":
        a, b = 0.3, 0.95
        right, left = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)], [(-a, b), (-a, a), (-b, a)]
        return [*right, *left, (-b, -a), (-a, -a), (-a, -b)]
    if shape == "square":
        return [(-0.71, -0.71), (0.71, -0.71), (0.71, 0.71), (-0.71, 0.71)]
    return {
        "circle": around(1, number=96),
        "ring": around(1, number=96),
        "triangle": around(1, number=3),
        "star": around(1, 0.42, number=10),
        "hexagon": around(1, number=6),
        "heart": heart(),
    }[shape]


def photos_in(folder: Path) -> list[Path]:
    """The photographs of a folder, in order of name. OSError if there is none."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def draw_background(rng: random.Random, width: int, height: int, photos: list[Path]) -> Image.Image:
    """A part of a photograph, Pillow's noise in two colours, or a slope between two CSS colours."""
    if photos and rng.random() < 0.6:
        photo = ImageOps.exif_transpose(Image.open(rng.choice(photos))).convert("RGB")
        zoom = max(width / photo.width, height / photo.height) * rng.uniform(1, 2)
        photo = photo.resize((math.ceil(photo.width * zoom), math.ceil(photo.height * zoom)))
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        return photo.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        np_rng = np.random.RandomState(rng.randrange(2**31))  # Pillow's own noise can't be seeded
        grey = Image.fromarray(np_rng.normal(128, rng.uniform(10, 60), (height, width)).clip(0, 255).astype(np.uint8))
    else:
        grey = Image.linear_gradient("L").rotate(90 * rng.randrange(4)).resize((width, height))
    return ImageOps.colorize(grey, rng.choice(PAPERS), rng.choice(PAPERS))


def stencil(shape: str, x: float, y: float, radius: float, angle: float, size: tuple[int, int]) -> Image.Image:
    """The shape in white on black, SCALE times as large as the picture of `size` (width, height)."""
    mask = Image.new("L", (size[0] * SCALE, size[1] * SCALE))
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    points = [((x + u * cos - v * sin) * SCALE, (y + u * sin + v * cos) * SCALE) for u, v in outline(shape)]
    pen = ImageDraw.Draw(mask)
    pen.polygon(points, fill=255)
    if shape == "ring":
        hole = 0.6 * radius
        pen.ellipse([(x - hole) * SCALE, (y - hole) * SCALE, (x + hole) * SCALE, (y + hole) * SCALE], fill=0)
    return mask


def ink_for(rng: random.Random, colour: str, picture: Image.Image, mask: Image.Image) -> Image.Image | None:
    """The paint of a figure, flat or with a slope of light; None where it would hardly show on the picture."""
    rgb = np.array(ImageColor.getrgb(rng.choice(INKS[colour])))
    beneath = np.asarray(picture)[np.asarray(mask) > 127]
    if (np.abs(beneath - rgb).max(1) > 50).sum() <= 0.6 * len(beneath):
        return None
    light = np.linspace(*((rng.uniform(0.85, 1), 1) if rng.random() < 0.5 else (1, 1)), picture.height)[:, None, None]
    return Image.fromarray(np.broadcast_to(rgb * light, (picture.height, picture.width, 3)).astype(np.uint8))


def draw_rim(picture: Image.Image, colour: str, inside: Image.Image, whole: Image.Image) -> None:
    """A grey line around a figure, within its outline."""
    line = Image.fromarray(np.minimum(np.asarray(whole), 255 - np.asarray(inside)))
    picture.paste(ImageColor.getrgb("silver" if colour == "black" else "#282828"), mask=line)


def second_scene(seed: int, photos: list[Path]) -> Scene:
    """A scene of 1 to 6 objects, from 8 pixels to half the frame, as this renderer draws it."""
    rng = random.Random(seed)
    width, height = rng.randint(120, 320), rng.randint(120, 320)
    picture, masks, figures, whole = draw_background(rng, width, height, photos), [], [], []
    colours, shapes = rng.sample(list(INKS), 3), rng.sample(SHAPES, 3)  # few of each, so that they get mixed up
    wanted, tries = rng.randint(1, 6), 0
    while len(figures) < wanted and (tries < 60 or not figures):
        tries += 1
        colour, shape = rng.choice(colours), rng.choice(shapes)
        radius = math.exp(rng.uniform(math.log(5), math.log(0.25 * max(width, height))))
        x, y = (rng.uniform(0.5 * radius, length - 0.5 * radius) for length in (width, height))
        angle = rng.choice((0, rng.uniform(0, 2 * math.pi)))
        small = stencil(shape, x, y, radius, angle, (width, height)).reduce(SCALE)
        mask, paint = np.asarray(small) > 127, ink_for(rng, colour, picture, small)
        visible = [*(below & ~mask for below in masks), mask]
        if paint is None or any(m.sum() < max(20, 0.45 * area) for m, area in zip(visible, [*whole, mask.sum()])):
            continue
        picture.paste(paint, mask=small)
        if radius > 12 and shape != "ring" and rng.random() < 0.3:
            draw_rim(picture, colour, stencil(shape, x, y, radius * 0.86, angle, (width, height)).reduce(SCALE), small)
        masks, whole = visible, [*whole, mask.sum()]
        rgb = tuple(c / 255 for c in ImageColor.getrgb(INKS[colour][0]))
        figures.append(Figure(shape, colour, rgb, x, y, radius, angle, 1.0, 0.5, 1.0, (0, 0), 1.0, 0.0, rgb))
    phrases, labels = random_caption(np.random.default_rng(seed), figures)
    masks = np.stack(masks)
    return Scene(np.array(picture), masks, extents(masks), figures, phrases, labels)


def second_clip(seed: int, photos: list[Path], frames: int = 60, kind: str | None = None) -> Clip:
    """A clip of 120 x 160 pixels whose objects move as in minisam_glue/demo, each with a rim, on a background
    that passes. kind: one of ALL_KINDS; by default the seed's of KINDS in turn."""
    rng, np_rng, (height, width) = random.Random(seed), np.random.default_rng(seed), (120, 160)
    kind = kind or KINDS[seed % len(KINDS)]
    figures, paths, leads = stage(np_rng, kind, np.linspace(0, 1, frames), (height, width))
    inks = {colour: ImageColor.getrgb(rng.choice(names)) for colour, names in INKS.items()}  # look-alikes share one
    wide, pictures, masks = draw_background(rng, width + 40, height + 30, photos), [], []
    for t in range(frames):
        left, top = round(40 * t / frames), round(30 * t / frames)
        picture, visible = wide.crop((left, top, left + width, top + height)), []
        for figure, path in zip(figures, paths):
            x, y, radius, angle = path[t].tolist()
            small = stencil(figure.shape, x, y, radius, angle, (width, height)).reduce(SCALE)
            picture.paste(inks[figure.colour], mask=small)
            if figure.shape != "ring":
                inner = stencil(figure.shape, x, y, 0.86 * radius, angle, (width, height)).reduce(SCALE)
                draw_rim(picture, figure.colour, inner, small)
            mask = np.asarray(small) > 127
            visible = [*(below & ~mask for below in visible), mask]
        pictures.append(np.array(picture))
        masks.append(np.stack(visible))
    masks = np.stack(masks)
    caption, roles = random_caption(np_rng, figures), tracked_and_twins(kind, leads)
    return Clip(np.stack(pictures), masks, extents(masks), figures, *caption, kind, *roles)


def sheet(photos: list[Path]) -> Image.Image:
    """36 scenes side by side, and below them 12 frames of a clip."""
    out = Image.new("RGB", (12 * 160, 4 * 160))
    pictures = [second_scene(i, photos).image for i in range(36)] + [*second_clip(1, photos).frames[::5]]
    for i, picture in enumerate(pictures):
        out.paste(ImageOps.contain(Image.fromarray(picture), (156, 156)), (i % 12 * 160, i // 12 * 160))
    return out


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs (.jpg, .jpeg, .png) for the backgrounds")
    parser.add_argument("--sheet", type=Path, help="write a picture of some scenes here and stop")
    args = parser.parse_args()
    photos = photos_in(args.photos) if args.photos else []
    if args.sheet:
        sheet(photos).save(args.sheet)
    else:
        run(
            parser,
            args,
            lambda seed: second_scene(seed, photos),
            lambda seed, kind: second_clip(seed, photos, kind=kind),
        )


if __name__ == "__main__":
    sys.exit(run_program(main))
