# SPDX-License-Identifier: Apache-2.0
"""The scaling study: text, matched points, runs that are kept, a report that says what is there and what is not."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from drawn_figures import DrawnFigure, drawn_figures
from transformers import AutoTokenizer

from eval.studies.scaling import __main__ as scaling_study
from eval.studies.scaling import report as study_report
from eval.studies.scaling import run as study_run
from eval.studies.scaling.grid import Point, grid, match
from eval.studies.small_training import rows_as_batch
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.data.token_rows import TextSettings, is_held_out, load_side, prepare_text

RECIPES = sorted(Path("training/recipes").glob("study_*.yaml"))
RESULTS = Path("eval/results")
README = Path("eval/studies/scaling/README.md")
BASE = {"total_ratio": 6, "amplification": "layer_norm"}
MODEL = {
    **yaml.safe_load(Path("training/recipes/study_cpu.yaml").read_text(encoding="utf-8"))["model"],
    "vocab_size": 300,
    "ngram_base_vocab_size": 300,
    "expert_ffn_hidden_size": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study of one experiment in an empty folder: four points, two of them impossible."""
    folder = tmp_path_factory.mktemp("study")
    files = []
    for number in range(12):
        files.append(folder / f"document{number}.txt")
        words = (f"word{(number * 7 + place * place) % 23} follows {place % 5}." for place in range(150))
        files[-1].write_text(" ".join(words), encoding="utf-8")
    study = {
        "workers": 2,
        "threads": 1,
        "text": {"vocabulary": 300, "length": 32, "held_out_percent": 20, "files": list(map(str, files))}
        | {"standard_library": False},
        "model": {key: value for key, value in MODEL.items() if "vocab" not in key},
        "training": {"rows_per_step": 4, "evaluations": 2, "max_epochs": 2},
        "point": {"total_ratio": 4, "hidden_size": 48, "num_layers": 1},
        "experiments": {
            "pair": {"tokens": 512, "seeds": [0, 1], "vary": {"total_ratio": [4, 0.5], "ngram_share": [0, 0.5]}},
            "long": {"tokens": 10**9, "seeds": [0], "vary": {"ngram_share": [0.5]}},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return folder


def run(folder: Path, *options: str) -> int:
    paths = ["--text", str(folder / "text"), "--runs", str(folder / "runs.json"), "--output", str(folder / "report")]
    options = ("--config", str(folder / "study.yaml"), *paths, *options)
    return scaling_study.main(scaling_study.make_parser().parse_args(options))


def kept(folder: Path) -> dict[str, dict]:
    """The lines of the file of runs, by name and seed."""
    return json.loads((folder / "runs.json").read_text())["runs"]


@pytest.fixture(scope="module")
def figures() -> dict[str, DrawnFigure]:
    """The figures of `studied`."""
    return {}


@pytest.fixture(scope="module")
def studied(folder, figures) -> Path:
    with drawn_figures() as drawn:
        assert run(folder) == 0
    figures.update(drawn)
    return folder


def test_runs_are_kept_and_reported(studied, figures):
    assert len(kept(studied)) == 4  # the pair at a ratio of 4, two seeds each
    assert all(name.endswith(f"-seed{one['seed']}") for name, one in kept(studied).items())
    assert len((studied / "runs.json").read_text().splitlines()) == 4 + 3
    summary = json.loads((studied / "report" / "scaling_study.json").read_text())
    pair = summary["experiments"]["pair"]
    assert [row["seeds"] for row in pair["rows"]] == [[0, 1], [0, 1]]
    assert abs(pair["pairs"][0]["total_gap"]) < 0.02 and abs(pair["pairs"][0]["activated_gap"]) < 0.02
    by_share = {row["point"]["ngram_share"]: row["losses"] for row in pair["rows"]}
    assert pair["pairs"][0]["differences"] == [a - b for a, b in zip(by_share[0.5], by_share[0], strict=True)]
    report = (studied / "report" / "scaling_study.md").read_text()
    assert (
        "cannot be matched" in report and "118371.2 times the text" in report
    )  # what cannot be, and the text that is too small
    losses, differences, curves, over_training = figures["scaling_study_pair.png"].panels
    assert (losses.x_label, losses.x_scale) == ("total / activated parameters", "log")
    for row in pair["rows"]:
        label = "50% n-grams" if row["point"]["ngram_share"] else "experts alone"
        assert losses.series(label).y == [row["loss"]]
        assert losses.series(label).errors == pytest.approx([row["half"]])
        assert list(map(list, zip(*row["over_training"], strict=True))) == [
            curves.series(row["label"]).x,
            curves.series(row["label"]).y,
        ]
    assert differences.series("lowest of each run").y == [pair["pairs"][0]["difference"]]
    assert over_training.labels == [pair["pairs"][0]["label"]]


def test_an_interrupted_study_goes_on_and_the_same_seed_gives_the_same_losses(studied):
    before, text = kept(studied), (studied / "runs.json").read_text()
    gone = sorted(before)[1]
    lines = [line for line in text.splitlines() if gone not in line.split(":")[0]]
    (studied / "runs.json").write_text("\n".join(lines) + "\n")
    assert kept(studied).keys() == before.keys() - {gone}
    assert run(studied, "--report-only") == 0
    missing = json.loads((studied / "report" / "scaling_study.json").read_text())["experiments"]["pair"]["missing"]
    assert len(missing) == 1 and len(missing[0]["seeds"]) == 1
    assert run(studied) == 0
    for name, one in kept(studied).items():
        assert one["result"]["held_out"] == before[name]["result"]["held_out"]
        assert (one == before[name]) is (name != gone)  # another speed: it was trained again


def test_a_run_that_fails_is_named_and_the_rest_goes_on(folder, tmp_path):
    runs = [
        {
            "name": "bad-seed0",
            "text": str(tmp_path),
            "training": {},
            "tokens": 1,
            "length": 32,
            "seed": 0,
            "config": {},
        },
        {"name": "worse-seed0"},
    ]
    keeper = study_run.KeptRuns(tmp_path / "runs.json")
    problems = scaling_study.train_all(runs, keeper, workers=2, threads=1)
    assert sorted(problem.split(" failed: ")[0] for problem in problems) == ["run bad-seed0", "run worse-seed0"]
    assert not list(tmp_path.iterdir())


def plain_run(folder: Path, point: Point, **training) -> dict:
    settings = {"rows_per_step": 4, "evaluations": 6, "patience": 2} | training
    fields = match(MODEL, point).fields
    return {
        "text": str(folder / "text"),
        "config": fields,
        "training": settings,
        "tokens": 768,
        "length": 32,
        "seed": 3,
    }


def test_twins_read_the_same_rows_in_the_same_order(studied):
    read: list[list] = []

    def record(rows: list[dict]) -> dict:
        batch = rows_as_batch(rows)
        read[-1].append(batch["input_ids"].tolist())
        return batch

    for share in (0, 0.5):
        read.append([])
        point = Point(total_ratio=4, ngram_share=share, hidden_size=48, num_layers=1)
        study_run.train(plain_run(studied, point), as_batch=record)
    assert read[0] == read[1] and len(read[0]) > 6


def test_a_run_that_learns_nothing_more_stops_early(studied):
    point = Point(total_ratio=4, hidden_size=48, num_layers=1)
    result = study_run.train(plain_run(studied, point, learning_rate=0.0, router_bias_rate=0.0))
    assert (
        result["stopped_early"] and len(result["held_out"]) == 3
    )  # the first evaluation, and two without a lower loss


def test_no_file_stands_on_both_sides(studied):
    names = [f"document{number}.txt" for number in range(12)]
    held_out = [name for name in names if is_held_out(name, 20)]
    assert 0 < len(held_out) < len(names)
    facts = json.loads((studied / "text" / "text.json").read_text())
    assert (facts["held_out"]["files"], facts["train"]["files"]) == (len(held_out), len(names) - len(held_out))
    tokenizer = AutoTokenizer.from_pretrained(studied / "text" / "tokenizer")
    rows = load_side(studied / "text", "held_out")["input_ids"]
    text = "".join((studied / name).read_text() + tokenizer.eos_token for name in held_out)
    assert text.startswith(tokenizer.decode([token for row in rows for token in row]))


def test_another_text_is_not_taken_for_it(studied):
    with pytest.raises(ValueError, match="text of other settings"):
        prepare_text(studied / "text", TextSettings(length=16))


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("ratio", [6, 20])
def test_points_have_the_parameters_that_they_say(ratio, share):
    point = Point(total_ratio=ratio, ngram_share=share)
    matched = match(MODEL, point)
    model = LongCatLiteForCausalLM(LongCatLiteConfig(**matched.fields))
    counted = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert matched.total == sum(counted.values())
    assert matched.ngram == sum(count for name, count in counted.items() if "ngram_embeddings" in name)
    assert matched.ngram / matched.total == pytest.approx(share, abs=0.03)
    config = model.config
    expert = 3 * config.hidden_size * config.expert_ffn_hidden_size * config.num_layers
    inputs = sum(count for name, count in counted.items() if "ngram" in name or "embed_tokens" in name)
    idle = inputs + (config.n_routed_experts - config.moe_topk) * expert
    assert matched.activated == matched.total - idle
    assert matched.total / matched.activated == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_the_ratio_of_tables_is_as_far_from_an_integer_as_asked(fraction):
    assert match(MODEL, Point(ratio_fraction=fraction)).fields["ngram_vocab_size_ratio"] % 1 == fraction


def test_grids_vary_fields_together():
    points = grid({"total_ratio": 6}, {"max_order splits": [[2, 1], [3, 3]], "ngram_share": [0, 0.5]})
    seen = [(point.max_order, point.splits, point.ngram_share) for point in points]
    assert seen == [(2, 1, 0), (2, 1, 0.5), (3, 3, 0), (3, 3, 0.5)]
    assert {point.total_ratio for point in points} == {6}
    with pytest.raises(ValueError, match="`depth` is not a field of a point"):
        grid({}, {"depth": [1]})


def test_intervals_are_those_of_students_t():
    interval = study_report.Interval.of([1.0, 2.0, 3.0])
    assert interval.middle == 2.0
    assert interval.half == pytest.approx(4.303 / 3**0.5, abs=1e-3)  # t at 97.5 % with two degrees of freedom
    assert study_report.Interval.of([1.0]).sign == "one seed"
    assert interval.sign == "no difference seen"
    assert study_report.Interval(-1.0, 0.5).sign == "lower"
    assert study_report.Interval(1.0, 0.5).sign == "higher"


def test_points_are_compared_with_their_vanilla_twin_or_the_base():
    def compared(vary: dict) -> list[tuple]:
        points = [{"point": asdict(point)} for point in grid(BASE, vary)]
        return study_report.references(points, list(vary), asdict(Point(**BASE)))

    assert compared({"total_ratio": [6, 12], "ngram_share": [0, 0.5]}) == [(1, 0), (3, 2)]
    assert compared({"ngram_share": [0.2, 0, 0.5]}) == [(0, 1), (2, 1)]
    assert compared({"amplification": ["none", "sqrt_d", "layer_norm"]}) == [(0, 2), (1, 2)]
    assert compared({"amplification": ["none", "sqrt_d"]}) == []  # neither is the base
    assert compared({"ngram_share": [0.2, 0.5]}) == []  # the twin could not be matched


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_recipes_can_be_planned(recipe, quick):
    study = scaling_study.read_study(recipe, quick)
    settings = TextSettings(**study["text"])
    text = {"vocabulary": settings.vocabulary, "sha256": "", "settings": {"length": settings.length}}
    plan = scaling_study.make_plan(study, text | {"train": {"tokens": 10**12}}, Path("text"))
    assert not any(experiment["not_matched"] for experiment in plan["experiments"].values())
    training = study_run.RunSettings(**study["training"])
    assert all(study_run.steps_for(run["tokens"], run["length"], training) > 8 for run in plan["runs"].values())


def test_an_experiment_can_change_model_and_training(folder):
    study = scaling_study.read_study(folder / "study.yaml", quick=False)
    text = {"vocabulary": 300, "sha256": "", "settings": {"length": 32}, "train": {"tokens": 10**12}}
    pair = study["experiments"]["pair"]
    changed = {"model": {"initializer_range": 0.1}, "training": {"learning_rate": 0.5}}
    plan = scaling_study.make_plan(
        study | {"experiments": {"pair": pair, "other": pair | changed}}, text, Path("text")
    )

    def runs(name: str) -> list[dict]:
        points = plan["experiments"][name]["points"]
        return [plan["runs"][run["name"]] for point in points for run in point["runs"]]

    for plain, other in zip(runs("pair"), runs("other"), strict=True):
        assert other["config"] == plain["config"] | {"initializer_range": 0.1}
        assert other["training"] == plain["training"] | {"learning_rate": 0.5}
        assert other["name"] != plain["name"]
    assert plan["experiments"]["other"]["changed"] == changed


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda study: study.pop("point"), "`point` is missing"),
        (lambda study: study.update(grid={}), "`grid` is not a key of a study"),
        (lambda study: study["experiments"]["pair"].pop("seeds"), "`pair` lacks `seeds`"),
        (lambda study: study["experiments"]["pair"].update(seed=1), "`pair` has `seed`, which is not a key"),
    ],
)
def test_mistakes_in_a_study_are_named(folder, tmp_path, change, problem):
    study = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    change(study)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        scaling_study.read_study(tmp_path / "study.yaml", quick=False)


