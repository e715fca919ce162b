"""A judge in this process: the probabilities that a model gives to the ratings, instead of a rating that it writes.

Small models rarely write a verdict, but they always have an opinion on which one is likely. Expected ratings over the
likely scores are due to G-Eval (https://arxiv.org/abs/2303.16634).

Shape legend: S = strings, T = tokens of the longest string, V = vocabulary.
"""

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.engines.prompting import Prompts
from tune_dlrml.evaluation.judges.judge import NextToken
from tune_dlrml.evaluation.records import Inquiry, Judgement, Message, Verdict
from tune_dlrml.evaluation.threads import at_most
from tune_dlrml.models.loading import (
    ModelReference,
    check_model_reference,
    load_model,
    load_tokenizer,
    parse_model_reference,
)

RATINGS = tuple(range(1, 11))
RATING_OPENING, PAIR_OPENING = "Rating: [[", "[["
RESERVED_TOKENS = 32
"""Of the context, for what is put behind the prompt."""
SHARED_THREADS = 2
"""CPU threads of a judge beside a search, whose workers train meanwhile."""
MODEL_FILES = frozenset([".safetensors", ".json", ".jinja", ".model", ".txt"])
"""Weights, configuration, tokenizer and chat template of a folder."""
_PAIR_VERDICTS: tuple[tuple[str, Verdict], ...] = (("A", "A"), ("B", "B"), ("C", "tie"))


@dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts


class LocalJudge:
    """Rates by log-probs of verdicts behind the inquiry; the same inquiry always has the same judgement.

    A rating is the mean of 1 to 10 under the probabilities of the whole strings `1]]` to `10]]` behind `Rating: [[`,
    normalised over the ten. A pair's verdict is the most probable of `A]]`, `B]]` and `C]]` behind `[[`.

    By default it leaves GPU memory and most of the CPU to others, as beside a search. It computes in float32 on every
    device, so that its numbers are comparable: bfloat16 moves ratings of SmolLM2-135M by up to 0.2.

    Args:
        reference: Of the model, which is loaded with the first inquiry unless it is given; part of the judge's name.
        model: Used as it stands, in evaluation mode.
        tokenizer: The model's own.
        device: As torch names it; where the model is loaded.
        threads: Most CPU threads of a forward; None for as many as torch takes.

    Attributes:
        name: `local:<model reference>:logits`.
        identity: The name and, of a folder, the state of its files.
    """

    def __init__(
        self,
        reference: str,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: str = "cpu",
        threads: int | None = SHARED_THREADS,
    ) -> None:
        self.name = f"local:{reference}:logits"
        self._reference = parse_model_reference(reference)
        self._given = model, tokenizer
        self._device, self._threads = device, threads
        self.identity = f"{self.name}{_state(self._reference)}"
        self._loaded: _Loaded | None = None
        # One model, one forward at a time; and a tokenizer changes its settings while it works.
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: str, config: EvaluationConfig, *, key: str | None, device: str) -> Self:
        """See `NamedJudge.of`."""
        reference = parse_model_reference(model)
        check_model_reference(reference)
        return cls(str(reference), device=device)

    def first_word(self) -> str:
        """See `NamedJudge.first_word`; the model is not loaded for it."""
        return "is there"

    def close(self) -> None:
        """There is no connection to be given up."""

    def ask(self, inquiry: Inquiry) -> Judgement:
        """The judgement of one inquiry; unscored where the model's log-probs are not finite.

        Raises:
            InputError: The model cannot be loaded, or its chat template refuses the inquiry.
        """
        opening, strings = RATING_OPENING, [f"{k}]]" for k in RATINGS]
        if inquiry.kind == "pair":
            opening, strings = PAIR_OPENING, [f"{letter}]]" for letter, _ in _PAIR_VERDICTS]
        log_probs = self.log_probs(inquiry.messages, opening, strings)
        if not all(map(math.isfinite, log_probs)):
            return Judgement.of(self.name, inquiry, None, "the model's log-probs are not finite", calls=1)
        verdict = _pair(log_probs) if inquiry.kind == "pair" else _rating(log_probs)
        table = ", ".join(f"{string[:-2]}: {p:.3f}" for string, p in zip(strings, _normalised(log_probs), strict=True))
        mass = sum(map(math.exp, log_probs))
        words = f"probabilities {table}; {mass:.2g} of all text begins with one"
        return Judgement.of(self.name, inquiry, verdict, words, calls=1)

    def next_token(self, messages: Sequence[Message], tokens: Sequence[str]) -> NextToken:
        """See `NamedJudge.next_token`; no log-probs where the model's numbers are not finite."""
        log_probs = self.log_probs(messages, "", tokens)
        if not all(map(math.isfinite, log_probs)):
            return NextToken(None, "the model's log-probs are not finite")
        named = dict(zip(tokens, log_probs, strict=True))
        return NextToken(named, f"log-probs {', '.join(f'{name}: {value:.4f}' for name, value in named.items())}")

    def log_probs(self, messages: Sequence[Message], opening: str, strings: Sequence[str]) -> list[float]:
        """Log-prob of each string behind the chat and the opening of the reply, summed over its tokens, in nats."""
        with self._lock, at_most(self._threads):
            loaded = self._load()
            tokenizer, model = loaded.tokenizer, loaded.model
            prompt = loaded.prompts.ids(messages) + _ids(tokenizer, opening)
            training = [module for module in model.modules() if module.training]
            model.eval()
            try:
                with torch.no_grad():
                    return _log_probs(model, prompt, [_ids(tokenizer, string) for string in strings])
            finally:
                for module in training:
                    module.training = True

    def _load(self) -> _Loaded:
        if self._loaded is None:
            model, tokenizer = self._given
            if model is None:
                model = load_model(self._reference, dtype=torch.float32, device=self._device)
            if tokenizer is None:
                tokenizer = load_tokenizer(self._reference)
            prompts = Prompts(tokenizer, model.config, max_new_tokens=RESERVED_TOKENS, name=self.name)
            self._loaded = _Loaded(model, tokenizer, prompts)
        return self._loaded


