# Each target makes the virtual environment that it needs; nothing else has to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
PIP_ALONE := -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)
PIP := $(PIP_ALONE) -c constraints.txt

.PHONY: demo docs test lint format bench bench-stream clean
.DEFAULT_GOAL := test

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## sample videos -> shards -> a trained model -> its score
	test -d data/videos || { $(BIN)/prep sample-videos data/videos.part --overwrite >/dev/null && mv data/videos.part data/videos; }
	$(BIN)/prep build-shards --fps 5 --size 112
	$(BIN)/train run --model early_fusion --epochs 8 --out runs/demo --overwrite
	$(BIN)/train eval runs/demo --allow-leaks  # made-up videos look alike; on yours, copies across splits are refused
	@echo
	@echo "That was the whole job on made-up videos. Now on yours, with $(BIN) on your PATH:"
	@echo "  prep build-shards YOUR_VIDEOS --out data/mine     # YOUR_VIDEOS/<label>/*.mp4, or a CSV with path,label"
	@echo "  prep inspect data/mine"
	@echo "  train run --model early_fusion --shards data/mine"

# A process for each core, with one thread each: threads of several processes wait for one another.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

docs: $(VENV)/installed  ## the site: site/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env -q -d build/doctrees docs site

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One that cannot be installed is left out, and the benchmark says so. ffmpeg comes from the system. The files have pins
# of their own: torchvision loads beside a torch of its own build alone.
$(VENV)-%/installed: benchmarks/%.txt
	$(PYTHON) -m venv $(@D)
	grep -v '^#' $< | cut -d'#' -f1 | while read peer; do \
		$(@D)/bin/python $(PIP_ALONE) $$peer || echo "$$peer: cannot be installed"; done
	touch $@

bench: $(VENV)/installed $(VENV)-peers/installed  ## ratios against peers; needs videos: make bench VIDEOS=folder-or-csv
	$(BIN)/python benchmarks/build.py $(VIDEOS) --peers $(VENV)-peers/bin/python
	$(BIN)/python benchmarks/whole_build.py $(VIDEOS)

bench-stream: $(VENV)/installed $(VENV)-loaders/installed  ## loaders against peers; 35 GB of disk in data/bench
	$(BIN)/python benchmarks/stream.py $(VIDEOS) --folder data/bench --peers $(VENV)-loaders/bin/python
	$(BIN)/python benchmarks/index.py
	$(BIN)/python $(PIP) decord2
	$(BIN)/python benchmarks/train_epoch.py $(VIDEOS)

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-loaders build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
