"""Each loss that TRL has too, against the branch of its own trainer, on completions of different lengths."""

import inspect
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from sample_losses import ALL, FREE
from trl import DPOTrainer

from tune_dlrml.losses.anchored.config import BcoPairLoss
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.mix.config import MixLoss, MixPart
from tune_dlrml.losses.registry import LOSSES, build_loss
from tune_dlrml.training.pairs.batches import PairOutputs, beyond_public_length, pair_sums, pair_weights, pairs_of
from tune_dlrml.training.pairs.packed import REFERENCE

PROMPT = 3
LENGTHS = torch.tensor([4, 9, 1, 7, 5, 3, 6, 2, 8, 7, 1, 9])
"""Tokens of the chosen completions, then of the rejected ones."""
SAME = {label: config for label, config in ALL.items() if config.trl is not None and label not in ("ipo", *FREE)}
"""TRL's IPO is the one per token."""
SAME["mix"] = MixLoss(
    parts=[{"loss": DpoLoss(beta=0.2), "weight": 0.8}, {"loss": BcoPairLoss(beta=0.2), "weight": 0.3}]
)
COMPARED = [
    (label, dtype)
    for label in SAME
    for dtype in (torch.float32, torch.float64)
    if "under alpha" not in label or dtype == torch.float32
]
"""TRL knows no limit of the alpha-divergence in float64."""


def test_every_loss_that_names_a_branch_is_compared():
    names = {name for name, entry in LOSSES.items() if entry.config.trl is not None}
    compared = [*SAME.values(), *(config for config in FREE.values() if config.trl is not None)]
    assert {config.name for config in compared} == names | {"mix"}


KINDS = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}
"""Names of f-divergences in TRL."""


def completions(dtype):
    """Log-probs of the tokens of 2B completions (2B, T - 1), 0 outside, and which tokens are theirs (2B, T)."""
    generator = torch.Generator().manual_seed(4)
    positions = torch.arange(PROMPT + int(LENGTHS.max()))
    mask = (positions >= PROMPT) & (positions < PROMPT + LENGTHS[:, None])
    log_probs = -4 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) * mask
    return log_probs[:, 1:].to(dtype).requires_grad_(), mask


def reference(mask, dtype):
    """The reference's log-probs of the same tokens, a nat or so off the middle of the policy's."""
    generator = torch.Generator().manual_seed(5)
    shape = mask[:, 1:].shape
    return ((-2 + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)) * mask[:, 1:]).to(dtype)


def squares(mask, dtype):
    """log(sum p^2) over the vocabulary in the place of each token, between that of 1 and of a hundred equal words."""
    generator = torch.Generator().manual_seed(6)
    return (-4.6 * torch.rand(mask[:, 1:].shape, generator=generator, dtype=torch.float64) * mask[:, 1:]).to(dtype)


class Policy(torch.nn.Identity):
    """What is asked of it beside the forward."""

    is_gradient_checkpointing = False


class Trainer(SimpleNamespace):
    """What `DPOTrainer._compute_loss` looks at beside the model, for one loss on one process."""

    def __init__(self, config, reference):
        same = lambda value: value  # noqa: E731
        divergence = getattr(config, "f_divergence", None)
        parts = config.parts if config.name == "mix" else [MixPart(loss=config)]
        super().__init__(
            model=Policy(),
            accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
            args=SimpleNamespace(discopop_tau=getattr(config, "tau", None), gradient_checkpointing_kwargs=None),
            aux_loss_enabled=False,
            ld_alpha=config.ld_alpha,
            precompute_ref_logps=False,
            ref_model=reference,
            f_divergence_type="reverse_kl" if divergence is None else KINDS[divergence.kind],
            f_alpha_divergence_coef=None if divergence is None or divergence.alpha is None else 1 - divergence.alpha,
            loss_types=[part.loss.trl for part in parts],
            loss_weights=[part.weight for part in parts],
            beta=config.strength,
            label_smoothing=getattr(config, "label_smoothing", 0.0),
            use_weighting=config.weighting is not None,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )


def trls(config, log_probs, mask, reference_log_probs):
    """TRL's loss of the batch, out of its own method."""
    unused = torch.zeros(log_probs.shape)

    def model(**_):
        return SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=squares(mask, log_probs.dtype),
            entropy=unused,
            mean_logits=unused,
            is_top1=unused.bool(),
        )

    def reference(**_):
        return SimpleNamespace(log_probs=reference_log_probs)

    inputs = {"input_ids": mask.long(), "attention_mask": mask.long(), "completion_mask": mask.long()}
    return DPOTrainer._compute_loss(Trainer(config, reference), model, inputs, return_outputs=False)


