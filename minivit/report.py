"""Report on a classifier: metrics, tables and pictures.

The metrics follow scikit-learn's conventions: rows are true and columns predicted classes, 0 / 0 counts as 0, and of
equal logits the higher class ranks first in top-k. A class without images has no figures, and no part in the means.
Confidence is the softmax probability of the predicted class; its calibration error is that of Guo et al., arXiv
1706.04599. Pictures need matplotlib (extra `cli`); all numbers are written without it. Names of classes may hold
anything: they are shown letter by letter, those that no font has and control characters as escapes such as \\x1b.
Left out: threshold curves (ROC, precision-recall), multi-label targets.
"""

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minivit.files import write_atomically
from minivit.text import csv_cell, markdown, printable, say

REPORT_FILES = ("report.md", "report.json", "confusion.csv", "per_class.csv")
REPORT_FILES += ("confusion.png", "confusion_normalised.png", "curves.png", "predictions.png")
DPI = 300
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"  # Okabe and Ito's palette
# Each panel: title, then for each key of metrics.jsonl its legend and colour.
PANELS = (
    ("Loss", {"train_loss": ("training", BLUE)}),
    (
        "Accuracy (%)",
        {
            "train_acc": ("training", BLUE),
            "val_acc": ("hold-out", ORANGE),
            "val_acc_ema": ("hold-out, EMA weights", GREEN),
        },
    ),
    ("Learning rate", {"lr": ("", BLUE)}),
    ("Images per second", {"images_per_s": ("", BLUE)}),
)
PER_CLASS = ("precision", "recall", "f1", "accuracy", "support")


# ---------------------------------------------------------------------------------------------------- metrics


def confusion_matrix(target: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts (C, C) int64, rows true, columns predicted, from class indices (N,). ValueError when they do not fit."""
    if target.ndim != 1 or target.shape != predicted.shape:
        raise ValueError(f"target {tuple(target.shape)} and predicted {tuple(predicted.shape)} must both be (N,)")
    for name, labels in (("target", target), ("predicted", predicted)):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"{name} holds classes {int(labels.min())} to {int(labels.max())}: "
                f"with {num_classes} classes they must lie in 0 to {num_classes - 1}"
            )
    cell = target.long() * num_classes + predicted.long()
    return torch.bincount(cell, minlength=num_classes**2).view(num_classes, num_classes)  # (C * C,) -> (C, C)


def per_class_table(confusion: torch.Tensor) -> dict[str, torch.Tensor]:
    """Precision, recall, f1, accuracy (float64) and support (int64) of each class, all (C,) on the CPU, in [0, 1].

    The accuracy of a class is the share of its images that are labelled right: the same number as its recall.
    """
    counts = confusion.cpu().double()
    hits, support, claimed = counts.diagonal(), counts.sum(1), counts.sum(0)
    recall = _ratio(hits, support)
    return {
        "precision": _ratio(hits, claimed),
        "recall": recall,
        "f1": _ratio(2 * hits, support + claimed),
        "accuracy": recall,
        "support": support.long(),
    }


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return part / whole.clamp(min=1)  # counts: where whole is 0, part is 0 too


def averages(table: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Means of precision, recall and f1: "macro" (each class of the table counts the same), "weighted" (by images)."""
    support = table["support"].double()
    weights = {"macro": torch.ones_like(support) / len(support), "weighted": _ratio(support, support.sum())}
    return {
        kind: {name: float(weight @ table[name]) for name in ("precision", "recall", "f1")}
        for kind, weight in weights.items()
    }


def check_logits(logits: torch.Tensor, target: torch.Tensor) -> None:
    """ValueError unless these are finite logits (N, C), and classes (N,) among them."""
    if logits.ndim != 2 or target.ndim != 1 or len(logits) != len(target):
        raise ValueError(f"logits are {tuple(logits.shape)}, classes {tuple(target.shape)}: give (N, C) and (N,)")
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite")
    if len(target) and not (0 <= int(target.min()) and int(target.max()) < logits.shape[1]):
        raise ValueError(f"classes go from {int(target.min())} to {int(target.max())}, of {logits.shape[1]}")


def top_k(logits: torch.Tensor, target: torch.Tensor, k: int) -> float:
    """Share of images (N,) whose class is among the k highest logits (N, C); 1 when k >= C. ValueError for k < 1."""
    check_logits(logits, target)
    if k < 1 or len(target) == 0:
        raise ValueError(f"top-{k} accuracy of {len(target)} images is undefined: it needs k >= 1 and an image")
    # The stable sort of the flipped classes puts the higher class first among equals.
    ranked = logits.shape[1] - 1 - logits.flip(1).argsort(dim=1, descending=True, stable=True)[:, :k]
    return (ranked == target[:, None]).any(1).sum().item() / len(target)


def expected_calibration_error(logits: torch.Tensor, target: torch.Tensor, bins: int = 15) -> float:
    """Distance between confidence and accuracy, in [0, 1], of logits (N, C) and classes (N,): equation 3 of Guo et al.

    Images are sorted into bins of equal width by their confidence; the differences between mean confidence and
    accuracy of the bins are averaged, each bin with the weight of its images.
    """
    check_logits(logits, target)
    if bins < 1 or len(target) == 0:
        raise ValueError(f"the calibration error of {len(target)} images in {bins} bins is undefined")
    confidence, predicted = logits.double().softmax(1).max(1)
    bin_of = (confidence * bins).ceil().clamp(1, bins).long() - 1  # the bins are closed above
    excess = confidence - (predicted == target).double()
    return torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, excess).abs().sum().item() / len(target)


