# For training on GPUs, and for Dataflow's workers of the jobs that use a model (beam_jobs.embed, beam_jobs.colorize).
#
#     docker build --file=docker/trainer.Dockerfile --tag=REGION-docker.pkg.dev/PROJECT/REPOSITORY/trainer:TAG .
#     docker run --entrypoint=python IMAGE -m trainer.train --config=configs/koalarization.py --data=... --workdir=...
#
# tests/test_docker.py compares the versions here with those of the lock files.
FROM python:3.11.9-slim-bookworm

# What starts a worker.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam

LABEL org.koalarization.beam="2.77.0" org.koalarization.python="3.11" org.koalarization.tensorflow="2.21.0"

# The machine brings NVIDIA's driver: Container-Optimized OS mounts it here, and other systems' tools obey what follows.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /koalarization

# Before the package, so that a change of it builds only what follows.
COPY requirements-gpu.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement=requirements-gpu.lock

COPY setup.py ./
COPY cloud ./cloud
COPY pipeline ./pipeline
COPY beam_jobs ./beam_jobs
COPY trainer ./trainer
COPY configs ./configs
COPY docker/boot.sh ./
# Weights that are downloaded go to the home of whoever trains.
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid=1000 worker
USER 1000

# All is here that workers need; else each would make an environment of its own where only root may.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1

ENTRYPOINT ["/koalarization/boot.sh"]
