"""How a tool ends that cannot do what it is asked."""
import argparse
import re
import sys
from typing import NoReturn


class OneLineExit(SystemExit):
    """The end of a program, with exit code 2, when its line has been printed."""

    def __init__(self, line: str):
        super().__init__(line)
        self.code = 2


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows more than one line."""
    parser.add_argument('--traceback', action='store_true',
                        help='show where an error was raised, not only what it says')


def end_in_a_line(tool: str, error: BaseException, traceback: bool = False) -> NoReturn:
    """End a program with what an error says, in one line on stderr.

    Args:
        tool (str): Name of the program.
        error (BaseException): One that the user can put right.
        traceback (bool): Raise it as it is. Default: False.

    Raises:
        OneLineExit: With exit code 2.
    """
    if traceback:
        raise error
    text = re.sub(r'\s*\n\s*', ' ', str(error).strip())
    line = f'{tool}: {text or type(error).__name__}'
    print(line, file=sys.stderr, flush=True)
    raise OneLineExit(line) from error
