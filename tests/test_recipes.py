"""The recipes for public sets read rows of their schemas, made up here, into the right prompt and answers."""

import json
import re
from pathlib import Path

import pytest

from tune_dlrml.config import DatasetConfig
from tune_dlrml.config.yaml_text import parse_yaml
from tune_dlrml.data import load_section, parse_dataset_reference
from tune_dlrml.errors import InputError

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "data.md"


def recipes():
    text = PAGE.read_text(encoding="utf-8").partition("| set | `dataset:` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\w./-]+).*? \| `(\{.*\})` \|$", text, flags=re.MULTILINE)
    return {name: DatasetConfig.model_validate(parse_yaml(recipe, PAGE.name)[0]) for name, recipe in rows}


def said(role, text):
    return {"role": role, "content": text}


ASK, GOOD, BAD = said("user", "Name a fruit."), said("assistant", "A pear."), said("assistant", "A brick.")
TALK = [ASK], [GOOD], [BAD]
GUIDED = [said("system", "Be brief."), ASK], [GOOD], [BAD]
TEXTS = "Name a fruit.", "A pear.", "A brick."

MADE = {
    "argilla/dpo-mix-7k": (
        {
            "dataset": "made",
            "chosen": [ASK, GOOD],
            "rejected": [ASK, BAD],
            "chosen_rating": 5.0,
            "rejected_rating": 1.0,
        },
        TALK,
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {
            "prompt": "Name a fruit.",
            "prompt_id": "ab12",
            "chosen": [ASK, GOOD],
            "rejected": [ASK, BAD],
            "messages": [ASK, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        TALK,
    ),
    "trl-lib/ultrafeedback_binarized": (
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 8.5, "score_rejected": 3.0},
        TALK,
    ),
    "Anthropic/hh-rlhf": (
        {
            "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: A pear.",
            "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: No, I will not.",
        },
        ("\n\nHuman: Name a fruit.\n\nAssistant:", " A pear.", " No, I will not."),
    ),
    "Intel/orca_dpo_pairs": (
        {"system": "Be brief.", "question": "Name a fruit.", "chosen": "A pear.", "rejected": "A brick."},
        GUIDED,
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        {
            "system": "Be brief.",
            "input": "Name a fruit.",
            "chosen": "A pear.",
            "rejected": "A brick.",
            "generations": ["A pear.", "A brick."],
            "order": ["chosen", "rejected"],
            "labelling_prompt": [said("system", "Rate them."), said("user", "Which is better?")],
            "rating": [9.0, 2.0],
            "status": "unchanged",
            "original_chosen": "A pear.",
            "in_gsm8k_train": False,
        },
        GUIDED,
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        {
            "source": "made",
            "chosen": [ASK, GOOD],
            "rejected": [ASK, BAD],
            "prompt": "Name a fruit.",
            "question": "Name a fruit.",
        },
        TALK,
    ),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": (
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "source": "made"},
        TALK,
    ),
    "trl-lib/tldr-preference": (
        {
            "prompt": "SUBREDDIT: r/food\n\nPOST: I ate a pear and liked it.\n\nTL;DR:",
            "chosen": " Ate a pear, liked it.",
            "rejected": " Food.",
        },
        (
            "SUBREDDIT: r/food\n\nPOST: I ate a pear and liked it.\n\nTL;DR:",
            " Ate a pear, liked it.",
            " Food.",
        ),
    ),
    "hiyouga/DPO-En-Zh-20k": (
        {
            "conversations": [{"from": "human", "value": "Name a fruit."}],
            "chosen": {"from": "gpt", "value": "A pear."},
            "rejected": {"from": "gpt", "value": "A brick."},
        },
        TALK,
    ),
}


def compared(choice, **info):
    own = {"id": "t3_ab", "subreddit": "food", "title": "Pears", "post": "I ate a pear and liked it.", **info}
    summaries = [{"text": " Food.", "policy": "sup1"}, {"text": " Ate a pear, liked it.", "policy": "ref"}]
    return {"info": own, "split": "train", "summaries": summaries, "choice": choice, "worker": "w", "batch": "batch3"}


def test_a_comparison_of_two_summaries_is_a_pair(tmp_path):
    path = tmp_path / "batch3.jsonl"
    path.write_text(json.dumps(compared(1)) + "\n" + json.dumps(compared(0)) + "\n", encoding="utf-8")
    section, _ = load_section(str(path), "dataset.train")
    prompt = "SUBREDDIT: r/food\n\nTITLE: Pears\n\nPOST: I ate a pear and liked it.\n\nTL;DR:"
    good, bad = " Ate a pear, liked it.", " Food."
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in section.pairs] == [
        (prompt, good, bad),
        (prompt, bad, good),
    ]


@pytest.mark.parametrize("row", [compared(2), compared(0, post=None)])
def test_a_comparison_without_a_post_or_a_choice_is_refused(row, tmp_path):
    path = tmp_path / "batch3.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"row 1 .*a `choice` of 0 or 1"):
        load_section(str(path), "dataset.train")


def test_the_page_has_ten_recipes():
    assert recipes().keys() == MADE.keys()
    assert len(MADE) == 10


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_reads_its_sets_schema(name, tmp_path):
    row, expected = MADE[name]
    recipe = recipes()[name]
    for reference in recipe.references().values():
        parse_dataset_reference(reference)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    section, _ = load_section(str(path), "dataset.train", recipe)
    (pair,) = section.pairs
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == expected
