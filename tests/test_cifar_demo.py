"""The CIFAR-10 weights that ship, on 200 test images that the repository holds."""

import json
import shutil
import zipfile
from pathlib import Path

import cifar_demo
import pytest
import torch
from PIL import Image

import train_cifar
from minivit import checkpoint
from minivit.evaluate import Evaluator, top1
from minivit.images import read_image

IMAGES = Path(__file__).parent / "cifar10_test_200.zip"
STATED = json.loads((Path(checkpoint.DEMO).parent / "cifar10.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The 200 JPEG files, in a folder for each class."""
    folder = tmp_path_factory.mktemp("test")
    with zipfile.ZipFile(IMAGES) as archive:
        archive.extractall(folder)
    return folder


def answers(images: Path, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What `demo` scores for the 200 images (200, 10), and their classes (200,)."""
    model, state = checkpoint.load_model(Path("demo"), torch.device("cpu"))
    files = sorted(images.glob("*/*.jpg"))
    pixels = torch.stack([read_image(file, 32) for file in files])
    labels = torch.tensor([state["classes"].index(file.parent.name) for file in files])
    evaluator = Evaluator(state["mean"], state["std"], torch.device("cpu"), dtype)
    return evaluator.predict(model, pixels), labels


def test_the_weights_give_the_stated_accuracy_on_the_fixed_images(images):
    assert top1(*answers(images, torch.float32)) == pytest.approx(STATED["float32"]["right_of_200_fixed"] / 200)


def test_the_stated_facts_are_what_the_benchmark_writes(images, tmp_path, monkeypatch):
    for file in (checkpoint.DEMO, checkpoint.DEMO.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.setattr(checkpoint, "DEMO", tmp_path / checkpoint.DEMO.name)
    for folder in images.iterdir():
        (tmp_path / "data" / "test" / folder.name).mkdir(parents=True)  # there is no train/
        for file in sorted(folder.glob("*.jpg"))[:2]:
            shutil.copy(file, tmp_path / "data" / "test" / folder.name)
    cifar_demo.measure(tmp_path / "data", tmp_path / "report")
    facts = json.loads(checkpoint.DEMO.with_suffix(".json").read_text())
    assert facts["test_images"] == 20 and facts["cpu_minutes"] == STATED["cpu_minutes"]
    assert facts["float32"]["right_of_200_fixed"] == STATED["float32"]["right_of_200_fixed"]
    assert facts.keys() == STATED.keys() and facts["float32"].keys() == STATED["float32"].keys()


def test_the_weights_are_about_as_sure_of_the_fixed_images_as_they_are_right(images):
    scores, labels = answers(images, torch.float32)
    confidence = scores.softmax(1).max(1).values.mean().item()
    assert confidence == pytest.approx(STATED["float32"]["accuracy"], abs=0.03)
    assert confidence == pytest.approx(top1(scores, labels), abs=0.03)


@pytest.mark.parametrize("factor", [0.8, 1.57, 3])
def test_the_temperature_is_how_many_times_too_large_logits_are(factor):
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 10)
    labels = logits.softmax(1).multinomial(1).squeeze(1)  # as often right as the logits say
    assert cifar_demo.temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_calibrating_divides_the_logits_and_says_by_how_much(images, tmp_path, monkeypatch, capsys):
    content = checkpoint.read(checkpoint.DEMO)
    before = content["ema"]["head.weight"]
    for name in ("head.weight", "head.bias"):
        content["ema"][name] = 2 * content["ema"][name]
    monkeypatch.setattr(checkpoint, "DEMO", tmp_path / checkpoint.DEMO.name)
    checkpoint.save(checkpoint.DEMO, content)
    facts = STATED | {"arguments": STATED["arguments"] | {"val_split": 0.9}}
    checkpoint.DEMO.with_suffix(".json").write_text(json.dumps(facts))
    shutil.copytree(images, tmp_path / "data" / "train")
    shutil.copytree(images, tmp_path / "data" / "test")
    cifar_demo.calibrate(tmp_path / "data")
    ratio = (checkpoint.read(checkpoint.DEMO)["ema"]["head.weight"] / before).mean().item()
    divisor = json.loads(checkpoint.DEMO.with_suffix(".json").read_text())["temperature"] / STATED["temperature"]
    assert ratio == pytest.approx(2 / divisor, rel=0.01) and 0.7 < ratio < 1.3
    assert f"divided by {divisor:.2f}, by 180 images" in capsys.readouterr().out


def test_the_weights_and_the_images_are_small():
    assert checkpoint.DEMO.stat().st_size < 6_000_000
    assert IMAGES.stat().st_size < 250_000


def test_demo_classifies_a_picture_and_says_how_it_was_cut(images, tmp_path, capsys):
    picture = next(iter(sorted((images / "ship").glob("*.jpg"))))
    Image.open(picture).resize((96, 64)).save(tmp_path / "ship.png")
    assert train_cifar.main(["--predict", "demo", str(picture), str(tmp_path / "ship.png"), "--device", "cpu"]) == 0
    small, large = capsys.readouterr().out.splitlines()
    assert small.startswith(f"{picture}: ") and small.endswith("%")
    assert large.endswith("(96x64: resized, centre crop of 32x32)")


def test_demo_names_a_file_that_is_no_picture(tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no picture")
    assert train_cifar.main(["--predict", "demo", str(tmp_path / "notes.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "notes.png" in captured.err and captured.err.count("\n") == 1


def test_demo_refuses_data_of_other_classes(capsys):
    assert train_cifar.main(["--eval", "demo", "--data", "shapes", "--device", "cpu"]) == 2
    assert (
        "the checkpoint knows 10 classes (airplane, automobile, bird, ...), the data has 10 classes (striped disc"
        in (capsys.readouterr().err)
    )


def test_training_goes_on_from_demo_with_classes_of_its_own(images, tmp_path, capsys):
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("cat", "ship", "truck"):
            (folder / split / name).mkdir(parents=True)
            for file in sorted((images / name).glob("*.jpg"))[:6]:
                (folder / split / name / file.name).write_bytes(file.read_bytes())
    arguments = ["--data", "folder", "--data-root", str(folder), "--val-split", "3"]
    arguments += ["--pretrained", "demo", "--epochs", "1", "--batch-size", "8", "--device", "cpu", "--sizes", "32"]
    assert train_cifar.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "cifar10.pt; new, to be trained: head.weight, head.bias" in printed
    assert "cifar-fast: 2." in printed and "was trained: --" not in printed  # its preset, and no other settings


def test_demo_teaches_a_model_of_the_same_classes(images, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / split).symlink_to(images)
    arguments = ["--data", "folder", "--data-root", str(folder), "--preset", "vit-d128-l6", "--dim", "32"]
    arguments += ["--depth", "1", "--teacher", "demo", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    assert train_cifar.main([*arguments, "--out", str(tmp_path / "run")]) == 0
