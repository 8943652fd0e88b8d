"""Programs of ours as a person calls them, and what talks to those that serve."""

import contextlib
import http.cookiejar
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from beam_jobs import preprocess
from pipeline import cli


def run_preprocess(*argv):
    """Runs the job in this process, with the demo's configuration; its status."""
    return cli.run(preprocess.main, ["preprocess", "--config=configs/demo.py", *argv])


def content(folder):
    """The files of a dataset; what the job needs for itself is left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "job"}


def error_of(capsys):
    """The one line that a program of ours ended with."""
    captured = capsys.readouterr().err
    (line,) = [line for line in captured.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in captured
    return line


def free_ports(count):
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def chromium(*arguments):
    """A browser without a window; for Chromium's arguments see its --help."""
    if (driver := shutil.which("chromedriver")) is None:
        pytest.skip("no Chromium: make browser")
    from selenium import webdriver  # a test without a browser needs none

    options = webdriver.ChromeOptions()
    usual = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1200")
    for argument in (*usual, *arguments):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def until(condition, seconds=180, pause=0.5):
    """What a condition gives once it is true, within some seconds; between looks at it is a pause, in seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except OSError:  # it does not listen yet
            pass
        assert time.monotonic() < end
        time.sleep(pause)


def serve_study(folder, port):
    """The real command for a study, once it listens; what it says can be read."""
    command = [sys.executable, "-m", "trainer.study", "serve", f"--study={folder}", f"--port={port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert f"http://127.0.0.1:{port}/" in line, line
    return process


class Participant:
    """A browser without a script that keeps its cookie."""

    def __init__(self, address):
        self._address = address
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, path, data=None):
        """Status, headers and text."""
        try:
            with self._opener.open(self._address + path, data, timeout=30) as response:
                return response.status, response.headers, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def post(self, path, **fields):
        return self.get(path, urllib.parse.urlencode(fields).encode())

    def begin(self):
        self.get("/")
        return self.post("/begin")

    @property
    def id(self):
        (cookie,) = self.jar
        return cookie.value
