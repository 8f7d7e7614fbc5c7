# Everything a newcomer needs: `make demo` and `make test`. Each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := coordinator participant fedpalm
PROTO := $(wildcard proto/fedpalm/wire/v1/*.proto)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: env demo test unit check proto fmt clean fuzz-wire soak-hostile fuzz-secagg fuzz-audit fuzz-sealed bench-audit bench-round bench-secagg bench-peers-secagg bench-palm bench-train bench-audit-attack bench-dp bench-dp-accounting bench-dp-cost bench-verify bench-templates bench-signature

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[site,dev]"
	: > $@

demo: env
	$(BIN)/fedpalm demo $(ARGS)

# In three processes, each with one thread: much of the time goes to waiting for real processes.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

unit: env
	$(BIN)/python -m pytest tests/unit tests/machines $(ARGS)

# At least 100,000 messages, 100,000 documents and 100,000 calls; prints how many, and what they cost.
fuzz-wire: env
	FEDPALM_FUZZ_INPUTS=300000 $(BIN)/python -m pytest tests/fuzz -s --timeout 0 --show-capture no $(ARGS)

# Half-open connections held for three minutes while honest sites keep training.
soak-hostile: env
	FEDPALM_HALF_OPEN_S=180 $(BIN)/python -m pytest tests/e2e/test_hostile_client.py -s $(ARGS)

fuzz-secagg: env
	SECAGG_FUZZ_STEPS=100000 $(BIN)/python -m pytest tests/machines/test_secagg_machine.py -s --timeout 0 $(ARGS)

# At least 10,000 forged bundles; prints how many of each kind were caught as what. Some ten minutes.
fuzz-audit: env
	FEDPALM_AUDIT_FORGERIES=10080 $(BIN)/python -m pytest tests/unit/audit/test_forgeries.py -s --timeout 0 $(ARGS)

# At least 10,000 different mutations of one byte of a sealed expert or its wrapped key; prints how many of
# each region were refused, and as what.
fuzz-sealed: env
	FEDPALM_SEALED_MUTATIONS=24000 $(BIN)/python -m pytest tests/unit/exchange/test_mutations.py -s --timeout 0 $(ARGS)

# A bundle of 100,000 entries, made and verified; a few minutes.
bench-audit: env
	$(BIN)/python scripts/bench_audit.py $(ARGS)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(PACKAGES) tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_proto.py --check

proto: env
	$(BIN)/python scripts/generate_proto.py

fmt: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format $(PACKAGES) tests scripts

bench-secagg: env
	$(BIN)/fedpalm bench secagg $(ARGS)

bench-peers-secagg: env
	$(BIN)/fedpalm bench peers-secagg $(ARGS)

# Every method on synthetic palms, tables and plots; ARGS="--preset smoke" takes a few minutes.
bench-palm: env
	$(BIN)/fedpalm bench palm $(ARGS)

# FedMH, its parts and its baselines on signatures (cross-media ones from FEDPALM_DATA), tables and a plot.
bench-signature: env
	$(BIN)/fedpalm bench signature $(ARGS)

# A FedPalm round at a site against a plain PyTorch loop of the same mathematics.
bench-train: env
	$(BIN)/fedpalm bench train $(ARGS)

# One verification with nine experts against loops over them; some two minutes.
bench-verify: env
	$(BIN)/fedpalm bench verify $(ARGS)

# Open-set error rates by epsilon, cold and warm started; under half an hour on two cores.
bench-dp: env
	$(BIN)/fedpalm bench dp $(ARGS)

# Both accountants over a grid of mechanisms; some ten minutes.
bench-dp-accounting: env
	$(BIN)/fedpalm bench dp-accounting --out docs/results $(ARGS)

# A private step by person against Opacus's own by record, in one run.
bench-dp-cost: env
	$(BIN)/fedpalm bench dp-cost $(ARGS)

# Cancelable templates: error rates by who holds which key, and D_sys; some minutes.
bench-templates: env
	$(BIN)/fedpalm bench templates $(ARGS)

# Twenty honest audits and every injected fault, with the table of docs/results/audit-attack.md.
bench-audit-attack: env
	$(BIN)/python scripts/bench_audit_attack.py $(ARGS)

bench-round: env
	$(BIN)/fedpalm bench round $(ARGS)

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
