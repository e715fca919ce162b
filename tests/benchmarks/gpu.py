"""One LoRA step of preference training on one GPU, from TRL's defaults to what tune_dlrml does. Imports none of it.

Run: python gpu.py [--pairs 4] [--shortest 256] [--longest 1024] [--ratio 3] [--steps 20]
Without a GPU: python gpu.py --device cpu --tiny    (exercises every variant on a tiny model; its times mean nothing)

Needs torch, transformers, trl and peft. All variants train a random Llama of 0.9 B parameters in bfloat16 with DPO on
the same pairs of random tokens, whose longer sequence has `shortest` to `longest` tokens, with `ratio` prompt tokens to
a completion token. The first three are TRL's DPOTrainer as it stands; the others are a bare loop with the same model,
adapter, optimizer, clipping and LM head, so that the shared prompt can be told from what the Trainer itself costs.

A pair with a shared prompt is one piece of a packed row, [prefix | last + chosen | last + rejected]: the prefix is the
prompt without its last token, and that last token stands at the head of both branches, at the same position, so that
every position of a branch has its next token as its label. Both branches see the prefix, none sees the other.

FLOPs of a step, 2 for a multiplication with its addition. N parameters in the layers' matrices, L layers of width d, a
vocabulary of V:

    2 N a token, 2 d V a completion token, 2 n^2 d L a causal sequence of n tokens;
    once for a forward, twice more for a backward, less 2 N a token since the weights are frozen.

A rejected branch of r tokens behind a prefix of p takes 4 (p r + r^2 / 2) d L. The adapter itself, about a hundredth,
and the optimizer are left out. `useful` counts each prompt once, without padding, reference and recomputation, for
every variant alike; `done` counts what a variant computes. Both are shares of the rate that bfloat16 matrix products
reach on this chip.
"""

import argparse
import datetime
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

BETA, LEARNING_RATE, CLIP = 0.1, 1e-5, 1.0
WARM_UP = 3
WINDOW = 8
"""Batches within which the length plan sorts."""
PAD, EOS, FIRST_WORD = 0, 1, 2
MATRIX = 8192
CHECK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Shape:
    """A Llama; the default has 0.83 B parameters in its layers and 0.05 B in its tied embedding."""

    hidden: int = 1536
    intermediate: int = 6144
    layers: int = 24
    heads: int = 12
    kv_heads: int = 4
    vocabulary: int = 32_000
    rank: int = 16

    @property
    def layer_parameters(self) -> int:
        kv = self.hidden // self.heads * self.kv_heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate)


TINY = Shape(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=512, rank=4)


