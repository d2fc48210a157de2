"""Help of a command with many options: each under the heading of its group."""

from typing import Any

from bytelm.cli.command import Command

_REST = "Options"


class GroupedCommand(Command):
    """A command whose help puts options under the ``rich_help_panel`` that they are declared with."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then every group in the order in which its first option is declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or _REST
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
