"""Between chats and token ids: prompts, what ends an answer, its text, and the seed of each."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from tune_dlrml.data.tokens import fixed_clock
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.records import Chat, joined

logger = logging.getLogger(__name__)

_ANSWER = "Xyzzy"
"""Stands for an answer where the template is asked what follows one."""


class Prompts:
    """Makes prompts that together with an answer fit the model's context; of a longer one the end is kept.

    Args:
        tokenizer: The model's own.
        config: The model's.
        max_new_tokens: Length of the answer.
        name: Of the engine, for messages.

    Raises:
        InputError: The answer alone fills the context.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, max_new_tokens: int, name: str
    ) -> None:
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if context is not None and max_new_tokens >= context:
            raise InputError(
                f"`max_new_tokens < max_position_embeddings` must hold, but got max_new_tokens={max_new_tokens} for a "
                f"model with max_position_embeddings={context}. Lower max_new_tokens."
            )
        self._tokenizer = tokenizer
        self._room = None if context is None else context - max_new_tokens
        self._name = name

    def ids(self, chat: Chat | str) -> list[int]:
        """The tokens of `prompt_ids`, the last ones if they are too many."""
        ids = prompt_ids(self._tokenizer, chat)
        if self._room is None or len(ids) <= self._room:
            return ids
        logger.warning("%s: only the last %d of a prompt's %d tokens fit", self._name, self._room, len(ids))
        return ids[-self._room :]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, chat: Chat | str) -> list[int]:
    """Tokens after which the model's answer begins.

    A chat goes through the tokenizer's chat template, if it has one. Otherwise the contents of its messages, parted by
    an empty line, are a text like any other: tokenised with the special tokens that the tokenizer adds by itself, as
    TRL does it with prompts that are no chats. A template that writes the date writes that of the training.

    Raises:
        InputError: The chat template refuses the chat.
    """
    if not isinstance(chat, str) and tokenizer.chat_template:
        try:
            with fixed_clock():
                text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in chat)
            raise InputError(f"The tokenizer's chat template refuses a chat of the roles {roles}: {error}") from None
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        text = joined(chat)
        ids = tokenizer(text, verbose=False)["input_ids"]
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return list(ids) or [next(id for id in starts if id is not None)]  # no model continues nothing


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> frozenset[int]:
    """Tokens that end an answer: end of sequence for tokenizer and model, and the template's end of a turn."""
    of_model = generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model]), end_of_turn(tokenizer)]
    return frozenset(id for id in ids if id is not None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind an answer; None where there is no such thing."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError:
        return None
    behind = tokenizer(text.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return int(behind[0]) if behind and behind[0] in special else None


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids without special tokens, every space as the model wrote it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def content_seeds(contents: Sequence[str], seed: int) -> list[int]:
    """A seed below 2**63 for each content, which depends on `seed`, the content and its occurrence among equal ones."""
    met: Counter[str] = Counter()
    seeds = []
    for content in contents:
        digest = hashlib.sha256(f"{seed}/{met[content]}/{content}".encode("utf-8", "surrogatepass")).digest()
        seeds.append(int.from_bytes(digest[:8], "big") >> 1)
        met[content] += 1
    return seeds
