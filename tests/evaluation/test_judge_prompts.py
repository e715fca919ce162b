"""What judges are told: which prompts a file must hold, and how they are filled in."""

import json
import re

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.judges.prompts import PAIR, SINGLE, JudgePrompt, PromptName, load_judge_prompts
from tune_dlrml.evaluation.records import Answers, Question

QUESTION = Question(1, "math", ("2 + 2?", "And 3 more?"), ("4", "7"))
OURS, BASELINE = Answers(1, ("four", "seven")), Answers(1, ("five", "eight"))
FASTCHATS_NAMES = [
    "single-v1",
    "single-math-v1",
    "single-v1-multi-turn",
    "single-math-v1-multi-turn",
    "pair-v2",
    "pair-math-v1",
    "pair-v2-multi-turn",
    "pair-math-v1-multi-turn",
]
LINES = {
    "single-v1": "{question} {answer}",
    "single-math-v1": "{question} {ref_answer_1} {answer}",
    "single-v1-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}",
    "single-math-v1-multi-turn": "{ref_answer_1} {ref_answer_2} {answer_1} {answer_2}",
}


def write(path, templates=LINES, **fields):
    rows = [
        {"name": name, "system_prompt": f"system of {name}", "prompt_template": template} | fields
        for name, template in templates.items()
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def refusal(source, **arguments):
    with pytest.raises(InputError) as caught:
        load_judge_prompts(source, **arguments)
    return str(caught.value)


def test_the_names_are_fastchats():
    assert [str(name) for name in SINGLE + PAIR] == FASTCHATS_NAMES


def test_the_built_in_file_holds_every_prompt_and_shows_all_that_belongs_to_it():
    prompts = load_judge_prompts("builtin:mt-bench", needed=SINGLE + PAIR)
    assert [str(name) for name in prompts] == FASTCHATS_NAMES
    for name, prompt in prompts.items():
        assert set(re.findall(r"{(\w+)}", prompt.template)) == name.placeholders
        verdicts = re.findall(r"\[\[(\w+)\]\]", prompt.system)
        assert verdicts == (["5"] if name.kind == "rating" else ["A", "B", "C"])


@pytest.mark.parametrize(
    ("name", "answers", "filled"),
    [
        ("single-v1", (OURS,), "2 + 2? four"),
        ("single-math-v1", (OURS,), "2 + 2? 4 four"),
        ("single-v1-multi-turn", (OURS,), "2 + 2? four And 3 more? seven"),
        ("single-math-v1-multi-turn", (OURS,), "4 7 four seven"),
    ],
)
def test_a_template_is_filled_with_the_texts_of_its_turn(tmp_path, name, answers, filled):
    prompts = load_judge_prompts(write(tmp_path / "p.jsonl"))
    (prompt,) = (prompt for key, prompt in prompts.items() if str(key) == name)
    system, user = prompt.messages(QUESTION, *answers)
    assert system == {"role": "system", "content": f"system of {name}"}
    assert user == {"role": "user", "content": filled}


def test_a_pair_is_filled_in_the_order_in_which_the_answers_are_given():
    first = JudgePrompt(PromptName("pair", False, 1), "", "{answer_a}|{answer_b}")
    second = JudgePrompt(PromptName("pair", False, 2), "", "{answer_a_1}|{answer_a_2}|{answer_b_1}|{answer_b_2}")
    assert first.messages(QUESTION, BASELINE, OURS)[-1]["content"] == "five|four"
    assert second.messages(QUESTION, OURS, BASELINE)[-1]["content"] == "four|seven|five|eight"


def test_an_empty_system_prompt_is_no_message():
    prompt = JudgePrompt(PromptName("rating", False, 1), "", "{answer}")
    assert prompt.messages(QUESTION, OURS) == ({"role": "user", "content": "four"},)


def test_braces_in_questions_and_answers_stay_as_they_are():
    braces = "{answer} {0} {{}} } { {question!r:>9} %s"
    question = Question(1, "coding", (braces,), (braces,))
    prompt = JudgePrompt(PromptName("rating", True, 1), "{answer}", "{{{question}}}|{ref_answer_1}|{answer}")
    system, user = prompt.messages(question, Answers(1, (braces,)))
    assert user["content"] == "{" + braces + "}|" + braces + "|" + braces
    assert system["content"] == "{answer}"


def test_prompts_that_are_not_needed_are_not_looked_at(tmp_path):
    path = write(tmp_path / "p.jsonl", LINES | {"pair-v2": "{nonsense", "own": "{x}"})
    assert [str(name) for name in load_judge_prompts(path)] == list(LINES)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{question} {answers}", "got {answers}"),
        ("{question} {answer} {ref_answer_1}", "got {ref_answer_1}"),
        ("{answer} {}", "got {}"),
        ("{answer} {0}", "got {0}"),
        ("{answer.__class__} {answer}", "got {answer.__class__}"),
        ("{answer!r}", "one with a format"),
        ("{answer:>1000000000}", "one with a format"),
        ("{answer", "a brace that is meant as such is doubled"),
        ("{answer} }", "a brace that is meant as such is doubled"),
        ("{question}", "lacks {answer}"),
        ("", "`prompt_template`"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_refused_with_file_and_line(tmp_path, template, said):
    path = write(tmp_path / "p.jsonl", LINES | {"single-v1": template})
    message = refusal(path)
    assert message.startswith(f"{path}, line 1: ")
    assert said in message


def test_the_second_answer_must_be_shown_where_it_is_judged(tmp_path):
    path = write(tmp_path / "p.jsonl", LINES | {"single-v1-multi-turn": "{question_2} {answer_1}"})
    assert "lacks {answer_2}" in refusal(path)


def test_a_prompt_for_another_form_of_verdict_is_refused(tmp_path):
    path = write(tmp_path / "p.jsonl", output_format="[[rating_a,rating_b]]")
    assert "must be '[[rating]]', got '[[rating_a,rating_b]]'" in refusal(path)


def test_missing_and_repeated_prompts_are_refused(tmp_path):
    path = write(tmp_path / "p.jsonl")
    assert "pair-math-v1-multi-turn is missing" in refusal(path, needed=SINGLE + PAIR)
    assert "No such file" in refusal(str(tmp_path / "absent.jsonl"))
    line = json.dumps({"name": "single-v1", "system_prompt": "", "prompt_template": "{answer}"})
    (tmp_path / "p.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert "line 2: every prompt must be in the file once" in refusal(path)
