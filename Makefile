# Two commands set up everything on a fresh Debian 12: `make demo` and `make check`.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo check lint test-unit test-vm setup golden bench soak soak-short clean

help:
	@echo "make demo        the main job on real Debian content, under demo/"
	@echo "make check       lint, types, unit tests, VM tests, a share of the experiments; PART=NAME for one part"
	@echo "make lint        lint and types alone"
	@echo "make test-unit   unit tests alone, no VM"
	@echo "make test-vm     VM tests alone"
	@echo "make golden      renew the golden files of the tests"
	@echo "make bench       measure; docs/performance.md keeps the tables"
	@echo "make soak-short  the same with more trials and boots, for a change in what they guard: an hour"
	@echo "make soak        the experiments of tests/faults at full length: hours"
	@echo "make clean       remove what make made, the demo included"

setup: $(STAMP)

$(STAMP): pyproject.toml packages.debian scripts/setup
	scripts/setup $(VENV)
	touch $@

demo: setup
	scripts/demo $(VENV)

lint: setup
	scripts/lint $(VENV)

test-unit: setup
	$(VENV)/bin/pytest -n 4 tests/unit

CHECK := $(PYTHON) -m tests.check.run $(VENV) $(if $(DAY),--day $(DAY)) $(if $(LANES),--lanes $(LANES)) \
	$(addprefix --part ,$(PART))

test-vm: setup
	$(CHECK) --vm

check: setup
	$(CHECK)

soak-short: setup
	$(CHECK) --vm --length short

golden: setup
	$(VENV)/bin/pytest tests/unit/test_domain.py --renew-golden

bench: setup
	$(PYTHON) -m tests.bench.run $(CASE) $(if $(OUT),--out $(OUT))

soak: setup
	scripts/soak $(VENV) $(if $(CASE),--case $(CASE)) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
