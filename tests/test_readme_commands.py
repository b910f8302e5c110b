# SPDX-License-Identifier: Apache-2.0
"""Every command and every block of Python in the READMEs runs, in a copy of the repository and, if it can, outside it.

`readme_pages.py` reads the READMEs. `readme_sandbox.py` makes what they name (`outputs/demo/model`, `my-facts.yaml`,
the released model), tiny. The tables below say what is special about a command; a command that is in none of them has
to run. After adding one to a README, run `pytest tests/test_readme_commands.py`: often no table has to change.
"""

import re
import shlex
from collections.abc import Iterator

import pytest
from fake_hub import FakeHub
from readme_pages import ROOT, Block, Command, blocks, commands, pages, split_commands
from readme_sandbox import PRELUDE, Sandbox

# Words in commands that the reader replaces, and what the test replaces them with.
PLACEHOLDERS = {
    "BASE": "outputs/demo/model",
    "COMMIT": "HEAD",
    "DIR": "outputs/demo/model",
    "FILE": "rows.jsonl",
    "NAME": "demo",
    "RECIPE": "training/recipes/demo.yaml",
    "RESULT.json": "RESULT.json",
    "TRAINED": "outputs/demo/model",
    "sums": "smoke",  # the suite that eval/harness/adding_a_suite.md adds
    "...": "What does str.join do?",
    "TORCH=torch==2.13.0 --index-url ...": "TORCH=torch==2.13.0",
}
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+(?:\.\w+)?|.*(?:\.\.\.|<\w+>).*")

# Modules whose commands are given to their own parser only, and why.
PARSED_ONLY = {
    "training.demo": "trains for five minutes; tests/finetuning/test_demo.py runs its parts",
    "training.sft": "trains; tests/finetuning/test_recipes.py runs every recipe",
    "training.dpo": "trains; tests/finetuning/test_recipes.py runs every recipe",
    "training.grpo": "trains; tests/finetuning/test_recipes.py runs every recipe",
    "training.extend_context": "trains; tests/finetuning/test_extend_context.py runs it",
    "eval.harness": "needs lm-eval's data; tests/evaluation/test_harness.py runs it",
    "eval.long_context": "needs the demo's text; tests/evaluation/test_long_context.py runs it",
    "eval.ngrams.quantization": "takes minutes; tests/model/test_ngram_quantization.py tests its tables",
    "eval.speed.generation": "measures for minutes; tests/evaluation/test_generation_speed.py runs it",
    "eval.speed.placement": "measures for minutes; tests/evaluation/test_table_placement.py runs it",
    "eval.speed.step": "measures for minutes; tests/evaluation/test_step_time.py runs it",
    "eval.speed.row_optimizer": "measures for minutes; tests/evaluation/test_row_optimizer_speed.py runs it",
    "eval.speed.commits": "checks out another commit and measures both",
    "eval.studies.router_balance": "trains; tests/evaluation/test_router_balance.py runs it",
    "eval.studies.scaling": "trains for hours; tests/evaluation/test_scaling_study.py runs it, tiny",
    "eval.studies.tools": "trains; tests/evaluation/test_tool_demo.py runs its parts",
    "eval.studies.yarn": "trains; tests/evaluation/test_yarn_study.py runs it, tiny",
}
# Programs whose command line is given to their own parser.
PARSED_PROGRAMS = ("accelerate", "pip", "transformers", "trl")
# Programs that need an environment of their own, and the test that runs them.
RUN_ELSEWHERE = {
    "mlx_lm.convert": "tests/checkpoints/test_mlx.py",
    "mlx_lm.generate": "tests/checkpoints/test_mlx.py",
    "vllm": "tests/checkpoints/test_vllm.py",
    "sglang.launch_server": "tests/checkpoints/sglang_config.py",
}
# Pages whose code makes one change to the package, and the test that makes it and uses the result.
FOLLOWED_ELSEWHERE = {
    "eval/checkpoints/adding_a_row_format.md": "tests/checkpoints/test_quantize.py",
    "eval/checkpoints/adding_an_expert_format.md": "tests/evaluation/test_fit.py",
}
# Modules with another parser than `make_parser`.
OTHER_PARSERS = {"training.serve": ("transformers", ["serve"])}
# Commands that refuse a folder which exists: their arguments that are new.
NEW_FOLDERS = {
    "model_cards.build_hub_repo": ["outputs/my-package"],
    "tokenization.assemble_tokenizer": ["my-tokenizer"],
}
SLOW_BLOCKS = ("CompileConfig",)  # compiles, for half a minute


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Iterator[Sandbox]:
    with FakeHub() as hub:
        sandbox = Sandbox(tmp_path_factory.mktemp("readmes"), hub)
        yield sandbox
        sandbox.close()


def filled_in(words: tuple[str, ...]) -> list[str]:
    """The words with the reader's own things in place of placeholders."""
    filled = [PLACEHOLDERS.get(word, word) for word in words]
    unknown = [word for word in filled if PLACEHOLDER.fullmatch(word) and word not in PLACEHOLDERS.values()]
    assert not unknown, f"unknown placeholder: {', '.join(unknown)}; name it in PLACEHOLDERS"
    return filled


