"""A job that was killed goes on, and a job of other settings does not mix."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_jobs import shard_writer, storage
from beam_jobs import sources as source_module
from pipeline import manifest
from tests import cloud_storage
from tests.helpers import encoded, noise
from tests.programs import content, error_of, run_preprocess, until

OPTIONS = ("--config.dataset.layout=compact", "--config.dataset.train_shards=7")


# A shell's background jobs, as this test may be one, ignore interrupts.
STOPPABLE = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[:] = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def sources(pictures):
    archives = pictures / "archives"
    return (f"--source=places365:{archives}/val_256.tar", f"--source=imagenet:{archives}/ILSVRC2012_img_train.tar")


@pytest.fixture
def copy(compact_dataset, tmp_path):
    """A finished dataset that may be damaged."""
    return Path(shutil.copytree(compact_dataset.directory, tmp_path / "copy"))


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")}


def test_only_missing_and_damaged_shards_are_made(copy, compact_dataset, sources, capsys):
    before = written(copy)
    names = sorted(before)
    (copy / names[0]).unlink()
    data = bytearray((copy / names[1]).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / names[1]).write_bytes(data)
    (copy / names[2]).write_bytes(data[:100])
    (copy / "job/reports" / f"{names[3]}.json").unlink()
    (copy / "job/reports" / f"{names[4]}.json").write_text("{")
    (copy / "dataset.json").unlink()
    untouched = {name: before[name] for name in names[5:]}
    assert run_preprocess(*sources, *OPTIONS, f"--output={copy}") == 0
    assert f"goes on: {len(names) - 1} of {len(names)} shards stand in {copy}" in capsys.readouterr().err
    assert content(copy) == content(Path(compact_dataset.directory))
    after = written(copy)
    assert {name: after[name] for name in names[5:]} == untouched
    assert all(after[name] != before[name] for name in names[:5])


def test_a_finished_dataset_stays_as_it_is(copy, compact_dataset, sources):
    before = written(copy)
    assert run_preprocess(*sources, *OPTIONS, f"--output={copy}") == 0
    assert written(copy) == before
    assert content(copy) == content(Path(compact_dataset.directory))


def test_other_settings_are_named_and_refused_unless_told_to_overwrite(copy, sources, capsys, tmp_path):
    before = content(copy)
    for option, difference in (
        ("--config.seed=7", "partition.seed was 2017, not 7"),
        ("--config.dataset.filters.min_chroma=0", "filters.min_chroma was 2.0, not 0.0"),
        ("--config.dataset.train_shards=8", "partition.train_shards was 7, not 8"),
        (f"--source=images:{tmp_path}/copy/job", "images:"),
    ):
        if option.startswith("--source"):
            (tmp_path / "copy/job/one.png").write_bytes(encoded(noise(40, 40)))
        assert run_preprocess(*sources, *OPTIONS, option, f"--output={copy}") == 1
        message = error_of(capsys)
        assert f"--output={copy} holds another dataset: " in message
        assert difference in message
        assert content(copy) == before
    option = "--config.dataset.train_shards=3"
    assert run_preprocess(*sources, *OPTIONS, option, f"--output={copy}", "--overwrite") == 0
    names = [name for name in os.listdir(copy) if name.startswith("train")]
    assert sorted(names) == [f"train-0000{number}-of-00003.tfrecord" for number in range(3)]
    assert len(os.listdir(copy / "job/reports")) == 3 + 2


@pytest.mark.parametrize("name", ["settings.json", "train-00003-of-00007.tfrecord.json", "dataset.json"])
def test_what_cannot_be_read_is_not_taken_for_absent(copy, sources, capsys, monkeypatch, name):
    """Else a moment in which storage does not answer would cost a dataset, or its features."""
    before, read_text = content(copy), storage.read_text

    def read(path):
        if path.endswith(f"/{name}"):
            raise PermissionError("not for you")
        return read_text(path)

    monkeypatch.setattr(storage, "read_text", read)
    assert run_preprocess(*sources, *OPTIONS, f"--output={copy}", "--overwrite") == 1
    assert f"{name} cannot be read: not for you; start the job again" in error_of(capsys)
    assert content(copy) == before


@pytest.mark.parametrize(("step", "name"), [(shard_writer.WriteShard, "process"), (source_module, "check_unchanged")])
def test_a_job_that_was_replaced_writes_no_more(sources, tmp_path, capsys, monkeypatch, step, name):
    """One of which nothing was heard for two minutes, while another one, told to overwrite, began."""
    before = getattr(step, name)

    def replaced(*arguments):
        (tmp_path / "out/job/settings.json").write_text("{}")
        return before(*arguments)

    monkeypatch.setattr(step, name, replaced)
    assert run_preprocess(*sources, *OPTIONS, f"--output={tmp_path}/out") == 1
    line = error_of(capsys)
    assert f"--output={tmp_path}/out was taken over by another job, while nothing was heard of this one" in line
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_archive_that_changes_while_it_is_read_is_noticed(pictures, tmp_path, capsys, monkeypatch, is_gone):
    archive = Path(shutil.copy(pictures / "archives/val_256.tar", tmp_path / "val_256.tar"))
    write = shard_writer.WriteShard._write

    def change(*arguments):
        report = write(*arguments)
        archive.unlink(missing_ok=True) if is_gone else os.utime(archive, (5, 5))
        return report

    monkeypatch.setattr(shard_writer.WriteShard, "_write", change)
    argv = (f"--source=places365:{archive}", *OPTIONS, f"--output={tmp_path}/out", "--max_reject_fraction=1")
    assert run_preprocess(*argv) == 1
    line = error_of(capsys)
    assert (
        (f"{archive}" in line and "a source was deleted while it was being read" in line)
        if is_gone
        else "was written to while it was read: what was made of it" in line
    )
    assert not (tmp_path / "out/dataset.json").exists()


def test_shards_of_other_settings_are_made_anew_whatever_the_folder_says(copy, sources, tmp_path):
    """As a job leaves them that wrote on when it was thought to be gone."""
    others = (*sources, *OPTIONS, "--config.dataset.resize_mode=pad")
    assert run_preprocess(*others, f"--output={tmp_path}/fresh") == 0
    shutil.copy(tmp_path / "fresh/job/settings.json", copy / "job/settings.json")
    (copy / "dataset.json").unlink()
    assert run_preprocess(*others, f"--output={copy}") == 0
    assert content(copy) == content(tmp_path / "fresh")


def test_an_archive_written_to_since_is_noticed(tmp_path, pictures, capsys):
    archive = shutil.copy(pictures / "archives/val_256.tar", tmp_path / "val_256.tar")
    source = f"--source=places365:{archive}"
    assert run_preprocess(source, *OPTIONS, f"--output={tmp_path}/out") == 0
    os.utime(archive, (5, 5))
    assert run_preprocess(source, *OPTIONS, f"--output={tmp_path}/out") == 1
    assert "modified was " in error_of(capsys)


def test_a_picture_added_to_a_folder_is_noticed(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    argv = (f"--source=images:{photos}", *OPTIONS, f"--output={tmp_path}/out", "--config.dataset.validation_fraction=0")
    assert run_preprocess(*argv) == 0
    (photos / "another.png").write_bytes(encoded(noise(40, 40)))
    assert run_preprocess(*argv) == 1
    message = error_of(capsys)
    assert "the pictures of the sources are others than when train-0000" in message
    assert "--overwrite" in message
    assert run_preprocess(*argv, "--overwrite") == 0
    run_preprocess(f"--source=images:{photos}", *argv[1:3], f"--output={tmp_path}/fresh", argv[4])
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    (photos / "another.png").unlink()
    assert run_preprocess(*argv) == 1
    assert run_preprocess(*argv, "--overwrite") == 0


def test_a_dataset_of_unknown_origin_is_not_touched(copy, sources, capsys):
    shutil.rmtree(copy / "job")
    before = content(copy)
    assert run_preprocess(*sources, *OPTIONS, f"--output={copy}") == 1
    assert "dataset.json, of which nothing says how it was made" in error_of(capsys)
    assert content(copy) == before


def test_two_jobs_on_one_output(sources, tmp_path, capsys):
    command = [sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", *sources, *OPTIONS]
    with subprocess.Popen([*command, f"--output={tmp_path}/out"], stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "out/job/claim.json").exists():
            assert first.poll() is None
            time.sleep(0.01)
        assert run_preprocess(*sources, *OPTIONS, f"--output={tmp_path}/out") == 1
        assert f"{tmp_path}/out is being written by process {first.pid} on " in error_of(capsys)
    assert first.returncode == 0
    assert (tmp_path / "out/dataset.json").exists()


def kill_and_restart(argv, expected, output, kills, seed):
    """Kills a job with all of its processes at random moments, until it is let through to its end."""
    command = [sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", *argv, f"--output={output}"]
    generator, killed = random.Random(seed), 0
    while killed < kills:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        claimed = output / "job/claim.json"
        while process.poll() is None and not claimed.exists():
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it was faster
            shutil.rmtree(output)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert content(output) == expected
    assert {path.name for path in (output / "job").iterdir()} == {"settings.json", "reports", "index"}
    names = {name for name in expected if name.endswith(".tfrecord")}
    assert {path.name for path in (output / "job/reports").iterdir()} == {f"{name}.json" for name in names}
    assert all(path.name.endswith(".jsonl.gz") for path in (output / "job/index").iterdir())


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_killed_and_started_again_the_bytes_are_the_same(sources, compact_dataset, tmp_path, mode):
    expected = content(Path(compact_dataset.directory))
    argv = (*sources, *OPTIONS, f"--direct_running_mode={mode}", "--direct_num_workers=2")
    kill_and_restart(argv, expected, tmp_path / "out", kills=2, seed=1)


@pytest.mark.slow
def test_on_cloud_storage_a_job_is_alone_goes_on_after_a_kill_and_overwrites_only_when_told(
    sources, compact_dataset, tmp_path
):
    """While requests fail in every way, so that claims and reports are written more than once."""
    with cloud_storage.running(tmp_path, "bucket") as cloud:
        cloud.faults.share = 0.01
        command = [sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", *sources, *OPTIONS]
        command += ["--output=gs://bucket/data"]
        options = {"env": {**os.environ, **cloud.environment}, "stderr": subprocess.PIPE, "text": True}

        def generations(ending=""):
            found = cloud.client().list_blobs("bucket", prefix="data/")
            return {blob.name[5:]: blob.generation for blob in found if blob.name.endswith(ending)}

        with subprocess.Popen(command, start_new_session=True, **options) as first:
            until(lambda: generations("claim.json"), pause=0.01)
            os.killpg(first.pid, signal.SIGSTOP)
            second = subprocess.run(command, **options)
            assert second.returncode == 1
            (line,) = second.stderr.splitlines()
            assert line.startswith(f"error: gs://bucket/data is being written by process {first.pid} on ")
            os.killpg(first.pid, signal.SIGCONT)
            until(lambda: generations(".tfrecord.json"), pause=0.01)
            os.killpg(first.pid, signal.SIGKILL)
        stood = generations(".tfrecord")
        whole = {name: stood[name] for name in stood if generations(f"/{name}.json")}
        assert whole
        assert not generations("dataset.json")
        rest = subprocess.run(command, **options)
        assert rest.returncode == 0, rest.stderr
        assert f"goes on: {len(stood)} of 9 shards stand in gs://bucket/data" in rest.stderr
        assert whole.items() <= generations(".tfrecord").items()
        cloud.download("bucket", "data/", tmp_path / "copy")
        assert content(tmp_path / "copy") == content(Path(compact_dataset.directory))
        assert not generations((".tmp", "claim.json"))

        other = [*command, "--config.dataset.train_shards=3"]
        refused = subprocess.run(other, **options)
        assert refused.returncode == 1
        assert "--output=gs://bucket/data holds another dataset: " in refused.stderr.splitlines()[-1]
        assert len(generations(".tfrecord")) == 9
        anew = subprocess.run([*other, "--overwrite"], **options)
        assert anew.returncode == 0, anew.stderr
        names = sorted(generations(".tfrecord"))
        assert names[:-2] == [f"train-0000{number}-of-00003.tfrecord" for number in range(3)]
        assert len(generations(".tfrecord.json")) == 3 + 2


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_stops_at_once_with_all_of_its_processes(sources, tmp_path, mode, number):
    """While it writes: Beam's threads, left to themselves, abort the process then, and its processes go on."""
    output = tmp_path / "out"
    command = [sys.executable, "-c", STOPPABLE, "beam_jobs.preprocess", "--config=configs/demo.py", *sources]
    argv = (f"--output={output}", f"--direct_running_mode={mode}", "--direct_num_workers=2")
    with subprocess.Popen([*command, *argv], stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not list(output.glob("*.tmp")):
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, number)
        message = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert message == ("error: interrupted\n" if number == signal.SIGINT else "error: stopped by SIGTERM\n")
    assert not (output / "job/claim.json").exists()
    with pytest.raises(ProcessLookupError):  # nobody is left of them
        os.killpg(process.pid, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_kills(sources, compact_dataset, tmp_path, seed):
    kill_and_restart((*sources, *OPTIONS), content(Path(compact_dataset.directory)), tmp_path / "out", 1, seed)


def test_too_many_rejects_fail_the_job_after_the_report(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    for number in range(4):
        (photos / f"gray{number}.png").write_bytes(encoded(noise(40, 40, number)[..., 0]))
    argv = (f"--source=images:{photos}", f"--output={tmp_path}/out", "--config.dataset.validation_fraction=0")
    assert run_preprocess(*argv, "--max_reject_fraction=0.3") == 1
    message = error_of(capsys)
    assert "4 of 10 pictures were rejected, more than --max_reject_fraction=0.3 allows: 4 grayscale; " in message
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "out" / manifest.FILE_NAME).exists()
    before = written(tmp_path / "out")
    assert run_preprocess(*argv, "--max_reject_fraction=0.4") == 0
    assert written(tmp_path / "out") == before  # nothing was made twice
    fields = json.loads((tmp_path / "out/dataset.json").read_text())
    assert fields["splits"]["train"]["rejected"] == {"images": {"grayscale": 4}}
    assert run_preprocess(*argv, "--max_reject_fraction=1.1") == 2
