"""What every registered loss must satisfy, whatever its formula."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from sample_losses import ALL, COUPLED, FREE, SHAPED, STABLE

from tune_dlrml.domains import Range
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.lrml.config import DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.lrml.function import dlrml
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.registry import LOSSES, AnyLoss, build_loss


def over(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def pairs_of(margin_B):
    """Pairs with these margins, split unevenly between chosen and rejected."""
    length_B = torch.full(margin_B.shape, 7)
    return PairBatch(0.25 * margin_B, -0.75 * margin_B, length_B, length_B + 1)


def pairs_for(config, margin_B, *, level=-120.0):
    """Pairs with these margins; for a loss without a reference such that no log-probability is above 0."""
    pairs = pairs_of(margin_B)
    if config.needs_reference:
        return pairs
    reference_B = torch.full_like(margin_B, level, requires_grad=False)
    return pairs._replace(reference_chosen_logps_B=reference_B, reference_rejected_logps_B=reference_B)


def opinionated(margin_B):
    """Pairs with these margins under a reference that is not indifferent."""
    chosen_B, rejected_B = -20 + torch.sin(7 * margin_B), -22 - torch.cos(3 * margin_B)
    return PairBatch(*pairs_of(margin_B)[:4], chosen_B - rejected_B, chosen_B, rejected_B)


def present_mixing(config):
    """beta_kl, beta_mix and tau of the formula, read off the configuration alone."""
    if config.name == "discopop":
        return config.beta, config.beta, config.tau
    if config.c is not None:
        return config.beta_kl, config.c * config.tau * config.beta_kl, config.tau
    mix = config.beta_mix
    if isinstance(mix, LearnableBetaMix):
        mix = mix.init if mix.init is not None else mix.c_init * config.tau * config.beta_kl
    return config.beta_kl, mix, config.tau


def published_formula(pairs, config):
    """The loss as TRL or the DiscoPOP repository compute it, in their own order of operations."""
    if getattr(config, "f_divergence", None) is not None:
        chosen_B, rejected_B = (scores(ratio_B, config.f_divergence) for ratio_B in pairs[:2])
        pairs = pairs._replace(chosen_logratio_B=chosen_B, rejected_logratio_B=rejected_B)
    if config.name == "mix":
        return sum(part.weight * published_formula(pairs, part.loss) for part in config.parts)
    if not config.needs_reference:
        return free_formula(pairs, config)
    if config.name in ("discopop", "dlrml"):
        return mixed_formula(pairs.margin_B, config)
    z_B = config.beta * pairs.margin_B
    logistic_B, hinge_B = -F.logsigmoid(z_B), torch.relu(1 - z_B)
    match config.name:
        case "dpo":
            return logistic_B
        case "hinge":
            return hinge_B
        case "ipo":
            return ipo_formula(pairs, config)
        case "kto":
            return kto_formula(pairs, config)
        case "sigmoid_norm":
            chosen_B = pairs.chosen_logratio_B / pairs.chosen_length_B
            return -F.logsigmoid(config.beta * (chosen_B - pairs.rejected_logratio_B / pairs.rejected_length_B))
        case "r_dpo":
            longer_B = config.alpha * (pairs.chosen_length_B - pairs.rejected_length_B).to(z_B.dtype)
            return -F.logsigmoid(z_B + longer_B)
        case "dpop":
            lost_B = torch.where(pairs.chosen_logratio_B < 0, -pairs.chosen_logratio_B, 0.0)
            return -F.logsigmoid(config.beta * (pairs.margin_B - config.penalty * lost_B))
        case "cdpo" | "robust" | "exo_pair":
            return smoothed_formula(z_B, config)
        case "beta_dpo":
            above = pairs.margin_B.detach().mean()
            return -F.logsigmoid((config.beta + config.beta * config.alpha * above).clamp(min=1e-3) * pairs.margin_B)
        case "nca_pair" | "bco_pair" | "sppo_hard" | "apo_zero" | "apo_down":
            return anchored_formula(pairs, config)
        case "aot" | "aot_unpaired":
            return transport_formula(pairs, config)
        case "padll":
            return 0.9 * (1 - (pairs.margin_B < 0).double() * 0.5) * logistic_B
        case "cell":
            return 0.5 * torch.exp(-z_B) + 0.5 * logistic_B
        case "pfl":
            return torch.where(pairs.margin_B > 0, logistic_B / 2, hinge_B * 2)
    x_B = z_B / config.tau
    match config.name:
        case "dbaql":
            blend = torch.sigmoid(x_B.var())
            return blend * -F.logsigmoid(z_B / 0.9) + (1 - blend) * torch.exp(-z_B * 0.9)
        case "aql":
            quantile = 0.5 + config.quantile_rate * (torch.sigmoid(x_B.mean()) - 0.5)
            blend_B = torch.sigmoid(-(x_B - quantile))
        case "aqfl":
            quantile = x_B.std() * torch.sigmoid(-x_B).mean()
            quantile = quantile + 0.05 * (torch.sigmoid(x_B.mean()) - quantile)
            blend_B = torch.sigmoid(0.1 * (x_B - quantile).abs())
    return blend_B * logistic_B + (1 - blend_B) * hinge_B


def scores(ratio_B, divergence):
    """f'(u) of the ratio u, from table 1 of the paper, less what two completions of a prompt share."""
    u_B = torch.exp(ratio_B)
    match divergence.kind:
        case "forward_kl":
            return 1 - 1 / u_B
        case "js":
            return torch.log(2 * u_B / (1 + u_B))
        case "alpha":
            return (1 - u_B**-divergence.alpha) / divergence.alpha


