# SPDX-License-Identifier: Apache-2.0
"""LoRA of every kind: what trains is counted, an adapter comes back to equal logits, and merging changes nothing."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import randomize, tiny_config
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from tiny_chat import WIDTHS_OF_64, write_tiny_chat
from torch.nn.parallel import DistributedDataParallel

from modeling_longcat_lite import LongCatLiteForCausalLM
from training import sft
from training.run.draft_loss import draft_loss
from training.run.lifecycle import write_merged

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 11, 12, 5, 6, 7, 13]])
RANK = 3
RECIPE = yaml.safe_load(Path("training/recipes/sft_lora.yaml").read_text(encoding="utf-8"))
LAYER = r".*\.layers\.\d+\."
LATENTS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS = {
    "attention": {"target_modules": rf"{LAYER}self_attn\.\d\.({'|'.join(LATENTS)})"},
    "dense MLP": {"target_modules": [f"mlps.{half}.{name}" for half in range(2) for name in MLP]},
    "experts": {"target_modules": [], "target_parameters": RECIPE["lora_target_parameters"]},
    "projections": {"target_modules": ["ngram_embeddings.post_proj"]},
    "recipe": {
        "target_modules": RECIPE["lora_target_modules"][0],  # a list of one is an expression, as TRL hands it over
        "target_parameters": RECIPE["lora_target_parameters"],
    },
}
IN_DOUBLE = {"dtype": torch.float64, "experts_implementation": "eager"}  # grouped_mm knows no float64
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = randomize(LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1)))
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, kind: str, **options) -> PeftModel:
    """With an adapter that changes something: as initialised, its second matrix is zero."""
    model = LongCatLiteForCausalLM.from_pretrained(base, **options)
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, **KINDS[kind]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return peft


def expected_parameters(kind: str) -> int:
    """Rank times the widths on both sides of each matrix, counted from the config alone."""
    c = tiny_config()
    heads, rotated = c.num_attention_heads, c.qk_rope_head_dim
    sides = {
        "attention": 2
        * c.num_layers
        * (
            (c.hidden_size + c.q_lora_rank)
            + (c.q_lora_rank + heads * (c.qk_nope_head_dim + rotated))
            + (c.hidden_size + c.kv_lora_rank + rotated)
            + (c.kv_lora_rank + heads * (c.qk_nope_head_dim + c.v_head_dim))
            + (heads * c.v_head_dim + c.hidden_size)
        ),
        "dense MLP": 2 * c.num_layers * 3 * (c.hidden_size + c.ffn_hidden_size),
        "experts": c.num_layers * c.n_routed_experts * (2 * c.hidden_size + 3 * c.expert_ffn_hidden_size),
        "projections": 2 * c.hidden_size,
    }
    return RANK * (sum(sides.values()) if kind == "recipe" else sides[kind])


@each_kind
def test_only_the_adapter_trains_and_all_of_it(base, kind):
    model = adapted(base, kind)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    trainable = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    assert all("lora_" in name and "mtp" not in name for name in trainable)
    assert sum(weights.numel() for weights in trainable.values()) == expected_parameters(kind)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    model.train()
    # All experts get tokens.
    ids = torch.randint(4, 64, (4, 24), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name]) == (name not in trainable), name


@each_kind
@torch.no_grad()
def test_saved_and_loaded_it_computes_the_same(base, kind, tmp_path):
    model = adapted(base, kind).eval()
    logits = model(IDS).logits
    with model.disable_adapter():
        assert (model(IDS).logits - logits).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(LongCatLiteForCausalLM.from_pretrained(base), tmp_path).eval()
    assert torch.equal(again(IDS).logits, logits)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 5 * expected_parameters(kind) + 20_000


@each_kind
@torch.no_grad()
def test_merged_it_computes_the_same(base, kind, tmp_path):
    # In float64: these weights are large, and in float32 the order of the sums alone makes a difference of 1e-5.
    model = adapted(base, kind, **IN_DOUBLE).eval()
    logits = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path / "adapter", tmp_path / "merged", **IN_DOUBLE)
    merged = LongCatLiteForCausalLM.from_pretrained(tmp_path / "merged", **IN_DOUBLE)
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(IDS).logits, logits, atol=1e-6, rtol=1e-6)
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(input_ids=IDS, use_cache=False, **options)
    assert torch.equal(merged.generate(IDS, **options), expected)
    assert torch.equal(model.generate(input_ids=IDS, **options), expected)


@torch.no_grad()
def test_without_the_draft_head_in_mind_an_adapter_reaches_it(base):
    # Why the recipe's expression names layers: a list of names alone adapts the draft head too, in vain.
    model = get_peft_model(
        LongCatLiteForCausalLM.from_pretrained(base), LoraConfig(r=RANK, target_modules=["q_a_proj"])
    )
    assert any("mtp" in name and "lora_" in name for name, _ in model.named_parameters())


def targets_in_our_pages() -> dict[str, LoraConfig]:
    """Whatever follows `--lora_target_modules` in docstrings, recipes and pages."""
    pages = [*Path("training").rglob("*.py"), *Path("training").rglob("*.yaml"), *Path().glob("*.md")]
    option = re.compile(r"--lora_target_modules ([\w ]+?)(?: --| \\|\n)")
    lists = {found for page in pages for found in option.findall(page.read_text(encoding="utf-8"))}
    assert len(lists) >= 2
    return {names: LoraConfig(r=RANK, target_modules=names.split()) for names in sorted(lists)}


ON_THE_HEAD_TOO: dict[str, PeftConfig] = {
    **targets_in_our_pages(),
    "all-linear": LoraConfig(r=RANK, target_modules="all-linear"),
    "experts and all-linear": LoraConfig(
        r=RANK, target_modules="all-linear", target_parameters=RECIPE["lora_target_parameters"]
    ),
    "embeddings": LoraConfig(r=RANK, target_modules=["embed_tokens"]),
    "word rows in full": LoraConfig(r=RANK, target_modules=["o_proj"], modules_to_save=["embed_tokens"]),
    "IA3": IA3Config(target_modules=["kv_b_proj", "o_proj"], feedforward_modules=[]),
}
TRAINED_IDS = torch.randint(4, 64, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("where", ON_THE_HEAD_TOO)
def test_what_an_adapter_adds_gets_a_gradient_wherever_its_names_match(base, where, one_process):
    model = get_peft_model(LongCatLiteForCausalLM.from_pretrained(base), ON_THE_HEAD_TOO[where])
    expected = model(TRAINED_IDS).logits
    wrapped = DistributedDataParallel(
        model.train()
    )  # which waits for every gradient, in the second step at the latest
    for _ in range(3):
        wrapped(input_ids=TRAINED_IDS, labels=TRAINED_IDS).loss.backward()
    trained = {name: weights.grad for name, weights in model.named_parameters() if weights.requires_grad}
    assert any("mtp" in name for name in trained)
    for name, gradient in trained.items():
        assert gradient is not None, name
        assert not ("mtp" in name and gradient.any()), name  # the trunk's loss says nothing about the head
    assert torch.equal(model.eval()(TRAINED_IDS).logits, expected)
    assert any(gradient.any() for gradient in trained.values())


def test_an_adapter_on_the_head_trains_with_the_head(base):
    model = get_peft_model(LongCatLiteForCausalLM.from_pretrained(base), LoraConfig(r=RANK, target_modules=["o_proj"]))
    causal = model.get_base_model()
    states = causal.model(TRAINED_IDS).last_hidden_state
    draft_loss(causal, states, TRAINED_IDS, TRAINED_IDS).backward()
    second = {name: weights.grad for name, weights in model.named_parameters() if "lora_B" in name}
    assert all(gradient is not None and gradient.any() for gradient in second.values())


def test_an_adapter_on_the_head_alone_is_not_taken_for_training(base):
    model = get_peft_model(LongCatLiteForCausalLM.from_pretrained(base), LoraConfig(target_modules=["eh_proj"]))
    assert not model(TRAINED_IDS, labels=TRAINED_IDS).loss.requires_grad


def test_adapters_on_the_head_compile(base):
    model = get_peft_model(
        LongCatLiteForCausalLM.from_pretrained(base), LoraConfig(r=RANK, target_modules=["o_proj"])
    ).train()
    torch.compile(model, backend="eager")(input_ids=TRAINED_IDS, labels=TRAINED_IDS).loss.backward()
    assert all(weights.grad is not None for weights in model.parameters() if weights.requires_grad)


def train(folder: Path, output: Path, *options: str):
    """A few steps of the recipe's adapter, of a small rank, on the tiny model."""
    arguments = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "data"), "--use_cpu"]
    arguments += ["--output_dir", str(output), "--bf16", "false", "--report_to", "none", "--max_steps", "4"]
    arguments += ["--disable_tqdm", "true", "--learning_rate", "1e-1", "--logging_steps", "1", "--use_peft"]
    arguments += ["--lora_target_modules", RECIPE["lora_target_modules"][0], "--lora_r", "4", "--lora_dropout", "0"]
    arguments += ["--lora_target_parameters", *RECIPE["lora_target_parameters"]]
    return sft.main(*sft.make_parser().parse_args_and_config([*arguments, *options]))


