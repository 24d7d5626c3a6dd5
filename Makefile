# Two commands for users: `make quickstart` and `make test`. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUIET_THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
FAST := tests/contract/test_layers.py tests/parity $(addprefix tests/core/test_,$(addsuffix .py,\
	recipe resolve zoo losses metrics card verdict augment optimization))

EVIDENCE := digits fashion_mnist clinc150 phone_watch_har students cifar tiny_imagenet

.PHONY: quickstart test test-all test-isa chaos check fix docs page-test picture bench evidence clean

quickstart: $(READY)  ## install, then distil a tiny student on digits
	$(BIN)/kdzoo run recipes/quickstart.yaml

test: $(READY)  ## all tests but the slow ones; says at its end how many minutes and processor seconds it took
	$(QUIET_THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not page"

test-all: $(READY)  ## every test, with a run of every recipe, and chaos
	$(QUIET_THREADS) $(BIN)/python -m pytest -m "not gpu and not page"
	$(MAKE) chaos

test-isa: $(READY)  ## a part of the tests, with the processor's instructions limited in several ways
	$(QUIET_THREADS) $(BIN)/python tests/instruction_sets.py

chaos: $(READY)  ## kills, damaged files, odd recipes and inputs; half an hour
	$(QUIET_THREADS) $(BIN)/python tests/chaos/run.py

check: $(READY)  ## what a commit must pass, under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy kdzoo plugins/kdzoo_*
	$(QUIET_THREADS) $(BIN)/python -m pytest -q -x $(FAST)

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## generate the pages, run the notebooks and build the site; broken links are errors
	$(QUIET_THREADS) $(BIN)/python docs/generate.py --notebooks
	$(BIN)/properdocs build --strict -f mkdocs.yml

page-test: docs
	$(BIN)/pip install -q -c constraints.txt -e ".[page]"
	$(BIN)/python -m pytest -m page tests/contract/test_docs_page.py

picture: docs  ## run the quickstart and photograph its report for README and home page; wants a quiet machine
	$(BIN)/pip install -q -c constraints.txt -e ".[page]"
	$(BIN)/python docs/picture.py

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_time.py

evidence: $(READY)  ## measure every recipe on real data over three seeds; days, and goes on after a kill
	for study in $(EVIDENCE); do \
		$(QUIET_THREADS) $(BIN)/kdzoo study recipes/studies/$$study.yaml && \
		$(QUIET_THREADS) $(BIN)/python benchmarks/publish.py runs/$$(echo $$study | tr _ -)/study || exit; \
	done
	$(BIN)/python docs/generate.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf site dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