def test_runs_of_another_text_are_left_alone(studied, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    facts = json.loads((studied / "text" / "text.json").read_text())
    (text / "text.json").write_text(json.dumps(facts | {"sha256": "another"}))
    before = (studied / "runs.json").read_text()
    with pytest.raises(ValueError, match=r"`--runs` .*runs\.json holds a study of another text.*`--runs`"):
        run(studied, "--text", str(text))
    assert (studied / "runs.json").read_text() == before


def test_a_quick_study_leaves_the_whole_one_alone(studied):
    plans = json.loads((studied / "runs.json").read_text())["plans"]
    before = kept(studied), plans["scaling_study"], (studied / "report" / "scaling_study.json").read_text()
    assert run(studied, "--quick", "--only", "pair") == 0
    plans = json.loads((studied / "runs.json").read_text())["plans"]
    after = kept(studied), plans["scaling_study"], (studied / "report" / "scaling_study.json").read_text()
    assert after == before and plans.keys() == {"scaling_study", "scaling_study_quick"}
    quick = json.loads((studied / "report" / "scaling_study_quick.json").read_text())
    assert quick["experiments"]["pair"]["rows"] and "--quick" in quick["command"]
    assert "(scaling_study_quick_pair.png)" in (studied / "report" / "scaling_study_quick.md").read_text()


def test_what_cannot_be_asked_for_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no experiment depth"):
        run(folder, "--only", "depth")
    (tmp_path / "other.json").write_text("{}")
    for runs, problem in (
        (tmp_path / "none.json", "leave out `--report-only`"),
        (tmp_path / "other.json", r"other\.json does not hold the runs of a study"),
        (tmp_path, "is a folder: give a JSON file"),
    ):
        with pytest.raises(ValueError, match=problem):
            run(folder, "--runs", str(runs), "--report-only")


def test_the_kept_runs_give_the_committed_report(tmp_path):
    arguments = ["--config", "training/recipes/study_cpu.yaml", "--report-only", "--output", str(tmp_path)]
    scaling_study.main(scaling_study.make_parser().parse_args(arguments))
    for name in ("scaling_study.json", "scaling_study.md"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == sorted(path.name for path in RESULTS.glob("scaling_study_*.png")) and len(figures) >= 7
    assert set(figures) == set(re.findall(r"scaling_study_\w+\.png", README.read_text(encoding="utf-8")))


def numbers_in(value) -> Iterator[float]:
    """Of tables; curves over the training have so many that nearly every loss is among them."""
    if isinstance(value, dict):
        value = [part for name, part in value.items() if name != "over_training"]
    if isinstance(value, list):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, float):
        yield value


def test_every_loss_that_the_study_quotes_is_in_its_report():
    numbers = list(numbers_in(json.loads((RESULTS / "scaling_study.json").read_text())))
    there = {f"{number:.3f}" for number in numbers} | {f"{number:+.3f}" for number in numbers}
    quoted = set(re.findall(r"(?<![\d.])[+-]?\d\.\d{3}(?!\d)", README.read_text(encoding="utf-8")))
    assert len(quoted) > 20 and quoted <= there, quoted - there
