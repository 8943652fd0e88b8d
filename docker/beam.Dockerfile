# For Dataflow's workers, and for the launcher of the Flex Template: what is submitted and what does the work are the same.
#
#     docker build --file=docker/beam.Dockerfile --tag=REGION-docker.pkg.dev/PROJECT/REPOSITORY/beam:TAG .
#
# tests/test_docker.py compares the versions here with those of the lock files.
FROM python:3.11.9-slim-bookworm

# What starts a worker, and what starts a template.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
COPY --from=gcr.io/dataflow-templates-base/python311-template-launcher-base:flex_templates_base_image_release_20240628_RC00 \
    /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

LABEL org.koalarization.beam="2.77.0" org.koalarization.python="3.11"

WORKDIR /koalarization

# Before the package, so that a change of it builds only what follows.
COPY requirements-beam.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement=requirements-beam.lock

COPY setup.py ./
COPY cloud ./cloud
COPY pipeline ./pipeline
COPY beam_jobs ./beam_jobs
COPY trainer ./trainer
COPY configs ./configs
COPY docker/template.py docker/boot.sh ./
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# The launcher logs below /var/log.
RUN useradd --create-home --uid=1000 worker \
    && mkdir --parents /var/log/dataflow/template_launcher \
    && chown --recursive 1000 /var/log/dataflow
USER 1000

# All is here that workers need; else each would make an environment of its own where only root may.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/koalarization/template.py
ENTRYPOINT ["/koalarization/boot.sh"]
