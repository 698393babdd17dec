"""minivit/study.py: variants x seeds, each trained once, in one table."""

import csv
import json
import shutil
import signal
import statistics
from pathlib import Path

import pytest
import torch
from helpers.drawn_shapes import save_shapes

import train_cifar
from minivit import budget, checkpoint, cli, config, report, run, study
from minivit.budget import Budget
from minivit.files import write_json
from minivit.folder import load as load_folder
from minivit.splits import subset
from minivit.study import STUDIES, Row, expand, folder_name, load_study, plan
from minivit.train import Trainer
from minivit.train_config import TrainingError

TINY = {"preset": "shapes-demo", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "batch_size": 20}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda *_, **__: None)  # whose pictures take seconds
    monkeypatch.chdir(tmp_path)


def written(content: object) -> str:
    Path("mine.json").write_text(json.dumps(content))
    return "mine.json"


def words(images: Path, *more: str) -> list[str]:
    rest = "--epochs 1 --data folder --device cpu --threads 1 --amp off --val-split 0"
    return ["--study", "mine.json", "--data-root", str(images), *rest.split(), *more]


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_is_a_run_that_can_be(name):
    runs = plan(load_study(name), {"data": "cifar10"}, Path("out"), 2)
    assert len(runs) == 2 * len(STUDIES[name]) == len({arguments["out"] for _, _, arguments in runs})
    for variant, seed, arguments in runs:
        assert arguments["seed"] == seed and arguments["out"].name == folder_name(variant, seed)
        if "teacher" in arguments:
            before = [a["out"] for _, _, a in runs[: runs.index((variant, seed, arguments))]]
            assert arguments["teacher"].parent in before and f"seed{seed}" in str(arguments["teacher"])


def test_a_setting_of_the_model_on_the_command_line_holds_for_all_variants_but_resnets():
    given = {"data": "cifar10", "dim": 128, "lr": 2e-3}
    runs = {variant: arguments for variant, _, arguments in plan(load_study("ladder"), given, Path("out"), 1)}
    assert {arguments["lr"] for arguments in runs.values()} == {2e-3}
    assert {variant for variant, arguments in runs.items() if "dim" not in arguments} == {"ResNet-18, the teacher"}


def test_the_grid_has_the_four_models_of_the_reference():
    sizes = []
    for arguments in STUDIES["grid"].values():
        overrides = {key: value for key, value in arguments.items() if key != "preset"}
        config = checkpoint.outline_model(arguments["preset"], 10, overrides).config
        sizes.append((config.patch, config.dim, config.depth, config.heads))
    assert sizes == [(4, 128, 6, 4), (4, 256, 6, 4), (4, 128, 12, 8), (2, 128, 6, 4)]


def test_lists_make_a_grid_and_what_is_a_list_itself_does_not():
    assert expand("lr", {"lr": [1e-3, 1e-2], "dim": 64, "mixup": [0.1, 0.2]}) == [
        (f"lr, lr {lr}, mixup {m}", {"lr": lr, "dim": 64, "mixup": m}) for lr in (1e-3, 1e-2) for m in (0.1, 0.2)
    ]
    assert expand("a", {"sizes": [24, 32]}) == [("a", {"sizes": [24, 32]})]
    assert len(expand("a", {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]})) == 1
    assert [settings["sizes"] for _, settings in expand("a", {"sizes": [[24, 32], [32]]})] == [[24, 32], [32]]
    assert list(load_study(written({"base": {"dim": [64, 128]}}))) == ["dim 64", "dim 128"]


def test_a_study_is_read_as_editors_of_windows_save_it():
    for encoding in ("utf-8-sig", "utf-16"):
        Path("mine.json").write_text(json.dumps({"variants": {"schärfer": {"dim": 64}}}), encoding=encoding)
        assert load_study("mine.json") == {"schärfer": {"dim": 64}}


def test_a_variant_of_any_name_has_a_folder_of_its_own():
    names = ["a" * 300, "a" * 300 + "b"]
    folders = [folder_name(name, 0) for name in names]
    assert len(set(folders)) == 2 and all(len(folder) < 255 for folder in folders)


def test_a_run_whose_config_says_little_is_told_by_the_defaults():
    Path("a-seed0").mkdir()
    write_json(Path("a-seed0/config.json"), {"arguments": {}})
    with pytest.raises(study.StudyError, match="was trained with another --"):
        study.is_done(TINY | {"data": "shapes", "out": Path("a-seed0")})


