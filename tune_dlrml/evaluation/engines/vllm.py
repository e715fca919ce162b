"""The one place of vLLM, an optional extra for GPU clusters: a model and at most one adapter, loaded from disk."""

import json
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Self

from transformers import AutoConfig, GenerationConfig

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.prompting import Prompts, content_seeds, stop_ids
from tune_dlrml.evaluation.engines.registry import Model
from tune_dlrml.evaluation.records import Chat
from tune_dlrml.models.loading import load_tokenizer, parse_model_reference, resolve_model

LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Largest ranks that vLLM can be made ready for, https://docs.vllm.ai/en/stable/features/lora."""
NOT_SERVED = ("use_dora", "modules_to_save", "target_parameters")
"""Settings of an adapter that vLLM does not take."""


class VllmEngine:
    """Lets a model answer in vLLM, which takes most of the GPU's memory until its process ends.

    Prompts, truncation and stop tokens are those of `TransformersEngine`, and so is the distribution that tokens are
    drawn from; the draws are not. vLLM batches as requests come, so the same seed gives the same answers only up to
    the rounding of its kernels.

    Args:
        model: Reference of the base model.
        max_new_tokens: Tokens after which an answer is cut.
        name: Of the engine and its model.
        adapter: Folder of a LoRA adapter that takes part, as PEFT writes it.
        tensor_parallel_size: GPUs that share the model.

    Raises:
        InputError: vLLM is not installed, `max_new_tokens` leaves no room for a prompt, or the adapter is none that
            vLLM takes.
    """

    unanswered = 0

    def __init__(
        self,
        model: str,
        *,
        max_new_tokens: int,
        name: str,
        adapter: Path | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise InputError(
                f"Answers by vLLM need the package vllm, which cannot be imported ({error}). Install tune-dlrml[vllm] "
                "on a machine with a GPU, or let transformers answer."
            ) from None
        reference = parse_model_reference(model)
        resolved = resolve_model(reference)
        source, revision = (str(resolved), None) if isinstance(resolved, Path) else resolved
        self.name = name
        self._max_new_tokens = max_new_tokens
        tokenizer, config = load_tokenizer(reference), AutoConfig.from_pretrained(source, revision=revision)
        self._prompts = Prompts(tokenizer, config, max_new_tokens=max_new_tokens, name=name)
        self._stop_ids = sorted(stop_ids(tokenizer, _generation_config(source, revision)))
        self._adapter = None if adapter is None else LoRARequest("policy", 1, str(adapter))
        self._sampling_params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=source,
            revision=revision,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=False,
            enable_lora=adapter is not None,
            **({} if adapter is None else {"max_lora_rank": _lora_rank(adapter)}),
        )

    @classmethod
    def of(
        cls, model: Model, *, max_new_tokens: int, batch_size: int, kept: MutableMapping[str, str] | None = None
    ) -> Self:
        """See `NamedEngine.of`; vLLM makes its batches itself."""
        stored = model.stored()
        return cls(stored.model, max_new_tokens=max_new_tokens, name=model.name, adapter=stored.adapter)

    def close(self) -> None:
        """There is no connection to be given up."""

    def generate(self, chats: Sequence[Chat], *, temperature: float, seed: int) -> list[str]:
        """One answer to each chat, in the order of the chats; temperature 0 is greedy."""
        prompts = [self._prompts.ids(chat) for chat in chats]
        settings = [
            self._sampling_params(
                temperature=temperature,
                max_tokens=self._max_new_tokens,
                stop_token_ids=self._stop_ids,
                seed=seed,
                skip_special_tokens=True,
                spaces_between_special_tokens=False,
            )
            for seed in content_seeds([str(prompt) for prompt in prompts], seed)
        ]
        answers = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            settings,
            use_tqdm=False,
            lora_request=self._adapter,
        )
        return [answer.outputs[0].text for answer in answers]


def _generation_config(source: str, revision: str | None) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:  # a model may come without one, and then its config says what ends an answer
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(source, revision=revision))


def _lora_rank(adapter: Path) -> int:
    """The smallest of vLLM's ranks that holds the adapter's."""
    path = adapter / "adapter_config.json"
    try:
        known = json.loads(path.read_bytes())
        rank = int(known["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{adapter}: is no folder of a LoRA adapter, {path.name} has no rank `r` ({error}).") from None
    beside = [key for key in NOT_SERVED if known.get(key)]
    if beside:
        raise InputError(
            f"{adapter}: vLLM takes adapters of two matrices a layer, but this one has {', '.join(beside)}. Let "
            "transformers answer."
        )
    fitting = [allowed for allowed in LORA_RANKS if allowed >= rank]
    if not fitting:
        raise InputError(
            f"{adapter}: vLLM takes adapters of `r <= {LORA_RANKS[-1]}`, but this one has r={rank}. Let transformers "
            "answer."
        )
    return fitting[0]
