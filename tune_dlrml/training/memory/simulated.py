"""A micro-batch through a model that has shapes and no numbers: what its forward and its backward pass hold.

Weights and activations are fake tensors, so that autograd, autocast and checkpointing do what they do in training, and
nothing is computed. The layers of a model are alike: two and three of them tell what any number of them holds.
"""

import copy
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError, headline
from tune_dlrml.training.adapters import leave_casting_to_autocast
from tune_dlrml.training.arguments import lora_config
from tune_dlrml.training.pairs.packed import Layout, Shared, attending, use_packed_attention

FEW = (2, 3)
"""Layers that are run; the first may keep less than the others, as nothing is trained before it."""


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that go through a model at once, all of the same lengths, in tokens.

    Attributes:
        pairs: How many.
        prompt: Tokens of a prompt.
        chosen: Tokens of a chosen completion.
        rejected: Tokens of a rejected completion.
        packed: Whether a prompt is computed once for both completions; see `pairs.packed`.
    """

    pairs: int
    prompt: int
    chosen: int
    rejected: int
    packed: bool

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def tokens(self) -> int:
        """Positions that are computed, padding too."""
        if self.packed:
            return self.pairs * (max(0, self.prompt - 1) + self.chosen + self.rejected)
        return self.pairs * 2 * self.longest

    @property
    def scored(self) -> int:
        """Tokens whose log-probs are computed."""
        return self.pairs * (self.chosen + self.rejected)


@dataclass(frozen=True)
class Held:
    """Bytes beside weights over the parts of a micro-batch; without the head that gives log-probs.

    Attributes:
        forward: At the most in the forward pass.
        end: At its end, with the copies of weights that autocast holds until then.
        kept: Behind it, until the backward pass gives it back.
        backward: In the backward pass while the gradients of all layers but one are still to come.
        last: In the backward pass of the first layer, which is the last one, beside the gradients of all weights.
    """

    forward: int
    end: int
    kept: int
    backward: int
    last: int


def simulate(
    model: PreTrainedModel,
    training: TrainingConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    *,
    checkpointing: bool,
    again: bool = False,
) -> Held:
    """What a micro-batch holds in a model of these shapes.

    Args:
        model: Without storage; stays as it is.
        training: What is trained and in which precision.
        batch: The micro-batch.
        dtype: Of the weights as they are kept.
        checkpointing: Whether layers are computed twice.
        again: Whether gradients of an earlier micro-batch are there, to which these are added.

    Raises:
        InputError: The model looks at numbers on its way, or cannot be run on shapes for another reason.
    """

    def run(part: PreTrainedModel) -> Held:
        return _run(part, training, batch, dtype, checkpointing=checkpointing, again=again)

    try:
        few = _few(model, training)
        if few is None:
            return run(copy.deepcopy(model))
        two, three = map(run, few)
    except Exception as error:  # whatever a model's own code makes of tensors without numbers
        raise _unable(model, error) from error
    layers = len(outermost_layers(model))
    return Held(*(_further(low, high, layers) for low, high in zip(astuple(two), astuple(three), strict=True)))


def _unable(model: PreTrainedModel, error: Exception) -> InputError:
    return InputError(f"a {type(model).__name__} cannot be run on shapes alone ({headline(error)})")


def adapter_weights(model: PreTrainedModel, training: TrainingConfig) -> int:
    """Numbers of the adapter that a trial trains; 0 where it trains all weights.

    Args:
        model: Without storage; stays as it is.
        training: The trial's settings.
    """

    def count(part: PreTrainedModel) -> int:
        prepare(part, training, checkpointing=False)
        return sum(weight.numel() for weight in part.parameters() if weight.requires_grad)

    if training.lora is None:
        return 0
    few = _few(model, training)
    if few is None:
        return count(copy.deepcopy(model))
    two, three = map(count, few)
    return _further(two, three, len(outermost_layers(model)))


def _few(model: PreTrainedModel, training: TrainingConfig) -> tuple[PreTrainedModel, PreTrainedModel] | None:
    """Copies with few layers that tell what any number of them has; None where layers are not alike."""
    layers = outermost_layers(model)
    some = training.lora is not None and training.lora.layers_to_transform is not None
    if some or len(layers) <= FEW[1] or not _alike(layers):
        return None
    return _with_layers(model, FEW[0]), _with_layers(model, FEW[1])


def _further(low: int, high: int, layers: int) -> int:
    """What so many layers have, where few of them have this."""
    return low + (high - low) * (layers - FEW[0]) // (FEW[1] - FEW[0])


def outermost_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a model that are checkpointed one by one, in order."""
    if isinstance(module, GradientCheckpointingLayer):
        return [module]
    return [layer for child in module.children() for layer in outermost_layers(child)]


def _alike(layers: list[nn.Module]) -> bool:
    kinds = {(type(layer), *((name, weight.shape) for name, weight in layer.named_parameters())) for layer in layers}
    return len(kinds) == 1


