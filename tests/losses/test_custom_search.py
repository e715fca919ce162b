"""A search over a user's own loss: tied to its file before it starts, and learnt beside the policy in a trial."""

import hashlib

import pytest
import toy_training
from made_search import small_search

from tune_dlrml.errors import InputError
from tune_dlrml.records import State
from tune_dlrml.search.validity import check_functions
from tune_dlrml.study.resumable import refuse_differences

SOURCE = """from torch.nn.functional import softplus


def tempered(pairs, *, beta, alpha):
    return softplus(-beta * alpha * pairs.margin_B) / alpha


def grows(pairs, *, beta):
    return (-beta * pairs.margin_B).exp()


def mean(pairs):
    return pairs.margin_B.mean()
"""
LEARNT = {"learnable": True, "init": 1.0, "learning_rate": 0.05, "bounds": [0.5, 3]}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"searched_{abs(hash(tmp_path))}.py"
    path.write_text(SOURCE)
    return path


def config_of(*losses):
    return small_search(name="own", space={"losses": list(losses)})


def own(file, function, **params):
    return {"name": "custom", "function": f"{file.stem}:{function}", "params": params}


def test_a_checked_search_knows_the_hash_of_the_file_and_what_a_person_should_know(file):
    config, notes = check_functions(config_of({"name": "dpo"}, own(file, "grows", beta={"uniform": [0.1, 0.2]})))
    assert config.space.losses[0] == config_of({"name": "dpo"}).space.losses[0]
    assert config.space.losses[1].file_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.flat()["name"] == "own"
    assert any(note.startswith("loss grows: the slope grows without bound as the margin falls") for note in notes)


def test_a_loss_that_cannot_train_is_refused_by_its_key(file):
    with pytest.raises(InputError, match=r"^space\.losses\[1\]\.function: .* one loss per pair"):
        check_functions(config_of({"name": "dpo"}, own(file, "mean")))


def test_a_search_is_not_resumed_with_another_file(file):
    config = config_of(own(file, "grows", beta=0.1))
    before, _ = check_functions(config)
    file.write_text(SOURCE.replace(".exp()", ".exp() * 2"))
    after, _ = check_functions(config)
    with pytest.raises(InputError, match=r"space\.losses\[0\]\.file_sha256: was"):
        refuse_differences("own", {"config": before.model_dump()}, {"config": after.model_dump()})


def test_a_search_without_a_loss_of_ones_own_stays_as_it_is():
    config = config_of({"name": "dpo"})
    assert check_functions(config) == (config, ())


def test_a_trial_learns_the_param_and_reports_it(file, toy_model):
    settings = toy_training.settings()
    resident = toy_training.resident(toy_model, settings)
    loss = own(file, "tempered", beta=0.1, alpha=LEARNT)
    outcome, channel = toy_training.run(resident, loss, settings, toy_training.plan(8))
    assert outcome.state == State.COMPLETE
    learnt = [report.metrics["params.alpha"] for report in channel.reports]
    assert learnt[0] == pytest.approx(1.0)
    # softplus(-b a m) / a falls with a at margin 0 and above, so descent raises a.
    assert learnt == sorted(learnt)
    assert learnt[-1] > 1.02
    assert channel.reports[-1].metrics["eval_margin"] > 0


def test_a_proposed_loss_trains_as_the_same_text_in_a_file_of_its_own(tmp_path, toy_model):
    settings = toy_training.settings()
    formula = "z = beta * pairs.margin_B\n    return F.softplus(-z) + 0.01 * torch.relu(-z) ** 2"
    code = f"def bent(pairs, *, beta):\n    {formula}"
    proposed = {"name": "proposed", "code": code, "params": {"beta": 0.3}}
    written = config_of(proposed).space.losses[0].module()
    (tmp_path / "0007.py").write_text(written)
    custom = {"name": "custom", "function": f"{tmp_path / '0007.py'}:bent", "params": {"beta": 0.3}}
    margins = []
    for loss in (proposed, custom):
        resident = toy_training.resident(toy_model, settings)
        outcome, channel = toy_training.run(resident, loss, settings, toy_training.plan(4))
        assert outcome.state == State.COMPLETE
        metrics = [pair for report in channel.reports for pair in report.metrics.items() if "margin" in pair[0]]
        margins.append(metrics)
    assert margins[0] == margins[1]
    assert dict(margins[0])["eval_margin"] != 0


def test_a_checked_search_takes_a_proposed_loss_as_it_is():
    code = "def bent(pairs, *, beta):\n    return torch.exp(-beta * pairs.margin_B)"
    loss = {"name": "proposed", "code": code, "params": {"beta": {"uniform": [0.1, 0.2]}}}
    config, notes = check_functions(config_of(loss))
    assert config == config_of(loss)
    assert any(note.startswith("loss bent: the slope grows without bound as the margin falls") for note in notes)
    broken = loss | {"code": code.replace("torch.exp(-beta * pairs.margin_B)", "pairs.margin_B.mean()")}
    with pytest.raises(InputError, match=r"^space\.losses\[0\]\.code: .* one loss per pair"):
        check_functions(config_of(broken))