def free_formula(pairs, config):
    """From the probabilities themselves, as the papers write them."""
    chosen_B, rejected_B = pairs.chosen_logps_B, pairs.rejected_logps_B
    chosen_p, rejected_p = torch.exp(chosen_B / pairs.chosen_length_B), torch.exp(rejected_B / pairs.rejected_length_B)
    match config.name:
        case "simpo":
            return -F.logsigmoid(config.beta * torch.log(chosen_p / rejected_p) - config.gamma)
        case "cpo":
            return -F.logsigmoid(config.beta * (chosen_B - rejected_B)) - config.nll_weight * torch.log(chosen_p)
        case "orpo":
            odds = chosen_p / (1 - chosen_p), rejected_p / (1 - rejected_p)
            return -torch.log(chosen_p) - config.beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))
        case "slic":
            return (config.delta - chosen_B + rejected_B).clamp(min=0) - config.nll_weight * chosen_B
        case "alphapo":
            if config.alpha == 0:
                return -F.logsigmoid(config.beta * torch.log(chosen_p / rejected_p) - config.gamma)
            gain_B = (rejected_p**-config.alpha - chosen_p**-config.alpha) / config.alpha
            return -F.logsigmoid(config.beta * gain_B - config.gamma)
        case "simper":
            return rejected_p - chosen_p


def smoothed_formula(z_B, config):
    noise = config.label_smoothing
    if config.name == "exo_pair":
        policy = torch.stack([torch.sigmoid(z_B), torch.sigmoid(-z_B)])
        labels = torch.tensor([[1 - noise], [noise]], dtype=z_B.dtype)
        return torch.special.xlogy(policy, policy).sum(dim=0) - (policy * labels.log()).sum(dim=0)
    if config.name == "cdpo":
        return (1 - noise) * -F.logsigmoid(z_B) + noise * -F.logsigmoid(-z_B)
    return ((1 - noise) * -F.logsigmoid(z_B) - noise * -F.logsigmoid(-z_B)) / (1 - 2 * noise)


