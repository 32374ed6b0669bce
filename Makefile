# make run: the API and the dashboard.  make test: every test.  make check: lint and types.  make help: the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# On Linux mlx-vlm has an environment of its own, for tests alone: it brings another build of OpenCV. On Apple Silicon it
# is in requirements.txt; elsewhere it does not exist.
MLX_READY := $(if $(filter Linux,$(shell uname -s)),.venv-mlx/.ready)
WHEEL_VENV := .venv-wheel
LOCKED_VENV := .venv-locked
TOOLS_VENV := .venv-tools
LOCK := requirements-locked.txt
READ_SAMPLE := from modules.pipeline import Pipeline; from modules.settings import PROJECT_ROOT, Settings; \
  pipeline = Pipeline.from_settings(Settings(medgemma_mode="dummy")); \
  print(pipeline.analyze((PROJECT_ROOT / "assets" / "sample_xray.png").read_bytes(), "").risk_level)
PACKAGES := main.py app.py launcher.py medgemma.py api batch modules dashboard evaluation training synthetic benchmarks scale fuzz

.DEFAULT_GOAL := help
.PHONY: help run test test-ray check contract fuzz format benchmark soak notebook sample medgemma check-medgemma wheel check-wheel lock check-locked audit clean

help: ## show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.ready ## start the API on port 8000 and the dashboard on port 8501
	@exec $(BIN)/python launcher.py

test: $(VENV)/.ready-dev $(MLX_READY) ## run all tests
	$(BIN)/python -m pytest

test-ray: $(VENV)/.ready-ray ## install Ray, and run what needs it
	$(BIN)/python -m pytest tests/test_scale.py tests/test_scale_ray.py -rs

check: $(VENV)/.ready-dev ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

contract: $(VENV)/.ready-dev ## try thousands of cases of every route against OpenAPI
	CONTRACT_EXAMPLES=2000 $(BIN)/python -m pytest tests/test_contract.py

fuzz: $(VENV)/.ready-dev ## throw 100,000 changed films and archives at the decoders
	$(BIN)/python -m fuzz.decoders --executions 100000

format: $(VENV)/.ready-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.ready-dev ## measure speed and memory, as ratios
	$(BIN)/python -m benchmarks.pipeline

soak: $(VENV)/.ready-dev ## half an hour of good films, bad files, slow clients and clients that leave; memory must stay
	$(BIN)/python -m benchmarks.soak

notebook: $(VENV)/.ready-notebook ## open the notebook in JupyterLab
	$(BIN)/jupyter lab Med_Ai.ipynb

sample: $(VENV)/.ready ## draw assets/sample_xray.png anew
	$(BIN)/python -m synthetic --sample assets/sample_xray.png

medgemma: $(VENV)/.ready ## download MedGemma's weights for this machine (gigabytes; accept its terms first)
	$(BIN)/python medgemma.py download

check-medgemma: $(VENV)/.ready ## load MedGemma, let it read the sample, and measure it
	$(BIN)/python medgemma.py check

wheel: | $(BIN)/python ## build the source archive and the wheel into dist
	$(PIP_INSTALL) build setuptools
	rm -rf dist
	$(BIN)/python -m build --no-isolation

check-wheel: wheel ## install the wheel into an environment of its own, and let it read its sample
	rm -rf $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd $(WHEEL_VENV) && bin/python -P -m evaluation --help >/dev/null
	cd $(WHEEL_VENV) && bin/python -P -c '$(READ_SAMPLE)'

lock: $(TOOLS_VENV)/.ready ## write requirements-locked.txt anew: the pins, with the hashes of their files
	$(TOOLS_VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --constraint constraints.txt --output-file $(LOCK) requirements.txt

check-locked: ## install the very files whose hashes are locked into an environment of its own, and read the sample
	rm -rf $(LOCKED_VENV)
	$(PYTHON) -m venv $(LOCKED_VENV)
	$(LOCKED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		--requirement $(LOCK)
	$(LOCKED_VENV)/bin/python -c '$(READ_SAMPLE)'

audit: $(TOOLS_VENV)/.ready ## ask the Python Packaging Advisory Database about every locked package
	$(TOOLS_VENV)/bin/pip-audit --disable-pip --require-hashes --strict --requirement $(LOCK)

clean: ## remove the environments, what was built, and caches
	rm -rf $(VENV) .venv-mlx $(WHEEL_VENV) $(LOCKED_VENV) $(TOOLS_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

$(VENV)/.ready-notebook: requirements-notebook.txt $(VENV)/.ready
	$(PIP_INSTALL) --requirement requirements-notebook.txt
	@touch $@

$(TOOLS_VENV)/.ready: requirements-tools.txt
	$(PYTHON) -m venv $(TOOLS_VENV)
	$(TOOLS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-tools.txt
	@touch $@

$(VENV)/.ready-ray: requirements-ray.txt $(VENV)/.ready-dev
	$(PIP_INSTALL) --requirement requirements-ray.txt
	@touch $@

.venv-mlx/.ready: requirements-mlx.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-mlx.txt
	@touch $@
