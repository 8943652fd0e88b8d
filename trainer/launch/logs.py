"""What the machines of a training job say, from Cloud Logging."""

import datetime
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from cloud.api import Api

_URL = "https://logging.googleapis.com/v2/entries:list"
_PAGE = 1000  # the most that is given at a time
_LATE = datetime.timedelta(seconds=60)  # that a line may take to arrive
_PAUSE_SECONDS = 5.0


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        time: when it was written, with a time zone.
        machine: its name.
        text: without a line break.
        key: which no other line has.
    """

    time: datetime.datetime
    machine: str
    text: str
    key: str

    def __str__(self) -> str:
        """The line for a person: the machine by its number."""
        return f"{self.time:%Y-%m-%d %H:%M:%S} {self.machine.rpartition('-')[2]} {self.text}"


class Logs:
    """The lines of a job's machines: those of its containers, and of the script that starts them.

    Args:
        api: who asks.
        project: where the machines are.
        group: their name, without their number.
    """

    def __init__(self, api: Api, project: str, group: str) -> None:
        self._api, self._project, self._group = api, project, group

    def last(self, count: int) -> list[Line]:
        """The last lines, the oldest first.

        Raises:
            UserError: they cannot be read.
        """
        found: list[Line] = []
        for page in self._pages({"orderBy": "timestamp desc", "pageSize": count}):
            found += page
            if len(found) >= count:
                break
        return found[:count][::-1]

    def follow(self, seen: list[Line]) -> Iterator[Line]:
        """Lines as they come, without end.

        Args:
            seen: the last ones that are known.

        Raises:
            UserError: they cannot be read.
        """
        newest = seen[-1].time if seen else datetime.datetime.now(datetime.timezone.utc)
        known = {line.key for line in seen}
        while True:
            found = list(self.since(newest - _LATE))
            for line in found:
                if line.key not in known:
                    yield line
            known = {line.key for line in found}  # all that can come again
            newest = max([newest, *(line.time for line in found)])
            time.sleep(_PAUSE_SECONDS)

    def since(self, moment: datetime.datetime) -> Iterator[Line]:
        """Lines of a moment and after it, the oldest first.

        Raises:
            UserError: they cannot be read.
        """
        since = f' AND timestamp >= "{moment.astimezone(datetime.timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}"'
        for page in self._pages({"orderBy": "timestamp asc", "pageSize": _PAGE}, since):
            yield from page

    def _pages(self, request: dict[str, Any], more: str = "") -> Iterator[list[Line]]:
        """All pages of an answer; one that is empty is no last one, if a next one is named."""
        token: str | None = ""
        while token is not None:
            lines, token = self._ask(request | ({"pageToken": token} if token else {}), more)
            yield lines

    def _ask(self, request: dict[str, Any], more: str = "") -> tuple[list[Line], str | None]:
        names = " OR ".join(
            f'logName = "projects/{self._project}/logs/{name}"' for name in ("gcplogs-docker-driver", "koalarization")
        )
        machines = f'jsonPayload.instance.name =~ "^{self._group}-[0-9]+$"'
        body = {"resourceNames": [f"projects/{self._project}"], "filter": f"({names}) AND {machines}{more}", **request}
        found = self._api.post(_URL, body)
        return [_line(entry) for entry in found.get("entries", ())], found.get("nextPageToken")


def _line(entry: dict[str, Any]) -> Line:
    payload = entry["jsonPayload"]
    text = str(payload.get("message", "")).rstrip()
    moment = entry.get("timestamp") or entry["receiveTimestamp"]
    # Of nine digits Python 3.10 reads none, and six are enough.
    seconds, _, fraction = moment.rstrip("Z").partition(".")
    read = datetime.datetime.fromisoformat(f"{seconds}.{fraction[:6]:0<6}+00:00")
    return Line(read, payload["instance"]["name"], text, entry.get("insertId") or json.dumps(entry, sort_keys=True))
