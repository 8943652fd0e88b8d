"""Doubles of programs of Container-Optimized OS: Docker, which runs a program of the test for an image's, and others.

`install` writes them down; a machine finds them before the real ones. What they were called with stands in `calls`.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

IMAGE_STATUS = "status"  # a file with what fetching an image ends with
CLOCK = "clock"  # a file with by how many seconds the clock is ahead when it is first looked at
HANGS = "hangs"  # a file with the program and first argument of what never ends, whoever asks
# Cheap, for it is called all the time.
_SLEEP = """#!/bin/sh
printf '["sleep", "%s"]\\n' "$1" >> "$MACHINE/calls"
test "$1" = infinity || set -- 0.2
exec /bin/sleep "$1"
"""
_DATE = """#!/bin/sh
printf '["date", "%s"]\\n' "$1" >> "$MACHINE/calls"
ahead=$(cat "$MACHINE/clock" 2> /dev/null || echo 0)
echo 0 > "$MACHINE/clock"
echo $(($(/bin/date "$1") + ahead))
"""


def install(folder):
    """Puts the doubles into a folder."""
    programs = {
        name: f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n'
        for name in ("docker", "cos-extensions", "curl", "iptables", "mount", "nvidia-smi", "systemctl")
    }
    for name, program in {**programs, "sleep": _SLEEP, "date": _DATE}.items():
        path = folder / name
        path.write_text(program)
        path.chmod(0o755)


def calls(folder, name):
    """The arguments of all calls of a program on a machine."""
    path = Path(folder) / "calls"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line[1:] for line in lines if line[0] == name]


def send(folder, number):
    """Sends a signal to the container of a machine, if one runs."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int((Path(folder) / "container").read_text()), number)


def stop(folder, seconds):
    """Asks the container of a machine to end, and ends it when its time is over."""
    send(folder, signal.SIGTERM)
    end = time.monotonic() + seconds
    while (Path(folder) / "container").exists() and time.monotonic() < end:
        time.sleep(0.1)
    send(folder, signal.SIGKILL)


def _main(name, arguments):
    machine = Path(os.environ["MACHINE"])
    with (machine / "calls").open("a") as file:
        file.write(json.dumps([name, *arguments]) + "\n")
    hanging = machine / HANGS
    if hanging.exists() and hanging.read_text() == f"{name} {arguments[0]}":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if name == "curl":
        _, _, others = os.environ["PATH"].partition(":")
        os.execv(shutil.which("curl", path=others), ["curl", *arguments])
    if name == "systemctl":
        assert arguments == ["is-system-running"]
        print("stopping" if (machine / "stopping").exists() else "running")
        return 0
    if name == "docker":
        if (machine / "docker-gone").exists():
            print("Cannot connect to the Docker daemon", file=sys.stderr)
            return 1
        return _DOCKER[arguments[0]](machine, arguments[1:])
    if name == "cos-extensions":
        assert arguments == ["install", "gpu"]
        (machine / "driver").touch()
        print("a line of the installer", file=sys.stderr)
    elif name == "nvidia-smi" and (machine / "driver").exists():
        for gpu in range(int(os.environ.get("GPUS", "0"))):
            print(f"GPU {gpu}: NVIDIA A100-SXM4-40GB")
    return 0


def _login(machine, arguments):
    """Takes the token of the machine's account."""
    assert arguments[:2] == ["--username=oauth2accesstoken", "--password-stdin"], arguments
    return 0 if sys.stdin.read().strip() == "a-token" else 1


def _pull(machine, arguments):
    assert arguments[0] == "--quiet"
    if status := int((machine / IMAGE_STATUS).read_text()):
        print(f'Error response: {arguments[1]}\ndenied:\t"a\\b"', file=sys.stderr)  # all that JSON minds
    return status


def _rm(machine, arguments):
    assert arguments == ["--force", "trainer"]
    send(machine, signal.SIGKILL)
    return 0


def _stop(machine, arguments):
    """Asks the container to end, and ends it when its time is over."""
    time_, name = arguments
    assert (time_.partition("=")[0], name) == ("--time", "trainer"), arguments
    stop(machine, int(time_.partition("=")[2]))
    return 0


def _run(machine, arguments):
    """Runs the test's program as an image's: its output goes to Cloud Logging, line by line, as `gcplogs` sends it."""
    parser = argparse.ArgumentParser(exit_on_error=True, allow_abbrev=False)
    for option in ("--name", "--network", "--ipc", "--log-driver", "--entrypoint"):
        parser.add_argument(option, required=True)
    for option in ("--volume", "--device", "--env"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("--rm", action="store_true")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    found = parser.parse_args(arguments)
    assert (found.network, found.log_driver, found.entrypoint) == ("host", "gcplogs", "python")
    volumes = {inner: outer for outer, inner, _ in (each.split(":") for each in found.volume)}
    config = Path(volumes["/config.py"])
    assert config.stat().st_mode & 0o004  # for who is not root in the container
    assert found.command[:3] == ["-m", "trainer.train", "--config=/config.py"]
    command = [*json.loads(os.environ["CONTAINER"]), f"--config={config}", *found.command[3:]]
    variables = dict(each.split("=", 1) for each in found.env)
    if "TF_CONFIG" in variables:  # names of machines mean nothing here
        cluster = json.loads(variables["TF_CONFIG"])
        ports = json.loads(os.environ["PORTS"])
        cluster["cluster"]["worker"] = [f"localhost:{ports[address]}" for address in cluster["cluster"]["worker"]]
        variables["TF_CONFIG"] = json.dumps(cluster)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True, **pipes)
    (machine / "container").write_text(str(process.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: process.send_signal(number))
    name = _metadata("instance/name").decode()
    for line in process.stdout:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        _log(name, line.decode(errors="replace").rstrip("\n"))
    status = process.wait()
    (machine / "container").unlink()
    return status if status >= 0 else 128 - status


def _metadata(path):
    url = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})) as response:
        return response.read()


def _log(name, line):
    import requests  # which obeys the variables that lead to the doubles

    token = json.loads(_metadata("instance/service-accounts/default/token"))["access_token"]
    project = _metadata("project/project-id").decode()
    resource = {"type": "gce_instance", "labels": {"instance_id": "4711", "zone": "us-central1-a"}}
    payload = {"instance": {"name": name}, "container": {"name": "/trainer"}, "message": line}
    body = {
        "logName": f"projects/{project}/logs/gcplogs-docker-driver", "resource": resource,
        "entries": [{"jsonPayload": payload}],
    }  # fmt: skip
    url = "https://logging.googleapis.com/v2/entries:write"
    requests.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30).raise_for_status()


_DOCKER = {"login": _login, "pull": _pull, "rm": _rm, "run": _run, "stop": _stop}

if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