def is_of_the_repository(word: str) -> bool:
    """Whether an argument is a file of the repository, so that the command has to run in it."""
    return "/" in word and (ROOT / word).exists()


def parse(sandbox: Sandbox, module: str, arguments: list[str]) -> None:
    if module in OTHER_PARSERS:
        program, first = OTHER_PARSERS[module]
        sandbox.ask(program, sandbox.clone, arguments=[*first, *arguments])
    else:
        sandbox.ask("parse", sandbox.clone, module=module, arguments=arguments)


def check_make(sandbox: Sandbox, arguments: list[str]) -> None:
    """The target exists, and the parsers of this project's commands take what it gives them."""
    for words in split_commands(sandbox.make(*arguments)):
        for place, word in enumerate(words[:-1]):
            if word == "-m" and words[place - 1].endswith("python") and is_ours(words[place + 1]):
                parse(sandbox, words[place + 1], list(words[place + 2 :]))


def check_followed(page: str) -> None:
    """The test that follows the page reads it."""
    assert page.rpartition("/")[2] in (ROOT / FOLLOWED_ELSEWHERE[page]).read_text(encoding="utf-8")


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("eval", "model_cards", "modeling_longcat_lite", "tokenization", "training")


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_runs(sandbox, command: Command):
    words = filled_in(command.words)
    program = command.module or words[0]
    arguments = words[3:] if command.module else words[1:]
    if command.page in FOLLOWED_ELSEWHERE:
        check_followed(command.page)
    elif program in RUN_ELSEWHERE:
        test = ROOT / RUN_ELSEWHERE[program]
        assert program.split(".")[0] in test.read_text(encoding="utf-8"), f"{test} does not run {program}"
    elif program == "make":
        check_make(sandbox, arguments)
    elif program in PARSED_PROGRAMS:
        ended = [arguments[0], "--help"] if command.named_only else arguments
        sandbox.ask(program, sandbox.clone, arguments=ended)
    elif command.named_only:
        sandbox.ask("parse", sandbox.clone, module=program, arguments=["--help"])
    elif program == "pytest":
        sandbox.ask("run", sandbox.clone, module=program, arguments=[*arguments, "--collect-only", "-q"])
    elif program in PARSED_ONLY or program in OTHER_PARSERS:
        parse(sandbox, program, arguments)
    else:
        assert command.module and is_ours(program), f"{program} is in no table of tests/test_readme_commands.py"
        sandbox.reset()
        for name in NEW_FOLDERS.get(program, ()):
            sandbox.remove(name)
        inside = any(map(is_of_the_repository, arguments))
        sandbox.ask("run", sandbox.clone if inside else sandbox.outside, module=program, arguments=arguments)


def code_blocks() -> list:
    return [
        pytest.param(block, id=str(block), marks=[pytest.mark.slow] * any(word in block.code for word in SLOW_BLOCKS))
        for block in blocks()
    ]


@pytest.mark.parametrize("block", code_blocks())
def test_a_block_of_python_runs(sandbox, block: Block):
    """Outside the repository, after the earlier blocks of its page, with a model, its tokenizer and inputs given."""
    if block.page in FOLLOWED_ELSEWHERE:
        check_followed(block.page)
        return
    sandbox.reset()
    sandbox.ask("code", sandbox.outside, page=block.page, prelude=PRELUDE, code=block.code)


def test_every_page_is_read():
    """The folders that have commands have a README, and no entry of a table is for nothing."""
    assert {"README.md", "model_cards/README.md", "tokenization/README.md"} <= pages().keys()
    tests = [*RUN_ELSEWHERE.values(), *re.findall(r"tests/[\w/]+\.py", " ".join(PARSED_ONLY.values()))]
    assert [test for test in tests if not (ROOT / test).is_file()] == []
    modules = [*PARSED_ONLY, *OTHER_PARSERS, *NEW_FOLDERS]
    files = [ROOT.joinpath(*module.split(".")) for module in modules]
    assert [
        str(file) for file in files if not (file.with_suffix(".py").is_file() or (file / "__main__.py").is_file())
    ] == []


def test_a_wrong_option_is_found(sandbox):
    for module in ("eval.checkpoints.parameters", "training.sft"):
        with pytest.raises(AssertionError, match="no-such-option"):
            test_a_command_runs(sandbox, Command("README.md", ("python", "-m", module, "--no-such-option")))


@pytest.mark.parametrize(
    "text", ["python -m eval.fit --gpu-memory SIZE", "python -m eval.fit <model>", "new-program x"]
)
def test_what_is_in_no_table_is_named(text):
    words = tuple(shlex.split(text))
    with pytest.raises(AssertionError, match=r"unknown placeholder: (SIZE|<model>)|new-program is in no table"):
        test_a_command_runs(None, Command("README.md", words))