def anchored_formula(pairs, config):
    beta, chosen_B, rejected_B = config.beta, pairs.chosen_logratio_B, pairs.rejected_logratio_B
    match config.name:
        case "nca_pair":
            lost_B = 0.5 * F.logsigmoid(-beta * chosen_B) + 0.5 * F.logsigmoid(-beta * rejected_B)
            return -F.logsigmoid(beta * chosen_B) - lost_B
        case "bco_pair":
            return -F.logsigmoid(beta * chosen_B) - F.logsigmoid(-beta * rejected_B)
        case "sppo_hard":
            return (chosen_B - 1 / (2 * beta)) ** 2 + (rejected_B + 1 / (2 * beta)) ** 2
        case "apo_zero":
            return 1 - torch.sigmoid(beta * chosen_B) + torch.sigmoid(beta * rejected_B)
        case "apo_down":
            return torch.sigmoid(beta * chosen_B) + 1 - torch.sigmoid(beta * (chosen_B - rejected_B))


def transport_formula(pairs, config):
    """The sorted losses, put back to the pairs whose values were sorted; the reference is indifferent."""
    if config.name == "aot":
        sorted_B, order_B = pairs.margin_B.sort()
        distance_B = sorted_B
    else:
        sorted_B, order_B = pairs.chosen_logratio_B.sort()
        distance_B = sorted_B - pairs.rejected_logratio_B.sort().values
    noise, z_B = config.label_smoothing, config.beta * distance_B
    loss_B = (1 - noise) * -F.logsigmoid(z_B) + noise * -F.logsigmoid(-z_B)
    return torch.empty_like(loss_B).index_copy(0, order_B, loss_B)


def ipo_formula(pairs, config):
    chosen_B, rejected_B = pairs.chosen_logratio_B, pairs.rejected_logratio_B
    if config.length_normalized:
        chosen_B, rejected_B = chosen_B / pairs.chosen_length_B, rejected_B / pairs.rejected_length_B
    return (chosen_B - rejected_B - 1 / (2 * config.beta)) ** 2


def kto_formula(pairs, config):
    chosen_B, rejected_B = pairs.chosen_logratio_B, pairs.rejected_logratio_B
    chosen_kl, rejected_kl = chosen_B.mean().clamp(min=0), rejected_B.mean().clamp(min=0)
    if not config.kl_gradient:
        chosen_kl, rejected_kl = chosen_kl.detach(), rejected_kl.detach()
    desirable_B = 1 - torch.sigmoid(config.beta * (chosen_B - rejected_kl))
    undesirable_B = 1 - torch.sigmoid(config.beta * (chosen_kl - rejected_B))
    return (config.desirable_weight * desirable_B + config.undesirable_weight * undesirable_B) / 2


def mixed_formula(margin_B, config):
    beta_kl, beta_mix, tau = present_mixing(config)
    modulation_B = torch.sigmoid(beta_mix * margin_B / tau)
    logits_B = beta_kl * margin_B
    return -F.logsigmoid(logits_B) * (1 - modulation_B) + torch.exp(-logits_B) * modulation_B


def test_the_suite_covers_every_registered_loss_and_every_configurable_loss_is_registered():
    assert {config.name for config in ALL.values()} == set(LOSSES) - {"custom", "proposed"}
    configurable = {member.model_fields["name"].default for member in get_args(get_args(AnyLoss)[0])}
    assert configurable == set(LOSSES)


@over(STABLE)
def test_value_and_gradients_are_finite_at_margins_of_2000_nats(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-2000, 2000, 4001).requires_grad_()
    loss_B = loss(pairs_for(config, margin_B, level=-2000.0))
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert margin_B.grad.isfinite().all()
    assert all(parameter.grad.isfinite() for parameter in loss.parameters())


@over(STABLE)
def test_value_and_gradient_are_finite_in_bfloat16(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-1000, 1000, 201).to(torch.bfloat16).requires_grad_()
    loss_B = loss(pairs_for(config, margin_B, level=-2000.0))
    loss_B.float().sum().backward()
    assert loss_B.dtype == torch.bfloat16
    assert loss_B.isfinite().all()
    assert margin_B.grad.isfinite().all()