# ---------------------------------------------------------------------------------------------------- the report


def write_report(
    folder: str | Path,
    logits: torch.Tensor,
    target: torch.Tensor,
    classes: Sequence[str],
    images: torch.Tensor | None = None,
    history: Iterable[Mapping] = (),
    title: str = "Report",
    facts: Mapping[str, str | int | float] | None = None,
) -> dict:
    """Write report.json, report.md, two CSV tables and, with matplotlib, PNG pictures; returns report.json's content.

    logits (N, C) and target (N,) on any device; images: uint8 (N, 3, H, W) in the same order, for the prediction grid;
    history: the rows of metrics.jsonl (accuracies in [0, 1]; keys may be missing), for the curves;
    facts: further rows for the head of the report, such as the hold-out accuracy or the device.
    Each file is replaced atomically. ValueError when the inputs do not fit together or a logit is not finite.
    """
    logits, target = logits.detach().float().cpu(), target.cpu().long()
    _check(logits, target, classes, images)
    predicted = logits.argmax(1)
    confusion = confusion_matrix(target, predicted, len(classes))
    report = {"title": title, "facts": dict(facts or {})} | _metrics(logits, target, confusion, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, content: bytes) -> None:
        write_atomically(folder / name, lambda path: path.write_bytes(content))

    pictures, names = {}, [csv_cell(name) for name in classes]
    try:
        import matplotlib  # noqa: F401  (only asked whether it is there)
    except ImportError as error:
        say(f"The report has no pictures ({error}): pip install 'minivit-minisam[cli]' brings matplotlib.")
    else:
        pictures = _draw(confusion.numpy(), logits, target, predicted, classes, images, history, title)
    save("report.json", _json(report).encode())  # first: it says whose the other files are
    for name, picture in pictures.items():
        save(f"{name}.png", picture)
    save(
        "confusion.csv",
        csv_table([["true \\ predicted", *names], *([name, *row] for name, row in zip(names, report["confusion"]))]),
    )
    rows = ([name, *list(row.values())[1:]] for name, row in zip(names, report["per_class"]))
    save("per_class.csv", csv_table([["class", *PER_CLASS], *rows]))
    save("report.md", _markdown(report, pictures).encode())
    return report


