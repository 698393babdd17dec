"""The answers of trained models: `--eval` measures them on test images, `--predict` classifies image files.

Several checkpoints of the same classes are an ensemble: the mean of their probabilities. Each one sees images as its
own training did: in its size, normalised by its mean and standard deviation, in its precision. Left out: weights of
the members, and thresholds below which no class is named.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from minivit import checkpoint, config, run
from minivit import data as datasets
from minivit.augment import normalise
from minivit.evaluate import Evaluator, mean_probability, resize_to_model, top1
from minivit.explain import relevance, spotlight
from minivit.files import check_ours, write_atomically
from minivit.folder import find_images, find_matches, is_split_by_seed
from minivit.images import image_size, read_image
from minivit.report import REPORT_FILES, csv_table, percent, write_report
from minivit.splits import DataError, Split, some_of
from minivit.text import complain, count, csv_cell, name_classes, one_line, say
from minivit.train_config import TrainingError
from minivit.vit import VisionTransformer

TABLES = {".csv": b"file,class,probability,", ".json": b'[\n {\n  "file": '}  # by ending, how write_table begins
LONGEST_STEM = 200  # bytes of a name; file systems take 255
MARK = "minivit"  # in the pictures that --save-attention writes
AT_ONCE = 32  # pictures that go through a model together
EXPLAINED_AT_ONCE = 8  # of which the attention of all blocks is held
LEAST_SIDE = 256  # pixels that a saved picture of attention is enlarged to, by whole factors


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble: its model, what the file says, and how the model is shown images."""

    path: Path
    model: nn.Module
    state: dict
    evaluator: Evaluator

    @property
    def side(self) -> int:
        """The side in pixels at which images are read for the model; a ResNet takes any, and is trained at 32."""
        return self.model.config.size[0] if hasattr(self.model, "config") else 32

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.state["config"].get("seed", 0)


def load_members(paths: Sequence[Path], device: torch.device) -> list[Member]:
    """The models of checkpoints, `demo` among them. Raises CheckpointError, and TrainingError for unlike classes."""
    members = []
    for path in paths:
        model, state = checkpoint.load_model(path, device)
        members.append(Member(path, model, state, evaluator_of(state, device)))
    first = members[0]
    for other in members[1:]:
        if other.state["classes"] != first.state["classes"]:
            raise TrainingError(
                f"an ensemble needs the same classes in the same order: {first.path} knows "
                f"{name_classes(first.state['classes'])}, {other.path} {name_classes(other.state['classes'])}"
            )
    return members


def evaluator_of(state: dict, device: torch.device) -> Evaluator:
    """Shows images as the run of a checkpoint did, in its precision, so that its numbers come out again."""
    return Evaluator(state["mean"], state["std"], device, getattr(torch, state.get("precision") or "float32"))


# ---- --eval ---------------------------------------------------------------------------------------------


def evaluate(paths: Sequence[Path], given: dict) -> int:
    """Measure checkpoints, alone and together, on the test images of the data they were trained on, or of --data.

    Prints the accuracies and writes the report of all together: into --out, else beside the first checkpoint.
    """
    device = run.set_up_machine(given)
    members = load_members(paths, device)
    about, tta = members[0].state["describe"], given.pop("tta", None)
    folder = given.pop("out", None) or report_folder(paths)
    run.check_out(folder)
    check_ours(folder, REPORT_FILES, "report.json", "per_class", "an evaluation")
    trained = {name: about[name] for name in ("data", "data_root", "preset", "subset") if name in about}
    args = config.resolve(trained | given)
    if given.keys() & {"data", "data_root"} and "subset" not in given and not run.is_same_data(about, args):
        args["subset"] = 0  # that of the checkpoint was of other images
    shown = [datasets.stored_side(args["data"], member.side) for member in members]
    tests = load_tests(members, shown, args)
    labels = tests[shown[0]].labels
    scores = [m.evaluator.predict(m.model, tests[side].images, tta).cpu() for m, side in zip(members, shown)]
    together = scores[0] if len(scores) == 1 else mean_probability(scores)
    where = source_of(args)
    facts, lines = {"data": where, "test-time augmentation": tta or "none"}, []
    for member, score in zip(members, scores):
        accuracy, weights = f"{percent(top1(score, labels))} %", checkpoint.name_weights(member.state)
        what = f"{where}, {weights}" + (f", {tta}" if tta else "")
        if source_of(member.state["describe"]) != source_of(about) and not given.keys() & {"data", "data_root"}:
            what += f"; trained on {source_of(member.state['describe'])}"
        lines.append(f"{member.path}: {accuracy} of {count(len(labels), 'test image')} ({what})")
        facts[str(member.path)] = f"{accuracy}, {weights}"
    name = about["preset"]
    if len(members) > 1:
        name = f"ensemble of {len(members)}"
        lines.append(f"{name}: {percent(top1(together, labels))} % of {count(len(labels), 'test image')}")
    images, title = tests[shown[0]].images, f"{name} on {args['data']}"
    try:
        write_report(folder, together, labels, members[0].state["classes"], images, title=title, facts=facts)
        lines.append(f"report: {folder / 'report.md'}")
    finally:  # after the report: `| head -1` ends the program; and also where it can't be written
        for line in lines:
            say(line)
    return 0


