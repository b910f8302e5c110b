# `make demo` and `make test` do all their set-up: a virtual environment with the exact versions of constraints.txt.
# For another build of torch: make TORCH="torch==2.13.0 --index-url ..." install

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN_TESTS := -m pytest -n 2 --dist loadfile --durations 10
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python $(RUN_TESTS)
# Markers of tests that have a target of their own.
ELSEWHERE := not mlx and not vllm and not upstream and not random and not kills and not mutations
NOT_HERE := not full and $(ELSEWHERE)
# Versions of transformers that the package is tested with besides that of constraints.txt. The newest is asked for at
# every run; TORCH is the CPU build for all of them, since other builds bring gigabytes.
OLDEST := transformers==5.16.0
NEWEST := transformers
# What every supported version has to do: load, run, generate. Newer ones do all that the model offers.
CORE_TESTS := $(addprefix tests/model/test_,parity.py packing.py decode.py generation.py cache_misuse.py ngram_cache.py \
	visible_history.py packed_compiled.py module_hooks.py) \
	$(addprefix tests/checkpoints/test_,loading.py checkpoint_layout.py remote_code.py private_model_interfaces.py)
ALL_BUT_TRAINING_TESTS := $(CORE_TESTS) \
	$(addprefix tests/model/test_,assisted_generation.py draft_generation.py draft_head.py mla.py moe.py \
	ngram_embedding.py ngram_tables.py ngram_quantization.py quantized_backbones.py sparse_attention.py \
	attention_mask.py export.py rotary_embedding.py decoder_layer.py gradients.py configuration_rope.py \
	interrupted_forward.py unknown_inputs.py random_generation.py prompt_embeddings.py) \
	$(addprefix tests/checkpoints/test_,oe_configs.py row_deltas.py untrusted_tokenizer.py saved_folders.py \
	whole_saves.py adapter_rows.py checkpoint_files.py mutations.py) \
	$(addprefix tests/finetuning/test_,serve.py)

.PHONY: install demo draft bits yarn study tools test test-fast test-full test-random test-kills test-mutations \
	test-latest test-oldest test-mlx test-vllm test-upstream eval-smoke lint typing format bench clean

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
	$(BIN)/python -m eval.drafts --model outputs/demo-draft --rows outputs/demo/data/test.jsonl
	$(BIN)/python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 \
		--output_dir outputs/demo-draft-words
	$(BIN)/python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --draft_head_only \
		--num_train_epochs 2 --model_name_or_path outputs/demo-draft-words --output_dir outputs/demo-draft-words-2
	$(BIN)/python -m eval.drafts --model outputs/demo-draft-words-2 --rows outputs/demo/data/test.jsonl \
		--name draft_acceptance_words

# Tables of 8 and 4 bits for the demo's model, and what they cost it.
bits: install outputs/demo/report.json
	rm -rf outputs/demo-int8 outputs/demo-int4
	$(BIN)/python -m eval.checkpoints.quantize --model outputs/demo/model --output outputs/demo-int8 --bits 8
	$(BIN)/python -m eval.checkpoints.quantize --model outputs/demo/model --output outputs/demo-int4 --bits 4
	$(BIN)/python -m eval.ngrams.quantization --model outputs/demo/model --converted outputs/demo-int8 outputs/demo-int4 \
		--trained-rows outputs/demo/data/train.jsonl --held-out outputs/demo/data/test.jsonl

# From 256 to 2,048 tokens by YaRN: a small model trained, extended four ways and measured.
yarn: install
	OMP_NUM_THREADS=1 $(BIN)/python -m eval.studies.yarn

# N-gram embeddings against experts, at the same parameters: 83 small runs, three hours to a night.
study: install
	$(BIN)/python -m eval.studies.scaling --config training/recipes/study_cpu.yaml

# A small model trained for two tools, and asked questions that it has not seen.
tools: install
	$(BIN)/python -m eval.studies.tools

# What the demo's model knows: bits per byte, multiple choice and tool calls from Python's documentation.
eval-smoke: export HF_HUB_OFFLINE := 1
eval-smoke: export OMP_NUM_THREADS := 1
eval-smoke: install outputs/demo/report.json
	$(BIN)/python -m eval.harness --model outputs/demo/model --suite smoke

