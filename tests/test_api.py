import datetime
import email.utils
from contextlib import nullcontext

import pytest

from cloud import checks
from cloud.api import Api, Refused
from pipeline.errors import UserError
from tests import cloud_storage


class Moody:
    """An API that answers as it is told, one answer after the other."""

    host = "moody.googleapis.com"

    def __init__(self):
        self.answers, self.asked = [], []

    def takes(self, host, verb, path):
        return host == self.host

    def __call__(self, verb, target, headers, body):
        self.asked.append((verb, target, headers["Authorization"], body))
        return self.answers.pop(0)


@pytest.fixture(scope="module")
def moody(tmp_path_factory):
    service = Moody()
    with (
        cloud_storage.running(tmp_path_factory.mktemp("api"), services=[service]) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield service


URL = "https://moody.googleapis.com/v1/things"


def test_what_may_pass_is_asked_again(moody):
    moody.answers = [(503, {}, b""), (429, {}, b""), (200, {}, b'{"a": 1}')]
    moody.asked.clear()
    assert Api().post(URL, {"b": 2}) == {"a": 1}
    assert moody.asked == [("POST", "/v1/things", "Bearer a-token", b'{"b": 2}')] * 3


def test_a_refusal_has_the_words_of_the_api(moody):
    moody.answers = [(403, {}, b'{"error": {"message": "Not for you."}}'), (404, {}, b"<p>gone</p>")]
    with pytest.raises(Refused, match=f"{URL} says 403: Not for you.") as caught:
        Api().get(URL)
    assert caught.value.status == 403
    with pytest.raises(Refused, match="says 404: <p>gone</p>"):
        Api().get(URL)


def test_what_is_no_json_and_what_cannot_be_reached_are_one_line(moody):
    moody.answers = [(200, {}, b"null")]
    with pytest.raises(UserError, match=f"{URL} gives no JSON object; try again"):
        Api().get(URL)
    moody.answers = [(200, {}, b"<html>")]
    with pytest.raises(UserError, match=f"{URL} gives no JSON: .*; try again"):
        Api().get(URL)
    with pytest.raises(UserError, match="https://nowhere.googleapis.com/ cannot be asked: .*; try again"):
        Api().get("https://nowhere.googleapis.com/")


@pytest.mark.parametrize(("hours", "said"), [(9, "540 minutes ahead of"), (-9, "540 minutes behind"), (0, None)])
def test_a_clock_that_is_wrong_is_noticed(moody, hours, said):
    google = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=hours)
    moody.answers = [(200, {"Date": email.utils.format_datetime(google, usegmt=True)}, b"{}")]
    (api := Api()).get(URL)
    with pytest.raises(UserError, match=f"clock of this machine is {said} Google's") if said else nullcontext():
        checks.check_clock(api)


def test_who_asks_is_named_as_policies_name_them(moody):
    assert Api().member == "user:YOU"
