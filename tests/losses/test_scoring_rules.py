"""Scoring rules held against hand values, propriety, finite differences, underflow and a bound on memory.

Shape legend: T = tokens, V = vocabulary, D = width of the hidden states.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tune_dlrml.domains import Range
from tune_dlrml.losses.scoring_rules.config import SftTerm, WarmUp
from tune_dlrml.losses.scoring_rules.function import (
    TokenRule,
    alpha_power,
    answer_means,
    brier,
    build_rule,
    from_hidden,
    logarithmic,
    masked_logarithmic,
    pseudo_spherical,
    rule_of,
    spherical,
)

RULES = {
    "logarithmic": TokenRule("logarithmic"),
    "logarithmic, smoothed": TokenRule("logarithmic", smoothing=0.1),
    "brier": TokenRule("brier"),
    "brier, smoothed": TokenRule("brier", smoothing=0.1),
    "brier, smoothed, not masked": TokenRule("brier", smoothing=0.1, masked=False),
    "spherical": TokenRule("spherical"),
    "spherical, smoothed": TokenRule("spherical", smoothing=0.1),
    "alpha_power 1.5": TokenRule("alpha_power", 1.5),
    "alpha_power 3": TokenRule("alpha_power", 3.0, smoothing=0.05),
    "pseudo_spherical 1.5": TokenRule("pseudo_spherical", 1.5),
    "pseudo_spherical 3": TokenRule("pseudo_spherical", 3.0, smoothing=0.05),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())

P = (0.5, 0.25, 0.125, 0.0625, 0.0625)
SQUARES = 0.25 + 0.0625 + 0.015625 + 2 * 0.00390625
CUBES = 0.125 + 0.015625 + 0.001953125 + 2 * 0.000244140625


def logp():
    return torch.log(torch.tensor([P], dtype=torch.float64))


def scores(of_all):
    return of_all[0].tolist()


def test_logarithmic_by_hand():
    halvings = [1, 2, 3, 4, 4]
    assert scores(logarithmic(logp())) == pytest.approx([-math.log(2) * n for n in halvings], rel=1e-14)


def test_brier_by_hand():
    assert SQUARES == 0.3359375
    assert scores(brier(logp())) == pytest.approx([2 * p - 0.3359375 for p in P], rel=1e-14)


def test_spherical_by_hand():
    assert scores(spherical(logp())) == pytest.approx([p / math.sqrt(0.3359375) for p in P], rel=1e-14)


def test_alpha_power_by_hand():
    expected = [3 * p * p - 2 * CUBES for p in P]
    assert scores(alpha_power(logp(), alpha=3)) == pytest.approx(expected, rel=1e-13)


def test_pseudo_spherical_by_hand():
    expected = [p * p / CUBES ** (2 / 3) for p in P]
    assert scores(pseudo_spherical(logp(), alpha=3)) == pytest.approx(expected, rel=1e-13)


def test_brier_and_spherical_are_their_families_at_2():
    logits = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    labels = torch.arange(7)
    brier_loss = (p * p).sum(-1) - 2 * p[labels, labels]
    spherical_loss = -p[labels, labels] / p.norm(dim=-1)
    for rules, expected in (
        ((TokenRule("brier"), TokenRule("alpha_power", 2.0)), brier_loss),
        ((TokenRule("spherical"), TokenRule("pseudo_spherical", 2.0)), spherical_loss),
    ):
        for rule in rules:
            torch.testing.assert_close(rule(logits, labels), expected, rtol=1e-13, atol=1e-14)


def test_logarithmic_is_cross_entropy_and_smoothed_it_is_label_smoothing():
    logits = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7)
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(TokenRule("logarithmic", smoothing=smoothing)(logits, labels), expected)


def test_smoothing_by_hand_replaces_a_share_of_the_score_by_the_mean_over_the_vocabulary():
    plain = [2 * p - SQUARES for p in P]
    for label in range(5):
        loss = TokenRule("brier", smoothing=0.2, masked=False)(logp(), torch.tensor([label]))
        assert loss.item() == pytest.approx(-(0.8 * plain[label] + 0.2 * sum(plain) / 5), rel=1e-13)


def test_the_masked_logarithmic_score_by_hand_pulls_up_what_lies_below_the_floor():
    # Floor 0.4 / 5 = 0.08: the last two lie below it.
    expected = 0.08 * 2 * math.log(0.0625)
    assert masked_logarithmic(logp(), 0.4).item() == pytest.approx(expected, rel=1e-14)
    assert masked_logarithmic(logp(), 0.0).item() == 0
    label = torch.tensor([3])
    bare = TokenRule("spherical", smoothing=0.4, masked=False)(logp(), label)
    assert TokenRule("spherical", smoothing=0.4)(logp(), label).item() == pytest.approx(bare.item() - expected)


@pytest.mark.parametrize("label", ["logarithmic", "brier", "spherical", "alpha_power 1.5", "pseudo_spherical 1.5"])
def test_a_rule_is_strictly_proper(label):
    truth = torch.tensor(P, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    others = torch.log(truth) + 0.1 * torch.randn(200, 5, dtype=torch.float64, generator=generator)

    def expected_losses(logits_NV):
        losses = [RULES[label](logits_NV, torch.full((len(logits_NV),), i)) for i in range(5)]
        return sum(p * loss_N for p, loss_N in zip(P, losses, strict=True))

    honest = expected_losses(torch.log(truth)[None])
    assert (expected_losses(others) > honest).all()
    logits = torch.log(truth)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(expected_losses(logits).sum(), logits)
    assert gradient.abs().max() < 1e-14


@every_rule
def test_gradients_are_those_of_finite_differences(rule):
    generator = torch.Generator().manual_seed(3)
    logits = (2 * torch.randn(5, 6, dtype=torch.float64, generator=generator)).requires_grad_()
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 5, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda logits: rule(logits, labels), (logits,))
    assert torch.autograd.gradcheck(lambda h, w: from_hidden(rule, h, w, labels, chunk=2), (hidden, head))


@every_rule
def test_chunks_and_the_head_change_nothing_but_the_order_of_sums(rule):
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(13, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, requires_grad=True)
    labels = torch.randint(50, (13,), generator=generator)
    whole = rule(hidden @ head.T, labels)
    for loss in (
        from_hidden(rule, hidden, head, labels, chunk=4),
        from_hidden(rule, hidden, head, labels),
    ):
        torch.testing.assert_close(loss, whole)
        for ours, theirs in zip(
            torch.autograd.grad(loss.sum(), (hidden, head)),
            torch.autograd.grad(whole.sum(), (hidden, head), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_finite_where_probabilities_underflow(rule, dtype):
    # A flat and a peaked row, and labels whose probability is exp(-20000).
    rows = [[0.0] * 8, [1e4, -1e4, *[0.0] * 6], [-1e4, *[1e4] * 7], [200.0, 0.0, -200.0, *[50.0] * 5]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for label in range(8):
        loss = rule(logits, torch.full((4,), label))
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()


def test_only_the_masked_logarithmic_score_still_pulls_at_a_lost_label():
    def pull(rule):
        logits = torch.tensor([[0.0, -300.0, 0.0]], requires_grad=True)
        return torch.autograd.grad(rule(logits, torch.tensor([1])).sum(), logits)[0][0, 1].item()

    assert pull(TokenRule("brier")) == pull(TokenRule("spherical")) == 0
    # Brier's smoothed term is flat there as well; the floor is 0.3 / 3.
    assert pull(TokenRule("brier", smoothing=0.3, masked=False)) == 0
    assert pull(TokenRule("brier", smoothing=0.3)) == pytest.approx(-0.1)
    assert pull(TokenRule("logarithmic")) == -1


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@every_rule
def test_neither_pass_makes_a_tensor_larger_than_a_chunk_of_the_vocabulary(rule):
    tokens, width, vocabulary, chunk = 96, 4, 512, 8
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    head = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    with Largest() as largest:
        from_hidden(rule, hidden, head, labels, chunk=chunk).sum().backward()
    assert largest.elements == chunk * vocabulary
    assert hidden.grad.isfinite().all() and head.grad.isfinite().all()


def test_the_forward_pass_keeps_nothing_of_the_size_of_the_logits():
    hidden = torch.randn(40, 4, requires_grad=True)
    head = torch.randn(64, 4, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        from_hidden(TokenRule("brier"), hidden, head, torch.zeros(40, dtype=torch.long), chunk=8)
    assert max(kept, default=0) <= 64 * 4


def test_no_tokens_give_no_losses():
    empty = torch.zeros(0, dtype=torch.long)
    assert from_hidden(TokenRule("brier"), torch.zeros(0, 3), torch.zeros(5, 3), empty).shape == (0,)


def test_a_rule_is_built_from_an_sft_term_and_from_a_warm_up():
    term = SftTerm(rule="alpha_power", alpha=1.5, smoothing=0.1, masked_logarithmic=False, weight=0.3)
    assert rule_of(term) == TokenRule("alpha_power", 1.5, 0.1, masked=False)
    warm_up = WarmUp(rule="brier", steps=10, learning_rate=1e-4)
    assert rule_of(warm_up) == TokenRule("brier")
    hidden, head, labels = torch.randn(6, 3), torch.randn(5, 3), torch.arange(5).repeat(2)[:6]
    loss_T = build_rule(warm_up, chunk=4)(hidden, head, labels)
    p = (hidden @ head.T).softmax(-1)
    torch.testing.assert_close(loss_T, (p * p).sum(-1) - 2 * p[torch.arange(6), labels])


def test_a_rule_with_a_searched_field_that_was_not_drawn_is_refused_with_the_remedy():
    term = SftTerm(smoothing=Range(kind="uniform", low=0.0, high=0.2))
    with pytest.raises(ValueError, match=r"one value per field, but got smoothing=Range.*Draw a point"):
        build_rule(term)


def test_the_mean_over_the_tokens_of_each_answer():
    loss_T = torch.tensor([1.0, 2.0, 6.0, 4.0, 5.0, 0.0], requires_grad=True)
    mean_A = answer_means(loss_T, torch.tensor([3, 1, 2]))
    assert mean_A.tolist() == [3.0, 4.0, 2.5]
    (share_T,) = torch.autograd.grad(mean_A.sum(), loss_T)
    assert share_T.tolist() == pytest.approx([1 / 3] * 3 + [1.0] + [0.5] * 2)
