"""Write what results/reliability.json says into docs/reliability.md."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCUMENT = ROOT / 'results' / 'reliability.json', ROOT / 'docs' / 'reliability.md'
BEGIN, END = '<!-- of results/reliability.json, by tools/stress/report.py -->', '<!-- end -->'


def render(results: dict) -> str:
    """A table of the runs, and what each of them ran on."""
    rows = ['| command | minutes | counts | failures |', '| --- | --- | --- | --- |']
    for run in results.values():
        counts = ', '.join(f'{value:,} {key}' for key, value in run['counts'].items())
        failures = len(run['failures'])
        rows.append(f'| `{run["command"]}` | {run["minutes"]} | {counts} | {failures} |')
    machines = sorted({run['machine'] for run in results.values()})
    return '\n'.join([*rows, '', f'On: {"; ".join(machines)}.'])


def insert(document: str, text: str) -> str:
    """A document with its part between the marks replaced."""
    return re.sub(f'({re.escape(BEGIN)}\n).*?({re.escape(END)})',
                  lambda match: f'{match[1]}{text}\n{match[2]}', document, flags=re.DOTALL)


def main() -> None:
    DOCUMENT.write_text(insert(DOCUMENT.read_text(), render(json.loads(RESULTS.read_text()))))


if __name__ == '__main__':
    main()
