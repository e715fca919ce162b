"""The peak of a step, planned and measured, where one rank holds the shards of all weights by itself (FSDP2)."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from gpu.made import Figures, Pair, as_rows, llama, word_tokenizer
from gpu.steps import Setting, peak
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, PreTrainedModel

from tune_dlrml.training.arguments import optimizer_of
from tune_dlrml.training.memory.plan import MemoryPlan, Rank, RankMemory
from tune_dlrml.training.memory.simulated import MicroBatch
from tune_dlrml.training.pairs.batches import add_log_prob_head, pair_log_probs
from tune_dlrml.training.pairs.packed import PackedCollator, use_packed_attention
from tune_dlrml.training.reference.logps import computing, to_device

OF_A_STEP = {"forward", "log-probs", "backward of log-probs", "backward", "end of backward", "optimizer step"}
BETA = 0.1


def planned(setting: Setting, pairs: Sequence[Pair], rank: Rank) -> RankMemory:
    """What a rank holds with these pairs as its micro-batch, each taken as long as their mean."""
    prompt, chosen, rejected = (
        round(sum(len(part) for part in parts) / len(pairs))
        for parts in zip(*((pair.prompt, pair.chosen, pair.rejected) for pair in pairs), strict=True)
    )
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(setting.shape.config())
    batch = MicroBatch(len(pairs), prompt, chosen, rejected, packed=True)
    return MemoryPlan(model, setting.training(), batch).on(rank)


def one_rank_of_shards(setting: Setting) -> Figures:
    """Steps over all weights, whose layers are gathered while they compute; against the plan of the same."""
    pairs = sorted(setting.pairs(), key=lambda pair: -len(pair.prompt))[: setting.per_step]
    rank = Rank(sharded=True, checkpointing=True, device="cuda" if setting.device.type == "cuda" else "cpu")
    held = planned(setting, pairs, rank)
    moments = {name: sum(held.moments[name].values()) for name in OF_A_STEP & held.moments.keys()}
    with _alone(setting.device):
        _train(setting, pairs)
        measured = peak(setting.device)
    most = max(moments, key=lambda name: moments[name])
    return {
        "model": setting.shape.name,
        "pairs": len(pairs),
        "peak_gib": measured,
        "planned_gib": round(moments[most] / 2**30, 2),
        "at": most,
        "pieces_gib": {piece: round(size / 2**30, 3) for piece, size in held.moments[most].items()},
    }


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """A process group of this process."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{Path(folder)}/rendezvous", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _train(setting: Setting, pairs: Sequence[Pair]) -> None:
    training = setting.training()
    model = llama(setting.shape, setting.device, setting.dtype)
    add_log_prob_head(model)
    use_packed_attention(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _divide(model, setting.device)
    optimizer = optimizer_of(model.train(), training)
    rows = list(as_rows(pairs, word_tokenizer(setting.shape)))
    batch = to_device(PackedCollator(training.max_length, training.truncation_mode)(rows), model)
    for _ in range(setting.steps):
        with computing(model, training):
            chosen_B, rejected_B = pair_log_probs(model, batch)
        (-logsigmoid(BETA * (chosen_B - rejected_B)).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def _divide(model: PreTrainedModel, device: torch.device) -> None:
    """The units that transformers makes of a Llama."""
    mesh = init_device_mesh(device.type, (1,))
    for unit in (model.model.embed_tokens, *model.model.layers):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
