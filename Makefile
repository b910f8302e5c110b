# `make demo` and `make test` do all their set-up: a virtual environment with the exact versions of constraints.txt.
# For another build of torch: make TORCH="torch==2.13.0 --index-url ..." install

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 10

.PHONY: install demo draft bits yarn study tools test test-fast test-full test-kills test-mutations test-mlx eval-smoke lint typing format bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,eval,dev]"
	# Beside the environment, not in it: whatever can import torchao does so at every start. Its test adds the folder.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --upgrade --target .venv/torchao torchao
	touch $@

demo: install
	$(BIN)/python -m training.demo

# The draft head trained with the demo's model, from n-grams and from words, and what its drafts are worth.
draft: export HF_HUB_OFFLINE := 1
draft: export OMP_NUM_THREADS := 1
draft: install outputs/demo/report.json
	$(BIN)/python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 \
		--model_init_kwargs '{"mtp_use_ngram_embedding": true}' --output_dir outputs/demo-draft
	$(BIN)/python -m eval.draft_acceptance --model outputs/demo-draft --rows outputs/demo/data/test.jsonl
	$(BIN)/python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 \
		--output_dir outputs/demo-draft-words
	$(BIN)/python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --draft_head_only \
		--num_train_epochs 2 --model_name_or_path outputs/demo-draft-words --output_dir outputs/demo-draft-words-2
	$(BIN)/python -m eval.draft_acceptance --model outputs/demo-draft-words-2 --rows outputs/demo/data/test.jsonl \
		--name draft_acceptance_words

# Tables of 8 and 4 bits for the demo's model, and what they cost it.
bits: install outputs/demo/report.json
	rm -rf outputs/demo-int8 outputs/demo-int4
	$(BIN)/python -m eval.quantize_tables --model outputs/demo/model --output outputs/demo-int8 --bits 8
	$(BIN)/python -m eval.quantize_tables --model outputs/demo/model --output outputs/demo-int4 --bits 4
	$(BIN)/python -m eval.quantization_report --model outputs/demo/model --converted outputs/demo-int8 outputs/demo-int4 \
		--trained-rows outputs/demo/data/train.jsonl --held-out outputs/demo/data/test.jsonl

# From 256 to 2,048 tokens by YaRN: a small model trained, extended four ways and measured.
yarn: install
	OMP_NUM_THREADS=1 $(BIN)/python -m training.yarn_study

# N-gram embeddings against experts, at the same parameters: 83 small runs, three hours to a night.
study: install
	$(BIN)/python -m training.scaling_study --config training/recipes/study_cpu.yaml

# A small model trained for two tools, and asked questions that it has not seen.
tools: install
	$(BIN)/python -m training.tool_demo

# What the demo's model knows: bits per byte, multiple choice and tool calls from Python's documentation.
eval-smoke: export HF_HUB_OFFLINE := 1
eval-smoke: export OMP_NUM_THREADS := 1
eval-smoke: install outputs/demo/report.json
	$(BIN)/python -m eval.harness --model outputs/demo/model --suite smoke

outputs/demo/report.json:
	$(MAKE) demo

# One worker a core, one thread a worker: torch's own threads would fight over two cores.
test: install
	$(PYTEST) -m "not full and not mlx and not kills and not mutations" tests

test-fast: install
	$(PYTEST) -m "not slow and not full and not mlx and not kills and not mutations" tests

test-full: install
	$(PYTEST) -m "not mlx and not kills and not mutations" tests

# Saves over a folder with a model, killed at 200 random moments and at every file operation.
test-kills: install
	$(PYTEST) -m kills tests/test_whole_saves.py

# 2,000 damaged checkpoints, in some four minutes: loaded with the right numbers, or refused.
test-mutations: install
	$(PYTEST) -m mutations tests/test_mutations.py

# Logits against mlx-lm, which wants versions of its own.
test-mlx: install .venv-mlx/.installed
	$(PYTEST) -m mlx tests/test_mlx.py

.venv-mlx/.installed: tests/mlx_requirements.txt
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/pip install --quiet --requirement tests/mlx_requirements.txt
	touch $@

lint: install typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typing: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m eval.parameter_report
	$(BIN)/python -m eval.generation_speed
	$(BIN)/python -m eval.table_placement
	$(BIN)/python -m eval.step_time
	OMP_NUM_THREADS=1 $(BIN)/python -m eval.row_optimizer_speed

clean:
	rm -rf .venv .venv-mlx build dist *.egg-info
