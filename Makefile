# Everything a person does with this project; `make` alone lists it. CI runs the same targets.
# Paths here are relative: the checkout may lie under a folder with spaces in its name.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# --- Docker -------------------------------------------------------------------------------------------------------
#: Not $(wildcard): make remembers folders, and would not see a .env that this same run has made.
HAVE_ENV = $(shell [ -f .env ] && echo yes)
from_env = $(shell sed -n 's/^$(1)=//p' .env 2>/dev/null | tail -n 1 | tr -d "\"'")
PROJECT = $(or $(COMPOSE_PROJECT_NAME),$(call from_env,COMPOSE_PROJECT_NAME),cutout-service)
#: 1: the worker gets GPU_DEVICE; 0: it runs on the CPU. Unset, a working nvidia-smi decides.
ifndef COMPOSE_GPU
COMPOSE_GPU = $(eval COMPOSE_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0))$(COMPOSE_GPU)
GPU_WHY = nvidia-smi $(if $(filter 0,$(COMPOSE_GPU)),finds no GPU,works); COMPOSE_GPU=0 or 1 decides otherwise
else
GPU_WHY = COMPOSE_GPU=$(COMPOSE_GPU)
endif
GPU_NOTE = $(if $(filter 0,$(COMPOSE_GPU)),Worker on the CPU,Worker on GPU $(or $(call from_env,GPU_DEVICE),0)) ($(GPU_WHY))
#: A COMPOSE_FILE of your own (in the environment or .env) replaces this choice of files.
COMPOSE_FILES = $(if $(COMPOSE_FILE)$(call from_env,COMPOSE_FILE),,-f docker-compose.yml \
  $(if $(filter 0,$(COMPOSE_GPU)),-f docker-compose.cpu.yml) $(addprefix -f ,$(wildcard docker-compose.override.yml)))
#: Without .env nothing can be started, but it can still be stopped and looked at.
COMPOSE = $(if $(HAVE_ENV),,REDIS_PASSWORD=unset FLOWER_PASSWORD=unset) docker compose $(COMPOSE_FILES)
NO_TTY = $$([ -t 0 ] && [ -t 1 ] || echo -T)
#: How long `make up` waits until every container is healthy (s).
UP_WAIT_S ?= 300
SERVICE ?= worker

# --- without Docker -----------------------------------------------------------------------------------------------
PY := .venv/bin/python
#: Runs a command with the settings of .env; the environment wins over the file.
WITH_ENV = $(if $(HAVE_ENV),$(PY) -m dotenv -f .env run --no-override --,)
HAVE_IMAGE = docker image inspect "$(PROJECT)-worker:local" >/dev/null 2>&1

##@ Run the service (Docker)

help: ## ✨ Show all available commands
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo

setup: need-docker env-file folders build ## 🚀 (Run once) Build the images and download all models
	@if [ "$(or $(MODEL_PROFILE),$(call from_env,MODEL_PROFILE))" = starter ]; then \
	  echo "MODEL_PROFILE=starter: the weights came with git (models/starter), nothing to download."; \
	else \
	  $(MAKE) --no-print-directory download-models || { \
	    echo "The images are built; the models are not complete. Correct what is said above, then: make download-models"; \
	    echo "Or set MODEL_PROFILE=starter in .env: the small models that came with git need no download."; exit 1; } >&2; \
	fi
	@echo "Ready: make up"

build: need-docker env-file ## 🧱 Build the images (after an update of the code)
	@$(COMPOSE) build

up: need-docker env-file folders ## 🟢 Start the service in the background
	@echo "$(GPU_NOTE)"
	@# A container that keeps crashing would be found unhealthy at once, although its cause may be gone: start it anew.
	@for id in $$($(COMPOSE) ps -aq); do \
	  docker inspect -f '{{.RestartCount}} {{with .State.Health}}{{.Status}}{{end}}' "$$id" \
	  | awk '$$2 == "unhealthy" || ($$1 > 0 && $$2 != "healthy") {exit 1}' || docker rm -f "$$id" >/dev/null; done
	@$(COMPOSE) up -d --remove-orphans --wait --wait-timeout $(UP_WAIT_S) || { \
	    status=$$?; echo; echo "Not everything came up; the reason is above, or in the last lines of what is not healthy:"; \
	    for service in $$($(COMPOSE) ps -a --format '{{.Service}} {{.Health}}' | awk '$$2 != "healthy" {print $$1}'); do \
	      $(COMPOSE) logs --tail=20 "$$service" || true; done; \
	    echo "Models not found: make download-models, or MODEL_PROFILE=starter in .env. GPU refused: COMPOSE_GPU=0 make up"; \
	    exit $$status; } >&2
	@echo "All healthy: http://127.0.0.1:$(or $(call from_env,API_PORT),8001) (Flower:" \
	  "http://127.0.0.1:$(or $(call from_env,FLOWER_PORT),5555), FLOWER_USER and FLOWER_PASSWORD of .env)"

down: need-docker ## 🔴 Stop the service
	@$(COMPOSE) down --remove-orphans

restart: down up ## 🔄 Restart the service (reads .env again, frees the GPU's memory)

logs: need-docker ## 📜 View live logs (LOGS="--tail=50 api" for other choices)
	@$(COMPOSE) logs $(or $(LOGS),-f --tail=200)

status: need-docker ## 📊 Show the status of the running containers
	@$(COMPOSE) ps
	@$(COMPOSE) exec -T api python -c "import json, urllib.error as e, urllib.request as r; \
	$$(printf '\ntry: b = r.urlopen("http://127.0.0.1:8001/health", timeout=5)\nexcept e.HTTPError as x: b = x\nprint(json.dumps(json.load(b), indent=2))')" \
	  2>/dev/null || echo "No answer from the API's /health."

shell: need-docker ## 💻 Open bash in the worker (SERVICE=api for another; CMD="nvidia-smi" for one command)
	@$(COMPOSE) exec $(NO_TTY) $(SERVICE) bash $(if $(value CMD),-c '$(subst ','\'',$(value CMD))')

download-models: ## ⬇️  Download the published models into models/ (again: only what is missing)
	@if $(HAVE_IMAGE); then $(COMPOSE) run --rm $(NO_TTY) download python -m download $(ARGS); \
	else $(MAKE) --no-print-directory venv && $(WITH_ENV) $(PY) -m download $(ARGS); fi

check-cache: ## 🔍 Verify the status and contents of the model cache (ARGS=--deep hashes the files)
	@if $(HAVE_IMAGE); then $(COMPOSE) run --rm $(NO_TTY) download python -m download --check $(ARGS); \
	else $(MAKE) --no-print-directory venv && $(WITH_ENV) $(PY) -m download --check $(ARGS); fi

backup: ## 💾 Pack models/, outputs/ and .env into backup-DATE.tar.gz
	@name="backup-$$(date +%Y%m%d-%H%M%S).tar.gz"; umask 077; \
	tar -czf "$$name.part" --exclude='outputs/.work' models/ outputs/ $(if $(HAVE_ENV),.env) && mv "$$name.part" "$$name"; \
	ls -lh "$$name"; echo "It holds your keys: keep it where only you can read it."

clean: ## 🧹 Stop and remove this project's containers and images (models/, outputs/ and the queue stay)
	@if docker info >/dev/null 2>&1; then \
	  $(COMPOSE) --profile '*' down --remove-orphans; \
	  for image in "$(PROJECT)-api:local" "$(PROJECT)-worker:local"; do \
	    if docker image inspect "$$image" >/dev/null 2>&1; then docker image rm "$$image" >/dev/null; echo "Removed image $$image"; fi; \
	  done; \
	  docker image prune -f --filter "label=com.docker.compose.project=$(PROJECT)" | grep -v '^Total' || true; \
	else echo "Docker does not answer: no containers to remove."; fi
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

clean-full: ## 🗑️  (DANGEROUS) clean, AND delete the downloaded models and the queue (FORCE=1: no question)
	@if [ "$(FORCE)" != 1 ]; then \
	  echo "This deletes the downloaded models in models/ ($$(du -sh models 2>/dev/null | cut -f1)) and the queue. outputs/ stays."; \
	  answer=; read -r -p "Type yes to go on: " answer || true; \
	  [ "$$answer" = yes ] || { echo "Nothing was deleted." >&2; exit 1; }; \
	fi
	@$(MAKE) --no-print-directory clean
	@if docker info >/dev/null 2>&1; then $(COMPOSE) --profile '*' down --volumes; fi
	@find models/ -mindepth 1 -maxdepth 1 ! -name starter ! -name .gitkeep -exec rm -rf {} +
	@echo "Deleted the downloaded models; models/starter, which belongs to git, is still there."

##@ Without Docker (Python 3.11 or 3.12, no GPU, no keys)

demo: venv ## 🎨 Cut out the sample designs once and show the results
	@$(PY) -m shared.local demo $(ARGS)

local: venv ## 🏠 Run the whole stack on this machine until Ctrl+C
	@$(PY) -m shared.local up $(ARGS)

smoke: venv ## 💨 Send one job to the running service and check the answer
	@$(PY) -m shared.local smoke $(ARGS)

##@ Develop

test: venv ## 🧪 Run the health check, the test client and the whole suite (ARGS="-k name" for a part)
	@$(PY) -m pytest $(if $(ARGS),,-n 2) $(ARGS)

test-gemini: venv ## 💎 Extract one design with the real Gemini API (needs GEMINI_API_KEY; paid)
	@$(WITH_ENV) $(PY) -m tests.real_gemini

lint: venv ## 🔎 Style, types, Dockerfiles, compose files
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy .
	@.venv/bin/hadolint Dockerfile.api Dockerfile.worker
	@compose="$$(ls .venv/lib/python3*/site-packages/compose/docker-compose 2>/dev/null || true)"; \
	if [ -z "$$compose" ] && docker compose version >/dev/null 2>&1; then compose="docker compose"; fi; \
	if [ -n "$$compose" ]; then export REDIS_PASSWORD=lint FLOWER_PASSWORD=lint; \
	  $$compose -f docker-compose.yml --profile '*' config -q; \
	  $$compose -f docker-compose.yml -f docker-compose.cpu.yml --profile '*' config -q; \
	elif [ "$${CI:-}" = true ]; then echo "CI has no docker compose to check the compose files with." >&2; exit 1; \
	else echo "Skipped the check of the compose files: docker compose is not here."; fi
	@echo "Lint: all good."

format: venv ## 🖌️  Format the code and fix what can be fixed
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

fuzz: venv ## 🐒 Throw mutated files at the decoder (FUZZ_S=600 seconds led by coverage, then FUZZ_EXAMPLES=50000)
	@if $(PY) -m pip install --disable-pip-version-check -q -r requirements/fuzz.txt -c requirements/constraints.txt; then \
	  $(PY) -m tests.hostile.fuzz --coverage $(or $(FUZZ_S),600); \
	else echo "No atheris for this machine: mutations without coverage only."; fi
	@$(PY) -m tests.hostile.fuzz --examples $(or $(FUZZ_EXAMPLES),50000)

chaos: venv ## 🐉 Kill every part of a stack at random under load, and check that no job is lost (CHAOS_MINUTES=10 CHAOS_SEED=1)
	@$(PY) -m tests.chaos.run --minutes $(or $(CHAOS_MINUTES),10) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

audit: venv ## 🛡️  Look every installed package up in the database of known weaknesses (needs the network)
	@[ -x .venv/audit/bin/pip-audit ] || { $(PY) -m venv .venv/audit && \
	  .venv/audit/bin/python -m pip install --disable-pip-version-check -q -r requirements/audit.txt; }
	@$(PY) -m pip freeze | sed 's/+[a-z0-9.]*$$//' >.venv/audit/installed.txt
	@.venv/audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r .venv/audit/installed.txt || { \
	  echo "The audit found something, or could not look every package up (see above): it has NOT passed." >&2; exit 1; }

ci: lint test ## ✅ What CI runs: lint and the whole suite

train-starter: venv ## 🏋️  Train the starter checkpoints anew (ARGS=--publish puts them into models/starter; CARD=1 on a CUDA card)
	@$(PY) -m pip install --disable-pip-version-check -q -r requirements/training.txt -c requirements/constraints.txt
	@$(PY) -m training.assets
	@$(PY) -m training.$(if $(CARD),recipe,train) $(ARGS)

eval-starter: venv ## 📏 Measure the starter checkpoints on held-out designs (ARGS="--rivals --packaged": and what they are compared with)
	@$(if $(findstring --packaged,$(ARGS)),$(PY) -m pip install --disable-pip-version-check -q -r requirements/training.txt -c requirements/constraints.txt)
	@$(PY) -m training.evaluate $(ARGS)

bench-cuda: venv ## 🏁 Measure everything that needs a card (ARGS="--json FILE --official CHECKOUT", ARGS=--aot; refuses without one)
	@$(PY) -m benchmarks.cuda $(ARGS)

venv: ## 🐍 Make .venv and install what the local commands need (again only when requirements change)
	@if ! $(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	  python=; for candidate in $(PYTHON) python3 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	      python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "Python 3.11 or 3.12 is needed; python3 here is $$(python3 --version 2>/dev/null || echo missing)." ; \
	    echo "Install one (Debian 12: apt install python3 python3-venv; Ubuntu 24.04: the same) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
	    exit 1; fi >&2; \
	  echo "Making .venv with $$("$$python" --version) ..."; \
	  rm -rf .venv; \
	  "$$python" -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; "$$python" -m virtualenv -q .venv 2>/dev/null; } || { \
	    rm -rf .venv; version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$python has neither venv nor virtualenv. Debian and Ubuntu: sudo apt install python$$version-venv"; exit 1; } >&2; \
	fi
	@stamp=".venv/.installed-$$(cat requirements/*.txt | cksum | tr ' ' -)"; \
	if [ ! -e "$$stamp" ]; then \
	  echo "Installing requirements/dev.txt into .venv (the first time: some minutes; PyTorch is most of it) ..."; \
	  rm -f .venv/.installed-*; \
	  $(PY) -m pip install --disable-pip-version-check --require-virtualenv -r requirements/dev.txt -c requirements/constraints.txt; \
	  touch "$$stamp"; \
	fi

# --- steps of the commands above ----------------------------------------------------------------------------------
need-docker:
	@command -v docker >/dev/null || { \
	  echo "Docker is not installed: get Docker Engine with the compose plugin. Without Docker: make demo, make local." >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { \
	  echo "Docker has no compose plugin (V2): install docker-compose-plugin (or docker-compose-v2)." >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { \
	  echo "The Docker daemon does not answer. Is it running (systemctl start docker), and may you use it (docker group)?" >&2; exit 1; }

#: Makes .env, and fills in what only this host can know. Values that are there are never changed.
env-file:
	@umask 077; [ -f .env ] || { cp .env.example .env; echo "Made .env from .env.example: put your keys there."; }
	@fill() { \
	  if grep -Eq "^$$1=[\"']?[^\"' ]" .env; then return; fi; \
	  text="$$(awk -v name="$$1" -v value="$$2" '!done && $$0 ~ "^#?" name "=" {print name "=" value; done = 1; next} {print} \
	    END {if (!done) print name "=" value}' .env)"; \
	  printf '%s\n' "$$text" >.env; echo "Set $$1 in .env"; }; \
	random() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }; \
	user=$${SUDO_UID:-$$(id -u)}; group=$${SUDO_GID:-$$(id -g)}; \
	if [ "$$user" = 0 ]; then user=1000; group=1000; fi; \
	fill WEBHOOK_SECRET "whsec_$$(head -c 32 /dev/urandom | base64 | tr -d '\n')"; \
	fill REDIS_PASSWORD "$$(random)"; fill FLOWER_PASSWORD "$$(random)"; fill APP_UID "$$user"; fill APP_GID "$$group"

#: The containers' user must read the one and write the other; only root can hand them over.
folders:
	@mkdir -p models outputs
	@if [ "$$(id -u)" = 0 ]; then owner="$(call from_env,APP_UID):$(call from_env,APP_GID)"; \
	  chown "$$owner" models; chmod -R a+rX models; chown -R "$$owner" outputs; fi

.PHONY: help setup build up down restart logs status shell download-models check-cache backup clean clean-full \
  demo local smoke test test-gemini lint format fuzz chaos audit ci train-starter eval-starter bench-cuda venv need-docker \
  env-file folders
