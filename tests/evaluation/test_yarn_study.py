# SPDX-License-Identifier: Apache-2.0
"""The YaRN study at a size of seconds: it trains, extends, measures and reports."""

import json

import pytest
import yaml
from drawn_figures import drawn_figures

from eval.studies.yarn import __main__ as yarn_study
from eval.studies.yarn.settings import VARIANTS, YarnSettings


@pytest.mark.slow
def test_the_study(tmp_path):
    stages = {
        "original_length": 256,
        "short_dataset_name": "set by the study",
        "short_loss_tolerance": 0.02,
        "stages": [{"max_length": 2048, "factor": 8, "long_share": 0.5, "steps": 1}],
    }
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump(stages), encoding="utf-8")
    settings = YarnSettings(
        stages=file,
        curriculum=((64, 1), (256, 1)),
        documents=300,
        long_documents=2,
        test_documents=2,
        needles=1,
        loss_rows=2,
        depths=(0.5,),
        lengths=(256,),
    )
    options = ["--models", str(tmp_path / "models"), "--output", str(tmp_path / "results")]
    with drawn_figures() as figures:
        yarn_study.main(yarn_study.make_parser().parse_args(options), settings)
    written = json.loads((tmp_path / "results" / "yarn_demo.json").read_text())
    assert list(written["models"]) == ["before", "YaRN, not trained", *VARIANTS]
    assert len(written["models"]["YaRN"]["loss_by_position"]) == 16
    text = (tmp_path / "results" / "yarn_demo.md").read_text()
    assert all(f"| {name} |" in text for name in written["models"])
    *needles, losses = figures["yarn_demo.png"].panels
    assert [panel.title for panel in needles] == losses.labels == list(written["models"])
    assert (losses.y_label, needles[0].x_ticks, needles[0].y_ticks) == ("loss, nats per token", ["256"], ["50%"])
    for panel, (name, row) in zip(needles, written["models"].items(), strict=True):
        assert panel.of_kind("image")[0].values == [row["needles"]["256"]]
        assert losses.series(name).y == row["loss_by_position"]
