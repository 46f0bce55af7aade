# Everything a fresh clone needs is made here: environments first, then the work in them.
# A second run reuses the environment unless what it is made from has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
BACKENDS := torch jax tensorflow  # what is the same on each runs on the first, the fastest
PYTEST := -m pytest -p no:cacheprovider
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-slow test-python test-oldest test-oldest-torch lint docs clean
.PHONY: results results-smoke

help:
	@echo "make demo           prune a network on real data to 80 % and print what it cost (3 minutes)"
	@echo "make test           all tests on TensorFlow, JAX and PyTorch (less than an hour on two cores)"
	@echo "make test-slow      the tests that take long"
	@echo "make test-python PYTHON=python3.13 BACKEND=jax   all tests on another Python and one backend"
	@echo "make test-oldest    all tests on the oldest supported Keras, TensorFlow and JAX"
	@echo "make lint           formatting, lint rules and types"
	@echo "make docs           the documentation as a site, in site/"
	@echo "make results-smoke  every recipe of examples/ once, as short as possible (5 minutes)"
	@echo "make results        all recipes in full, to docs/results.md (hours; can be interrupted)"

# $(1): directory; $(2): what to install
define environment
	@echo "Making the environment $(1) ..."
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
	@touch $(1)/complete
endef

.venv-demo/complete: pyproject.toml constraints.txt
	$(call environment,.venv-demo,-c constraints.txt -e ".[jax]")

.venv/complete: pyproject.toml constraints.txt
	$(call environment,.venv,-c constraints.txt -e ".[tensorflow$(comma)jax$(comma)torch$(comma)report$(comma)litert$(comma)test]")

.venv-oldest/complete: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest,-c constraints-oldest.txt -e ".[tensorflow$(comma)jax$(comma)report$(comma)test]")

.venv-oldest-torch/complete: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest-torch,-c constraints-oldest.txt torch==2.6.0 -e ".[torch$(comma)report$(comma)test]")

# An environment for each interpreter and backend; only `test-python` asks for the version.
BACKEND ?= jax
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.venv-python-%/complete: pyproject.toml constraints.txt
	$(call environment,$(@D),-c constraints.txt -e ".[$(BACKEND)$(comma)report$(comma)test]")

.venv-docs/complete: pyproject.toml constraints.txt
	$(call environment,.venv-docs,-c constraints.txt -e ".[jax$(comma)docs]")

# What the recipes are compared with, in an environment of its own: it is of Keras 2.
.venv-tfmot/complete: Makefile
	$(call environment,.venv-tfmot,tensorflow-model-optimization==0.8.1 tf-keras==2.21.*)

.venv-examples/complete: pyproject.toml constraints.txt
	$(call environment,.venv-examples,-c constraints.txt -e ".[tensorflow$(comma)jax$(comma)litert$(comma)examples]")

comma := ,

demo: .venv-demo/complete
	KERAS_BACKEND=jax .venv-demo/bin/keras-pruner demo $(ARGS)

test: .venv/complete
	.venv/bin/python tests/on_every_backend.py $(BACKENDS) -- -m "not slow" $(ARGS)

test-slow: .venv/complete
	.venv/bin/python tests/on_every_backend.py $(BACKENDS) -- -m "slow" $(ARGS)

test-python:
	$(MAKE) .venv-python-$(VERSION)-$(BACKEND)/complete
	.venv-python-$(VERSION)-$(BACKEND)/bin/python tests/on_every_backend.py $(BACKEND) -- \
		-m "not slow" $(ARGS)

test-oldest: .venv-oldest/complete
	.venv-oldest/bin/python tests/on_every_backend.py tensorflow jax -- -m "not slow" $(ARGS)

# Apart, because this release comes only with CUDA: 3 GB.
test-oldest-torch: .venv-oldest-torch/complete
	.venv-oldest-torch/bin/python tests/on_every_backend.py torch -- -m "not slow" $(ARGS)