def _check(logits: torch.Tensor, target: torch.Tensor, classes: Sequence[str], images: torch.Tensor | None) -> None:
    if logits.ndim != 2 or target.shape != logits.shape[:1] or len(target) == 0:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: give (N, C) and (N,), N >= 1")
    if logits.shape[1] != len(classes):
        raise ValueError(f"{logits.shape[1]} logits for {len(classes)} class names: give one name for each logit")
    if not bool(logits.isfinite().all()):
        raise ValueError("the logits hold NaN or infinity: the model diverged, report an earlier checkpoint")
    if images is not None and (images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(target), 3)):
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: give uint8 ({len(target)}, 3, H, W)")


def _metrics(logits: torch.Tensor, target: torch.Tensor, confusion: torch.Tensor, classes: Sequence[str]) -> dict:
    table = per_class_table(confusion)
    measured = table["support"] > 0
    rows = [dict(zip(PER_CLASS, values)) for values in zip(*(table[name].tolist() for name in PER_CLASS))]
    rows = [row if row["support"] else dict.fromkeys(PER_CLASS) | {"support": 0} for row in rows]
    return {
        "images": len(target),
        "top1": confusion.diagonal().sum().item() / len(target),
        "top5": top_k(logits, target, 5),
        "calibration_error": expected_calibration_error(logits, target),
        "balanced_accuracy": table["recall"][measured].mean().item(),
        **averages({name: column[measured] for name, column in table.items()}),
        "per_class": [{"class": name} | row for name, row in zip(classes, rows)],
        "confusion": confusion.tolist(),
    }


def _json(report: Mapping) -> str:
    """Indented JSON with readable letters; control characters and bytes that are no text are escaped."""
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def csv_table(rows: Iterable[Iterable]) -> bytes:
    """Rows as a CSV file in UTF-8. Texts from elsewhere go through text.csv_cell first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


# ---------------------------------------------------------------------------------------------------- report.md


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent, cut and not rounded, so that no accuracy reads better than it is: 0.99999 -> 99.99.

    A dash for None, which is a share of nothing.
    """
    if share is None:
        return "\u2013"
    scale = 10**digits
    # The small term undoes the binary representation only: 0.29 * 100 is 28.999999999999996.
    return f"{math.floor(share * 100 * scale + 1e-7) / scale:.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """A Markdown table, the first column left-aligned and the others right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def _markdown(report: Mapping, pictures: Iterable[str]) -> str:
    names = [markdown(row["class"]) for row in report["per_class"]]
    confusion, support = report["confusion"], [row["support"] for row in report["per_class"]]
    head = [
        ("images", report["images"]),
        ("classes", len(names)),
        ("top-1 accuracy", percent(report["top1"]) + " %"),
        ("balanced accuracy, the mean recall of the classes", percent(report["balanced_accuracy"]) + " %"),
        ("top-5 accuracy", percent(report["top5"]) + " %"),
        ("expected calibration error, 15 bins", f"{100 * report['calibration_error']:.2f} %"),
        *((markdown(name), markdown(str(value))) for name, value in report["facts"].items()),
    ]
    lines = [f"# {markdown(report['title'])}", "", *_table(["", ""], head)]
    lines += ["Accuracies are cut to two decimals, not rounded; the full numbers are in report.json.", ""]
    lines += [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in pictures]

    columns = ("precision", "recall", "f1")
    lines += ["## Classes", ""]
    lines += ["Recall is also the accuracy of a class: the share of its images that are labelled right.", ""]
    if any(not row["support"] for row in report["per_class"]):
        lines += ["Classes without images have no figures and no part in the means.", ""]
    lines += _table(
        ["class", "precision %", "recall %", "F1 %", "images"],
        [
            *(
                [name, *(percent(row[c]) for c in columns), row["support"]]
                for name, row in zip(names, report["per_class"])
            ),
            *(
                [f"**{kind} mean**", *(percent(report[kind][c]) for c in columns), report["images"]]
                for kind in ("macro", "weighted")
            ),
        ],
    )

    mistakes = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if count and i != j]
    mistakes = sorted(mistakes, key=lambda m: (-m[0], m[1], m[2]))[:15]
    lines += ["## Most frequent confusions", ""]
    rows = [[names[i], names[j], count, percent(count / support[i])] for count, i, j in mistakes]
    lines += _table(["true", "predicted", "images", "of the true class %"], rows) if rows else ["None.", ""]

    lines += ["## Confusion matrix", ""]
    if len(names) > 20:
        return "\n".join(lines + [f"{len(names)} x {len(names)} counts: see confusion.csv.", ""])
    lines += ["Rows are true classes, columns predicted ones.", ""]
    return "\n".join(lines + _table(["", *names], [[name, *row] for name, row in zip(names, confusion)]))


