"""A model's answers to chats, by the model that is in this process.

Shape legend: B = rows of a batch, T = tokens of its longest prompt, V = vocabulary.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Self

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.errors import NotFiniteError
from tune_dlrml.evaluation.engines.prompting import Prompts, content_seeds, decoded, stop_ids
from tune_dlrml.evaluation.engines.registry import Deal, Model, one_after_another
from tune_dlrml.evaluation.records import Chat, Sampled


class _Completed(NamedTuple):
    """Token ids that the model added to each prompt of a batch, and whether all its logits were finite."""

    rows: list[list[int]]
    finite: bool


class TransformersEngine:
    """Lets a model in this process answer as it stands: an adapter that is on takes part, without a merge or a copy.

    A token is drawn from softmax(logits / temperature) and from nothing else: no top-k, no top-p and no penalty, even
    where the model's generation_config has some. Every row has a random stream of its own, which depends on the seed,
    the prompt, and how many equal prompts stand before it. So answers depend neither on the order of the chats nor,
    but for rounding, on the batch size: padding changes the last digits of the logits, and a token changes with them
    only where two were as close as that. In float32 that is rare, in bfloat16 it is not.

    The global random states, the mode and the gradients of the model, its generation_config and the tokenizer are
    afterwards as they were before.

    Args:
        model: A causal language model, bare or wrapped by PEFT.
        tokenizer: The model's own, whatever side it pads on.
        max_new_tokens: Tokens after which an answer is cut.
        batch_size: Chats answered at once.
        name: Of the engine and its model.
        precision: In which the model computes, for as often as it is entered; by default the one that it is in.
        deal: Puts every batch through a call and gives what came of each, in order; processes that hold the model
            together deal the batches out.

    Raises:
        InputError: `max_new_tokens` leaves no room for a prompt in the model's context.
    """

    unanswered = 0

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        batch_size: int,
        name: str,
        precision: AbstractContextManager[Any] | None = None,
        deal: Deal = one_after_another,
    ) -> None:
        self.name = name
        self._model = model
        self._precision = precision or nullcontext()
        self._deal = deal
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._prompts = Prompts(tokenizer, model.config, max_new_tokens=max_new_tokens, name=name)
        self._stop_ids = stop_ids(tokenizer, model.generation_config)
        self._pad_id = next(id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if id is not None)
        self._decoding = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            eos_token_id=sorted(self._stop_ids) or None,
            pad_token_id=self._pad_id,
        )

    @classmethod
    def of(
        cls, model: Model, *, max_new_tokens: int, batch_size: int, kept: MutableMapping[str, str] | None = None
    ) -> Self:
        """See `NamedEngine.of`."""
        live = model.live()
        return cls(
            live.policy,
            live.tokenizer,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            name=live.name,
            precision=live.precision,
            deal=live.deal,
        )

    def close(self) -> None:
        """There is no connection to be given up."""

    def generate(self, chats: Sequence[Chat], *, temperature: float, seed: int) -> list[str]:
        """The texts of `sample`."""
        return [sampled.text for sampled in self.sample(chats, temperature=temperature, seed=seed)]

    def sample(self, chats: Sequence[Chat | str], *, temperature: float, seed: int) -> list[Sampled]:
        """One completion of each chat, in the order of the chats.

        Of a prompt that together with `max_new_tokens` exceeds the model's context, the end is kept.

        Args:
            chats: Messages, tokenised as `prompt_ids` says; a text is continued as it stands, without the template.
            temperature: Divides the logits; 0 takes the most probable token.
            seed: The same seed, the same completions.

        Raises:
            InputError: The chat template refuses a chat.
            NotFiniteError: The model's logits are NaN or infinite.
        """
        prompts = [self._prompts.ids(chat) for chat in chats]
        seeds = content_seeds([str(prompt) for prompt in prompts], seed)
        longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        batches = [
            longest_first[start : start + self._batch_size] for start in range(0, len(prompts), self._batch_size)
        ]

        def complete(batch: Sequence[int]) -> _Completed:
            return self._complete([prompts[i] for i in batch], temperature, [seeds[i] for i in batch])

        with self._precision, _answering(self._model):
            completed = self._deal(complete, batches)
        if not all(each.finite for each in completed):
            raise NotFiniteError(
                "The model's logits are not finite while it answers: it has diverged, and has no answers."
            )
        rows = [row for each in completed for row in each.rows]
        completions = dict(zip(longest_first, rows, strict=True))
        return [
            Sampled(tuple(prompt), tuple(completions[index]), decoded(self._tokenizer, completions[index]))
            for index, prompt in enumerate(prompts)
        ]

    def _complete(self, prompts: list[list[int]], temperature: float, seeds: list[int]) -> _Completed:
        """Token ids that the model adds to each prompt, up to the first stop token and with it."""
        device = next(self._model.parameters()).device
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids_BT = torch.tensor([[self._pad_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
        mask_BT = torch.arange(longest) >= torch.tensor(padding)[:, None]
        choice = _Choice(temperature, seeds, device)
        output = self._model.generate(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.long().to(device),
            generation_config=self._decoding,
            logits_processor=[choice],
        )
        return _Completed([self._up_to_stop(row) for row in output[:, longest:].tolist()], choice.finite())

    def _up_to_stop(self, ids: list[int]) -> list[int]:
        stop = next((place for place, id in enumerate(ids) if id in self._stop_ids), len(ids))
        return ids[: stop + 1]


class _Choice(LogitsProcessor):  # type: ignore[misc]  # mypy skips transformers, see pyproject.toml
    """Makes the greedy search of transformers draw from softmax(scores / temperature), each row from its own stream.

    argmax(s / T - log E) with independent E ~ Exp(1) is distributed as softmax(s / T) (the Gumbel-max trick; -log E is
    a Gumbel variable). transformers' own sampling draws all rows from the global random state.

    Args:
        temperature: 0 leaves the scores as they are.
        seeds: One a row.
        device: Where the scores are.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device) -> None:
        self._temperature = temperature
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        # A maximum is NaN if one score is; -inf is a token that the model itself rules out. Looked at once, in
        # `finite`, because every look makes a GPU wait.
        self._finite &= scores_BV.amax(dim=-1).isfinite().all()
        if self._temperature == 0:
            return scores_BV
        # In double precision, where a draw of exactly 0 does not happen.
        noise_BV = torch.empty_like(scores_BV, dtype=torch.float64)
        for noise_V, stream in zip(noise_BV, self._streams, strict=True):
            noise_V.exponential_(generator=stream)
        return scores_BV / self._temperature - noise_BV.log()

    def finite(self) -> bool:
        """Whether every token was chosen by logits that are finite."""
        return bool(self._finite)


@contextmanager
def _answering(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Evaluation mode, and no generation_config of the model's own, whose every entry would otherwise take part."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own, training = base.generation_config, [module for module in model.modules() if module.training]
    model.eval()
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
        for module in training:
            module.training = True
