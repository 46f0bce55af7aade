# Everything a fresh clone needs is made here: environments first, then the work in them.
# A second run reuses the environment unless what it is made from has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
BACKENDS := tensorflow jax torch
PYTEST := -m pytest -p no:cacheprovider
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-slow test-oldest test-oldest-torch lint clean

help:
	@echo "make demo         prune a network on real data to 80 % and see what it cost (3 minutes)"
	@echo "make test         every test on TensorFlow, JAX and PyTorch"
	@echo "make test-slow    the ones that take long, too"
	@echo "make test-oldest  on the oldest supported releases of Keras, TensorFlow and JAX"
	@echo "make lint         formatting, lint rules and types"

# $(1): directory; $(2): what to install
define environment
	@echo "Making the environment $(1) ..."
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
	@touch $(1)/complete
endef

.venv-demo/complete: pyproject.toml constraints.txt
	$(call environment,.venv-demo,-c constraints.txt -e ".[jax$(comma)report]")

.venv/complete: pyproject.toml constraints.txt
	$(call environment,.venv,-c constraints.txt -e ".[tensorflow$(comma)jax$(comma)torch$(comma)report$(comma)litert$(comma)test]")

.venv-oldest/complete: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest,-c constraints-oldest.txt -e ".[tensorflow$(comma)jax$(comma)report$(comma)test]")

.venv-oldest-torch/complete: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest-torch,-c constraints-oldest.txt torch==2.6.0 -e ".[torch$(comma)report$(comma)test]")

comma := ,

demo: .venv-demo/complete
	KERAS_BACKEND=jax .venv-demo/bin/keras-pruner demo $(ARGS)

test: .venv/complete
	.venv/bin/python tests/on_every_backend.py $(BACKENDS) -- -m "not slow" $(ARGS)

test-slow: .venv/complete
	.venv/bin/python tests/on_every_backend.py $(BACKENDS) -- -m "slow" $(ARGS)

test-oldest: .venv-oldest/complete
	.venv-oldest/bin/python tests/on_every_backend.py tensorflow jax -- -m "not slow" $(ARGS)

# Apart, because this release comes only with CUDA: 3 GB.
test-oldest-torch: .venv-oldest-torch/complete
	.venv-oldest-torch/bin/python tests/on_every_backend.py torch -- -m "not slow" $(ARGS)

lint: .venv/complete
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

clean:
	rm -rf .venv .venv-demo .venv-oldest .venv-oldest-torch build dist keras-pruner-demo
