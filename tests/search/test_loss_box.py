"""The share of a search box whose loss is unsuitable, against shares computed by hand."""

import math

import numpy as np
import pytest

from tune_dlrml.doctor.loss_box import loss_box_of
from tune_dlrml.domains import Choice, Range
from tune_dlrml.losses.discovered.config import AqlLoss, CellLoss
from tune_dlrml.losses.dpo.config import DpoLoss, HingeLoss
from tune_dlrml.losses.faults import percent
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.profile import overflows_within
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.space import loss_at
from tune_dlrml.space_points import sampled

BETA_KL = {"log_uniform": [0.01, 0.5]}
BETA_MIX = {"log_uniform": [0.05, 0.5]}


def dlrml(**fields):
    return DlrmlLoss.model_validate({"beta_kl": 0.05, **fields})


def share_above(c: float, tau: float = 0.05) -> float:
    """Share of the box BETA_KL x BETA_MIX with beta_mix / (tau * beta_kl) > c.

    In logarithms the box is the rectangle x in [ln 0.01, ln 0.5], y in [ln 0.05, ln 0.5], and the share is the part
    of it above the line y = x + ln(c * tau): its height there, integrated over x piece by piece.
    """
    left, right, bottom, top = math.log(0.01), math.log(0.5), math.log(0.05), math.log(0.5)
    shift = math.log(c * tau)
    enters, leaves = (min(max(edge - shift, left), right) for edge in (bottom, top))
    whole = (enters - left) * (top - bottom)
    slanted = ((top - shift - enters) ** 2 - (top - shift - leaves) ** 2) / 2
    return (whole + slanted) / ((right - left) * (top - bottom))


@pytest.fixture(scope="module")
def published_box():
    return loss_box_of("dlrml", dlrml(beta_kl=BETA_KL, beta_mix=BETA_MIX), 500.0)


def test_86_percent_of_the_usual_box_starts_uphill(published_box):
    expected = share_above(3 / (1 - math.log(2)))
    assert expected == pytest.approx(0.86, abs=0.005)  # the number of the design
    assert published_box.uphill == pytest.approx(expected, abs=0.005)
    assert "86 % of its box starts uphill, 87 % has a trap" in published_box.sentence()


def test_traps_unbounded_slopes_and_overflows_have_their_shares(published_box):
    assert published_box.points == 4096
    assert published_box.trapped == pytest.approx(share_above(9.109096), abs=0.005)
    assert published_box.unbounded == pytest.approx(1 - share_above(1.0), abs=0.005)
    # As published exp(-z) overflows within 500 nats for beta_kl > 88.72 / 500; as the search computes it, nowhere.
    published = math.log(0.5 / (88.7228 / 500)) / math.log(50)
    assert published_box.overflowing == pytest.approx(published, abs=0.005)
    assert published_box.nonfinite == 0


def test_the_parameters_to_change_are_named_with_their_range(published_box):
    (advice,) = published_box.advice
    assert "beta_mix/beta_kl within 0.05..0.455 at tau 0.05" in advice
    assert not published_box.sound


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (dlrml(c={"log_uniform": [0.5, 20]}), "of it is in the safe band: keep c within 1..9.109"),
        (dlrml(beta_mix=0.2), "keep beta_mix/beta_kl within 0.05..0.455 at tau 0.05"),
        (dlrml(beta_mix=0.2, tau={"uniform": [0.01, 0.1]}), "beta_mix/(tau * beta_kl) within 1..9.109"),
        (DiscopopLoss(beta=0.05), "tau within 0.11..1, since c = 1 / tau"),
        (dlrml(beta_mix=LearnableBetaMix(init=0.2, c_bounds=None)), "keep init/beta_kl within 0.05..0.455"),
        (dlrml(c=4.0, beta_kl=0.3, numerics="published"), "for beta_kl over 0.177; `numerics: stable`"),
    ],
)
def test_advice_is_in_the_words_of_the_file(loss, says):
    assert says in "; ".join(loss_box_of("some", loss, 500.0).advice)


def test_a_search_over_the_safe_band_is_sound():
    loss_box = loss_box_of("dlrml_c", dlrml(beta_kl=BETA_KL, c={"log_uniform": [1, 9.1]}), 500.0)
    assert loss_box.sound
    assert loss_box.advice == ()
    assert loss_box.sentence() == "all of its box starts downhill, with a bounded slope and no trap"


def test_the_closed_form_agrees_with_the_loss_itself():
    space = dlrml(beta_kl=BETA_KL, beta_mix=BETA_MIX, numerics="published")
    points = sampled(space.domains(), 6)
    rows = [dict(zip(points, row, strict=True)) for row in zip(*(points[k].tolist() for k in points), strict=True)]
    built = [build_loss(loss_at(space, row)) for row in rows]
    uphill = np.mean([loss.geometry().starts == "wrong" for loss in built])
    overflowing = np.mean([overflows_within(loss, 500.0, 201) for loss in built])
    loss_box = loss_box_of("dlrml", space, 500.0)
    assert loss_box.uphill == pytest.approx(uphill, abs=0.03)
    assert loss_box.nonfinite == loss_box.overflowing == pytest.approx(overflowing, abs=0.03)


@pytest.mark.parametrize("beta", [0.1, {"log_uniform": [0.01, 0.5]}])
@pytest.mark.parametrize("kind", [DpoLoss, HingeLoss])
def test_a_monotone_bounded_loss_is_sound_everywhere(kind, beta):
    assert loss_box_of("some", kind.model_validate({"beta": beta}), 500.0).sound


def test_overflow_is_reported_with_the_range_to_keep():
    loss_box = loss_box_of("cell", CellLoss.model_validate({"beta": {"log_uniform": [0.01, 0.5]}}), 500.0)
    assert loss_box.unbounded == 1
    assert loss_box.nonfinite == pytest.approx(math.log(0.5 / (88.7228 / 500)) / math.log(50), abs=0.02)
    (advice,) = loss_box.advice
    assert advice.startswith("keep beta up to 0.17")


def test_aql_starts_uphill_below_a_tau_of_0_1047():
    loss_box = loss_box_of("aql", AqlLoss.model_validate({"beta": 0.05, "tau": {"log_uniform": [0.02, 0.5]}}), 500.0)
    assert loss_box.uphill == pytest.approx(math.log(0.1047 / 0.02) / math.log(25), abs=0.03)
    assert loss_box.advice[0].startswith("keep tau from 0.10")


def test_choices_alone_are_looked_at_one_by_one():
    points = sampled({"a": Choice(values=(1, 2)), "b": Choice(values=("x", "y", "z"))}, 12)
    assert {key: len(column) for key, column in points.items()} == {"a": 6, "b": 6}
    loss_box = loss_box_of("dlrml", dlrml(c={"choice": [4, 20, 40, 5]}), 500.0)
    assert (loss_box.points, loss_box.uphill) == (4, 0.5)


def test_points_spread_evenly_on_the_scale_of_each_domain():
    points = sampled(
        {
            "log": Range(kind="log_uniform", low=0.01, high=1),
            "whole": Range(kind="int_uniform", low=1, high=4),
            "pick": Choice(values=(True, False)),
        },
        10,
    )
    assert np.mean(points["log"] < 0.1) == pytest.approx(0.5, abs=0.01)
    assert [float(np.mean(points["whole"] == n)) for n in (1, 2, 3, 4)] == pytest.approx([0.25] * 4, abs=0.01)
    assert np.mean(points["pick"] == True) == pytest.approx(0.5, abs=0.01)  # noqa: E712


def test_a_share_is_0_or_100_percent_only_where_it_is():
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
