# SPDX-License-Identifier: Apache-2.0
"""An adapter's changed rows come along wherever its folder is loaded as a whole; where they cannot, it is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from row_training import BY_ROWS, trained
from row_training import LORA as trainer_lora
from safetensors.torch import load_file, save_file
from tiny_chat import write_tiny_chat
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from eval.checkpoints import merge_rows as merge_row_deltas
from eval.checkpoints import quantize as quantize_tables
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, write_row_delta

LORA = {"r": 2, "target_modules": ["q_a_proj", "o_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
everywhere = pytest.mark.parametrize("placement", ["resident", "host", "disk"])


def rows_of(config, value: float, ids=(0, 2)):
    return [(torch.tensor(ids), torch.full((len(ids), 4), value)) for _ in config.subtable_sizes]


@pytest.fixture
def base(tmp_path) -> Path:
    """With changed rows of its own, of which an adapter's replace some."""
    model = randomize(LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1)))
    model.config.num_nextn_predict_layers = None
    model.save_pretrained(tmp_path / "base")
    write_row_delta(tmp_path / "base" / ROW_DELTA_FILE, model.config, rows_of(model.config, 2.0, (1, 2)), "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    torch.manual_seed(0)
    model = LongCatLiteForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    write_row_delta(tmp_path / "adapter" / ROW_DELTA_FILE, model.config, rows_of(model.config, 3.0), "base")
    return tmp_path / "adapter"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    texts: list[str] = []
    for name in ("adapter_rows", "checkpoint_loading"):
        logger = logging.get_logger(f"modeling_longcat_lite.{name}")
        monkeypatch.setattr(logger, "warning", texts.append)
    return texts


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.arange(5, 45)[None]).logits


def expected(base, adapter, placement="resident") -> torch.Tensor:
    model = LongCatLiteForCausalLM.from_pretrained(base, ngram_tables=placement)
    model.load_ngram_rows(adapter)
    return logits(PeftModel.from_pretrained(model, adapter))


@everywhere
@pytest.mark.parametrize(
    "auto", [AutoModelForCausalLM, LongCatLiteForCausalLM, AutoPeftModelForCausalLM], ids=lambda auto: auto.__name__
)
def test_an_adapters_folder_is_the_whole_model(base, adapter, said, placement, auto):
    model = auto.from_pretrained(adapter, ngram_tables=placement)
    assert torch.equal(logits(model), expected(base, adapter, placement))
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    assert whole.model.mtp is not None  # which the base carries, and not the adapter
    assert not said


def test_an_adapter_saved_where_an_earlier_one_had_rows_does_not_inherit_them(tmp_path):
    chat = write_tiny_chat(tmp_path / "chat")
    on_disk, adapter = {"init": {"ngram_tables": "disk"}, "peft_config": trainer_lora}, tmp_path / "adapter"
    with_rows = trained(chat, tmp_path / "one", tables=BY_ROWS, **on_disk)
    with_rows.save_model(adapter)
    assert {ROW_DELTA_FILE, "ngram_row_delta.md"} <= {path.name for path in adapter.iterdir()}
    without = trained(chat, tmp_path / "two", **on_disk)
    without.save_model(adapter)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(adapter)), logits(without.model))
    assert "ngram_row_delta.md" not in {path.name for path in adapter.iterdir()}
    # But the rows that it was trained on stay with it.
    with_rows.save_model(tmp_path / "rows")
    on_rows = trained(chat, tmp_path / "three", **on_disk)
    on_rows.accelerator.unwrap_model(on_rows.model).get_base_model().load_ngram_rows(tmp_path / "rows")
    on_rows.save_model(adapter)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(adapter)), logits(on_rows.model))


@everywhere
def test_an_adapter_put_on_a_model_brings_its_rows(base, adapter, placement):
    model = LongCatLiteForCausalLM.from_pretrained(base, ngram_tables=placement)
    model.load_adapter(str(adapter))
    assert torch.equal(logits(model), expected(base, adapter, placement))


def test_an_adapter_next_to_its_base_is_part_of_it(base, adapter):
    both = logits(AutoModelForCausalLM.from_pretrained(adapter))
    for file in adapter.iterdir():
        shutil.copy(file, base)
    config = LongCatLiteForCausalLM.config_class.from_pretrained(base)
    values = torch.tensor([3.0, 2.0, 3.0])[:, None].expand(3, 4)
    write_row_delta(base / ROW_DELTA_FILE, config, [(torch.arange(3), values) for _ in config.subtable_sizes], "base")
    for auto in (AutoModelForCausalLM, LongCatLiteForCausalLM):
        assert torch.equal(logits(auto.from_pretrained(base)), both)


