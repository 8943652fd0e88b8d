"""What can be said of images without building one: no engine for that runs where the tests do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = sorted(Path("docker").glob("*.Dockerfile"))


def version(package, lock="requirements-beam.lock"):
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
    assert users
    assert users[-1] not in ("root", "0")


def test_the_image_for_beam_has_the_versions_of_the_lock_files():
    text = Path("docker/beam.Dockerfile").read_text()
    beam = version("apache-beam")
    assert beam == version("apache-beam", "requirements.lock")
    assert f"apache/beam_python3.11_sdk:{beam} " in text
    assert f'org.koalarization.beam="{beam}"' in text
    assert re.search(r"^FROM python:3\.11\.", text, re.MULTILINE)
    assert 'org.koalarization.python="3.11"' in text
    assert "python311-template-launcher-base" in text


def test_the_image_for_beam_has_all_that_it_copies_and_no_tensorflow():
    text = Path("docker/beam.Dockerfile").read_text()
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in names.split():
            assert Path(name).exists(), name
    packages = re.search(r"include=\[(.+)\]", Path("setup.py").read_text())[1]
    for package in re.findall(r"\"(\w+)\*", packages):
        assert f"COPY {package} " in text
    assert "\ntensorflow==" not in Path("requirements-beam.lock").read_text()
