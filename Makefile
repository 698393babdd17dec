# Each target sets up its own virtual environment on a machine that has only Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test study-smoke lint clean

demo: $(VENV)/.ready
	$(RUN) segment.py examples/hexagons.jpg "green hexagon. blue square." --weights demo --out runs/segmented
	$(RUN) segment.py examples/leaving.webp "black circle. green heart." --weights demo --out runs/segmented
	$(RUN) segment.py examples/hexagons.jpg "green hexagon. red hexagon." --weights demo --method clipseg --out runs/heat
	$(RUN) segment.py examples/squares.jpg --box 97,114,192,200 --weights demo --out runs/segmented
	$(RUN) train_cifar.py --data shapes --preset shapes-demo --out runs/demo

test: $(VENV)/.ready
	$(RUN) -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder  # a process per core

# Each row of the study's tables, the recipes of fine-tuning and the larger teacher, for one epoch on 500 generated
# images: half an hour of one core.
study-smoke: $(VENV)/.ready
	for study in grid ladder distillation ablation; do \
	  $(RUN) train_cifar.py --study $$study --data shapes --subset 500 --epochs 1 --out runs/smoke/$$study || exit 1; \
	done
	for preset in vit-b16-last3 vit-b16 resnet50; do \
	  $(RUN) train_cifar.py --preset $$preset --data shapes --subset 500 --batch-size 32 --epochs 1 \
	    --out runs/smoke/$$preset || exit 1; \
	done

lint: $(VENV)/.lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) tests/typing/check.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[cli,export,test]"
	touch $@

$(VENV)/.lint: $(VENV)/.ready
	$(RUN) -m pip install --quiet --editable ".[lint]"
	touch $@

clean:
	rm -rf $(VENV) runs
