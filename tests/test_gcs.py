import concurrent.futures
import gc
import io
import json
import random
import subprocess
import sys
import threading

import pytest
from google.cloud.storage import fileio

from beam_jobs import claim, gcs, read_ahead, sources, storage
from pipeline.errors import UsageError, UserError
from tests import cloud_storage, helpers
from tests.programs import error_of, run_preprocess, until

BUCKET = "bucket"


@pytest.fixture(scope="module")
def storage_server(tmp_path_factory):
    """Cloud Storage, with which this process shall speak."""
    with (
        cloud_storage.running(tmp_path_factory.mktemp("cloud"), BUCKET) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        gcs._client.cache_clear()
        yield server


@pytest.fixture
def cloud(storage_server):
    """The same, empty, without harm, and with no request seen yet."""
    storage_server.faults.share = 0.0
    storage_server.empty(BUCKET)
    storage_server.requests.clear()
    return storage_server


def write(name, content):
    with storage.create(f"gs://{BUCKET}/{name}") as file:
        file.write(content)


def test_an_object_has_changed_when_it_was_written_anew_with_the_same_size(cloud):
    write("object", b"first")
    before = storage.stat(f"gs://{BUCKET}/object")
    assert storage.stat(f"gs://{BUCKET}/object") == before
    write("object", b"other")
    assert storage.stat(f"gs://{BUCKET}/object") != before


def test_an_object_is_written_looked_at_read_and_deleted(cloud):
    path = f"gs://{BUCKET}/folder/name with [brackets] and ü"
    with storage.create(path) as file:
        file.write(b"half, ")
        assert storage.names(f"gs://{BUCKET}/folder") == set()
        file.write(b"whole")
    assert storage.names(f"gs://{BUCKET}/folder/") == {path.rpartition("/")[2]}
    assert storage.stat(path).size == 11
    assert storage.stat(path) == storage.stat(path)
    assert storage.read_text(path) == "half, whole"
    assert storage.read_range(path, 2, 4) == b"lf, "
    assert storage.read_range(path, 8, 100) == b"ole"
    assert storage.read_range(path, 11, 5) == b""
    assert storage.read_range(path, 3, 0) == b""
    storage.delete(path)
    storage.delete(path)
    assert storage.names(f"gs://{BUCKET}/folder") == set()


def test_what_is_not_there_is_a_missing_file(cloud):
    path = f"gs://{BUCKET}/none"
    for use in (storage.open_binary, storage.stat, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError, match="gs://bucket/none: 404 .*"):
            use(path)
    assert not storage.is_object(path)
    with pytest.raises(OSError, match="gs://no-bucket/x"):
        storage.names("gs://no-bucket/x")


def test_a_write_that_fails_leaves_what_was_there(cloud, monkeypatch):
    monkeypatch.setattr(gcs, "_CHUNK_BYTES", 256 << 10)  # so that some of it was sent already
    write("a", b"before")
    with pytest.raises(KeyboardInterrupt), storage.create(f"gs://{BUCKET}/a") as file:
        file.write(bytes(1 << 20))
        raise KeyboardInterrupt
    assert storage.read_text(f"gs://{BUCKET}/a") == "before"
    with (
        pytest.raises(UserError, match="gs://no-bucket/a cannot be written: .*404.*; make room there, or name another"),
        storage.create("gs://no-bucket/a") as file,
    ):
        file.write(b"content")


def test_a_write_that_fails_is_not_finished_by_what_collects_garbage(cloud, monkeypatch):
    """Not even if the upload cannot be ended, as in an outage that ends soon after."""
    monkeypatch.setattr(gcs, "_CHUNK_BYTES", 256 << 10)

    def fail():
        with storage.create(f"gs://{BUCKET}/half") as file:
            file.write(bytes(300 << 10))
            monkeypatch.setattr(fileio.BlobWriter, "terminate", lambda self: 1 / 0)
            raise OSError("a source is gone")

    with pytest.raises(UserError, match="a source is gone"):
        fail()
    gc.collect()
    assert storage.names(f"gs://{BUCKET}") == set()


def test_of_jobs_that_start_at_once_one_gets_the_directory(cloud, monkeypatch):
    """Requests fail, so that an answer to a claim that was written may be lost."""
    monkeypatch.setattr(claim.socket, "gethostname", lambda: str(threading.get_ident()))  # each on its own machine
    write("data/claim.json", b'{"job": "a", "host": "b", "process": 1, "started": "", "seen": 0}')
    cloud.faults.share = 0.03
    winners, refused = [], []
    start, stop = threading.Barrier(8), threading.Event()

    def attempt():
        start.wait()
        try:
            with claim.claim(f"gs://{BUCKET}/data"):
                winners.append(1)
                stop.wait()
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(refused) == 7)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert all("is being written by process" in line for line in refused), refused
    assert storage.names(f"gs://{BUCKET}/data") == set()