@over({label: config for label, config in ALL.items() if label not in ("kto, KL held", "beta_dpo")})
def test_gradient_is_that_of_finite_differences(config):
    loss = build_loss(config)
    # PADLL, PFL and DPOP have a jump or a kink at 0, and the KL estimates of KTO are clamped there.
    middle = 0.5 if config.name in ("padll", "pfl", "kto", "dpop") else 0.0
    margin_B = torch.tensor([-60.0, -7.0, -1.0, middle, 1.0, 7.0, 60.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda margin_B: loss(pairs_for(config, margin_B)), (margin_B,), atol=1e-7)


@over(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_stack_of_its_pairs_at_given_statistics(config, dtype):
    loss = build_loss(config)
    margin_B = torch.linspace(-50, 50, 37, dtype=dtype)
    loss_B = loss.at_start(pairs_for(config, margin_B))
    assert loss_B.shape == margin_B.shape
    assert loss_B.dtype == dtype
    one_by_one = torch.cat([loss.at_start(pairs_for(config, margin_1)) for margin_1 in margin_B.split(1)])
    # Vectorised and scalar code of torch may differ in the last digits.
    torch.testing.assert_close(loss_B, one_by_one, rtol=20 * torch.finfo(dtype).eps, atol=0)


@over(ALL)
def test_a_loss_is_coupled_over_the_batch_exactly_if_it_says_so(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-5, 9, 37, dtype=torch.float64)
    pairs = opinionated(margin_B)
    loss_B = loss(pairs)
    one_by_one = torch.cat([loss(opinionated(margin_1)) for margin_1 in margin_B.split(1)])
    assert torch.allclose(loss_B, one_by_one, rtol=1e-12, atol=0) != loss.batch_coupled
    assert loss.batch_coupled == (config in COUPLED.values())
    assert config.couples_batch in (loss.batch_coupled, None)
    if not loss.batch_coupled:
        assert torch.equal(loss.at_start(pairs), loss_B)


@over(ALL)
def test_value_and_gradient_agree_with_the_published_formula(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-150, 150, 601, dtype=torch.float64).requires_grad_()
    pairs = pairs_for(config, margin_B)
    ours_B, theirs_B = loss(pairs), published_formula(pairs, config)
    assert theirs_B.isfinite().all()
    # A learnable beta_mix is a float32 number.
    rtol = 1e-10 if loss.mix is None else 1e-5
    torch.testing.assert_close(ours_B, theirs_B, rtol=rtol, atol=1e-12)
    slopes = [torch.autograd.grad(loss_B.sum(), margin_B, retain_graph=True)[0] for loss_B in (ours_B, theirs_B)]
    torch.testing.assert_close(*slopes, rtol=10 * rtol, atol=rtol)


@over(ALL)
def test_a_loss_has_a_geometry_unless_it_takes_no_reference(config):
    assert config.needs_reference == (config not in FREE.values())
    assert (build_loss(config).geometry() is None) == (not config.needs_reference)


@over(FREE)
def test_a_loss_without_a_reference_gives_the_same_whatever_the_reference_is(config):
    loss, length_B = build_loss(config), torch.tensor([7, 3])
    chosen_B, rejected_B = torch.tensor([[-9.0, -4.0], [-12.0, -2.0]], dtype=torch.float64)
    alone = PairBatch(chosen_B, rejected_B, length_B, length_B + 1)
    reference = torch.tensor([[-8.0, -6.0], [-20.0, -1.0]], dtype=torch.float64)
    ratios = chosen_B - reference[0], rejected_B - reference[1]
    against = PairBatch(*ratios, length_B, length_B + 1, reference[0] - reference[1], *reference)
    torch.testing.assert_close(loss(against), loss(alone), rtol=1e-13, atol=0)


@over(SHAPED)
def test_geometry_has_value_and_direction_of_the_start(config):
    loss = build_loss(config)
    shape = loss.geometry()
    margin_B = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    pairs = pairs_of(margin_B)
    loss_B = loss(pairs._replace(rejected_length_B=pairs.chosen_length_B))
    loss_B.backward()
    assert loss_B.item() == pytest.approx(shape.value_at_zero, rel=1e-12)
    assert shape.starts == ("wrong" if margin_B.grad.item() > 0 else "right")


@over(SHAPED)
def test_geometry_has_the_trap_of_the_loss(config):
    loss = build_loss(config)
    shape = loss.geometry()
    margin_B = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    _, slope_B = loss.curve(loss.beta_kl * margin_B)
    rising = slope_B > 0
    closed = bool(rising.any() and slope_B[0] < 0 and slope_B[-1] < 0)
    assert closed == (shape.trap is not None) == (shape.barrier is not None)
    if shape.trap is not None:
        assert shape.trap_margin(loss.beta_kl) == pytest.approx(margin_B[rising][0].item(), abs=2e-3)
        assert shape.barrier_margin(loss.beta_kl) == pytest.approx(margin_B[rising][-1].item(), abs=2e-3)


@over(SHAPED)
def test_geometry_knows_whether_the_slope_is_bounded(config):
    loss = build_loss(config)
    _, slope_N = loss.curve(torch.tensor([-600.0, -300.0, -150.0, 150.0, 300.0, 600.0], dtype=torch.float64))
    grows = slope_N[0].abs() > 1.5 * slope_N[1].abs() > 2.25 * slope_N[2].abs()
    if config.name in ("discopop", "dlrml") and config.numerics == "published":
        assert slope_N.isnan().any() or not grows
    else:
        assert loss.geometry().bounded == (not grows and bool(slope_N.isfinite().all()))


@over(SHAPED)
def test_the_curve_of_a_loss_is_its_value_and_slope_over_the_scaled_margin(config):
    loss = build_loss(config)
    z_N = torch.tensor([-3.0, -0.4, 0.0, 0.7, 2.5], dtype=torch.float64)
    value_N, slope_N = loss.curve(z_N)
    assert not value_N.requires_grad
    assert value_N[2].item() == pytest.approx(loss.geometry().value_at_zero, rel=1e-12)
    step = 1e-6
    above_N, below_N = loss.curve(z_N + step)[0], loss.curve(z_N - step)[0]
    numeric_N = (above_N - below_N) / (2 * step)
    smooth = torch.tensor([True, True, config.name not in ("padll", "pfl", "dpop"), True, True])
    torch.testing.assert_close(slope_N[smooth], numeric_N[smooth], rtol=1e-6, atol=1e-7)


@over(ALL)
def test_state_is_the_learnable_mixing_a_running_mean_or_nothing(config):
    loss = build_loss(config)
    learnable = isinstance(getattr(config, "beta_mix", None), LearnableBetaMix)
    running = config.name == "beta_dpo" or getattr(config, "shifted", False)
    assert (loss.mix is not None) == learnable
    kept = ["mix.theta"] if learnable else ["running.mean", "running.count"] if running else []
    assert list(loss.state_dict()) == kept


@over(ALL)
def test_what_a_loss_has_seen_counts_for_a_running_mean_alone(config):
    loss = build_loss(config)
    pairs = opinionated(torch.linspace(-5, 9, 12, dtype=torch.float64))
    before_B = loss(pairs)
    loss.observe(opinionated(torch.tensor([40.0, math.nan, 50.0], dtype=torch.float64)))
    assert torch.equal(loss(pairs), before_B) != bool([*loss.buffers()])


def test_beta_kl_is_the_scale_of_the_margin():
    assert build_loss(STABLE["dpo"]).beta_kl == 0.1
    assert build_loss(STABLE["discopop"]).beta_kl == 0.05
    assert build_loss(STABLE["dlrml at c = 1"]).beta_kl == 0.5


def test_the_margin_of_a_pair_is_the_difference_of_its_log_ratios():
    tokens_B = torch.tensor([3, 4])
    pairs = PairBatch(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), tokens_B, tokens_B)
    assert pairs.margin_B.tolist() == [0.5, -3.0]


def test_log_probs_of_the_policy_are_log_ratios_on_top_of_the_reference():
    ratios, tokens_B = (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])), torch.tensor([3, 4])
    alone = PairBatch(*ratios, tokens_B, tokens_B)
    assert torch.equal(alone.chosen_logps_B, ratios[0]) and torch.equal(alone.rejected_logps_B, ratios[1])
    reference = torch.tensor([-30.0, -40.0]), torch.tensor([-50.0, -60.0])
    pairs = PairBatch(*ratios, tokens_B, tokens_B, reference[0] - reference[1], *reference)
    assert pairs.chosen_logps_B.tolist() == [-29.0, -42.0]
    assert pairs.rejected_logps_B.tolist() == [-49.5, -59.0]


