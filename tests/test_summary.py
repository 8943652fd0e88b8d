import json

import numpy as np
import pytest

from pipeline.errors import UserError
from tests.helpers import write_study
from trainer.study import summary
from trainer.study.answers import Answers, Trial


@pytest.mark.parametrize(
    ("true", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(true, count, low, high):
    """Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    found = summary.wilson(true / count, count, 1.959964)
    assert [round(bound, 4) for bound in found] == [low, high]


class TestInterval:
    def test_worked_out_by_hand(self):
        """Four participants of one mind each, four pictures: 16 answers say as much as 16 / 3; t of 3 is 3.1824."""
        outcomes = np.repeat([True, True, False, False], 4)
        found = summary.interval(outcomes, np.repeat(range(4), 4), np.tile(range(4), 4))
        assert found.value == 0.5
        assert (found.low, found.high) == (pytest.approx(0.0953, abs=1e-4), pytest.approx(0.9047, abs=1e-4))

    def test_pictures_count_as_participants_do(self):
        outcomes = np.random.default_rng(0).random(60) < 0.4
        first, second = np.repeat(range(6), 10), np.tile(range(10), 6)
        assert summary.interval(outcomes, first, second) == summary.interval(outcomes, second, first)

    def test_answers_that_share_nothing_are_independent(self):
        numbers = np.arange(200)
        found = summary.interval(numbers < 50, numbers, numbers)
        assert (found.low, found.high) == pytest.approx(summary.wilson(0.25, 200, 1.971957), abs=1e-6)

    def test_all_alike_is_no_certainty(self):
        found = summary.interval(np.zeros(40, bool), np.repeat(range(4), 10), np.tile(range(10), 4))
        assert (found.value, found.low) == (0, 0)
        assert found.high == pytest.approx(1 / (1 + 40 / 3.18245**2), abs=1e-4)

    def test_one_participant_says_nearly_nothing_of_others(self):
        found = summary.interval(np.arange(20) < 10, np.zeros(20, int), np.arange(20))
        assert found.low < 0.05
        assert found.high > 0.95

    def test_holds_the_truth_as_often_as_it_says(self):
        """Of 400 studies of 40 participants and 12 pictures that differ among themselves."""
        generator = np.random.default_rng(1)
        truth = 0.4045  # mean of the logistic function of a normal variable: mean -0.5, variance 1.49; by quadrature
        held = independent = 0
        for _ in range(400):
            logit = generator.normal(0, 0.7, (40, 1)) + generator.normal(0, 1, 12) - 0.5
            participants, pictures = np.nonzero(generator.permuted(np.tile([True, False], (40, 6)), axis=1))
            outcomes = (generator.random((40, 12)) < 1 / (1 + np.exp(-logit)))[participants, pictures]
            found = summary.interval(outcomes, participants, pictures)
            held += found.low <= truth <= found.high
            low, high = summary.wilson(found.value, len(outcomes), 1.96)
            independent += low <= truth <= high
        assert 0.92 <= held / 400 <= 0.98
        assert independent / 400 < 0.75  # why it is not Wilson's alone


TRIALS = [
    Trial(0, 0, 2, True, True, 4.0),
    Trial(0, 1, 0, True, True, 2.0),
    Trial(0, 2, 1, False, True, 1.0),
    Trial(1, 0, 1, True, False, 9.0),
    Trial(1, 1, 0, False, False, 2.0),
    Trial(1, 2, 2, False, None, None),
    Trial(2, 0, 0, True, False, 5.0),
    Trial(2, 1, 1, True, None, None),
    Trial(3, 0, 0, False, None, None),
]


def test_figures_and_table(tmp_path):
    found = summary.compute(write_study(tmp_path, 3), TRIALS)
    assert (found.step, found.participants, found.finished) == (7, 3, 1)
    assert (found.predicted.answers, found.predicted.taken_for_real.value) == (4, 0.5)
    assert (found.predicted.median_seconds, found.real.median_seconds) == (4.5, 1.5)
    assert (found.real.answers, found.real.taken_for_real.value) == (2, 0.5)
    assert [(row.path, row.taken_for_real, row.answers) for row in found.pictures] == [
        ("2.jpg", 1, 1), ("0.jpg", 1, 2), ("1.jpg", 0, 1),
    ]  # fmt: skip
    low, high = found.predicted.taken_for_real.low, found.predicted.taken_for_real.high
    lines = summary.describe(found).splitlines()
    assert lines[0] == "3 participants, of whom 1 finished; all answers count"
    share = f"50.0% ({low:.1%} to {high:.1%})"
    assert lines[3] == f"predicted        4  {share:<36}4.5"
    assert lines[-3:] == ["  1 of 1  2.jpg", "  1 of 2  0.jpg", "  0 of 1  1.jpg"]


def test_of_many_pictures_those_that_fooled_most_and_least_are_named(tmp_path):
    """Each once, though there are fewer than twice as many."""
    trials = [Trial(number, 0, picture, True, number < picture, 1.0) for picture in range(8) for number in range(8)]
    text = summary.describe(summary.compute(write_study(tmp_path, 8), trials))
    most, least = text.split("fooled most\n")[1].split("\n\npredicted pictures that fooled least\n")
    assert most.splitlines() == [f"  {picture} of 8  {picture}.jpg" for picture in (7, 6, 5, 4, 3)]
    assert least.splitlines() == [f"  {picture} of 8  {picture}.jpg" for picture in (2, 1, 0)]


def test_written_for_a_page_to_read(tmp_path, capsys):
    kept = Answers(str(tmp_path), write_study(tmp_path, 2))
    kept.enter("one")
    for each in kept.of("one"):
        kept.show(each)
        kept.answer(each, each.predicted, 0.0)
    found = summary.summarize(str(tmp_path))
    assert "predicted        1  100.0%" in capsys.readouterr().out
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["predicted"]["taken_for_real"]["value"] == 1
    assert content["real"]["taken_for_real"]["value"] == 0
    assert content["predicted"]["taken_for_real"]["low"] == found.predicted.taken_for_real.low
    assert [row["taken_for_real"] for row in content["pictures"]] == [1]
    assert set(content["protocol"]) == {"answers", "interval", "seconds"}


def test_without_answers_there_is_no_summary(tmp_path):
    study = write_study(tmp_path, 2)
    for prepare in (lambda: None, lambda: Answers(str(tmp_path), study).enter("one")):
        prepare()
        with pytest.raises(UserError, match="has no answers yet"):
            summary.summarize(str(tmp_path))
    assert not (tmp_path / "summary.json").exists()


def test_only_real_ones_answered(tmp_path):
    found = summary.compute(
        write_study(tmp_path, 3), [Trial(0, 0, 1, False, True, 3.0), Trial(0, 1, 0, True, None, None)]
    )
    assert found.predicted is None
    assert found.pictures == ()
    assert "predicted        0" in summary.describe(found)
