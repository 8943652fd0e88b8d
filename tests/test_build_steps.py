"""What Cloud Build is asked to do: read by its own definition, and run, with Docker and gcloud in doubles."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.cloud.devtools.cloudbuild_v1 import BuildStep

from pipeline.errors import UserError
from tools import build_steps

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "europe-west4-docker.pkg.dev/a-project/koalarization"


@pytest.fixture(scope="module")
def build():
    return build_steps.load()


def scripts(build):
    return {step.id: step.script for step in build.steps}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Docker and gcloud that only write down how they were called; the calls so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()
    for name in ("docker", "gcloud"):
        program = "import json, sys; print(json.dumps(sys.argv[1:]))"
        (folder / name).write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}' {name} \"$@\" >> {calls}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def git(*arguments):
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(not Path(".git").exists(), reason="this is no checkout of git")
def test_what_is_sent_is_what_git_has_and_nothing_that_lies_beside_it():
    assert git("ls-files", "README.md") == ["README.md"]
    assert git("ls-files", "--cached", "--ignored", "--exclude-from=.gcloudignore") == []
    beside = [
        "val_256.tar",
        "DATA/train-00000-of-00128.tfrecord",
        "RUN/config.json",
        ".venv/bin/python",
        "demo/sheet.png",
    ]
    excludes = f"core.excludesFile={Path('.gcloudignore').resolve()}"
    assert git("-c", excludes, "check-ignore", "--no-index", *beside, "tests/conftest.py") == beside


def run(build, step_id, **own):
    (step,) = (step for step in build.steps if step.id == step_id)
    own = {"_REGION": "europe-west4", "COMMIT_SHA": COMMIT, "BRANCH_NAME": "a/branch", **own}
    build_steps.run(step, build_steps.variables(build, own))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: []", "no field named .stepz."),
        ("timeout: soon", "timeout"),
        ("steps: [{id: 3}]", "id"),
        ("a: [", "is no build"),
    ],
)
def test_what_is_no_build_is_refused(tmp_path, text, said):
    path = tmp_path / "build.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        build_steps.load(str(path))


def test_steps_wait_for_what_comes_before_them(build):
    before = set()
    for step in build.steps:
        assert set(step.wait_for) <= before
        before.add(step.id)
    assert {step.id: list(step.wait_for) for step in build.steps} == {
        "setup": [], "lint": ["setup"], "test": ["setup"], "beam-image": ["lint", "test"],
        "trainer-image": ["lint", "test"], "template": ["beam-image"],
    }  # fmt: skip


def test_scripts_use_what_they_are_given_and_no_more(build):
    given = build_steps.variables(build, {})
    for step in build.steps:
        assert step.script.startswith("#!/usr/bin/env bash\nset -euo pipefail\n")
        assert set(re.findall(r"\$\{?(\w+)", step.script)) <= given.keys()
    assert given["_BUCKET"] == "a-project-koalarization"
    assert build.options.automap_substitutions


def test_substitutions_must_be_known():
    build = build_steps.load()
    with pytest.raises(UserError, match="_REGOIN is no substitution of cloudbuild.yaml; there are BRANCH_NAME, "):
        build_steps.variables(build, {"_REGOIN": "x"})
    build.substitutions["_BUCKET"] = "$_NONE"
    with pytest.raises(UserError, match="names ._NONE, which has no value"):
        build_steps.variables(build, {})


def test_it_calls_the_targets_that_people_call(build):
    makefile = Path("Makefile").read_text()
    called = re.findall(r"^make (\S+)$", "".join(scripts(build).values()), re.MULTILINE)
    assert called == ["setup", "lint", "test"]
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert re.search(r"^make cloudbuild$", Path(".ci/run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["beam", "trainer"])
def test_an_image_is_pushed_by_commit_and_branch_and_its_layers_are_kept(build, programs, name):
    run(build, f"{name}-image")
    image = f"{REPOSITORY}/{name}"
    made, *pushed = programs()
    assert made == [
        "docker", "build", "--platform=linux/amd64", f"--file=docker/{name}.Dockerfile",
        "--build-arg=BUILDKIT_INLINE_CACHE=1",
        f"--cache-from={image}:a-branch", f"--cache-from={image}:main", f"--tag={image}:{COMMIT}",
        f"--tag={image}:a-branch", ".",
    ]  # fmt: skip
    assert pushed == [["docker", "push", f"{image}:{COMMIT}"], ["docker", "push", f"{image}:a-branch"]]
    assert Path(f"docker/{name}.Dockerfile").exists()


def test_the_template_is_built_of_the_image_that_was_pushed(build, programs):
    run(build, "beam-image")
    run(build, "template")
    *_, template = programs()
    assert template == [
        "gcloud", "dataflow", "flex-template", "build",
        f"gs://a-project-koalarization/templates/preprocess-{COMMIT}.json",
        f"--image={REPOSITORY}/beam:{COMMIT}", "--sdk-language=PYTHON",
        "--metadata-file=docker/preprocess_template.json",
    ]  # fmt: skip
    assert ["docker", "push", f"{REPOSITORY}/beam:{COMMIT}"] in programs()


def test_without_a_commit_or_a_branch_nothing_begins(build, programs, capfd):
    for name in ("COMMIT_SHA", "BRANCH_NAME"):
        for step in ("setup", "beam-image"):
            with pytest.raises(UserError, match=f"step {step} of cloudbuild.yaml ends with status 1"):
                run(build, step, **{name: ""})
            assert "is empty: " in capfd.readouterr().err
    assert programs() == []


def test_what_needs_no_docker_is_run_here_in_its_order(monkeypatch):
    ran = []
    monkeypatch.setattr(build_steps, "run", lambda step, environment: ran.append(step.id))
    build_steps.main(["build_steps"])
    assert ran == ["setup", "lint", "test"]
    monkeypatch.setattr(build_steps, "_HERE", "another:")
    with pytest.raises(UserError, match="cloudbuild.yaml has no step that runs here: in an image another:..."):
        build_steps.main(["build_steps"])


def test_a_step_that_fails_ends_the_build():
    step = BuildStep(id="broken", script="#!/usr/bin/env bash\nexit 3\n")
    with pytest.raises(UserError, match="step broken of cloudbuild.yaml ends with status 3"):
        build_steps.run(step, {})


def test_the_script_that_builds_images_says_what_it_takes():
    result = subprocess.run(["docker/build.sh", "beam"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "takes a name, a repository, a commit and a branch, not 1 arguments" in result.stderr
    command = [Path(sys.executable).parent / "shellcheck", "docker/build.sh"]
    assert subprocess.run(command, capture_output=True).returncode == 0
