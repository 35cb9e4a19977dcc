# What people do with the stack. A target is a line or two; what is longer lives in scripts/.
# Variables: JOB, CONFIG, TAGS, N, ON, UNIT, OFF, ADD, SKIP, NAME, ROLE, PASSWORD, REMOVE, JSON, DEPLOY, BACKED_UP, WHAT, RUN, SERVICE, SINCE, FOLLOW, USER, FULL, TO, FROM, RUNS, SCHEDULES, BACKUP_KEY, ROUNDS, WORK, MINUTES, SEED, FORCE, DRY_RUN, UPGRADE, SETS, TESTS, STACK (below), PYTHON,
# LOCATION, STACK_ENV_FILE (another .env: a second copy of the stack), INSTALL_DOCKER, REQUIRED_DISK_GB, TAKE_OVER (docs/operations.md).
# make hands them on by itself; an `export` here would set the absent ones to nothing, above what .env says.

PYTHON ?= python3
COMPOSE := $(PYTHON) -m scripts.compose
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# What other projects leave in a shell: it would keep Python from this folder, or change what is built and started.
unexport PYTHONSAFEPATH PYTHONHOME DOCKER_BUILDKIT DOCKER_DEFAULT_PLATFORM
unexport COMPOSE_ENV_FILES COMPOSE_DISABLE_ENV_FILE COMPOSE_IGNORE_ORPHANS COMPOSE_REMOVE_ORPHANS

.PHONY: help up deploy versions rollback upgrade rotate check-s3 move-s3 reload project down demo run scale autoscale host hosts monitoring user users status workers dead-letters audit retention compact logs ps shell backup backups restore restore-drill dev test test-unit test-versions lint lock dashboards bench drills soak clean

##@ Every day
up: ## Build what is missing, start all, wait until healthy, print the addresses
	@$(PYTHON) -m scripts.up
deploy: ## After an edit: new code for the running stack, no run fails: [DEPLOY=wait|hand-over]
	@$(PYTHON) -m scripts.deploy
versions: ## Versions of the code that are kept, and which one runs
	@$(PYTHON) -m scripts.code_versions
rollback: ## Back to the version before, or to another one that is kept; no run fails: [TO=code] [DEPLOY=wait|hand-over] [FORCE=1]
	@$(PYTHON) -m scripts.rollback
upgrade: ## Newer packages of Python and Debian, no run fails; asks first: [DRY_RUN=1] [WHAT=python|debian] [UPGRADE=name] [DEPLOY=wait|hand-over] [FORCE=1]
	@$(PYTHON) -m scripts.upgrade
rotate: ## New passwords for the stack's own stores, no run fails: [WHAT=postgres|rabbitmq|s3|all]
	@$(PYTHON) -m scripts.rotate
check-s3: ## Does an S3 store all that the stack uses? That of .env, or [TO=file|S3_ENDPOINT_URL=… …]
	@$(PYTHON) -m scripts.check_s3
move-s3: ## The bucket to another S3 store, or back, no run fails: TO=file [DEPLOY=wait|hand-over] [FORCE=1]
	@$(PYTHON) -m scripts.move_s3
down: ## Stop all; data stays
	@$(PYTHON) -m scripts.down
demo: ## Start all and run a year of flights through it
	@$(PYTHON) -m scripts.demo
run: ## Run a job with its progress: JOB=name [CONFIG=file.yaml] [TAGS=k=v,...] [LOCATION=name]
	@$(PYTHON) -m scripts.run
scale: ## As many workers: N=8 [ON=box2]
	@$(PYTHON) -m scripts.scale
autoscale: ## As many workers as there is work, until Ctrl-C (AUTOSCALE in .env); [UNIT=1] writes a unit of systemd
	@$(PYTHON) -m scripts.autoscaling
host: ## Another machine's workers join: ADD=ssh://user@box2 [NAME=box2]; or it is shut out: REMOVE=box2 [FORCE=1]
	@$(PYTHON) -m scripts.hosts.membership
hosts: ## The machines of the stack, whether they answer, and what runs there
	@$(PYTHON) -m scripts.hosts.listing

monitoring: ## Figures, Flower and Prometheus beside the stack; OFF=1 takes them away
	@$(PYTHON) -m scripts.monitoring

##@ Looking
status: ## Is all well? Runs, queues, workers, stores, alarms on one screen: [JSON=1]
	@$(PYTHON) -m scripts.run status $(if $(JSON),--json)
workers: ## Who is alive, on which queue, doing what
	@$(PYTHON) -m scripts.run workers
dead-letters: ## Messages that no worker could use, and why
	@$(PYTHON) -m scripts.run dead-letters
# A shell has a USER of its own.
audit: ## Who did what in Dagit: [USER=ana] [SINCE=2d] [JSON=1]
	@$(PYTHON) -m scripts.run audit $(if $(filter command,$(origin USER)),--user '$(subst ','\'',$(USER))') $(if $(SINCE),--since '$(subst ','\'',$(SINCE))') $(if $(JSON),--json)
retention: ## What is older than KEEP_*_DAYS goes now: [DRY_RUN=1] says what would [FORCE=1]
	@$(PYTHON) -m scripts.run retention $(if $(DRY_RUN),--dry-run) $(if $(FORCE),--yes)
compact: ## Give the disk back what Postgres no longer needs; work goes on meanwhile
	@$(PYTHON) -m scripts.compact
ps: ## The containers
	@$(COMPOSE) ps
logs: ## All logs, as they come; those of one run: RUN=id; [SERVICE=worker] [SINCE=10m] [FOLLOW=no]
	@$(PYTHON) -m scripts.logs
shell: ## A shell with the stack's environment, next to Dagster
	@$(COMPOSE) run --rm --no-deps cli bash

##@ Who may log in (LOGIN=on)
user: ## Add a user, or change one: NAME=ana ROLE=viewer|operator|admin [PASSWORD=new] [REMOVE=1]
	@$(PYTHON) -m scripts.users
users: ## Who may log in, and as what
	@$(PYTHON) -m scripts.users list

##@ Backups
backup: ## A backup now, beside those that BACKUP=daily makes: [FULL=1]
	@$(PYTHON) -m scripts.backups
backups: ## What there is to go back to: age, size, last verified: [JSON=1]
	@$(PYTHON) -m scripts.backups list
restore: ## Go back (asks first): [TO='2026-11-28 14:00'] [FROM=s3:…|sftp:…|/folder] [RUNS=resume|cancel] [SCHEDULES=catch-up|skip]
	@$(PYTHON) -m scripts.restore
restore-drill: ## Restore into a scratch copy, which is looked at and removed: does it work, how long does it take?
	@$(PYTHON) -m scripts.restore_drill

##@ Working on pipelines
reload: ## Definitions that code makes at import, anew: in Dagit, runners and workers
	@$(PYTHON) -m scripts.run reload
project: ## What was found in the folder that PROJECT names: code locations, jobs, variables that are missing
	@$(PYTHON) -m scripts.project_report
dev: ## The same project without Docker: SQLite, local files
	@$(PYTHON) -m scripts.dev
lock: ## Write requirements/*.lock from pyproject.toml: [UPGRADE=name|all]
	@$(PYTHON) -m scripts.lock
dashboards: ## Write Grafana's dashboards anew from scripts/dashboards
	@$(PYTHON) -m scripts.dashboards
test: ## Lint, types and all tests, on a stack of their own
	@$(PYTHON) -m scripts.test
test-unit: ## The tests that need no engine, in minutes
	@$(PYTHON) -m scripts.test unit
test-versions: ## The unit tests with the oldest and newest releases that pyproject.toml allows: [SETS=oldest,newest,latest] [TESTS=…] [STACK=1]
	@$(PYTHON) -m scripts.versions
lint: ## Lint and types alone
	@$(PYTHON) -m scripts.test lint
bench: ## Executors side by side, half an hour: [ROUNDS=5] [WORK=chain_21,parallel_50]
	@$(PYTHON) -m scripts.bench
drills: ## Break everything once, on a stack of their own, more than an hour: what it cost is a table
	@$(PYTHON) -m scripts.drills
soak: ## Break two things at once, at random: [MINUTES=10] [SEED=7]
	@$(PYTHON) -m scripts.drills soak

##@ The end
clean: ## Remove the stack with all its data (asks first): [FORCE=1]
	@$(PYTHON) -m scripts.clean

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {print "\n" substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
