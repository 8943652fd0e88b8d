"""Doubles of Google's REST APIs that take nothing but what the published descriptions of these APIs allow.

The descriptions come with `google-api-python-client`.
"""

import json
import re
import urllib.parse
from pathlib import Path

import googleapiclient

_DOCUMENTS = Path(googleapiclient.__path__[0]) / "discovery_cache/documents"
_OF_ALL = {"$alt", "alt", "fields", "key", "prettyPrint", "quotaUser"}  # parameters that each method has


class Refusal(Exception):
    """What an API answers in place of a result."""

    def __init__(self, status, message, reason="FAILED_PRECONDITION", headers=None):
        super().__init__(message)
        self.status, self.message, self.reason, self.headers = status, message, reason, headers or {}


class Api:
    """One API: its methods answer by functions of the test.

    Attributes:
        calls: ID of the method, parameters and body of each call that the description allows.
        refused: what it does not allow; a test that causes any is wrong, or the program is.
    """

    def __init__(self, name, version, **answers):
        self._document = json.loads((_DOCUMENTS / f"{name}.{version}.json").read_text())
        self._answers = {f"{name}.{method.replace('_', '.')}": answer for method, answer in answers.items()}
        self._methods = {method["id"]: method for method in _methods(self._document)}
        assert self._answers.keys() <= self._methods.keys(), self._answers.keys() - self._methods.keys()
        self.host = urllib.parse.urlsplit(self._document["rootUrl"]).hostname
        self.calls, self.refused = [], []

    def takes(self, host, verb, path):
        """Whether a request is for this API: all that its host gets, but what the emulator does."""
        if host == self.host and host != "storage.googleapis.com":
            return True
        method = self._find(verb, path)
        return host in (self.host, "localhost", "127.0.0.1") and method is not None and method[0]["id"] in self._answers

    def __call__(self, verb, target, headers, body):
        """Status, headers and content."""
        try:
            status, content, more = 200, self._answer(verb, target, body), {}
        except Refusal as refusal:
            status, more = refusal.status, refusal.headers
            content = {"error": {"code": status, "message": refusal.message, "status": refusal.reason}}
            if self._document["name"] == "compute":  # which has codes of its own
                content["error"]["errors"] = [{"message": refusal.message, "reason": refusal.reason}]
        except Exception as error:
            self.refused.append(f"{verb} {target}: {error}")
            content = {"error": {"code": 400, "message": f"{verb} {target}: {error}", "status": "INVALID"}}
            status, more = 400, {}
        return status, {"Content-Type": "application/json", **more}, json.dumps(content).encode()

    def _answer(self, verb, target, body):
        path, _, query = target.partition("?")
        known = self._find(verb, path)
        assert known is not None, "no such method"
        method, found = known
        named = urllib.parse.parse_qs(query)
        parameters = {name: values if len(values) > 1 else values[0] for name, values in named.items()}
        self._check_parameters(method["parameters"], named, parameters.keys() | found.keys())
        content = json.loads(body) if body else None
        if "request" in method:
            self._check(method["request"]["$ref"], content or {}, "body")
        else:
            assert content is None, "a body"
        found |= parameters
        self.calls.append((method["id"], found, content))
        result = self._answers[method["id"]](found, content)
        self._check(method["response"]["$ref"], result, "answer")
        return result

    def _check_parameters(self, known, named, given):
        for name in named.keys() - _OF_ALL:
            assert known.get(name, {}).get("location") == "query", f"{name} is no parameter"
            assert len(named[name]) == 1 or known[name].get("repeated"), f"{name} comes more than once"
            for value in named[name]:
                kind = known[name]["type"]
                assert value in known[name].get("enum", [value]), f"{name} is {value}"
                assert kind != "integer" or re.fullmatch(r"-?\d+", value), f"{name} is {value}"
                assert kind != "boolean" or value in ("true", "false"), f"{name} is {value}"
        for name, each in known.items():
            assert name in given or not each.get("required") or each["location"] == "path", f"{name} is missing"

    def _find(self, verb, path):
        for method in self._methods.values():
            template = self._document["servicePath"] + method.get("flatPath", method["path"])
            parts = re.split(r"(\{[^}]+\})", template)
            pattern = "".join("([^/:]+)" if part.startswith("{") else re.escape(part) for part in parts)
            if method["httpMethod"] == verb and (match := re.fullmatch(pattern, path.lstrip("/"))):
                names = [part.strip("{}") for part in parts if part.startswith("{")]
                return method, dict(zip(names, map(urllib.parse.unquote, match.groups()), strict=True))
        return None

    def _check(self, name, value, place):
        self._check_value(self._document["schemas"][name], value, place)

    def _check_value(self, schema, value, place):
        if "$ref" in schema:
            self._check(schema["$ref"], value, place)
        elif schema["type"] == "object":
            assert isinstance(value, dict), place
            for name, inner in value.items():
                known = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
                assert known is not None, f"{place} has no field {name}"
                self._check_value(known, inner, f"{place}.{name}")
        elif schema["type"] == "array":
            assert isinstance(value, list), place
            for number, inner in enumerate(value):
                self._check_value(schema["items"], inner, f"{place}[{number}]")
        elif "enum" in schema and isinstance(value, int):  # the number that stands for a name
            assert 0 <= value < len(schema["enum"]), f"{place} is {value}"
        elif "enum" in schema:
            assert value in schema["enum"], f"{place} is {value}"
        elif schema["type"] != "any":
            kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
            assert isinstance(value, kinds[schema["type"]]), f"{place} is {value!r}"
            if schema.get("format") in ("int64", "uint64"):
                assert re.fullmatch(r"-?\d+", value), f"{place} is {value!r}"


def _methods(node):
    yield from node.get("methods", {}).values()
    for resource in node.get("resources", {}).values():
        yield from _methods(resource)