def source_of(about: dict) -> str:
    """The data that arguments name, or the description of a checkpoint, in words."""
    if about.get("data") == "folder":
        return f"folder {about.get('data_root', '')}".strip()
    return about.get("data", "other data")


def report_folder(paths: Sequence[Path]) -> Path:
    """The folder of the report on checkpoints: RUN/eval-best for RUN/best.pt, runs/eval-demo for demo."""
    name = f"eval-{paths[0].stem}" if len(paths) == 1 else "eval-ensemble"
    return (Path("runs") if checkpoint.find(paths[0]) == checkpoint.DEMO else paths[0].parent) / name


def load_tests(members: Sequence[Member], sides: Sequence[int], args: dict) -> dict[int, Split]:
    """The test images at each of these sides, at most --subset of them. Raises DataError, and TrainingError where they
    would differ from member to member."""
    for member in members:
        run.check_listing(str(member.path), member.state["describe"], args)
    seeds = sorted({member.seed for member in members})
    if len(seeds) > 1 and is_split_by_seed(args["data"], args["data_root"]):
        raise TrainingError(
            f"{args['data_root']} has no test/, so its class folders are split by the seed, and these checkpoints have "
            f"the seeds {', '.join(map(str, seeds))}: test images of one were trained on by another; make a test/"
        )
    if len(seeds) > 1 and args["subset"]:
        raise TrainingError(
            f"these checkpoints have the seeds {', '.join(map(str, seeds))}, by which --subset {args['subset']} draws "
            "other test images for each: give --subset 0 for all images"
        )
    classes, tests = members[0].state["classes"], {}
    for side in set(sides):
        test = datasets.load_test(args["data"], args["data_root"], side, classes, seeds[0], args["skip_bad"])
        tests[side] = some_of(test, args["subset"], seeds[0]) if args["subset"] else test
    return tests


# ---- --predict ------------------------------------------------------------------------------------------


def classify(path: Path, words: Sequence[Path], given: dict) -> int:
    """Print the three most likely classes of each picture; words: files, folders and globs.

    A picture that cannot be read is one line on standard error, the others go on, and the status is 2 at the end.
    """
    if not words:
        raise TrainingError("--predict needs a checkpoint and at least one image: --predict best.pt cat.png")
    table = given.get("save_predictions")
    if table:
        check_table(table)
    device = run.set_up_machine(given)
    (member,) = load_members([path], device)
    folder, names = given.get("save_attention"), set()
    files = list(find_pictures(words))
    if folder:
        check_attention(folder, member, files)
    rows, failed = [], 0
    try:
        for answer in answers(member, files, given.get("tta"), bool(folder)):
            rows.append(answer)
            failed += "error" in answer
            if "attention" in answer:
                answer["explained"] = free_name(folder, Path(answer["file"]).stem, names)
                save_picture(answer["explained"], answer.pop("attention"))
            say_answer(answer) if "error" not in answer else complain(f"error: {answer['error']}")
    finally:  # what was answered before Ctrl-C, or before whoever reads had seen enough, is kept
        if table and rows:
            write_table(table, rows, member.state["classes"])
    if table:
        say(f"predictions: {table}")
    return 2 if failed else 0


def find_pictures(words: Sequence[Path]) -> Iterator[Path | str]:
    """The files that words name, in their order: a folder's pictures, what matches a pattern, or the file itself.

    A text in place of a path says why a word names no file.
    """
    for word in words:
        if os.path.isdir(word):
            try:
                found = find_images(word) or [f"{word} holds no pictures"]
            except DataError as error:
                found = [str(error)]
            yield from found
        elif str(word).startswith(("http:/", "https:/")) and not os.path.exists(word):
            yield f"{str(word).replace(':/', '://', 1)}: addresses are not read, download the picture first"
        elif not os.path.exists(word) and glob.has_magic(str(word)):
            found = sorted(Path(name) for name in find_matches(str(word)) if os.path.isfile(name))
            yield from found or [f"no file matches {word}"]
        else:
            yield word


def answers(member: Member, files: Sequence[Path | str], tta: str | None, explained: bool = False) -> Iterator[dict]:
    """The answer of a model to each file: probabilities (C,) and the picture's size, or an error.

    explained: with a picture of what the model looks at, uint8 (3, S, 2 S).
    """
    waiting: list[dict] = []
    pictures: list[Tensor] = []

    def classified() -> list[dict]:
        if pictures:
            scores = member.evaluator.predict(member.model, torch.stack(pictures), tta).softmax(1).cpu()
            good = [row for row in waiting if "error" not in row]
            for row, probabilities in zip(good, scores):
                row |= {"probabilities": probabilities, "classes": member.state["classes"], "side": member.side}
            for row, picture in zip(good, attention(member, torch.stack(pictures)) if explained else ()):
                row["attention"] = picture
        return waiting

    for file in files:
        try:
            if isinstance(file, str):
                raise DataError(file)
            picture, size = read_image(file, member.side), image_size(file)
            pictures.append(picture)
            waiting.append({"file": str(file), "size": size})
        except (DataError, OSError) as error:
            waiting.append({"file": str(file), "error": one_line(error)})
        if len(pictures) == AT_ONCE:
            yield from classified()
            waiting, pictures = [], []
    yield from classified()


