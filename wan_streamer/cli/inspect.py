"""The command that shows what an agent is made of: inspect."""

from typing import Annotated

import typer

from wan_streamer.errors import ConfigError


def inspect(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="DIR", help="Folder or name of an agent, or a saved session (.safetensors).")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Show a size instead, such as paper-368p.")] = None,
) -> None:
    """Show what an agent is made of (parts, parameters, tokens of a unit, configuration), or a saved session.

    Example: [b]wan-streamer inspect nano[/b], [b]wan-streamer inspect --preset smol[/b] or
    [b]wan-streamer inspect session.safetensors[/b]
    """
    if (checkpoint is None) == (preset is None):
        raise ConfigError("inspect: expected a folder or --preset, and not both")
    from rich.console import Console

    description = _describe(str(checkpoint)) if preset is None else _describe_preset(preset)
    console = Console()
    for table in _tables(description):
        console.print(table)


def _describe_preset(name: str) -> dict:
    from wan_streamer.model.inspect import describe_preset

    return describe_preset(name)


def _describe(name: str) -> dict:
    if name.endswith(".safetensors"):
        from wan_streamer.runtime.state import describe_session

        return describe_session(name)
    from wan_streamer.model.inspect import describe_checkpoint

    return describe_checkpoint(name)


def _tables(description: dict) -> list:
    """One table for the plain values, then one for each nested dictionary."""
    from rich.table import Table

    plain = {key: value for key, value in description.items() if not isinstance(value, dict)}
    tables = []
    for title, values in [("", plain), *((k, v) for k, v in description.items() if isinstance(v, dict))]:
        table = Table(title=title or None, title_justify="left", show_header=False)
        for name, value in _flat(values):
            table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
        if table.row_count:
            tables.append(table)
    return tables


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    """[("a", 1), ("b.c", 2)] of {"a": 1, "b": {"c": 2}}."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
