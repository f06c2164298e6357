"""The table of docs/reliability.md, which tools/fill_pages.py puts there."""
from markdown_table import table


def reliability_text(results: dict) -> str:
    """A table of the runs, and what each of them ran on."""
    rows = []
    for run in results.values():
        counts = ', '.join(f'{value:,} {key}' for key, value in run['counts'].items())
        rows.append([f'`{run["command"]}`', f'{run["minutes"]}', counts, f'{len(run["failures"])}'])
    machines = '; '.join(sorted({run['machine'] for run in results.values()}))
    return table(['command', 'minutes', 'counts', 'failures'], rows) + f'\nOn: {machines}.\n'
