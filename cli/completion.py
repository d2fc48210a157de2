"""``bytelm completion``: what a shell needs to complete commands and options."""

from typing import Annotated, Literal

import typer

from bytelm.cli import console


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Print a script with which a shell completes commands and options.

    In bash: eval "$(bytelm completion bash)"; that line may stand in ~/.bashrc.
    """
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="bytelm", complete_var="_BYTELM_COMPLETE", shell=shell)
    if as_json:
        console.print_json({"shell": shell, "script": script})
    else:
        console.result(script, whole=True)
