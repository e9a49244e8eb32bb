# make install    a virtual environment in .venv, re-used while pyproject.toml does not change
# make demo       the whole line on the embedded demo world: data, pretraining, evaluation, table
# make format     rewrite the code in the house's format
# make check      lint, format and types, as CI does
# make test       the quick tests; make test-all adds the slow ones
# make tables     rebuild results/tables from the published numbers and results/records
# make clean      remove what builds, tests and linters leave; keeps .venv and workspace
#
# Another interpreter: make install PYTHON=python3.12. Fewer extras: make install EXTRAS=dev

PYTHON ?= python3
EXTRAS ?= dev,openmmlab,pictures
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo format check test test-all tables clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/maskclip-bench run --suite all

format: install
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread a worker: two workers with a thread pool each would fight for the cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m ''

# Pictures are left out: their bytes depend on the version of matplotlib.
tables: install
	mkdir -p results/records results/tables
	for table in demo demo_dense imagenet retrieval zero_shot_suite dense ablations; do \
		$(BIN)/maskclip-bench table $$table --reference paper \
			--records results/records --output results/tables >/dev/null || exit 1; \
	done
	for table in demo demo_dense; do \
		$(BIN)/maskclip-bench table $$table --chance \
			--records results/records --output results/tables >/dev/null || exit 1; \
	done
	rm -f results/tables/*.png

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
