# featx: every action is one target; each sets up what it needs.
#
#   make demo                                  the whole way on built-in data
#   make test                                  the tests; what is not installed, they name and skip
#   make system                                Node, strace and Chromium, for all of the tests (apt-get, as root)
#   make web                                   onnxruntime-web, for featx page (by npm)
#   make check                                 format, lint, types
#   make onnx DATA=photos/ BACKBONE=resnet18   images → features → head → model, as far as needed;
#                                              without DATA and BACKBONE as the last time
#   make onnx CUT=layer4                       the same, with everything behind a module trained too
#   make packages                              build featx and featx-core, install and run both
#   make docs                                  the site, in artifacts/site; links and anchors are checked
#   make bench                                 the benchmarks; BENCH='--case tiny --rounds 3' for a part
#   make clean                                 delete what the demo and the chain made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HEIF := $(VENV)/heif/.ready
CLIENTS := tests/clients/node_modules/.ready
FEATX := $(BIN)/featx
PEERS := .venv-bench
FEATX_DATA ?= ../shared/data

DATA ?=
BACKBONE ?=
CUT ?=
EXTRACT ?=
TRAIN ?=
TUNE ?=
EXPORT ?=
BENCH ?=
OUT := artifacts

.PHONY: help setup web system demo test test-random test-slow packages docs check format bench features head onnx clean

help:
	@sed -n 's/^#  //p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

system:
	@missing=; for each in node:nodejs npm:npm strace:strace chromium:chromium; do \
		command -v $${each%:*} >/dev/null || missing="$$missing $${each#*:}"; done; \
	test -z "$$missing" || { echo "Installing$$missing"; apt-get update -qq && \
		apt-get install --yes -qq --no-install-recommends $$missing >/dev/null; }

# Apart from the rest: without it, featx says what reads HEIC.
$(HEIF): constraints.txt | $(READY)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--constraint constraints.txt --target $(@D) pillow-heif; \
	then touch $@; else echo "The test of HEIC will skip: pip could not install pillow-heif." >&2; fi

$(CLIENTS): tests/clients/package.json tools/clients.sh
	@sh tools/clients.sh

web: $(CLIENTS)

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/demo.sh

test: $(READY) $(CLIENTS) $(HEIF)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-random: $(READY)
	$(BIN)/python -m pytest --hypothesis-profile random -m 'hypothesis and not slow' \
		--numprocesses auto --maxprocesses 8

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir artifacts/site
	@! grep -rE '<(script|link|img)[^>]*(src|href)="?https?://' artifacts/site --include='*.html' || \
		{ echo 'The pages above load something from elsewhere.' >&2; exit 1; }
	FEATX_SITE=artifacts/site $(BIN)/python -m pytest --quiet -m slow tests/test_site.py
	@echo 'artifacts/site/index.html'

$(VENV)/.docs: pyproject.toml constraints.txt | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	@touch $@

packages: $(READY) $(CLIENTS)
	$(BIN)/python benchmarks/install.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) $(CLIENTS) $(PEERS)/.ready $(PEERS)/cifar10.h5
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/extraction.py $(BENCH)
	$(BIN)/python benchmarks/small_images.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/serve.py --write
	PYTHONPATH=. $(PEERS)/peers/bin/python benchmarks/decoders.py
	$(BIN)/python benchmarks/heads.py $(PEERS)/cifar10.h5 --write
	$(BIN)/python benchmarks/cache.py unchanged
	$(BIN)/python benchmarks/cache.py overhead
	$(BIN)/python benchmarks/cache.py footprint
	$(BIN)/python benchmarks/crashes.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/clients.py
	$(BIN)/python benchmarks/page.py

# The peers of the benchmark: the first ones run on the torch that featx runs on, thingsvision on the
# old one it asks for (7 GB). What is not there is left out of the tables.

$(PEERS)/.ready: benchmarks/peers.txt benchmarks/thingsvision.txt | $(READY)
	$(PYTHON) -m venv $(PEERS)/peers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/featx.pth"
	$(PEERS)/peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)/thingsvision
	$(PEERS)/thingsvision/bin/python -m pip install --quiet --disable-pip-version-check \
		-r benchmarks/thingsvision.txt || rm -rf $(PEERS)/thingsvision
	@touch $@

# Features of all CIFAR-10 images, for the heads.

$(PEERS)/cifar10.h5: | $(READY)
	@mkdir -p $(PEERS)/cifar10
	tar -xzf $(FEATX_DATA)/cifar10_jpeg/cifar10_jpeg.tar.gz -C $(PEERS)/cifar10 --strip-components=1
	$(FEATX) extract $(PEERS)/cifar10 -b squeezenet1_1 --image-size 96 --val-fraction 0 -o $@ -q \
		-w $(FEATX_DATA)/weights/squeezenet1_1-mango-c10.pth

# The chain: featx is called for each file, and does only what is left to do. Values reach it through
# the environment, as they are: no name is read as a command, an option or an expression of make.
# EXTRACT, TRAIN (with CUT: TUNE) and EXPORT are options; xargs splits them, so an argument with spaces
# goes in quotes:
#
#   make features EXTRACT='--weights "my weights.pth"'

override DATA := $(value DATA)
override BACKBONE := $(value BACKBONE)
override CUT := $(value CUT)
override EXTRACT := $(value EXTRACT)
override TRAIN := $(value TRAIN)
override TUNE := $(value TUNE)
override EXPORT := $(value EXPORT)
override OUT := $(value OUT)
export DATA BACKBONE CUT EXTRACT TRAIN TUNE EXPORT OUT

features: | $(READY)
	@case $$DATA in -*) DATA=./$$DATA ;; esac; \
	printf '%s\n' "$$EXTRACT" | xargs $(FEATX) extract \
		$${DATA:+"$$DATA"} $${BACKBONE:+--backbone "$$BACKBONE"} $${CUT:+--cut "$$CUT"} \
		--output "$$OUT/features$${CUT:+-$$CUT}.h5"

head: features
	@if test -z "$$CUT"; then printf '%s\n' "$$TRAIN" | xargs $(FEATX) train-head \
		"$$OUT/features.h5" --output "$$OUT/head.safetensors"; \
	else printf '%s\n' "$$TUNE" | xargs $(FEATX) finetune \
		"$$OUT/features-$$CUT.h5" --output "$$OUT/tuned.safetensors"; fi

onnx: head
	@test -z "$$CUT" && head=head || head=tuned; \
	printf '%s\n' "$$EXPORT" | xargs $(FEATX) export \
		"$$OUT/$$head.safetensors" --onnx "$$OUT/model.onnx"

clean:
	rm -rf -- "$$OUT/demo" "$$OUT/features.h5" "$$OUT/head.safetensors" "$$OUT/model.onnx" \
		"$$OUT/tuned.safetensors" $${CUT:+"$$OUT/features-$$CUT.h5"}
