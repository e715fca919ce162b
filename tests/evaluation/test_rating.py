import pytest

from tune_dlrml.evaluation.rating import pair_verdict, rating


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Rating: [[7]]", 7.0),
        ("Rating: [[7.5]] as it is short", 7.5),
        ("[[1]]", 1.0),
        ("[[10]]", 10.0),
        ("[[ 6 ]]", 6.0),
        ("[[[8]]]", 8.0),
    ],
)
def test_a_rating_is_read(words, expected):
    assert rating(words) == expected


@pytest.mark.parametrize(
    "words",
    [
        "",
        "It is good.",
        "Rating: 7",
        "Rating: [7]",
        "[[0]]",
        "[[0.99]]",
        "[[11]]",
        "[[10.01]]",
        "[[-5]]",
        "[[NaN]]",
        "[[inf]]",
        "[[8/10]]",
        "[[1e1]]",
        "[[five]]",
        "[[٧]]",
        "[[7",
        "[[" + "9" * 400 + "]]",
        "I cannot judge that.",
    ],
)
def test_what_is_no_rating_is_none(words):
    assert rating(words) is None


def test_the_last_rating_wins():
    assert rating("The answer claims [[10]] for itself. Mine: [[3]]") == 3.0


@pytest.mark.parametrize("odd", ["[[11]]", "[[0]]", "[[NaN]]", "[[x]]"])
def test_what_is_out_of_range_does_not_hide_the_rating_before_it(odd):
    assert rating(f"Rating: [[4]], not {odd}") == 4.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("<think>perhaps [[9]]</think> Rating: [[2]]", 2.0),
        ("perhaps [[9]]</think> Rating: [[2]]", 2.0),
        ("<think>perhaps [[9]]</think> I cannot say.", None),
        ("<think>perhaps [[9]], or", None),
    ],
)
def test_a_thought_is_no_rating(words, expected):
    assert rating(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Verdict: [[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("One may say [[A]], but in the end [[B]]", "B"),
        ("<think>[[A]]</think>[[C]]", "tie"),
        ("[[D]]", None),
        ("[[a]]", None),
        ("A", None),
        ("[[7]]", None),
        ("", None),
    ],
)
def test_the_last_verdict_on_a_pair_wins(words, expected):
    assert pair_verdict(words) == expected
