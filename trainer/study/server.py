"""Serves a study: plain pages and forms that work without a script, on a small real web server."""

import logging
import os
import re
import secrets
import sqlite3
import threading
from typing import Any

import flask
import waitress
from flask import Flask, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, ServiceUnavailable

from pipeline import files
from pipeline.errors import UserError, one_line
from trainer.study import manifest
from trainer.study.answers import Answers, Trial
from trainer.study.manifest import PICTURES, Study

_LOGGER = logging.getLogger("trainer.study")
_COOKIE = "participant"
_COOKIE_SECONDS = 30 * 24 * 3600
_MOST_BODY_BYTES = 4096  # an answer has some dozens
_THREADS = 8
_ANSWERS = {"real": True, "predicted": False}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(folder: str, host: str, port: int) -> None:
    """Serves a study until the process is told to stop.

    Args:
        folder: of the study, to which answers are added.
        host: the address to listen at.
        port: of it.

    Raises:
        UserError: no study, one that lacks pictures, answers that cannot be written, or an address that cannot be used.
    """
    study = manifest.load(folder)
    _check_pictures(folder, study)
    server = _listen(create_app(folder, study, Answers(folder, study)), host, port)
    # In a thread of its own, for it holds back whatever a signal raises while it is at work.
    loop = threading.Thread(target=server.run, daemon=True)
    loop.start()
    _LOGGER.info("%d pictures at http://%s:%d/ until interrupted", len(study.pairs), host, port)
    try:
        loop.join()
    finally:
        server.task_dispatcher.shutdown()  # once the answers at work are kept


def _check_pictures(folder: str, study: Study) -> None:
    pictures = os.path.join(folder, PICTURES)
    try:
        missing = {name for pair in study.pairs for name in (pair.real, pair.predicted)} - set(files.names(pictures))
    except OSError as error:
        raise UserError(f"{pictures} cannot be listed: {one_line(error)}; make the study again") from error
    if missing:
        raise UserError(f"{pictures} lacks {len(missing)} pictures, as {min(missing)}; make the study again")


def _listen(app: Flask, host: str, port: int) -> Any:
    try:
        return waitress.create_server(
            app, host=host, port=port, threads=_THREADS, max_request_body_size=_MOST_BODY_BYTES, ident=None
        )
    except (OSError, ValueError) as error:  # the second where no address is of that name
        raise UserError(f"--host={host} --port={port} cannot be used: {one_line(error)}; choose another") from error


def create_app(folder: str, study: Study, answers: Answers) -> Flask:
    """The pages of a study.

    Args:
        folder: of the study.
        study: what it shows.
        answers: where they go.
    """
    pages = _Pages(folder, study, answers)
    app = Flask(__name__)
    app.add_url_rule("/", "welcome", pages.welcome)
    app.add_url_rule("/begin", "begin", pages.begin, methods=["POST"])
    app.add_url_rule("/picture", "picture", pages.picture)
    app.add_url_rule("/pictures/<name>", "file", pages.file)
    app.add_url_rule("/answer", "answer", pages.answer, methods=["POST"])
    app.add_url_rule("/end", "end", pages.end)
    app.register_error_handler(HTTPException, _explain)
    app.register_error_handler(sqlite3.Error, _unavailable)
    app.after_request(_add_headers)
    return app


class _Pages:
    """What is behind each address.

    A participant is a random number in a cookie that no other site can have sent with a form, which keeps them from
    answering in anyone's name.
    """

    def __init__(self, folder: str, study: Study, answers: Answers):
        self._pictures = os.path.join(folder, PICTURES)
        self._names = {name for pair in study.pairs for name in (pair.real, pair.predicted)}
        self._study = study
        self._answers = answers

    def welcome(self) -> ResponseReturnValue:
        """Says what the study is; gives out the cookie, so that a second click on its button begins nothing anew."""
        participant = _participant()
        begun = participant is not None and bool(self._answers.of(participant))
        response = flask.make_response(flask.render_template("welcome.html", count=len(self._study.pairs), begun=begun))
        response.set_cookie(
            _COOKIE, participant or secrets.token_hex(16), max_age=_COOKIE_SECONDS, httponly=True, samesite="Lax",
        )  # fmt: skip
        return response

    def begin(self) -> ResponseReturnValue:
        """Deals a participant their pictures."""
        if (participant := _participant()) is None:
            raise BadRequest("This study needs a cookie to know how far you are. Allow it, and start again.")
        self._answers.enter(participant)
        return _redirect("picture")

    def picture(self) -> ResponseReturnValue:
        """Shows the first picture that has no answer yet."""
        trials = self._trials()
        if not trials:
            return _redirect("welcome")
        left = [trial for trial in trials if trial.taken_for_real is None]
        if not left:
            return _redirect("end")
        self._answers.show(left[0])
        names = [self._study.file(trial.picture, trial.predicted) for trial in left[:2]]
        return flask.render_template("picture.html", trial=left[0], count=len(trials), names=names)

    def file(self, name: str) -> ResponseReturnValue:
        """A picture, without the times and tags by which two versions of one could be told apart."""
        if name not in self._names:
            raise NotFound
        try:
            data = files.read(os.path.join(self._pictures, name))
        except OSError as error:
            _LOGGER.error("picture %s cannot be read: %s", name, one_line(error))
            raise NotFound from error
        response = Response(data, mimetype="image/png")
        response.headers["Cache-Control"] = f"private, max-age={_COOKIE_SECONDS}, immutable"
        return response

    def answer(self) -> ResponseReturnValue:
        """Keeps an answer; one to a picture that has one already changes nothing."""
        trials, form = self._trials(), request.form
        position = form.get("position", -1, type=int)
        taken_for_real = _ANSWERS.get(form.get("answer", ""))
        if not trials:
            raise BadRequest("This study does not know you. Start again.")
        if not 0 <= position < len(trials) or taken_for_real is None:
            raise BadRequest("The answer could not be understood. Go back, and give it again.")
        if not self._answers.answer(trials[position], taken_for_real, form.get("seconds", type=float)):
            raise BadRequest("The answer is to a picture that was not shown yet.")
        return _redirect("picture")

    def end(self) -> ResponseReturnValue:
        """Thanks; tells how many answers were right, but not which, so that others can still be asked."""
        trials = self._trials()
        if not trials or any(trial.taken_for_real is None for trial in trials):
            return _redirect("picture")
        right = sum(trial.taken_for_real != trial.predicted for trial in trials)
        return flask.render_template("end.html", right=right, count=len(trials))

    def _trials(self) -> list[Trial]:
        participant = _participant()
        return self._answers.of(participant) if participant else []


def _participant() -> str | None:
    """Who asks; None where that is nobody whom `welcome` could have sent."""
    participant = request.cookies.get(_COOKIE, "")
    return participant if re.fullmatch("[0-9a-f]{32}", participant) else None


def _redirect(page: str) -> ResponseReturnValue:
    return flask.redirect(flask.url_for(page), 303)  # a reload sends no form again


def _explain(error: HTTPException) -> ResponseReturnValue:
    """An error as a page like the others."""
    response = flask.make_response(flask.render_template("error.html", error=error), error.code)
    response.headers.extend((name, value) for name, value in error.get_headers() if name == "Allow")
    return response


def _unavailable(error: sqlite3.Error) -> ResponseReturnValue:
    _LOGGER.error("an answer could not be read or written: %s", one_line(error))
    return _explain(ServiceUnavailable("The answer could not be saved. Go back in a while, and give it again."))


def _add_headers(response: Response) -> Response:
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
