"""`losses show` and what `doctor` says of losses, as a person and a script see them."""

import json
import re
from pathlib import Path

import pytest
import toy

from tune_dlrml.cli.main import main
from tune_dlrml.config.yaml_text import as_yaml_text

KEYS = {"c", "starts", "trap", "barrier", "bounded", "safe_c", "overflow"}
OWN = """import torch


def soft(pairs, *, beta, alpha):
    return torch.nn.functional.softplus(alpha - beta * pairs.margin_B)
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in a folder of its own; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tune-dlrml", *argv])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_show_gives_one_document_and_a_picture_where_it_is_asked_for(run, tmp_path):
    argv = ("losses", "show", "dlrml", "--set", "beta_kl=0.05", "--set", "beta_mix=0.2", "--json")
    code, out, _ = run(*argv)
    document = json.loads(out)
    assert code == 0
    assert document.keys() >= KEYS
    assert document["picture"] is None
    assert document["loss"]["beta_mix"] == 0.2
    code, out, _ = run(*argv, "--out", "pictures/mine.png")
    assert json.loads(out) == {**document, "picture": "pictures/mine.png"}
    assert Path(tmp_path, "pictures/mine.png").read_bytes().startswith(b"\x89PNG")


def test_the_list_says_which_losses_take_which_option(run):
    code, out, _ = run("losses")
    assert code == 0
    said = re.sub(r"\s+", " ", out.partition("Beside its own fields a loss takes:")[2])
    assert "sft (every loss) ld_alpha (all but simpo, cpo, orpo, slic, alphapo, simper) " in said
    assert "weighting (all but aot, aot_unpaired) f_divergence (dpo, " in said
    assert "Not here: tr_dpo, because its reference follows the policy" in said


def test_a_published_method_that_is_no_loss_here_says_why(run):
    code, _, err = run("losses", "show", "tr_dpo")
    assert code != 0
    assert "tr_dpo is not here, because its reference follows the policy" in re.sub(r"\s+", " ", err)


def test_a_person_reads_a_table_and_the_path_of_the_picture(run, tmp_path):
    code, out, _ = run("losses", "show", "discopop", "--set", "beta=0.05")
    assert code == 0
    for words in ("above the safe band 1 to 9.109", "starts wrong", "-2.37", "+1.44", "bounded", "below -1774 nats"):
        assert words in out
    assert "picture: discopop.png" in out
    assert (tmp_path / "discopop.png").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["dlrm"], "did you mean dlrml\\? allowed: dpo, discopop"),
        (["dpo", "--set", "betta=0.1"], "--set betta: is not a key of this section \\(did you mean beta"),
        (["dpo", "--set", "beta=-1"], "--set beta: input should be greater than 0, but got -1"),
        (["dpo", "--set", "beta={uniform: [0.1, 0.2]}"], "--set beta: one value is drawn"),
        (["dpo", "--set", "beta"], "must be dotted.key=value"),
        (["dpo", "--set", "name=dlrml"], "--set name"),
        (["dlrml"], "exactly one of `c` and `beta_mix` must be given"),
        (["custom"], "function: must be given"),
        (["custom", "--set", "function=nowhere_at_all:f"], "there is no module 'nowhere_at_all'"),
        (["dpo", "--out", "/proc/no/picture.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_is_allowed(run, argv, says):
    code, out, err = run("losses", "show", *argv)
    assert code == 2
    assert re.search(says, err), err
    assert "Traceback" not in err + out


def test_a_loss_of_ones_own_is_shown_too(run, tmp_path):
    (tmp_path / "shown_losses.py").write_text(OWN)
    settings = ["function=shown_losses:soft", "params.beta=0.1", "params.alpha=1"]
    code, out, _ = run("losses", "show", "custom", "--json", *(x for each in settings for x in ("--set", each)))
    document = json.loads(out)
    assert code == 0
    assert (document["starts"], document["bounded"], document["c"]) == ("right", True, None)


def test_the_list_is_there_without_a_command(run):
    code, out, _ = run("losses", "--json")
    assert code == 0
    assert {document["name"] for document in json.loads(out)} >= {"dpo", "dlrml", "custom"}


def space_of(tmp_path, losses):
    train = toy.write_pairs(tmp_path / "train.jsonl", 40)
    held_out = toy.write_pairs(tmp_path / "eval.jsonl", 40, seed=1)
    document = toy.document(toy.write_model(tmp_path / "model"), train, held_out)
    document["space"] = {"losses": losses}
    (tmp_path / "space.yaml").write_text(as_yaml_text(document))
    return str(tmp_path / "space.yaml")


def test_doctor_draws_the_box_of_each_loss(run, tmp_path):
    box = {"beta_kl": {"log_uniform": [0.01, 0.5]}, "beta_mix": {"log_uniform": [0.05, 0.5]}}
    space = space_of(tmp_path, [{"name": "dlrml", **box}, {"name": "dpo"}])
    code, out, _ = run("doctor", space, "--json")
    document = json.loads(out)
    boxes = {box["branch"]: box for box in document["loss_boxes"]}
    assert code == 0
    assert boxes["dlrml"]["uphill"] == pytest.approx(0.86, abs=0.005)
    assert boxes["dpo"]["uphill"] == boxes["dpo"]["trapped"] == 0
    said = {f["subject"]: f for f in document["findings"]}["space.losses: dlrml"]
    assert said.keys() == {"subject", "level", "text"}
    assert said["level"] == "warning"
    assert "86 % of its box starts uphill" in said["text"]
    assert "beta_mix/beta_kl within 0.05..0.455 at tau 0.05" in said["text"]
    code, out, _ = run("doctor", space)
    assert code == 0
    assert re.search(r"dlrml .*86 %", out)


def test_doctor_describes_a_loss_of_ones_own_and_refuses_one_that_cannot_train(run, tmp_path):
    (tmp_path / "doctor_losses.py").write_text(f"{OWN}\n\ndef mean(pairs):\n    return pairs.margin_B.mean()\n")
    own = {"name": "custom", "function": "doctor_losses:soft"}
    params = {"beta": {"log_uniform": [0.01, 0.5]}, "alpha": {"uniform": [0, 2]}}
    space = space_of(tmp_path, [{**own, "params": params}])
    code, out, _ = run("doctor", space, "--json")
    found = [f for f in json.loads(out)["findings"] if f["subject"].startswith("space.losses")]
    assert code == 0
    assert {f["level"] for f in found} == {"ok"}
    assert any("starts downhill" in f["text"] for f in found)
    space = space_of(tmp_path, [{"name": "dpo"}, {"name": "custom", "function": "doctor_losses:mean"}])
    code, out, _ = run("doctor", space, "--json")
    errors = {f["subject"]: f["text"] for f in json.loads(out)["findings"] if f["level"] == "error"}
    assert code == 2
    assert "one loss per pair" in errors["space.losses[1].function"]