# Your copies of the data: SPEECH and REVIEWS as `--help` of keyword_spotting.py and imdb_lstm.py
# says. Without SPEECH the smoke runs on made-up tones, and `results` leaves that recipe out.
RECIPE = KERAS_BACKEND=tensorflow .venv-examples/bin/python examples/recipes
speech = $(if $(SPEECH),--data $(SPEECH))
reviews = $(if $(REVIEWS),--data $(REVIEWS))
SMOKE := $(or $(TMPDIR),/tmp)/keras-pruner-smoke
smoke = --smoke --results $(SMOKE) --work $(SMOKE)/work
against = --seeds 5 --tfmot-python .venv-tfmot/bin/python --methods ours tfmot
imdb = --words 5000 --length 30 --units 32 $(reviews)

results-smoke: .venv-examples/complete
	rm -rf $(SMOKE)
	$(RECIPE)/mnist_cnn.py $(smoke) --width 0.25
	$(RECIPE)/imdb_lstm.py $(smoke) --words 1000 --length 20 --units 16 $(reviews)
	$(RECIPE)/keyword_spotting.py $(smoke) $(speech)
	$(RECIPE)/transformer.py $(smoke) $(reviews)
	$(RECIPE)/imagenet.py $(smoke) --model v1 --pattern unstructured
	$(RECIPE)/translation.py $(smoke) --direction en-de
	$(RECIPE)/speech_recognition.py $(smoke) $(speech)
	$(RECIPE)/text_to_speech.py $(smoke) $(speech)
	.venv-examples/bin/python examples/lib/results.py $(SMOKE) --output $(SMOKE)

results: .venv-examples/complete .venv-tfmot/complete
	$(RECIPE)/mnist_cnn.py $(against) distilled --width 0.25
	$(RECIPE)/mnist_cnn.py $(against) --sparsity 0.9 0.98
	$(RECIPE)/mnist_cnn.py --seeds 5 --sparsity 0.95 0.97
	$(RECIPE)/mnist_cnn.py --seeds 5 --sparsity 0.85 0.88 --width 0.25
	$(RECIPE)/mnist_cnn.py --seeds 5 --sparsity 0.88 0.9 --width 0.25 --epochs 4 6
	$(RECIPE)/imdb_lstm.py $(against) distilled $(imdb)
	$(RECIPE)/imdb_lstm.py $(against) --seeds 10 $(imdb)
	$(RECIPE)/imdb_lstm.py $(against) --seeds 20 --sparsity 0.9 $(imdb)
	$(RECIPE)/imdb_lstm.py --seeds 10 --sparsity 0.85 0.86 $(imdb)
ifdef SPEECH
	$(RECIPE)/keyword_spotting.py $(against) --size S M $(speech)
	$(RECIPE)/keyword_spotting.py --seeds 5 --size L --sparsity 0.5 --pattern unstructured 2:4 $(speech)
	$(RECIPE)/keyword_spotting.py --seeds 5 --size L --split official --epochs 3 4 --sparsity 0.9 0.92 $(speech)
	$(RECIPE)/keyword_spotting.py --seeds 6 --size L --split each --epochs 3 4 --sparsity 0.5 $(speech)
	$(RECIPE)/speech_recognition.py $(against) $(speech)
	$(RECIPE)/text_to_speech.py $(against) $(speech)
endif
	KERAS_BACKEND=jax .venv-examples/bin/python examples/recipes/translation.py --seeds 5
	$(RECIPE)/transformer.py --seeds 5 $(reviews)
	$(RECIPE)/imagenet.py $(against)
	$(RECIPE)/imagenet.py --seeds 5 --sparsity 0.75 --pattern unstructured
	$(RECIPE)/imagenet.py --seeds 3 --model inception --sparsity 0.5 0.75 0.875
	$(RECIPE)/imagenet.py --full-size --model v1 v2 inception
	.venv-examples/bin/python examples/lib/results.py

lint: .venv/complete
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

docs: .venv-docs/complete
	KERAS_BACKEND=jax .venv-docs/bin/mkdocs build --strict

clean:
	rm -rf .venv-python-* .venv-docs site .venv .venv-demo .venv-examples .venv-tfmot .venv-oldest .venv-oldest-torch build dist keras-pruner-demo
