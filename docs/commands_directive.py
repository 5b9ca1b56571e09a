"""The directive `{commands} module:group`: a click group and all that is below it, in the words of `--help`."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar

import click
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def phrase(text: str) -> list[nodes.Node]:
    """A text in which `names` are set as code."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    return [nodes.literal("", part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts)]


def told(text: str) -> Iterator[nodes.Node]:
    """A help text: paragraphs, and as they stand those that click does not wrap (after a line with \\b)."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            yield nodes.literal_block("", part.removeprefix("\b").lstrip("\n"), language="text")
        else:
            yield nodes.paragraph("", "", *phrase(part))


def options(ctx: click.Context) -> nodes.definition_list:
    """The options, each with an anchor, its values and its default as `--help` shows them."""
    listed = nodes.definition_list()
    for param in ctx.command.get_params(ctx):
        names, text = param.get_help_record(ctx) or ("", "")
        if text and "--help" not in param.opts:
            flag = anchor(ctx, max(param.opts, key=len).lstrip("-"))
            term = nodes.term("", "", nodes.literal("", names), ids=[flag])
            told = nodes.definition("", nodes.paragraph("", "", *phrase(text)))
            listed += nodes.definition_list_item("", term, told)
    return listed


def anchor(ctx: click.Context, *more: str) -> str:
    """Such as prep-build-shards-fps."""
    return "-".join([*ctx.command_path.split(), *more])


def section(ctx: click.Context) -> nodes.section:
    """The command, and those below it."""
    shown = nodes.section("", nodes.title("", ctx.command_path), ids=[anchor(ctx)], names=[ctx.command_path])
    usage = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])
    shown += nodes.literal_block("", usage, language="text")
    shown += told(ctx.command.help or "")
    shown += options(ctx)
    shown += told(ctx.command.epilog or "")
    if isinstance(ctx.command, click.Group):
        shown += [section(click.Context(below, ctx, name)) for name, below in ctx.command.commands.items()]
    return shown


class Commands(SphinxDirective):
    """Shows a group; `prog` is its name on the command line."""

    required_arguments = 1
    option_spec: ClassVar = {"prog": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """The group's section."""
        module, _, name = self.arguments[0].partition(":")
        return [section(click.Context(getattr(import_module(module), name), info_name=self.options["prog"]))]


def setup(app: Sphinx) -> dict[str, Any]:
    """For Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