@dataclass(frozen=True)
class Pair:
    """Token ids; completions end with EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Setting:
    """What every variant of one table shares."""

    shape: Shape
    device: torch.device
    pairs: list[Pair]
    pairs_per_step: int

    @property
    def bf16(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batches(self) -> list[list[Pair]]:
        size = self.pairs_per_step
        return [self.pairs[start : start + size] for start in range(0, len(self.pairs), size)]

    def planned(self) -> "Setting":
        """The same pairs, sorted by length within windows of batches; the batches of a window in random order."""
        rng, planned = random.Random(0), []
        window = WINDOW * self.pairs_per_step
        for start in range(0, len(self.pairs), window):
            there = sorted(self.pairs[start : start + window], key=lambda pair: pair.longest)
            batches = [there[i : i + self.pairs_per_step] for i in range(0, len(there), self.pairs_per_step)]
            rng.shuffle(batches)
            planned += [pair for batch in batches for pair in batch]
        return Setting(self.shape, self.device, planned, self.pairs_per_step)


@dataclass
class Measured:
    """One row of the table; the steps of the warm-up are left out."""

    name: str
    seconds: list[float]
    peak_gib: float
    flops: list[float] = field(default_factory=list)
    useful: list[float] = field(default_factory=list)


def random_pairs(shape: Shape, count: int, shortest: int, longest: int, ratio: float, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)

    def words(length: int) -> list[int]:
        return [rng.randrange(FIRST_WORD, shape.vocabulary) for _ in range(max(1, length))]

    made = []
    for _ in range(count):
        length = rng.randint(shortest, longest)
        completion = max(2, round(length / (1 + ratio)))
        other = max(2, round(completion * rng.uniform(0.5, 1)))
        chosen, rejected = (completion, other) if rng.random() < 0.5 else (other, completion)
        made.append(Pair(words(length - completion), [*words(chosen - 1), EOS], [*words(rejected - 1), EOS]))
    return made


def llama(setting: Setting, attention: str = "sdpa", *, dtype: torch.dtype | None = None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = setting.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with setting.device:
        model = LlamaForCausalLM(config)
    return model.to(dtype or (torch.bfloat16 if setting.bf16 else torch.float32))


def lora(shape: Shape) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank, target_modules="all-linear", task_type="CAUSAL_LM")


def word_tokenizer(shape: Shape) -> Any:
    """One token a word, so that TRL's own preparation of text arrives at the given ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "</s>": EOS} | {f"w{i}": i for i in range(FIRST_WORD, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def as_text(pair: Pair) -> dict[str, str]:
    def text(ids: Sequence[int]) -> str:
        return "".join(" </s>" if token == EOS else f" w{token}" for token in ids)

    return {"prompt": text(pair.prompt).strip(), "chosen": text(pair.chosen), "rejected": text(pair.rejected)}