def test_an_object_is_replaced_only_if_it_is_the_one_that_was_seen(cloud, monkeypatch):
    path = f"gs://{BUCKET}/a"
    with pytest.raises(FileNotFoundError):
        storage.read_version(path)
    assert storage.replace(path, b"first", 0)
    content, version = storage.read_version(path)
    assert content == b"first"
    assert not storage.replace(path, b"second", 0)
    assert storage.replace(path, b"second", version)
    assert not storage.replace(path, b"third", version)
    assert storage.replace(path, b"second", version)  # as one whose answer was lost
    assert storage.read_text(path) == "second"
    storage.delete(path)
    assert not storage.replace(path, b"third", version)
    with pytest.raises(UserError, match="gs://no-bucket/a cannot be written: .*404"):
        storage.replace("gs://no-bucket/a", b"", 0)


def test_names_of_buckets(cloud):
    for path in ("gs:///x", "gs://-bad/x", "gs://", "gs://Bucket/x"):
        with pytest.raises(UsageError, match=f"{path} names no bucket"):
            storage.absolute(path)


def test_a_large_file_is_read_and_written_piece_by_piece(cloud, monkeypatch):
    monkeypatch.setattr(gcs, "_CHUNK_BYTES", 256 << 10)
    content = random.Random(0).randbytes(1_000_000)
    with storage.create(f"gs://{BUCKET}/large") as file:
        for start in range(0, len(content), 77_777):
            file.write(content[start : start + 77_777])
    assert max(length for *_, length in cloud.requests) == 256 << 10
    with storage.open_binary(f"gs://{BUCKET}/large") as file:
        assert file.read(10) == content[:10]
        file.seek(900_000)
        buffer = bytearray(1000)
        assert file.readinto(buffer) == 1000
        assert buffer == content[900_000:901_000]
        file.seek(0)
        assert file.read() == content
        file.seek(-5, io.SEEK_END)
        assert file.tell() == 999_995
        assert file.read(100) == content[-5:]


def test_of_an_archive_only_the_picture_is_asked_for(cloud):
    write("archive.tar", bytes(range(256)) * 400)
    cloud.requests.clear()
    ref = sources.ImageRef("key", "images", "", f"gs://{BUCKET}/archive.tar".encode(), 1000, 300)
    ((_, data),) = read_ahead.read_ahead([ref])
    assert data == (bytes(range(256)) * 400)[1000:1300]
    ((method, _, headers, _),) = cloud.requests
    assert (method, headers["range"]) == ("GET", "bytes=1000-1299")


def test_of_a_folder_only_what_stands_in_it_is_listed(cloud):
    for name in ("out/a", "out/b", "out/job/reports/c", "other/d", "out2/e"):
        write(name, b"")
    cloud.client().bucket(BUCKET).blob("out/").upload_from_string(b"")  # as consoles and TensorFlow make folders
    cloud.requests.clear()
    assert storage.names(f"gs://{BUCKET}/out") == {"a", "b"}
    ((_, target, _, _),) = cloud.requests
    assert "delimiter=%2F" in target


def test_sources_are_folders_patterns_and_single_pictures(cloud):
    picture = helpers.encoded(helpers.noise(40, 40))
    for name in ("photos/a.png", "photos/b/c.png", "photos.png"):
        write(name, picture)
    cloud.client().bucket(BUCKET).blob("photos/b/").upload_from_string(b"")

    def keys(path):
        return sorted(ref.key for ref in sources.list_pictures(sources.parse_source(f"images:gs://{BUCKET}/{path}")))

    assert keys("photos") == keys("photos/") == ["images/photos/a.png", "images/photos/b/c.png"]
    assert keys("photos/*.png") == ["images/photos/a.png"]
    assert keys("photos/**.png") == ["images/photos/a.png", "images/photos/b/c.png"]
    assert keys("photos.png") == [f"images/{BUCKET}/photos.png"]
    assert keys("") == [
        f"images/{BUCKET}/photos.png",
        f"images/{BUCKET}/photos/a.png",
        f"images/{BUCKET}/photos/b/c.png",
    ]
    write("a trip [2020]/a.png", picture)
    assert keys("a trip [2020]") == keys("a trip [2020]/") == ["images/a trip [2020]/a.png"]
    with pytest.raises(UserError, match="matches nothing; check the path"):
        sources.check_readable(sources.parse_source(f"images:gs://{BUCKET}/nothing"))


