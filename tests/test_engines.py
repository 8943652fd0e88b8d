"""The same job on the embedded runner, on Prism, and on Flink with Python workers in processes of their own.

Beam's part of it is real: `make engines` builds or fetches it. Without it these tests are skipped.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import encoded, noise
from tests.programs import content, free_ports

ENGINES = Path(__file__).parent.parent / ".engines"
JAVA = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in ("lang", "nio", "util")]
OPTIONS = ("--config.dataset.layout=compact", "--config.dataset.train_shards=7")
pytestmark = pytest.mark.engines


def started(command, port, log, **environment):
    """A server that listens on a port."""
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
    for _ in range(600):
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
        time.sleep(0.1)
    raise AssertionError(f"{command[0]} does not listen on {port}")


@pytest.fixture(scope="module")
def prism():
    binary = ENGINES / "prism"
    if not binary.exists():
        pytest.skip("no Prism: make engines")
    return ["--runner=PrismRunner", f"--prism_location={binary}"]


@pytest.fixture(scope="module")
def flink(tmp_path_factory):
    """Beam's job server with a Flink of two task slots, and a pool that starts a Python process for each worker."""
    if not (ENGINES / "flink/.complete").exists() or shutil.which("java") is None:
        pytest.skip("no Flink: make engines, and a Java")
    job_port, pool_port = free_ports(2)
    server = ["java", *JAVA, "-cp", f"{ENGINES}/flink/*", "org.apache.beam.runners.flink.FlinkJobServerDriver"]
    server += ["--flink-master=[local]", f"--job-port={job_port}", "--artifact-port=0", "--expansion-port=0"]
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the pool starts its workers as plain "python"
    with open(tmp_path_factory.mktemp("flink") / "log", "wb") as log:
        processes = [started(server, job_port, log), started(pool, pool_port, log, PATH=path)]
        yield [
            "--runner=PortableRunner", f"--job_endpoint=localhost:{job_port}", "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool_port}", "--parallelism=2", "--sdk_worker_parallelism=2",
        ]  # fmt: skip
        for process in processes:
            process.terminate()
            process.wait(20)


@pytest.fixture(params=["prism", "flink"])
def engine(request):
    """Beam options that choose an engine."""
    return request.getfixturevalue(request.param)


def job(*argv, module="beam_jobs.preprocess"):
    command = [sys.executable, "-m", module, "--config=configs/demo.py", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_the_same_bytes_on_every_engine(engine, pictures, compact_dataset, tmp_path):
    archives = pictures / "archives"
    sources = (f"--source=places365:{archives}/val_256.tar", f"--source=imagenet:{archives}/ILSVRC2012_img_train.tar")
    result = job(*engine, *sources, *OPTIONS, f"--output={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out") == content(Path(compact_dataset.directory))
    assert len(result.stderr.splitlines()) == 1, result.stderr  # the report, and nothing of the engine's
    assert " images/s in " in result.stderr  # counted by workers, which engines carry here in ways of their own


@pytest.fixture(scope="module")
def few(pictures, tmp_path_factory):
    """A dataset of 48 pictures, since the real extractor runs in the workers."""
    output = tmp_path_factory.mktemp("few") / "data"
    result = job(f"--source=places365:{pictures}/archives/val_256.tar", *OPTIONS, f"--output={output}")
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def embedded(few, tmp_path_factory):
    """The same with features, made by the embedded engine."""
    data = shutil.copytree(few, tmp_path_factory.mktemp("embedded") / "data")
    result = job(f"--data={data}", module="beam_jobs.embed")
    assert result.returncode == 0, result.stderr
    return data


def test_the_same_features_on_every_engine(engine, few, embedded, tmp_path):
    data = shutil.copytree(few, tmp_path / "data")
    result = job(*engine, f"--data={data}", module="beam_jobs.embed")
    assert result.returncode == 0, result.stderr
    assert content(data) == content(embedded)
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(encoded(noise(60, 80, number), "JPEG"))
    (folder / "text.jpg").write_text("no picture")
    return folder


def colorized(run, photos, output, *engine):
    """The files that the job writes, and what it says."""
    command = [sys.executable, "-m", "beam_jobs.colorize", f"--workdir={run}", f"--source=images:{photos}"]
    result = subprocess.run([*command, f"--output={output}", *engine], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    names = [*output.rglob("*.png"), output / "colorized.json", output / "rejects.jsonl"]
    return {str(path.relative_to(output)): path.read_bytes() for path in names}, result.stderr


@pytest.fixture(scope="module")
def in_color(finished, photos, tmp_path_factory):
    """Those of the embedded engine."""
    return colorized(finished[0], photos, tmp_path_factory.mktemp("color") / "out")[0]


def test_the_same_colors_on_every_engine(engine, finished, photos, in_color, tmp_path):
    files, said = colorized(finished[0], photos, tmp_path / "out", *engine)
    assert files == in_color
    assert len(files) == 12 + 2
    assert said.splitlines()[-1].startswith(f"{tmp_path}/out: 12 of 13 pictures in color; 1 rejected (1 not_an_image")
    assert " images/s in " in said


@pytest.mark.parametrize("image", ["beam", "trainer"])
def test_workers_start_as_in_an_image_on_dataflow(flink, image, pictures, compact_dataset, tmp_path):
    """By Beam's own program, which is told to keep things where it may not, and by what the image has around it."""
    program = ENGINES / "boot"
    if not program.exists():
        pytest.skip("no boot: make engines")
    started, own = tmp_path / "started", tmp_path / "home"
    own.mkdir()
    script = Path("docker/boot.sh").read_text()
    for path, other in (("/opt/apache/beam/boot", program), ("/home/worker", own)):
        assert path in script
        script = script.replace(path, str(other))
    (tmp_path / "boot.sh").write_text(script)
    settings = re.findall(r"^ENV (RUN_\w+=\S+)$", Path(f"docker/{image}.Dockerfile").read_text(), re.MULTILINE)
    dataflow = tmp_path / "dataflow"
    dataflow.write_text(
        f"#!/bin/sh\nexport {' '.join(settings)} PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={Path.cwd()}\n"
        f'echo "$@" >>{started}\nexec sh {tmp_path}/boot.sh "$@" --semi_persist_dir=/proc/google\n'
    )
    dataflow.chmod(0o755)
    options = ["--environment_type=PROCESS", "--environment_config=" + json.dumps({"command": str(dataflow)})]
    sources = [f"--source=places365:{pictures}/archives/val_256.tar"]
    sources += [f"--source=imagenet:{pictures}/archives/ILSVRC2012_img_train.tar"]
    result = job(*flink, *options, *sources, *OPTIONS, f"--output={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out") == content(Path(compact_dataset.directory))
    assert "--provision_endpoint=" in started.read_text()
    assert {path.name for path in own.iterdir()} == {"staged", "pipeline_options.json"}
    assert not Path("/opt/apache/beam-venv").exists()


def test_a_user_s_mistake_in_a_worker_is_one_line(engine, pictures, tmp_path):
    data = (pictures / "archives/val_256.tar").read_bytes()
    (tmp_path / "val_256.tar").write_bytes(data[: len(data) // 2])
    result = job(*engine, f"--source=places365:{tmp_path}/val_256.tar", *OPTIONS, f"--output={tmp_path}/out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: source places365:{tmp_path}/val_256.tar is not a complete, uncompressed tar archive"
    )
    assert not (tmp_path / "out/dataset.json").exists()
