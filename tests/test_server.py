"""A study over real HTTP."""

import re
import sqlite3
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import image
from pipeline.errors import UserError
from tests.helpers import write_study
from tests.programs import Participant, free_ports
from trainer.study import answers, server
from trainer.study.answers import Answers

COUNT = 6


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path, COUNT)


@pytest.fixture
def kept(tmp_path, study):
    return Answers(str(tmp_path), study)


@pytest.fixture
def address(tmp_path, study, kept):
    """Where the study is served."""
    listening = server._listen(server.create_app(str(tmp_path), study, kept), "127.0.0.1", 0)
    ended = threading.Event()

    def run():
        while not ended.is_set():  # its own loop cannot be ended from outside
            listening.asyncore.loop(timeout=0.02, map=listening._map, count=1)

    thread = threading.Thread(target=run)
    thread.start()
    yield f"http://127.0.0.1:{listening.effective_port}"
    listening.task_dispatcher.shutdown()
    ended.set()
    thread.join()
    listening.close()


def test_all_the_way_without_a_script(address, study, kept):
    """Each picture is shown in its turn and in the version that was dealt; who says "real" to all is right by half."""
    one = Participant(address)
    status, _, text = one.get("/")
    assert (status, f"You will see {COUNT} photographs" in text) == (200, True)
    _, _, text = one.post("/begin")
    for trial in kept.of(one.id):
        assert f"<h1>Picture {trial.position + 1} of {COUNT}</h1>" in text
        assert study.file(trial.picture, trial.predicted) == re.search('<img src="/pictures/([^"]*)"', text)[1]
        assert one.get("/end")[2] == text  # not yet
        status, _, text = one.post("/answer", position=trial.position, answer="real", seconds="")
        assert status == 200
    assert f"You were right about {COUNT // 2} of {COUNT} photographs" in text
    assert one.get("/picture")[2] == one.get("/end")[2] == text
    assert all(trial.taken_for_real and trial.seconds > 0 for trial in kept.of(one.id))


def test_a_second_submit_and_the_way_back_change_nothing(address, kept):
    one = Participant(address)
    one.begin()
    one.post("/begin")
    assert len(kept.all()) == COUNT
    for answer in ("predicted", "predicted", "real"):
        _, _, text = one.post("/answer", position=0, answer=answer)
        assert f"Picture 2 of {COUNT}" in text
    assert [trial.taken_for_real for trial in kept.all()] == [False] + [None] * (COUNT - 1)


def test_who_comes_back_goes_on(address, kept):
    one = Participant(address)
    one.begin()
    one.post("/answer", position=0, answer="real")
    assert "Welcome back" in one.get("/")[2]
    assert f"Picture 2 of {COUNT}" in one.begin()[2]
    assert len(kept.all()) == COUNT


def test_several_at_once(address, kept, study):
    """Each answers by a rule of their own, and is told the score of it; two in a row see no version alike."""

    def take_part(number):
        one = Participant(address)
        one.begin()
        for position in range(COUNT):
            text = one.post("/answer", position=position, answer=("real", "predicted")[position * number % 2])[2]
        return one.id, text

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(take_part, range(6)))
    for number, (participant, text) in enumerate(found):
        trials = kept.of(participant)
        assert [trial.taken_for_real for trial in trials] == [position * number % 2 == 0 for position in range(COUNT)]
        right = sum(trial.taken_for_real != trial.predicted for trial in trials)
        assert f"You were right about {right} of {COUNT} photographs" in text
    trials = kept.all()
    for first in (0, 2, 4):
        pair = {(trial.picture, trial.predicted) for trial in trials if trial.participant in (first, first + 1)}
        assert len(pair) == 2 * COUNT


def test_pictures_come_as_they_are_and_tell_nothing_else(address, tmp_path, study):
    for number, pair in enumerate(study.pairs):
        for name in (pair.real, pair.predicted):
            with urllib.request.urlopen(f"{address}/pictures/{name}") as response:
                content, headers = response.read(), response.headers
            np.testing.assert_array_equal(
                image.decode(content), image.decode((tmp_path / "pictures" / name).read_bytes()), str(number)
            )
            assert headers["Content-Type"] == "image/png"
            assert not {"ETag", "Last-Modified", "Server", "Content-Disposition"} & set(headers)
            assert headers["Cache-Control"].startswith("private, ")


