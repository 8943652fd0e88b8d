import json
import os
import subprocess
import sys
import threading
import time

import pytest

from beam_jobs import claim as module
from beam_jobs.claim import claim
from pipeline.errors import UserError


def write(path, **fields):
    own = {"job": "abc", "host": "elsewhere", "process": 7, "started": "1", "seen": time.time()}
    (path / "claim.json").write_text(json.dumps({**own, **fields}))


def test_one_at_a_time(tmp_path):
    with claim(str(tmp_path)):
        message = rf"is being written by process {os.getpid()} on .*, last seen \d+ s ago; wait for it or stop it"
        with pytest.raises(UserError, match=message), claim(str(tmp_path)):
            pass
        assert (tmp_path / "claim.json").exists()  # the refused one left it alone
    assert list(tmp_path.iterdir()) == []
    with claim(str(tmp_path)):
        pass


def test_of_many_that_start_at_once_one_gets_it(tmp_path):
    winners, start, lock = [], threading.Barrier(8), threading.Lock()
    write(tmp_path, seen=0)  # a stale claim, for all of them to take over

    def attempt():
        start.wait()
        try:
            with claim(str(tmp_path)):
                with lock:
                    winners.append(1)
                stop.wait()
        except UserError:
            pass

    stop = threading.Event()
    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    program = f"from beam_jobs.claim import claim\nwith claim({str(tmp_path)!r}):\n print('in', flush=True)\n input()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match=f"process {process.pid}"), claim(str(tmp_path)):
            pass
        process.kill()
    with claim(str(tmp_path)):
        pass


@pytest.mark.parametrize(("age", "stale"), [(5, False), (119, False), (121, True), (1e6, True)])
def test_a_claim_of_another_machine_is_stale_when_it_was_not_heard_of(tmp_path, age, stale):
    write(tmp_path, seen=time.time() - age)
    if stale:
        with claim(str(tmp_path)):
            pass
    else:
        with pytest.raises(UserError, match="process 7 on elsewhere"), claim(str(tmp_path)):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"])
def test_what_no_job_wrote_is_in_nobody_s_way(tmp_path, content):
    (tmp_path / "claim.json").write_bytes(content)
    with claim(str(tmp_path)):
        assert json.loads((tmp_path / "claim.json").read_text())["process"] == os.getpid()


def test_the_owner_is_heard_of(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.05)
    with claim(str(tmp_path)):
        first = json.loads((tmp_path / "claim.json").read_text())
        time.sleep(0.5)
        second = json.loads((tmp_path / "claim.json").read_text())
    assert second["seen"] > first["seen"]
    assert second["job"] == first["job"]


def test_a_claim_that_cannot_be_read_or_deleted_is_a_line(tmp_path, monkeypatch, caplog):
    def fail(path):
        raise OSError("no route")

    with claim(str(tmp_path)):
        monkeypatch.setattr(module.storage, "delete", fail)
    assert "WARNING: " in caplog.text
    assert "claim.json cannot be deleted, which keeps others off for a while: no route" in caplog.text
    monkeypatch.setattr(module.storage, "read_version", fail)
    with pytest.raises(UserError, match=r"claim.json cannot be read: no route; start the job again"):
        claim(str(tmp_path)).__enter__()


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.05)
    with claim(str(tmp_path)):
        write(tmp_path)
        time.sleep(0.3)
    assert json.loads((tmp_path / "claim.json").read_text())["host"] == "elsewhere"
