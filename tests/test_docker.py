"""What can be said of images without building one: no engine for that runs where the tests do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = sorted(Path("docker").glob("*.Dockerfile"))


def version(package, lock):
    """The version that a lock file has of a package."""
    return re.search(rf"^{package}==([\w.]+)", Path(lock).read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_a_linter_has_nothing_to_say(path):
    result = subprocess.run([Path(sys.executable).parent / "hadolint", path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_bases_are_pinned_and_nobody_is_root(path):
    text = path.read_text()
    bases = re.findall(r"(?:^FROM |--from=)(\S+)", text, re.MULTILINE)
    assert bases
    for base in bases:
        tag = base.partition(":")[2]
        assert re.search(r"\d", tag), base  # no latest, and none without a tag
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == ["1000"]


LOCKS = {"beam": "requirements-beam.lock", "trainer": "requirements-gpu.lock"}


@pytest.mark.parametrize("name", LOCKS)
def test_images_have_the_versions_of_the_lock_files(name):
    text = Path(f"docker/{name}.Dockerfile").read_text()
    beam = version("apache-beam", LOCKS[name])
    assert beam == version("apache-beam", "requirements.lock")
    assert f"apache/beam_python3.11_sdk:{beam} " in text
    assert f'org.koalarization.beam="{beam}"' in text
    assert re.search(r"^FROM python:3\.11\.", text, re.MULTILINE)
    assert 'org.koalarization.python="3.11"' in text
    assert f"COPY {LOCKS[name]} " in text
    assert text.rstrip().endswith('ENTRYPOINT ["/koalarization/boot.sh"]')


@pytest.mark.parametrize("name", LOCKS)
def test_images_have_all_that_they_copy(name):
    text = Path(f"docker/{name}.Dockerfile").read_text()
    sent = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")]
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for copied in names.split():
            assert Path(copied).exists(), copied
            for path in [Path(copied)] if Path(copied).is_file() else Path(copied).rglob("*.py"):
                assert any(path.match(each) or path.is_relative_to(each) for each in sent), path
    packages = re.search(r"include=\[(.+)\]", Path("setup.py").read_text())[1]
    for package in re.findall(r"\"(\w+)\*", packages):
        assert f"COPY {package} " in text


def test_the_image_for_beam_can_start_a_template_and_has_no_tensorflow():
    assert "python311-template-launcher-base" in Path("docker/beam.Dockerfile").read_text()
    assert "\ntensorflow==" not in Path(LOCKS["beam"]).read_text()


def test_the_image_for_training_has_cuda_and_takes_the_driver_of_the_machine():
    text = Path("docker/trainer.Dockerfile").read_text()
    tensorflow = version("tensorflow", LOCKS["trainer"])
    assert tensorflow == version("tensorflow", "requirements.lock")
    assert f'org.koalarization.tensorflow="{tensorflow}"' in text
    assert version("nvidia-cudnn-cu12", LOCKS["trainer"])
    assert version("google-cloud-storage", LOCKS["trainer"])  # for the jobs that use a model
    mounted = re.search(r"--volume=\S+lib64:(\S+):ro", Path("trainer/launch/startup.sh").read_text())[1]
    assert f"LD_LIBRARY_PATH={mounted} " in text
