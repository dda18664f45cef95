"""Tables for people, in a terminal or in a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LOG_WIDTH = 160  # characters, in a log


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    table = Table(*columns, title=title, box=SIMPLE, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
