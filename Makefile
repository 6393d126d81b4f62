# make demo    an environment, a small GPT trained on Python's documentation, its loss curve, a sample
# make demo-translate   English dates to German ones: trained, scored, tried
# make test    the test suite                 make lint    ruff, the formatter, mypy
# make test-fast   the short test files only, from every room: for the daily loop
# make lessons   every lesson of the course in full, with its predictions: ten minutes or so on two cores
# make notebooks   the lessons as notebooks, in build/notebooks
# make wheel   dist/*.whl, which pip can install      make clean   environments and caches; never runs/
# make fuzz    10,000 damaged model folders, each of which must load or be refused in a line
# make fixtures   the tiny reference models in tests/fixtures, anew, with transformers (in the environment of bench-env)
# make parity   every kind of run, saved as a Hugging Face folder and loaded by transformers: logits, ids, labels
# make bench   the benchmarks beside PyTorch, which make bench-env installs into an environment of its own
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STEPS ?= 800
DEMO := runs/demo
BENCH := .bench

.PHONY: demo demo-translate lessons notebooks test test-fast fuzz lint wheel fixtures parity bench bench-env clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "transformer_jax needs Python 3.11 or later; say which with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m train --config=configs/demo.py --workdir=$(DEMO) --config.train.num_steps=$(STEPS)
	@echo
	$(BIN)/python -m transformer_jax sample --run_dir=$(DEMO) --prompt="The for statement" --max_new_tokens=150 \
		--temperature=0.7 --top_k=40 --seed=7 --on_overflow=re-prefill | tee $(DEMO)/sample.txt
	$(BIN)/python -m transformer_jax explore --run_dir=$(DEMO) --output=$(DEMO)/explorer.html --max_new_tokens=0 \
		--text="The for statement is used to iterate over the elements of a sequence (such as a string, tuple or list)."

demo-translate: $(VENV)/installed
	$(BIN)/python -m train --config=configs/dates_en_de.py --workdir=runs/dates
	$(BIN)/python -m train.evaluate --run_dir=runs/dates --split=test --num_beams=1
	@echo
	printf 'Saturday, November 21, 2026\n1,234.5 kilometers\n3 hours\n' | \
		$(BIN)/python -m transformer_jax translate --run_dir=runs/dates

lessons: $(VENV)/installed
	$(BIN)/python -m lessons run all

notebooks: $(VENV)/installed
	$(BIN)/python -m lessons notebooks

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

fuzz: $(VENV)/installed-dev
	FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest -q tests/test_hostile_folders.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/installed
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

$(BENCH)/installed: benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

bench-env: $(BENCH)/installed

fixtures: $(BENCH)/installed
	$(BENCH)/bin/python tests/fixtures/make.py

parity: $(VENV)/installed-dev $(BENCH)/installed
	rm -rf build/saved
	$(BIN)/python tests/fixtures/save_runs.py build/saved
	$(BENCH)/bin/python tests/fixtures/verify.py --saved build/saved

bench: $(VENV)/installed $(BENCH)/installed
	$(BIN)/python benchmarks/train.py --shape=small
	$(BIN)/python benchmarks/train.py --shape=large
	$(BIN)/python benchmarks/decode.py

clean:
	rm -rf $(VENV) $(BENCH) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