def attention(member: Member, images: Tensor) -> Iterator[Tensor]:
    """For each of the images, uint8 (B, 3, S, S), the image beside itself in the light of its patches' shares."""
    for part in images.split(EXPLAINED_AT_ONCE):
        x = normalise(part.to(member.evaluator.device), member.state["mean"], member.state["std"])
        yield from map(spotlight, part, relevance(member.model, resize_to_model(x, member.model)))


def check_attention(folder: Path, member: Member, files: Sequence[Path | str]) -> None:
    """TrainingError unless a model has attention, and pictures of it can be written to a folder without these files."""
    if not isinstance(member.model, VisionTransformer) or not member.model.config.depth:
        raise TrainingError(f"--save-attention needs a Vision Transformer with blocks, and {member.path} holds none")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrainingError(f"--save-attention {folder} can't be written: {there} is no folder for it")
    beside = next(
        (file for file in files if isinstance(file, Path) and file.parent.resolve() == folder.resolve()), None
    )
    if beside:
        raise TrainingError(
            f"--save-attention {folder}: {beside} lies there, and is not overwritten; choose another one"
        )


def free_name(folder: Path, stem: str, names: set[str]) -> Path:
    """A file for a picture that is none of `names`, in capitals or not, and nobody else's; its name joins them."""
    if len(os.fsencode(stem)) > LONGEST_STEM:
        stem = os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore")
    number = 1
    while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png").casefold() in names or is_foreign(
        folder / name
    ):
        number += 1
    names.add(name.casefold())
    return folder / name


def save_picture(path: Path, pixels: Tensor) -> None:
    """Write uint8 (3, H, W), enlarged by a whole factor if it is small, as a PNG file; its folder is made."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    factor = -(-LEAST_SIDE // image.height)
    image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = PngInfo()
    mark.add_text("Software", MARK)
    write_atomically(path, lambda temporary: image.save(temporary, "PNG", pnginfo=mark))


def is_foreign(path: Path) -> bool:
    """Whether something stands at a path that save_picture did not write."""
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        return True  # a pipe would be waited for
    try:
        with Image.open(path) as image:
            return image.info.get("Software") != MARK
    except Exception:  # no picture, or a damaged one
        return True


def say_answer(answer: dict) -> None:
    """Print the three most likely classes of a picture, how it was cut if it was, and where its attention is."""
    side, (width, height) = answer["side"], answer["size"]
    best = answer["probabilities"].topk(min(3, len(answer["classes"])))
    likeliest = (f"{answer['classes'][c]} {p:.1%}" for p, c in zip(best.values.tolist(), best.indices.tolist()))
    cut = "" if (width, height) == (side, side) else f"  ({width}x{height}: resized, centre crop of {side}x{side})"
    shown = f"  (attention: {answer['explained']})" if "explained" in answer else ""
    say(f"{answer['file']}: {', '.join(likeliest)}{cut}{shown}")


def check_table(path: Path) -> None:
    """TrainingError unless predictions can be written to this file."""
    if path.suffix.lower() not in TABLES:
        raise TrainingError(f"--save-predictions {path}: give a name that ends in {' or '.join(TABLES)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise TrainingError(f"--save-predictions {path} can't be written: name a folder that is there")
    if os.path.lexists(path) and not holds_predictions(path):
        raise TrainingError(f"--save-predictions {path} is there and holds no predictions: give another name")


def holds_predictions(path: Path) -> bool:
    """Whether a file is one that write_table made, or empty."""
    if not path.is_file():
        return False  # a pipe would be waited for
    head = TABLES[path.suffix.lower()]
    with open(path, "rb") as file:
        return file.read(len(head)) in (b"", head)


def write_table(path: Path, rows: Sequence[dict], classes: Sequence[str]) -> None:
    """Write predictions, whole or not at all: for each file its class and all probabilities, or why there are none."""
    records = []
    for row in rows:
        record = {"file": row["file"], "class": None, "probability": None, "probabilities": None}
        if "error" not in row:
            best = int(row["probabilities"].argmax())
            each = [round(p, 6) for p in row["probabilities"].tolist()]
            record |= {"class": classes[best], "probability": each[best], "probabilities": dict(zip(classes, each))}
        records.append(record | {"error": row.get("error")})
    if path.suffix.lower() == ".json":
        content = (json.dumps(records, indent=1) + "\n").encode()
    else:
        head = ["file", "class", "probability", *(csv_cell(f"p({name})") for name in classes), "error"]
        content = csv_table([head, *(csv_row(record, len(classes)) for record in records)])
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def csv_row(record: dict, classes: int) -> list:
    """The cells of one prediction."""
    texts = {name: csv_cell(record[name] or "") for name in ("file", "class", "error")}
    each = list((record["probabilities"] or {}).values()) or [None] * classes
    return [texts["file"], texts["class"], record["probability"], *each, texts["error"]]
