"""The losses as functions of the margin: identities, gradients and the range in which they are finite."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tune_dlrml.losses.dpo.function import dpo
from tune_dlrml.losses.lrml.function import discopop, discopop_published, dlrml, dlrml_published

FORMS = [dlrml, dlrml_published]


def margins(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradient(loss_B, wrt):
    return torch.autograd.grad(loss_B.sum(), wrt)[0]


def test_dpo_at_hand_values():
    margin_B = margins(0.0, 10.0, -10.0)
    assert dpo(margin_B, beta=0.1).tolist() == pytest.approx(
        [math.log(2), math.log1p(math.exp(-1)), math.log1p(math.e)]
    )
    assert gradient(dpo(margin_B, beta=0.1), margin_B)[0].item() == pytest.approx(-0.1 / 2)


@pytest.mark.parametrize("form", FORMS)
def test_dlrml_at_hand_values(form):
    # z = ln 2 and c = 1 give m = 2/3, exp(-z) = 1/2, softplus(-z) = ln 1.5.
    margin_B = margins(0.0, math.log(2) / 0.5)
    expected = [(math.log(2) + 1) / 2, math.log(1.5) / 3 + 1 / 3]
    assert form(margin_B, beta_kl=0.5, beta_mix=0.05, tau=0.1).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_loss_depends_on_z_and_the_shape_number_only(form):
    z_B = torch.linspace(-20, 20, 401, dtype=torch.float64)
    for c in (0.5, 5.0, 20.0):
        settings = [(0.05, 0.05), (0.05, 0.5), (0.7, 0.05), (2.0, 1.3)]
        curves = [form(z_B / kl, beta_kl=kl, beta_mix=c * tau * kl, tau=tau) for kl, tau in settings]
        for curve in curves[1:]:
            torch.testing.assert_close(curve, curves[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("form", "published"), [(dlrml, discopop), (dlrml_published, discopop_published)])
@pytest.mark.parametrize(("beta_kl", "beta_mix", "tau"), [(0.05, 0.2, 0.05), (0.3, 0.1, 0.05), (0.01, 0.5, 0.2)])
def test_dlrml_is_discopop_at_tau_scaled_by_the_ratio_of_the_betas(form, published, beta_kl, beta_mix, tau):
    margin_B = torch.linspace(-100, 100, 2001, dtype=torch.float64)
    tau_of_discopop = tau * beta_kl / beta_mix
    torch.testing.assert_close(
        form(margin_B, beta_kl=beta_kl, beta_mix=beta_mix, tau=tau),
        published(margin_B, beta=beta_kl, tau=tau_of_discopop),
        rtol=1e-11,
        atol=0,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beta_kl", [0.05, 0.4])
def test_gradient_at_margin_zero_turns_wrong_at_c_9_777(form, beta_kl):
    tau = 0.05
    for c, sign in ((1.0, -1), (9.776, -1), (9.778, 1), (20.0, 1), (80.0, 1)):
        margin_B = margins(0.0)
        slope = gradient(form(margin_B, beta_kl=beta_kl, beta_mix=c * tau * beta_kl, tau=tau), margin_B).item()
        assert slope == pytest.approx(beta_kl * (c * (1 - math.log(2)) - 3) / 4, rel=1e-9)
        assert math.copysign(1, slope) == sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "tau"), [(0.05, 0.05), (0.27, 0.05), (1.0, 0.5), (0.1, 2.0)])
def test_discopop_published_is_bit_for_bit_the_formula_of_trl(beta, tau, dtype):
    margin_B = torch.linspace(-80, 80, 1601, dtype=dtype)
    logits = margin_B * beta
    modulation = torch.sigmoid(logits / tau)
    trl = -F.logsigmoid(logits) * (1 - modulation) + torch.exp(-logits) * modulation
    assert torch.equal(discopop_published(margin_B, beta=beta, tau=tau), trl)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("c", [0.3, 1.0, 5.0, 20.0, 80.0])
def test_published_and_stable_forms_agree_where_both_are_finite(c, dtype, rtol):
    beta_kl, tau = 0.1, 0.05
    margin_B = torch.linspace(-800, 800, 3201, dtype=dtype).requires_grad_()
    settings = {"beta_kl": beta_kl, "beta_mix": c * tau * beta_kl, "tau": tau}
    stable_B, published_B = dlrml(margin_B, **settings), dlrml_published(margin_B, **settings)
    assert published_B.isfinite().all()
    torch.testing.assert_close(stable_B, published_B, rtol=rtol, atol=torch.finfo(dtype).tiny)
    slopes = [gradient(loss_B, margin_B) for loss_B in (stable_B, published_B)]
    torch.testing.assert_close(*slopes, rtol=rtol, atol=10 * rtol * beta_kl)


@pytest.mark.parametrize("form", [dlrml, dpo])
def test_a_half_precision_margin_keeps_its_dtype_and_stays_finite(form):
    settings = {"beta": 0.1} if form is dpo else {"beta_kl": 0.1, "beta_mix": torch.tensor(0.1), "tau": 0.05}
    for dtype in (torch.bfloat16, torch.float16):
        margin_B = torch.linspace(-2000, 2000, 401).to(dtype).requires_grad_()
        loss_B = form(margin_B, **settings)
        assert loss_B.dtype == dtype
        assert loss_B.isfinite().all()
        assert gradient(loss_B, margin_B).isfinite().all()
        exact_B = form(margin_B.double(), **settings)
        torch.testing.assert_close(loss_B.double(), exact_B, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "last_finite", "first_nan"),
    # Neighbouring multiples of the spacing of each dtype around -ln(largest number): -88.72, -88.72 and -11.09.
    [(torch.float32, -88.72, -88.73), (torch.bfloat16, -88.5, -89.0), (torch.float16, -11.0859375, -11.09375)],
)
def test_the_published_form_is_nan_once_exp_overflows(dtype, last_finite, first_nan):
    assert first_nan < -math.log(torch.finfo(dtype).max) < last_finite
    margin_B = torch.tensor([last_finite, first_nan], dtype=dtype)
    finite, nan = dlrml_published(margin_B, beta_kl=1.0, beta_mix=1.0, tau=0.05).tolist()
    assert finite == pytest.approx(-last_finite, rel=1e-2)
    assert math.isnan(nan)
    assert dlrml(margin_B, beta_kl=1.0, beta_mix=1.0, tau=0.05).tolist() == pytest.approx([-last_finite, -first_nan])


def test_below_the_overflow_a_published_loss_of_small_c_is_infinite_where_the_true_value_is_not():
    margin_B = torch.tensor([-95.0])
    assert dlrml_published(margin_B, beta_kl=1.0, beta_mix=0.025, tau=0.05).item() == math.inf
    # (1 - m) * 95 is lost beside m * exp(95), m = exp(-47.5).
    assert dlrml(margin_B, beta_kl=1.0, beta_mix=0.025, tau=0.05).item() == pytest.approx(math.exp(47.5), rel=1e-5)


@pytest.mark.parametrize(("form", "spreads"), [(dlrml_published, True), (dlrml, False)])
def test_one_overflowing_pair_spoils_batch_and_weights_in_the_published_form_only(form, spreads):
    weight = torch.ones((), requires_grad=True)
    loss = form(weight * torch.tensor([1.0, 2.0, -2000.0]), beta_kl=0.05, beta_mix=0.05, tau=0.05).mean()
    loss.backward()
    assert loss.isnan().item() is spreads
    assert weight.grad.isnan().item() is spreads


def test_over_75_000_cells_the_published_form_fails_in_8_83_percent_and_the_log_space_form_in_none_that_fits_float32():
    beta = np.geomspace(0.01, 5, 30)[:, None, None]
    c = np.geomspace(0.1, 100, 25)[None, :, None]
    size = np.geomspace(1e-2, 10**3.5, 50)
    rho = np.concatenate([-size, size])[None, None, :]
    z = beta * rho
    log_m, log_unmixed = -np.logaddexp(0, -c * z), -np.logaddexp(0, c * z)
    with np.errstate(over="ignore"):
        truth = np.exp(log_unmixed) * np.logaddexp(0, -z) + np.exp(log_m - z)
        slope = beta * np.abs(np.exp(log_m - z) * (c * np.exp(log_unmixed) - 1) - np.exp(log_unmixed))
    assert truth.size == 75_000
    fits = np.maximum(truth, slope) < np.finfo(np.float32).max

    tau = 0.05
    margin_B = torch.tensor(np.broadcast_to(rho, truth.shape), dtype=torch.float32).requires_grad_()
    beta_mix_B = torch.tensor(c * tau * beta, dtype=torch.float32)
    settings = {"beta_kl": torch.tensor(beta, dtype=torch.float32), "beta_mix": beta_mix_B, "tau": tau}
    published = dlrml_published(margin_B, **settings).isfinite().numpy()
    assert round(100 * float(np.mean(~published)), 2) == 8.83

    stable_B = dlrml(margin_B, **settings)
    assert stable_B.isfinite().numpy()[fits].all()
    assert gradient(stable_B, margin_B).isfinite().numpy()[fits].all()
    # A rounding error of float32 in an exponent of up to 88 is a relative error of 88 * 6e-8 each time.
    np.testing.assert_allclose(stable_B.detach().numpy()[fits], truth[fits], rtol=1e-4, atol=1e-37)
    # What does not fit has an exploding true value, hence c < 1.
    assert (np.broadcast_to(c, truth.shape)[~fits] < 1).all()
    assert (~fits).any()


@pytest.mark.parametrize("form", FORMS)
def test_derivative_in_beta_mix_has_its_closed_form_and_the_sign_of_the_margin(form):
    beta_kl, tau = 0.1, 0.05
    for mix in (0.01, 0.1, 0.4):
        for rho in (-60.0, -5.0, -0.3, 0.0, 0.3, 5.0, 60.0):
            beta_mix = torch.tensor(mix, dtype=torch.float64, requires_grad=True)
            loss_B = form(torch.tensor([rho], dtype=torch.float64), beta_kl=beta_kl, beta_mix=beta_mix, tau=tau)
            z, m = beta_kl * rho, 1 / (1 + math.exp(-mix * rho / tau))
            closed = rho / tau * m * (1 - m) * (math.exp(-z) - math.log1p(math.exp(-z)))
            found = gradient(loss_B, beta_mix).item()
            assert found == pytest.approx(closed, rel=1e-7, abs=1e-15)
            if abs(mix * rho / tau) < 30:
                assert np.sign(found) == np.sign(rho)


@pytest.mark.parametrize("form", FORMS)
def test_derivative_in_beta_mix_is_that_of_finite_differences(form):
    margin_B = torch.linspace(-40, 40, 81, dtype=torch.float64)

    def total(mix):
        return form(margin_B, beta_kl=0.1, beta_mix=mix, tau=0.05).sum()

    for mix in (0.004, 0.02, 0.2):
        beta_mix = torch.tensor(mix, dtype=torch.float64, requires_grad=True)
        step = 1e-5 * mix
        numerical = (total(mix + step) - total(mix - step)).item() / (2 * step)
        assert gradient(total(beta_mix), beta_mix).item() == pytest.approx(numerical, rel=1e-6)


def test_derivative_in_beta_mix_is_finite_at_margins_where_the_product_form_is_nan():
    margin_B = torch.tensor([-2000.0, -1000.0, 0.0, 1000.0, 2000.0])
    for c in (1.0, 5.0, 80.0):
        beta_mix = torch.tensor(c * 0.05 * 0.5, requires_grad=True)
        assert gradient(dlrml(margin_B, beta_kl=0.5, beta_mix=beta_mix, tau=0.05), beta_mix).isfinite()
        assert gradient(dlrml_published(margin_B, beta_kl=0.5, beta_mix=beta_mix, tau=0.05), beta_mix).isnan()


def descend(loss, *, learning_rate, steps):
    rho = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        slope = gradient(loss(rho), rho)
        with torch.no_grad():
            rho -= learning_rate * slope
    return rho.detach()


def test_descent_from_margin_zero_ends_in_the_trap_with_discopop():
    rho = descend(lambda r: discopop(r, beta=0.05, tau=0.05), learning_rate=5.0, steps=400)
    assert rho.item() == pytest.approx(-2.37, abs=5e-3)
    assert discopop(rho, beta=0.05, tau=0.05).item() == pytest.approx(0.7859, abs=5e-5)


def test_descent_from_margin_zero_raises_the_margin_with_dlrml_at_c_5():
    rho = descend(lambda r: dlrml(r, beta_kl=0.05, beta_mix=5 * 0.05 * 0.05, tau=0.05), learning_rate=5.0, steps=400)
    assert rho.item() > 30
