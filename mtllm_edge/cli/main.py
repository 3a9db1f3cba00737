"""The command `mtllm-edge`: its subcommands, and the exit code and message of every error.

The commands of the extras (export, join, train, eval ...) come from the entry-point group `mtllm_edge.commands`; their
modules import nothing heavy before the command itself runs.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import click

from mtllm_edge import __version__, console
from mtllm_edge.cli import calibrate, classify, doctor, embed, fit, info, languages, package, task, verify
from mtllm_edge.cli.serve import serve
from mtllm_edge.cli.warnings import warnings_as_notes
from mtllm_edge.errors import MtllmError
from mtllm_edge.safe_text import one_line

_ENTRY_POINTS = "mtllm_edge.commands"
_PROGRAM = "mtllm-edge"


class _Commands(click.Group):
    """The commands of the runtime, and those of other packages, which are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted(name for name in _plugins() if name not in own)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and (plugin := _plugins().get(cmd_name)):
            command = plugin.load()
            assert isinstance(command, click.Command), plugin
        return command


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_ENTRY_POINTS)}


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=_PROGRAM)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Understand texts in many languages, offline, with a translation encoder stacked under an LLM."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    *(classify.classify, embed.embed, info.info, verify.verify, doctor.doctor),
    *(fit.fit, calibrate.calibrate, task.task, package.package, serve),
    languages.languages,
):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with some arguments, None for those of the process, and return its exit code.

    The code is 0 for success, 2 for a wrong call, 1 for a fault of a text, a model, an engine or the disk, and 130
    after Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # question marks where the terminal lacks a script
    try:
        with warnings_as_notes():
            code = cli.main(args=None if args is None else list(args), prog_name=_PROGRAM, standalone_mode=False)
    except MtllmError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        message, command = error.format_message(), error.ctx.command_path if error.ctx else _PROGRAM
        advice = "" if "?" in message else f"; see {command} --help"  # click's own advice is "Did you mean ...?"
        return _fail(message.rstrip(".") + advice, error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except click.Abort as abort:
        if not isinstance(abort.__cause__, KeyboardInterrupt):
            raise
        console.note(str(abort.__cause__) or "stopped; nothing was written")
        return 130
    except OSError as error:
        if error.strerror is None:
            raise
        location = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{location}{error.strerror}", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    console.note(f"error: {one_line(message)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
