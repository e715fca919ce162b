"""The length-controlled win rate: a known truth is found again, alpaca_eval's number is met, other data are refused."""

import csv
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.alpaca_eval.annotations import Annotation, read_annotations, win_rate, write_annotations
from tune_dlrml.evaluation.alpaca_eval.length_controlled import length_controlled_win_rate
from tune_dlrml.evaluation.alpaca_eval.side_files import SideFiles, load_side_files

INSTRUCTIONS = 120
LENGTH, DIFFICULTY, MODEL = -2.0, 0.8, 0.4
"""Coefficients of the made judge, who likes length: the difference is the baseline's length minus the model's."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_side_files(folder, rng, difficulty):
    """Gamed rows of the made judge, to whom a gamed baseline differs from the baseline in length alone."""
    write_csv(
        folder / "instruction_difficulty.csv",
        [{"": index, "instruction_difficulty": value} for index, value in enumerate(difficulty)],
    )
    gamed = []
    for model, longer in (("verbose", -1), ("concise", 1)):
        for index, value in enumerate(difficulty):
            length = longer * rng.uniform(0, 2)
            gamed.append(
                {
                    "preference": sigmoid(LENGTH * np.tanh(length) + DIFFICULTY * value),
                    "index": index,
                    "std_delta_len": length,
                    "instruction_difficulty": value,
                    "not_gamed_baseline": False,
                    "model": model,
                }
            )
    gamed[3]["preference"] = ""
    write_csv(folder / "df_gamed.csv", gamed)


def made_annotations(rng, difficulty):
    """A model that mostly writes more than the baseline, as the made judge sees it."""
    lengths = [(rng.randint(50, 150), rng.randint(80, 300)) for _ in difficulty]
    differences = np.array([one - two for one, two in lengths], dtype=float)
    wins = sigmoid(LENGTH * np.tanh(differences / differences.std(ddof=1)) + DIFFICULTY * difficulty + MODEL)
    return [
        Annotation(f"instruction {index}", "x" * one, "y" * two, "baseline", "model", "judge", float(1 + win))
        for index, ((one, two), win) in enumerate(zip(lengths, wins, strict=True))
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = random.Random(7)
    folder = tmp_path_factory.mktemp("alpaca_eval")
    difficulty = np.array([rng.gauss(0, 1) for _ in range(INSTRUCTIONS)])
    write_side_files(folder, rng, difficulty)
    annotations = made_annotations(rng, difficulty)
    rows = [{"instruction": row.instruction, "output": row.output_1, "generator": "b"} for row in annotations]
    (folder / "alpaca_eval.json").write_text(json.dumps(rows))
    return SimpleNamespace(
        folder=folder, difficulty=difficulty, annotations=annotations, side_files=load_side_files(str(folder))
    )


def test_the_truth_behind_made_preferences_is_found_again(made):
    found = length_controlled_win_rate(made.annotations, made.side_files)
    at_equal_length = sigmoid(DIFFICULTY * made.difficulty + MODEL)
    assert found.win_rate == pytest.approx(100 * at_equal_length.mean(), abs=0.1)
    assert found.standard_error == pytest.approx(100 * at_equal_length.std(ddof=1) / INSTRUCTIONS**0.5, abs=0.05)
    assert (found.length, found.difficulty, found.model) == pytest.approx((LENGTH, DIFFICULTY, MODEL), abs=0.02)
    assert win_rate(made.annotations).win_rate > found.win_rate + 10, "the made judge likes length"


def test_a_model_that_only_writes_more_wins_half_at_equal_length(made):
    length = np.array([len(row.output_1) - len(row.output_2) for row in made.annotations], dtype=float)
    wins = sigmoid(LENGTH * np.tanh(length / length.std(ddof=1)))
    annotations = [replace(row, preference=float(1 + win)) for row, win in zip(made.annotations, wins, strict=True)]
    gamed = tuple(
        replace(row, preference=float(sigmoid(LENGTH * np.tanh(row.std_delta_len))), instruction_difficulty=0.0)
        for row in made.side_files.gamed
    )
    easy = SideFiles(gamed, (0.0,) * INSTRUCTIONS)
    assert length_controlled_win_rate(annotations, easy).win_rate == pytest.approx(50, abs=0.2)


def test_the_order_of_the_annotations_does_not_matter_where_the_instructions_are_known(made):
    shuffled = random.Random(0).sample(made.annotations, INSTRUCTIONS)
    expected = length_controlled_win_rate(made.annotations, made.side_files)
    assert length_controlled_win_rate(shuffled, made.side_files) == expected


def test_annotations_without_a_preference_are_predicted_but_not_fitted(made):
    some = [replace(row, preference=None) if index % 10 == 0 else row for index, row in enumerate(made.annotations)]
    found = length_controlled_win_rate(some, made.side_files)
    assert found.win_rate == pytest.approx(100 * sigmoid(DIFFICULTY * made.difficulty + MODEL).mean(), abs=0.1)


def test_the_baseline_against_itself_is_half(made):
    itself = [replace(row, generator_2=row.generator_1) for row in made.annotations]
    assert length_controlled_win_rate(itself, made.side_files).win_rate == 50


def test_a_fit_leaves_the_settings_of_scikit_learn_alone(made):
    import sklearn

    before = sklearn.get_config()
    length_controlled_win_rate(made.annotations, made.side_files)
    assert sklearn.get_config() == before


REFUSED = {
    "too few": (lambda rows: rows[:-1], "for the whole AlpacaEval instruction set only.* 120 instructions, but 119"),
    "another instruction": (lambda rows: [replace(rows[0], instruction="mine"), *rows[1:]], "1 are lacking"),
    "an instruction twice": (lambda rows: [rows[1], *rows[1:]], "such as 'instruction 0'"),
    "two models": (lambda rows: [replace(rows[0], generator_2="other"), *rows[1:]], "generator_2 has 2 values"),
    "two judges": (lambda rows: [replace(rows[0], annotator="other"), *rows[1:]], "annotator has 2 values"),
    "no preference": (lambda rows: [replace(row, preference=None) for row in rows], "0 of 120 have one"),
    "no annotation": (lambda rows: [], "no annotation is given"),
    "equal lengths": (
        lambda rows: [replace(row, output_1="", output_2="") for row in rows],
        "no length to control for",
    ),
}


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_other_annotations_are_refused(made, change, says):
    with pytest.raises(InputError, match=says):
        length_controlled_win_rate(change(made.annotations), made.side_files)


def copy(made, folder):
    for path in made.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_without_the_instructions_the_order_counts_and_is_said_to(made, tmp_path, caplog):
    (copy(made, tmp_path) / "alpaca_eval.json").unlink()
    side_files = load_side_files(str(tmp_path))
    assert "known by their order only" in caplog.text
    expected = length_controlled_win_rate(made.annotations, made.side_files)
    assert length_controlled_win_rate(made.annotations, side_files) == expected


@pytest.mark.parametrize("name", ["df_gamed.csv", "instruction_difficulty.csv"])
def test_without_a_side_file_there_is_no_number(made, tmp_path, name):
    (copy(made, tmp_path) / name).unlink()
    with pytest.raises(InputError, match=f"there is no {name}"):
        load_side_files(str(tmp_path))


def test_neither_a_folder_nor_a_hub_id_is_refused():
    with pytest.raises(InputError, match="no hub id"):
        load_side_files("nowhere")


def test_a_hub_that_cannot_be_reached_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(InputError, match=r"df_gamed.csv is not in the local hub cache, and the hub cannot be reached"):
        load_side_files("nobody/nothing-of-this-name")


def test_side_files_in_the_hub_cache_need_no_hub(made, monkeypatch, caplog):
    def cached(_, name, **__):
        return str(made.folder / name) if name.endswith(".csv") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert load_side_files("nobody/nothing-of-this-name") == replace(made.side_files, instructions=None)
    assert "alpaca_eval.json is not in the local hub cache" in caplog.text


def test_files_of_a_hub_data_set_are_loaded(made, monkeypatch):
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options["repo_type"], options["revision"]))
        return str(made.folder / ("alpaca_eval.json" if name == "alpaca_eval_gpt4_baseline.json" else name))

    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_side_files("nobody/nothing-of-this-name@v1") == made.side_files
    assert asked[0] == ("nobody/nothing-of-this-name", "df_gamed.csv", "dataset", "v1")


EDITS = {
    "gamed rows of other instructions": ("df_gamed.csv", ",119,", ",120,", r"must hold rows of the instructions"),
    "no number": (
        "instruction_difficulty.csv",
        "\n5,",
        "\n5,x",
        r"instruction_difficulty.csv, line 7: instruction_diff",
    ),
    "a position between two": ("instruction_difficulty.csv", "\n5,", "\n5.5,", r"line 7: first column: must be a pos"),
    "a position twice": ("instruction_difficulty.csv", "\n5,", "\n4,", r"line 7: instruction 4 stands there twice"),
    "another column": ("df_gamed.csv", "std_delta_len", "length", r"line 2: column 'std_delta_len' is needed"),
    "rows of no gamed baseline": ("df_gamed.csv", "False", "True", r"line 2: not_gamed_baseline: must be False"),
    "no preference between 0 and 1": ("df_gamed.csv", "\n0.", "\n7.", r"preference: must lie between 0 and 1"),
}


@pytest.mark.parametrize(("name", "old", "new", "says"), EDITS.values(), ids=EDITS.keys())
def test_side_files_that_are_wrong_are_refused_by_file_and_line(made, tmp_path, name, old, new, says):
    path = copy(made, tmp_path) / name
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(InputError, match=says):
        load_side_files(str(tmp_path))


def test_instructions_of_another_set_are_refused(made, tmp_path):
    path = copy(made, tmp_path) / "alpaca_eval.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(InputError, match=r"as many instructions .* but has 119 against 120"):
        load_side_files(str(tmp_path))


def test_difficulties_of_two_releases_are_reported(made, tmp_path, caplog):
    path = copy(made, tmp_path) / "instruction_difficulty.csv"
    path.write_text(re.sub(r"\n5,.*", "\n5,1.5", path.read_text()))
    assert load_side_files(str(tmp_path)).fitted_difficulty() == list(made.difficulty)
    assert "differ in difficulty" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_the_number_is_that_of_alpaca_eval(made, tmp_path, monkeypatch, seed):
    pytest.importorskip("alpaca_eval", reason="alpaca_eval is not installed; it is compared with where it is")
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    path, rng = tmp_path / "annotations.json", random.Random(seed)
    write_annotations(path, made.annotations)
    rows = json.loads(path.read_text())
    for row in rows:
        noisy = min(2.0, max(1.0, row["preference"] + rng.gauss(0, 0.3)))
        row["preference"] = rng.choice([None, 0, 1.5, *[noisy] * 10])
    path.write_text(json.dumps(rows))
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **options: str(made.folder / options["filename"]))
    theirs = glm_winrate.get_length_controlled_winrate(pd.read_json(path), save_weights_dir=None)

    annotations = read_annotations(path)
    ours, raw = length_controlled_win_rate(annotations, made.side_files), win_rate(annotations)
    assert ours.win_rate == pytest.approx(theirs["length_controlled_winrate"], abs=1e-9)
    assert ours.standard_error == pytest.approx(theirs["lc_standard_error"], abs=1e-9)
    assert raw.win_rate == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert raw.standard_error == pytest.approx(theirs["standard_error"], abs=1e-9)
    counts = [theirs[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert [raw.wins, raw.losses, raw.ties, raw.scored] == counts
