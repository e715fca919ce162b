"""What the parts train: random Llamas, pairs of random words, and how many operations a step of them takes.

FLOPs of a step, 2 for a multiplication with its addition. N parameters in the layers' matrices, L layers of width d, a
vocabulary of V:

    2 N a token, 2 d V a completion token, 2 n^2 d L a causal sequence of n tokens;
    once for a forward, twice more for a backward, less 2 N a token where the weights are frozen.

A rejected branch of r tokens behind a prefix of p takes 4 (p r + r^2 / 2) d L. An adapter, about a hundredth, and the
optimizer are left out. Each prompt counts once, without padding and recomputation, for every program alike.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tune_dlrml.data import TokenRows
from tune_dlrml.data.tokens import tokenize

PAD, EOS, FIRST_WORD = 0, 1, 2


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000
    positions: int = 4096

    @property
    def layer_parameters(self) -> int:
        kv = self.hidden // self.heads * self.kv_heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + 2 * self.hidden * self.vocabulary

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
        )


TINY = Shape("tiny", hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=512)
SMALL = Shape("135m", hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152)
ONE_B = Shape("1b", hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4)
FOUR_LAYERS = Shape("0.3b", hidden=2048, intermediate=5632, layers=4, heads=32, kv_heads=4)
SEVEN_B = Shape("7b", hidden=4096, intermediate=14_336, layers=32, heads=32, kv_heads=8)


def llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The same random weights for the same shape, made where they stay."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(shape.config(), dtype=dtype)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """Token ids; completions end with EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Of both sequences, without padding."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longer sequence of a pair, and how many prompt tokens it has to one of its completion."""

    shortest: int = 256
    longest: int = 1024
    ratio: float = 3.0


def random_pairs(shape: Shape, count: int, lengths: Lengths, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)

    def words(length: int) -> list[int]:
        return [rng.randrange(FIRST_WORD, shape.vocabulary) for _ in range(max(1, length))]

    made = []
    for _ in range(count):
        length = rng.randint(lengths.shortest, lengths.longest)
        completion = max(2, round(length / (1 + lengths.ratio)))
        other = max(2, round(completion * rng.uniform(0.5, 1)))
        chosen, rejected = (completion, other) if rng.random() < 0.5 else (other, completion)
        made.append(Pair(words(length - completion), [*words(chosen - 1), EOS], [*words(rejected - 1), EOS]))
    return made


def word_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """One token a word, so that a text arrives at the given ids."""
    vocabulary = {"<pad>": PAD, "</s>": EOS} | {f"w{i}": i for i in range(FIRST_WORD, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def as_text(pair: Pair) -> dict[str, str]:
    def text(ids: Sequence[int]) -> str:
        return "".join(" </s>" if token == EOS else f" w{token}" for token in ids)

    return {"prompt": text(pair.prompt).strip(), "chosen": text(pair.chosen), "rejected": text(pair.rejected)}


def as_dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_list([as_text(pair) for pair in pairs])


def as_rows(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast) -> TokenRows:
    return TokenRows.of(list(tokenize([as_text(pair) for pair in pairs], tokenizer)))


def step_flops(shape: Shape, pairs: Sequence[Pair], *, frozen: bool) -> float:
    """Least operations of one optimizer step over these pairs."""
    tokens = completion = attention = 0.0
    for pair in pairs:
        prefix, chosen, rejected = len(pair.prompt) - 1, len(pair.chosen), len(pair.rejected)
        tokens += prefix + chosen + rejected
        completion += chosen + rejected
        attention += 2 * (prefix + chosen) ** 2 + 4 * (prefix * rejected + rejected**2 / 2)
    linear = 2 * shape.layer_parameters * tokens + 2 * shape.hidden * shape.vocabulary * completion
    return (2 if frozen else 3) * linear + 3 * attention * shape.hidden * shape.layers


def quiet() -> None:
    """No progress bars, no hub."""
    import logging
    import warnings

    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("tune_dlrml").setLevel(logging.INFO)
    warnings.simplefilter("ignore")


Figures = dict[str, Any]
