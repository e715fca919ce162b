from pathlib import Path

import pytest
import torch
import toy
import toy_training
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from toy_training import DPO, plan, settings

from tune_dlrml.data import Pairs
from tune_dlrml.errors import InputError
from tune_dlrml.training.reference_logps import ReferenceLogProbs
from tune_dlrml.training.resident import Resident


def load(model: Path, train: list[dict[str, str]], held_out: list[dict[str, str]], max_length: int) -> Resident:
    pairs = Pairs(Dataset.from_list(train), Dataset.from_list(held_out))
    return Resident.load(str(model), pairs, settings(max_length=max_length))


def test_pairs_whose_prompt_leaves_no_room_are_dropped_and_counted(toy_model: Path) -> None:
    train, held_out = toy.pairs(12), toy.pairs(6, seed=1)
    for pair in (*train[:3], *held_out[:1]):
        pair["prompt"] = "review " * 20
    resident = load(toy_model, train, held_out, max_length=40)
    assert (resident.counts["dropped_train_pairs"], resident.counts["dropped_eval_pairs"]) == (3, 1)
    assert len(resident.train_rows) == 9


@pytest.mark.parametrize("section", ["train", "eval"])
def test_data_that_is_all_prompt_is_refused_with_the_key_to_change(toy_model: Path, section: str) -> None:
    pairs = {"train": toy.pairs(4), "eval": toy.pairs(4)}
    for pair in pairs[section]:
        pair["prompt"] = "review " * 20
    law = f"dataset.{section}: the prompt of every one of its 4 pairs fills max_length=20; raise training.max_length"
    with pytest.raises(InputError, match=law):
        load(toy_model, pairs["train"], pairs["eval"], max_length=20)


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