@pytest.mark.parametrize(("label", "c"), [("discopop", 20.0), ("dlrml at c = 5", 5.0), ("dlrml at beta_mix 0.2", 80.0)])
def test_each_way_to_set_the_mixing_gives_its_shape_number(label, c):
    assert build_loss(ALL[label]).geometry().c == pytest.approx(c, rel=1e-14)


def test_a_learnable_start_may_be_given_in_either_unit():
    by_mix = LearnableBetaMix(init=0.0125, learning_rate=0.01, c_bounds=(1.0, 9.1))
    of_beta_mix = build_loss(DlrmlLoss(beta_kl=0.05, beta_mix=by_mix, tau=0.05))
    of_c = build_loss(STABLE["dlrml learnable"])
    assert of_beta_mix.mix.c().item() == pytest.approx(5.0, rel=1e-6)
    assert of_c.mix.value().item() == pytest.approx(0.0125, rel=1e-6)


def test_geometry_of_a_learnable_loss_follows_the_present_c():
    loss = build_loss(STABLE["dlrml learnable raw"])
    assert loss.geometry().c == pytest.approx(80, rel=1e-6)
    with torch.no_grad():
        loss.mix.theta.fill_(0.0125)
    assert loss.geometry().c == pytest.approx(5, rel=1e-6)
    assert loss.geometry().trap is None
    with torch.no_grad():
        loss.mix.theta.fill_(-0.01)
    assert loss.geometry().bounded is False


