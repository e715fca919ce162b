"""What a completion is worth: VADER sentiment, a function of the user's, or a sequence-classification model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_dlrml.errors import InputError
from tune_dlrml.models.fingerprints import model_fingerprint
from tune_dlrml.models.loading import (
    ModelReference,
    check_model_reference,
    load_tokenizer,
    parse_model_reference,
    resolve_model,
)
from tune_dlrml.models.strict_loading import load_strictly
from tune_dlrml.system.own_code import load_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VADER = "vader"
FORMS = (
    f"a reward is `{VADER}`, `module:function`, or the folder or hub id `org/name[@revision]` of a "
    "sequence-classification model"
)
BATCH_SIZE = 32
"""Texts that a model scores at once."""

_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts and their completions, as texts, to one number each."""


@dataclass(frozen=True)
class Reward:
    """A reward, and what its numbers mean.

    Attributes:
        name: The reference that `load_reward` took, which belongs to every number that rests on it.
        meaning: What a value is, with its unit or range, for the axis of a picture.
        function: Scores completions; what it returns is checked at every call.
        content: Fingerprint of the file or the weights that it is made from; empty for one that is part of a package.
    """

    name: str
    meaning: str
    function: Score
    content: str = ""

    @property
    def identity(self) -> str:
        """Unique identity: its name, and the present content behind it."""
        return f"{self.name} {self.content}".strip()

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The reward of each completion.

        Raises:
            InputError: The reward fails, or does not give one finite number for each completion.
        """
        try:
            values = [float(value) for value in self.function(prompts, completions)]
        except Exception as error:  # a user's function may raise anything
            raise InputError(f"reward {self.name}: it failed ({type(error).__name__}: {error}).") from error
        if len(values) != len(completions):
            raise InputError(
                f"reward {self.name}: must return one number for each completion, but got {len(values)} for "
                f"{len(completions)} completions."
            )
        for value, completion in zip(values, completions, strict=True):
            if not math.isfinite(value):
                raise InputError(f"reward {self.name}: must be finite, but got {value} for {completion[:80]!r}.")
        return values


def load_reward(reference: str) -> Reward:
    """The reward that a reference names.

    - `vader`: the compound sentiment of the completion alone, in [-1, 1] (Hutto and Gilbert, 2014).
    - `module:function`: a function of prompts and completions, found as that of a loss is.
    - a sequence-classification model, see `ModelReward`.

    Raises:
        InputError: It names no reward, or what it names cannot be loaded.
    """
    if reference == VADER:
        return Reward(VADER, "VADER compound sentiment, -1 to 1", _vader())
    if _FUNCTION.fullmatch(reference):
        try:
            own = load_function(reference)
        except InputError as error:
            raise InputError(f"reward {error}") from None
        return Reward(reference, reference, own.call, f"sha256 {own.sha256}")
    try:
        model = parse_model_reference(reference)
        if model.kind == "package":
            raise InputError(f"{reference}: holds a language model, which gives no reward.")
        check_model_reference(model)
        loaded = ModelReward.load(model)
    except InputError as error:
        raise InputError(f"reward {reference!r}: {error} Note that {FORMS}.") from None
    return Reward(reference, loaded.meaning, loaded, model_fingerprint(model))


class ModelReward:
    """The verdict of a sequence-classification model on prompt and completion.

    With one label it is the logit, as reward models are trained to give. With two it is the log-odds of the second
    label against the first, in nats: log p(positive) - log p(negative) of a sentiment classifier, as for the IMDb pairs
    of arXiv 2405.19262. The model reads prompt and completion through its chat template or, without one, as one text
    in which the completion follows the prompt as it stands. Longer texts than the model takes lose their end.

    Args:
        model: With one or two labels.
        tokenizer: The model's own, with a pad token.
        name: For messages.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        labels = model.config.num_labels
        if labels not in (1, 2):
            raise InputError(f"{name}: must have one label or two, but has {labels}; wrap it in a `module:function`.")
        self._model, self._tokenizer, self._labels = model.eval(), tokenizer, labels
        self._model.config.pad_token_id = tokenizer.pad_token_id  # a decoder finds the last token by it
        # RoBERTa counts positions from 2, so that many of them are out of reach; others lose two tokens for nothing.
        positions = getattr(model.config, "max_position_embeddings", None)
        self._limit = min(tokenizer.model_max_length, positions - 2 if positions else tokenizer.model_max_length)
        of = model.config.id2label
        self.meaning = f"logit of {name}" if labels == 1 else f"log-odds of {of[1]} against {of[0]}, nats"

    @classmethod
    def load(cls, ref: ModelReference) -> ModelReward:
        """The model in float32, on a GPU if there is one; from safetensors, and without code that comes with it.

        Raises:
            InputError: It is no sequence-classification model of one or two labels.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        resolved = resolve_model(ref)
        source, revision = resolved if isinstance(resolved, tuple) else (str(resolved), None)
        revision = revision or "main"
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        architectures = config.architectures or []
        # Any other model would load too, with a head of random weights.
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise InputError(f"{ref}: must be a sequence-classification model, but is {architectures or 'unnamed'}.")
        settings = {"revision": revision, "dtype": torch.float32, "use_safetensors": True}
        model = load_strictly(AutoModelForSequenceClassification, source, **settings)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), load_tokenizer(ref), str(ref))

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The score of each completion."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            for index, score in zip(batch, self._scores([texts[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _text(self, prompt: str, completion: str) -> str:
        if not self._tokenizer.chat_template:
            return prompt + completion
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False))

    def _scores(self, texts: list[str]) -> list[float]:
        import torch

        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._limit,
            add_special_tokens=not self._tokenizer.chat_template,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.no_grad():
            logits = self._model(**inputs).logits.double()
        scores = logits[:, 0] if self._labels == 1 else logits[:, 1] - logits[:, 0]
        return [float(score) for score in scores]


def _vader() -> Score:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [analyzer.polarity_scores(completion)["compound"] for completion in completions]

    return score
