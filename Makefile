PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# PyTorch is pinned and installed by itself: with an open version pip takes the newest wheel, which on Linux brings several GB of CUDA
# libraries even where a CPU build is at hand. For a certain build: make demo TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
CAPTION ?= a large red heart at sunset

export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lint model clean

demo: $(STAMP)  ## generate a picture with the bundled model and print its path
	$(BIN)/unclip generate "$(CAPTION)" --output outputs/demo.png --seed 7

test: lint  ## everything that must pass before a change is merged
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not compile and not slow" --jaxtyping-packages=unclip_hub,beartype.beartype
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "compile and not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

SCENES := 1000000:runs/icons.json
UPSAMPLER := $(BIN)/unclip train upsampler --data scenes:256:$(SCENES)
DECODER := $(BIN)/unclip train decoder --data scenes:64:$(SCENES) --config further --base runs/bundled/model
EXPORT := $(BIN)/python -m unclip_hub.training.bundled --output runs/bundled --stage export

model: $(STAMP) runs/icons.json  ## train the bundled model again, from nothing; interrupted, the same command resumes
	$(UPSAMPLER) --config tiny --output runs/bundled/upsampler_crops
	$(UPSAMPLER) --config further --base runs/bundled/upsampler_crops/model --output runs/bundled/upsampler_further
	$(BIN)/unclip train upsampler --data scenes:1024:$(SCENES) --config tiny1024 --base runs/bundled/upsampler_further/model --output runs/bundled/upsampler_1024
	$(BIN)/python -m unclip_hub.training.bundled --output runs/bundled --icons runs/icons.json
	$(DECODER) --output runs/bundled/decoder_further
	$(EXPORT)
	$(DECODER) --output runs/bundled/decoder_further_2 --set train.seed=1 --set train.steps=2800
	$(EXPORT)
	$(DECODER) --output runs/bundled/decoder_further_3 --set train.seed=2 --set train.steps=1900
	$(EXPORT)
	$(UPSAMPLER) --config redrawn --base runs/bundled/model --output runs/bundled/upsampler
	$(EXPORT)
	rm -rf src/unclip_hub/assets/bundled && cp -r runs/bundled/model src/unclip_hub/assets/bundled

runs/icons.json:  # the masters of Noto Emoji, Apache-2.0
	mkdir -p runs/noto
	cd runs/noto && npm pack --silent @iconify-json/noto@1.2.9 && tar xzf *.tgz package/icons.json
	mv runs/noto/package/icons.json $@

$(STAMP): pyproject.toml
	@echo "Setting up $(VENV): a download of a few hundred MB, or more if pip takes a CUDA build of PyTorch"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

clean:  ## remove what the other targets made, except runs/
	rm -rf $(VENV) outputs build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