@over({label: ALL[label] for label in ("dlrml learnable", "dlrml learnable, published")})
def test_gradient_reaches_theta_through_either_numerics(config):
    loss = build_loss(config)
    loss(pairs_of(torch.tensor([4.0]))).sum().backward()
    # dL/dbeta_mix = rho / tau * m (1 - m) (e^-z - softplus(-z)) and dbeta_mix/dtheta by the sigmoid between 1 and 9.1
    m, z = 1 / (1 + math.exp(-5 * 0.05 * 4)), 0.05 * 4
    in_beta_mix = 4 / 0.05 * m * (1 - m) * (math.exp(-z) - math.log1p(math.exp(-z)))
    in_theta = in_beta_mix * 0.05 * 0.05 * (5 - 1) * (9.1 - 5) / (9.1 - 1)
    assert loss.mix.theta.grad.item() == pytest.approx(in_theta, rel=1e-4)


def test_published_numerics_keep_the_fault_that_stable_numerics_remove():
    far_wrong = pairs_of(torch.tensor([-2000.0]))
    assert build_loss(ALL["discopop, published"])(far_wrong).isnan().all()
    assert build_loss(ALL["discopop"])(far_wrong).item() == pytest.approx(100.0)
    assert dlrml(far_wrong.margin_B, beta_kl=0.05, beta_mix=0.05, tau=0.05).item() == pytest.approx(100.0)


def test_a_searched_field_that_was_not_drawn_is_refused_with_the_remedy():
    undrawn = DpoLoss(beta=Range(kind="log_uniform", low=0.01, high=0.5))
    with pytest.raises(ValueError, match=r"one value per field, but got Range.*Draw a point of the search space first"):
        build_loss(undrawn)
