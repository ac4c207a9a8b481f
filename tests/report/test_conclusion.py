"""The verdict in words."""

import pytest

from overhaul.core import Fact
from overhaul.report._conclusion import how_to_resume, read_conclusion, read_differences
from tests.report.sample_run import SENTENCES, sample_facts


def test_the_sentences_of_the_verdict_are_kept() -> None:
    conclusion = read_conclusion(sample_facts())
    assert (conclusion.word, list(conclusion.sentences)) == ("not proved", SENTENCES)


@pytest.mark.parametrize("word", ["proved", "not proved", "refuted"])
def test_without_sentences_they_are_made_from_the_differences(word: str) -> None:
    facts = [fact for fact in sample_facts() if fact.name != "verdict"]
    verdict = Fact(name="verdict", value=word, reason="no comparison with X: Y")
    conclusion = read_conclusion([*facts, verdict])
    assert conclusion.word == word
    assert conclusion.sentences[1] == (
        "Final against original on test: -0.56 points accuracy (95 % -1.94 to +0.83, n = 360): "
        "no gain shown."
    )
    assert conclusion.sentences[-1] == "no comparison with X: Y."


def test_an_unknown_word_is_passed_on() -> None:
    assert read_conclusion([Fact(name="verdict", value="open")]).sentences == (
        "The verdict is: open.",
    )


def test_an_unfinished_run_says_how_far_it_is() -> None:
    assert read_conclusion(sample_facts(finished=False)).sentences == (
        "This run has no verdict yet; 2 steps are finished, the last is '1 train'.",
    )
    assert "no step is finished" in read_conclusion([]).sentences[0]
    assert "-o runs/first" in how_to_resume("runs/first")


def test_differences_as_text() -> None:
    original, control = read_differences(sample_facts())
    assert (original.value, original.interval) == ("-0.56 points", "-1.94 to +0.83")
    assert (original.max_drop, original.p_value, original.n) == ("1.00 points", "0.727", "360")
    assert (control.reference, control.verdict, control.max_drop) == ("control", "-", "-")


def test_a_difference_without_anything() -> None:
    (difference,) = read_differences([Fact(name="difference", value=None, reason="no metric")])
    assert (difference.value, difference.interval, difference.n) == ("-", "-", "-")
    assert (difference.reference, difference.reason) == ("original", "no metric")
