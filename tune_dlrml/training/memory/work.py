"""Operations that a pair takes in training, 2 for a multiplication with its addition.

N parameters in the layers' matrices, L layers, attention of width A, head of V x D; for a micro-batch in tokens:

    2 N a token, 2 V D a scored token, 2 n^2 A L a causal sequence of n tokens, or that part of a shared prompt once;
    once for a forward, twice more for a backward, less 2 N a token where the weights are frozen,
    and once more the layers where they are computed twice.

That is 6 N a token for weights that are trained, and 4 N for frozen ones. An adapter, about a hundredth, is left out.
"""

from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.memory.simulated import MicroBatch, outermost_layers


def pair_flops(model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, *, checkpointing: bool) -> float:
    """Operations of one pair of the micro-batch.

    Args:
        model: Without an adapter, with or without storage.
        training: What is trained.
        batch: The micro-batch.
        checkpointing: Whether layers are computed twice.
    """
    layers, config = outermost_layers(model), model.config.get_text_config()
    matrices = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.dim() > 1)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    linear: float = 2.0 * matrices * batch.tokens / batch.pairs
    attention: float = 2.0 * _squares(batch) * width * len(layers)
    head: float = 2.0 * model.get_output_embeddings().weight.numel() * batch.scored / batch.pairs
    times = 3 if training.lora is None else 2
    again = linear + attention if checkpointing else 0.0
    return times * (linear + head) + 3 * attention + again


def _squares(batch: MicroBatch) -> float:
    """Twice the keys that all queries of a pair see."""
    if not batch.packed:
        return 2.0 * batch.longest**2
    chosen, rejected = batch.prompt + batch.chosen, batch.rejected
    return chosen**2 + 2.0 * (batch.prompt * rejected + rejected**2 / 2)
