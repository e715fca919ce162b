"""The reward-KL frontier: its estimator against sums over every completion, its intervals, its front, its picture."""

import io
import itertools
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tune_dlrml.errors import InputError, NotFiniteError
from tune_dlrml.evaluation.frontier.picture import Setting, frontier
from tune_dlrml.evaluation.frontier.points import (
    Compared,
    Estimate,
    FrontierPoint,
    Sampling,
    completion_kl,
    frontier_point,
    token_kl,
)
from tune_dlrml.evaluation.frontier.rewards import Reward
from tune_dlrml.evaluation.records import Sampled
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.pairs.batches import add_log_prob_head

VOCABULARY, END = 4, 0
PROMPTS = ["review 1:", "review 22: the movie", "the plot was"]
LENGTH = Reward("length", "characters", lambda prompts, completions: [len(completion) for completion in completions])


def llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0, eos_token_id=END
    )
    return GPT2LMHeadModel(config).eval()


def completions(longest):
    """Every completion over the small vocabulary: one that ends, or one that is cut."""
    words = range(1, VOCABULARY)
    for length in range(longest):
        yield from ((*start, END) for start in itertools.product(words, repeat=length))
    yield from itertools.product(words, repeat=longest)


def log_prob(model, prompt, completion):
    """Log-prob of a whole completion, alone in its batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double().log_softmax(dim=-1)
    return sum(logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(completion))


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    return toy.write_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def base(toy_folder):
    return load_model(parse_model_reference(str(toy_folder)), dtype=torch.float32)


@pytest.fixture
def tokenizer(toy_folder):
    return load_tokenizer(parse_model_reference(str(toy_folder)))


def with_adapter(model, scale=0.3):
    """A policy whose adapter does something; at scale 0 it does nothing, as before the first step."""
    policy = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_expected_estimate_is_the_kl_of_whole_completions(make):
    policy, reference, prompt = make(0), make(1), (2, 1)
    every = list(completions(3))
    weights, ratios = [], []
    for completion in every:
        own = log_prob(policy, prompt, completion)
        weights.append(math.exp(own))
        ratios.append(own - log_prob(reference, prompt, completion))
    assert math.fsum(weights) == pytest.approx(1)
    exact = math.fsum(w * ratio for w, ratio in zip(weights, ratios, strict=True))
    sampled = [Sampled(prompt, completion, "") for completion in every]
    estimates = completion_kl(Compared(policy, None, reference), sampled, batch_size=7)
    assert math.fsum(w * kl for w, kl in zip(weights, estimates, strict=True)) == pytest.approx(exact, rel=1e-4)
    assert exact > 0.1


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_estimate_does_not_depend_on_what_it_is_batched_with(make):
    compared = Compared(make(0), None, make(1))
    sampled = [
        Sampled((1,), (3, 2, 1, 0), ""),
        Sampled((2, 3, 1, 1, 2), (0,), ""),
        Sampled((3, 1), (), ""),
        Sampled((1, 2, 3), (2, 2), ""),
    ]
    together = completion_kl(compared, sampled)
    alone = [completion_kl(compared, [one])[0] for one in sampled]
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert together[2] == 0
    assert min(together[0], together[1], together[3]) > 0


def test_the_kl_of_a_token_is_that_of_the_tempered_distributions():
    policy, reference = math.log(3), -math.log(2)
    for temperature in (1.0, 0.5):
        p = 1 / (1 + math.exp(-policy / temperature))
        q = 1 / (1 + math.exp(-reference / temperature))
        expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        logits = torch.tensor([[policy, 0.0]]), torch.tensor([[reference, 0.0]])
        assert token_kl(*logits, temperature).item() == pytest.approx(expected, rel=1e-5)
        assert token_kl(logits[0] + 7, logits[0], temperature).item() == pytest.approx(0, abs=1e-6)


def test_an_estimate_is_made_without_dropout():
    policy, reference, sampled = gpt2(0), gpt2(1), [Sampled((1,), (3, 2, 1), "")]
    quiet = completion_kl(Compared(policy, None, reference), sampled)
    assert policy.config.resid_pdrop > 0
    assert completion_kl(Compared(policy.train(), None, reference.train()), sampled) == quiet


def test_a_kl_that_is_not_finite_is_no_estimate():
    broken = llama(0)
    with torch.no_grad():
        broken.lm_head.weight[1] = math.nan
    with pytest.raises(NotFiniteError, match=r"that of 1 of 1 is not, such as nan: .*Examine a model that has not"):
        completion_kl(Compared(broken, None, llama(1)), [Sampled((1,), (2,), "")])


def test_the_adapter_switched_off_is_the_base_as_a_second_model(base, tokenizer, toy_folder):
    second = load_model(parse_model_reference(str(toy_folder)), dtype=torch.float32)
    policy = with_adapter(base)
    sampled = [Sampled((5, 6, 7), (30, 31, 2), ""), Sampled((8,), (40, 41, 42, 43), "")]
    own = completion_kl(Compared(policy, tokenizer), sampled)
    assert own == pytest.approx(completion_kl(Compared(policy, tokenizer, second), sampled), rel=1e-5)
    assert min(own) > 0.01


def test_the_policy_is_left_as_it_was(base, tokenizer):
    policy = with_adapter(base)
    for index, parameter in enumerate(policy.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    policy.base_model.model.model.layers[0].train()
    modes = [module.training for module in policy.modules()]
    trained = [parameter.requires_grad for parameter in policy.parameters()]
    ids = torch.tensor([[5, 6, 7]])
    before = policy(input_ids=ids).logits
    frontier_point(Compared(policy, tokenizer), PROMPTS, LENGTH, Sampling(samples=1, max_new_tokens=4))
    assert [module.training for module in policy.modules()] == modes
    assert [parameter.requires_grad for parameter in policy.parameters()] == trained
    assert torch.equal(policy(input_ids=ids).logits, before)


def test_an_untrained_policy_has_no_divergence(base, tokenizer):
    compared = Compared(with_adapter(base, scale=0), tokenizer)
    point = frontier_point(compared, PROMPTS, LENGTH, Sampling(samples=2, temperature=0.7, max_new_tokens=6))
    assert point.kl == Estimate(0.0, 0.0, (0.0, 0.0))


def test_the_mean_over_samples_comes_near_the_exact_kl_of_two_tokens(base, tokenizer):
    compared = Compared(with_adapter(base), tokenizer)
    prompt, samples = "review 7:", 150
    point = frontier_point(compared, [prompt, prompt], LENGTH, Sampling(samples, max_new_tokens=2, batch_size=100))
    ids = tokenizer(prompt)["input_ids"]
    words = torch.arange(len(tokenizer))
    grown = torch.cat([torch.tensor([ids]).expand(len(words), -1), words[:, None]], dim=1)
    with torch.no_grad():
        policy = compared.policy(input_ids=grown).logits[:, -2:].double().log_softmax(dim=-1)
        with compared.policy.disable_adapter():
            reference = compared.policy(input_ids=grown).logits[:, -2:].double().log_softmax(dim=-1)
    kl = (policy.exp() * (policy - reference)).sum(dim=-1)
    goes_on = words != tokenizer.eos_token_id
    exact = (kl[0, 0] + (policy[0, 0].exp() * goes_on * kl[:, 1]).sum()).item()
    kls = [completion.kl for completion in point.completions]
    assert point.kl.mean == pytest.approx(exact, abs=4 * np.std(kls) / math.sqrt(len(kls)))
    assert np.std(kls) > 0


def test_a_point_rests_on_all_its_completions_and_comes_out_again(base, tokenizer):
    add_log_prob_head(base)
    compared = Compared(with_adapter(base), tokenizer)
    sampling = Sampling(samples=3, max_new_tokens=8, seed=5, batch_size=4)
    point = frontier_point(compared, PROMPTS, LENGTH, sampling)
    assert [completion.prompt for completion in point.completions] == PROMPTS * 3
    assert len({completion.text for completion in point.completions[::3]}) > 1
    assert point.position.reward == pytest.approx(np.mean([len(completion.text) for completion in point.completions]))
    assert point.position.kl == pytest.approx(np.mean([completion.kl for completion in point.completions]))
    assert frontier_point(compared, PROMPTS, LENGTH, sampling) == point
    assert FrontierPoint.from_json(point.as_json() | {"bench": "frontier"}) == FrontierPoint(point.reward, point.kl)


def test_a_reward_reads_a_chat_as_the_text_of_its_messages(base, tokenizer):
    seen = []

    def score(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    chats = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "a text"]
    frontier_point(
        Compared(with_adapter(base), tokenizer), chats, Reward("seen", "", score), Sampling(samples=1, max_new_tokens=2)
    )
    assert seen == ["Be kind.\n\nHi", "a text"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples >= 1"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"temperature": 0.0}, "0 < temperature < inf"),
    ],
)
def test_a_sampling_that_samples_nothing_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        Sampling(**changes)


def test_a_policy_without_adapter_needs_a_reference():
    with pytest.raises(InputError, match="needs a reference model, but LlamaForCausalLM came alone"):
        Compared(llama(0), SimpleNamespace())


def test_an_interval_is_near_the_normal_one_for_many_values_and_the_same_for_a_seed():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    estimate = Estimate.of(values, seed=1)
    error = values.std(ddof=1) / math.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.se == pytest.approx(error)
    assert estimate.interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), rel=0.01)
    assert Estimate.of(values, seed=1) == estimate


def test_one_prompt_is_refused_before_anything_is_sampled(tokenizer):
    compared = Compared(None, tokenizer, reference="never looked at")
    with pytest.raises(InputError, match="at least 2 prompts, but got 1; give more"):
        frontier_point(compared, PROMPTS[:1], LENGTH, Sampling())


def test_an_interval_of_one_prompt_is_refused_and_of_equal_values_is_a_point():
    assert Estimate.of([0.25, 0.25, 0.25], seed=0) == Estimate(0.25, 0.0, (0.25, 0.25))
    with pytest.raises(InputError, match="at least 2 prompts, but got 1"):
        Estimate.of([1.0], seed=0)


def point(reward, kl):
    return FrontierPoint(
        Estimate(reward, 0.01, (reward - 0.03, reward + 0.02)), Estimate(kl, 0.1, (0.9 * kl, 1.2 * kl))
    )


def drawn(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
    return figure.axes[0]


def test_the_picture_shows_every_label_note_bar_and_the_front():
    points = {
        Setting("DPO", "β 0.1"): [point(0.3, 1.0), point(0.5, 3.0)],
        Setting("DPO", "β 0.5"): [point(0.2, 0.5)],
        Setting("dLRML", "β 0.1"): [point(0.3, 2.5)],
    }
    axes = drawn(frontier(points, reward="VADER"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Pareto front", "DPO", "dLRML"]
    assert [text.get_text() for text in axes.texts] == ["β 0.1", "β 0.5", "β 0.1"]
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    np.testing.assert_allclose(front.get_xydata(), [(0.5, 0.2), (2.0, 0.4)])
    bars = {tuple(np.round(segment.ravel(), 9)) for lines in axes.collections for segment in lines.get_segments()}
    assert bars == {
        *[(0.9, 0.3, 1.2, 0.3), (1.0, 0.27, 1.0, 0.32), (2.7, 0.5, 3.6, 0.5), (3.0, 0.47, 3.0, 0.52)],
        *[(0.45, 0.2, 0.6, 0.2), (0.5, 0.17, 0.5, 0.22), (2.25, 0.3, 3.0, 0.3), (2.5, 0.27, 2.5, 0.32)],
    }
    assert "nats" in axes.get_xlabel()
    assert "VADER" in axes.get_ylabel()
    assert "mean over seeds" in axes.get_title()


def test_the_picture_of_the_reference_alone_can_be_drawn():
    axes = drawn(frontier({Setting("reference"): [point(0.25, 0.0)]}, reward="VADER"))
    low, high = axes.get_xlim()
    assert low < 0 < high
    assert "seed" not in axes.get_title()