# ---------------------------------------------------------------------------------------------------- pictures


def _draw(
    confusion: np.ndarray,
    logits: torch.Tensor,
    target: torch.Tensor,
    predicted: torch.Tensor,
    classes: Sequence[str],
    images: torch.Tensor | None,
    history: Iterable[Mapping],
    title: str,
) -> dict[str, bytes]:
    """All pictures that the inputs allow, as PNG by file name."""
    import matplotlib

    families, missing = _find_fonts("".join([title, *classes]))
    title, *classes = (_without(text, missing) for text in (title, *classes))
    with matplotlib.rc_context({"font.family": families}):
        figures = _draw_figures(confusion, logits, target, predicted, classes, images, history, title)
        return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def draw_png(draw: Callable[[Callable[[str], str]], Any], text: str) -> bytes | None:
    """A PNG of the figure that `draw` makes, in fonts that have the letters of `text`; None without matplotlib.

    `draw` is given a function that turns letters which can't be drawn into escapes.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    families, missing = _find_fonts(text)
    with matplotlib.rc_context({"font.family": families}):
        return _png(draw(lambda part: _without(part, missing)))


def _find_fonts(text: str) -> tuple[list[str], set[str]]:
    """Families that together have the letters of a text, as far as fonts are installed, and the letters left over."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    families, default = [*matplotlib.rcParams["font.family"]], FT2Font(findfont(FontProperties()))
    missing = {c for c in text if c.isprintable() and not default.get_char_index(ord(c))}
    for entry in sorted(
        fontManager.ttflist, key=lambda e: (e.style != "normal", e.weight not in (400, "normal"), e.name)
    ):
        if not missing:
            break
        try:
            font = FT2Font(entry.fname)
        except (OSError, RuntimeError):  # a font that was removed, or is damaged
            continue
        found = {c for c in missing if font.scalable and font.get_char_index(ord(c))}
        if found and "last resort" not in entry.name.lower():  # which draws boxes with names of scripts
            families.append(entry.name)
            missing -= found
    return families, missing


def _without(text: str, missing: set[str]) -> str:
    """The text with letters that can't be drawn as escapes."""
    return "".join(c.encode("unicode_escape").decode() if c in missing else c for c in printable(text))


def _draw_figures(
    confusion: np.ndarray,
    logits: torch.Tensor,
    target: torch.Tensor,
    predicted: torch.Tensor,
    classes: Sequence[str],
    images: torch.Tensor | None,
    history: Iterable[Mapping],
    title: str,
) -> dict:
    """The pictures as figures, None for curves without a history."""
    figures = {"curves": _draw_curves(history, title)}
    figures["confusion"] = _draw_confusion(confusion, classes, title, normalised=False)
    figures["confusion_normalised"] = _draw_confusion(confusion, classes, title, normalised=True)
    if images is not None:
        confidence = logits.softmax(1).gather(1, predicted[:, None])[:, 0]
        figures["predictions"] = _draw_predictions(images, target, predicted, confidence, classes, title)
    return figures


