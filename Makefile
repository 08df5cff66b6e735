# make run | evaluate | test | lab | publish | bench | search | stress      (the README says what each does)
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/ready

# Only what is given on make's own command line goes to the notebook: an environment variable DEVICE does not.
PARAMETERS := DATASET IMAGE_SIZE METHODS PROFILE SEED TRAIN START DEVICE PRECISION EVALUATION_SEED TEST_CLAIMS INCEPTION CHANGES DATA_DIR MODELS_DIR IMAGES_DIR
GIVEN := $(foreach p,$(PARAMETERS),$(if $(findstring command,$(origin $(p))),-p $(p) '$(subst ','\'',$($(p)))'))

# Whatever else is given there is a mistake, which would otherwise be passed over.
TYPED   := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v))
UNKNOWN := $(filter-out $(PARAMETERS) PYTHON VENV,$(TYPED))
$(if $(UNKNOWN),$(error no such parameter: $(UNKNOWN); allowed: $(PARAMETERS)))

export PYTHONWARNINGS := ignore::FutureWarning
export PYTHONUNBUFFERED := 1

.PHONY: run evaluate test browser stress lab publish bench search clean

run: $(READY)
	$(VENV)/bin/python tools/run.py $(GIVEN)

# Fresh samples, figures, scores and claims from what has been saved, yours or the published; no GAN is trained.
evaluate: $(READY)
	$(VENV)/bin/python tools/run.py $(GIVEN) -p TRAIN False

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What tests/test_jupyterlab.py needs, else skipped: Chromium from Debian's packages (asks for sudo), playwright in .venv.
browser: $(READY)
	$$([ "$$(id -u)" = 0 ] || echo sudo) apt-get install --yes --no-install-recommends chromium
	$(VENV)/bin/python -m pip install --quiet playwright

# A hundred kills and five hundred damaged files (about five minutes on 2 cores); `make test` has ten and 260.
stress: $(READY)
	$(VENV)/bin/python tests/stress.py --kills 100 --damages 500

lab: $(READY)
	$(VENV)/bin/jupyter lab wgan_gp.ipynb

# Run the notebook alone in a fresh folder, then put its outputs, figures, weights and tables in the places that are
# committed: with the finished trainings of the long profile (or of another DATASET and its PROFILE) if they are in
# saved_models/, else with the published weights, evaluated anew; beside them the scores of the other runs that are there.
given = $(if $(findstring command,$(origin $1)),$($1))
RUN := $(or $(call given,DATASET),fashion-mnist)-$(or $(call given,PROFILE),long)-seed$(or $(call given,SEED),0)
FINISHED := $(wildcard saved_models/$(RUN))
publish: $(READY)
	$(VENV)/bin/python tools/publish.py -p PROFILE long -p TRAIN False $(GIVEN) $(addprefix --trained ,$(FINISHED)) \
		--beside $(filter-out $(FINISHED),$(wildcard saved_models/*-seed*))

# Training beside the usual loop, step by step (about half an hour on 2 cores).
bench: $(READY)
	$(VENV)/bin/python benchmarks/training_speed.py

# The comparison that chose the settings of the quick profile (about 50 minutes on 2 cores).
search: $(READY)
	$(VENV)/bin/python benchmarks/quick_settings.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the packages into $(VENV) (some minutes, once)"
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@
