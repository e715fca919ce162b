"""A random Llama of 0.1 M parameters, its tokenizer, and preference pairs that it can learn in a few steps."""

import json
import random
from pathlib import Path
from typing import Any

GOOD, BAD = ["great", "lovely", "warm", "superb", "bright"], ["awful", "dull", "cold", "bad", "grey"]
THINGS = ["movie", "plot", "actor", "scene", "music"]


def sentence(words: list[str], rng: random.Random) -> str:
    return f"the {rng.choice(THINGS)} was {rng.choice(words)} and the {rng.choice(THINGS)} felt {rng.choice(words)} ."


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": f"review {rng.randrange(10**6)}:",
            "chosen": " " + sentence(GOOD, rng),
            "rejected": " " + sentence(BAD, rng),
        }
        for _ in range(count)
    ]


def uneven_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of completions of which now the chosen, now the rejected one goes on for longer, and some for as long."""
    rng = random.Random(seed)
    made = pairs(count, seed)
    for pair in made:
        for side, words in (("chosen", GOOD), ("rejected", BAD)):
            pair[side] += "".join(f" {word}" for word in rng.sample(words, rng.randrange(3)))
    return made


def write_pairs(path: Path, count: int, seed: int = 0, *, uneven: bool = False) -> Path:
    made = uneven_pairs(count, seed) if uneven else pairs(count, seed)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in made))
    return path


def write_model(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0, tied: bool = False) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentence(GOOD + BAD, rng) for _ in range(1000)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=-(-len(fast) // 8) * 8 if tied else len(fast),
        tie_word_embeddings=tied,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def document(model: Path, train: Path, held_out: Path, **changes: Any) -> dict[str, Any]:
    """A search-space document over the toy; `changes` replace top-level keys."""
    base: dict[str, Any] = {
        "name": "toy",
        "model": str(model),
        "dataset": {"train": str(train), "eval": str(held_out)},
        "training": {
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 8,
            "max_length": 64,
            "max_steps": 16,
            "bf16": False,
            "lora": {"r": 4, "lora_alpha": 8},
        },
        "search": {"num_trials": 6, "n_startup_trials": 3, "scheduler": {"grace_period": 4, "reduction_factor": 2}},
        "space": {
            "losses": [
                {"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}},
                {"name": "discopop", "beta": {"log_uniform": [0.01, 0.5]}},
                {"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 0.5]}, "c": {"log_uniform": [1, 9.1]}},
                {"name": "dlrml", "beta_kl": 0.05, "beta_mix": {"learnable": True, "c_init": 4}},
            ],
            "training": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        },
    }
    return base | changes