def _figure(width: float, height: float, layout: str | None = "constrained"):
    """A white figure, in inches, outside pyplot: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _png(figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.15)
    return data.getvalue()


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def _draw_curves(history: Iterable[Mapping], title: str):
    """Loss, accuracy, learning rate and speed against the epoch; None when the history has none of them."""
    from matplotlib.ticker import MaxNLocator

    rows = {row["epoch"]: row for row in history if row.get("epoch") is not None}  # after a resume the last row counts
    panels = [
        (name, {k: v for k, v in keys.items() if any(r.get(k) is not None for r in rows.values())})
        for name, keys in PANELS
    ]
    panels = [(name, keys) for name, keys in panels if keys]
    if not panels:
        return None
    columns = min(2, len(panels))
    fig = _figure(4.6 * columns, 0.6 + 3.3 * math.ceil(len(panels) / columns))
    fig.suptitle(textwrap.fill(title, 55 * columns), fontsize=12, fontweight="bold", parse_math=False)
    for i, (name, keys) in enumerate(panels):
        ax = fig.add_subplot(math.ceil(len(panels) / columns), columns, i + 1)
        for key, (label, colour) in keys.items():
            points = [(epoch, rows[epoch].get(key)) for epoch in sorted(rows)]
            _draw_curve(ax, points, label, colour, is_accuracy="_acc" in key)
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_xlabel("epoch", fontsize=9)
        ax.set_xlim(min(rows) - 0.5, max(rows) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        if any(label for label, _ in keys.values()):
            ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16))  # below: never on a curve
        else:
            ax.set_ylim(0, 1.08 * ax.dataLim.ymax or 1)  # from zero, so that changes keep their proportion
    return fig


def _draw_curve(ax, points: Sequence[tuple], label: str, colour: str, is_accuracy: bool) -> None:
    """One line; accuracies in percent, with the best epoch marked and named in the legend."""
    points = [(x, 100 * y if is_accuracy else y) for x, y in points if y is not None and math.isfinite(y)]
    if not points:
        return
    epochs, values = zip(*points)
    if is_accuracy:
        best = values.index(max(values))
        label = f"{label}: best {percent(values[best] / 100)} (epoch {epochs[best]})"
        ax.plot(epochs[best], values[best], "o", color=colour, markersize=5)
    ax.plot(epochs, values, color=colour, linewidth=1.6, label=label, marker="." if len(points) <= 30 else None)


def _draw_confusion(confusion: np.ndarray, classes: Sequence[str], title: str, normalised: bool):
    """The confusion matrix as counts, or each row in percent of its images; for up to some hundred classes.

    The colour grows with the square root of the value, since the diagonal would drown the confusions otherwise.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    C = len(classes)
    cell = min(max(0.14, min(0.5, 0.1 + 4 / C)), 20 / C)  # inches; 20 inches at most
    side = max(3.0, cell * C)
    cell = side / C
    values = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1) if normalised else confusion
    top = 100 if normalised else max(1, int(values.max()))
    names = [_short(name, 22) for name in classes]
    labels = 0.085 * max(map(len, names)) + 0.5
    fig = _figure(side + labels + 1.2, side + labels + 0.8)
    ax = fig.add_subplot()
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    image = ax.imshow(values, cmap="Blues", norm=norm, interpolation="nearest")
    _name_cells(ax, names, cell)
    _print_cells(ax, values, norm, cell, normalised)
    what = "Confusion matrix, % of the true class" if normalised else "Confusion matrix, number of images"
    ax.set_title(textwrap.fill(title, int(11 * side)) + "\n" + what, fontsize=11, fontweight="bold", parse_math=False)
    bar = fig.colorbar(image, ax=ax, shrink=0.8, aspect=30, pad=0.02, ticks=MaxNLocator(6, integer=True))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return fig


