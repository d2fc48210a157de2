"""What all commands share: a quick start, sizes in every option that counts bytes, a look at names before the work."""

import re
from typing import Any, Final

from typer.core import TyperCommand

from bytelm.cli.early import check
from bytelm.cli.quantities import parse_size
from bytelm.cli.quick_command import quicken
from bytelm.errors import ConfigError

_COUNT_BYTES: Final = {"--context", "--stride"}
"""Options that count bytes without saying so in their name."""
_PLAIN: Final = re.compile(r"[+-]?\d+(\.\d*)?")


class Command(TyperCommand):
    """A command of bytelm."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, ``--help`` included."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            quicken(parameter)
            _take_sizes(parameter)
        return parameters

    def invoke(self, ctx: Any) -> Any:
        """Do what the command does, unless its words are plainly wrong."""
        check(ctx.info_name, ctx.params)
        return super().invoke(ctx)


def _take_sizes(parameter: Any) -> None:
    """Let an option that counts bytes take 1k, 64KiB and the like."""
    name, descriptor = parameter.opts[0], getattr(parameter, "type_descriptor", None)
    if descriptor is None or descriptor.annotation is not int or "takes_sizes" in vars(parameter):
        return
    if not ("bytes" in name or name in _COUNT_BYTES):
        return
    process = parameter.process_value  # quick already, or typer's

    def process_value(context: Any, value: Any) -> Any:
        if isinstance(value, str) and not _PLAIN.fullmatch(value.strip()):
            try:
                value = str(parse_size(value))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        return process(context, value)

    parameter.takes_sizes = True
    parameter.metavar = "SIZE"
    parameter.process_value = process_value
