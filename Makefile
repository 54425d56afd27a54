# Every target creates .venv first, and installs into it again when requirements.txt or pyproject.toml has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := .venv.stamp
KEEP ?=
# Processes that run the tests; each takes up to 2.5 GB of memory. A third of the time they wait for disks, servers and processes of their
# own: four keep two cores busy.
JOBS ?= 4
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-browser test-slow test-all test-faults lint lint-types lint-site lint-rest lint-schema format bench docs screenshots install clean

help:
	@echo "make demo         train a small model through the API and show its images (KEEP=1 leaves the server running)"
	@echo "make test         the fast tests (JOBS=N runs N processes)"
	@echo "make test-browser the pages in Chromium, at two widths and in both colour schemes"
	@echo "make test-slow    the slow tests: proofs in every combination, and those that take long"
	@echo "make test-all     every test"
	@echo "make test-faults  kill processes, fill disks, break files, attack a server"
	@echo "make lint         style, types, imports, migrations, generated documents"
	@echo "make lint-schema  check the OpenAPI schema with redocly and spectral (needs npx)"
	@echo "make format       fix the style"
	@echo "make bench        measure; print a table (SECTIONS=families measures every family alone)"
	@echo "make docs         write the documents that are made of the code"
	@echo "make screenshots  write the pictures of docs/images (needs Chromium)"
	@echo "make clean        remove .venv and what demo, bench and builds left"

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/simpletuner demo $(if $(KEEP),--keep)

# Files run in the order of tests/conftest.py, and not those with the fewest tests last, which are the longest.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not faults and not browser"

test-browser: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m browser

# Half of the slow tests lie in one file and share nothing: they are spread test by test, and neighbours stay together as long as work lasts.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not faults"

test-all: $(STAMP)
	$(BIN)/python -m pytest

test-faults: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m faults

# The steps do not depend on each other and run side by side.
lint: $(STAMP)
	$(MAKE) --no-print-directory --jobs=$(JOBS) lint-types lint-site lint-rest

lint-types: $(STAMP)
	$(BIN)/mypy

lint-site: $(STAMP)
	SIMPLETUNER_HOME=$$(mktemp -d) $(BIN)/python manage.py check --fail-level WARNING
	SIMPLETUNER_HOME=$$(mktemp -d) $(BIN)/python manage.py makemigrations --check --dry-run

lint-rest: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m trainer_engine.config.options.docs | diff docs/options.md -
	$(BIN)/python -m training.preflight.memory_table | diff docs/memory.md -
	$(BIN)/python -m training.preflight.families_page | diff docs/families.md -
	$(BIN)/python -m trainer_engine.config.datasets.docs | diff docs/datasets.md -
	$(BIN)/python manage.py api_page | diff docs/http.md -

lint-schema: $(STAMP)
	$(BIN)/python -m pytest tests/site/test_schema_linters.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(SECTIONS)

docs: $(STAMP)
	$(BIN)/python -m trainer_engine.config.options.docs > docs/options.md.new && mv docs/options.md.new docs/options.md
	$(BIN)/python -m training.preflight.memory_table > docs/memory.md.new && mv docs/memory.md.new docs/memory.md
	$(BIN)/python -m training.preflight.families_page > docs/families.md.new && mv docs/families.md.new docs/families.md
	$(BIN)/python -m trainer_engine.config.datasets.docs > docs/datasets.md.new && mv docs/datasets.md.new docs/datasets.md
	$(BIN)/python manage.py api_page > docs/http.md.new && mv docs/http.md.new docs/http.md

# The test that looks at the page of a demo also takes the picture of it.
screenshots: $(STAMP)
	SIMPLETUNER_TEST_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/site/test_demo.py -k shows_the_run_of_a_demo

clean:
	rm -rf $(VENV) $(STAMP) demo-output bench-output build *.egg-info
