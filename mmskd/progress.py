"""A progress bar for what takes long."""
import sys
from typing import Iterable, Optional

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def track(iterable: Iterable, description: str, quiet: bool = False,
          total: Optional[int] = None) -> Iterable:
    """Iterate, and show how far it is and how long it may still take.

    The bar is drawn on stderr, so that it does not mix with what is written to stdout.

    Args:
        iterable (iterable): What to iterate over.
        description (str): A word or two in front of the bar.
        quiet (bool): Show nothing. Nothing is shown either where stdout or stderr is not a
            terminal. Defaults to False.
        total (int, optional): Number of steps. Defaults to None: the length of ``iterable``.

    Yields:
        The items of ``iterable``.
    """
    console = Console(stderr=True)
    hidden = quiet or not sys.stdout.isatty() or not console.is_terminal
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield from progress.track(iterable, total=total, description=description)
