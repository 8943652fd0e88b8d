"""The script that each machine of a training job runs, run; the network and the container runtime are doubles."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import cloud_storage, container_runtime
from tests.google_apis import Refusal
from tests.google_compute import Compute, Logging, Machine
from tests.google_project import PROJECT
from tests.programs import until

SCRIPT = Path("trainer/launch/startup.sh")
SHORTER = {
    "readonly HEARD_SECONDS=300 ": "readonly HEARD_SECONDS=3 ",
    "readonly PREPARE_SECONDS=1200 ": "readonly PREPARE_SECONDS=3 ",
    "readonly LOSSES=20 ": "readonly LOSSES=6 ",
    "readonly QUICK_SECONDS=300 ": "readonly QUICK_SECONDS=10 ",
    "readonly LONG_SECONDS=7200 ": "readonly LONG_SECONDS=5 ",
    "readonly STOP_SECONDS=120 ": "readonly STOP_SECONDS=2 ",
    "readonly LATE_SECONDS=300 ": "readonly LATE_SECONDS=12 ",
    "--kill-after=10 ": "--kill-after=1 ",
    "limited 60 ": "limited 5 ",
    "limited 600 ": "limited 5 ",
}
SHUTDOWN = "docker stop --time=5 trainer"
GROUP = "koalarization-train-0123456789"
# A container: says which try this is, and ends as its line of "statuses" says; the last line holds for all after it.
CONTAINER = """
import json, os, signal, sys, time
from pathlib import Path

machine = Path(os.environ["MACHINE"])
tries = machine / "tries"
number = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (number + 1))
statuses = json.loads((machine / "statuses").read_text())
status = statuses[min(number, len(statuses) - 1)]
(machine / "arguments").write_text(json.dumps(sys.argv[1:]))
(machine / "tf_config").write_text(os.environ.get("TF_CONFIG", ""))
print(f"try {number}", flush=True)
if status == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if status == "long":
    time.sleep(6)
    status = 1
if status == "late":
    time.sleep(11)
    status = 75
if status == "garbled":
    os.write(1, b'a \\xff" b\\n')
    status = 1
if status == "forever":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
    time.sleep(600)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    compute, logging = Compute(), Logging()
    folder = tmp_path_factory.mktemp("cloud")
    with cloud_storage.running(folder, services=[compute, logging]) as server:
        server.compute, server.logging = compute, logging
        yield server


@pytest.fixture
def start(cloud, tmp_path):
    """Starts the first machine of a job, whose container ends with one status after the other."""
    machines = []

    def start_(
        *statuses, seconds=3600, count=1, gpus=0, image_status=0, hangs="", clock_ahead=0, patient=False, **variables
    ):  # fmt: skip
        cloud.compute.groups["us-central1-a", GROUP] = {"zone": "us-central1-a", "machines": {}, "template": ""}
        script = SCRIPT.read_text()
        for long, short in SHORTER.items():
            assert long in script
            if not (patient and "PREPARE" in long):
                script = script.replace(long, short)
        attributes = {
            "startup-script": script, "shutdown-script": SHUTDOWN,
            "koalarization-arguments": "--config.seed=7\n--data=gs://b/a b'\"$x",
            "koalarization-config": "# a configuration", "koalarization-count": str(count),
            "koalarization-end": str(int(time.time()) + seconds), "koalarization-gpus": str(gpus),
            "koalarization-image": "us-central1-docker.pkg.dev/p/r/trainer@sha256:0",
        }  # fmt: skip
        folder = tmp_path / str(len(machines))
        folder.mkdir()
        (folder / "statuses").write_text(json.dumps(statuses))
        (folder / "container.py").write_text(CONTAINER)
        (folder / container_runtime.IMAGE_STATUS).write_text(str(image_status))
        (folder / container_runtime.CLOCK).write_text(str(clock_ahead))
        if hangs:
            (folder / container_runtime.HANGS).write_text(hangs)
        environment = {
            **cloud.environment, "CONTAINER": json.dumps([sys.executable, str(folder / "container.py")]),
            "GPUS": str(gpus),
            "PORTS": json.dumps({f"{GROUP}-{i}.us-central1-a.c.{PROJECT}.internal:2222": 7000 + i for i in range(3)}),
            **variables,
        }  # fmt: skip
        machines.append(Machine(f"{GROUP}-0", attributes, folder, environment))
        return machines[-1]

    cloud.compute.deleted.clear()
    cloud.logging.entries.clear()
    cloud.logging.refusal, cloud.compute.deaf = None, False
    cloud.compute.refusals.clear()
    yield start_
    for machine in machines:
        machine.kill()
    assert cloud.compute.refused + cloud.logging.refused == []
    for machine in machines:
        assert machine.refused == []


