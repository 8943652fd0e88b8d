# Every target sets up .venv by itself; a Python from 3.10 to 3.13 is all that is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
DEMO := demo

.PHONY: setup gpu demo engines flink test test-slow test-engines test-browser browser tensorboard
.PHONY: bench-preprocess bench-input bench-train bench-colorize lint format lock clean cloudbuild

setup: .venv/.complete

# Written last: an installation that was interrupted starts anew.
.venv/.complete: requirements.lock
	$(PYTHON) -m venv --clear .venv
	$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

# The whole path on photographs that ship inside scikit-image, to a page that shows what came of it: archives, shards,
# training on two replicas, measuring, colorizing, the report.
demo: setup
	rm -rf $(DEMO)
	$(RUN) tools.photographs --output=$(DEMO)
	$(RUN) beam_jobs.preprocess --config=configs/demo.py --output=$(DEMO)/data \
		--source=places365:$(DEMO)/archives/val_256.tar --source=imagenet:$(DEMO)/archives/ILSVRC2012_img_train.tar
	$(RUN) pipeline.verify --data=$(DEMO)/data
	$(RUN) pipeline.inspect --data=$(DEMO)/data --output=$(DEMO)/sheet.png
	$(RUN) beam_jobs.embed --config=configs/demo.py --data=$(DEMO)/data
	$(RUN) trainer.train --config=configs/demo.py --data=$(DEMO)/data --workdir=$(DEMO)/run --virtual_replicas=2
	$(RUN) trainer.evaluate --workdir=$(DEMO)/run --data=$(DEMO)/data
	$(RUN) trainer.colorize --workdir=$(DEMO)/run --output=$(DEMO)/colorized $(DEMO)/held_out/*.png
	$(RUN) tools.sheet --truth=$(DEMO)/held_out --colorized=$(DEMO)/colorized --output=$(DEMO)/colorized/sheet.png
	$(RUN) trainer.report --workdir=$(DEMO)/run
	@echo
	@echo "shards:       $(DEMO)/data/*.tfrecord, described by $(DEMO)/data/dataset.json"
	@echo "examples:     $(DEMO)/sheet.png"
	@echo "TensorBoard:  make tensorboard WORKDIR=$(DEMO)/run"
	@echo "pictures:     $(DEMO)/colorized/sheet.png (gray, predicted, truth; no pixel of it was trained on)"
	@echo "all of it:    $(DEMO)/run/report.html, a page for a browser"

# Up to eight processes: each needs 3 GB. More threads of TensorFlow than cores wait for each other, which makes training
# in a test up to three times as slow.
PYTEST := TF_NUM_INTRAOP_THREADS=1 $(RUN) pytest tests
TEST = $(PYTEST) --numprocesses=$(1) --maxprocesses=8 --dist=worksteal

# A process more than cores: some tests wait for most of their time.
test: setup
	$(call TEST,$$(($$(getconf _NPROCESSORS_ONLN) + 1)))

# What takes minutes: a job killed twenty times, mutated pictures and videos, the memory of 200,000 pictures, training
# in float64.
test-slow: setup
	$(call TEST,logical) -m slow

# Other engines for the Beam jobs: Prism, built from the Go module of the Python package's version, and Flink; what
# starts their workers in images; and an emulator of Cloud Storage for tests.
engines: .engines/prism .engines/boot .engines/flink/.complete .engines/fake-gcs-server

BEAM = github.com/apache/beam/sdks/v2/$(1)@v$$(sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' requirements.lock)

.engines/prism: requirements.lock
	GOBIN=$(CURDIR)/.engines go install $(call BEAM,go/cmd/prism)
	touch $@

# What starts a worker in Beam's images.
.engines/boot: requirements.lock
	GOBIN=$(CURDIR)/.engines go install $(call BEAM,python/container)
	mv .engines/container $@
	touch $@

.engines/fake-gcs-server:
	GOBIN=$(CURDIR)/.engines go install github.com/fsouza/fake-gcs-server@v1.56.0

.engines/flink/.complete: engines/flink.xml
	rm -rf .engines/flink
	mvn -q -B -f $< org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(CURDIR)/.engines/flink
	touch $@

# Flink with Beam's job server, on this machine, until interrupted.
flink: .engines/flink/.complete
	java $(addprefix --add-opens=java.base/java.,lang=ALL-UNNAMED nio=ALL-UNNAMED util=ALL-UNNAMED) \
		-cp '.engines/flink/*' org.apache.beam.runners.flink.FlinkJobServerDriver --flink-master='[local]' \
		--job-port=8099 --artifact-port=0 --expansion-port=0

# The same job on every engine, and the whole demo on Cloud Storage; a process for each of the four files, which mostly
# wait.
test-engines: setup engines
	$(PYTEST) -m engines --numprocesses=4 --dist=loadfile

# What a person sees of a run and of a study in a real browser; Chromium is installed where there is none (Debian, as
# root).
test-browser: setup browser
	$(PYTEST) -m browser

browser:
	@command -v chromedriver > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium chromium-driver)

# The curves and pictures of the run in WORKDIR, or of all runs below it; remote ones are not read too often, and not by
# TensorBoard's fast loader, which knows few kinds of credentials.
PORT ?= 6006
tensorboard: setup
	$(BIN)/tensorboard --logdir=$(or $(WORKDIR),$(error name the run: make tensorboard WORKDIR=RUN)) \
		--port=$(PORT) --reload_interval=60 --samples_per_plugin=images=100,scalars=10000 \
		$(if $(findstring ://,$(WORKDIR)),--load_fast=false)

# Figures, as ratios within one run; PICTURES names a folder of JPEGs, else photographs of scikit-image are cut.
bench-preprocess: setup
	$(RUN) benchmarks.preprocess $(if $(PICTURES),--pictures=$(PICTURES))

# The same for what trains: from shards to batches, beside other libraries, which are installed for it.
bench-input: setup .venv/.bench
	$(RUN) benchmarks.input $(if $(PICTURES),--pictures=$(PICTURES))

# A step of the training loop, beside a bare one.
bench-train: setup
	$(RUN) benchmarks.train

# What colorizes, beside the bare model; memory; and how much less colors flicker in a video.
bench-colorize: setup
	$(RUN) benchmarks.colorize $(if $(PICTURES),--pictures=$(PICTURES))

.venv/.bench: requirements-bench.lock
	$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# What Cloud Build does, on this machine, but for what needs Docker: lint and test.
cloudbuild: setup
	$(RUN) tools.build_steps

format: setup
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# CUDA for machines with NVIDIA GPUs: 3 GB on top of the rest, and of no use elsewhere.
gpu: setup
	$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements-gpu.lock

# Resolves the ranges of setup.py for all supported Pythons at once.
COMPILE := $(RUN) uv pip compile setup.py --universal --python-version 3.10 --generate-hashes --no-header --quiet
lock: setup
	$(COMPILE) $(addprefix --extra ,worker gcp launch trainer inspect report video study onnx test dev) -o requirements.lock
	$(COMPILE) --extra worker --extra gcp -c requirements.lock -o requirements-beam.lock
	$(COMPILE) --extra worker --extra gcp --extra trainer --extra gpu -c requirements.lock -o requirements-gpu.lock
	$(COMPILE) --extra worker --extra trainer --extra bench -c requirements.lock -o requirements-bench.lock

clean:
	rm -rf $(DEMO) .venv
