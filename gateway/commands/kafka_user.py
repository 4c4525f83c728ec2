"""``gateway kafka-user``: a line for the users file of the Kafka endpoint."""

from __future__ import annotations

import sys

import click

from gateway.commands.common import command_with_examples
from gateway.errors import UsageError


@command_with_examples(
    "kafka-user",
    "Make a user of the Kafka endpoint.",
    """
    gateway kafka-user etl >> /etc/gateway/kafka-users
    pwgen 20 1 | gateway kafka-user etl >> /etc/gateway/kafka-users
    """,
)
@click.argument("name")
def command(name: str) -> None:
    """Print a line for 'users_file' in [kafka]: NAME, and what checks the password, which cannot be read from it.

    The password is asked for; where nobody can be asked it is the first line of the standard input.
    """
    from gateway.serve.kafka.users import Credentials, check_name

    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"{error}.".capitalize()) from None
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise UsageError("The password is empty; give one, or pass it on the standard input.")
    click.echo(Credentials.make(password).line(name))
