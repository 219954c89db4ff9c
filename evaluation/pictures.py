"""Pictures of results, as matplotlib figures that belong to nobody: no pyplot, no window, no state between two of them.

Save one with `figure.savefig(path)`, or `render` it to pixels. Importing this file imports matplotlib: who may not draw
at all imports it where the drawing begins.
"""

import functools
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from sklearn.metrics import auc, roc_curve

from evaluation.classification import checked, one_vs_rest
from evaluation.regression import regression

INK, PALE, ACCENT = "#333333", "#b8bec6", "#1f5fa8"
FONT = "DejaVu Sans"  # comes with matplotlib
LONGEST = 24  # columns of a label that are shown
DPI = 120
GAP = 3  # pixels between pictures
CURVES = 10  # that an eye can tell apart
COLOURS = tuple(TABLEAU_COLORS.values())


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> Figure:
    """How often the class of a row was taken for the class of a column; the colour is the share of its row.

    Args:
        probabilities: float [examples, classes]; the guess is the most probable. Examples where one is not finite are
            left out.
        targets: int [examples], from 0 to classes - 1.
    """
    probabilities, targets, finite = checked(probabilities, targets, labels)
    guesses, targets = probabilities[finite].argmax(1), targets[finite]
    classes = len(labels)
    counts = np.bincount(targets * classes + guesses, minlength=classes**2).reshape(classes, classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    names, families = _names(labels)
    longest = _inches(names)
    side = max(2.4, min(classes * (0.62 if classes <= 12 else 0.27), 11.0))
    turned = longest > 0.9 * side / classes
    below = longest * (0.7 if classes <= 12 else 1.0) if turned else 0.2
    figure = _figure(side + longest + 1.4, side + below + 0.9)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = range(0, classes, -(-classes // 60))  # beyond that many the names would overlap
    angle = {"rotation": 90} if classes > 12 else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(shown, [names[i] for i in shown], **(angle if turned else {}))
    axes.set_yticks(shown, [names[i] for i in shown])
    axes.tick_params(length=0, labelsize=9 if classes <= 40 else 7, labelcolor=INK)
    axes.spines[:].set_visible(False)
    if classes <= 60:
        for between in np.arange(classes - 1) + 0.5:
            axes.axhline(between, color="white", linewidth=1.5 if classes <= 12 else 0.5)
            axes.axvline(between, color="white", linewidth=1.5 if classes <= 12 else 0.5)
    if classes <= 12:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.5 else INK if count else PALE
            size = 9 if counts.max() < 100_000 else 7
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink, fontsize=size)
    accuracy = f", accuracy {counts.trace() / len(targets):.3f}" if len(targets) else ""
    _say(axes, _examples(targets) + accuracy, "predicted", "true")
    bar = figure.colorbar(image, shrink=2 / side, aspect=15, pad=0.15 / side, ticks=[0, 0.5, 1], format="{x:.0%}")
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    return _plain(figure, families)


def roc_curves(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> Figure:
    """True against false positives at every threshold, with the area under each curve.

    One curve for the second of two classes; for more, or for many labels at once, one for each class against the rest,
    at most the ten most frequent. Classes that no target or every target has are left out: their area is undefined.

    Args:
        probabilities: float [examples, classes].
        targets: int [examples], or 0 and 1 [examples, classes].
    """
    probabilities, targets, finite = checked(probabilities, targets, labels)
    contests = one_vs_rest(probabilities, targets) if finite.all() else []
    drawn = sorted(contests, key=lambda contest: -contest[1].sum())[:CURVES]
    names, families = _names(labels)
    figure = _figure(5.4 + _inches(names), 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=(0, (4, 3)))
    handles, legend = [], []
    for (number, has, score), colour in zip(drawn, TABLEAU_COLORS, strict=False):
        false_positives, true_positives, _ = roc_curve(has, score)
        handles += axes.plot(false_positives, true_positives, color=colour, linewidth=1.8, clip_on=False, zorder=3)
        legend.append(f"{auc(false_positives, true_positives):.3f}  {names[number]}")
    few = f"the {CURVES} most frequent of {len(contests)} classes" if len(contests) > CURVES else ""
    _say(axes, few or _examples(targets), "false positive rate", "true positive rate")
    _square(axes, (0, 1))
    if legend:
        box = axes.legend(handles, legend, title="AUC", loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
        box.set_alignment("left")
        for text in box.get_texts():
            text.set(fontsize=9, color=INK)
    else:
        axes.text(0.5, 0.5, "undefined", ha="center", va="center", color=INK, backgroundcolor="white")
    return _plain(figure, families)


def scatter(predictions: np.ndarray, targets: np.ndarray) -> Figure:
    """Every prediction over its target, both float [examples], with the diagonal where they are equal.

    Examples where either is not finite are left out.
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    finite = np.isfinite(predictions) & np.isfinite(targets)
    predictions, targets = predictions[finite], targets[finite]
    figure = _figure(4.6, 4.6)
    axes = figure.subplots()
    both = np.concatenate([predictions, targets]) if finite.any() else np.array([0.0, 1.0])
    margin = 0.05 * np.ptp(both) or 1.0
    ends = (both.min() - margin, both.max() + margin)
    axes.plot(ends, ends, color=PALE, linewidth=1, linestyle=(0, (4, 3)))
    opacity = np.clip(300 / max(len(targets), 1), 0.02, 0.7)  # a crowd of points keeps its shape
    axes.scatter(targets, predictions, s=14, color=ACCENT, alpha=opacity, linewidths=0)
    r2 = regression(predictions, targets)["r2"] if len(targets) else math.nan
    _say(axes, _examples(targets) + ("" if math.isnan(r2) else f", R² {r2:.3f}"), "target", "prediction")
    _square(axes, ends)
    return _plain(figure, [FONT])


def attention_maps(weights: np.ndarray, asking: Sequence[str], seen: Sequence[str]) -> Figure:
    """How much each token, a row, looks at each of the columns' tokens; one panel for each head.

    Args:
        weights: float [heads, asking, seen], from 0 to 1.
    """
    heads = len(weights)
    across = math.ceil(math.sqrt(heads))
    down = math.ceil(heads / across)
    names, families = _names(asking, seen)
    rows, columns = names[: len(asking)], names[len(asking) :]
    cell = 0.26 if heads == 1 else 0.17
    width, height = max(1.2, cell * len(columns)), max(1.2, cell * len(rows))
    figure = _figure(across * (width + 0.3) + _inches(rows) + 0.4, down * (height + 0.5) + _inches(columns) + 0.2)
    panels = figure.subplots(down, across, squeeze=False)
    size = 9 if heads == 1 else 7
    for number, axes in enumerate(panels.flat):
        if number >= heads:
            axes.set_axis_off()
            continue
        axes.imshow(weights[number], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns if number // across == (heads - 1) // across else [], rotation=90)
        axes.set_yticks(range(len(rows)), rows if number % across == 0 else [])
        axes.tick_params(length=0, labelsize=size, labelcolor=INK)
        axes.spines[:].set_color(PALE)
        if heads > 1:
            axes.set_title(f"head {number}", loc="left", fontsize=8, color=INK, pad=3)
    return _plain(figure, families)


def points(where: np.ndarray, labels: tuple[np.ndarray, Sequence[str]] | None, axes_names: Sequence[str]) -> Figure:
    """Points on a plane, float [points, 2], in the colours of their labels: int [points], and the labels' names."""
    figure = _figure(6.2, 5.2)
    axes = figure.subplots()
    names, families = _names(labels[1]) if labels else ([""], [FONT])
    numbers = labels[0] if labels else np.zeros(len(where), int)
    for number, name in enumerate(names):
        own = where[numbers == number]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.7, linewidths=0, label=name)
    _say(axes, _examples(where), *axes_names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK, labelsize=9)
    axes.set_aspect("equal", adjustable="datalim")
    if labels and len(names) <= 2 * CURVES:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9, labelcolor=INK)
    return _plain(figure, families)


def picture_grid(pixels: np.ndarray, titles: Sequence[str] = (), across: int = 0) -> Figure:
    """Pictures side by side, in rows, as they are: a pixel stays a square.

    Args:
        pixels: uint8 [pictures, height, width, channels]; of channels, one is shown as grey and the first three of more
            as colours.
        titles: what stands above each; nothing without.
        across: how many stand in a row; 0 for about as many as there are rows.
    """
    count = len(pixels)
    across = across or math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    if not titles:
        return _mosaic(shown, across, down)
    names, families = _names(titles)
    side = max(0.7, min(1.6, 12 / across))
    figure = _figure(across * max(side, _inches(names)) + 0.2, down * (side + 0.3) + 0.2)
    for number, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        axes.set_axis_off()
        if number < count:
            axes.imshow(shown[number], interpolation="nearest")
            axes.set_title(names[number], fontsize=8, color=INK, pad=3)
    return _plain(figure, families)


def _mosaic(pictures: np.ndarray, across: int, down: int) -> Figure:
    """Pictures [pictures, height, width, 3] with thin lines between, as one image: many plots would take seconds."""
    times = max(1, 60 // pictures.shape[1])
    large = pictures.repeat(times, axis=1).repeat(times, axis=2)
    height, width = large.shape[1] + GAP, large.shape[2] + GAP
    image = np.full((down * height + GAP, across * width + GAP, 3), 255, np.uint8)
    for number, picture in enumerate(large):
        y, x = GAP + number // across * height, GAP + number % across * width
        image[y : y + height - GAP, x : x + width - GAP] = picture
    figure = Figure(figsize=(image.shape[1] / DPI, image.shape[0] / DPI), dpi=DPI)
    figure.figimage(image)
    return figure


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)


def _examples(targets: np.ndarray) -> str:
    return f"{len(targets):,} example{'' if len(targets) == 1 else 's'}"


def _say(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    axes.set_xlabel(x, fontsize=10, color=INK, labelpad=6)
    axes.set_ylabel(y, fontsize=10, color=INK, labelpad=6)


def _square(axes: Axes, ends: tuple[float, float]) -> None:
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK, labelsize=9)


def _plain(figure: Figure, families: list[str]) -> Figure:
    """The figure with every text in these fonts, and as it stands: `$` and `_` are no formula."""
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
        text.set_parse_math(False)
    return figure


def _names(labels: Sequence[str], more: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The labels of one or of two axes as they can be shown, and the fonts to show them in.

    Long ones lose their middle. One with characters that no font has gets its number on its axis before it:
    `#3 □□ (old)`.
    """
    names = [_shorten("".join(c for c in " ".join(label.split()) if c.isprintable())) for label in (*labels, *more)]
    lacking = _lacking(font_manager.findfont(FONT), 0, frozenset("".join(names)))
    family, lacking = _second_font(lacking) if lacking else (None, lacking)
    for place, number in enumerate([*range(len(labels)), *range(len(more))]):
        if not names[place] or lacking & set(names[place]):
            names[place] = f"#{number} {''.join('□' if c in lacking else c for c in names[place])}".strip()
    return names, [FONT, family] if family else [FONT]


@functools.cache
def _second_font(characters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """The installed font that has the most of these characters, if any has one, and the characters it lacks."""
    candidates = [
        (_lacking(entry.fname, entry.index, characters), entry.name)
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and not entry.name.startswith("Last Resort")  # which has a box for everything
    ]
    lacking, name = min(candidates, key=lambda candidate: (len(candidate[0]), "Serif" in candidate[1], candidate[1]))
    return (name, lacking) if len(lacking) < len(characters) else (None, characters)


def _lacking(path: str, index: int, characters: frozenset[str]) -> frozenset[str]:
    """Which of the characters the font has no picture of: all, if it cannot be read."""
    try:
        font = FT2Font(path, face_index=index)
    except (OSError, RuntimeError):  # uninstalled since matplotlib listed it
        return characters
    return frozenset(c for c in characters if not font.get_char_index(ord(c)))


def _shorten(name: str) -> str:
    if _columns(name) <= LONGEST:
        return name
    start = end = ""
    for first, last in zip(name, reversed(name), strict=True):
        if _columns(start + first + last + end) >= LONGEST:
            break
        start, end = start + first, last + end
    return f"{start.rstrip()}…{end.lstrip()}"


def _columns(name: str) -> int:
    """How wide the name is, in Latin characters; a Chinese one is twice as wide, and so is the box in its place."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" or c == "□" else 1 for c in name)


def _inches(names: Sequence[str]) -> float:
    """About how wide the longest of the names is at nine points."""
    return 0.08 * max(map(_columns, names))
