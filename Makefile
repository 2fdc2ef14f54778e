# `make` says what there is. Needs python3.11 or newer with its venv module, and make; everything else is fetched.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
ARGS ?=
FUZZ_SECONDS ?= 60
W ?=
RUNS ?= 5
POINTS ?= 200

# What the tests call beside Python, as Debian package:command.
DEBIAN := rsync:rsync acl:setfacl attr:setfattr e2fsprogs:filefrag xfsprogs:mkfs.xfs iproute2:ip procps:ps \
	systemd:systemctl util-linux:unshare curl:curl

# The peers of the bench.
PEERS := rsync:rsync lsyncd:lsyncd syncthing:syncthing openssh-server:sshd openssh-client:ssh iproute2:ip \
	restic:restic borgbackup:borg casync:casync

.PHONY: help demo test check history bench bench-growth bench-versions bench-takeover bench-heartbeats bench-micro fuzz clean debian

help: ## Say what there is (this).
	@echo 'crnode: continuous replication and versions for a handful of machines. Targets:'
	@sed -n 's/^\([.a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(VENV)/installed ## Show it all: three nodes on this machine, half a minute, every claim checked.
	@$(BIN)/crnode demo

# Most tests wait for agents and disks more than they compute.
WORKERS ?= $(shell n=$$((2 * $$(nproc))); [ "$$n" -lt 8 ] || n=8; echo "$$n")
test: debian $(VENV)/installed ## Run all tests. One file: make test ARGS=tests/unit/crnode/test_cli.py
	@rm -f $(VENV)/pytest-code
	@code=0; $(BIN)/python -m pytest $(or $(ARGS),-n $(WORKERS) --dist worksteal) || code=$$?; echo $$code > $(VENV)/pytest-code; \
	if [ $$code = 0 ]; then echo 'make test: all tests passed.'; \
	else echo "make test: not all is well, pytest ended with code $$code."; exit $$code; fi

check: $(VENV)/installed ## Run every gate: ruff, mypy --strict, import layers, then the tests.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

history: $(VENV)/installed ## Keep a tree in motion for 200 points and restore every version of it (ten minutes). Longer: make history POINTS=1000
	CRNODE_POINTS=$(POINTS) $(BIN)/python -m pytest -q tests/integration/test_history.py $(ARGS)

bench: $(VENV)/installed ## Measure beside rsync, lsyncd, Syncthing, restic, borg and casync (root; more than an hour). One workload: make bench W=W6
	@missing=; for item in $(PEERS); do command -v "$${item#*:}" > /dev/null || [ -x "/usr/sbin/$${item#*:}" ] || missing="$$missing $${item%:*}"; done; \
	if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi
	$(BIN)/python -m bench $(W) --runs $(RUNS) $(ARGS)

bench-growth: $(VENV)/installed ## Measure crnode as sets, files and targets grow, and while it is busy (root; about an hour). One part: make bench-growth W=busy
	$(BIN)/python -m bench.growth $(W) $(ARGS)

bench-versions: $(VENV)/installed ## Look at and thin out 64 versions of 1,000,000 files: folders, histories, differences (five minutes).
	$(BIN)/python -m bench.versions $(ARGS)

bench-takeover: $(VENV)/bench ## Measure how long customers wait when a server, its web server or its PostgreSQL dies, beside keepalived (root; ten minutes).
	@missing=; for item in keepalived:keepalived postgresql:psql; do command -v "$${item#*:}" > /dev/null || missing="$$missing $${item%:*}"; done; \
	if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi
	$(BIN)/python -m bench.takeover --runs $(RUNS) $(ARGS)

bench-heartbeats: $(VENV)/installed ## Keep the active node busy for ten minutes: nothing may take over (root). Shorter: make bench-heartbeats ARGS='--seconds 120'
	$(BIN)/python -m bench.heartbeats $(ARGS)

bench-micro: $(VENV)/bench ## Time the cores: cutting, hashing, frames, entries, digest, catalog, packs (two minutes).
	$(BIN)/python -m pytest bench/micro -o python_files='bench_*.py' --timeout 0 --benchmark-sort=name \
		--benchmark-columns=median,iqr,min,rounds $(ARGS)

fuzz: $(VENV)/fuzz ## Feed broken bytes to the protocol for 60 s. Longer: make fuzz FUZZ_SECONDS=3600
	@mkdir -p tests/fuzz/corpus
	$(BIN)/python tests/fuzz/fuzz_connection.py -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=tests/fuzz/corpus/ tests/fuzz/corpus

clean: ## Remove what make made: the virtual environment, caches, what was built.
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tests/fuzz/corpus
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: $(VENV)/installed ## Make the virtual environment with crnode and all tools in exact versions.

$(VENV)/installed: pyproject.toml constraints.txt
	@[ -n '$(PYTHON)' ] || { echo 'crnode needs Python 3.11 or newer. On Debian: apt-get install python3 python3-venv'; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'The virtual environment could not be made. On Debian: apt-get install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	@touch $@

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@touch $@

# Debian packages for the tests: installed when this runs as root, named when it does not.
debian:
	@missing=; for item in $(DEBIAN); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${item#*:}" > /dev/null || missing="$$missing $${item%:*}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
		echo "make test: these tools are missing, and installing them takes root on Debian:$$missing"; \
		echo "make test: going on without them; tests that need them are skipped or fail."; \
		echo "make test: to have them: sudo apt-get install$$missing"; exit 0; fi; \
	echo "make test: running as root, so the missing tools are installed with apt-get:$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing
