# Every target works on a fresh machine with Python 3.11 or later and make: .venv is set up if it is
# missing or stale.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Tests of one file stay on one worker, so that what they share is made once
JOBS ?= logical
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
export HF_HUB_OFFLINE ?= 1

.PHONY: demo quick test check docs fix bench mutation torture audit licences dist clean

demo: $(STAMP)
	$(BIN)/mergetomix demo

quick: $(STAMP)
	$(PYTEST) -m "not slow"

test: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(PIP) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

mutation: $(STAMP)
	$(PIP) -e ".[mutation]"
	$(BIN)/python studies/mutation.py

torture: $(STAMP)
	$(BIN)/python torture/run.py

audit: $(STAMP)
	$(PIP) -e ".[audit]"
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

licences: $(STAMP)
	$(PIP) -e ".[audit]"
	$(BIN)/pip-licenses --order=license --format=markdown

dist: $(STAMP)
	.ci/dist

clean:
	rm -rf $(VENV) mergetomix-demo mergetomix-demo-image build dist site *.egg-info

# The stamp is newer than what it was made from, so nothing is installed twice. torch goes first: the
# constraint keeps pip from choosing a build with CUDA packages where a CPU build is at hand.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[dev,study,search,harness,ray,s3,trackers]"
	touch $(STAMP)
