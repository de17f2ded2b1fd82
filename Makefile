# A fresh machine needs make and Python >= 3.11. More options go in ARGS: make run ARGS="--rounds 5".
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: run test soak lint clean

run: $(INSTALLED)
	@$(BIN)/python -m simulations.run --clients 5 $(ARGS)

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# What takes longer: kills, damaged files, thousands of message orders. Under 30 minutes alone on 2 cores.
soak: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist load -m soak --soak $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: PYTHON must be Python 3.11 or newer, found '$(PYTHON)' ($$($(PYTHON) --version 2>&1 | tail -n 1))" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
