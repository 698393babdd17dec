"""minivit/report.py against scikit-learn's numbers, and what it writes."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import parity
import parity_vit_report
import pytest
import torch

from minivit import report, run

GOLDEN = parity.Golden.load(Path(__file__).parent / "golden" / "vit" / "train_metrics.npz")
DPI = report.DPI  # that of users: here reports are drawn more coarsely
CLASSES = ["cat", "dog|$x$", "a ship with a rather long name"]
HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "val_acc": 0.5, "lr": 1e-3},
    {"epoch": 2, "train_loss": 3.0, "lr": None},
    {"epoch": 2, "train_loss": 1.0, "val_acc": 0.75, "val_acc_ema": 0.7, "images_per_s": 100.0},
    {"epoch": 3, "train_loss": float("nan"), "val_acc": None},
]


def case(n: int = 12, margin: float = 9.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, target and images of three classes; at the default margin one dog, taken for a cat, is wrong."""
    rng = torch.Generator().manual_seed(0)
    target = torch.arange(n) % 3
    logits = torch.randn(n, 3, generator=rng) + margin * torch.nn.functional.one_hot(target, 3)
    logits[1] = torch.tensor([9.0, 0.0, 0.0])
    return logits, target, torch.randint(0, 256, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)


def texts(ax) -> str:
    return " ".join(text.get_text() for text in ax.texts)


def test_metrics_equal_scikit_learn():
    got = parity_vit_report.CASES["train_metrics"](GOLDEN, "cpu", torch.float32)
    assert got.keys() == GOLDEN.outputs.keys()
    for name in GOLDEN.outputs:
        row, ok = parity.compare(GOLDEN, name, got[name])
        assert ok, row


def test_averages_equal_scikit_learn():
    logits, target = GOLDEN.input("logits"), GOLDEN.input("target")
    means = report.averages(report.per_class_table(report.confusion_matrix(target, logits.argmax(1), 6)))
    for kind in ("macro", "weighted"):
        want = GOLDEN.config["report"][f"{kind} avg"]
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert means[kind][ours] == pytest.approx(want[theirs], abs=1e-12, rel=1e-12)


def test_confusion_has_true_rows_and_predicted_columns():
    confusion = report.confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 2]), 3)
    assert confusion.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_zero_divisions_count_as_zero():
    table = report.per_class_table(torch.tensor([[0, 2], [0, 0]]))  # class 0 never predicted, class 1 never there
    assert all(table[name].tolist() == [0.0, 0.0] for name in ("precision", "recall", "f1", "accuracy"))
    assert table["support"].tolist() == [2, 0]


