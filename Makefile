# Two commands do everything: `make demo` and `make test`. Both set themselves up, in .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
  --custom-compile-command 'make requirements'

FAST := -n 2 --dist loadgroup -m 'not slow'
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-lowest test-newest prove speed compare lint requirements kafka \
  compose-check clean

help:
	@echo "make demo    the whole stream on this machine, from nothing"
	@echo "make test    all tests"
	@echo "make test-fast  those that need no server and no container: less than a minute"
	@echo "make test-lowest, make test-newest  the same with the oldest and the newest versions that pyproject.toml allows"
	@echo "make prove   the slow proofs: one digest in any order, after 150 kills and in groups; 100,000 schedules (SCHEDULES=N)"
	@echo "make speed   the learner's speed, in ratios"
	@echo "make compare every learner on the same streams; hours, and goes on where it was stopped"
	@echo "make lint    ruff, mypy, and the order of layers"
	@echo "make requirements  requirements/*.txt in line with pyproject.toml; ARGS=--upgrade: the newest versions"
	@echo "make kafka   a real Kafka broker on this machine, to play with"
	@echo "make compose-check  the tests that bring docker-compose.yml up on a Docker engine: ten minutes"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/build.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) ..."
	@$(INSTALL) --require-hashes -r requirements/build.txt -r requirements/dev.txt
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(RUN) -m demo $(if $(BROKER),--broker $(BROKER)) $(ARGS)

test: setup
	@$(RUN) -m pytest -n 3 --dist loadgroup $(ARGS)

test-fast: setup
	@$(RUN) -m pytest $(FAST) $(ARGS)

test-lowest test-newest: test-%: setup
	@$(VENV)/bin/uv venv --quiet --clear --python $(RUN) $(VENV)-$*
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)-$* --resolution $(RESOLUTION_$*) --editable '.[plot,dev]'
	@$(VENV)-$*/bin/python -m pytest $(FAST) $(ARGS)

prove: setup
	@$(RUN) -m pytest -vv -m prove $(ARGS)

speed: setup
	@$(RUN) -m benchmarks.speed $(ARGS)

compare: setup
	@$(RUN) -m benchmarks.compare $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache

# One version of each package for all Pythons and in all files; the image does without tinygrad and its C compiler.
requirements: setup
	@$(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	  $(COMPILE) --no-annotate $(ARGS) --output-file requirements/build.txt -
	@$(COMPILE) $(ARGS) --all-extras --output-file requirements/dev.txt pyproject.toml
	@$(COMPILE) --constraints requirements/dev.txt --extra plot --output-file requirements/plot.txt pyproject.toml
	@$(COMPILE) --constraints requirements/dev.txt --output-file requirements/base.txt pyproject.toml
	@$(COMPILE) --constraints requirements/dev.txt --no-emit-package tinygrad --no-emit-package ziglang \
	  --output-file requirements/image.txt pyproject.toml

kafka: setup
	@$(RUN) -m deploy.local.kafka $(ARGS)

compose-check: setup
	@$(RUN) -m pytest -vv -s --exitfirst -m compose tests/compose $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-* runs state build *.egg-info .mypy_cache .ruff_cache .hypothesis
