import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image

from evaluation import pictures

pytestmark = pytest.mark.filterwarnings("error")


def examples(classes: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(classes)
    targets = draw.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return draw.random((count, classes)) + 0.5 * np.eye(classes)[targets], targets


def names(ticks) -> list[str]:
    return [tick.get_text() for tick in ticks]


def cells(axes, classes: int) -> list[list[str]]:
    by_place = {text.get_position(): text.get_text() for text in axes.texts}
    return [[by_place[column, row] for column in range(classes)] for row in range(classes)]


def legend(figure) -> dict[str, float]:
    """Label -> area, in the legend's order."""
    rows = [text.get_text().split("  ") for text in figure.axes[0].get_legend().get_texts()]
    return {label: float(area) for area, label in rows}


def shown(label: str) -> str:
    """The name under which a label stands in a picture that can be drawn without a warning."""
    figure = pictures.confusion_matrix(np.eye(2), np.array([0, 1]), ["first", label])
    assert pictures.render(figure).std() > 0
    return names(figure.axes[0].get_yticklabels())[1]


def test_a_confusion_matrix_counts_with_the_truth_in_rows():
    #             guesses: 0, 0 (a tie), 2, 1, 2
    probabilities = np.array([[0.8, 0.1, 0.1], [0.4, 0.4, 0.2], [0, 0, 1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    figure = pictures.confusion_matrix(probabilities, np.array([0, 1, 0, 1, 2]), ["a", "b", "c"])
    axes = figure.axes[0]
    assert cells(axes, 3) == [["1", "0", "1"], ["1", "1", "0"], ["0", "0", "1"]]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert names(axes.get_xticklabels()) == names(axes.get_yticklabels()) == ["a", "b", "c"]
    assert axes.get_title(loc="left") == "5 examples, accuracy 0.600"


def test_the_colour_is_the_share_of_the_row():
    probabilities, targets = examples(4)
    targets[targets == 0] = 1  # a row without an example
    image = pictures.confusion_matrix(probabilities, targets, list("abcd")).axes[0].images[0]
    rows = [[np.sum((targets == i) & (probabilities.argmax(1) == j)) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(image.get_array(), [np.array(row) / max(sum(row), 1) for row in rows])
    assert image.get_clim() == (0, 1)


def test_counts_stand_out_from_their_cells():
    figure = pictures.confusion_matrix(*examples(6), list("abcdef"))
    axes = figure.axes[0]
    for text in axes.texts:
        column, row = text.get_position()
        if text.get_text() != "0":
            cell = axes.images[0].cmap(axes.images[0].get_array()[row, column])
            assert abs(np.mean(cell[:3]) - np.mean(to_rgb(text.get_color()))) > 0.3


@pytest.mark.parametrize("classes", [1, 2, 12, 30, 100, 700])
def test_names_of_many_classes_do_not_overlap(classes):
    figure = pictures.confusion_matrix(*examples(classes), [f"a name, {i}" for i in range(classes)])
    pixels = pictures.render(figure)
    assert pixels.dtype == np.uint8 and max(pixels.shape) < 2000
    axes = figure.axes[0]
    assert bool(axes.texts) == (classes <= 12)
    for axis in (axes.xaxis, axes.yaxis):
        ticks = axis.get_ticklabels()
        assert min(classes, 30) <= len(ticks) <= 60 and all(tick.get_fontsize() >= 7 for tick in ticks)
        assert names(ticks) == [f"a name, {round(place)}" for place in axis.get_ticklocs()]
        if ticks[0].get_rotation() in (0, 90):  # the boxes around slanted names say nothing
            boxes = [tick.get_window_extent() for tick in ticks]
            assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_nothing_is_cut_off_at_the_edge():
    long = [f"the very long name of class number {i} of six" for i in range(6)]
    for figure in (pictures.confusion_matrix(*examples(6), long), pictures.roc_curves(*examples(6), long)):
        pixels = pictures.render(figure)
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert (edge == 255).all()


def test_two_classes_have_the_curve_of_the_second():
    probabilities, targets = examples(2)
    figure = pictures.roc_curves(probabilities, targets, ["no", "yes"])
    area = sklearn.metrics.roc_auc_score(targets, probabilities[:, 1])
    assert legend(figure) == {"yes": round(area, 3)}
    diagonal, curve = figure.axes[0].lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    x, y = curve.get_xydata().T
    assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(area)
    positive, negative = probabilities[targets == 1, 1], probabilities[targets == 0, 1]
    thresholds = [np.inf, *sorted(probabilities[:, 1], reverse=True)]
    steps = {(np.mean(negative >= t), np.mean(positive >= t)) for t in thresholds}
    assert {(a, b) for a, b in zip(x, y, strict=True)} <= steps


def test_more_classes_have_a_curve_each_against_the_rest():
    probabilities, targets = examples(5)
    targets[targets == 2] = 1  # the third does not occur
    drawn = legend(pictures.roc_curves(probabilities, targets, list("abcde")))
    assert drawn == {
        name: round(sklearn.metrics.roc_auc_score(targets == k, probabilities[:, k]), 3)
        for k, name in enumerate("abcde")
        if name != "c"
    }


def test_many_labels_have_a_curve_each():
    probabilities, _ = examples(4)
    targets = (np.random.default_rng(1).random((300, 4)) < [0.3, 0.5, 0, 1]).astype(int)
    figure = pictures.roc_curves(probabilities, targets, list("abcd"))
    areas = {n: sklearn.metrics.roc_auc_score(targets[:, k], probabilities[:, k]) for n, k in (("b", 1), ("a", 0))}
    assert list(legend(figure).items()) == [(name, round(area, 3)) for name, area in areas.items()]  # frequent first
    assert len(figure.axes[0].lines) == 3


def test_two_labels_at_once_are_not_two_classes():
    targets = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    assert list(legend(pictures.roc_curves(np.random.default_rng(0).random((4, 2)), targets, ["a", "b"]))) == ["a", "b"]


def test_of_thirty_classes_the_ten_most_frequent_are_drawn():
    probabilities, targets = examples(30, 3000)
    labels = [f"class {i}" for i in range(30)]
    figure = pictures.roc_curves(probabilities, targets, labels)
    frequent = np.argsort(-np.bincount(targets, minlength=30), kind="stable")[:10]
    assert list(legend(figure)) == [labels[k] for k in frequent]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 11
    assert figure.axes[0].get_title(loc="left") == "the 10 most frequent of 30 classes"


def test_without_a_ranking_there_is_no_curve_and_it_says_so():
    nan = np.array([[0.5, 0.5], [np.nan, np.nan]])
    for probabilities, targets in ((np.eye(2), np.array([0, 0])), (nan, np.array([0, 1]))):
        figure = pictures.roc_curves(probabilities, targets, ["a", "b"])
        assert len(figure.axes[0].lines) == 1 and figure.axes[0].texts[0].get_text() == "undefined"
        pictures.render(figure)


def test_a_scatter_shows_every_finite_pair_and_the_diagonal():
    predictions, targets = np.array([1.0, np.nan, 3.0, 5.0]), np.array([2.0, 0.0, 3.0, 4.0])
    figure = pictures.scatter(predictions, targets)
    axes = figure.axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[2, 1], [3, 3], [4, 5]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target", "prediction")
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[0] < 1 and axes.get_xlim()[1] > 5
    (x, y) = axes.lines[0].get_data()
    assert list(x) == list(y) == list(axes.get_xlim())
    assert axes.get_title(loc="left") == "3 examples, R² 0.000"


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0], [np.nan]])
def test_a_scatter_of_next_to_nothing_is_still_a_picture(values):
    assert pictures.render(pictures.scatter(np.array(values), np.array(values))).std() > 0


def test_examples_that_are_not_finite_are_left_out_of_the_counts():
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]])
    figure = pictures.confusion_matrix(probabilities, np.array([0, 1, 1]), ["a", "b"])
    assert cells(figure.axes[0], 2) == [["1", "0"], ["0", "1"]]
    nothing = pictures.confusion_matrix(np.full((1, 2), np.nan), np.array([0]), ["a", "b"])
    assert cells(nothing.axes[0], 2) == [["0", "0"], ["0", "0"]]


