from pathlib import Path

import pytest
import torch
import toy_training
from peft import LoraConfig, get_peft_model
from toy_training import DPO, plan, settings

from tune_dlrml.training.reference.logps import ReferenceLogProbs


def test_each_pair_meets_the_reference_once_whatever_is_trained_on_it(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []
    fill = ReferenceLogProbs.fill

    def counting(reference: ReferenceLogProbs, rows: list[dict[str, object]]) -> None:
        met.extend({id(row) for row in rows if "ref_chosen_logps" not in row})
        fill(reference, rows)

    monkeypatch.setattr(ReferenceLogProbs, "fill", counting)
    resident = toy_training.resident(toy_model, settings(), train=16, held_out=6)
    for seed, batch in ((0, 2), (0, 4), (1, 4)):
        training = settings(seed=seed, per_device_train_batch_size=batch)
        toy_training.run(resident, DPO, training, plan(6, {3}))
    assert len(met) == len(set(met)) == 16 + 6


def test_restoring_undoes_whatever_was_done_to_modules_and_weights(toy_model: Path) -> None:
    resident = toy_training.resident(toy_model, settings(lora=None))
    model, ids = resident.model, torch.arange(3, 23)[None]
    before = model(ids).logits
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 2)
    model.model.layers[1].forward = lambda hidden, **_: hidden
    model.config.use_cache = False
    model.train()
    toy_training.disturb(model)
    assert not torch.equal(model(ids).logits, before)

    resident.restore()

    assert torch.equal(model(ids).logits, before)
    assert not model.training and model.config.use_cache
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