def ours(config, log_probs, mask, reference_log_probs):
    chosen_B, rejected_B = mask.sum(dim=1).chunk(2)
    batch = {"completion_mask": mask.long(), "chosen_lengths": chosen_B, "rejected_lengths": rejected_B}
    beyond = beyond_public_length(batch)
    stored = (*pair_sums(reference_log_probs, batch), *pair_sums(reference_log_probs * beyond, batch))
    outputs = PairOutputs(*pair_sums(log_probs, batch), beyond=pair_sums(log_probs * beyond, batch))
    pairs = pairs_of(batch | dict(zip(REFERENCE, stored, strict=True)), outputs, ld_alpha=config.ld_alpha)
    loss_B = build_loss(config)(pairs)
    if config.weighting is not None:
        loss_B = loss_B * pair_weights(log_probs, squares(mask, log_probs.dtype), batch)
    return loss_B.mean()


LENGTH_DESENSITIZED = {
    f"{label}, ld_alpha {ld_alpha}": SAME[label].model_copy(update={"ld_alpha": ld_alpha})
    for label in ("dpo", "ipo per token", "sigmoid_norm", "sppo_hard", "aot", "dpo under forward KL", "discopop", "mix")
    for ld_alpha in (0.0, 0.4, 1.0)
}


@pytest.mark.parametrize(("label", "dtype"), COMPARED)
def test_value_and_gradient_are_those_of_trls_trainer(label, dtype):
    check(SAME[label], dtype)


# TRL refuses those that sort, and multiplies the hinge's relu in place, so that it has no gradient there.
UNWEIGHTED = ("aot", "hinge")


@pytest.mark.parametrize(("label", "dtype"), [each for each in COMPARED if not each[0].startswith(UNWEIGHTED)])
def test_a_loss_under_wpo_weights_is_that_of_trls_trainer(label, dtype):
    for options in ({"weighting": "wpo"}, {"weighting": "wpo", "ld_alpha": 0.4}):
        check(SAME[label].model_copy(update=options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", LENGTH_DESENSITIZED)
def test_a_length_desensitized_loss_is_that_of_trls_trainer(label, dtype):
    check(LENGTH_DESENSITIZED[label], dtype)


def test_the_tokens_beyond_the_public_length_count_where_they_are_weighted():
    log_probs, mask = completions(torch.float64)
    loss = ours(DpoLoss(beta=0.1, ld_alpha=0.0), log_probs, mask, reference(mask, torch.float64))
    (slope,) = torch.autograd.grad(loss, log_probs)
    chosen, rejected = LENGTHS.chunk(2)
    counted = ((slope != 0) & mask[:, 1:]).sum(dim=1).tolist()
    assert counted == torch.minimum(chosen, rejected).repeat(2).tolist() != LENGTHS.tolist()


def test_labels_are_smoothed_where_trl_smooths_them():
    """Conservative DPO is TRL's sigmoid of earlier versions."""
    chain = inspect.getsource(DPOTrainer._compute_loss).split('loss_type == "')[1:]
    smoothed = {branch.partition('"')[0] for branch in chain if "label_smoothing" in branch}
    ours = {entry.config for entry in LOSSES.values() if "label_smoothing" in entry.config.model_fields}
    assert {config.trl for config in ours if config.trl} == smoothed
    assert [config.model_fields["name"].default for config in ours if not config.trl] == ["cdpo"]


def check(config, dtype):
    log_probs, mask = completions(dtype)
    found, expected = (loss(config, log_probs, mask, reference(mask, dtype)) for loss in (ours, trls))
    # TRL takes the logarithms of EXO's label smoothing in float32.
    tolerance = 50 * torch.finfo(torch.float32 if config.name == "exo_pair" else dtype).eps
    assert found.dtype == dtype
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    # Outside completions the head gives a constant 0.
    slopes = [torch.autograd.grad(loss, log_probs)[0] * mask[:, 1:] for loss in (found, expected)]
    scale = slopes[1].abs().max().item()
    assert scale > 0
    torch.testing.assert_close(*slopes, rtol=0, atol=tolerance * scale)
