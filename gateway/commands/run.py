"""``gateway run``: the gateway itself, until it is told to end."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.commands.common import DEFAULT_CONFIG, command_with_examples


@command_with_examples(
    "run",
    "Record until told to stop.",
    """
    gateway run
    gateway run -c /etc/gateway/gateway.toml --log-format json
    """,
)
@click.option(
    "-c", "--config", "path", metavar="FILE", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, show_default=True
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="GATEWAY_LOG_FORMAT",
    help="One event a line on stderr, for people or for machines.",
)
@click.option("--verbose", is_flag=True, help="Log details that only matter when looking for a fault.")
def command(path: Path, log_format: str, verbose: bool) -> int:
    """Record until SIGTERM or SIGINT; both end cleanly, with everything acknowledged on disk.

    SIGHUP reads the configuration again and applies changed sources, touching no other. A second gateway on the same
    data directory refuses to start and names the process that holds it.
    """
    import logging

    from gateway import app, logs
    from gateway.config import load, warnings

    config = load(path)
    logs.configure("json" if log_format == "json" else "text", level=logging.DEBUG if verbose else logging.INFO)
    logger = logging.getLogger("gateway.config")
    for sentence in warnings(config):
        logger.warning("configuration", extra={"fields": {"warning": sentence}})
    return app.run(config, log_format=log_format, reload=lambda: load(path))
