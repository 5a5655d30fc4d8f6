# PYTHON makes the virtual environment; everything else runs from inside it.
PYTHON ?= python3
BIN := .venv/bin
SEEDS ?= 2000
ROUNDS ?= 100
# Of the node that leaves, and as many of a target.
KILLS ?= 10
# Of each target of the fuzzers.
SECONDS ?= 60

.PHONY: run stop test lint sim crash crash-leave fuzz spec bench clean

run: .venv/.installed
	@$(BIN)/python deploy/lab.py start $(ARGS)

stop:
	@$(PYTHON) deploy/lab.py stop

test: .venv/.installed
	$(BIN)/tox run-parallel --parallel all
	@$(BIN)/python tests/total.py .tox/interpreted/junit.xml .tox/compiled/junit.xml .tox/system/junit.xml

lint: .venv/.installed
	$(BIN)/tox run -e lint

sim: .venv/.installed
	$(BIN)/tox run -e compiled -- tests/sim --numprocesses auto --seeds $(SEEDS) $(ARGS)

fuzz: .venv/.fuzz
	@$(BIN)/python tests/fuzz/coverage_run.py --seconds $(SECONDS) $(ARGS)

spec: .venv/.spec
	@$(BIN)/python tests/conformance/statements.py

crash: .venv/.installed
	$(BIN)/python -m pytest tests/system/test_crash.py -k rounds -s --crash-rounds $(ROUNDS) $(ARGS)

crash-leave: .venv/.installed
	$(BIN)/python -m pytest tests/sim/test_leaving.py -k killed_in_the_middle --leave-queues 1000 $(ARGS)
	$(BIN)/python -m pytest tests/system/test_leave_kills.py -s --leave-kills $(KILLS) $(ARGS)

bench: .venv/.installed
	$(BIN)/python -m bench.pipeline $(ARGS)
	$(BIN)/python -m bench.scenarios $(SCENARIOS)
	$(BIN)/python -m bench.cluster $(CLUSTER)
	$(BIN)/python -m bench.moves $(MOVES)

clean: stop
	rm -rf .venv .tox .lab .fuzz build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# An editable install is always interpreted (see setup.py). The stamp is touched last, so a broken install is redone.
.venv/.installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --editable '.[dev]' && touch $@

# The specifications' statements come with more packages than anything else here needs.
.venv/.spec: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[spec]' && touch $@

# What guides the fuzzers is large, and not there for every system.
.venv/.fuzz: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]' && touch $@
