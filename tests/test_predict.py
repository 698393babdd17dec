"""--eval and --predict: reports, ensembles, folders of pictures, tables of answers."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.squares import save_crowded_tiff
from PIL import Image

import train_cifar
from minivit import checkpoint, predict, report, run
from minivit import data as datasets
from minivit.evaluate import mean_probability, top1
from minivit.folder import find_matches
from minivit.predict import find_pictures, load_members
from minivit.splits import Split

CLASSES = ["=1+1", "bright", "dark"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def save_checkpoint(path: Path, seed: int = 0, classes=CLASSES, image_size: int = 16, **about: object) -> Path:
    overrides = {"dim": 16, "depth": 1, "heads": 2, "image_size": image_size}
    torch.manual_seed(seed)
    model = checkpoint.build_model("shapes-demo", len(classes), overrides)
    torch.nn.init.normal_(model.head.weight, std=3.0)  # of different opinions
    about = {"preset": "shapes-demo", "overrides": overrides, "data": "folder", "data_root": "images"} | about
    state = {"config": {"seed": seed}, "describe": about, "classes": list(classes), "mean": [0.4] * 3, "std": [0.2] * 3}
    state |= {"precision": "float32", "weights": "raw", "epoch": 3, "model": model.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, state)
    return path


def read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def draw(path: Path, low: int, count: int) -> None:
    rng = np.random.default_rng(low)
    path.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)).save(path / f"{i}.png")


@pytest.fixture
def images(tmp_path) -> Path:
    """Test images alone: no train/, and none of the class whose name is a formula."""
    for name, low in (("bright", 150), ("dark", 0)):
        draw(tmp_path / "images" / "test" / name, low, 6)
    return tmp_path / "images"


def test_eval_needs_no_training_images_and_a_class_without_images_has_a_dash_and_no_part_in_the_means(images, capsys):
    path = save_checkpoint(Path("run/best.pt"))
    assert train_cifar.main(["--eval", str(path), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "of 12 test images (folder images, raw weights of epoch 3)" in printed.out
    assert "report: run/eval-best/report.md" in printed.out and "no test images of =1+1" in printed.err
    stored = json.loads(Path("run/eval-best/report.json").read_text())
    absent, *others = stored["per_class"]
    assert absent == {"class": "=1+1", "support": 0} | dict.fromkeys(("precision", "recall", "f1", "accuracy"))
    assert stored["macro"]["recall"] == pytest.approx(sum(row["recall"] for row in others) / 2)
    text = Path("run/eval-best/report.md").read_text()
    assert "| =1+1 | \u2013 | \u2013 | \u2013 | 0 |" in text and f"{report.percent(stored['top1'])} %" in printed.out
    assert all(Path(f"run/eval-best/{name}.png").exists() for name in ("confusion", "predictions"))
    for name in ("per_class.csv", "confusion.csv"):
        cells = [cell for row in read_csv(Path("run/eval-best", name)) for cell in row]
        assert "'=1+1" in cells and not [cell for cell in cells if cell[:1] in tuple("=+-@") and len(cell) > 1]


def test_an_ensemble_is_the_mean_of_the_probabilities_of_models_that_see_images_each_in_its_own_way(images, capsys):
    paths = [save_checkpoint(Path("run/a.pt"), 1), save_checkpoint(Path("run/b.pt"), 2, image_size=8)]
    assert train_cifar.main(["--eval", *map(str, paths), "--tta", "crops", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    scores = []
    for member in load_members(paths, CPU):
        test = datasets.load_test("folder", images, member.side, CLASSES)
        scores.append(member.evaluator.predict(member.model, test.images, "crops"))
        assert f"{member.path}: {report.percent(top1(scores[-1], test.labels))} % of 12 test images" in printed
    together = report.percent(top1(mean_probability(scores), test.labels))
    assert f"ensemble of 2: {together} % of 12 test images" in printed
    stored = json.loads(Path("run/eval-ensemble/report.json").read_text())
    assert report.percent(stored["top1"]) == together and stored["facts"]["test-time augmentation"] == "crops"
    assert {"run/a.pt", "run/b.pt"} <= stored["facts"].keys()


def test_eval_tests_on_as_many_images_as_the_run_did_and_reads_cifar_at_its_own_size(images, capsys, monkeypatch):
    few = [save_checkpoint(Path("run/few.pt"), 1, subset=4), save_checkpoint(Path("run/other.pt"), 2, subset=4)]
    assert train_cifar.main(["--eval", str(few[0]), "--device", "cpu"]) == 0
    assert "of 4 test images" in capsys.readouterr().out
    assert train_cifar.main(["--eval", str(few[0]), "--device", "cpu", "--subset", "0"]) == 0
    assert "of 12 test images" in capsys.readouterr().out
    assert "seeds 1, 2, by which --subset 4 draws other test images" in refused(["--eval", *map(str, few)], capsys)

    sides, split = [], Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    monkeypatch.setattr(datasets, "load_test", lambda name, root, side, *_: sides.append(side) or split)
    tuned = save_checkpoint(Path("run/tuned.pt"), image_size=64, data="cifar10")
    assert train_cifar.main(["--eval", str(tuned), "--device", "cpu"]) == 0 and sides == [32]


def refused(words: list[str], capsys) -> str:
    """The one line of a command that is refused."""
    before = sorted(Path().rglob("*"))
    assert train_cifar.main([*words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert [path for path in sorted(Path().rglob("*")) if "cache" not in path.parts] == [
        path for path in before if "cache" not in path.parts
    ]
    return error


def test_an_evaluation_that_cannot_be_meant_is_one_line_and_writes_nothing(images, capsys):
    one, other = save_checkpoint(Path("run/a.pt")), save_checkpoint(Path("run/b.pt"), 1, CLASSES[1:])
    foreign = save_checkpoint(Path("c.pt"), 0, "xy")
    assert "same classes in the same order: run/a.pt knows 3" in refused(["--eval", str(one), str(other)], capsys)
    assert "the data has 2 classes (bright, dark)" in refused(["--eval", str(foreign)], capsys)
    assert "--eval and --predict are two tasks" in refused(["--eval", str(one), "--predict", "demo", "x"], capsys)
    assert "--tta goes with --eval and --predict" in refused(["--tta", "flip", "--out", "r"], capsys)
    Path("taken").write_text("")
    assert "--out taken: taken is no folder" in refused(["--eval", str(one), "--out", "taken"], capsys)
    shutil.move("images/test", "moved")
    shutil.move("moved/bright", "images/bright"), shutil.move("moved/dark", "images/dark")
    two = save_checkpoint(Path("run/two.pt"), 1)
    assert "the seeds 0, 1: test images of one were" in refused(["--eval", str(one), str(two)], capsys)
    shutil.rmtree("images")
    Path("images/test").mkdir(parents=True)
    assert "images/test has no images" in refused(["--eval", str(one)], capsys)


def test_an_evaluation_on_other_data_says_so_and_tests_on_all_of_it(images, capsys):
    few = save_checkpoint(Path("run/few.pt"), 0, subset=4)
    shutil.copytree("images", "others")
    assert train_cifar.main(["--eval", str(few), "--device", "cpu", "--data-root", "others"]) == 0
    assert "of 12 test images (folder others, raw weights" in capsys.readouterr().out
    assert "| data | folder others |" in Path("run/eval-few/report.md").read_text()
    one, other = save_checkpoint(Path("run/a.pt")), save_checkpoint(Path("run/b.pt"), data_root="others")
    assert train_cifar.main(["--eval", str(one), str(other), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "trained on" not in lines[0] and lines[1].endswith("; trained on folder others)")
    shutil.move("images/test", "images/val")
    assert train_cifar.main(["--eval", str(one), "--device", "cpu"]) == 0
    assert "images has no test/: val/ is taken for the test images" in capsys.readouterr().err


def test_an_evaluation_names_the_classes_that_a_checkpoint_lacks(images, capsys):
    one = save_checkpoint(Path("run/a.pt"))
    draw(images / "test" / "zebra", 0, 2)
    assert "3 classes (bright, dark, zebra), and zebra is none that it knows" in refused(["--eval", str(one)], capsys)


def test_class_folders_that_have_changed_since_the_training_are_not_tested_on(tmp_path, capsys, monkeypatch):
    for name, low in (("bright", 150), ("dark", 0)):
        draw(Path("pets") / name, low, 10)
    words = [
        "--data",
        "folder",
        "--data-root",
        "pets",
        "--preset",
        "shapes-demo",
        "--dim",
        "16",
        "--depth",
        "1",
        "--heads",
        "2",
        "--epochs",
        "1",
    ]
    words += ["--batch-size", "8", "--threads", "1", "--device", "cpu"]
    assert train_cifar.main([*words, "--out", "run"]) == 0
    assert train_cifar.main(["--eval", "run/best.pt", "--device", "cpu"]) == 0
    capsys.readouterr()
    shutil.copytree("pets", "copy")
    Path("elsewhere").mkdir()
    checkpoint_of = ["--pretrained", str(tmp_path / "run" / "best.pt"), "--out", "r2"]
    other_seed = [*words, "--data-root", str(tmp_path / "pets"), *checkpoint_of, "--seed", "1"]
    monkeypatch.chdir("elsewhere")
    assert train_cifar.main(other_seed) == 2
    assert "this checkpoint saw test images of seed 1: give --seed 0" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved").mkdir()
    shutil.copytree("pets", "moved/pets"), shutil.copytree("run", "moved/run")
    draw(Path("moved/new"), 0, 1)
    shutil.move("moved/new/0.png", "moved/pets/dark/00.png")
    Path("pets").rename("away")  # the place where it was trained is there no more
    monkeypatch.chdir("moved")
    assert train_cifar.main(["--eval", "run/best.pt", "--device", "cpu"]) == 2
    assert "images were added to pets, removed or renamed since" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    Path("away").rename("pets")
    assert train_cifar.main([*other_seed, "--data-root", "copy"]) == 2
    assert "this checkpoint saw test images of seed 1: give --seed 0" in capsys.readouterr().err.splitlines()[-1]
    draw(Path("new"), 0, 1)
    shutil.move("new/0.png", "pets/dark/00.png")
    for task in (["--eval", "run/best.pt"], [*words, "--pretrained", "run/best.pt", "--out", "r2"]):
        assert train_cifar.main([*task, *([] if "--device" in task else ["--device", "cpu"])]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "run/best.pt: images were added to pets, removed or renamed since" in last and "make a test/" in last
    assert train_cifar.main(["--resume", "run"]) == 2
    assert "images were added, removed or renamed since this run" in capsys.readouterr().err.splitlines()[-1]
    Path("pets/dark/00.png").unlink()
    assert train_cifar.main(["--eval", "run/best.pt", "--device", "cpu"]) == 0


def test_an_address_is_no_picture_and_told_as_it_was_given():
    (told,) = find_pictures([Path("https://example.com/x.jpg")])
    assert told == "https://example.com/x.jpg: addresses are not read, download the picture first"


def test_predict_takes_folders_and_patterns_goes_on_after_bad_files_and_ends_with_status_2(images, capsys):
    path = save_checkpoint(Path("run/best.pt"))
    draw(Path("more"), 40, 3)
    Path("more/2.png").write_text("no picture"), Path("more/notes.txt").write_text("words"), Path("empty").mkdir()
    words = ["more", "nowhere.png", "images/*/dark/[01].png", "images/*/dark/9*.png", "empty", "more/0.png"]
    table = ["--save-predictions", "answers.json"]
    assert train_cifar.main(["--predict", str(path), *words, *table, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    answered = ["more/0.png", "more/1.png", "images/test/dark/0.png", "images/test/dark/1.png", "more/0.png"]
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [*answered, "predictions"]
    errors = printed.err.splitlines()
    assert [error.startswith("error: ") for error in errors] == [True] * 4
    for error, name in zip(errors, ("more/2.png", "nowhere.png", "images/*/dark/9*.png", "empty")):
        assert name in error
    rows = json.loads(Path("answers.json").read_text())
    assert [row["file"] for row in rows if not row["error"]] == answered and len(rows) == 9
    for row in rows:
        if not row["error"]:
            assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert train_cifar.main(["--predict", str(path), "more/0.png", "--device", "cpu"]) == 0


def test_patterns_with_two_stars_find_each_file_once_and_do_not_run_in_circles(images):
    Path("images/test/dark/up").symlink_to("../..")
    draw(Path("elsewhere"), 5, 1)
    Path("images/z").symlink_to("../elsewhere")
    found = [str(path) for path in predict.find_pictures([Path("images/**/0.png")])]
    assert found == ["images/test/bright/0.png", "images/test/dark/0.png", "images/z/0.png"]
    assert [str(path) for path in find_matches("./images/**/dark/1.png")] == ["./images/test/dark/1.png"]
    led = ["images/test/dark/1.png", "images/test/dark/up/test/bright/1.png"]  # where a link leads once
    assert find_matches("**/dark/**/1.png") == led
    absolute = Path("images").absolute() / "**" / "0.png"
    assert [path.name for path in predict.find_pictures([absolute])] == ["0.png"] * 3


def test_answers_are_saved_although_the_reader_of_the_output_has_gone(images, monkeypatch):
    path = save_checkpoint(Path("run/best.pt"))

    def say_two(answer: dict) -> None:
        if answer["file"].endswith("2.png"):
            raise BrokenPipeError

    monkeypatch.setattr(predict, "say_answer", say_two)
    with pytest.raises(BrokenPipeError):
        predict.classify(path, [Path("images/test/dark")], {"save_predictions": Path("a.json"), "device": "cpu"})
    before = Path("a.json").read_text()
    assert [Path(row["file"]).name for row in json.loads(before)] == ["0.png", "1.png", "2.png"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict.classify(path, [Path("images/test/dark")], {"save_predictions": Path("a.json"), "device": "cpu"})
    assert Path("a.json").read_text() == before  # nothing new is no reason to lose what was there


def test_files_of_others_are_not_overwritten_by_an_evaluation_or_pictures_of_attention(images, capsys):
    path = save_checkpoint(Path("run/best.pt"))
    Path("mine").mkdir(), Path("mine/report.md").write_text("mine"), draw(Path("maps"), 9, 1)
    error = refused(["--eval", str(path), "--out", "mine"], capsys)
    assert "mine/report.md is not of an evaluation, and is not overwritten" in error
    before, words = Path("maps/0.png").read_bytes(), ["images/test/dark/0.png", "--save-attention", "maps"]
    for _ in range(2):
        assert train_cifar.main(["--predict", str(path), *words, "--device", "cpu"]) == 0
        assert Path("maps/0.png").read_bytes() == before
        assert sorted(name.name for name in Path("maps").iterdir()) == ["0-2.png", "0.png"]  # written anew, if ours
    for _ in range(2):
        assert train_cifar.main(["--eval", str(path), "--out", "ours", "--device", "cpu"]) == 0
    assert {file.name for file in Path("ours").iterdir()} <= set(report.REPORT_FILES)
    Path("ours/report.md").unlink(), Path("ours/confusion.csv").unlink()  # as after a full disk
    assert train_cifar.main(["--eval", str(path), "--out", "ours", "--device", "cpu"]) == 0
    capsys.readouterr()


def test_accuracies_are_said_although_the_report_cannot_be_written(images, capsys, monkeypatch):
    path = save_checkpoint(Path("run/best.pt"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "write_report", full)
    assert train_cifar.main(["--eval", str(path), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert "run/best.pt: " in printed.out and "of 12 test images" in printed.out and "No space" in printed.err


def test_a_picture_of_attention_has_a_name_that_a_file_system_takes_and_waits_for_no_pipe(images, capsys):
    path, names = save_checkpoint(Path("run/best.pt")), ["a" * 250 + ".png", "b/" + "a" * 250 + ".png"]
    Path("b").mkdir(), Path("maps").mkdir(), os.mkfifo("maps/0.png")
    for name in names:
        Image.new("RGB", (16, 16)).save(name)
    words = [*names, "images/test/dark/0.png", "--save-attention", "maps", "--device", "cpu"]
    assert train_cifar.main(["--predict", str(path), *words]) == 0
    assert sorted(len(file.name) for file in Path("maps").iterdir()) == [5, 7, 204, 206]


def test_no_cell_of_saved_predictions_runs_as_a_formula_and_the_file_is_written_whole(images, capsys, monkeypatch):
    path = save_checkpoint(Path("run/best.pt"))
    for name in ("=cmd.png", "+1.png", "-2.png", "@x.png", "a\nb.png"):
        Image.new("RGB", (16, 16), (200, 10, 10)).save(name)
    words = ["--predict", str(path), "=cmd.png", "+1.png", "@x.png", "a\nb.png", "=none.png", "./-2.png"]
    assert train_cifar.main([*words, "--save-predictions", "answers.csv", "--tta", "flip", "--device", "cpu"]) == 2
    head, *rows = read_csv(Path("answers.csv"))
    assert head == ["file", "class", "probability", "p(=1+1)", "p(bright)", "p(dark)", "error"]
    assert [row[0] for row in rows] == ["'=cmd.png", "'+1.png", "'@x.png", "a\\nb.png", "'=none.png", "'-2.png"]
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@")]
    assert all(len(row) == len(head) for row in rows) and rows[4][1:6] == [""] * 5 and "none.png" in rows[4][6]
    capsys.readouterr()
    for name, words in (("answers.txt", "ends in .csv or .json"), ("nowhere/a.csv", "name a folder that is there")):
        assert words in refused(["--predict", str(path), "+1.png", "--save-predictions", name], capsys)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    before = Path("answers.csv").read_bytes()
    for name, content in (("labels.csv", "file,label\n"), ("config.json", "{}")):
        Path(name).write_text(content)
        found = refused(["--predict", str(path), "+1.png", "--save-predictions", name], capsys)
        assert f"{name} is there and holds no predictions" in found and Path(name).read_text() == content
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert train_cifar.main(["--predict", str(path), "+1.png", "--save-predictions", "answers.csv"]) == 2
    assert "error: answers.csv: No space left on device: make room" in capsys.readouterr().err
    assert Path("answers.csv").read_bytes() == before


def test_pillow_itself_says_nothing_beside_our_line(tmp_path, capsys, caplog):
    model = save_checkpoint(tmp_path / "run" / "best.pt")
    assert train_cifar.main(["--predict", str(model), str(save_crowded_tiff(tmp_path / "bad.tif"))]) == 2
    assert "bad.tif" in capsys.readouterr().err and not caplog.records


def with_statistics(path: Path, mean: list[float], std: list[float]) -> Path:
    """The checkpoint, as if its images had been normalised so."""
    checkpoint.save(path, checkpoint.read(path) | {"mean": mean, "std": std})
    return path


def test_each_member_of_an_ensemble_has_the_normalisation_of_its_own_file(images):
    means = [[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]]
    paths = [with_statistics(save_checkpoint(Path(f"run/{i}.pt"), i), mean, [0.4] * 3) for i, mean in enumerate(means)]
    assert [member.evaluator.mean for member in load_members(paths, CPU)] == means


def test_a_teacher_sees_pixels_under_its_own_normalisation(images):
    own, students = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ((0.5, 0.4, 0.6), (0.2, 0.3, 0.25))
    path = with_statistics(save_checkpoint(Path("t.pt"), 1), *own)
    test = datasets.load_test("folder", images, 16, CLASSES)
    data = datasets.Dataset(test, test, CLASSES, *students)
    teacher = run.load_teacher(path, data, CPU, {"data": "folder", "data_root": images, "teacher": path, "seed": 0})
    pixels, (model, _) = torch.rand(2, 3, 16, 16), checkpoint.load_model(path, CPU)
    its, theirs = ((pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1) for m, s in (own, students))
    with torch.no_grad():
        torch.testing.assert_close(teacher(theirs), model(its), atol=1e-4, rtol=1e-4)


def test_a_fine_tuned_run_normalises_as_its_weights_were_trained_and_says_what_they_saw(tmp_path):
    for split in ("train", "test"):
        for name, low in (("bright", 150), ("dark", 0)):
            draw(tmp_path / "pets" / split / name, low, 8)
    own, root, lines = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), tmp_path / "pets", []
    saved = save_checkpoint(Path("t.pt"), 3, ["bright", "dark"], val_split=0.25, data_root=str(root))
    given = {"data": "folder", "data_root": root, "preset": "shapes-demo", "pretrained": with_statistics(saved, *own)}
    given |= {"device": "cpu", "out": tmp_path / "new", "seed": 1, "image_size": 16, "val_split": 0.25, "amp": "off"}
    trainer, _ = run.prepare(given, lines.append)
    trainer.claim.release()
    for part in (trainer.data, trainer.plain, trainer.evaluator):
        assert [*part.mean] == pytest.approx(own[0]) and [*part.std] == pytest.approx(own[1])
    assert any("may have been trained on images that are held out now" in line for line in lines)


def test_predictions_are_the_mean_over_the_views_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_checkpoint(Path("run/best.pt"))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    model, _ = checkpoint.load_model(path, torch.device("cpu"))
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.4) / 0.2
    with torch.no_grad():
        plain, mirrored = (model(view).softmax(1)[0] for view in (x, x.flip(3)))
    for words, wanted in (([], plain), (["--tta", "flip"], (plain + mirrored) / 2)):
        words = ["--predict", str(path), "a.png", "--device", "cpu", "--save-predictions", "a.json", *words]
        assert train_cifar.main(words) == 0
        (row,) = json.loads(Path("a.json").read_text())
        assert list(row["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)
        assert list(row["probabilities"]) == CLASSES and row["class"] == CLASSES[int(wanted.argmax())]
    assert (plain - mirrored).abs().max() > 1e-3


def test_a_checkpoint_is_evaluated_in_the_precision_of_its_training(tmp_path):
    state = checkpoint.read(save_checkpoint(tmp_path / "best.pt"))
    for precision, wanted in (("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.float32)):
        assert predict.evaluator_of(state | {"precision": precision}, torch.device("cpu")).dtype == wanted
    checkpoint.save(tmp_path / "bf16.pt", state | {"precision": "bfloat16"})
    assert predict.load_members([tmp_path / "bf16.pt"], torch.device("cpu"))[0].evaluator.dtype == torch.bfloat16