def test_top_k_gives_ties_to_the_higher_class():
    logits = torch.zeros(4, 4)
    assert [report.top_k(logits, torch.arange(4), k) for k in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert report.top_k(logits, torch.full((4,), 3), 1) == 1.0


def test_json_markdown_and_csv_hold_the_same_numbers(tmp_path):
    logits, target, images = case()
    folder = tmp_path / "new" / "report"
    got = report.write_report(folder, logits, target, CLASSES, images, HISTORY, "Title", {"device": "CPU"})
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert stored == got
    confusion = report.confusion_matrix(target, logits.argmax(1), 3)
    assert stored["confusion"] == confusion.tolist()
    assert stored["top1"] == report.top_k(logits, target, 1) == confusion.trace().item() / 12
    assert stored["top5"] == 1.0
    assert stored["facts"] == {"device": "CPU"}
    assert [row["class"] for row in stored["per_class"]] == CLASSES
    assert stored["per_class"][1]["recall"] == stored["per_class"][1]["accuracy"] == 0.75

    with open(folder / "confusion.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == CLASSES and [[int(v) for v in row[1:]] for row in rows[1:]] == stored["confusion"]
    with open(folder / "per_class.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["f1"]) for row in rows] == [row["f1"] for row in stored["per_class"]]

    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| device | CPU |" in text and "| dog\\|\\$x\\$ | cat | 1 | 25.00 |" in text
    assert f"| top-1 accuracy | {report.percent(stored['top1'])} % |" in text


@pytest.mark.parametrize(
    "share, shown", [(0.99999, "99.99"), (1.0, "100.00"), (0.29, "29.00"), (0.9123, "91.23"), (2 / 3, "66.66")]
)
def test_percentages_are_never_rounded_up(share, shown):
    assert report.percent(share) == shown


def test_the_head_of_the_report_cuts_its_percentages_too():
    result = {"test_acc_final": 2 / 3, "test_acc_final_ema": 0.99999, "chosen": "final_ema", "val_acc": 0.99999}
    result |= {"weights": "averaged", "epoch": 7, "epochs": 7, "stopped_early": True}
    assert run.report_facts(result) == {
        "weights": "averaged, epoch 7 of 7",
        "test accuracy, final": "66.66 %",
        "test accuracy, final averaged": "99.99 %",
        "hold-out accuracy of these weights": "99.99 %",
        "stopped early": "the hold-out accuracy no longer rose (--patience)",
    }
    chosen = {"chosen": "best", "test_acc_best": 0.5, "weights": "raw", "epoch": 3}
    assert run.report_facts(result | chosen)["weights"] == "raw, epoch 3 of 7, chosen by the hold-out"


def test_without_matplotlib_all_numbers_are_written_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it raises ImportError
    logits, target, images = case()
    report.write_report(tmp_path, logits, target, CLASSES, images, HISTORY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.csv", "per_class.csv", "report.json", "report.md"]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "minivit-minisam[cli]" in out
    assert ".png" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_pictures_are_written_at_300_dpi_without_pyplot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from PIL import Image

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(report, "DPI", DPI)
    logits, target, images = case()
    report.write_report(tmp_path, logits, target, CLASSES, images, HISTORY)
    pictures = {p.stem for p in tmp_path.glob("*.png")}
    assert pictures == {"curves", "confusion", "confusion_normalised", "predictions"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        assert f"({name}.png)" in text
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert min(image.size) > 600 and len(np.unique(np.asarray(image.convert("L")))) > 20
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_pictures_without_history_or_images_are_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    report.write_report(tmp_path, *case()[:2], CLASSES, history=[{"epoch": 1}, {"train_loss": 3.0}])
    assert {p.stem for p in tmp_path.glob("*.png")} == {"confusion", "confusion_normalised"}


def test_curves_skip_missing_values_and_name_the_best_epoch():
    pytest.importorskip("matplotlib")
    loss, accuracy, lr, speed = report._draw_curves(HISTORY, "t").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]  # the repeated epoch 2 replaces the first
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["hold-out: best 75.00 (epoch 2)", "hold-out, EMA weights: best 70.00 (epoch 2)"]
    assert lr.lines[0].get_xydata().tolist() == [[1, 1e-3]]
    assert speed.lines[0].get_xydata().tolist() == [[2, 100.0]]
    assert report._draw_curves([], "t") is None


def test_prediction_grid_marks_mistakes_and_is_always_the_same():
    pytest.importorskip("matplotlib")
    logits, target, images = case(60, margin=2.0)
    predicted = logits.argmax(1)
    confidence = logits.softmax(1).max(1).values
    args = (images, target, predicted, confidence, CLASSES, "t")
    fig = report._draw_predictions(*args)
    wrong = int((predicted != target).sum())
    assert 1 < wrong < 16 and len(fig.axes) == 32 + wrong
    assert "\u2717 cat 99 %" in texts(fig.axes[32]) and "true: dog" in texts(fig.axes[32])  # the surest mistake first
    for ax in fig.axes:
        assert ("\u2717" in texts(ax)) == (ax.spines["top"].get_linewidth() > 1)
    assert sum("\u2713" in texts(ax) for ax in fig.axes[:32]) == int(fig.texts[1].get_text().split()[3])
    assert report._png(fig) == report._png(report._draw_predictions(*args))


@pytest.mark.parametrize("C, printed", [(2, 2), (10, 10), (100, 100), (400, 0)])
def test_confusion_labels_do_not_overlap(C, printed):
    pytest.importorskip("matplotlib")
    names = [f"class number {i}" for i in range(C)]
    fig = report._draw_confusion(1000 * np.eye(C, dtype=np.int64), names, "t", normalised=True)
    fig.draw_without_rendering()
    ax = fig.axes[0]
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) == C or C == 400 and 100 < len(boxes) < C  # of too many names every second or third is shown
    assert len(ax.texts) == printed
    assert all(upper.y0 > lower.y1 for upper, lower in zip(boxes, boxes[1:]))
    cell = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert all(text.get_window_extent().width < cell for text in ax.texts)
    if C >= 100:  # upright labels; slanted ones overlap only in their upright boxes
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


def test_an_interrupted_write_keeps_the_old_report(tmp_path, monkeypatch):
    (tmp_path / "confusion.csv").write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    def fail(source, destination):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(tmp_path, *case()[:2], CLASSES)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"confusion.csv": "old"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y, i: (x[:, :2], y, i), "2 logits for 3 class names"),
        (lambda x, y, i: (x, y[:5], i), r"give \(N, C\) and \(N,\)"),
        (lambda x, y, i: (x[:0], y[:0], i[:0]), "N >= 1"),
        (lambda x, y, i: (x, y + 1, i), "target holds classes 1 to 3"),
        (lambda x, y, i: (x * float("nan"), y, i), "NaN"),
        (lambda x, y, i: (x, y, i.float()), "give uint8"),
        (lambda x, y, i: (x, y, i[:3]), r"give uint8 \(12, 3, H, W\)"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, change, message):
    logits, target, images = change(*case())
    with pytest.raises(ValueError, match=message):
        report.write_report(tmp_path / "report", logits, target, CLASSES, images)
    assert not (tmp_path / "report").exists()


def test_bad_metric_arguments_are_named():
    with pytest.raises(ValueError, match=r"both be \(N,\)"):
        report.confusion_matrix(torch.zeros(3), torch.zeros(4), 2)
    with pytest.raises(ValueError, match="top-0"):
        report.top_k(torch.zeros(2, 2), torch.zeros(2), 0)


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    target = torch.tensor([0, 0, 0, 1, 0, 0])  # three of four right at 90 %, both at 60 %: too sure, not sure enough
    error = report.expected_calibration_error(logits, target)
    assert error == pytest.approx(4 / 6 * (0.9 - 0.75) + 2 / 6 * (1 - 0.6))


def test_the_lowest_two_of_fifteen_bins_are_two():
    sure = torch.tensor([0.06, 0.1], dtype=torch.float64)  # of twenty classes
    others = ((1 - sure) / 19).log()[:, None].expand(2, 19)
    logits = torch.cat([sure.log()[:, None], others], dim=1)
    error = report.expected_calibration_error(logits, torch.tensor([0, 1]))  # right, and wrong
    assert error == pytest.approx((0.94 + 0.1) / 2)


def test_top_5_counts_five_classes():
    logits, target = torch.arange(7.0).flip(0).expand(7, 7), torch.arange(7)  # class 0 first, class 6 last
    confusion = report.confusion_matrix(target, logits.argmax(1), 7)
    found = report._metrics(logits, target, confusion, [*"abcdefg"])
    assert (found["top1"], found["top5"]) == (pytest.approx(1 / 7), pytest.approx(5 / 7))


def test_a_classifier_that_is_right_as_often_as_it_says_has_no_calibration_error():
    logits = torch.tensor([[0.75, 0.25]] * 4, dtype=torch.float64).log()
    assert report.expected_calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)


NASTY = [
    "<script>alert(1)</script>",
    "![x](http://127.0.0.1/x.png)",
    "a|b\\|c",
    "`code` $x$ **bold**",
    "\x1b[31mred\x9b",
    "two\nlines\t",
    "caf\udce9",
    "\u732b",
    "\U000f0000\u202e",
]


def test_names_of_classes_break_no_table_and_bring_no_markup_or_control_character(tmp_path, recwarn):
    count, logits = len(NASTY), torch.eye(len(NASTY)) * 3
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    got = report.write_report(tmp_path, logits, torch.arange(count), NASTY, images, HISTORY, NASTY[0], {"a|b": "<b>"})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored == got and [row["class"] for row in stored["per_class"]] == NASTY
    for path in tmp_path.iterdir():
        if path.suffix != ".png":
            assert {c for c in path.read_text(encoding="utf-8") if not c.isprintable()} <= {"\n"}, path
    plain = re.sub(r"\\.", "", text)  # without what is escaped
    assert not set(plain) & set("<>`$") and "[x]" not in plain
    table = plain.split("## Confusion matrix")[1].strip().splitlines()[2:]
    assert len(table) == count + 2 and {row.count("|") for row in table} == {count + 2}
    with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)][4:7] == [
            "\\x1b[31mred\\x9b",
            "two\\nlines\\t",
            "caf\\udce9",
        ]
    assert not [w for w in recwarn.list if "Glyph" in str(w.message)]


