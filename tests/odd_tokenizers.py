"""Small tokenizers of the kinds that models come with, and chat templates that do what people's do."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|turn|>", "<|over|>", "<think>", "</think>"]
CORPUS = ["the sun was warm and the sea was blue", "what is a river? it is water that runs to the sea", "say it twice"]


def _wrapped(tokenizer: Tokenizer, *, begins: bool = False, ends: bool = False) -> Tokenizer:
    parts = [*(["<s>"] if begins else []), "$A", *(["</s>"] if ends else [])]
    if len(parts) > 1:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
        )
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2's, Llama 3's or Qwen's: bytes merged to words that begin with their space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """As Llama 2's: a space before every text, unknown letters as bytes it does not have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def words() -> Tokenizer:
    """A token a word, all in small letters."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def dressed(tokenizer: Tokenizer, *, template: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """As transformers load it."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | names
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


TOKENIZERS = {
    "bytes": lambda: dressed(byte_level()),
    "bytes, begun": lambda: dressed(_wrapped(byte_level(), begins=True)),
    "bytes, begun and ended": lambda: dressed(_wrapped(byte_level(), begins=True, ends=True)),
    "bytes, turns end it": lambda: dressed(byte_level(), eos_token="<|over|>"),
    "pieces, begun": lambda: dressed(_wrapped(sentence_pieces(), begins=True), unk_token="<unk>"),
    "words": lambda: dressed(words(), unk_token="<unk>"),
}

_TURN = "<|turn|>{{ m.role }}\n{{ m.content }}<|over|>\n"
_ANSWER = "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
TEMPLATES = {
    "turns": "{% for m in messages %}" + _TURN + "{% endfor %}" + _ANSWER,
    "begun": "{{ bos_token }}{% for m in messages %}" + _TURN + "{% endfor %}" + _ANSWER,
    "headers": "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}",
    "known roles": "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    + _TURN
    + "{% endif %}{% endfor %}"
    + _ANSWER,
    "known roles, begun": "{{ bos_token }}<|turn|>system\nBe kind.<|over|>\n{% for m in messages %}"
    "{% if m.role in ('user', 'assistant') %}" + _TURN + "{% endif %}{% endfor %}" + _ANSWER,
    "last system": "{% set said = namespace(text='') %}{% for m in messages if m.role == 'system' %}"
    "{% set said.text = m.content %}{% endfor %}{{ said.text }}{% for m in messages if m.role != 'system' %}"
    + _TURN
    + "{% endfor %}"
    + _ANSWER,
    "thoughts cut": "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>{% endif %}",
    "empty thought": "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|over|>\n{% endfor %}"
    + _ANSWER,
    "trimmed": "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content | trim }}<|over|>\n{% endfor %}" + _ANSWER,
    "dated": "<|turn|>system\nToday is {{ strftime_now('%d %B %Y, %H:%M:%S') }}.<|over|>\n{% for m in messages %}"
    + _TURN
    + "{% endfor %}"
    + _ANSWER,
    "content alone": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