def trl_variant(name: str, setting: Setting, **changes: Any) -> Measured:
    """Steps of TRL's DPOTrainer; `changes` are those from its defaults that the variant is named for."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock = Clock(setting.device)

    class StepClock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = DPOConfig(
            output_dir=folder,
            max_steps=len(setting.batches),
            per_device_train_batch_size=setting.pairs_per_step,
            learning_rate=LEARNING_RATE,
            beta=BETA,
            bf16=setting.bf16,
            use_cpu=setting.device.type == "cpu",
            train_sampling_strategy="sequential",  # the same pairs in the same steps as the bare loop
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **changes,
        )
        trainer = DPOTrainer(
            model=llama(setting),
            args=arguments,
            train_dataset=Dataset.from_list([as_text(pair) for pair in setting.pairs]),
            processing_class=word_tokenizer(setting.shape),
            peft_config=lora(setting.shape),
            callbacks=[StepClock()],
        )
        trainer.remove_callback(PrinterCallback)
        first = trainer.train_dataset[0]
        assert Pair(first["prompt_ids"], first["chosen_ids"], first["rejected_ids"]) == setting.pairs[0]
        trainer.train()
    recomputed = arguments.gradient_checkpointing
    online = not arguments.precompute_ref_log_probs
    done = [padded_flops(setting.shape, batch, recomputed=recomputed, online=online) for batch in setting.batches]
    return clock.measured(name, setting, done)


@dataclass(frozen=True)
class Batch:
    """What the model takes, and which positions of its log-probs belong to which completion.

    `completions` are (row, first, behind) of the chosen, then of the rejected completions.
    """

    inputs: dict[str, Any]
    completions: list[tuple[int, int, int]]


def padded(pairs: Sequence[Pair], device: torch.device) -> Batch:
    """Rows of chosen, then of rejected sequences, padded on the right."""
    sequences = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), longest), PAD)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    completions = []
    for row, (prompt, completion) in enumerate(sequences):
        behind = len(prompt) + len(completion)
        ids[row, :behind] = torch.tensor(prompt + completion)
        mask[row, :behind] = 1
        labels[row, len(prompt) : behind] = ids[row, len(prompt) : behind]
        completions.append((row, len(prompt) - 1, behind - 1))
    return Batch(_on(device, input_ids=ids, attention_mask=mask, labels=labels), completions)


@dataclass(frozen=True)
class Piece:
    """Where a pair stands in the packed row: its prefix, its chosen and its rejected branch, one behind the other."""

    first: int
    prefix: int
    chosen: int
    rejected: int


def packed(pairs: Sequence[Pair], device: torch.device) -> Batch:
    """All pairs in one row without padding; see the head of this file."""
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    pieces, chosen_at, rejected_at = [], [], []
    for pair in pairs:
        prefix, last = pair.prompt[:-1], pair.prompt[-1]
        pieces.append(Piece(len(ids), len(prefix), len(pair.chosen), len(pair.rejected)))
        ids += prefix
        positions += range(len(prefix))
        labels += [-100] * len(prefix)
        for completion, places in ((pair.chosen, chosen_at), (pair.rejected, rejected_at)):
            places.append((0, len(ids), len(ids) + len(completion)))
            ids += [last, *completion[:-1]]
            positions += range(len(prefix), len(prefix) + len(completion))
            labels += completion
    tensors = _on(
        device,
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        shift_labels=torch.tensor([labels]),
    )
    return Batch(tensors | {"pieces": pieces}, chosen_at + rejected_at)


def _on(device: torch.device, **tensors: Tensor) -> dict[str, Any]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def attend_by_pair(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    pieces: Sequence[Piece],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, piece by piece; shapes (1, heads, length, width) in, (1, length, heads, width) out."""
    groups = query.size(1) // key.size(1)
    outputs = []
    for piece in pieces:
        behind_prefix = piece.first + piece.prefix
        middle = behind_prefix + piece.chosen
        end = middle + piece.rejected
        q, k, v = (tensor[:, :, piece.first : middle] for tensor in (query, key, value))
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=groups > 1
            )
        )
        k, v = (
            torch.cat([tensor[:, :, piece.first : behind_prefix], tensor[:, :, middle:end]], dim=2)
            # The kernels that know this mask know no groups.
            .repeat_interleave(groups, dim=1)
            for tensor in (key, value)
        )
        mask = causal_lower_right(piece.rejected, piece.prefix + piece.rejected)
        outputs.append(
            F.scaled_dot_product_attention(query[:, :, middle:end], k, v, mask, dropout_p=dropout, scale=scaling)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def bare_model(setting: Setting, *, share: bool, dtype: torch.dtype | None = None) -> Any:
    """The model with TRL's LM head, which scores completions only, and a fresh adapter."""
    from peft import get_peft_model
    from transformers import AttentionInterface
    from trl.trainer.utils import add_fused_lm_head

    AttentionInterface.register("by_pair", attend_by_pair)
    model = llama(setting, "by_pair" if share else "sdpa", dtype=dtype)
    add_fused_lm_head(model)
    torch.manual_seed(1)
    return get_peft_model(model, lora(setting.shape))


def completion_log_probs(model: Any, batch: Batch, *, bf16: bool) -> Tensor:
    """Log-probs of the chosen, then of the rejected completions, summed over each, in nats."""
    device = batch.inputs["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        per_token = model(**batch.inputs, use_cache=False, fused_lm_head=True).log_probs.float()
    return torch.stack([per_token[row, first:behind].sum() for row, first, behind in batch.completions])


def dpo_loss(log_probs: Tensor, reference: Tensor) -> Tensor:
    chosen, rejected = (log_probs - reference).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def bare_variant(
    name: str, setting: Setting, build: Callable[[Sequence[Pair], torch.device], Batch], *, share: bool
) -> Measured:
    """Steps of a loop with nothing in it but the training."""
    model = bare_model(setting, share=share)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=LEARNING_RATE, fused=True)  # as transformers' default
    references = []
    with torch.no_grad(), model.disable_adapter():
        for pairs in setting.batches:
            references.append(completion_log_probs(model, build(pairs, setting.device), bf16=setting.bf16))
    clock = Clock(setting.device)
    clock.start()
    model.train()
    for pairs, reference in zip(setting.batches, references, strict=True):
        log_probs = completion_log_probs(model, build(pairs, setting.device), bf16=setting.bf16)
        dpo_loss(log_probs, reference).backward()
        nn.utils.clip_grad_norm_(adapter, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    count = shared_flops if share else padded_flops
    return clock.measured(name, setting, [count(setting.shape, batch) for batch in setting.batches])


def shared_flops(shape: Shape, pairs: Sequence[Pair]) -> float:
    tokens = completion = attention = 0.0
    for pair in pairs:
        prefix, chosen, rejected = len(pair.prompt) - 1, len(pair.chosen), len(pair.rejected)
        tokens += prefix + chosen + rejected
        completion += chosen + rejected
        attention += 2 * (prefix + chosen) ** 2 + 4 * (prefix * rejected + rejected**2 / 2)
    return _flops(shape, tokens, completion, attention, forwards=1)


def padded_flops(shape: Shape, pairs: Sequence[Pair], *, recomputed: bool = False, online: bool = False) -> float:
    rows, longest = 2 * len(pairs), max(pair.longest for pair in pairs)
    completion = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    attention = 2 * longest**2 * rows
    return _flops(shape, rows * longest, completion, attention, forwards=1 + recomputed + online)


def _flops(shape: Shape, tokens: float, completion: float, attention: float, *, forwards: int) -> float:
    linear = 2 * shape.layer_parameters * tokens + 2 * shape.hidden * shape.vocabulary * completion
    return (forwards + 1) * linear + (forwards + 2) * attention * shape.hidden * shape.layers


class Clock:
    """Times steps on a device that runs behind the program, and looks at its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.ticks: list[float] = []

    def start(self) -> None:
        self.tick()

    def tick(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            if len(self.ticks) == WARM_UP:
                torch.cuda.reset_peak_memory_stats(self._device)
        self.ticks.append(time.perf_counter())

    def measured(self, name: str, setting: Setting, done: Sequence[float]) -> Measured:
        peak = torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else float("nan")
        seconds = [after - before for before, after in itertools.pairwise(self.ticks)]
        useful = [shared_flops(setting.shape, batch) for batch in setting.batches]
        return Measured(name, seconds[WARM_UP:], peak, list(done[WARM_UP:]), useful[WARM_UP:])


def matrix_rate(device: torch.device, size: int, repeats: int = 30) -> float:
    """FLOP/s of a bfloat16 matrix product, the median of `repeats`."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock = Clock(device)
    for _ in range(WARM_UP):
        left @ right
    clock.start()
    for _ in range(repeats):
        left @ right
        clock.tick()
    seconds = statistics.median(after - before for before, after in itertools.pairwise(clock.ticks))
    return 2 * size**3 / seconds


def check_equality(device: torch.device) -> dict[str, float]:
    """Largest relative difference of the shared form from the padded one, in float32 on a tiny model.

    Raises:
        AssertionError: One is larger than CHECK_TOLERANCE.
    """
    setting = Setting(TINY, device, random_pairs(TINY, 6, 12, 48, 2.0, seed=3), 6)
    setting.pairs[0] = Pair([7], setting.pairs[0].chosen, setting.pairs[0].rejected)  # an empty prefix
    found = []
    for share, build in ((False, padded), (True, packed)):
        model = bare_model(setting, share=share, dtype=torch.float32)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first, and with it the gradient of all lora_A
                    parameter.normal_(std=0.05)
        log_probs = completion_log_probs(model, build(setting.pairs, device), bf16=False)
        dpo_loss(log_probs, log_probs.detach() + 1.0).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((log_probs.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = found[1], found[0]
    assert our_gradients.keys() == their_gradients.keys() and len(ours) == 12
    apart = {
        "log-probs": float(((ours - theirs).abs() / theirs.abs()).max()),
        "gradients": max(
            float((our_gradients[name] - theirs).norm() / theirs.norm()) for name, theirs in their_gradients.items()
        ),
    }
    for what, difference in apart.items():
        assert difference <= CHECK_TOLERANCE, f"{what} of the shared form differ by {difference:.2g}"
    return apart


def variants(setting: Setting) -> Iterator[Measured]:
    """TRL's defaults, then one change after another."""
    no_checkpointing = {"gradient_checkpointing": False}
    cached = no_checkpointing | {"precompute_ref_log_probs": True}
    planned = setting.planned()
    plans: list[Callable[[], Measured]] = [
        lambda: trl_variant("TRL's defaults", setting),
        lambda: trl_variant("+ no checkpointing", setting, **no_checkpointing),
        lambda: trl_variant("+ cached reference", setting, **cached),
        lambda: bare_variant("+ bare loop", setting, padded, share=False),
        lambda: bare_variant("+ shared prompt", setting, packed, share=True),
        lambda: bare_variant("+ shared prompt, length plan", planned, packed, share=True),
        lambda: bare_variant("bare loop, padded, length plan", planned, padded, share=False),
    ]
    for plan in plans:
        yield plan()
        if setting.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def table(measured: Sequence[Measured], rate: float) -> Iterator[str]:
    yield "| variant | ms a step, mean | median | 10 % to 90 % | times as fast | peak GiB | done | useful |"
    yield "|---|---|---|---|---|---|---|---|"
    defaults = sum(measured[0].seconds)
    for row in measured:
        ms, total = sorted(1000 * seconds for seconds in row.seconds), sum(row.seconds)
        tenth = len(ms) // 10
        done, useful = (sum(flops) / total / rate for flops in (row.flops, row.useful))
        yield (
            f"| {row.name} | {statistics.mean(ms):.1f} | {statistics.median(ms):.1f} | {ms[tenth]:.1f} to "
            f"{ms[-1 - tenth]:.1f} | {defaults / total:.2f} | {row.peak_gib:.1f} | {done:.1%} | {useful:.1%} |"
        )


def chip(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def measure(arguments: argparse.Namespace, pairs_per_step: int, device: torch.device) -> None:
    import peft
    import transformers
    import trl

    shape = TINY if arguments.tiny else Shape()
    apart = check_equality(device)
    rate = matrix_rate(device, 512 if arguments.tiny else MATRIX)
    count = (WARM_UP + arguments.steps) * pairs_per_step
    pairs = random_pairs(shape, count, arguments.shortest, arguments.longest, arguments.ratio)
    measured = list(variants(Setting(shape, device, pairs, pairs_per_step)))
    parameters = (shape.layer_parameters + shape.hidden * shape.vocabulary) / 1e9
    print(
        f"\n{datetime.date.today()}, {chip(device)}: a Llama of {parameters:.2g} B parameters, {pairs_per_step} pairs "
        f"a step of {arguments.shortest} to {arguments.longest} tokens, prompt:completion {arguments.ratio:g}, "
        f"{arguments.steps} steps. Matrix products reach {rate / 1e12:.3g} TFLOP/s. Shared against padded, float32: "
        + ", ".join(f"{what} within {difference:.1g}" for what, difference in apart.items())
        + f". torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}, "
        f"peft {peft.__version__}.\n"
    )
    for line in table(measured, rate):
        print(line)


def _quieten() -> None:
    from datasets import disable_progress_bars
    from transformers.utils import logging

    os.environ["HF_HUB_OFFLINE"] = "1"
    disable_progress_bars()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="A tiny model and short pairs, to see that all of it works."
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=None, help="Pairs a step; a table for each number.")
    parser.add_argument("--shortest", type=int, default=None, help="Tokens of the longer sequence of a pair, at least.")
    parser.add_argument("--longest", type=int, default=None)
    parser.add_argument("--ratio", type=float, default=3.0, help="Prompt tokens to a token of the longer completion.")
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device; --device cpu --tiny exercises every variant without one", file=sys.stderr)
        return 2
    small = {"pairs": [2], "shortest": 16, "longest": 48, "steps": 3}
    full = {"pairs": [4], "shortest": 256, "longest": 1024, "steps": 20}
    for name, value in (small if arguments.tiny else full).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    _quieten()
    for pairs_per_step in arguments.pairs:
        measure(arguments, pairs_per_step, torch.device(arguments.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
