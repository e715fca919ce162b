import json
import logging
import math
import random
import sys
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
import toy_training
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.data.tokens import tokenize
from tune_dlrml.errors import InputError, JudgeEndedError, NotFiniteError
from tune_dlrml.evaluation.endpoint.client import NoReplyError
from tune_dlrml.evaluation.engines.endpoint import EndpointEngine
from tune_dlrml.evaluation.engines.prompting import end_of_turn, prompt_ids
from tune_dlrml.evaluation.engines.transformers import TransformersEngine
from tune_dlrml.evaluation.engines.vllm import VllmEngine
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.held_out import HeldOut

TURNS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
"""A chat template like ChatML: of the toy's special tokens `<pad>` (0) ends a turn, and `</s>` (2) a text."""
CHATS = [[{"role": "user", "content": f"review {n}: " + "the plot was warm " * (n % 4)}] for n in range(9)]


@pytest.fixture
def model(toy_model: Path) -> PreTrainedModel:
    return load_model(parse_model_reference(str(toy_model)), dtype=torch.float32)


@pytest.fixture
def tokenizer(toy_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(parse_model_reference(str(toy_model)))


def engine(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int = 12, batch_size: int = 4
) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size, name="toy")


def with_logit(model: PreTrainedModel, change: Callable[[torch.Tensor], None]) -> None:
    """Let `change` write into the logits of every forward."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        change(output.logits)

    model.register_forward_hook(hook)


def test_greedy_answers_are_the_most_probable_tokens_of_unpadded_forwards_without_a_cache(model, tokenizer) -> None:
    for chat, sampled in zip(CHATS, engine(model, tokenizer).sample(CHATS, temperature=0, seed=0), strict=True):
        ids = tokenizer(chat[0]["content"])["input_ids"]
        assert list(sampled.prompt_ids) == ids
        for token in sampled.completion_ids:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids = [*ids, token]


@pytest.mark.parametrize("temperature", [0, 0.7, 1.5])
def test_answers_depend_on_neither_batch_size_nor_order(model, tokenizer, temperature) -> None:
    answers = engine(model, tokenizer).generate(CHATS, temperature=temperature, seed=3)
    for batch_size in (1, 2, 9):
        other = engine(model, tokenizer, batch_size=batch_size)
        assert other.generate(CHATS, temperature=temperature, seed=3) == answers
        assert other.generate(CHATS[::-1], temperature=temperature, seed=3) == answers[::-1]


def test_the_seed_decides_and_equal_prompts_draw_apart(model, tokenizer) -> None:
    answers = [engine(model, tokenizer).generate(CHATS[:1] * 3, temperature=1, seed=seed) for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]
    assert len(set(answers[0])) == 3


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_tokens_are_drawn_from_the_softmax_of_the_logits_over_the_temperature(model, tokenizer, temperature) -> None:
    with_logit(model, lambda logits: logits[..., 8:].fill_(-math.inf))
    draws = 2000
    sampled = engine(model, tokenizer, max_new_tokens=1, batch_size=500).sample(
        [CHATS[0]] * draws, temperature=temperature, seed=0
    )
    counts = Counter(row.completion_ids[0] for row in sampled)
    logits = model(torch.tensor([sampled[0].prompt_ids])).logits[0, -1].double()
    for token, p in enumerate(torch.softmax(logits / temperature, dim=-1).tolist()):
        assert abs(counts[token] - draws * p) <= 4 * math.sqrt(draws * p * (1 - p))


def test_the_models_own_generation_settings_take_no_part(model, tokenizer) -> None:
    plain = [engine(model, tokenizer).generate(CHATS, temperature=t, seed=0) for t in (0, 1)]
    model.generation_config.update(
        do_sample=True, temperature=0.1, top_k=2, repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=3
    )
    model.generation_config.update(num_beams=3, suppress_tokens=list(range(3, 200)))
    assert [engine(model, tokenizer).generate(CHATS, temperature=t, seed=0) for t in (0, 1)] == plain


def test_random_states_model_and_tokenizer_stay_as_they_were(model, tokenizer) -> None:
    policy = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    policy.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    config = model.generation_config

    def state() -> list[Any]:
        numpy_state = np.random.get_state()
        return [
            torch.get_rng_state().tolist(),
            *([torch.cuda.get_rng_state().tolist()] if torch.cuda.is_available() else []),
            random.getstate(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
            [module.training for module in policy.modules()],
            [(parameter.requires_grad, parameter.grad) for parameter in policy.parameters()],
            config.to_dict(),
            model.config.to_dict(),
            (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.truncation_side),
        ]

    before = state()
    engine(policy, tokenizer).generate(CHATS, temperature=1, seed=0)
    assert state() == before
    assert model.generation_config is config
    assert policy.active_adapters == ["default"] and not any(
        getattr(module, "merged", False) for module in policy.modules()
    )


def test_dropout_and_gradient_checkpointing_of_a_model_in_training_take_no_part(model, tokenizer) -> None:
    policy = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    toy_training.disturb(policy)
    answers = engine(policy.eval(), tokenizer).generate(CHATS, temperature=1, seed=0)
    policy.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert engine(policy, tokenizer).generate(CHATS, temperature=1, seed=0) == answers


@pytest.mark.parametrize("stop", ["</s>", "<pad>", "great"])
def test_an_answer_ends_with_the_first_stop_token_of_tokenizer_template_or_model(model, tokenizer, stop) -> None:
    """The other rows of the batch go on, and what they are padded with belongs to no answer."""
    tokenizer.chat_template = TEMPLATE
    assert end_of_turn(tokenizer) == 0
    token = tokenizer(stop, add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [2, token]
    with_logit(model, lambda logits: logits[..., token].add_(3))  # one draw in 17
    sampled = engine(model, tokenizer, max_new_tokens=30).sample(CHATS, temperature=1, seed=0)
    assert len({len(row.completion_ids) for row in sampled}) > 3
    for row in sampled:
        *answer, last = row.completion_ids
        assert not {0, 2, token} & set(answer)
        assert last in {0, 2, token} or len(row.completion_ids) == 30
        assert row.text == tokenizer.decode([id for id in row.completion_ids if id > 2])
    assert sum(row.completion_ids[-1] == token for row in sampled) > len(sampled) / 2


def test_chats_go_through_the_template_and_plain_texts_do_not(model, tokenizer) -> None:
    chat = [*CHATS[1], {"role": "assistant", "content": "warm"}, {"role": "user", "content": "more"}]
    assert tokenizer.decode(prompt_ids(tokenizer, chat)) == f"{CHATS[1][0]['content']}\n\nwarm\n\nmore"
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.decode(prompt_ids(tokenizer, chat)) == (
        f"<s>user\n{CHATS[1][0]['content']}<pad>\n<s>assistant\nwarm<pad>\n<s>user\nmore<pad>\n<s>assistant\n"
    )
    assert tokenizer.decode(prompt_ids(tokenizer, "review 1:")) == "review 1:"
    assert len(engine(model, tokenizer).sample([""], temperature=0, seed=0)[0].completion_ids) > 0


@pytest.mark.parametrize("template", [None, TEMPLATE, "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + TEMPLATE])
def test_prompts_have_the_tokens_that_training_has(model, tokenizer, template) -> None:
    tokenizer.chat_template = template
    pairs = toy.pairs(4)
    if template is not None:
        role = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        pairs = [{key: [{"role": role[key], "content": row[key]}] for key in row} for row in pairs]
    prompts = [prompt_ids(tokenizer, pair["prompt"]) for pair in pairs]
    assert prompts == [list(pair.prompt) for pair in tokenize(pairs, tokenizer)]


def test_a_template_that_refuses_a_chat_is_an_input_error(model, tokenizer) -> None:
    tokenizer.chat_template = "{{ raise_exception('only users speak') }}"
    with pytest.raises(InputError, match="refuses a chat of the roles user: only users speak"):
        engine(model, tokenizer).generate(CHATS[:1], temperature=0, seed=0)


def test_of_a_prompt_beyond_the_context_the_end_is_kept_and_the_cut_is_logged(model, tokenizer, caplog) -> None:
    chats = [[{"role": "user", "content": "review " * 400 + "end"}], *CHATS]
    answering = engine(model, tokenizer, max_new_tokens=56)
    with caplog.at_level(logging.WARNING, logger="tune_dlrml"):
        sampled = answering.sample(chats, temperature=1, seed=0)
    ids = tokenizer(chats[0][0]["content"])["input_ids"]
    assert list(sampled[0].prompt_ids) == ids[-200:]
    assert f"only the last 200 of a prompt's {len(ids)} tokens fit" in caplog.text
    assert [row.text for row in sampled[1:]] == engine(model, tokenizer, max_new_tokens=56).generate(
        CHATS, temperature=1, seed=0
    )


def test_an_answer_that_fills_the_context_is_refused(model, tokenizer) -> None:
    with pytest.raises(InputError, match="got max_new_tokens=256 for a model with max_position_embeddings=256"):
        engine(model, tokenizer, max_new_tokens=256)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_diverged_model_has_no_answers(model, tokenizer, value, temperature) -> None:
    with_logit(model, lambda logits: logits[..., 5].fill_(value))
    with pytest.raises(NotFiniteError, match="it has diverged"):
        engine(model, tokenizer).generate(CHATS, temperature=temperature, seed=0)


def test_a_policy_on_the_resident_model_answers_like_its_adapter_loaded_from_disk(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = toy_training.settings(**{"learning_rate": 2e-2, "disable_dropout": False, "lora.lora_dropout": 0.1})
    resident = toy_training.resident(toy_model, training)

    def answers(model: Any) -> list[str]:
        texts = [[{"role": "user", "content": row["prompt"]}] for row in toy.pairs(6, seed=2)]
        return [
            text
            for temperature in (0, 1)
            for text in engine(model, resident.tokenizer).generate(texts, temperature=temperature, seed=5)
        ]

    base = answers(resident.model)
    undisturbed = toy_training.run(resident, toy_training.DPO, training)[1].curve()
    asked: list[list[str]] = []
    evaluate = HeldOut.evaluate

    def evaluate_and_answer(held_out: HeldOut, model: Any, **settings: Any) -> dict[str, float]:
        model.train()
        asked.append(answers(model))
        assert all(module.training for module in model.modules())
        return evaluate(held_out, model, **settings)

    monkeypatch.setattr(HeldOut, "evaluate", evaluate_and_answer)
    channel = toy_training.Recorder()
    plan = toy_training.plan(8, rungs={3})
    toy_training.train_trial(resident, toy_training.spec(toy_training.DPO, training), plan, channel, folder=tmp_path)

    assert channel.curve() == undisturbed
    assert answers(resident.model) == base
    loaded = load_model(parse_model_reference(str(toy_model)), dtype=torch.float32)
    for step, policy_answers in zip((3, 8), asked, strict=True):
        adapter = PeftModel.from_pretrained(loaded, tmp_path / "attempt-0" / f"checkpoint-{step}")
        assert answers(adapter) == policy_answers
        assert sum(mine != of_base for mine, of_base in zip(policy_answers, base, strict=True)) > len(base) / 2
        loaded = adapter.unload()
    assert asked[0] != asked[1]


class FakeEndpoint:
    """Replies with what it was asked; refuses after `cap` calls, and never replies to `filtered`."""

    def __init__(self, cap: int = 100, filtered: str = "") -> None:
        self.cap, self.filtered = cap, filtered
        self.asked: list[dict[str, Any]] = []
        self._lock = Lock()

    def complete(self, messages: Sequence[dict[str, str]], **settings: Any) -> Any:
        with self._lock:
            if len(self.asked) == self.cap:
                raise JudgeEndedError("cap reached")
            self.asked.append({"messages": messages, **settings})
        if messages[-1]["content"] == self.filtered:
            raise NoReplyError("content_filter", 1)
        return SimpleNamespace(text="to " + messages[-1]["content"])


def endpoint_engine(endpoint: FakeEndpoint, kept: dict[str, str] | None = None) -> EndpointEngine:
    return EndpointEngine(endpoint, max_new_tokens=7, concurrency=3, name="endpoint:x", kept=kept)


def test_an_endpoint_is_asked_once_a_chat_with_a_seed_of_its_own() -> None:
    endpoint, reversed_ = FakeEndpoint(), FakeEndpoint()
    chats = [*CHATS, CHATS[0]]
    answers = endpoint_engine(endpoint).generate(chats, temperature=0.1, seed=0)
    assert answers == ["to " + chat[0]["content"] for chat in chats]
    assert {(call["temperature"], call["max_tokens"]) for call in endpoint.asked} == {(0.1, 7)}
    assert len({call["seed"] for call in endpoint.asked}) == len(chats)
    endpoint_engine(reversed_).generate(chats[::-1], temperature=0.1, seed=0)
    seeds, seeds_again = (
        {(call["messages"][0]["content"], call["seed"]) for call in asked.asked} for asked in (endpoint, reversed_)
    )
    assert seeds_again == seeds


def test_an_endpoint_that_ended_is_not_asked_for_the_rest_and_never_again_for_what_it_replied() -> None:
    kept: dict[str, str] = {}
    ended, chats = FakeEndpoint(cap=4), [*CHATS, CHATS[0]]
    with pytest.raises(JudgeEndedError, match="cap reached"):
        endpoint_engine(ended, kept).generate(chats, temperature=0, seed=0)
    assert len(ended.asked) == len(kept) == 4
    back = FakeEndpoint()
    answers = endpoint_engine(back, kept).generate(chats, temperature=0, seed=0)
    assert answers == ["to " + chat[0]["content"] for chat in chats]
    assert len(back.asked) == len(chats) - 4


@pytest.mark.parametrize("other", [{"seed": 1}, {"temperature": 0.5}])
def test_a_kept_reply_is_none_to_another_seed_or_temperature(other: dict[str, Any]) -> None:
    kept: dict[str, str] = {}
    same = {"temperature": 0, "seed": 0}
    endpoint_engine(FakeEndpoint(), kept).generate(CHATS, **same)
    for settings, asked in ((same, 0), (same | other, len(CHATS))):
        endpoint = FakeEndpoint()
        endpoint_engine(endpoint, kept).generate(CHATS, **settings)
        assert len(endpoint.asked) == asked


def test_a_chat_without_a_reply_is_counted_costs_no_other_its_answer_and_is_asked_again() -> None:
    kept: dict[str, str] = {}
    filtered = CHATS[1][0]["content"]
    answering = endpoint_engine(FakeEndpoint(filtered=filtered), kept)
    answers = answering.generate(CHATS, temperature=0, seed=0)
    assert answers == ["" if chat is CHATS[1] else "to " + chat[0]["content"] for chat in CHATS]
    assert answering.unanswered == 1 and len(kept) == len(CHATS) - 1
    back = FakeEndpoint()
    assert endpoint_engine(back, kept).generate(CHATS, temperature=0, seed=0)[1] == "to " + filtered
    assert len(back.asked) == 1


def adapter_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package `vllm` that notes how its model is made and asked."""
    calls: list[Any] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)

        def generate(self, prompts: list[dict[str, list[int]]], settings: list[Any], **more: Any) -> list[Any]:
            calls.append((prompts, settings, more))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f"answer {n}")]) for n in range(len(prompts))]

    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.LLM, package.SamplingParams = LLM, SimpleNamespace
    request.LoRARequest = lambda *arguments: arguments
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_vllm_gets_the_tokens_and_stop_tokens_of_transformers(toy_model, tokenizer, tmp_path, fake_vllm) -> None:
    adapter = adapter_folder(tmp_path / "adapter", r=9)
    answering = VllmEngine(str(toy_model), max_new_tokens=56, name="vllm", adapter=adapter, tensor_parallel_size=2)
    long = [{"role": "user", "content": "review " * 400}]
    assert answering.generate([*CHATS, long], temperature=0.7, seed=0) == [f"answer {n}" for n in range(10)]
    made, (prompts, settings, more) = fake_vllm
    assert made == {
        "model": str(toy_model),
        "revision": None,
        "tensor_parallel_size": 2,
        "trust_remote_code": False,
        "enable_lora": True,
        "max_lora_rank": 16,
    }
    assert more == {"use_tqdm": False, "lora_request": ("policy", 1, str(adapter))}
    assert [prompt["prompt_token_ids"] for prompt in prompts[:-1]] == [
        tokenizer(chat[0]["content"])["input_ids"] for chat in CHATS
    ]
    assert len(prompts[-1]["prompt_token_ids"]) == 200
    assert {(row.temperature, row.max_tokens, tuple(row.stop_token_ids)) for row in settings} == {(0.7, 56, (2,))}
    assert len({row.seed for row in settings}) == 10


def test_vllm_without_an_adapter_is_made_for_none(toy_model, fake_vllm) -> None:
    VllmEngine(str(toy_model), max_new_tokens=8, name="vllm").generate(CHATS[:1], temperature=0, seed=0)
    made, (_, _, more) = fake_vllm
    assert made["enable_lora"] is False and "max_lora_rank" not in made
    assert more["lora_request"] is None


@pytest.mark.parametrize(
    ("config", "law"), [({"r": 1000}, "`r <= 512`, but this one has r=1000"), ({}, "is no folder of a LoRA adapter")]
)
def test_an_adapter_that_vllm_cannot_take_is_refused(toy_model, tmp_path, fake_vllm, config, law) -> None:
    adapter = adapter_folder(tmp_path / "adapter", **config)
    with pytest.raises(InputError, match=law):
        VllmEngine(str(toy_model), max_new_tokens=8, name="vllm", adapter=adapter)


def test_vllm_that_is_not_installed_is_named_with_its_remedy(toy_model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"Install tune-dlrml\[vllm\]"):
        VllmEngine(str(toy_model), max_new_tokens=8, name="vllm")