def test_pictures_show_letters_of_any_script_where_a_font_has_them_and_escape_the_others():
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.font_manager import fontManager

    families, missing = report._find_fonts("cat \u00e9\u0416")
    assert families == matplotlib.rcParams["font.family"] and not missing
    families, missing = report._find_fonts("\u732b cat \U0010ffff")
    assert missing in (set(), {"\u732b"}) and len(families) == 2 - len(missing)  # a font for CJK may be at hand
    assert report._without("\u732b cat", {"\u732b"}) == "\\u732b cat" and report._without("\u732b", set()) == "\u732b"
    only = [entry for entry in fontManager.ttflist if entry.name == "STIXGeneral"]
    rare = "\u2a2f\u2aaf"
    assert report._find_fonts(rare)[1] == set() and only


def test_the_picture_of_the_confusions_has_true_rows_and_predicted_columns():
    pytest.importorskip("matplotlib")
    ax = report._draw_confusion(np.array([[5, 3, 0], [0, 4, 0], [0, 0, 2]]), ["a", "b", "c"], "t", False).axes[0]
    assert ax.images[0].get_array().tolist() == [[5, 3, 0], [0, 4, 0], [0, 0, 2]]
    printed = {text.get_position(): text.get_text() for text in ax.texts}
    assert printed[(1, 0)] == "3" and (0, 1) not in printed  # x = 1: predicted b; y = 0: truly a
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert ax.yaxis_inverted()  # the first class on top
