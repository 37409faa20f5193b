# featx: every action is one target; each sets up what it needs.
#
#   make demo                                  the whole way on built-in data
#   make test                                  the tests
#   make check                                 format, lint, types
#   make onnx DATA=photos/ BACKBONE=resnet18   images → features → head → model, as far as needed
#   make bench                                 the benchmarks; BENCH='--case tiny --rounds 3' for a part
#   make clean                                 delete what the demo and the chain made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLIENTS := tests/clients/node_modules/.ready
FEATX := $(BIN)/featx
PEERS := .venv-bench
FEATX_DATA ?= ../shared/data

DATA ?=
BACKBONE ?= resnet18
EXTRACT ?=
TRAIN ?=
EXPORT ?=
BENCH ?=
OUT := artifacts

.PHONY: help setup demo test test-slow check format bench features head onnx clean FORCE

help:
	@sed -n 's/^#  //p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

$(CLIENTS): tests/clients/package.json tools/clients.sh
	@sh tools/clients.sh

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/demo.sh

test: $(READY) $(CLIENTS)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

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
	$(BIN)/python benchmarks/extraction.py $(BENCH)
	$(BIN)/python benchmarks/turns.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/decode.py
	PYTHONPATH=. $(PEERS)/peers/bin/python benchmarks/decoders.py
	$(BIN)/python benchmarks/heads.py $(PEERS)/cifar10.h5 --write
	$(BIN)/python benchmarks/cache.py unchanged
	$(BIN)/python benchmarks/cache.py overhead
	$(BIN)/python benchmarks/cache.py footprint
	$(BIN)/python benchmarks/crashes.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/clients.py

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

# The chain. A file is made again when what it depends on has changed: the images (names, sizes,
# times) or the options given on the command line. Without DATA, TRAIN or EXPORT the last ones hold.

features: $(OUT)/features.h5
head: $(OUT)/head.safetensors
onnx: $(OUT)/model.onnx

$(OUT)/features.h5: $(OUT)/.extract | $(READY)
	@eval "$(FEATX) extract -o $@ --overwrite $$(sed -n 1p $<)"

$(OUT)/head.safetensors: $(OUT)/features.h5 $(OUT)/.train | $(READY)
	@eval "$(FEATX) train-head $< -o $@ --overwrite $$(sed -n 1p $(OUT)/.train)"

$(OUT)/model.onnx: $(OUT)/head.safetensors $(OUT)/.export | $(READY)
	@eval "$(FEATX) export $< --onnx $@ --overwrite $$(sed -n 1p $(OUT)/.export)"

$(OUT)/.extract: FORCE
	@sh tools/note.sh $@ "$(if $(DATA),'$(DATA)' --backbone $(BACKBONE) $(EXTRACT))" "$(DATA)"

$(OUT)/.train: FORCE
	@sh tools/note.sh $@ "$(TRAIN)"

$(OUT)/.export: FORCE
	@sh tools/note.sh $@ "$(EXPORT)"

FORCE:

clean:
	rm -rf $(OUT)/demo $(OUT)/features.h5 $(OUT)/head.safetensors $(OUT)/model.onnx
	rm -f $(OUT)/.extract $(OUT)/.train $(OUT)/.export
