"""The answers of a study's participants, in SQLite."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import UserError, one_line
from trainer.study import dealing
from trainer.study.manifest import Study

FILE_NAME = "answers.sqlite"
_PATIENCE = 10.0  # seconds that one writer waits for others
_TABLES = """
CREATE TABLE IF NOT EXISTS participants (
    number INTEGER PRIMARY KEY,  -- from 0
    id TEXT NOT NULL UNIQUE      -- of the cookie
);
CREATE TABLE IF NOT EXISTS trials (
    participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL,   -- from 0, in the participant's order
    picture INTEGER NOT NULL,    -- from 0, in the study's
    predicted INTEGER NOT NULL,  -- whether its colors were the model's
    shown REAL,                  -- when it was first, in seconds since 1970
    taken_for_real INTEGER,      -- the answer
    server_seconds REAL,         -- from `shown` to the answer, with the way there and back
    browser_seconds REAL,        -- from when the picture was seen, by the page's script
    PRIMARY KEY (participant, position),
    UNIQUE (participant, picture)
);
"""


class Trial(NamedTuple):
    """One picture before one participant.

    Attributes:
        participant: their number, from 0.
        position: in their order, from 0.
        picture: in the study, from 0.
        predicted: whether its colors are the model's.
        taken_for_real: their answer; None where there is none yet.
        seconds: that they took, by their browser if it said so, else by the server; None without an answer.
    """

    participant: int
    position: int
    picture: int
    predicted: bool
    taken_for_real: bool | None
    seconds: float | None


class Answers:
    """What a study's participants were dealt, and what they answered; for any number of threads and processes.

    Args:
        folder: of the study.
        study: what it shows.

    Raises:
        UserError: the file cannot be made or read.
    """

    def __init__(self, folder: str, study: Study):
        self._path = os.path.join(folder, FILE_NAME)
        self._study = study
        try:
            with self._open() as connection:
                connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise UserError(
                f"{self._path} cannot be read or written: {one_line(error)}; look at the folder's permissions and room"
            ) from error

    def enter(self, participant: str) -> None:
        """Deals a new participant their pictures; one who is known keeps theirs.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        with self._transaction() as connection:
            (number,) = connection.execute("SELECT COUNT(*) FROM participants").fetchone()
            if connection.execute("INSERT OR IGNORE INTO participants VALUES (?, ?)", [number, participant]).rowcount:
                cards = dealing.deal(self._study.seed, number, len(self._study.pairs))
                connection.executemany(
                    "INSERT INTO trials (participant, position, picture, predicted) VALUES (?, ?, ?, ?)",
                    [(number, position, *card) for position, card in enumerate(cards)],
                )

    def of(self, participant: str) -> list[Trial]:
        """The trials of a participant, in their order; none of one who is not known.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        return self._trials("JOIN participants ON participant = number WHERE id = ? ORDER BY position", participant)

    def all(self) -> list[Trial]:
        """The trials of all participants.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        return self._trials("ORDER BY participant, position")

    def show(self, trial: Trial) -> None:
        """Notes that a participant sees a picture; the first time counts.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE trials SET shown = ? WHERE participant = ? AND position = ? AND shown IS NULL",
                [time.time(), trial.participant, trial.position],
            )

    def answer(self, trial: Trial, taken_for_real: bool, browser_seconds: float | None) -> bool:
        """Keeps an answer; the first one to a picture counts.

        Args:
            trial: to what.
            taken_for_real: the answer.
            browser_seconds: how long it took, as the browser says; more than passed since the picture was first shown
                cannot be, and is not kept.

        Returns:
            Whether the picture was shown before.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        own = [trial.participant, trial.position]
        with self._transaction() as connection:
            (shown,) = connection.execute(
                "SELECT shown FROM trials WHERE participant = ? AND position = ?", own
            ).fetchone()
            if shown is None:
                return False
            seconds = max(0.0, time.time() - shown)
            plausible = browser_seconds is not None and 0 <= browser_seconds <= seconds
            connection.execute(
                "UPDATE trials SET taken_for_real = ?, server_seconds = ?, browser_seconds = ? "
                "WHERE participant = ? AND position = ? AND taken_for_real IS NULL",
                [taken_for_real, seconds, browser_seconds if plausible else None, *own],
            )
        return True

    def _trials(self, which: str, *values: str) -> list[Trial]:
        with self._open() as connection:
            rows = connection.execute(
                "SELECT participant, position, picture, predicted, taken_for_real, "
                f"COALESCE(browser_seconds, server_seconds) FROM trials {which}",
                values,
            ).fetchall()
        return [
            Trial(participant, position, picture, bool(predicted), None if real is None else bool(real), seconds)
            for participant, position, picture, predicted, real, seconds in rows
        ]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread's own, without transactions that nobody asked for."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)) as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing; one block at a time."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection
