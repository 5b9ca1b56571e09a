"""What both command lines declare alike: how commands behave, and the options that several of them have."""

import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from pipeline.console import human_bytes, print_json, printable
from pipeline.errors import UserError
from pipeline.interrupt import EXIT_CODE
from pipeline.places import as_place

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
VERBOSE = "reelcache.verbose"  # in the context's `meta`: how often -v was given
METAVARS = {
    "integer": "N", "integer range": "N", "float": "X", "float range": "X",
    "directory": "DIR", "path or url": "PLACE",
}  # fmt: skip
SHELLS = {
    "bash": 'eval "$({} completion bash)"',
    "zsh": 'eval "$({} completion zsh)"',
    "fish": "{} completion fish | source",
}
Complete = Callable[[click.Context, click.Parameter, str], list[str]]


class Place(click.ParamType[Path | str]):
    """A path of this machine, or a URL that fsspec knows."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:  # noqa: ARG002
        """See `pipeline.places.as_place`."""
        return as_place(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Paths, by the shell itself."""
        return [CompletionItem(incomplete, type="file")]


PLACE = Place()
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SEED = click.IntRange(0, 2**31 - 1)


class WrongUse(click.ClickException):
    """Flags and arguments that do not fit, told without the usage that click would print above it."""

    exit_code = click.UsageError.exit_code


class Commands(click.Group):
    """A click group whose commands end any error, and Ctrl-C, in one line and its exit code, and all take `-v`.

    It brings the command `completion`. With `-v` an error that nobody foresaw shows its traceback, too; with
    `-vv` every error does.
    """

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, context_settings=CONTEXT, **attributes)
        self.add_command(_completion_command(self.name or ""))

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command. It gets `-v`, and its help shows all defaults and short names of values."""
        cmd.params.append(_verbose_option())
        for param in cmd.params:
            if isinstance(param, click.Option):
                param.show_default = True if param.show_default is None else param.show_default
                param.metavar = param.metavar or METAVARS.get(param.type.name)
        super().add_command(cmd, name)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click does; without colours where `NO_COLOR` is set."""
        colours = {"color": False} if os.environ.get("NO_COLOR") else {}
        with _usage_in_one_line():
            return super().make_context(*args, **{**colours, **extra})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _usage_in_one_line():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            click.echo(f"Stopped; {stop}" if str(stop) else "Stopped.", err=True)
            ctx.exit(EXIT_CODE)
        except UserError as error:
            _end(ctx, str(error), error.exit_code, traceback_from=2)
        except OSError as error:  # a full disk, a folder that may not be written
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                sys.stderr.close()
                ctx.exit(0)
            _end(ctx, str(error), 1, traceback_from=1)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            _end(ctx, f"this should not happen: {reason} (-v shows where)", 1, traceback_from=1)


def _nobody_reads() -> bool:
    """Whether the reader of our output has seen enough, and went. A server that hangs up breaks another pipe."""
    seen = select.poll()
    seen.register(sys.stdout.fileno(), 0)  # a pipe whose other end is closed is told of, asked or not
    return bool(seen.poll(0))


def _end(ctx: click.Context, message: str, code: int, *, traceback_from: int) -> None:
    if ctx.meta.get(VERBOSE, 0) >= traceback_from:
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(f"Error: {printable(message)}", err=True)
    ctx.exit(code)


@contextmanager
def _usage_in_one_line() -> Iterator[None]:
    """Wrong flags and arguments are told in one line, too, that says where to look them up."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = printable(" ".join(error.format_message().split())).rstrip(".")
        hint = f" See: {error.ctx.command_path} --help" if error.ctx else ""
        raise WrongUse(f"{message}.{hint}") from error


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"], count=True, is_eager=True, expose_value=False, show_default=False, callback=_speak_up,
        help="Tell on stderr what is done; -vv: what libraries do, too.",
    )  # fmt: skip


def _speak_up(ctx: click.Context, _param: click.Parameter, count: int) -> None:
    ctx.meta[VERBOSE] = count
    if count and not ctx.resilient_parsing:
        from pipeline.verbose import log_lines

        ctx.with_resource(log_lines(everything=count > 1))


def _completion_command(program: str) -> click.Command:
    @click.command()
    @click.argument("shell", type=click.Choice(list(SHELLS)))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        script = get_completion_class(shell)
        assert script is not None, shell
        click.echo(script(ctx.find_root().command, {}, program, f"_{program.upper()}_COMPLETE").source())

    lines = "\n".join(f"  {line.format(program)}" for line in SHELLS.values())
    completion.help = (
        "Print the script that lets Tab complete commands and flags.\n\n"
        "It completes values, too: paths, choices, names. Put the line of your shell into ~/.bashrc, ~/.zshrc or "
        "~/.config/fish/config.fish, and open a new terminal. In zsh, compinit must have run before it.\n\n"
        f"\b\nExamples:\n{lines}"
    )
    return completion


def _bytes(_ctx: click.Context, _param: click.Parameter, given: str | None) -> int | None:
    from pipeline.shards.cache import parse_bytes

    return parse_bytes(given) if given else None


cache_flags: list[Callable[[Any], Any]] = [
    click.option(
        "--cache", type=FOLDER,
        help="Keep here what was fetched: shards of a set behind a URL.  [default: ~/.cache/reelcache]",
    ),
    click.option("--cache-size", metavar="50GB", callback=_bytes, help="At most so much is kept there."),
]  # fmt: skip


def cache_options(command: Any) -> Any:
    """Where shards of a set that lies elsewhere are kept."""
    return apply_options(cache_flags, command)


def apply_options(options: Sequence[Callable[[Any], Any]], command: Any) -> Any:
    """The command with these flags, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def json_option(command: Any) -> Any:
    """`--json`, with the same words everywhere."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(
        command
    )


def overwrite_option(what: str) -> Callable[[Any], Any]:
    """`--overwrite`: what it replaces."""
    return click.option("--overwrite", is_flag=True, help=f"Replace {what}.")


def seed_option(what: str, name: str = "seed") -> Callable[[Any], Any]:
    """`--seed`, for the parameter `name`: what is drawn with it."""
    return click.option("--seed", name, type=SEED, default=0, help=f"Seed of {what}.")


def names_in(table: str) -> Complete:
    """Completes the names in a table such as `pipeline.decode:DECODERS`, which is imported when Tab is pressed; of
    several with commas between, the last."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        module, _, name = table.partition(":")
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{one}" for one in getattr(import_module(module), name) if one.startswith(last)]

    return complete


def check_files(
    files: Mapping[str, Path | None], *, overwrite: bool, suffixes: Mapping[str, str] | None = None
) -> None:
    """Before the long work: whether the files of these flags can be written, each in a place of its own.
    `suffixes`: those whose names must end so. Raises `UserError`."""
    taken: dict[Path, str] = {}
    for flag, file in files.items():
        if file is None:
            continue
        suffix = (suffixes or {}).get(flag, file.suffix)
        if file.suffix.lower() != suffix.lower():
            kind = suffix[1:].upper()
            raise UserError(f"{flag} {file}: is written as {kind}; call it {file.with_suffix(suffix)}")
        if other := taken.get(file.resolve()):
            raise UserError(f"{flag} {file}: is the file of {other}, too; give each its own")
        taken[file.resolve()] = flag
        if file.exists() and not overwrite:
            raise UserError(f"{flag} {file}: exists; give another name, or --overwrite")
        if not file.absolute().parent.is_dir():
            raise UserError(f"{flag} {file}: there is no folder {file.parent}")
        try:
            NamedTemporaryFile(prefix=f".{file.name}.", dir=file.absolute().parent).close()
        except OSError as error:
            raise UserError(
                f"{flag} {file}: cannot be written there ({error.strerror}); give another place"
            ) from error


def deliver_page(out: Path, page: str, *, as_json: bool) -> None:
    """Write an HTML page, and say where it is."""
    from pipeline.page import write_page

    write_page(out, page)
    size = out.stat().st_size
    if as_json:
        print_json({"file": str(out), "bytes": size})
    else:
        click.echo(f"wrote {out}, {human_bytes(size)}; open it in a browser")
