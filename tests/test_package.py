import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import setuptools  # noqa: F401  # what builds the wheel below; it comes with the lock file


def test_wheel_holds_every_package_and_imports_without_the_checkout(tmp_path):
    """What Dataflow's workers are given by --setup_file; its NumPy half runs where there is no TensorFlow."""
    checkout = Path(__file__).parents[1]
    for name in (
        "cloud",
        "pipeline",
        "beam_jobs",
        "trainer",
        "configs",
        "tools",
        "tests",
    ):  # a copy: builds leave files behind
        shutil.copytree(checkout / name, tmp_path / "copy" / name)
    shutil.copy(checkout / "setup.py", tmp_path / "copy")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        tmp_path / "copy",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        tmp_path,
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    for name in (
        "cloud/checks.py",
        "pipeline/example.py",
        "beam_jobs/preprocess.py",
        "trainer/models/koalarization.py",
        "configs/demo.py",
        "trainer/report.html",
        "trainer/study/templates/base.html",
        "trainer/study/static/study.css",
    ):
        assert name in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    program = (
        "import sys; sys.modules['tensorflow'] = None; import beam_jobs.preprocess, pipeline; print(pipeline.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout
