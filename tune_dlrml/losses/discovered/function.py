"""The losses that DiscoPOP's search discovered, as pure functions of the margin; LRML is `discopop`.

Shape legend: B = preference pairs in the micro-batch. Margins are in nats, beta per nat; z = beta * margin, tau and the
other constants have no unit. Every function computes in the dtype of `margin_B`.

Three are coupled over the batch: DBAQL, AQL and AQFL take a statistic of z / tau over the pairs of the micro-batch, and
the gradient goes through it, as published. `statistic` puts a given value in its place. A batch of one pair has no
spread: its variance, which is 0 / 0 and NaN in the published code, is 0 here, as in a batch of equal margins.

Source: arXiv 2406.08414, appendix on the discovered objectives; where its formulas leave a choice, the authors' code
(github.com/luchris429/DiscoPOP, src/alignment/gpo.py, the functions without `_old`).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tune_dlrml.losses.tensors import softplus


def dbaql(margin_B: Tensor, *, beta: float, tau: float, temperature: float, statistic: Tensor | None = None) -> Tensor:
    """Dynamic blended adaptive quantile loss of each pair, shape (B,), in nats; batch-coupled.

    s * softplus(-z / temperature) + (1 - s) * exp(-temperature * z), with s = sigmoid(v) and v the unbiased variance of
    z / tau over the batch. Monotone in z at a given v, without a trap; its slope grows like exp(-z) and is unbounded.
    At the first step v = 0 and s = 1/2.

    The published product (1 - s) * exp(-temperature * z) is 0 * inf = NaN once v > 17 and temperature * z < -88.72 in
    float32, and both come together: a wide batch has a large v. Here it is exp(log(1 - s) - temperature * z), which
    overflows where the true value does.
    """
    z_B = beta * margin_B
    v = variance(z_B / tau) if statistic is None else statistic
    return torch.sigmoid(v) * softplus(-z_B / temperature) + torch.exp(logsigmoid(-v) - temperature * z_B)


def aql(
    margin_B: Tensor, *, beta: float, tau: float, quantile: float, quantile_rate: float, statistic: Tensor | None = None
) -> Tensor:
    """Adaptive quantile loss of each pair, shape (B,), in nats; batch-coupled.

    q * softplus(-z) + (1 - q) * relu(1 - z), with q = sigmoid(m - z / tau) and the moving quantile
    m = quantile + quantile_rate * (sigmoid(mean(z / tau)) - quantile) over the batch.

    Logistic on wrong pairs and hinge on right ones, which at z = 0 is higher by 1 - ln 2: for tau < 0.1047 the loss
    rises through 0, starts uphill and has a trap below and a barrier above, as LRML has. At the published tau = 0.05:
    trap at z = -0.092, barrier at z = 0.089. The slope is bounded. The published form takes 1 - q by subtraction.
    """
    z_B = beta * margin_B
    x_B = z_B / tau
    m = quantile + quantile_rate * (torch.sigmoid(x_B.mean()) - quantile) if statistic is None else statistic
    return torch.sigmoid(m - x_B) * softplus(-z_B) + torch.sigmoid(x_B - m) * torch.relu(1 - z_B)


def aqfl(
    margin_B: Tensor,
    *,
    beta: float,
    tau: float,
    quantile_rate: float,
    distance_scale: float,
    statistic: Tensor | None = None,
) -> Tensor:
    """Adaptive quantile feedback loss of each pair, shape (B,), in nats; batch-coupled.

    r * softplus(-z) + (1 - r) * relu(1 - z), with r = sigmoid(distance_scale * |z / tau - a|), x = z / tau and the
    adaptive quantile a = (1 - quantile_rate) * std(x) * mean(sigmoid(-x)) + quantile_rate * sigmoid(mean(x)).

    At the published constants it falls in z, with a kink at z = tau * a and bounded slope: no trap, until training has
    spread the margins so far that tau * a > 1, when it rises a little between z = 1 and the kink. A larger
    distance_scale or a smaller tau makes it rise below z = 0 as well. The standard deviation of equal margins is 0 with
    gradient 0. The published form takes 1 - r by subtraction.
    """
    z_B = beta * margin_B
    x_B = z_B / tau
    if statistic is None:
        centre = standard_deviation(x_B) * torch.sigmoid(-x_B).mean()
        statistic = centre + quantile_rate * (torch.sigmoid(x_B.mean()) - centre)
    distance_B = distance_scale * (x_B - statistic).abs()
    return torch.sigmoid(distance_B) * softplus(-z_B) + torch.sigmoid(-distance_B) * torch.relu(1 - z_B)


def padll(margin_B: Tensor, *, beta: float, decay: float, mismatch_penalty: float) -> Tensor:
    """Performance adaptive decay logistic loss of each pair, shape (B,), in nats.

    decay * (1 - mismatch_penalty * [margin < 0]) * softplus(-z): pairs that are ranked wrong count less.

    Its slope is negative everywhere and bounded, so that descent never stops; but the value jumps up at margin 0, from
    decay * (1 - mismatch_penalty) * ln 2 to decay * ln 2, which no gradient shows. No trap, since none holds a pair.
    """
    mismatch_B = (margin_B < 0).to(margin_B.dtype)
    return decay * (1 - mismatch_penalty * mismatch_B) * softplus(-beta * margin_B)


def cell(margin_B: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Combined exponential and logistic loss of each pair, shape (B,), in nats.

    alpha * exp(-z) + (1 - alpha) * softplus(-z), published with alpha = 1/2. Monotone, no trap; the slope is unbounded
    for alpha > 0, and the value overflows float32 for z < -88.72, where the true value does.
    """
    z_B = beta * margin_B
    return alpha * torch.exp(-z_B) + (1 - alpha) * softplus(-z_B)


def pfl(margin_B: Tensor, reference_margin_B: Tensor | float, *, beta: float, focus_scale: float) -> Tensor:
    """Policy focused loss of each pair, shape (B,), in nats.

    softplus(-z) / focus_scale where the policy itself prefers the chosen completion, margin + reference margin > 0,
    and focus_scale * relu(1 - z) where it does not.

    Bounded slope, never positive. With an indifferent reference both parts meet at z = 0, where the value falls from
    focus_scale to ln 2 / focus_scale: no trap. Where the reference prefers the rejected completion by more than
    1 / beta nats, z >= 1 is reached before the policy agrees, and such a pair has no gradient left.
    """
    z_B = beta * margin_B
    prefers_B = margin_B + reference_margin_B > 0
    return torch.where(prefers_B, softplus(-z_B) / focus_scale, focus_scale * torch.relu(1 - z_B))


def variance(x_B: Tensor) -> Tensor:
    """Unbiased variance over the batch, shape (); 0 for a single pair."""
    return x_B.var() if x_B.numel() > 1 else x_B.new_zeros(())


def standard_deviation(x_B: Tensor) -> Tensor:
    """Root of the unbiased variance over the batch, shape (); 0 for a single pair, gradient 0 for equal values."""
    return x_B.std() if x_B.numel() > 1 else x_B.new_zeros(())
