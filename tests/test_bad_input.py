"""What a user sees of a mistake: exit 2, one message naming file, key, value and what is allowed, nothing started."""

import json
from pathlib import Path

import pytest
import toy

from tune_dlrml.cli.main import main
from tune_dlrml.config import parse_config
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.search.preparation import prepare
from tune_dlrml.search.result import SearchPlace


@pytest.fixture
def document(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    train = toy.write_pairs(tmp_path / "train.jsonl", 40)
    held_out = toy.write_pairs(tmp_path / "eval.jsonl", 40, seed=1)
    return toy.document(tmp_path / "model", train, held_out)


def run(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sys.argv", ["tune-dlrml", *argv])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def changed(document: dict, dotted: str, value: object) -> dict:
    head, _, rest = dotted.partition(".")
    inner = changed(document[head], rest, value) if rest else value
    return {**document, head: inner}


LONG_PAIR = {"prompt": "a", "chosen": " great" * 100, "rejected": " bad"}
MISTAKES = {
    "unknown key": ("search.num_trails", 3, ["num_trails", "did you mean num_trials"]),
    "wrong type": ("training.learning_rate", "fast", ["training.learning_rate", '"fast"', "number"]),
    "low above high": (
        "space.losses",
        [{"name": "dpo", "beta": {"uniform": [0.5, 0.1]}}],
        ["beta", "low < high", "0.5"],
    ),
    "empty range": ("space.losses", [{"name": "dpo", "beta": {"uniform": [0.1, 0.1]}}], ["beta", "low < high"]),
    "logarithm of 0": ("space.losses", [{"name": "dpo", "beta": {"log_uniform": [0, 1]}}], ["beta", "log", "0"]),
    "NaN": ("training.learning_rate", float("nan"), ["training.learning_rate", "finite"]),
    "foreign field": ("space.losses", [{"name": "dpo", "beta_mix": 0.2}], ["beta_mix", "allowed", "beta"]),
    "unknown loss": ("space.losses", [{"name": "dqo"}], ["dqo", "dpo, discopop, dlrml"]),
    "missing data file": ("dataset.train", "nowhere/train.jsonl", ["dataset.train", "nowhere/train.jsonl"]),
    "unknown model": ("model", "nowhere/at/all", ["model", "nowhere/at/all"]),
    "model in a missing package": ("model", "package:no_such_package/m.gguf", ["model", "no_such_package"]),
    "more CPUs than there are": ("resources", {"cpus_per_worker": 4096}, ["cpus_per_worker", "4096"]),
    "more GPUs than there are": ("resources", {"gpus_per_worker": 512}, ["gpus_per_worker", "512"]),
    "rungs beyond the budget": ("search.scheduler.grace_period", 99, ["grace_period", "99", "max_steps"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_starts_nothing(mistake, document, tmp_path, monkeypatch, capsys):
    key, value, expected = MISTAKES[mistake]
    space = tmp_path / "space.yaml"
    space.write_text(as_yaml_text(changed(document, key, value)))
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    code, out, err = run(monkeypatch, capsys, "search", str(space), "--storage", str(tmp_path / "runs"))
    assert code == 2
    assert "Traceback" not in err + out
    for words in expected:
        assert words in err
    assert not list((tmp_path / "runs").glob("*/trials"))


def bad_rows(path: Path, row: object) -> None:
    with path.open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


ROWS = {
    "missing column": ({"prompt": "a", "chosen": "b"}, ["line 41", "rejected"]),
    "not JSON": ("{broken", ["line 41", "JSON"]),
    "wrong type": ({"prompt": "a", "chosen": 3, "rejected": "c"}, ["line 41", "chosen"]),
}


@pytest.mark.parametrize("fault", ROWS)
def test_a_bad_row_is_named_by_file_and_line(fault, document, tmp_path, monkeypatch, capsys):
    row, expected = ROWS[fault]
    bad_rows(tmp_path / "train.jsonl", row)
    space = tmp_path / "space.yaml"
    space.write_text(as_yaml_text(document))
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    code, _, err = run(monkeypatch, capsys, "search", str(space), "--storage", str(tmp_path / "runs"))
    assert code == 2
    for words in ("train.jsonl", *expected):
        assert words in err


TEXTS = {
    "duplicate key": ("name: a\nname: b\n", [":2:", "name", "twice"]),
    "YAML tag": ("name: !!python/object/apply:os.system [echo]\n", [":1:", "tag"]),
    "no YAML": ("name: [a\n", [":2:", "YAML"]),
}


@pytest.mark.parametrize("fault", TEXTS)
def test_text_that_is_no_plain_yaml_is_refused_with_its_line(fault, tmp_path, monkeypatch, capsys):
    text, expected = TEXTS[fault]
    space = tmp_path / "space.yaml"
    space.write_text(text)
    code, _, err = run(monkeypatch, capsys, "search", str(space))
    assert code == 2
    for words in ("space.yaml", *expected):
        assert words in err


def test_doctor_names_every_fault_and_exits_with_2(document, tmp_path, monkeypatch, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(as_yaml_text({**document, "model": "nowhere/at/all", "resources": {"cpus_per_worker": 4096}}))
    code, out, _ = run(monkeypatch, capsys, "doctor", str(space), "--json")
    findings = {finding["subject"]: finding["level"] for finding in json.loads(out)["findings"]}
    assert code == 2
    assert findings["model"] == "error"
    assert findings["resources"] == "error"
    assert findings["dataset.train"] == "ok"
    assert findings["space.losses: discopop"] == "warning"


def test_doctor_reports_what_is_left_out_cut_or_repeated(tmp_path, monkeypatch, capsys):
    train = toy.write_pairs(tmp_path / "train.jsonl", 40)
    rows = train.read_text().splitlines(keepends=True)
    train.write_text("".join([*rows, rows[0], json.dumps(LONG_PAIR)]))
    held_out = toy.write_pairs(tmp_path / "eval.jsonl", 40, seed=1)
    held_out.write_text(held_out.read_text() + rows[3])
    space = tmp_path / "space.yaml"
    space.write_text(as_yaml_text(toy.document(toy.write_model(tmp_path / "model"), train, held_out)))
    code, out, _ = run(monkeypatch, capsys, "doctor", str(space), "--json")
    found = {f["text"]: f["level"] for f in json.loads(out)["findings"] if f["subject"] == "dataset"}
    assert code == 0
    assert found == {
        "dataset.train: 1 of 42 pairs (row 42 (line 42)) are truncated to training.max_length=64 tokens": "warning",
        (
            "dataset.train: 1 of 42 pairs (row 41 (line 41)) repeat an earlier one, so they count more than once"
        ): "warning",
        "dataset.eval: left out 1 of 41 pairs (row 41 (line 41)), whose prompts are trained on": "warning",
        "42 pairs to train on, 40 held out": "ok",
    }


def test_what_was_left_out_is_no_part_of_the_prepared_search(document, tmp_path):
    toy.write_model(tmp_path / "model")
    bad_rows(tmp_path / "train.jsonl", "{broken")
    bad_rows(tmp_path / "eval.jsonl", LONG_PAIR)
    document["dataset"] |= {"bad_rows": "drop", "long_pairs": "drop"}
    document["training"] |= {"max_steps": None, "num_train_epochs": 1}
    prepared = prepare(parse_config(document, source="test"), SearchPlace(tmp_path / "runs"))
    assert (len(prepared.pairs.train), len(prepared.pairs.eval), prepared.steps) == (40, 40, 5)
    assert [note.split(":")[0] for note in prepared.notes] == ["dataset.train", "dataset.eval"]
    assert not (tmp_path / "runs").exists()


REWARD = "def words(prompts, completions):\n    return [len(text.split()) for text in completions]\n"


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ({"prompts": 41}, r"completions\.prompts: dataset\.eval .* has 40 and prompts is 41; lower it"),
        ({"reward": "own_words:wrds"}, r"completions\.reward: .*own_words must have a function wrds.*words"),
        ({"reward": "nowhere/at/all"}, r"completions\.reward: reward 'nowhere/at/all'.*a reward is `vader`"),
        ({"max_new_tokens": 256}, r"completions\.max_new_tokens: .*the model's 256 positions.*lower it"),
    ],
)
def test_completions_that_cannot_be_had_are_refused_before_a_search(
    document, tmp_path, monkeypatch, completions, message
):
    toy.write_model(tmp_path / "model")
    (tmp_path / "own_words.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config(document | {"completions": completions}, source="test")
    with pytest.raises(InputError, match=message):
        prepare(config, SearchPlace(tmp_path / "runs"))


def test_a_search_whose_reward_has_changed_is_not_resumed(document, tmp_path, monkeypatch):
    toy.write_model(tmp_path / "model")
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config(document | {"completions": {"reward": "own_worth:words"}}, source="test")
    place = SearchPlace(tmp_path / "runs")
    place.folder(config.name).mkdir(parents=True)
    for content in (REWARD, REWARD):
        (tmp_path / "own_worth.py").write_text(content)
        prepare(config, place).open_study().close()
    (tmp_path / "own_worth.py").write_text(REWARD.replace("len(", "-len("))
    with pytest.raises(InputError, match=r"started with other settings(.|\n)*reward_hash\.reward: was"):
        prepare(config, place).open_study()


def test_only_the_first_prompts_that_differ_are_completed(document, tmp_path):
    toy.write_model(tmp_path / "model")
    pairs = [*toy.pairs(2, seed=7)[:1] * 2, *toy.pairs(40, seed=8)]
    pairs[1] = pairs[1] | {"rejected": " dull"}
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = parse_config(document | {"completions": {"prompts": 3}}, source="test")
    completer = prepare(config, SearchPlace(tmp_path / "runs")).completer
    assert completer is not None
    assert [*completer.prompts] == [pairs[index]["prompt"] for index in (0, 2, 3)]


def test_a_search_that_does_not_exist_has_no_status(tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "status", "nothing", "--storage", str(tmp_path))
    assert code == 2
    assert "nothing" in err


def test_the_losses_are_listed_with_their_fields(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "losses", "--json")
    listed = {loss["name"]: loss["fields"] for loss in json.loads(out)}
    assert code == 0
    assert list(listed) == list(LOSSES)
    assert listed["discopop"]["tau"] == 0.05
    assert "beta_mix" not in listed["dpo"]
