"""The radar picture of ratings by category."""

import io
import math
import subprocess
import sys

import pytest

from tune_dlrml.evaluation.mt_bench.radar import radar

CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
SCORES = {f"trial {number}": {name: 1.0 + number + at for at, name in enumerate(CATEGORIES)} for number in range(3)}


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def texts(figure):
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legend, [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_every_model_is_a_closed_line_over_all_categories():
    figure = radar(SCORES, judge="openai:judge")
    (axes,) = figure.axes
    assert texts(figure) == (list(SCORES), CATEGORIES)
    for line, means in zip(axes.get_lines(), SCORES.values(), strict=True):
        angles, radii = line.get_data()
        assert list(radii) == [*means.values(), means["writing"]]
        assert list(angles) == pytest.approx([math.tau * at / 8 for at in [*range(8), 0]])


def test_the_axes_go_from_1_to_10_and_the_title_names_the_judge():
    (axes,) = radar(SCORES, judge="local:SmolLM2:logits").axes
    assert axes.get_ylim() == (1, 10)
    assert list(axes.get_yticks()) == list(range(2, 11))
    assert "from 1 in the centre to 10 on the rim" in axes.get_title()
    assert "local:SmolLM2:logits" in axes.get_title()


def test_a_missing_score_breaks_the_line():
    scores = {"a": {"x": 3.0, "y": None, "z": 5.0}, "b": {"x": 2.0, "z": 4.0}}
    (axes,) = radar(scores, judge="openai:judge").axes
    assert [[math.isnan(radius) for radius in line.get_ydata()] for line in axes.get_lines()] == [
        [False, True, False, False]
    ] * 2


def test_lines_differ_without_colour():
    (axes,) = radar({str(number): {"x": 5.0} for number in range(20)}, judge="openai:judge").axes
    styles = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(styles) == 20


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"nobody": {}},
        {"one": {"only": 1.0}},
        {"_under": {"$\\bad{$": 5.0, "two": 10.0}, "$x^$": {"two": 9.0}},
        {"a model with a name that goes on " * 8: {"x": 1.0, "y": 2.0, "z": 3.0}},
    ],
)
def test_any_labels_and_any_number_of_categories_are_drawn_as_they_are(scores):
    figure = radar(scores, judge="openai:$gpt_{4$")
    assert drawn(figure).startswith(b"\x89PNG")
    assert texts(figure)[0] == list(scores)


def test_drawing_touches_no_global_state_of_matplotlib():
    program = (
        "import sys\n"
        "from tune_dlrml.evaluation.mt_bench.radar import radar\n"
        "radar({'a': {'x': 1.0}}, judge='j')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
