import itertools
import math

import pytest
from made_search import LOSSES, Fate
from matplotlib.colors import to_hex

from tune_dlrml.report.figures import draw_all
from tune_dlrml.report.figures.maps import frontier
from tune_dlrml.report.figures.margins import loss_curve
from tune_dlrml.report.style import looks, scale_of

QUANTILES = (-4.0, -2.0, -0.5, 0.3, 1.0, 2.0, 5.0)
FIXED = [
    {"name": "discopop", "beta": 0.1},
    {"name": "dlrml", "label": "by_c", "beta_kl": 0.1, "c": 20.0},
    {"name": "dlrml", "label": "by_beta_mix", "beta_kl": 0.1, "beta_mix": 0.1},
    {"name": "dlrml", "label": "by_start", "beta_kl": 0.1, "beta_mix": {"learnable": True, "c_init": 4.0}},
]


@pytest.fixture(scope="module")
def data(make_search):
    def fate_of(spec):
        diverges = spec.training.learning_rate > 3e-5
        return Fate(
            0.5 + spec.training.learning_rate * 1e3,
            diverges_at=6 if diverges else None,
            nonfinite=0.1,
            quantiles=QUANTILES,
        )

    return make_search(LOSSES, num_trials=30, scheduler=None).run(fate_of).read()


def test_every_axis_of_every_picture_has_a_name(data):
    for drawing in draw_all(data).values():
        assert drawing.figure is not None, drawing.name
        drawing.figure.draw_without_rendering()
        for axes in drawing.figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label.get_text() for label in axis.get_ticklabels() if label.get_visible()]
                numbers = any(label[:1] in {*"0123456789-−"} for label in labels)
                assert axis.get_label().get_text() or not numbers, f"{drawing.name}: {labels}"


def test_what_a_users_loss_learns_is_drawn_beside_what_dlrml_learns(make_search):
    heat = {"learnable": True, "init": 1.0}
    own = {"name": "custom", "label": "own", "function": "nowhere:tempered", "params": {"beta": 0.1, "heat": heat}}
    data = make_search([own, LOSSES[3]], num_trials=6, baseline=None).run(lambda _: Fate()).read()
    figure = draw_all(data)["learned_parameters"].figure
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert sorted(label.partition(",")[0].partition(" =")[0] for label in labels) == ["beta_mix", "c", "heat"]
    (heats,) = (axes for axes in figure.axes if axes.get_ylabel().startswith("heat"))
    assert all(list(line.get_ydata())[-1] == 5.0 for line in heats.get_lines())


def test_losses_differ_in_more_than_their_colour(make_search):
    losses = [{"name": "dlrml", "label": f"loss{n}", "beta_kl": 0.1, "c": 1.0 + n} for n in range(40)]
    data = make_search(losses, num_trials=None, sampler="grid").run(lambda _: Fate(diverges_at=1)).read()
    styles = [(look.colour, look.marker) for look in looks(data).values()]
    assert len(styles) == 41 and len({*styles}) == 41


def test_better_is_darker():
    def lightness(scale, value):
        red, green, blue = (int(to_hex(scale.to_rgba(value))[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    up, down = scale_of([0.0, 1.0], maximize=True), scale_of([0.0, 1.0], maximize=False)
    values = [at / 10 for at in range(11)]
    assert all(lightness(up, low) > lightness(up, high) for low, high in itertools.pairwise(values))
    assert all(lightness(down, low) < lightness(down, high) for low, high in itertools.pairwise(values))
    assert max(lightness(up, value) for value in values) < 215  # of 255: still to be seen on white


def test_the_three_ways_to_say_a_mixing_have_one_place_on_the_map(make_search):
    # DiscoPOP at tau 0.05 has c = 20; so has beta_mix = beta_kl at the same tau.
    data = make_search(FIXED, num_trials=40, baseline=None).run(lambda _: Fate()).read()
    shapes = {trial.branch: trial.shape for trial in data.trials}
    for branch in ("discopop", "by_c", "by_beta_mix"):
        assert (shapes[branch].beta_kl, shapes[branch].c) == (0.1, pytest.approx(20.0))
    assert shapes["by_start"].c_start == 4.0
    assert shapes["by_start"].c < 4.0
    assert data.tau == 0.05


def test_the_curve_under_the_margins_is_the_loss(make_search):
    losses = [{"name": "dpo", "beta": 0.2}, *FIXED]
    data = make_search(losses, num_trials=40, baseline=None).run(lambda _: Fate()).read()
    curves = {trial.branch: loss_curve(trial) for trial in data.trials}
    assert curves["dpo"](0.0) == pytest.approx(math.log(2))
    assert curves["dpo"](5.0) == pytest.approx(math.log(1 + math.exp(-1)))
    for branch in ("discopop", "by_c", "by_beta_mix"):
        assert curves[branch](0.0) == pytest.approx((math.log(2) + 1) / 2)
        assert curves[branch](-1.186) == pytest.approx(0.7859, abs=1e-4)  # the trap of DiscoPOP, z = -0.1186


def test_a_loss_without_a_closed_form_is_drawn_from_its_function(make_search):
    losses = [{"name": "hinge", "beta": {"choice": [0.1]}}]
    search = make_search(losses, num_trials=3, baseline=None).run(lambda _: Fate(quantiles=QUANTILES))
    data = search.read()
    curve = loss_curve(data.trials[0])
    assert [curve(margin) for margin in (-10.0, 0.0, 4.0, 25.0)] == pytest.approx([2.0, 1.0, 0.6, 0.0])
    drawn = draw_all(data)
    assert drawn["margins"].figure is not None
    assert drawn["stability_map"].figure is None


def test_a_map_without_a_strip_beside_it_bears_the_numbers_of_its_own_axis(make_search):
    losses = [{"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 0.5]}, "c": 4.0}]
    search = make_search(losses, num_trials=4, baseline=None).run(lambda _: Fate())
    figure = draw_all(search.read())["stability_map"].figure
    figure.draw_without_rendering()
    (axes,) = [axes for axes in figure.axes if "beta_kl, per nat" in axes.get_ylabel()]
    ticks = axes.yaxis.get_major_ticks()
    assert [tick for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def test_a_trial_outside_its_bounds_is_not_filled_beside_the_front(make_search):
    made = make_search(num_trials=3, scheduler=None, constraints={"eval_kl": {"max": 5}})
    made.run(lambda spec: Fate(kl=9.0 if spec.number == 1 else 1.0 + spec.number))
    (axes,) = frontier(made.read()).figure.axes
    faces = {line.get_xdata()[0]: line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1}
    assert [faces[kl] == "white" for kl in (1.0, 9.0, 3.0)] == [False, True, False]
