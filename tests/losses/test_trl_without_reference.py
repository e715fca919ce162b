"""Losses without a reference against TRL's own trainers, on completions of different lengths.

TRL's likelihood term is a mean over the tokens of a micro-batch, ours one over those of a completion: they agree where
a micro-batch is one pair.
"""

from types import SimpleNamespace

import pytest
import torch
from sample_losses import FREE
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.registry import build_loss

VOCABULARY, PROMPT = 11, 1
"""ORPO's likelihood is that of the prompt, too, but for its first token."""
LENGTHS = ((4, 6), (9, 2), (1, 8), (7, 7), (5, 1), (3, 9))
"""Tokens of the chosen and of the rejected completion of each pair."""
COMPARED = {label: config for label, config in FREE.items() if config.trl is not None}


def made(pair, dtype):
    """A pair's token ids, its labels, and logits that predict them: (2, T), (2, T) and (2, T, V)."""
    generator = torch.Generator().manual_seed(sum(pair))
    width = PROMPT + max(pair)
    ids = torch.randint(VOCABULARY, (2, width), generator=generator)
    logits = 2 * torch.randn(2, width, VOCABULARY, generator=generator, dtype=torch.float64)
    ends = PROMPT + torch.tensor(pair)[:, None]
    inside = torch.arange(width) < ends
    labels = ids.where(inside & (torch.arange(width) >= PROMPT), -100)
    return ids, inside.long(), labels, logits.to(dtype).requires_grad_()


def ours(config, made_pairs):
    sums, lengths = [], []
    for ids, _, labels, logits in made_pairs:
        scored = (labels[:, 1:] != -100).to(logits.dtype)
        log_probs = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        sums.append((log_probs * scored).sum(dim=1))
        lengths.append(scored.sum(dim=1).long())
    chosen_B, rejected_B = torch.stack(sums).unbind(dim=1)
    return build_loss(config)(PairBatch(chosen_B, rejected_B, *torch.stack(lengths).unbind(dim=1))).mean()


class Trainer(SimpleNamespace):
    """What a trainer of TRL looks at for the loss of a batch."""

    def __init__(self, kind, config, length):
        same = lambda value: value  # noqa: E731
        loss_type = config.trl.removeprefix("CPOTrainer ")
        weight = getattr(config, "nll_weight", 0.0)
        super().__init__(
            accelerator=SimpleNamespace(device="cpu", gather_for_metrics=same),
            aux_loss_enabled=False,
            is_encoder_decoder=False,
            pad_token_id=0,
            padding_value=0,
            # AlphaPO is SimPO under a reward of that shape.
            loss_type="simpo" if loss_type == "alphapo" else loss_type,
            alpha=getattr(config, "alpha", 0.0),
            simpo_gamma=getattr(config, "gamma", 0.0),
            label_smoothing=0.0,
            # SLiC has a hinge with a margin in nats, 1 / beta of TRL's, and sums its likelihood over the tokens.
            beta=1 / config.delta if config.name == "slic" else getattr(config, "beta", None),
            cpo_alpha=weight * length / config.delta if config.name == "slic" else weight,
            concatenated_inputs=kind.concatenated_inputs,
            get_batch_logps=kind.get_batch_logps,
        )
        for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
            if hasattr(kind, name):
                setattr(self, name, getattr(kind, name).__get__(self))


def trls(config, made_pairs):
    """The mean of TRL's losses of the pairs, each a micro-batch of its own, out of its own method."""
    kind = ORPOTrainer if config.trl == "ORPOTrainer" else CPOTrainer
    losses = []
    for ids, mask, labels, logits in made_pairs:
        sides = ("chosen", "rejected")
        batch = {f"{side}_input_ids": ids[row : row + 1] for row, side in enumerate(sides)}
        batch |= {f"{side}_attention_mask": mask[row : row + 1] for row, side in enumerate(sides)}
        batch |= {f"{side}_labels": labels[row : row + 1] for row, side in enumerate(sides)}
        trainer = Trainer(kind, config, int((labels[0] != -100).sum()))
        model = lambda *_, logits=logits, **__: SimpleNamespace(logits=logits)  # noqa: E731
        loss, _ = kind.get_batch_loss_metrics(trainer, model, batch)
        losses.append(loss * config.delta if config.name == "slic" else loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", COMPARED.values(), ids=COMPARED.keys())
def test_value_and_gradient_are_those_of_trls_trainer(config, dtype):
    made_pairs = [made(pair, dtype) for pair in LENGTHS]
    found, expected = (loss(config, made_pairs) for loss in (ours, trls))
    # TRL computes ORPO's odds in float32.
    tolerance = 50 * torch.finfo(torch.float32 if config.name == "orpo" else dtype).eps
    assert found.dtype == dtype
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    logits = [pair[-1] for pair in made_pairs]
    for slope, their_slope in zip(*(torch.autograd.grad(loss, logits) for loss in (found, expected)), strict=True):
        scale = their_slope.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(slope, their_slope, rtol=0, atol=tolerance * scale)
