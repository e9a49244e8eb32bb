# make install    a virtual environment in .venv, re-used while pyproject.toml does not change
# make demo       the whole line on the embedded demo world: data, pretraining, evaluation, table
# make format     rewrite the code in the house's format
# make check      lint, format and types, as CI does
# make test       the quick tests; make test-all adds the slow ones
# make test-lowest the quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest
# make test-browser the report in a browser; skipped with a word where there is none
# make tables     rebuild results/tables from the published numbers and results/records
# make reference rebuild docs/reference from the declarations and their docstrings
# make clean      remove what builds, tests and linters leave; keeps .venv and workspace
#
# Another interpreter: make install PYTHON=python3.12. Fewer extras: make install EXTRAS=dev

PYTHON ?= python3
EXTRAS ?= dev,openmmlab,pictures
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest

.PHONY: help install demo format check test test-all test-lowest test-browser tables reference clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(INSTALLED)
	@echo
	@echo "Installed in $(VENV). Type next:"
	@echo "  . $(BIN)/activate"
	@echo "  maskclip-bench --help"

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/maskclip-bench run --suite all
	@echo
	@echo "The command is in $(BIN). Type next:"
	@echo "  . $(BIN)/activate"
	@echo "  maskclip-bench table demo --chance     # the same table with the score of guessing"
	@echo "  maskclip-bench --help                  # docs/howto.md: your own model, your own data"

format: $(INSTALLED)
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/build_reference.py --check

# One thread a worker: two workers with a thread pool each would fight for the cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

test-all: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m ''

# Warnings of old libraries about newer ones are no errors here. What needs mmseg and mmdet is left out: their own
# needs decide which versions go with them. The pages of the reference are made with the newest typer.
WITHOUT_MM := backbones/openmmlab tasks/protocols/test_segmentation.py tasks/test_pieces.py tasks/test_plan.py

test-lowest: $(INSTALLED)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/python scripts/lowest_versions.py pictures > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[dev,pictures]' pycocotools
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -W ignore \
		$(addprefix --ignore tests/,$(WITHOUT_MM)) \
		--deselect tests/test_reference_docs.py::test_the_pages_are_up_to_date

test-browser: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -rs tests/report/test_browser.py

# Pictures are left out: their bytes depend on the version of matplotlib.
tables: $(INSTALLED)
	mkdir -p results/records results/tables
	for table in demo demo_dense imagenet retrieval zero_shot_suite dense ablations; do \
		$(BIN)/maskclip-bench table $$table --reference paper \
			--records results/records --output results/tables >/dev/null || exit 1; \
	done
	for table in demo demo_dense demo_long demo_long_ablations demo_long_dense demo_long_5k demo_long_5k_others; do \
		$(BIN)/maskclip-bench table $$table --chance \
			--records results/records --output results/tables >/dev/null || exit 1; \
	done
	rm -f results/tables/*.png

reference: $(INSTALLED)
	$(BIN)/python scripts/build_reference.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)*/*' -prune -exec rm -rf {} +
