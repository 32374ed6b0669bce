# make run: the API and the dashboard.  make test: every test.  make check: lint and types.  make help: the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# On Linux mlx-vlm has an environment of its own, for tests alone: it brings another build of OpenCV. On Apple Silicon it
# is in requirements.txt; elsewhere it does not exist.
MLX_READY := $(if $(filter Linux,$(shell uname -s)),.venv-mlx/.ready)
PACKAGES := main.py app.py launcher.py medgemma.py api modules dashboard evaluation training synthetic benchmarks

.DEFAULT_GOAL := help
.PHONY: help run test check format benchmark sample medgemma check-medgemma clean

help: ## show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(VENV)/.ready ## start the API on port 8000 and the dashboard on port 8501
	@exec $(BIN)/python launcher.py

test: $(VENV)/.ready-dev $(MLX_READY) ## run all tests
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

format: $(VENV)/.ready-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.ready-dev ## measure speed and memory, as ratios
	$(BIN)/python -m benchmarks.pipeline

sample: $(VENV)/.ready ## draw assets/sample_xray.png anew
	$(BIN)/python -m synthetic --sample assets/sample_xray.png

medgemma: $(VENV)/.ready ## download MedGemma's weights for this machine (gigabytes; accept its terms first)
	$(BIN)/python medgemma.py download

check-medgemma: $(VENV)/.ready ## load MedGemma, let it read the sample, and measure it
	$(BIN)/python medgemma.py check

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-mlx .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make run PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: requirements.txt constraints.txt | $(BIN)/python
	@echo "Installing packages into $(VENV); the first time takes minutes, PyTorch is large."
	$(PIP_INSTALL) --requirement requirements.txt
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(PIP_INSTALL) --requirement requirements-dev.txt
	@touch $@

.venv-mlx/.ready: requirements-mlx.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-mlx.txt
	@touch $@