def test_what_peft_does_not_load_is_told(base, adapter, said):
    model = LongCatLiteForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(model, adapter)
    assert len(said) == 1 and str(adapter) in said[0] and ROW_DELTA_FILE in said[0] and "load_ngram_rows" in said[0]
    said.clear()
    model = LongCatLiteForCausalLM.from_pretrained(base)
    model.load_ngram_rows(adapter)
    PeftModel.from_pretrained(model, adapter)
    (adapter / ROW_DELTA_FILE).unlink()
    PeftModel.from_pretrained(LongCatLiteForCausalLM.from_pretrained(base), adapter)
    get_peft_model(LongCatLiteForCausalLM.from_pretrained(base), LoraConfig(**LORA))
    assert not said


REMOTE = """
import sys
sys.modules["modeling_longcat_lite"] = None
import torch
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM
from safetensors.torch import save_file
found = {}
for auto in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
    model = auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    with torch.no_grad():
        found[auto.__name__] = model(torch.arange(5, 45)[None]).logits
save_file(found, sys.argv[2])
"""


@pytest.mark.slow  # a process of its own
def test_remote_code_brings_the_rows_too(base, adapter, tmp_path):
    subprocess.run([sys.executable, "-c", REMOTE, adapter, tmp_path / "found"], check=True, cwd=tmp_path)
    for values in load_file(tmp_path / "found").values():
        assert torch.equal(values, expected(base, adapter))


def test_a_peft_that_is_too_old_is_explained(base, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("The version of PEFT you are using is not compatible, please use a version >= 0.22.0")

    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse, raising=False)
    model = LongCatLiteForCausalLM.from_pretrained(base)
    with pytest.raises(ValueError, match=r"add_adapter.*peft\.get_peft_model.*peft\.PeftModel\.from_pretrained"):
        model.add_adapter(LoraConfig(**LORA))


def with_noise(base: Path, folder: Path, *tensors: str) -> Path:
    """The base without rows of its own, some of its tensors drawn anew."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(ROW_DELTA_FILE))
    weights = load_file(base / "model.safetensors")
    for name in tensors:
        weights[name] = torch.randn_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changed, problem",
    [
        ([], None),
        (["model.layers.0.self_attn.0.q_a_proj.weight"], None),  # as merging an adapter does
        (["model.ngram_embeddings.embedders.7.weight"], "n-gram tables"),
        (["model.embed_tokens.weight"], "word embedding"),
    ],
    ids=["the same", "merged", "tables", "words"],
)
def test_rows_of_another_model_are_told(base, tmp_path, said, placement, dtype, changed, problem):
    source = LongCatLiteForCausalLM.from_pretrained(base, ngram_tables="disk", dtype=dtype)
    everything = [(torch.arange(size), torch.ones(size, 4)) for size in source.config.subtable_sizes]
    source.model.ngram_embeddings.tables.change_rows(everything, 4)
    source.save_ngram_rows(tmp_path / "rows")
    folder = with_noise(base, tmp_path / "other", *changed)
    write_row_delta(folder / ROW_DELTA_FILE, source.config, rows_of(source.config, 2.0), "base")  # of an older version
    for other_dtype in (torch.float32, dtype):
        model = LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=placement, dtype=other_dtype)
        assert not said
        for _ in range(2):  # rows that changed do not make it another model
            model.load_ngram_rows(tmp_path / "rows")
        assert len(said) == (2 if problem else 0)
        if problem:
            assert problem in said[0] and str(tmp_path / "rows" / ROW_DELTA_FILE) in said[0] and str(base) in said[0]
        said.clear()
    logger = logging.get_logger(merge_row_deltas.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "warning", said.append)
        merge_row_deltas.merge(folder, [tmp_path / "rows"], tmp_path / "merged")
    assert len(said) == bool(problem)


def test_rows_made_for_tables_of_more_bits_are_not_told(base, tmp_path, said):
    source = LongCatLiteForCausalLM.from_pretrained(base, ngram_tables="disk")
    source.save_ngram_rows(tmp_path / "rows")
    options = ["--model", str(base), "--output", str(tmp_path / "few"), "--bits", "8"]
    quantize_tables.main(quantize_tables.make_parser().parse_args(options))
    LongCatLiteForCausalLM.from_pretrained(tmp_path / "few", ngram_tables="host").load_ngram_rows(tmp_path / "rows")
    assert not said


@everywhere
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_no_numbers_are_refused_and_nothing_is_applied(base, tmp_path, placement, value):
    model = LongCatLiteForCausalLM.from_pretrained(base, ngram_tables=placement)
    before = logits(model)
    write_row_delta(tmp_path / "good", model.config, rows_of(model.config, 5.0), "base")
    rows = rows_of(model.config, 5.0)
    rows[3][1][1, 2] = value
    write_row_delta(tmp_path / "bad", model.config, rows, "base")
    with pytest.raises(ValueError, match=r"bad: `table_3\.rows` has NaN or infinite numbers in row 2"):
        model.load_ngram_rows(tmp_path / "good", tmp_path / "bad")
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match=r"absent.*not a file"):
        model.load_ngram_rows(tmp_path / "good", tmp_path / "absent")
    assert torch.equal(logits(model), before)
    model.load_ngram_rows(tmp_path / "good")
    assert not torch.equal(logits(model), before)
