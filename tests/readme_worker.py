# SPDX-License-Identifier: Apache-2.0
"""A process that runs commands and code of READMEs one after the other, so that they import torch once.

It reads one JSON object per line and answers with one: `{"status": 0, "output": "..."}`. Started by
`readme_sandbox.Sandbox` in the copy of the repository, whose modules it imports.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable

FOR_TRL = ("--use_cpu", "--bf16", "false", "--report_to", "none")  # what this machine needs of any recipe


def run_module(module: str, arguments: list[str]) -> None:
    """As `python -m`."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def parse(module: str, arguments: list[str]) -> None:
    """Give the arguments to the module's own parser."""
    if importlib.util.find_spec(module).submodule_search_locations is not None:
        module += ".__main__"
    imported = importlib.import_module(module)
    if not arguments and "make_parser" not in vars(imported):
        return
    parser = imported.make_parser()
    if "parse_args_and_config" in dir(parser):
        parser.parse_args_and_config([*arguments, *FOR_TRL])
    else:
        parser.parse_args(arguments)


def parse_transformers(arguments: list[str]) -> None:
    """The command line of `transformers`."""
    from transformers.cli.transformers import app

    app.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))


def parse_accelerate(arguments: list[str]) -> None:
    """`accelerate launch`, and the script that it launches."""
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch", arguments
    parsed = launch_command_parser().parse_args(arguments[1:])
    assert parsed.module, "write `accelerate launch -m training.sft`, so that the checkout is on the path"
    parse(parsed.training_script, parsed.training_script_args)


def parse_trl(arguments: list[str]) -> None:
    """`trl sft` and its like."""
    parser = importlib.import_module(f"trl.scripts.{arguments[0]}").make_parser()
    parser.parse_args_and_config([*arguments[1:], *FOR_TRL])


def parse_pip(arguments: list[str]) -> None:
    """`pip install`."""
    from pip._internal.commands import create_command

    _, requirements = create_command(arguments[0]).parse_args(arguments[1:])
    assert requirements, "nothing to install"


PARSERS = {
    "transformers": parse_transformers,
    "accelerate": parse_accelerate,
    "trl": parse_trl,
    "pip": parse_pip,
}
NAMESPACES: dict[str, dict] = {}


def run_code(page: str, prelude: str, code: str) -> None:
    """A block of a page, after the earlier ones of that page."""
    if page not in NAMESPACES:
        NAMESPACES[page] = {"__name__": "__main__"}
        exec(compile(prelude, "what blocks take for granted", "exec"), NAMESPACES[page])
    exec(compile(code, f"<{page}>", "exec"), NAMESPACES[page])


def captured(action: Callable[[], None]) -> dict:
    """Status and output of an action."""
    output, status = io.StringIO(), 0
    environment, arguments = dict(os.environ), sys.argv
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            action()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    return {"status": status, "output": output.getvalue()}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print without `sys.stdout` is not a reply
    import setuptools  # noqa: F401 (before torch: Inductor refuses Python's own distutils)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        os.chdir(asked.pop("folder"))
        action = asked.pop("action")
        actions = {"run": run_module, "parse": parse, "code": run_code}
        known = actions[action] if action in actions else PARSERS[action]
        print(json.dumps(captured(lambda known=known, asked=asked: known(**asked))), file=replies, flush=True)


if __name__ == "__main__":
    main()