outputs/demo/report.json:
	$(MAKE) demo

# One worker a core, one thread a worker: torch's own threads would fight over two cores.
test: install
	$(PYTEST) -m "$(NOT_HERE)" tests

test-fast: install
	$(PYTEST) -m "not slow and $(NOT_HERE)" tests

test-full: install
	$(PYTEST) -m "$(ELSEWHERE)" tests

# Saves over a folder with a model, killed at 200 random moments and at every file operation.
test-kills: install
	$(PYTEST) -m kills tests/checkpoints/test_whole_saves.py

# 2,000 damaged checkpoints, in some four minutes: loaded with the right numbers, or refused.
test-mutations: install
	$(PYTEST) -m mutations tests/checkpoints/test_mutations.py

# A thousand random generation cases against each row alone; `--random-seed` draws others.
test-random: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p tests.model.random_options -m random \
		tests/model/test_random_generation.py --random-cases 1000 --random-seed 0

# The newest transformers of the registry, in an environment of its own.
test-latest: .venv-latest/.installed
	.venv-latest/bin/pip install --quiet --upgrade --constraint .venv-latest/constraints.txt $(NEWEST)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-latest/bin/python $(RUN_TESTS) -m "$(NOT_HERE)" $(ALL_BUT_TRAINING_TESTS)

# The oldest supported one. Its dynamic caches are cropped and reset in another way, it has no FP8 cache, and it drops
# the dimensions of experts that are one number wide when it saves.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/constraints.txt "$(OLDEST)"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-oldest/bin/python $(RUN_TESTS) -m "$(NOT_HERE) and not slow" \
		-k "not quantized and not follows_the_cache and not reloads_bit_equal" $(CORE_TESTS)

# The pins of constraints.txt, less those that transformers decides. Tests train small models, hence trl and peft.
.venv-latest/.installed .venv-oldest/.installed: .venv-%/.installed: constraints.txt
	$(PYTHON) -m venv .venv-$*
	grep -viE '^(transformers|huggingface_hub|tokenizers|safetensors|httpcore2|httpx2|hf-xet)==' constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet $(TORCH)
	.venv-$*/bin/pip install --quiet --constraint .venv-$*/constraints.txt $(if $(filter oldest,$*),"$(OLDEST)",$(NEWEST)) \
		accelerate bitsandbytes datasets fastapi hypothesis jinja2 matplotlib openai peft psutil pydantic pytest \
		pytest-xdist pyyaml rich setuptools trl uvicorn
	.venv-$*/bin/pip install --quiet --constraint .venv-$*/constraints.txt --no-deps --upgrade --target .venv-$*/torchao torchao
	touch $@

# Logits against mlx-lm, which wants versions of its own.
test-mlx: install .venv-mlx/.installed
	$(PYTEST) -m mlx tests/checkpoints/test_mlx.py

.venv-mlx/.installed: tests/checkpoints/mlx_requirements.txt
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/pip install --quiet --requirement tests/checkpoints/mlx_requirements.txt
	touch $@

# Log-probabilities and tokens against vLLM, which wants versions of its own. Its requirements are installed as they are:
# torchvision and its like, which the rest would bring along, do not import beside a CPU build of torch.
test-vllm: install .venv-vllm/.installed
	$(PYTEST) -m vllm tests/checkpoints/test_vllm.py

.venv-vllm/.installed: tests/checkpoints/vllm_requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet $(TORCH)
	.venv-vllm/bin/pip install --quiet --no-deps --requirement tests/checkpoints/vllm_requirements.txt
	touch $@

# The tests that transformers carries for its own models, on ours: make test-upstream, or with ENV=.venv-latest.
ENV ?= .venv
test-upstream: $(ENV)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest -rA -m upstream tests/model/test_upstream.py

lint: install typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typing: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m eval.checkpoints.parameters
	$(BIN)/python -m eval.speed.generation
	$(BIN)/python -m eval.speed.placement
	$(BIN)/python -m eval.speed.step
	OMP_NUM_THREADS=1 $(BIN)/python -m eval.speed.row_optimizer

clean:
	rm -rf .venv .venv-* build dist *.egg-info
