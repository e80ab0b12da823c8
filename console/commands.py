"""Commands whose help has its options in sections, and groups that help those who are lost."""

from typing import Any

import click

SHARED = ("config", "debug", "help")


class _Helpful(click.Command):
    """A command with -h and --help, in whatever context it is."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["-h", "--help"]


class Command(_Helpful):
    """A command; {command} in its epilog stands for the words that call it."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All options and arguments; what all commands share comes last."""
        return sorted(super().get_params(ctx), key=lambda parameter: parameter.name in SHARED)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in the sections that they bring."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog, a few lines that are not wrapped."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(self.epilog.replace("{command}", " ".join([ctx.command_path, *self._arguments(ctx)])))

    def _arguments(self, ctx: click.Context) -> list[str]:
        return [name for name in self.collect_usage_pieces(ctx) if not name.startswith("[")]


class Group(_Helpful, click.Group):
    """A group of commands. Without one it shows its help, as wrong usage; a command of another place is shown the way."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        root = ctx.find_root()
        if args[0] not in self.commands and (way := _way(root.command, args[0])):
            raise click.UsageError(f"No such command '{ctx.command_path} {args[0]}'; try '{root.info_name} {way}'", ctx)
        return super().resolve_command(ctx, args)


def _way(group: Any, name: str) -> str | None:
    """The words that lead to a command."""
    if name in group.commands:
        return name
    return next((f"{word} {name}" for word, each in group.commands.items() if name in getattr(each, "commands", ())), None)