def deleted(cloud):
    until(lambda: cloud.compute.deleted)
    assert cloud.compute.deleted == [GROUP]
    return cloud.logging.said()


def test_a_linter_has_nothing_to_say():
    command = [Path(sys.executable).parent / "shellcheck", SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_a_run_that_is_finished_deletes_all_machines(cloud, start):
    machine = start(0)
    said = deleted(cloud)
    assert said == [
        "machine 0 of 1 starts", "ready to train", "try 0",
        "training is finished; all machines of the job are deleted now"
    ]  # fmt: skip
    assert "koalarization: training is finished" in machine.said  # at the serial port, too
    (name,) = {entry["jsonPayload"]["instance"]["name"] for entry in cloud.logging.entries}
    assert name == f"{GROUP}-0"
    config, *arguments = json.loads((machine.folder / "arguments").read_text())
    assert Path(config.partition("=")[2]).read_text() == "# a configuration"
    assert arguments == ["--config.seed=7", "--data=gs://b/a b'\"$x"]
    assert (machine.folder / "tf_config").read_text() == ""
    (login,) = [call for call in container_runtime.calls(machine.folder, "docker") if call[0] == "login"]
    assert login[-1] == "https://us-central1-docker.pkg.dev"
    assert "a-token" not in machine.said + "".join(said) + (machine.folder / "calls").read_text()


@pytest.mark.parametrize("status", [75, 130, 143])
def test_what_was_told_to_stop_or_lost_a_machine_goes_on_for_as_long_as_it_takes(cloud, start, status):
    start(*[status] * 5, 0)
    said = deleted(cloud)
    assert said.count(f"training was told to stop, or lost another machine (status {status}); it goes on") == 5
    assert said[-1].startswith("training is finished")


def test_machines_that_lose_each_other_at_once_again_and_again_are_given_up(cloud, start):
    start(75)
    said = deleted(cloud)
    assert len([line for line in said if line.startswith("try ")]) == 6
    assert said[-1].startswith("training lost another machine 6 times, soon after each start: try 5; all machines")


def test_a_machine_that_was_lost_after_a_while_is_no_reason_to_give_up(cloud, start):
    """As spot machines are, all the time."""
    start(*[75] * 4, "late", *[75] * 4, 0)
    assert deleted(cloud)[-1].startswith("training is finished")


def test_what_is_lost_in_between_is_none_of_the_failures_one_after_the_other(cloud, start):
    start(1, 1, 75, 1, 1, 0)
    assert deleted(cloud)[-1].startswith("training is finished")


def test_a_machine_whose_time_ends_before_it_is_ready_is_deleted(cloud, start):
    start(0, image_status=1, seconds=6, patient=True)
    assert deleted(cloud)[-1].startswith("the time of the job is over")


@pytest.mark.parametrize(
    ("hangs", "said_"),
    [
        ("cos-extensions install", "NVIDIA's driver finds 0 of 1 GPUs: 'cos-extensions install' was ended after 5 s"),
        ("nvidia-smi --list-gpus", "NVIDIA's driver finds 0 of 1 GPUs: 'nvidia-smi --list-gpus' was ended after 5 s"),
        ("docker login", "cannot be fetched: 'docker login' was ended after 5 s"),
        ("docker pull", "cannot be fetched: 'docker pull' was ended after 5 s"),
    ],
)
def test_what_hangs_is_ended_and_given_up(cloud, start, hangs, said_):
    start(0, gpus=1, hangs=hangs)
    said = deleted(cloud)
    assert any(line.endswith(said_) for line in said)
    assert said[-1] == "the machine cannot be made ready to train; all machines of the job are deleted now"


def test_a_container_that_cannot_be_removed_is_no_reason_to_wait(cloud, start):
    start(0, hangs="docker rm")
    assert deleted(cloud)[-1].startswith("training is finished")


def test_what_hangs_for_ever_does_not_outlast_the_job(cloud, start):
    """As what waits for a disk, which nothing ends."""
    machine = start(0, seconds=6, hangs="mount --bind", gpus=1)
    assert deleted(cloud)[-1].startswith("the time of the job is over")
    assert [call for call in container_runtime.calls(machine.folder, "docker") if call[0] == "run"] == []


def test_a_store_of_logs_that_asks_for_patience_keeps_no_machine(cloud, start):
    start("forever", seconds=5)
    until(lambda: "try 0" in cloud.logging.said())
    cloud.logging.refusal = Refusal(503, "later", headers={"Retry-After": "3600"})
    until(lambda: cloud.compute.deleted)
    assert cloud.compute.deleted == [GROUP]


def test_a_reason_that_is_no_text_is_logged_all_the_same(cloud, start):
    start("garbled")
    said = deleted(cloud)
    assert "training failed (status 1: a    b); it is tried again" in said
    assert said[-1].startswith("training failed 3 times (status 1: a    b)")


def test_a_clock_that_is_right_a_moment_later_ends_no_job(cloud, start):
    machine = start(0, clock_ahead=5 * 3600)
    assert deleted(cloud)[-1].startswith("training is finished")
    assert container_runtime.calls(machine.folder, "date")


def test_a_machine_that_is_not_heard_at_first_says_again_that_it_starts(cloud, start):
    cloud.logging.refusal = Refusal(403, "not yet")  # as roles take minutes until they hold
    machine = start(0)
    until(lambda: "koalarization: machine 0 of 1 starts" in machine.said)
    cloud.logging.refusal = None
    assert deleted(cloud)[0] == "machine 0 of 1 starts"


def test_what_fails_is_tried_again_and_given_up_soon(cloud, start):
    machine = start(1, 137, 1)
    said = deleted(cloud)
    assert [line for line in said if line.startswith("try ")] == ["try 0", "try 1", "try 2"]
    pauses = [pause for (pause,) in container_runtime.calls(machine.folder, "sleep") if pause != "30"]  # of its watch
    assert pauses[:4] == ["120", "10", "240", "10"]  # in which what is not the run's may pass
    assert "training failed (status 137: try 1); it is tried again" in said
    assert said[-1] == "training failed 3 times (status 1: try 2); all machines of the job are deleted now"


def test_what_fails_after_it_has_trained_for_long_is_no_try(cloud, start):
    start(1, 1, "long", 1, 0)
    said = deleted(cloud)
    assert [line for line in said if line.startswith("try ")] == [f"try {number}" for number in range(5)]
    assert said[-1].startswith("training is finished")


def test_arguments_that_are_not_understood_are_given_up_at_once(cloud, start):
    start(2)
    said = deleted(cloud)
    assert [line for line in said if line.startswith("try ")] == ["try 0"]
    assert said[-1].startswith("trainer.train does not understand its arguments (status 2)")


def test_when_its_time_is_over_it_is_saved_and_all_machines_are_deleted(cloud, start):
    start(*[1] * (failures := 2), "forever", seconds=12)
    said = deleted(cloud)
    assert said[-3:-1] == [f"try {failures}", "saved"]
    assert said[-1].startswith("the time of the job is over; the same launch goes on from its last checkpoint")


def test_training_that_hears_nothing_at_the_end_of_its_time_is_left_behind(cloud, start):
    start("deaf", seconds=5)
    said = deleted(cloud)
    assert said[-1].startswith("the time of the job is over")


def test_a_deletion_that_was_promised_and_did_not_come_is_asked_for_again(cloud, start):
    cloud.compute.deaf = True
    start(0)
    until(lambda: len(cloud.compute.deleted) > 2)
    cloud.compute.deaf = False
    until(lambda: not cloud.compute.groups)


def test_a_machine_that_may_not_write_logs_does_not_train(cloud, start):
    cloud.logging.refusal = Refusal(403, "not for you")
    machine = start(0)
    until(lambda: cloud.compute.deleted)
    assert [call for call in container_runtime.calls(machine.folder, "docker") if call[0] == "run"] == []


def test_a_machine_that_comes_when_the_time_is_over_trains_no_more(cloud, start):
    start(0, seconds=-1)
    said = deleted(cloud)
    assert [line for line in said if line.startswith("try ")] == []
    assert said[-1].startswith("the time of the job is over")


@pytest.mark.parametrize("docker_first", [False, True])
def test_a_machine_that_is_stopped_saves_its_state_and_goes_on_when_it_starts(cloud, start, docker_first):
    machine = start("forever", 0)
    until(lambda: "try 0" in cloud.logging.said())
    machine.shut_down(docker_first=docker_first)
    assert cloud.logging.said()[-1] == "saved"  # what Docker cannot do after that is no failure
    assert cloud.compute.deleted == []
    machine.boot()
    said = deleted(cloud)
    assert "try 1" in said
    calls = container_runtime.calls(machine.folder, "docker")
    assert [call[0] for call in calls] == ["login", "pull", "rm", "run", "stop", "login", "pull", "rm", "run"]


def test_machines_find_each_other_by_their_names(cloud, start):
    machine = start(0, count=3)
    deleted(cloud)
    (run,) = [call for call in container_runtime.calls(machine.folder, "docker") if call[0] == "run"]
    (config,) = [part.partition("=")[2] for part in run if part.startswith("--env=TF_CONFIG=")]
    workers = [f"{GROUP}-{index}.us-central1-a.c.{PROJECT}.internal:2222" for index in range(3)]
    assert json.loads(config.partition("=")[2]) == {
        "cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}
    }  # fmt: skip
    (opened,) = container_runtime.calls(machine.folder, "iptables")
    assert opened == ["--wait", "--append", "INPUT", "--protocol", "tcp", "--jump", "ACCEPT"]


def test_a_machine_alone_lets_nobody_in(cloud, start):
    machine = start(0)
    deleted(cloud)
    assert container_runtime.calls(machine.folder, "iptables") == []


def test_machines_that_another_one_has_deleted_are_fine(cloud, start):
    start("forever", seconds=5)
    until(lambda: "try 0" in cloud.logging.said())
    cloud.compute.groups.clear()
    until(lambda: cloud.logging.said()[-1].startswith("the time of the job is over"))
    time.sleep(2)
    assert cloud.logging.said()[-1].startswith("the time of the job is over")
    assert cloud.compute.deleted == []


def test_machines_that_may_not_be_deleted_say_so_and_ask_again(cloud, start):
    cloud.compute.refusals["compute.instanceGroupManagers.delete"] = Refusal(403, "not for you")
    start(0)
    text = "the machines may not be deleted: their service account needs roles/compute.instanceAdmin.v1"
    until(lambda: cloud.logging.said().count(text) > 1)
    cloud.compute.refusals.clear()
    deleted(cloud)


def test_gpus_get_their_driver_once_a_boot(cloud, start):
    machine = start(1, 0, gpus=2)
    said = deleted(cloud)
    assert said.count("installs NVIDIA's driver for 2 GPUs") == 1
    assert len(container_runtime.calls(machine.folder, "cos-extensions")) == 1
    mounts = container_runtime.calls(machine.folder, "mount")
    assert mounts == [["--bind", "/var/lib/nvidia", "/var/lib/nvidia"], ["-o", "remount,exec", "/var/lib/nvidia"]]
    run = next(call for call in container_runtime.calls(machine.folder, "docker") if call[0] == "run")
    devices = {part for part in run if part.startswith("--device=")}
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
    assert devices == {f"--device=/dev/{name}" for name in names}
    assert "--volume=/var/lib/nvidia/lib64:/usr/local/nvidia/lib64:ro" in run


def test_a_machine_that_lacks_gpus_does_not_train(cloud, start):
    machine = start(0, gpus=2, GPUS="1")
    said = deleted(cloud)
    assert "NVIDIA's driver finds 1 of 2 GPUs: a line of the installer" in said
    assert said[-1].startswith("the machine cannot be made ready to train; all machines of the job are deleted now")
    assert container_runtime.calls(machine.folder, "docker") == []


def test_an_image_that_cannot_be_fetched_is_said(cloud, start):
    start(0, image_status=1)
    said = deleted(cloud)
    assert any(line.rstrip().endswith("cannot be fetched: denied:  a b") for line in said)
    assert said.count("machine 0 of 1 starts") == 1
    assert 3 < len(said) < 30
    assert said[-1].startswith("the machine cannot be made ready to train")