def test_resuming_an_adapter_repeats_the_uninterrupted_run_bit_for_bit(tmp_path):
    chat = write_tiny_chat(tmp_path)
    whole = train(chat, tmp_path / "out", "--save_strategy", "steps", "--save_steps", "2")
    (tmp_path / "out" / "checkpoint-4").rename(tmp_path / "moved-away")
    resumed = train(chat, tmp_path / "out", "--save_strategy", "no", "--resume_from_checkpoint", "last")
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    expected = whole.model.state_dict()
    for name, weights in resumed.model.state_dict().items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize("base_in", ["resident", "disk", "4 bits"])
def test_training_writes_the_merged_model_when_asked(tmp_path, base_in):
    chat = write_tiny_chat(tmp_path, **WIDTHS_OF_64)
    where = ["--model_init_kwargs", f'{{"ngram_tables": "{base_in}"}}']
    options = ["--load_in_4bit"] if base_in == "4 bits" else where
    train(chat, tmp_path / "out", "--save_strategy", "no", "--merge_adapter", *options)
    merged = LongCatLiteForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    # Also of weights that were in 4 bits while the adapter was trained, the merged ones are those in full.
    plain = LongCatLiteForCausalLM.from_pretrained(chat / "model")
    with torch.no_grad():
        before = plain(IDS).logits
        model = PeftModel.from_pretrained(plain, tmp_path / "out")
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-6, rtol=1e-6)
        assert (merged(IDS).logits - before).abs().max() > 1e-3
    files = {path.name for path in (tmp_path / "out" / "merged").iterdir()}
    assert {"tokenizer.json", "modeling_longcat_lite.py", "model.safetensors"} <= files
    assert "adapter_config.json" not in files


@pytest.mark.parametrize("placement", ["host", "disk"])
def test_rows_trained_beside_the_adapter_are_merged_too(tmp_path, placement):
    chat = write_tiny_chat(tmp_path)
    where = ["--model_init_kwargs", f'{{"ngram_tables": "{placement}"}}', "--tables", "row_sparse"]
    trainer = train(chat, tmp_path / "out", "--save_strategy", "no", "--merge_adapter", *where)
    merged = LongCatLiteForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=IDS).logits
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-5, rtol=0)
    before, after = LongCatLiteForCausalLM.from_pretrained(chat / "model").state_dict(), merged.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if ".embedders." in name)


def test_nothing_to_merge_is_named(tmp_path):
    chat = write_tiny_chat(tmp_path)
    options = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(chat / "data"), "--use_cpu"]
    options += ["--output_dir", str(tmp_path / "out"), "--bf16", "false", "--report_to", "none", "--merge_adapter"]
    with pytest.raises(ValueError, match="`merge_adapter` merges an adapter, and none is trained"):
        sft.main(*sft.make_parser().parse_args_and_config(options))
