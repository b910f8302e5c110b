# SPDX-License-Identifier: Apache-2.0
"""The YaRN study at a size of seconds: it trains, extends, measures and reports."""

import json

import pytest

from eval.studies.yarn import __main__ as yarn_study


@pytest.mark.slow
def test_the_study(tmp_path, monkeypatch):
    sizes = {"CURRICULUM": ((64, 1), (256, 1)), "DOCUMENTS": 300, "LONG_DOCUMENTS": 2, "TEST_DOCUMENTS": 2}
    sizes |= {"NEEDLES": 1, "LOSS_ROWS": 2, "DEPTHS": (0.5,), "LENGTHS": (256,)}
    for name, value in sizes.items():
        monkeypatch.setattr(yarn_study, name, value)
    recipes, results = tmp_path / "recipes", tmp_path / "results"
    recipes.mkdir()
    recipe = (yarn_study.RECIPES / "yarn_demo.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("outputs/yarn-demo", str(tmp_path / "out")).replace("steps: 4", "steps: 1")
    (recipes / "yarn_demo.yaml").write_text(recipe, encoding="utf-8")
    stages = f"""
original_length: 256
short_dataset_name: {tmp_path / "out" / "short"}
short_loss_tolerance: 0.02
stages:
  - {{max_length: 2048, factor: 8, long_share: 0.5, steps: 1}}
"""
    (recipes / "yarn_demo.stages.yaml").write_text(stages, encoding="utf-8")
    monkeypatch.setattr(yarn_study, "OUTPUT", tmp_path / "out")
    monkeypatch.setattr(yarn_study, "RECIPES", recipes)
    monkeypatch.setattr(yarn_study, "RESULTS", results)
    yarn_study.main(yarn_study.make_parser().parse_args([]))
    written = json.loads((results / "yarn_demo.json").read_text())
    assert list(written["models"]) == ["before", "YaRN, not trained", *yarn_study.VARIANTS]
    assert len(written["models"]["YaRN"]["loss_by_position"]) == 16
    text = (results / "yarn_demo.md").read_text()
    assert all(f"| {name} |" in text for name in written["models"])
    assert (results / "yarn_demo.png").read_bytes().startswith(b"\x89PNG")