def _state(reference: ModelReference) -> str:
    """The state of the files of a folder; other references always name the same model.

    It consists of sizes and modification times, since reading gigabytes of weights would delay every start. A copied
    folder counts as another one, which costs time but no score.
    """
    if reference.kind != "folder":
        return ""
    digest = hashlib.sha256()
    for file in sorted(Path(reference.location).glob("*")):
        if file.suffix in MODEL_FILES and file.is_file():
            found = file.stat()
            digest.update(f"{file.name}/{found.st_size}/{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return f", files {digest.hexdigest()[:16]}"


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _log_probs(model: PreTrainedModel, prompt: list[int], strings: list[list[int]]) -> list[float]:
    """Log-prob of each token string behind the prompt, whose forward is shared by all of them."""
    device = next(model.parameters()).device
    shared = model(input_ids=torch.tensor([prompt], device=device), use_cache=True, logits_to_keep=1)
    first_V = shared.logits[0, -1]
    cache = shared.past_key_values
    cache.batch_repeat_interleave(len(strings))
    longest = max(map(len, strings))
    # Padding stands on the right, where no real token sees it.
    ids_ST = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in strings], device=device)
    behind_STV = model(input_ids=ids_ST, past_key_values=cache, use_cache=True).logits
    logits_STV = torch.cat([first_V.expand(len(strings), 1, -1), behind_STV[:, :-1]], dim=1)
    log_probs_ST: Tensor = torch.log_softmax(logits_STV.double(), dim=-1).gather(-1, ids_ST[..., None])[..., 0]
    return [float(row[: len(ids)].sum()) for row, ids in zip(log_probs_ST, strings, strict=True)]


def _normalised(log_probs: Sequence[float]) -> list[float]:
    highest = max(log_probs)
    weights = [math.exp(value - highest) for value in log_probs]
    return [weight / sum(weights) for weight in weights]


def _rating(log_probs: Sequence[float]) -> float:
    mean = sum(k * p for k, p in zip(RATINGS, _normalised(log_probs), strict=True))
    return min(max(mean, float(RATINGS[0])), float(RATINGS[-1]))  # rounding may go beyond by an epsilon


def _pair(log_probs: Sequence[float]) -> Verdict:
    best = max(log_probs)
    verdicts = [verdict for (_, verdict), value in zip(_PAIR_VERDICTS, log_probs, strict=True) if value == best]
    return verdicts[0] if len(verdicts) == 1 else "tie"
