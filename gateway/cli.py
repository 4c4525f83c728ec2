"""The command ``gateway``. Each command stands in a module of its own in ``gateway.commands``.

What all commands share is here: exit codes (0 done, 1 failed, 2 usage, 3 configuration, 4 damage found, 130
interrupted), errors as one sentence on stderr instead of a traceback, and that a reader which closes the pipe early is
no error.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from gateway.errors import DamageWarning, GatewayError

# Commands are imported when they are needed, so that starting the program stays quick.
_COMMANDS = {
    "init": "gateway.commands.init",
    "run": "gateway.commands.run",
    "demo": "gateway.commands.demo",
    "simulate": "gateway.commands.simulate",
    "stream": "gateway.commands.stream",
    "read": "gateway.commands.read",
    "camera": "gateway.commands.camera",
    "frame": "gateway.commands.frame",
    "frames": "gateway.commands.frames",
    "export": "gateway.commands.export",
    "replay": "gateway.commands.replay",
    "verify": "gateway.commands.verify",
    "config": "gateway.commands.config",
    "kafka-user": "gateway.commands.kafka_user",
}
EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group whose commands are modules with an attribute ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command


def _version() -> str:
    try:
        return version("gateway")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.version_option(_version(), message="gateway %(version)s")
@click.option("--debug", is_flag=True, envvar="GATEWAY_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Records MQTT sensors and RTSP cameras into durable, replayable event streams on the local disk.

    \b
    Try it:        gateway demo
    Set it up:     gateway init, then gateway run
    Look inside:   gateway stream list, gateway read, gateway frame, gateway export

    Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 damage found, 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the program and ends the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs one command; errors are reported on stderr. Returns the exit code."""
    debug = bool(os.environ.get("GATEWAY_DEBUG")) or "--debug" in arguments
    try:
        if "_GATEWAY_COMPLETE" in os.environ:  # the shell asks for completions; click answers
            cli.main(arguments, prog_name="gateway")
        # Not through `cli.main`, which would turn a closed pipe into a failure.
        with cli.make_context("gateway", list(arguments)) as context, _damage_as_sentences():
            result = cli.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _abandon_stdout_if_closed()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Python would complain once more while it flushes at exit.
        _abandon_stdout()
        return 0
    except Exception as error:  # noqa: BLE001  # the last resort: a fault of ours still ends in a sentence
        _report(error, debug=debug)
        _abandon_stdout_if_closed()
        return error.exit_code if isinstance(error, click.ClickException | GatewayError) else 1


@contextmanager
def _damage_as_sentences() -> Iterator[None]:
    """Say on stderr what reading passed over, without the line of our code in which that was noticed."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DamageWarning)
        otherwise = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *arguments: Any, **named: Any) -> None:
            if isinstance(message, DamageWarning):
                click.echo(f"gateway: {message}", err=True)
            else:
                otherwise(message, category, *arguments, **named)

        warnings.showwarning = show
        yield


def _report(error: Exception, *, debug: bool) -> None:
    """One sentence on stderr, or the several of a configuration; whatever a library put into it, no credentials."""
    from gateway.logs import without_credentials

    if debug:
        click.echo(without_credentials("".join(traceback.format_exception(error))), err=True, nl=False)
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
    else:
        click.echo(f"gateway: {without_credentials(_sentence(error))}", err=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, GatewayError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("gateway"):
        return f"The Python package {error.name!r} is missing; 'pip install gateway[all]' brings it."
    if isinstance(error, MemoryError):
        return "There is not enough memory."
    what = f"{type(error).__name__}: {error}"
    return f"This is a fault in Gateway itself; please report it with what --debug shows. {what}"


def _abandon_stdout_if_closed() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()


def _abandon_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
