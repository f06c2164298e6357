"""What step_cost.py measured, as it prints it and tools/fill_pages.py puts it into pages."""
from typing import Dict, Sequence

from markdown_table import table


def step_cost_text(reports: Sequence[dict]) -> str:
    """For each report its machine, and a table of all its works."""
    return '\n'.join(f'{about(report["machine"])}\n\n{table_of(report["works"])}'
                     for report in reports)


def about(where: dict) -> str:
    """A sentence on a machine."""
    what = ', '.join(
        filter(None, (f'{where["device"]} ({where["name"]})',
                      '' if where['device'] == 'cuda' else f'{where["threads"]} thread(s)',
                      f'torch {where["torch"]}',
                      f'{"with" if where["bfloat16"] else "without"} fast bfloat16',
                      'all ways under float16 autocast' if where['amp'] else '')))
    return f'Measured on {what}. Ratios are to the first way of each work.'


def table_of(works: Dict[str, dict]) -> str:
    """A row for each way of each work."""
    rows = []
    for work in works.values():
        for way, row in work['ways'].items():
            peak = f'{row["peak_bytes"] / 1e6:.0f}' if 'peak_bytes' in row else ''
            low, high = row['ratio_range']
            rows.append([work['title'], way, f'{row["seconds"]:.3f}', f'{row["ratio"]:.3f}',
                         f'{low:.3f} - {high:.3f}', peak, f'{row["checkpoint_bytes"] / 1e6:.1f}'])
    return table(['work', 'way', 's a step', 'ratio', 'quartiles', 'peak memory, MB',
                  'checkpoint, MB'], rows)
