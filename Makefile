# Each target sets up its own virtual environment on a machine that has only Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/.ready
	$(RUN) segment.py examples/hexagons.jpg "green hexagon. blue square." --weights demo --out runs/segmented
	$(RUN) segment.py examples/leaving.webp "black circle. green heart." --weights demo --out runs/segmented
	$(RUN) segment.py examples/squares.jpg --box 97,114,192,200 --weights demo --out runs/segmented
	$(RUN) train_cifar.py --data shapes --preset shapes-demo --out runs/demo

test: $(VENV)/.ready
	$(RUN) -m pytest -q

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[cli,test]"
	touch $@

clean:
	rm -rf $(VENV) runs