def test_the_tables_of_others_are_not_overwritten(images, capsys):
    written({"variants": {"a": TINY}})
    Path("out").mkdir(), Path("out/table.md").write_text("mine")
    words = ["--study", "mine.json", "--data", "folder", "--data-root", str(images), "--out", "out"]
    assert train_cifar.main(words) == 2
    assert "out/table.md is not of a study, and is not overwritten: move it away" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["table.md"]


def test_tables_are_written_again_where_study_json_was_damaged_and_removed(images, capsys):
    written({"variants": {"a": TINY | {"epochs": 1, "val_split": 0}}})
    words = ["--study", "mine.json", "--data", "folder", "--data-root", str(images), "--out", "out", "--device", "cpu"]
    assert train_cifar.main(words) == 0
    for content in ("{", None):  # damaged, as it says: remove it; then gone
        Path("out/study.json").write_text("{") if content else Path("out/study.json").unlink()
        assert train_cifar.main(words) == (2 if content else 0)
    assert "remove it, and the same command goes on" in capsys.readouterr().err
    shutil.rmtree("out/a-seed0")
    assert train_cifar.main(words) == 0  # study.json is back: the tables are known to be ours


@pytest.mark.parametrize(
    "content, said",
    [
        ({"variants": {"a": {"dimm": 3}}}, "'a' has the argument 'dimm', which is none; near: dim"),
        ({"variants": {"a": {"out": "x"}}}, "'a' has the argument 'out', which is none"),
        ({"base": {"epoch": 3}}, "'epoch', which is none; near: epochs"),
        ({"variant": {}}, "the key 'variant', where base and variants are known"),
        ({"variants": {"a": {"dim": {"x": 1}}}}, "'a': dim is {'x': 1}, not a value or a list of values"),
        ({"variants": {"a": {"dim": []}}}, "'a': dim is [], not a value"),
        ({"variants": {"a": {"dim": "wide"}}}, "'a': dim is 'wide', not a whole number"),
        ({"variants": {"a": {"preset": [{"a": 1}]}}}, "preset is a dict of 1, not a text"),
        ({"variants": {"a": {"sizes": [[{"a": 1}], [32]]}}}, "sizes[0] is a dict of 1"),
        ({"base": dict.fromkeys(["lr", "dim", "heads", "depth", "patch"], [1] * 10)}, "of more than 10000 variants"),
        ({"variants": {"a": {"dim": 10}}}, "variant 'a': --dim 10 does not divide into 8 heads"),
        ({"variants": {"a": {"lr": -1}}}, "variant 'a': --lr is -1, not above 0"),
        ({"variants": {"a": {"preset": "vit-z"}}}, "variant 'a': --preset is 'vit-z'"),
        ({"variants": {"a": {"teacher": "@b"}}}, "variant 'a': its teacher '@b' is no variant"),
        ({"variants": {"a": {"teacher": "train:resnet18"}}}, "make it a variant of the study, and name it"),
        ({"variants": {"a": {"hours": 2}}}, "'a' has the argument 'hours', which is none, of a training run"),
        ({"variants": {"a b": {}, "A-b": {}}}, "two variants have names that differ in nothing but signs"),
        ({"variants": {}}, "a dictionary of at least 1"),
        ([1], "it holds no dictionary; a study looks like"),
        ("{", "mine.json"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be_meant_is_one_line_and_writes_nothing(content, said, capsys):
    written(content)
    if content == "{":
        Path("mine.json").write_text(content)
    assert train_cifar.main(["--study", "mine.json", "--data", "folder"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1, error
    assert [path.name for path in Path().iterdir()] == ["mine.json"]


def test_a_study_that_does_not_exist_and_flags_that_do_not_go_with_it_are_named(capsys):
    for more, said in (
        (["--study", "foo"], "--study foo: choose grid, ladder, distillation, ablation, or give a .json file"),
        (["--study", "foo.json"], "--study foo.json: there is no such file"),
        (["--study", "grid", "--hours", "1", "--epochs", "2"], "--hours and --epochs both end a run"),
        (["--study", "grid", "--hours", "1", "--cpu-minutes", "2"], "--cpu-minutes and --hours both end a run"),
        (["--study", "grid", "--repeat", "wide"], "--repeat 'wide': choose best, patch 4, dim 128, depth 6, heads 4,"),
        (["--study", "grid", "--repeat", "best", "--val-split", "0"], "--repeat best is told by the hold-out"),
        (["--study", "grid", "--seeds", "0"], "--seeds is 0, not a whole number from 1"),
        (["--study", "grid", "--teacher", "demo"], "--teacher goes with a run, not with --study"),
        (["--seeds", "2"], "--seeds goes with --study"),
        (["--study", "grid", "--cpu-minutes", "1", "--data", "folder", "--data-root", "nowhere"], "nowhere"),
    ):
        assert train_cifar.main(more) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_signal_at_the_end_of_a_variant_ends_the_study(images, capsys, monkeypatch):
    written({"base": TINY, "variants": {"one": {"dim": 8}, "two": {"dim": 16}}})
    end, begun = Trainer.end_epoch, []

    def interrupted(trainer: Trainer) -> None:
        begun.append(trainer.run.name)
        if trainer.epoch + 1 == trainer.config.epochs:
            signal.raise_signal(signal.SIGINT)
        end(trainer)

    monkeypatch.setattr(Trainer, "end_epoch", interrupted)
    assert train_cifar.main(words(images, "--out", "out", "--subset", "40")) == 130
    assert "the same command goes on" in capsys.readouterr().out and len(set(begun)) == 1


def test_a_study_trains_each_run_once_goes_on_after_a_stop_and_writes_one_table(images, capsys, monkeypatch):
    written({"base": TINY, "variants": {"=1+1": {"teacher": "@teacher"}, "teacher": {"epochs": 2}}})
    fit, trained = cli.fit, []

    def counted(trainer: Trainer) -> bool:
        trained.append(trainer.run.name)
        trainer.stop_requested = len(trained) == 2  # before the first step of the student
        return fit(trainer)

    monkeypatch.setattr(cli, "fit", counted)
    assert train_cifar.main(words(images, "--out", "out", "--subset", "40")) == 143
    assert "stopped and saved; the same command goes on" in capsys.readouterr().out
    assert "\u2013 | \u2013 | 0 |" in Path("out/table.md").read_text()
    assert train_cifar.main(words(images, "--out", "out", "--subset", "40")) == 0
    printed = capsys.readouterr().out
    assert trained[0] == "teacher-seed0" and trained[1] == trained[2] != trained[0]
    assert "[1/2] teacher, seed 0: done" in printed and "table: out/table.md" in printed
    with open("out/table.csv", newline="", encoding="utf-8") as file:
        student, teacher = csv.DictReader(file)
    result = json.loads(Path("out/teacher-seed0/result.json").read_text())
    assert float(teacher["test_accuracy"]) == result["test_acc"] and teacher["epochs"] == "2" and teacher["n"] == "1"
    assert student["variant"] == "'=1+1" and student["std"] == "" and Path("out/table.png").exists()
    config = json.loads(Path("out/teacher-seed0/config.json").read_text())
    assert config["images"] == 40 and config["arguments"]["subset"] == 40
    before = Path("out/table.md").read_bytes()
    assert train_cifar.main(words(images, "--out", "out", "--subset", "40")) == 0 and len(trained) == 3
    assert Path("out/table.md").read_bytes() == before
    assert train_cifar.main(words(images, "--out", "out", "--subset", "41")) == 2
    assert "was trained with another --subset (40): choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("amp, another", [("off", True), ("bf16", False), ("auto", False), (None, False)])
def test_a_precision_that_is_asked_for_makes_it_another_run(amp, another, images, tmp_path):
    arguments = {"preset": "shapes-demo", "data": "folder", "data_root": images, "out": tmp_path / "run"}
    arguments["out"].mkdir()
    config.write_arguments(arguments["out"] / "config.json", config.resolve(arguments | {"amp": "bf16"}))
    asked = arguments | ({} if amp is None else {"amp": amp})
    if another:
        with pytest.raises(study.StudyError, match="another --amp \\(bf16\\)"):
            study.is_done(asked)
    else:
        assert not study.is_done(asked)  # it is the run, and not finished


def test_a_setting_of_the_model_that_is_not_given_again_makes_it_another_run(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"preset": "shapes-demo", "data": "folder", "data_root": images, "out": tmp_path / "run"}
    arguments["out"].mkdir()
    config.write_arguments(arguments["out"] / "config.json", config.resolve(arguments | {"dim": 32}))
    with pytest.raises(study.StudyError, match="another --dim \\(32\\)"):
        study.is_done(arguments)
    with pytest.raises(study.StudyError, match="another --depth"):
        study.is_done(arguments | {"dim": 32, "depth": 9})
    assert not study.is_done(arguments | {"dim": 32})


def test_what_a_run_settles_by_itself_does_not_make_it_another_one(images, tmp_path, monkeypatch):
    settled = {"mean": [0.1] * 3, "std": [0.2] * 3, "epochs": 7}  # as a pretrained file and a budget do
    monkeypatch.setattr(run, "final_report", lambda trainer: write_json(trainer.run / "result.json", {}))
    written({"base": TINY | {"data_root": str(images), "data": "folder"}, "variants": {"a": {"sizes": [8, 16]}}})
    given = {"device": "cpu", "threads": 1, "amp": "off", "val_split": 0, "preset": "shapes-demo"}
    ((_, _, arguments),) = plan(load_study("mine.json"), given, tmp_path / "out", 1)
    assert not study.is_done(arguments)
    folder = arguments["out"]
    folder.mkdir(parents=True)
    saved = config.resolve(arguments) | settled
    config.write_arguments(folder / "config.json", saved)
    write_json(folder / "result.json", {})
    assert study.is_done(arguments)
    with pytest.raises(study.StudyError, match="another --mean"):
        study.is_done(arguments | {"mean": (0.3, 0.3, 0.3)})
    assert study.is_done(arguments | {"mean": [0.1] * 3, "std": [0.2] * 3})  # as the command line gives them


def test_a_variant_with_epochs_of_its_own_has_no_budget(capsys):
    written({"base": TINY, "variants": {"a": {"epochs": 3}}})
    assert train_cifar.main(["--study", "mine.json", "--data", "shapes", "--cpu-minutes", "1"]) == 2
    assert "variant 'a' has epochs, where 1 CPU minutes end each run" in capsys.readouterr().err


def test_a_run_that_diverges_is_told_and_the_others_go_on(images, capsys):
    written({"base": TINY, "variants": {"bad": {"lr": 1e38, "warmup": 0.0}, "taught": {"teacher": "@bad"}, "good": {}}})
    assert train_cifar.main(words(images, "--out", "out")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "bad, seed 0: the weights are not finite" in errors[0].replace("loss is", "weights are")
    assert "taught, seed 0: its teacher is not trained" in errors[1]
    table = Path("out/table.md").read_text()
    assert "| good | " in table and table.count("| 0 |") == 2


def test_the_epochs_of_a_time_budget_are_those_that_fit_each_image_size_by_its_share(images, monkeypatch, tmp_path):
    given = {**TINY, "data": "folder", "data_root": images, "device": "cpu", "amp": "off", "val_split": 0}
    given |= {"preset": "cifar-fast", "sizes": [8, 16], "crop": 1, "warmup": 5, "patience": 9, "epochs": 30}
    seconds = {8: 1.0, 16: 3.0}
    monkeypatch.setattr(budget, "step_seconds", lambda trainer: seconds[trainer.side])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    dataset = run.load_data(config.resolve(given))
    for limit, minutes in ((Budget(hours=1.0), 120), (Budget(cpu_minutes=5.0), 5)):  # of two threads
        assert budget.epochs_within(limit, given, dataset) == 60 * minutes // (2 * 3)  # 3 steps of 2 s on average
    assert budget.epochs_within(Budget(hours=1e-6), given, dataset) == 1
    for minutes, epochs in ((0.19, 1), (0.2, 2), (0.39, 3), (0.4, 4), (0.45, 5)):  # of 9, 12, 15, 24 and 27 s
        assert budget.epochs_within(Budget(cpu_minutes=minutes), given, dataset) == epochs
    with pytest.raises(TrainingError, match="--cpu-minutes counts processor time, and cuda is no CPU"):
        Budget(cpu_minutes=1.0).seconds(torch.device("cuda"))
    monkeypatch.undo()
    monkeypatch.setattr(budget, "FEWEST", 2), monkeypatch.setattr(budget, "LEAST", 0.0)
    monkeypatch.chdir(tmp_path)
    assert budget.epochs_within(Budget(hours=1e-6), given, dataset) == 1 and list(Path().iterdir()) == []


def test_slow_steps_of_a_busy_machine_and_the_time_that_others_use_do_not_shorten_a_run(images, monkeypatch, tmp_path):
    given = {**TINY, "data": "folder", "data_root": images, "device": "cpu", "amp": "off", "val_split": 20}
    trainer, _ = run.prepare({**given, "out": tmp_path / "run"})
    taken = iter([9.0, 5.0, 1.0, 3.0, 1.0, 1.0, 5.0, 1.0])  # the first one sets up
    monkeypatch.setattr(budget, "step_seconds", lambda trainer: next(taken))
    evaluated = []
    monkeypatch.setattr(Trainer, "accuracy", lambda self, model, split: evaluated.append(len(split)) or 0.5)
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(budget.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(budget, "LEAST", 16.5)
    assert budget.epoch_seconds(trainer, 0) == 2 * 1.0 + 2 * 0.25 and evaluated == [20]
    assert next(taken, None) is None  # 17 seconds of steps are enough
    taken = iter([9.0] + [2.0] * 10)
    clock = iter([10.0, 10.25])
    assert budget.epoch_seconds(trainer, 0, 20.0) == 2 * 2.0 + 2 * 0.25 and next(taken, None) is None
    trainer.claim.release()


def test_seeds_of_the_named_and_the_best_variant_and_the_teachers_that_they_need(images, capsys, monkeypatch):
    written({"base": TINY, "variants": {"a": {}, "b": {"teacher": "@t"}, "c": {"lr": 1e-5}, "t": {}}})
    accuracy = {"a": 0.5, "b": 0.7, "c": 0.6, "t": 0.9}  # t teaches, and is not asked for

    def fit(trainer: Trainer) -> bool:
        (trainer.run / "best.pt").touch()
        return True

    def report_of(trainer: Trainer) -> None:
        result = {"test_acc": 0.4, "val_acc": accuracy[trainer.run.name[0]]}
        (trainer.run / "result.json").write_text(json.dumps(result))
        (trainer.run / "metrics.jsonl").write_text('{"images_per_s": 60, "cpu_minutes": 3}\n')

    measured = []
    monkeypatch.setattr(cli, "fit", fit)
    monkeypatch.setattr(run, "final_report", report_of)
    monkeypatch.setattr(run, "load_teacher", lambda *_: None)
    monkeypatch.setattr(study, "epochs_within", lambda limit, arguments, data: measured.append(limit) or len(measured))
    asked = ["--study", "mine.json", "--out", "out", "--seeds", "2", "--repeat", "a", "best", "--cpu-minutes", "0.5"]
    asked += ["--data", "folder", "--data-root", str(images), "--device", "cpu", "--amp", "off"]
    assert train_cifar.main(asked) == 0
    assert "best on the hold-out: b" in capsys.readouterr().out
    folders = sorted(path.name for path in Path("out").iterdir() if path.is_dir())
    assert folders == ["a-seed0", "a-seed1", "b-seed0", "b-seed1", "c-seed0", "t-seed0", "t-seed1"]
    assert measured == [Budget(cpu_minutes=0.5)] * 4  # once a variant: its seeds have equal epochs
    epochs = {name: config.read_config(Path("out") / name / "config.json")["epochs"] for name in folders}
    assert epochs["b-seed0"] == epochs["b-seed1"] and epochs["a-seed0"] == epochs["a-seed1"] != epochs["b-seed0"]
    table = Path("out/table.md").read_text()
    assert (
        f"# Study mine on {images.name}, 0.5 CPU minutes a run" in table
        and table.count("| 2 |") == 3
        and table.count("| 3.0 |") == 4
    )
    assert train_cifar.main(asked) == 0 and len(measured) == 4
    asked[asked.index("0.5")] = "30"
    assert train_cifar.main(asked) == 2
    assert "out holds a study with 0.5 CPU minutes a run, not with 30 CPU minutes a run" in capsys.readouterr().err
    Path("out/study.json").write_text('{"hours": "x", "cpu_minutes": null}')
    assert train_cifar.main(asked) == 2
    assert "out/study.json is damaged (it['hours'] is 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "subsets, roots, told",
    [
        ((0, 0), ("a/img", "a/img"), "img"),
        ((20, 20), ("img", "img"), "img, 20 training images"),
        ((20, 0), ("img", "img"), "img, of unequal size"),
        ((0, 0), ("img", "more"), "several data sets"),
    ],
)
def test_the_title_of_a_table_says_what_holds_for_all_its_rows(subsets, roots, told):
    runs = [{"data": "folder", "data_root": root, "subset": subset} for subset, root in zip(subsets, roots)]
    assert study.told_data(runs) == told


def test_a_row_has_the_mean_and_the_standard_deviation_of_its_runs_and_dashes_for_what_is_not_there():
    row = Row("a", (0.5, 0.6, 0.64), 1200, 3, 99.6, 1.25)
    assert row.mean == pytest.approx(0.58) and row.std == pytest.approx(statistics.stdev([0.5, 0.6, 0.64]))
    assert study.cells(row) == ["58.00", "7.21", "3", "1,200", "3", "100", "1.2", "\u2013"]
    assert study.cells(Row("a", (0.5,), 12, 3, 10.0, 1.0))[1] == "\u2013"
    assert study.cells(Row("a", ())) == ["\u2013", "\u2013", "0", *["\u2013"] * 5]


def test_names_that_no_font_has_are_drawn_as_escapes():
    pytest.importorskip("matplotlib")
    name, ticks = "lr \ud800\x1b[31m", []

    def draw(shown):
        figure = study.draw([Row(name, (0.5, 0.6))], name, shown)
        ticks.extend(label.get_text() for label in figure.axes[0].get_yticklabels())
        return figure

    assert report.draw_png(draw, name).startswith(b"\x89PNG") and ticks == [r"lr \ud800\x1b[31m"]


def test_a_damaged_run_is_named_and_a_subset_keeps_the_classes(images, tmp_path):
    folder, config = tmp_path / "x", {"images": 500, "parameters": 4, "arguments": {"batch_size": 200}}
    folder.mkdir()
    for name, content in (("result.json", '{"test_acc": 2}'), ("config.json", json.dumps(config))):
        (folder / name).write_text(content)
    (folder / "metrics.jsonl").write_text('{"images_per_s": 3}\n')
    with pytest.raises(TrainingError, match="x holds a damaged run .*out of range"):
        study.read_run(folder)
    (folder / "result.json").write_text('{"test_acc": 0.2}')
    (folder / "metrics.jsonl").write_text('{"images_per_s": 20}\n' * 3)
    assert study.read_run(folder)["minutes"] == pytest.approx(1)  # three times 400 images: 100 fill no batch
    few = subset(load_folder(images, 16), 20)
    assert len(few.train) == 20 and few.train.labels.bincount().tolist() == [2] * 10 and len(few.test) == 20
    assert len(subset(load_folder(images, 16), 10**6).train) == 60


@pytest.mark.parametrize(
    "variants, words",
    [
        ({"a": {"teacher": 5}}, "'a': teacher"),
        ({"a": {"data_root": 5}}, "'a': data_root"),
        ({"a": {"pretrained": True}}, "'a': pretrained"),
        ({"a": {"lr": [0.001]}, "a, lr 0.001": {"depth": 1}}, "two variants are called 'a, lr 0.001'"),
        ({"a": {"lr": [0.001, 0.001]}}, "two variants are called"),
    ],
)
def test_a_number_in_place_of_a_path_and_a_name_that_comes_twice_are_refused(variants, words, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"variants": variants}))
    with pytest.raises(study.StudyError, match=words):
        load_study(str(tmp_path / "study.json"))


def test_the_accuracy_of_a_row_is_that_of_the_chosen_weights(tmp_path):
    result = {"test_acc_final": 0.1, "test_acc_final_ema": 0.2, "test_acc_best": 0.3, "test_acc": 0.3, "val_acc": 0.4}
    settings = {"images": 100, "parameters": 7, "arguments": {"batch_size": 30}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    rows = [{"images_per_s": 1.5, "cpu_minutes": 1.0}, {"images_per_s": 3.0, "cpu_minutes": 2.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = study.read_run(tmp_path)
    assert (found["accuracy"], found["held_out"], found["parameters"], found["epochs"]) == (0.3, 0.4, 7, 2)
    assert found["minutes"] == (60 + 30) / 60 and found["images_per_s"] == 2 and found["cpu_minutes"] == 2.5
