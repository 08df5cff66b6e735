PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/ready

# Only what is given on make's own command line goes to the notebook: an environment variable DEVICE does not. It goes
# as typed: `value` does not expand it, and neither does what make would export. The last three are of `make sweep`, the
# last two of `make architectures` too.
PARAMETERS := DATASET IMAGE_SIZE METHODS PROFILE SEED TRAIN START DEVICE PRECISION EVALUATION_SEED TEST_CLAIMS SAVE_SAMPLES CHANGES DATA_DIR MODELS_DIR IMAGES_DIR
PARAMETERS += DATASETS SEEDS CLUSTER
unexport $(PARAMETERS)
typed  = $(findstring command,$(origin $1))
quoted = '$(subst ','\'',$1)'
either = $(call quoted,$(if $(call typed,$1),$(value $1),$2))
GIVEN := $(foreach p,$(PARAMETERS),$(if $(call typed,$p),-p $p $(call quoted,$(value $p))))
IMAGES = $(if $(call typed,DATASETS),$(call either,DATASETS),$(call either,DATASET,fashion-mnist))
FETCH  = $(VENV)/bin/python tools/fetch_data.py $(IMAGES) $(call either,DATA_DIR,data)

# Whatever else is given there is a mistake, which would otherwise be passed over.
UNKNOWN := $(filter-out $(PARAMETERS) PYTHON VENV,$(foreach v,$(.VARIABLES),$(if $(call typed,$v),$v)))
$(if $(UNKNOWN),$(error no such parameter: $(UNKNOWN); allowed: $(PARAMETERS)))
ALONE := $(filter test mutants browser stress lab bench clean,$(MAKECMDGOALS))
$(if $(strip $(GIVEN)),$(if $(ALONE),$(error $(ALONE) has no parameters, but these were given: $(strip $(GIVEN)))))

export PYTHONWARNINGS := ignore::FutureWarning
export PYTHONUNBUFFERED := 1

.PHONY: help run evaluate architectures sweep test mutants browser stress lab publish bench clean

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 15
	@echo "run, evaluate, sweep, publish and architectures take the notebook's parameters: make run PROFILE=smoke METHODS=WGAN-GP"

run: $(READY) ## train, evaluate, test the claims; the executed notebook goes to runs/
	@$(FETCH)
	$(VENV)/bin/python tools/run_notebook.py $(GIVEN)

evaluate: $(READY) ## fresh samples, scores and claims from saved weights, yours or the published
	@$(FETCH)
	$(VENV)/bin/python tools/run_notebook.py $(GIVEN) -p TRAIN False

architectures: $(READY) ## Figure 2 and Table 2 (claims C5, C4) by Dask, in hours: SEEDS, CLUSTER as in a sweep
	@$(FETCH)
	$(VENV)/bin/python tools/architectures.py $(GIVEN)

sweep: $(READY) ## many trainings by Dask: DATASETS=mnist,gtsrb SEEDS=0,1,2 CLUSTER=tcp://HOST:8786
	@$(FETCH)
	$(VENV)/bin/python tools/sweep.py $(GIVEN)

test: $(READY) ## lint and tests
	@$(FETCH)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

mutants: $(READY) ## small faults put into the notebook, one at a time: do the tests see each
	$(VENV)/bin/python tests/mutants.py

browser: $(READY) ## install what the JupyterLab test needs (Debian's Chromium, asks for sudo)
	$$([ "$$(id -u)" = 0 ] || echo sudo) sh -c \
	    "apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium"
	$(VENV)/bin/python -m pip install --quiet playwright

stress: $(READY) ## a hundred kills and five hundred damaged files
	$(VENV)/bin/python tests/stress.py --kills 100 --damages 500

lab: $(READY) ## open the notebook in JupyterLab
	$(VENV)/bin/jupyter lab wgan_gp.ipynb

publish: $(READY) ## run the notebook in a fresh folder, then install its outputs, figures and weights
	@$(FETCH)
	$(VENV)/bin/python tools/publish.py $(GIVEN)

bench: $(READY) ## training beside the usual loop, step by step
	@$(FETCH)
	$(VENV)/bin/python benchmarks/training_speed.py

clean: ## remove the virtual environment, executed notebooks and caches
	rm -rf $(VENV) runs .pytest_cache .ruff_cache

$(READY): requirements.txt requirements-dev.txt requirements-sweep.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the packages into $(VENV) (some minutes, once)"
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@
