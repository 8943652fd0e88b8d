"""Google's REST APIs with the credentials of whoever is logged in; what they refuse is one line."""

import datetime
import email.utils
import logging
from collections.abc import Mapping
from typing import Any

import google.auth
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests import Response
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from urllib3 import Retry

from pipeline.errors import UserError, one_line

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_SECONDS = 60  # that an answer may take
MAY_PASS = (429, 500, 502, 503, 504)  # of HTTP: what is worth another try
# All requests here can be made twice.
_RETRY = Retry(total=5, backoff_factor=0.5, status_forcelist=MAY_PASS, allowed_methods=None, raise_on_status=False)


class Refused(UserError):
    """An API's refusal.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def find_credentials() -> tuple[Credentials, str | None]:
    """The credentials of whoever is logged in, and the project that they come with, if any.

    Raises:
        UserError: there are none.
    """
    logging.getLogger("google.auth").setLevel(logging.ERROR)  # it misses a project, which is asked for elsewhere
    try:
        return google.auth.default(scopes=[_SCOPE])
    except GoogleAuthError as error:
        raise UserError(
            f"Google Cloud needs credentials: {one_line(error).partition('. ')[0]}; run 'gcloud auth "
            "application-default login', or name the file of a key in GOOGLE_APPLICATION_CREDENTIALS"
        ) from error


class Api:
    """A session with Google's APIs.

    Args:
        credentials: other ones than those of whoever is logged in, as of an account that is impersonated.

    Attributes:
        ahead: by how much this machine's clock was ahead of the API's when it last answered.
        credentials: of whoever asks.
        project: the one that the credentials come with, or None.

    Raises:
        UserError: there are no credentials.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        found, self.project = find_credentials()
        self.credentials = credentials or found
        self.ahead = datetime.timedelta()
        self._session = AuthorizedSession(self.credentials)
        self._session.mount("https://", HTTPAdapter(max_retries=_RETRY))

    @property
    def member(self) -> str:
        """Whoever is logged in, as policies name them."""
        account = getattr(self.credentials, "service_account_email", None)
        return f"serviceAccount:{account}" if account else "user:YOU"

    def get(self, url: str, accept: str = "application/json", **parameters: str | list[str]) -> dict[str, Any]:
        """The answer to a GET, from JSON.

        Raises:
            Refused: the API says why not.
            UserError: it cannot be reached, or gives no JSON.
        """
        return self._json("GET", url, params=parameters, headers={"Accept": accept})

    def post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a POST of JSON, from JSON.

        Raises:
            As `get`.
        """
        return self._json("POST", url, json=body)

    def headers(self, url: str, accept: str) -> Mapping[str, str]:
        """What the head of the answer to a GET would say; names in any case.

        Raises:
            As `get`.
        """
        return self._ask("HEAD", url, headers={"Accept": accept}).headers

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        try:
            found = self._ask(method, url, **options).json()
        except ValueError as error:
            raise UserError(f"{url} gives no JSON: {one_line(error)}; try again") from error
        if not isinstance(found, dict):
            raise UserError(f"{url} gives no JSON object; try again")
        return found

    def _ask(self, method: str, url: str, **options: Any) -> Response:
        try:
            response = self._session.request(method, url, timeout=_SECONDS, **options)
        except (RequestException, GoogleAuthError) as error:
            raise UserError(f"{url} cannot be asked: {one_line(error)}; try again") from error
        if date := response.headers.get("Date"):
            self.ahead = datetime.datetime.now(datetime.timezone.utc) - email.utils.parsedate_to_datetime(date)
        if response.status_code in MAY_PASS:
            raise UserError(f"{url} says {response.status_code}: {_message(response)}; try again")
        if not response.ok:
            raise Refused(f"{url} says {response.status_code}: {_message(response)}", response.status_code)
        return response


def _message(response: Response) -> str:
    try:
        return " ".join(response.json()["error"]["message"].split())
    except (ValueError, LookupError, TypeError, AttributeError):
        return " ".join(response.text.split())[:200] or response.reason