def _with_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A copy with the first layers alone."""
    first, all_of_them = outermost_layers(model)[0], None
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                owner, key, all_of_them = parent, name, child
    if all_of_them is None:
        raise ValueError("its layers are in no list")
    setattr(owner, key, nn.ModuleList(all_of_them[:count]))
    try:
        cut = copy.deepcopy(model)
    finally:
        setattr(owner, key, all_of_them)
    cut.config.get_text_config().num_hidden_layers = count
    return cut


def simulate_reading(
    model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, dtype: torch.dtype, *, autocast: bool
) -> int:
    """The most that a forward pass without a backward one holds, through any number of layers.

    Args:
        model: Without storage; stays as it is.
        training: What is trained.
        batch: What goes through at once.
        dtype: Of the weights as they are then.
        autocast: Whether it computes in bfloat16.

    Raises:
        InputError: See `simulate`.
    """
    try:
        few = _few(model, training)
        part = copy.deepcopy(model) if few is None else few[0]
        prepare(part, training, checkpointing=False)
        part.eval()
        with _fake(part, training, batch, dtype) as inputs, torch.no_grad():
            ledger = _Ledger(part)
            with ledger, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                part.base_model(**inputs)
            return ledger.most()
    except Exception as error:
        raise _unable(model, error) from error


@contextmanager
def _fake(
    model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """The arguments of a forward of this batch; within the block they and the weights are fake tensors."""
    if batch.packed:
        use_packed_attention(model)
    with FakeTensorMode(), torch.device("cpu"):
        _make_fake(model, dtype, adapter=training.lora is not None)
        yield _inputs(batch)


def _run(
    model: PreTrainedModel,
    training: TrainingConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    *,
    checkpointing: bool,
    again: bool,
) -> Held:
    """The same of a model that may be changed, run whole."""
    prepare(model, training, checkpointing=checkpointing)
    with _fake(model, training, batch, dtype) as inputs:
        ledger = _Ledger(model)
        for weight in model.parameters() if again else ():
            if weight.requires_grad:
                weight.grad = torch.empty_like(weight)
                ledger.keep_apart(weight.grad)
        with ledger:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.in_bfloat16):
                scored = model.base_model(**inputs).last_hidden_state.flatten(0, 1)[: batch.scored].clone()
                forward, end = ledger.most(), ledger.now
            kept = ledger.now
            torch.autograd.backward(scored, torch.empty_like(scored))
    if again:
        backward = ledger.most()
        return Held(forward, end, kept, backward, last=backward)
    sizes = {weight: weight.nbytes for weight in model.parameters() if weight.grad is not None}
    total = sum(sizes.values())
    inside = [{*layer.parameters()} for layer in outermost_layers(model)]
    low, *others = (sum(size for weight, size in sizes.items() if weight in layer) for layer in inside)
    early, late = ledger.most_with_gradients(low=low, high=sum(others))
    return Held(forward, end, kept, early, late - total)


def prepare(model: PreTrainedModel, training: TrainingConfig, *, checkpointing: bool) -> None:
    """Give a model without storage what a trial's trainer gives one: its adapter, its mode, its checkpointing."""
    if training.lora is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(model, lora_config(training.lora), low_cpu_mem_usage=True)
        if training.in_bfloat16:
            leave_casting_to_autocast(model)
    model.train()
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if training.lora is not None:
            model.enable_input_require_grads()


def _make_fake(model: PreTrainedModel, dtype: torch.dtype, *, adapter: bool) -> None:
    """Put fake tensors in the place of those without storage: an adapter's in float32, the rest as it is kept."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            if weight not in made:
                kind = torch.float32 if adapter and weight.requires_grad else dtype
                made[weight] = nn.Parameter(torch.empty(weight.shape, dtype=kind), requires_grad=weight.requires_grad)
            setattr(module, name, made[weight])
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    ids = torch.empty((1, batch.tokens) if batch.packed else (2 * batch.pairs, batch.longest), dtype=torch.long)
    if not batch.packed:
        mask = torch.empty(len(ids), 1, batch.longest, batch.longest, dtype=torch.bool)
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    branches = tuple(filter(None, (batch.chosen, batch.rejected)))
    layout = Layout([Shared(max(0, batch.prompt - 1), branches)] * batch.pairs)
    return {"input_ids": ids, "position_ids": torch.empty_like(ids), **attending(layout, ids)}


class _Ledger(TorchDispatchMode):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """Bytes of all that operations make, as long as it is there; weights do not count, their gradients apart.

    Attributes:
        now: What is there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self._gradients = 0
        self._peaks = {0: 0}
        """The most beside so many bytes of gradients."""
        self._counted: dict[int, weakref.ref[UntypedStorage]] = {}
        self._apart = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._gradient_came)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._counted and name not in self._apart:
            self._counted[name] = weakref.ref(storage, lambda _: self._gone(name, size))
            self.now += size
            self._peaks[self._gradients] = max(self._peaks.get(self._gradients, 0), self.now)

    def _gone(self, name: int, size: int) -> None:
        if self._counted.pop(name, None) is not None:
            self.now -= size

    def _gradient_came(self, weight: Tensor) -> None:
        storage = weight.grad.untyped_storage()
        if storage._cdata not in self._apart:
            self._gone(storage._cdata, storage.nbytes())
            self._apart.add(storage._cdata)
            self._gradients += storage.nbytes()
            self._peaks[self._gradients] = self.now

    def keep_apart(self, tensor: Tensor) -> None:
        """Do not count what was made before."""
        self._apart.add(tensor.untyped_storage()._cdata)

    def most(self) -> int:
        """The most that was there since this was asked the last time, gradients left out."""
        most, self._peaks = max(self._peaks.values()), {self._gradients: self.now}
        return most

    def most_with_gradients(self, *, low: int, high: int) -> tuple[int, int]:
        """The most up to `low` bytes of gradients, and from `high` bytes on; these gradients count."""
        early = max(most + gradients for gradients, most in self._peaks.items() if gradients <= low)
        late = max(most + gradients for gradients, most in self._peaks.items() if gradients >= high)
        return early, late
