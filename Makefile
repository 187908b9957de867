# `make demo` runs the main job, `make test` every check; both make .venv first. `make venv` does just that.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo demo-quick test lint proof wheel clean

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (about 6 GB of wheels)"; date +%s > .setup-start
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "set-up took $$(( $$(date +%s) - $$(cat .setup-start) )) s"; rm .setup-start
	@touch $@

demo: venv
	$(BIN)/cvpeft demo

demo-quick: venv
	$(BIN)/cvpeft demo --quick

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One process for each core, and one thread in each: the models of the tests are too small for more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Proofs that take minutes, and need the folder `shared` beside the checkout for the real photographs.
proof: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

wheel: venv
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
