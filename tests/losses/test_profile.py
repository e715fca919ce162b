"""What is said of a loss before it is trained with."""

import math

import pytest
import torch

from tune_dlrml.losses.discovered.config import CellLoss
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.kto.config import KtoLoss
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.profile import overflows_within, profile
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.report.loss_picture import loss_figure

# log of the largest float32; bfloat16 has the same exponents.
LIMIT = 88.7228
LONGEST = 709.78
"""The same of float64."""


@pytest.fixture(scope="module")
def published_default():
    """DLRML as published, beta_kl 0.05 and beta_mix 0.2 at tau 0.05: c = 80."""
    return profile(DlrmlLoss(beta_kl=0.05, beta_mix=0.2, tau=0.05)).as_json()


def test_the_document_has_the_numbers_of_the_design(published_default):
    assert published_default["c"] == pytest.approx(80)
    assert published_default["starts"] == "wrong"
    assert published_default["bounded"] is True
    assert published_default["safe_c"] == [1, pytest.approx(9.109, abs=1e-3)]
    assert published_default["trap"]["value"] == pytest.approx(0.7244, abs=1e-4)
    assert published_default["barrier"]["value"] == pytest.approx(0.9496, abs=1e-4)
    for point in (published_default["trap"], published_default["barrier"]):
        assert point["margin"] == pytest.approx(point["z"] / 0.05)


def test_discopop_at_0_05_has_its_trap_and_barrier_at_known_margins():
    document = profile(DiscopopLoss(beta=0.05)).as_json()
    assert document["trap"]["margin"] == pytest.approx(-2.37, abs=0.005)
    assert document["barrier"]["margin"] == pytest.approx(1.44, abs=0.005)


def test_the_published_form_is_nan_where_exp_overflows_and_the_stable_one_never(published_default):
    overflow = published_default["overflow"]
    assert overflow.keys() == {"float32", "bfloat16"}
    for name, rel in (("float32", 1e-5), ("bfloat16", 0.01)):
        assert overflow[name]["stable"] == {"below": None, "above": None}
        assert overflow[name]["published"]["above"] is None
        assert overflow[name]["published"]["below"] == pytest.approx(-LIMIT / 0.05, rel=rel)
        nan = published_default["published"][name]["nan"]
        assert nan["below"] == pytest.approx(-LIMIT / 0.05, rel=rel)


def test_where_both_forms_are_finite_they_agree_to_rounding(published_default):
    assert 0 < published_default["published"]["float32"]["max_relative_difference"] < 1e-4
    assert abs(published_default["published"]["float32"]["at_margin"]) <= 1e4


def test_below_c_1_the_true_value_overflows_too():
    document = profile(DlrmlLoss(beta_kl=0.1, c=0.5)).as_json()
    assert document["bounded"] is False
    # m * exp(-z) is exp((1 - c) * |z|) for z far below 0.
    assert document["overflow"]["float32"]["stable"]["below"] == pytest.approx(-LIMIT / 0.05, rel=1e-3)


def test_a_loss_without_mixing_has_neither_c_nor_a_published_form():
    document = profile(DpoLoss(beta=0.1)).as_json()
    assert document["c"] is document["safe_c"] is document["published"] is document["trap"] is None
    assert document["starts"] == "right"
    assert document["overflow"]["float32"] == {"stable": {"below": None, "above": None}, "published": None}


def test_cell_overflows_where_its_exponential_does():
    below = profile(CellLoss(beta=0.05)).as_json()["overflow"]["float32"]["stable"]["below"]
    assert below == pytest.approx(-LIMIT / 0.05, rel=0.01)


def test_the_curve_is_the_loss_over_the_margin():
    curve = profile(DpoLoss(beta=0.1)).as_json()["curve"]
    assert len(curve["margin"]) == len(curve["value"]) == len(curve["slope"])
    assert (min(curve["margin"]), max(curve["margin"])) == (pytest.approx(-60), pytest.approx(60))
    for margin, value, slope in zip(*curve.values(), strict=True):
        assert value == pytest.approx(math.log1p(math.exp(-0.1 * margin)))
        assert slope == pytest.approx(-0.1 / (1 + math.exp(0.1 * margin)))


def test_a_learnt_mixing_is_drawn_as_it_starts():
    learnt = DlrmlLoss(beta_kl=0.05, beta_mix=LearnableBetaMix(c_init=4.0))
    assert profile(learnt).as_json()["c"] == pytest.approx(4)


def test_a_batch_coupled_loss_says_so():
    assert profile(KtoLoss()).as_json()["batch_coupled"] is True


@pytest.mark.parametrize(("beta_kl", "overflows"), [(0.17, False), (0.18, True)])
def test_the_published_form_overflows_within_500_nats_above_a_beta_kl_of_0_177(beta_kl, overflows):
    loss = build_loss(DlrmlLoss(beta_kl=beta_kl, c=5.0, numerics="published"))
    assert overflows_within(loss, 500.0, 201) is overflows
    stable = build_loss(DlrmlLoss(beta_kl=beta_kl, c=5.0))
    assert not overflows_within(stable, 500.0, 201)


@pytest.mark.parametrize(("loss", "columns"), [(DiscopopLoss(), 2), (DpoLoss(), 1)])
def test_a_trap_has_a_close_up_in_the_picture(loss, columns):
    axes = loss_figure(profile(loss)).axes
    assert len(axes) == 2 * columns
    assert axes[0].get_ylabel() == "loss of a pair, nats"
    told = [text.get_text() for each in axes for text in each.texts]
    assert any(text.startswith("trap -2.37 nats") for text in told) == (columns == 2)
    assert torch.get_default_dtype() == torch.float32