def test_pages_allow_nothing_that_is_not_theirs(address):
    one = Participant(address)
    _, first, _ = one.get("/")
    one.post("/begin")
    for path in ("/", "/picture", "/absent"):
        _, headers, text = one.get(path)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=|//", text)
    assert "HttpOnly" in first["Set-Cookie"]
    assert "SameSite=Lax" in first["Set-Cookie"]
    _, headers, _ = one.get("/static/study.js")
    assert headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/answer", {"answer": "real"}, 400),
        ("/answer", {"position": "0"}, 400),
        ("/answer", {"position": "0", "answer": "maybe"}, 400),
        ("/answer", {"position": "first", "answer": "real"}, 400),
        ("/answer", {"position": "-1", "answer": "real"}, 400),
        ("/answer", {"position": str(COUNT), "answer": "real"}, 400),
        ("/answer", {"position": "9" * 400, "answer": "real"}, 400),
        ("/answer", {"position": "1", "answer": "real"}, 400),  # not shown yet
        ("/answer", {"position": "0", "answer": "real", "more": "x" * 10_000}, 413),
        ("/answer", None, 405),
        ("/begin", None, 405),
        ("/picture", {"position": "0", "answer": "real"}, 405),
        ("/pictures/0000000000000000000000000000ffff.png", None, 404),
        ("/pictures/..%2fstudy.json", None, 404),
        ("/pictures/../study.json", None, 404),
        ("/pictures/%2e%2e/answers.sqlite", None, 404),
        ("/study.json", None, 404),
        ("/static/../server.py", None, 404),
        ("/static/%2e%2e%2fserver.py", None, 404),
    ],
)
def test_bad_requests_change_nothing(address, kept, path, fields, status):
    one = Participant(address)
    one.begin()
    before = kept.all()
    found, _, text = one.post(path, **fields) if fields else one.get(path)
    assert found == status
    assert "Traceback" not in text
    assert "seed" not in text
    assert kept.all() == before


@pytest.mark.parametrize("cookie", [None, "", "someone", "0" * 32, "' OR 1=1 --", "é" * 32])
def test_who_is_not_known_cannot_answer(address, kept, cookie):
    Participant(address).begin()
    before = kept.all()
    headers = {} if cookie is None else {"Cookie": f"participant={cookie}".encode()}
    request = urllib.request.Request(f"{address}/answer", b"position=0&answer=real", headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert "does not know you" in caught.value.read().decode()
    assert kept.all() == before
    with urllib.request.urlopen(urllib.request.Request(f"{address}/picture", headers=headers)) as response:
        assert "<button>Begin</button>" in response.read().decode()


def test_without_the_cookie_nothing_begins(address, kept):
    """It says why; and the form of another site, with which no cookie comes, begins nothing in anyone's name."""
    status, _, text = Participant(address).post("/begin")
    assert (status, "This study needs a cookie" in text) == (400, True)
    assert kept.all() == []


def test_an_answer_that_cannot_be_kept_is_no_answer(address, tmp_path, kept, monkeypatch, caplog):
    """Another program holds the file: the participant is told, and can give the answer again."""
    one = Participant(address)
    one.begin()
    monkeypatch.setattr(answers, "_PATIENCE", 0.1)
    other = sqlite3.connect(tmp_path / answers.FILE_NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    status, _, text = one.post("/answer", position=0, answer="real")
    assert (status, "could not be saved" in text) == (503, True)
    (record,) = [record for record in caplog.records if record.name == "trainer.study"]
    assert record.getMessage() == "an answer could not be read or written: database is locked"
    assert record.exc_info is None
    other.close()
    one.post("/answer", position=0, answer="real")
    assert kept.of(one.id)[0].taken_for_real


class TestMistakes:
    def test_a_port_that_another_has(self, address, tmp_path):
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(UserError, match=f"--host=127.0.0.1 --port={port} cannot be used: .*in use; choose another"):
            server.serve(str(tmp_path), "127.0.0.1", port)

    def test_a_host_that_does_not_exist(self, tmp_path, study):
        with pytest.raises(UserError, match="--host=no such host --port=[0-9]+ cannot be used"):
            server.serve(str(tmp_path), "no such host", *free_ports(1))

    def test_no_study(self, tmp_path):
        with pytest.raises(UserError, match="holds no study: study.json cannot be read"):
            server.serve(str(tmp_path / "absent"), "127.0.0.1", 1)

    @pytest.mark.parametrize("damage", ["", "{}", '{"step": 1, "seed": 1, "pairs": []}', "\xff"])
    def test_a_damaged_study(self, tmp_path, study, damage):
        (tmp_path / "study.json").write_text(damage, encoding="latin-1")
        with pytest.raises(UserError, match="study.json is damaged .*; make the study again"):
            server.serve(str(tmp_path), "127.0.0.1", 1)

    def test_names_that_lead_elsewhere(self, tmp_path, study):
        path = tmp_path / "study.json"
        path.write_text(path.read_text().replace(study.pairs[0].real, "../study.json"))
        with pytest.raises(UserError, match="study.json is damaged"):
            server.serve(str(tmp_path), "127.0.0.1", 1)

    def test_pictures_that_are_gone(self, tmp_path, study):
        (tmp_path / "pictures" / study.pairs[2].predicted).unlink()
        with pytest.raises(UserError, match=f"lacks 1 pictures, as {study.pairs[2].predicted}; make the study again"):
            server.serve(str(tmp_path), "127.0.0.1", 1)

    def test_answers_that_cannot_be_written(self, tmp_path, study):
        (tmp_path / answers.FILE_NAME).mkdir()
        with pytest.raises(UserError, match="answers.sqlite cannot be read or written: unable to open"):
            server.serve(str(tmp_path), "127.0.0.1", 1)