def test_a_refusal_that_is_cut_off_is_asked_for_again(cloud):
    """Of an empty object no byte can be asked for, which Google's client then does not understand."""
    write("empty", b"")
    cloud.faults.once("truncated")
    assert storage.read_range(f"gs://{BUCKET}/empty", 0, 10) == b""


def test_requests_that_fail_are_sent_again(cloud, monkeypatch):
    """Dozens of objects of several chunks, of which requests fail in every way; each is whole at the end."""
    monkeypatch.setattr(gcs, "_CHUNK_BYTES", 256 << 10)
    cloud.faults.share = 0.05
    contents = {f"many/{number}": random.Random(number).randbytes(number * 12_000) for number in range(60)}
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        list(pool.map(write, contents, contents.values()))
        assert storage.names(f"gs://{BUCKET}/many") == {name.partition("/")[2] for name in contents}
        found = pool.map(lambda name: storage.read_range(f"gs://{BUCKET}/{name}", 0, 10**7), contents)
        assert list(found) == list(contents.values())
        list(pool.map(lambda name: storage.delete(f"gs://{BUCKET}/{name}"), contents))
    assert storage.names(f"gs://{BUCKET}/many") == set()
    assert cloud.faults.seen.keys() == {None, *cloud.faults.KINDS}


def test_pictures_that_cannot_be_read_are_one_line(cloud, monkeypatch, tmp_path, capsys):
    """Without the traces that Beam logs of each try."""
    write("photos/a.png", helpers.encoded(helpers.noise(40, 40)))
    monkeypatch.setattr(read_ahead, "_RETRIES", 1)

    def fail(path, offset, length):
        raise PermissionError("403 not for you")

    monkeypatch.setattr(gcs, "read", fail)
    options = ("--config.dataset.validation_fraction=0", f"--output={tmp_path}/out")
    assert run_preprocess("--source=images:gs://bucket/photos", *options) == 1
    assert "gs://bucket/photos/a.png cannot be read, 2 times in a row: 403 not for you; start" in error_of(capsys)


def test_without_credentials_a_job_says_how_to_get_some(cloud, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert run_preprocess("--source=images:gs://bucket/photos", f"--output={tmp_path}/out") == 1
    assert "gs://bucket/photos: Google Cloud needs credentials: " in (line := error_of(capsys))
    assert "gcloud auth application-default login" in line
    assert not cloud.requests


def test_credentials_that_are_refused_are_one_line(cloud, monkeypatch, tmp_path):
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps({**cloud_storage.CREDENTIALS, "refresh_token": "revoked"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    command = ("beam_jobs.preprocess", "--config=configs/demo.py", "--source=images:gs://bucket/photos")
    result = subprocess.run(
        [sys.executable, "-m", *command, f"--output={tmp_path}/out"], capture_output=True, text=True
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: source images:gs://bucket/photos cannot be listed: ")
    assert "invalid_grant" in line


def test_headers_of_an_archive_are_read_in_few_requests_and_leaps_cost_little(cloud):
    content = random.Random(0).randbytes(4 << 20)
    write("object", content)
    with storage.open_binary(f"gs://{BUCKET}/object") as file:
        cloud.requests.clear()
        for start in range(0, 4 << 20, 50_000):
            file.seek(start)
            assert file.read(512) == content[start : start + 512]
        assert 1 < len(cloud.requests) < 10  # of 84 headers
    with storage.open_binary(f"gs://{BUCKET}/object") as file:
        cloud.requests.clear()
        for start in range(0, 4 << 20, 1 << 20):
            file.seek(start)
            assert file.read(512) == content[start : start + 512]
        asked = [headers["range"].partition("=")[2].split("-") for _, _, headers, _ in cloud.requests]
        assert sum(int(end) - int(first) + 1 for first, end in asked) == 4 * (64 << 10)


def test_an_object_that_is_written_anew_while_it_is_read_is_not_mixed(cloud):
    """Its generation is named in each request; of another, Cloud Storage says that there is none."""
    write("object", bytes(1_000_000))
    with storage.open_binary(f"gs://{BUCKET}/object") as file:
        generation = cloud.client().bucket(BUCKET).get_blob("object").generation
        cloud.requests.clear()
        file.read()
        ((_, target, _, _),) = cloud.requests
        assert f"generation={generation}" in target
