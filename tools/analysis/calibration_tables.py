"""The tables of docs/calibration.md, which tools/fill_pages.py puts there."""
from typing import Dict, List, Optional, Tuple

from markdown_table import table

MEASURES = ('LaECE_0', 'LaACE_0', 'ECE', 'NLL', 'OCE')


# ------------------------------------------------------------------ against the references


def reference_text(content: dict) -> str:
    """Our values at each threshold, and how far they are from the reference at most."""
    packages = ', '.join(f'{name} {of}' for name, of in content['versions'].items())
    found: Dict[tuple, List[dict]] = {}
    for row in content['rows']:
        found.setdefault((row['measure'], row['reference'], row['tau']), []).append(row)
    thresholds = sorted({row['threshold'] for row in content['rows'] if row['threshold']})
    at_thresholds, others, unequal = [], [], []
    for (measure, reference, tau), rows in sorted(found.items(), key=lambda one: one[0][:2]):
        of = [measure, '' if tau is None else f'{tau:g}']
        apart = max(abs(row['value'] - row['expected']) for row in rows)
        apart = f'{apart:.0e}' if apart else '0'
        if 'not ours' in measure:
            unequal += [[f'{row["threshold"]:g}', f'{row["expected"]:.6f}', f'{row["value"]:.6f}']
                        for row in rows]
        elif [row['threshold'] for row in rows] == thresholds:
            at_thresholds.append(
                [*of, *(f'{row["value"]:.6f}' for row in rows), reference, apart])
        else:
            others.append([*of, f'{rows[0]["value"]:.6f}', reference, apart])
    last = ['reference', 'difference']
    return '\n'.join([
        f'{packages}.\n',
        table(['measure', 'IoU', *(f'score from {thr:g}' for thr in thresholds), *last],
              at_thresholds),
        table(['measure', 'IoU', 'value', *last], others),
        'LaECE_0 where an IoU of "at least 0" is no overlap at all, on the same detections:\n',
        table(['score from', 'boxes that do not touch may match', 'ours'], unequal)])


# ------------------------------------------------------------------ all calibrators


def title(row: dict) -> str:
    """Name of a calibrator."""
    if row['kind'] == 'none':
        return 'none'
    return (f'{row["kind"]}, {"IoU" if row["target"] == "iou" else "hits"}, '
            f'{"each class" if row["classwise"] else "all classes"}')


def short_names(names: List[str]) -> List[str]:
    """What is different in paths, as ``baseline`` and ``pskd`` of bccd/baseline/0, bccd/pskd/0."""
    parts = [name.split('/') for name in names]
    if len(names) == 1 or len({len(part) for part in parts}) > 1:
        return names
    differ = [i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1]
    return ['/'.join(part[i] for i in differ) for part in parts]


def value_of(row: dict, measure: str) -> Optional[float]:
    """A value of the calibration metric, or of mAP."""
    values = row['values']
    key = next((key for key in values if key.endswith('mAP')), None) if measure == 'mAP' else (
        f'calibration/{measure}')
    return values.get(key)


def number(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.3f}'


def interval(row: dict, measure: str) -> Tuple[Optional[float], Optional[float]]:
    """Its bootstrap interval over images."""
    return value_of(row, f'{measure}_low'), value_of(row, f'{measure}_high')


def with_interval(row: dict, measure: str) -> str:
    low, high = interval(row, measure)
    return f'{number(value_of(row, measure))} ({number(low)} to {number(high)})'


def study_text(runs: List[dict]) -> str:
    """A table for each set of images, the runs beside each other, and what the numbers say."""
    by_data: Dict[str, List[dict]] = {}
    for run in sorted(runs, key=lambda run: run['name']):
        by_data.setdefault(run['data']['digest'], []).append(run)
    return '\n'.join(text_of_data(of) for of in by_data.values())


def text_of_data(runs: List[dict]) -> str:
    """The part of the runs that are measured on the same images."""
    names, data = short_names([run['name'] for run in runs]), runs[0]['data']
    first = runs[0]
    what = ', '.join(f'`{run["name"]}`' for run in runs)
    columns = [measure for measure in (*MEASURES, 'mAP')
               if any(value_of(run['rows'][0], measure) is not None for run in runs)]
    rows = [[title(same[0]), *(' / '.join(number(value_of(row, measure)) for row in same)
                               for measure in columns)]
            for same in zip(*(run['rows'] for run in runs))]
    notes = [note for name, run in zip(names, runs) for note in notes_of(name, run)]
    fitted = first['rows'][0]['fitted_to']
    return '\n'.join([
        f'**{what}**: fitted on {fitted["images"]} images ({first["fitted_on"]}), measured on '
        f'{data["images"]} with {data["objects"]} objects ({first["measured_on"]})'
        f'{"; " + " / ".join(names) if len(names) > 1 else ""}.\n',
        table(['calibrator', *columns], rows),
        *(reading(name, run) for name, run in zip(names, runs)),
        beside(names, runs) if len(runs) > 1 else '',
        *(['What the fits say of themselves:\n', *notes, ''] if notes else [])])


def notes_of(name: str, run: dict) -> List[str]:
    """What the fits of a run say, each with the calibrators that say it."""
    said: Dict[str, List[str]] = {}
    for row in run['rows']:
        for note in row['notes']:
            said.setdefault(note, []).append(title(row))
    return [f'- {name}, {"all" if len(by) == len(run["rows"]) else "; ".join(by)}: {note}'
            for note, by in said.items()]


def lowest(run: dict, measure: str) -> dict:
    """The row with the lowest value."""
    return min((row for row in run['rows'] if value_of(row, measure) is not None),
               key=lambda row: value_of(row, measure))


def reading(name: str, run: dict) -> str:
    """What the calibrators change of a run."""
    plain = run['rows'][0]
    said = []
    for measure in ('LaECE_0', 'OCE'):
        best = lowest(run, measure)
        said.append(f'{measure} is lowest with {title(best)}: {with_interval(best, measure)}, '
                    f'without a calibrator {with_interval(plain, measure)}')
    worse = [title(row) for row in run['rows']
             if (value_of(row, 'LaECE_0') or 0) > (value_of(plain, 'LaECE_0') or 0)]
    maps = {value_of(row, 'mAP') for row in run['rows']} - {None}
    said.append(f'LaECE_0 is higher than without with {"; ".join(worse) or "none of them"}')
    if maps:
        moved = max(maps) - min(maps)
        said.append('mAP is the same with all' if moved == 0 else
                    f'mAP moves by {moved:.3f} at most')
    return f'- {name}: ' + '. '.join(said) + '.'


def beside(names: List[str], runs: List[dict]) -> str:
    """The runs beside each other: with neither, and with the best calibrator of each."""
    said = []
    for measure in ('LaECE_0', 'OCE'):
        plain = ', '.join(f'{name} {with_interval(run["rows"][0], measure)}'
                          for name, run in zip(names, runs))
        bounds = [interval(run['rows'][0], measure) for run in runs]
        if all(None not in bound for bound in bounds):
            apart = max(low for low, _ in bounds) > min(high for _, high in bounds)
            plain += '; the intervals ' + ('do not overlap' if apart else 'overlap')
        said.append(f'{measure} without a calibrator: {plain}')
    return ('- ' + '. '.join(said) + '. Intervals are over images (95 %) of one training each: of '
            'other trainings they say nothing.\n')
