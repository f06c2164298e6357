"""A table in Markdown."""
from typing import Iterable, List, Sequence


def table(head: List[str], rows: Iterable[Sequence[str]]) -> str:
    """A line for the head, one below it, and one for each row."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)
