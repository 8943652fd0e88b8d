"""Runs the steps of cloudbuild.yaml on this machine, in their order, but for those that need Docker or Google Cloud.

make cloudbuild
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import yaml
from absl import flags
from google.cloud.devtools.cloudbuild_v1 import Build, BuildStep
from google.protobuf import json_format

from pipeline import cli
from pipeline.errors import UserError, one_line

FILE_NAME = "cloudbuild.yaml"
_HERE = "python:"  # images of which nothing is needed but what is on this machine
# What Cloud Build sets by itself, of what is used here. https://cloud.google.com/build/docs/configuring-builds/substitute-variable-values
_BUILT_IN = {"PROJECT_ID": "a-project", "COMMIT_SHA": "0" * 40, "BRANCH_NAME": "main"}
_REFERENCE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def load(path: str = FILE_NAME) -> Build:
    """Reads a build as Cloud Build does.

    Raises:
        UserError: a field that builds do not have, or of another type.
    """
    try:
        with open(path) as file:
            return Build(json_format.ParseDict(yaml.safe_load(file), Build.pb(Build())))
    except (yaml.YAMLError, json_format.ParseError) as error:
        raise UserError(f"{path} is no build: {one_line(error)}") from error


def variables(build: Build, own: Mapping[str, str]) -> dict[str, str]:
    """What the scripts of a build find in their environment.

    Args:
        build: whose substitutions may name others.
        own: values in place of the build's, and of those that Cloud Build sets.

    Raises:
        UserError: a value for what the build does not have, or a name without a value.
    """
    known = {**_BUILT_IN, **build.substitutions}
    if unknown := own.keys() - known.keys():
        raise UserError(f"{min(unknown)} is no substitution of {FILE_NAME}; there are {', '.join(sorted(known))}")
    values = {**known, **own}

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in values:
            raise UserError(f"{FILE_NAME} names ${name}, which has no value")
        return values[name]

    return {name: _REFERENCE.sub(value, text) for name, text in values.items()}


def run(step: BuildStep, environment: Mapping[str, str]) -> None:
    """Runs the script of a step.

    Raises:
        UserError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "script")
        with open(path, "w") as file:
            file.write(step.script)
        os.chmod(path, 0o700)
        status = subprocess.run([path], env={**os.environ, **environment}).returncode
    if status:
        raise UserError(f"step {step.id} of {FILE_NAME} ends with status {status}; what it said stands above")


def main(argv: Sequence[str]) -> None:
    """Runs what can be run here."""
    cli.parse_flags(flags.FlagValues(), argv, __doc__)
    build = load()
    environment = variables(build, {})
    own = [step for step in build.steps if step.name.startswith(_HERE)]
    if not own:
        raise UserError(f"{FILE_NAME} has no step that runs here: in an image {_HERE}...")
    for step in own:
        run(step, environment)


if __name__ == "__main__":
    cli.launch(main)
