# Each target sets up its own virtual environment on a machine that has only Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/.ready
	$(RUN) segment.py examples/hexagons.jpg --box 142,147,222,218 --box 182,104,225,146 --weights demo --out runs/segmented
	$(RUN) segment.py examples/leaving.webp --box 148,181,201,238 --box 38,49,93,104 --weights demo --out runs/segmented
	$(RUN) train_cifar.py --data shapes --preset shapes-demo --out runs/demo

test: $(VENV)/.ready
	$(RUN) -m pytest -q

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[cli,test]"
	touch $@

clean:
	rm -rf $(VENV) runs