def test_pixels_are_those_of_the_file(tmp_path):
    figure = pictures.roc_curves(*examples(3), list("abc"))
    pixels = pictures.render(figure)
    assert pixels.dtype == np.uint8 and pixels.shape == (*(figure.get_size_inches()[::-1] * figure.dpi).astype(int), 3)
    figure.savefig(tmp_path / "roc.png")
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / "roc.png").convert("RGB")))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels.flags.writeable


@pytest.mark.parametrize("label", ["$x_1 \\frac$", "_hidden", "50 % of $5", "a\\b", "größer", "κλάση", "классы", "{x}"])
def test_labels_stand_as_they_are(label):
    assert shown(label) == label
    figure = pictures.roc_curves(np.eye(2), np.array([0, 1]), ["first", label])
    assert list(legend(figure)) == [label] and pictures.render(figure).std() > 0


def test_long_labels_keep_their_ends():
    name = shown("the first words of a label that goes on and on to its last words")
    assert len(name) <= 24 and "…" in name
    assert name.startswith("the first") and name.endswith("last words")
    assert shown("x" * 24) == "x" * 24 and len(shown("x" * 25)) <= 24


def test_white_space_and_invisible_characters_are_not_drawn():
    assert shown(" a\tb\nc\u200b\x07\ud800 ") == "a b c"
    assert shown("") == "#1"


@pytest.fixture
def latin_fonts(monkeypatch):
    """A machine with none but matplotlib's own fonts."""
    latin = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", latin)
    pictures._second_font.cache_clear()
    yield latin
    pictures._second_font.cache_clear()


def test_tokens_without_a_font_are_numbered_along_their_own_axis(latin_fonts):
    figure = pictures.attention_maps(np.full((1, 3, 2), 0.5), ["one", "二", "three"], ["体育", "two"])
    (axes,) = (axes for axes in figure.axes if axes.images)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "#1 □", "three"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["#0 □□", "two"]


def test_a_label_without_a_font_is_known_by_its_number(latin_fonts):
    assert shown("体育") == "#1 □□"
    assert shown("ข่าว (news)") == "#1 □□□□ (news)"


def test_an_installed_font_with_the_characters_is_used(latin_fonts, tmp_path):
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    pen.lineTo((500, 800))
    pen.lineTo((900, 0))
    pen.closePath()
    glyphs = [".notdef", "sport", "body"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord("体"): "body", ord("育"): "sport"})
    font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Two Glyphs", "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(tmp_path / "two.ttf")
    font_manager.fontManager.addfont(tmp_path / "two.ttf")
    latin_fonts.append(font_manager.FontEntry(fname=str(tmp_path / "gone.ttf"), name="A font since removed"))
    assert shown("体育") == "体育"
    assert shown("体操") == "#1 体□"  # the font lacks the second


def test_numbers_need_no_matplotlib_and_pictures_no_pyplot():
    code = """
import sys
import evaluation.classification, evaluation.regression
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
import numpy as np
from evaluation import pictures
pictures.render(pictures.roc_curves(np.eye(2), np.array([0, 1]), ["a", "b"]))
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
