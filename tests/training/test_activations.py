"""Gradient checkpointing is a matter of memory, and memory is measured."""

import gc
import logging
from pathlib import Path

import pytest
import torch
import toy_training
from toy_training import settings

from tune_dlrml.training import activations
from tune_dlrml.training.activations import Activations
from tune_dlrml.training.pairs.batches import pair_log_probs
from tune_dlrml.training.reference.logps import row_length
from tune_dlrml.training.resident import Resident


@pytest.fixture(scope="module")
def resident(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, settings())


def kept_by_autograd(resident: Resident, pairs: int) -> int:
    """Bytes of the graph of so many longest pairs, added up node by node."""
    longest = max(resident.train_rows, key=row_length)
    weights = {parameter.data_ptr() for parameter in resident.model.parameters()}
    outputs = pair_log_probs(resident.model, resident.form.collate([longest] * pairs))
    seen, storages, queue = set(), {}, [output.grad_fn for output in outputs]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
        for tensor in saved:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        queue += [following for following, _ in node.next_functions]
    return sum(storages.values())


def test_what_a_batch_needs_is_what_autograd_keeps_of_it(resident: Resident) -> None:
    for pairs in (1, 4, 8):
        assert resident.activations.needed(pairs) == pytest.approx(kept_by_autograd(resident, pairs), rel=0.02)


@pytest.mark.parametrize(("share", "checkpointing"), [(0.5, False), (0.7, True)])
def test_auto_checkpoints_where_the_batch_would_not_fit(
    resident: Resident,
    share: float,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    need = resident.activations.needed(4)
    monkeypatch.setattr(activations, "_free", lambda device: round(need / share))
    fresh = Activations(resident.model, settings(), resident.form.collate, resident.train_rows)
    with caplog.at_level(logging.INFO, "tune_dlrml"):
        assert fresh.need_checkpointing(settings(per_device_train_batch_size=4)) is checkpointing
        assert fresh.need_checkpointing(settings(per_device_train_batch_size=4)) is checkpointing
    assert [record.message[:26] for record in caplog.records] == [
        f"gradient checkpointing is {'on' if checkpointing else 'off'}"[:26]
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_done(resident: Resident, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_free", lambda device: 1)
    assert resident.activations.need_checkpointing(settings(gradient_checkpointing=asked)) is asked


def test_two_pairs_that_do_not_fit_are_reason_enough(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(activations, "pair_log_probs", full)
    fresh = Activations(resident.model, settings(), resident.form.collate, resident.train_rows)
    assert fresh.need_checkpointing(settings(per_device_train_batch_size=1))


def test_measuring_leaves_no_graph_behind(resident: Resident) -> None:
    gc.collect()
    before = sum(isinstance(each, torch.Tensor) and each.grad_fn is not None for each in gc.get_objects())
    Activations(resident.model, settings(), resident.form.collate, resident.train_rows)
    gc.collect()
    assert sum(isinstance(each, torch.Tensor) and each.grad_fn is not None for each in gc.get_objects()) == before


@pytest.mark.parametrize(("optim", "copies"), [("adamw_torch", 3), ("sgd", 1)])
def test_gradients_and_moments_of_all_weights_are_no_room(
    resident: Resident, optim: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(parameter.numel() * 4 for parameter in resident.model.parameters())
    need = resident.activations.needed(4)
    full = settings(per_device_train_batch_size=4, lora=None, optim=optim)
    fresh = Activations(resident.model, full, resident.form.collate, resident.train_rows)
    monkeypatch.setattr(activations, "_free", lambda device: round(need / 0.5) + copies * weights)
    assert not fresh.need_checkpointing(full)
    monkeypatch.setattr(activations, "_free", lambda device: round(need / 0.7) + copies * weights)
    assert fresh.need_checkpointing(full)
