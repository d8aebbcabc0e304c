# Two commands do everything: `make demo` and `make test`. Both set themselves up, in .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test prove speed compare lint dashboards kafka compose-check clean

help:
	@echo "make demo    the whole stream on this machine, from nothing"
	@echo "make test    all tests"
	@echo "make prove   every claim of the README, measured again"
	@echo "make speed   the learner's speed, in ratios"
	@echo "make compare every learner on the same streams; hours, and goes on where it was stopped"
	@echo "make lint    ruff and mypy"
	@echo "make dashboards  Grafana's dashboards, written anew from deploy/grafana"
	@echo "make kafka   a real Kafka broker on this machine, to play with"
	@echo "make compose-check  docker-compose.yml, brought up on a Docker engine and checked"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[plot,dev]'
	@touch $@

demo: setup
	@$(RUN) -m demo $(if $(BROKER),--broker $(BROKER)) $(ARGS)

test: setup
	@$(RUN) -m pytest -n 3 --dist loadgroup $(ARGS)

prove: setup
	@$(RUN) -m benchmarks.prove $(ARGS)

speed: setup
	@$(RUN) -m benchmarks.speed $(ARGS)

compare: setup
	@$(RUN) -m benchmarks.compare $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

dashboards: setup
	@$(RUN) -m deploy.grafana.generate

kafka: setup
	@$(RUN) -m deploy.local.kafka $(ARGS)

compose-check: setup
	@$(RUN) -m deploy.check $(ARGS)

clean:
	rm -rf $(VENV) runs state build *.egg-info .mypy_cache .ruff_cache .hypothesis
