import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import UserError
from tests.helpers import write_study
from trainer.study import answers, dealing
from trainer.study.answers import Answers


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path, 4)


@pytest.fixture
def kept(tmp_path, study):
    return Answers(str(tmp_path), study)


def test_a_participant_is_dealt_their_cards_once(study, kept):
    for _ in range(2):
        kept.enter("one")
    kept.enter("two")
    for number, participant in enumerate(("one", "two")):
        trials = kept.of(participant)
        assert [(trial.participant, trial.position) for trial in trials] == [(number, place) for place in range(4)]
        assert [(trial.picture, trial.predicted) for trial in trials] == dealing.deal(study.seed, number, 4)
        assert {(trial.taken_for_real, trial.seconds) for trial in trials} == {(None, None)}
    assert kept.of("three") == []
    assert kept.all() == [*kept.of("one"), *kept.of("two")]


def test_the_first_answer_counts_and_only_to_what_was_shown(kept):
    kept.enter("one")
    first, second, *_ = kept.of("one")
    assert not kept.answer(first, True, None)
    assert kept.of("one")[0].taken_for_real is None
    kept.show(first)
    for taken_for_real in (True, False):
        assert kept.answer(first, taken_for_real, None)
    kept.show(second)
    assert kept.answer(second, False, None)
    assert [trial.taken_for_real for trial in kept.of("one")] == [True, False, None, None]


def test_seconds_are_the_browsers_where_they_can_be(kept, monkeypatch):
    """Nobody looks at a picture for longer than it was there."""
    kept.enter("one")
    clock = 1000.0
    monkeypatch.setattr(time, "time", lambda: clock)
    for trial, said in zip(kept.of("one"), (1.5, 2.5, None, float("nan")), strict=True):
        kept.show(trial)
        clock += 1.0
        kept.show(trial)  # once more: the first time counts
        clock += 1.0
        kept.answer(trial, True, said)
    assert [trial.seconds for trial in kept.of("one")] == [1.5, 2.0, 2.0, 2.0]


def test_many_at_once_lose_nothing(study, kept):
    """Twenty participants on eight threads, each of whom says everything twice."""

    def take_part(name):
        for _ in range(2):
            kept.enter(name)
        for trial in kept.of(name):
            for taken_for_real in (True, False):
                kept.show(trial)
                kept.answer(trial, taken_for_real, 0.0)

    names = [f"{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take_part, names))
    trials = kept.all()
    assert len(trials) == 20 * 4
    assert all(trial.taken_for_real for trial in trials)
    for picture in range(4):
        assert sum(trial.predicted for trial in trials if trial.picture == picture) == 10


def test_a_failure_leaves_no_half_of_a_participant(kept, monkeypatch):
    monkeypatch.setattr(dealing, "deal", lambda *_: [(0, True), (0, False)])  # the same picture twice
    with pytest.raises(sqlite3.IntegrityError):
        kept.enter("one")
    monkeypatch.undo()
    kept.enter("one")
    assert len(kept.of("one")) == 4


def test_what_is_there_already_is_kept_and_what_is_no_database_refused(tmp_path, study, kept):
    kept.enter("one")
    assert Answers(str(tmp_path), study).all() == kept.all()
    with contextlib.closing(sqlite3.connect(tmp_path / answers.FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (tmp_path / answers.FILE_NAME).write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="answers.sqlite cannot be read or written: file is not a database"):
        Answers(str(tmp_path), study)
