"""What a study found: how many of the predicted pictures were taken for real."""

import dataclasses
import json
import logging
import math
import os
import sqlite3
import statistics
from collections.abc import Sequence

import numpy as np

from pipeline import files
from pipeline.errors import UserError, one_line
from trainer.evaluation import Interval
from trainer.study import answers, manifest
from trainer.study.answers import Answers, Trial
from trainer.study.manifest import Study

_LOGGER = logging.getLogger("trainer.study")
FILE_NAME = "summary.json"
_CONFIDENCE = 0.95
_NAMED = 5  # of the pictures that fooled most, and of those that fooled least
_PROTOCOL = {
    "answers": "all, also of participants who did not finish: pictures come in random order",
    "interval": f"{_CONFIDENCE:.0%}, Wilson's for as many answers as would say as much if none hung together by "
    "participant or picture, with Student's t",
    "seconds": "from when a picture was seen, by the browser; by the server where there was no script",
}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What became of all pictures shown in one kind of color.

    Attributes:
        answers: how many there are.
        taken_for_real: the share of answers that called the colors real.
        median_seconds: that an answer took.
    """

    answers: int
    taken_for_real: Interval
    median_seconds: float


@dataclasses.dataclass(frozen=True)
class Fooled:
    """How often the predicted version of a picture was taken for real."""

    path: str
    answers: int
    taken_for_real: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
        step: of the run whose model predicted.
        participants: who gave an answer.
        finished: those of them who answered all.
        predicted: of pictures in predicted colors; None where no answer is to one.
        real: of pictures in their own.
        pictures: those that were shown in predicted colors, the one that fooled most first.
    """

    step: int
    participants: int
    finished: int
    predicted: Shown | None
    real: Shown | None
    pictures: tuple[Fooled, ...]


def summarize(folder: str) -> Summary:
    """Prints what a study found, and writes it to `summary.json` in its folder.

    Raises:
        UserError: no study, no answers yet, or a file that cannot be read or written.
    """
    study = manifest.load(folder)
    trials = _read(folder, study)
    found = compute(study, trials)
    print(describe(found))
    content = {**dataclasses.asdict(found), "protocol": _PROTOCOL}
    files.write(os.path.join(folder, FILE_NAME), json.dumps(content, indent=1).encode())
    _LOGGER.info("written to %s", os.path.join(folder, FILE_NAME))
    return found


def _read(folder: str, study: Study) -> list[Trial]:
    path = os.path.join(folder, answers.FILE_NAME)
    try:
        trials = Answers(folder, study).all() if os.path.exists(path) else []
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; start again") from error
    if not any(trial.taken_for_real is not None for trial in trials):
        raise UserError(f"--study={folder} has no answers yet; let people take part: trainer.study serve")
    return trials


def compute(study: Study, trials: Sequence[Trial]) -> Summary:
    """What answers say; trials without one count for nothing.

    Args:
        study: to which they belong.
        trials: of all participants, at least one of them with an answer.
    """
    answered = [trial for trial in trials if trial.taken_for_real is not None]
    unfinished = {trial.participant for trial in trials if trial.taken_for_real is None}
    participants = {trial.participant for trial in answered}
    return Summary(
        study.step,
        len(participants),
        len(participants - unfinished),
        _shown([trial for trial in answered if trial.predicted]),
        _shown([trial for trial in answered if not trial.predicted]),
        _fooled(study, [trial for trial in answered if trial.predicted]),
    )


def _shown(answered: Sequence[Trial]) -> Shown | None:
    if not answered:
        return None
    share = interval(
        np.array([trial.taken_for_real for trial in answered]),
        np.array([trial.participant for trial in answered]),
        np.array([trial.picture for trial in answered]),
    )
    seconds = [trial.seconds for trial in answered if trial.seconds is not None]  # all of them
    return Shown(len(answered), share, statistics.median(seconds))


def _fooled(study: Study, answered: Sequence[Trial]) -> tuple[Fooled, ...]:
    of_picture: dict[int, list[bool]] = {}
    for trial in answered:
        of_picture.setdefault(trial.picture, []).append(bool(trial.taken_for_real))
    rows = [Fooled(study.pairs[picture].path, len(own), sum(own)) for picture, own in of_picture.items()]
    return tuple(sorted(rows, key=lambda row: (-row.taken_for_real / row.answers, -row.answers, row.path)))


def interval(outcomes: np.ndarray, participants: np.ndarray, pictures: np.ndarray) -> Interval:
    """The share of outcomes that are true, and its 95 % interval.

    Some participants are easily fooled, and some pictures fool nearly all, so that answers that share one or the other
    say less than as many that share nothing: in simulated studies of 12 pictures and 40 participants, Wilson's interval
    for independent answers holds the truth in 65 % of them, and a bootstrap over participants, which knows nothing of
    pictures, in 70 %. Here the variance of the share is that of both clusterings (Cameron, Gelbach and Miller, 2011:
    by participant, plus by picture, less by answer), and Wilson's interval is taken for the number of independent
    answers that would have it, with Student's t for as many degrees of freedom as the scarcer of both allows (Dean and
    Pagano, 2015). It holds the truth in 95 % of them, and says something where all answers are alike, too.

    Args:
        outcomes: bool [n].
        participants: int [n], whose answer it was.
        pictures: int [n], to what.

    Raises:
        UserError: SciPy is not installed.
    """
    share, count = float(outcomes.mean()), len(outcomes)
    errors = outcomes - share
    by_answer = float(errors @ errors)
    by_both = _between(errors, participants) + _between(errors, pictures) - by_answer
    effective = count / max(1.0, by_both / by_answer) if by_answer else count
    scarcer = min(len(set(participants)), len(set(pictures)))
    return Interval(share, *wilson(share, effective, _quantile(max(1, scarcer - 1))))


def _between(errors: np.ndarray, clusters: np.ndarray) -> float:
    """The sum of squares of the sums of each cluster."""
    sums = np.bincount(clusters, weights=errors)
    return float(sums @ sums)


def wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share of independent outcomes; the count of them need not be whole."""
    squared = quantile**2 / count
    center = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return max(0.0, center - half), min(1.0, center + half)


def _quantile(degrees: int) -> float:
    try:
        from scipy import stats  # which nothing else needs
    except ImportError as error:
        raise UserError("trainer.study summarize needs SciPy; install koalarization[study]") from error
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, degrees))


def describe(found: Summary) -> str:
    """A table for people."""
    lines = [
        f"{_count(found.participants, 'participant')}, of whom {found.finished} finished; all answers count",
        "",
        f"{'colors':<11}{'answers':>7}  {'taken for real, with 95 % interval':<36}median seconds",
    ]
    for name, shown in (("predicted", found.predicted), ("real", found.real)):
        if shown is None:
            lines.append(f"{name:<11}{0:>7}")
            continue
        share = shown.taken_for_real
        text = f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
        lines.append(f"{name:<11}{shown.answers:>7}  {text:<36}{shown.median_seconds:.1f}")
    most, rest = found.pictures[:_NAMED], found.pictures[_NAMED:]
    for title, rows in (("fooled most", most), ("fooled least", rest[-_NAMED:])):
        if rows:
            lines += ["", f"predicted pictures that {title}", *map(_line, rows)]
    return "\n".join(lines)


def _line(row: Fooled) -> str:
    path = row.path.replace("\n", "\\n")
    return f"  {row.taken_for_real} of {row.answers}  {path}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