def _name_cells(ax, names: Sequence[str], cell: float) -> None:
    """Class names on both axes, as many as fit, and thin lines between the cells (inches wide)."""
    C = len(names)
    size = max(5.0, min(9.0, cell * 72 * 0.75))
    ticks = range(0, C, math.ceil(size * 1.2 / 72 / cell))
    shown = [names[i] for i in ticks]
    slanted = cell >= 0.3
    ax.set_xticks(
        ticks,
        shown,
        fontsize=size,
        rotation=45 if slanted else 90,
        parse_math=False,
        ha="right" if slanted else "center",
        va="top",
        rotation_mode="anchor" if slanted else "default",
    )
    ax.set_yticks(ticks, shown, fontsize=size, parse_math=False)
    ax.set_xlabel("predicted class", fontsize=10)
    ax.set_ylabel("true class", fontsize=10)
    ax.set_xticks(np.arange(C + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(C + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="#dddddd", linewidth=min(0.8, 2.5 * cell))
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _print_cells(ax, values: np.ndarray, norm, cell: float, normalised: bool) -> None:
    """The number of each cell that does not read 0, where the cell (inches) is large enough to read it."""
    digits = 1 if normalised and cell >= 0.25 else 0
    texts = {
        (i, j): percent(values[i, j] / 100, digits) if normalised else str(values[i, j])
        for i, j in zip(*np.nonzero(values))
    }
    texts = {at: text for at, text in texts.items() if float(text) > 0}
    size = min(9.0, cell * 72 * 1.35 / max(map(len, texts.values()), default=1))
    if size < 3.5:
        return
    for (i, j), text in texts.items():
        colour = "white" if norm(values[i, j]) > 0.6 else "#222222"
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color=colour).set_in_layout(False)


def _draw_predictions(
    images: torch.Tensor,
    target: torch.Tensor,
    predicted: torch.Tensor,
    confidence: torch.Tensor,
    classes: Sequence[str],
    title: str,
):
    """A grid of 32 images drawn at random (always the same) and of the 16 mistakes that the model is surest of."""
    columns, side, row_height, left = 8, 1.12, 1.56, 0.2  # inches
    wrong = (predicted != target).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][: 2 * columns].tolist()
    sample = sorted(np.random.RandomState(0).permutation(len(target))[: 4 * columns].tolist())
    right = sum(int(predicted[i] == target[i]) for i in sample)
    groups = [
        (f"Drawn at random: {right} of {len(sample)} right", sample),
        ("Mistakes with the highest confidence", wrong),
    ]
    groups = [(name, members) for name, members in groups if members]
    width = 2 * left + columns * (side + 0.14) - 0.14
    height = 0.5 + sum(0.45 + row_height * math.ceil(len(members) / columns) for _, members in groups)
    fig = _figure(width, height, layout=None)
    fig.text(
        left / width, 1 - 0.3 / height, _short(title, 90), fontsize=13, fontweight="bold", va="center", parse_math=False
    )
    y = 0.5
    for name, members in groups:
        fig.text(left / width, 1 - (y + 0.2) / height, name, fontsize=10, color=GREY, va="center")
        y += 0.45
        for n, i in enumerate(members):
            x, below = left + n % columns * (side + 0.14), y + n // columns * row_height + side
            ax = fig.add_axes((x / width, 1 - below / height, side / width, side / height))
            _draw_prediction(
                ax,
                images[i],
                classes[target[i]],
                classes[predicted[i]],
                float(confidence[i]),
                right=bool(predicted[i] == target[i]),
            )
        y += row_height * math.ceil(len(members) / columns)
    return fig


def _draw_prediction(ax, image: torch.Tensor, true: str, predicted: str, confidence: float, right: bool) -> None:
    """One image with its predicted class and confidence; a mistake has a thick frame, a cross and the true class."""
    ax.imshow(image.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#bbbbbb" if right else VERMILION, linewidth=0.6 if right else 2.5)
    colour, mark = ("#222222", "\u2713") if right else (VERMILION, "\u2717")
    said = f"{mark} {_short(predicted, 12)} {percent(confidence, 0)} %"
    for text, down, ink, weight in (
        (said, 4, colour, "normal" if right else "bold"),
        (f"true: {_short(true, 14)}", 15, GREY, "normal"),
    ):
        ax.annotate(
            text,
            (0.5, 0),
            (0, -down),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7.5,
            color=ink,
            fontweight=weight,
            parse_math=False,
        )
