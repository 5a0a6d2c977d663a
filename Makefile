# `make` alone lists what there is. Needs Python 3.11, 3.12 or 3.13 with venv, and nothing else.

.DEFAULT_GOAL := help
.PHONY: help install run test proofs lint chaos drill week mutations audit bench fuzz fuzz-api dist check-dist format lock clean mariadb

# Under 3.14 the embedded MongoDB has no wheel yet.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo "$$python" && break; done)

# The instance of `make run`; in .env, so that the dagster commands find it, which insist on one.
DAGSTER_HOME := $(CURDIR)/.pipeline_poc/dagster

# Written last: an environment without it was interrupted, and is made anew.
INSTALLED := .venv/installed

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Install exactly what requirements.lock says into .venv

# uv takes 11 s instead of 50. Where only pip is told how to reach an index, pip goes on.
$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { printf '%s\n' 'Python 3.11, 3.12 or 3.13 with its venv module is needed; on Debian:' \
		'    sudo apt-get install python3-venv' 'or name one: make install PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'Installing into .venv ...'
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	@awk '/^[^ ]/ { wanted = /^uv==/ } wanted' requirements.lock > .venv/uv.lock
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock \
		|| { echo 'uv has failed; pip goes on, which takes a minute ...' && .venv/bin/pip install --quiet \
			--disable-pip-version-check --require-hashes --no-deps -r requirements.lock; }
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $(DAGSTER_HOME)/
	@test -e .env || printf '%s\n' '# Made by `make install`; all settings stand in .env.example.' 'DAGSTER_HOME=$(DAGSTER_HOME)' > .env
	@touch $@

run: install  ## Start the whole pipeline; Ctrl-C stops it
	@exec .venv/bin/pipeline-poc up

PYTEST := .venv/bin/pytest $(if $(WITHOUT_MYSQL),--without-mysql)

test: install mariadb lint  ## Lint, then run the tests; ARGS="-k word" goes to pytest, WITHOUT_MYSQL=1 leaves MariaDB out
	$(PYTEST) --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not slow' $(ARGS)

proofs: install mariadb  ## Run the tests that take too long for `make test`, one after the other
	$(PYTEST) -m slow $(ARGS)

mariadb:
ifdef WITHOUT_MYSQL
	@echo '*** WITHOUT_MYSQL: what needs MariaDB is NOT TESTED ***' >&2
else
	@scripts/ensure-mariadb
endif

lint: install  ## Check style, types, the direction of imports, Dockerfile and workflows
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/bandit --quiet --recursive --configfile pyproject.toml pipeline_poc
	.venv/bin/hadolint Dockerfile
	.venv/bin/zizmor --quiet --offline .github

audit: install  ## Look for known vulnerabilities of what is locked; ADVISORIES=folder looks into a copy, offline
	@.venv/bin/python scripts/audit $(if $(ADVISORIES),--advisories $(ADVISORIES)) requirements.lock requirements-production.lock

SECONDS ?= 60

# Atheris has wheels for Linux only, and nothing else needs it.
fuzz: install  ## Fuzz parser, settings, job payload and cursors by their coverage, SECONDS=60 each
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes --no-deps -r requirements-fuzz.lock
	@for target in parser settings job cursor; do \
		echo "$$target ..." && .venv/bin/python scripts/fuzz $$target --seconds $(SECONDS) || exit 1; done

FAULTS ?= 1000
KILLS ?= 200

chaos: POSTS ?= 52000
chaos: install mariadb  ## Break everything while posts flow, then check the promises; SEED=N repeats, about an hour
	.venv/bin/pipeline-poc chaos --faults $(FAULTS) --posts $(POSTS) --kills $(KILLS) $(if $(SEED),--seed $(SEED))

drill: POSTS ?= 10000
drill: install mariadb  ## Rehearse an update of production while POSTS flow; ARGS=--namespaces: workers on two hosts
	.venv/bin/python scripts/production-drill --posts $(POSTS) $(ARGS)

DAYS ?= 7

week: install mariadb  ## Let DAYS of traffic pass in minutes, look whether anything grows; needs faketime, ARGS="--storage sqlite"
	.venv/bin/python scripts/simulated-week --days $(DAYS) $(ARGS)

# Needs nothing of what production needs, and nothing else needs it.
bench: install mariadb  ## Measure speed, CPU and memory beside others; ONLY=groups, POSTS=, REPEATS=, OUTPUT=folder, ARGS=more
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes --no-deps -r requirements-bench.lock
	.venv/bin/python -m bench $(if $(POSTS),--posts $(POSTS)) $(if $(REPEATS),--repeats $(REPEATS)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(OUTPUT),--output $(OUTPUT)) $(ARGS)

mutations: install mariadb  ## Break each promise on purpose, and see that the fault suite finds it
	MUTATIONS=all .venv/bin/pytest pipeline_poc_tests/chaos/test_mutations.py

URL ?= http://localhost:3000
CASES ?= 400

fuzz-api: install  ## Send thousands of requests to the endpoints of a pipeline at URL, as operator with API_TOKEN
	@test -n "$$API_TOKEN" || { echo 'API_TOKEN is not set: a token with the scope `operate`' >&2; exit 1; }
	.venv/bin/schemathesis run $(URL)/openapi.json --checks all --max-examples $(CASES)

dist: install  ## Build sdist and wheel of the last commit into dist, the same bytes anywhere
	@rm -rf dist
	@.venv/bin/python scripts/build-dist

check-dist: dist  ## Prove that both are reproducible and complete, and run from an empty environment
	@scripts/check-dist

format: install  ## Format the code and mend what can be mended
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

lock: install  ## Move the locks to the newest versions that pyproject.toml allows
	$(COMPILE) --upgrade --extra embedded --extra tracing --group dev pyproject.toml -o requirements.lock
	$(COMPILE) --upgrade --constraint requirements.lock --extra tracing pyproject.toml -o requirements-production.lock
	$(COMPILE) --upgrade --constraint requirements.lock --group bench -o requirements-bench.lock
	$(COMPILE) --upgrade --group fuzz -o requirements-fuzz.lock

clean:  ## Remove what was installed, built and cached; data in .pipeline_poc stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz
	find pipeline_poc pipeline_poc_tests -name __pycache__ -prune -exec rm -rf {} +
