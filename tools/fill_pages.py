"""Fill the tables of the README and the documentation from the files in results/.

    python tools/fill_pages.py              # README.md and docs/*.md
    python tools/fill_pages.py --check      # exit code 1 where a page says something else

A page asks for a table between two marks, and everything between them is written here:

    <!-- table: study poses openfield PCK AUC -->
    <!-- table: end -->

==============================  =================================================================
``study NAME CONFIG METRIC..``  one config of a study in ``results/studies/``: ``METRIC``, the mean
                                of the last validations, or ``METRIC:test``, the test split;
                                ``seeds>=5`` leaves out methods with fewer, ``methods=A,B`` all
                                others
``studies``                     all studies, with all their configs and metrics
``time NAME CONFIG METHOD..``    minutes that a training of such a study took
``step_cost FILE..``            all that ``tools/benchmarks/step_cost.py`` wrote to these files
``cost FILE WORK..``            a step beside the stock one, of such a ``results/FILE.json``
``calibration_reference``       of ``results/calibration_reference.json``
``calibration_study``           all detectors of ``results/calibration_study.json``
``calibrators NAME``            one of them, in short
``calibrated CONFIG METHOD..``  the same over the seeds of the study ``detectors``, of
                                ``results/calibration_detectors.json``
``reliability``                 what ``tools/stress/`` tried, of ``results/reliability.json``
``earlier NAME``                means of ``results/earlier.json``, whose runs were not kept
``demo FILE..``                 what ``tools/demo.sh`` came to, of ``results/demo/``; all by default
==============================  =================================================================
"""
import argparse
import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any, Callable, Dict, List

from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.report.statistics import Interval, mean_interval, paired_difference

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'results'
sys.path += [str(ROOT / 'tools' / folder) for folder in ('analysis', 'benchmarks', 'stress')]

from calibration_tables import reference_text, study_text, title, value_of  # noqa: E402
from markdown_table import table  # noqa: E402
from reliability_table import reliability_text  # noqa: E402
from step_cost_tables import step_cost_text  # noqa: E402
from study_report import StudyResults, as_text, provenance, unfinished  # noqa: E402

PLACE = re.compile(
    r'(<!-- table: (?!end -->)(?P<asked>.+?) -->\n)(?P<filled>.*?)(<!-- table: end -->)', re.S)
WORDS = {'coco/bbox_mAP': 'mAP', 'coco/bbox_mAP_50': 'AP50', 'calibration/NLL': 'NLL',
         'calibration/ECE': 'ECE', 'calibration/LaECE_0': 'LaECE_0',
         'calibration/LaECE_0_own_thr': 'LaECE_0', 'coco/AP': 'AP'}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='*', type=Path, help='default: README.md and docs/*.md')
    parser.add_argument('--check',
                        action='store_true',
                        help='change nothing, name what would change')
    add_traceback(parser)
    return parser.parse_args()


def read(name: str) -> Any:
    """The content of a json file in results/."""
    return json.loads((RESULTS / f'{name}.json').read_text(encoding='utf-8'))


def in_brackets(difference: Interval) -> str:
    """A difference behind the value, bold where its interval leaves out 0."""
    text = as_text(difference, sign=True)
    return f' ({f"**{text}**" if difference.excludes_zero else text})'


def study(name: str, config: str, *metrics: str) -> str:
    """A row for each method; a difference is bold where its interval leaves out 0."""
    found = StudyResults(RESULTS / 'studies' / f'{name}.json')
    seeds = [word for word in metrics if re.fullmatch(r'seeds>=\d+', word)]
    least = max((int(word[7:]) for word in seeds), default=1)
    wanted = [name for word in metrics if word.startswith('methods=')
              for name in word[8:].split(',')]
    columns = {metric: metric.partition(':')[::2] for metric in metrics
               if metric not in seeds and not metric.startswith('methods=')}
    if config not in found.definition['configs'] or not {
            metric for metric, _ in columns.values()} <= set(found.metrics):
        raise UsageError(
            f'the study {name} has the configs {", ".join(found.definition["configs"])} and the '
            f'metrics {", ".join(found.metrics)}')
    rows = []
    for method in found.trained(config):
        compared = [found.compare(config, method, metric, value or 'mean')
                    for metric, value in columns.values()]
        if not any(one.value.n >= least for one in compared) or wanted and method not in wanted:
            continue
        row = [method, str(compared[0].value.n)]
        for one in compared:
            row.append(as_text(one.value))
            if found.is_compared(config, method):
                row[-1] += in_brackets(one.difference)
        rows.append(row)
    return table(['method', 'seeds', *(
        ' '.join(filter(None, (value, WORDS.get(metric, metric))))
        for metric, value in columns.values())], rows)


def studies() -> str:
    """All studies: what they ask, a table for each config, and where the numbers come from."""
    text = ''
    for path in sorted((RESULTS / 'studies').glob('*.json')):
        found = StudyResults(path)
        definition = found.definition
        text += f'\n### {found.name}\n\n{" ".join((definition.get("description") or "").split())}\n'
        for config in found.configs():
            text += f'\n`{definition["configs"][config]}`:\n\n'
            text += study(path.stem, config, *found.metrics)
            if any('test' in values for run in found.runs if run['config'] == config
                   for values in run.get('metrics', {}).values()):
                text += '\n' + study(path.stem, config, *(f'{name}:test' for name in found.metrics))
        text += '\n'.join([*unfinished(found), *provenance(found), ''])
    return text + '\n'


def time(name: str, config: str, *methods: str) -> str:
    """Minutes of a whole training, beside those of the first of the methods."""
    found = StudyResults(RESULTS / 'studies' / f'{name}.json')
    rows: List[List[str]] = []
    first: List[float] = []
    machines = set()
    for method in methods:
        runs = [run for run in found.runs if run['seconds'] and
                (run['config'], run['method'], run['status']) == (config, method, 'done')]
        machines |= {found.environments[run['environment']]['processor'] for run in runs}
        means = [sum(run[key] for run in runs) / len(runs) / 60
                 for key in ('seconds', 'cpu_seconds')]
        first = first or means
        rows.append([method, str(len(runs))])
        for mine, theirs in zip(means, first):
            rows[-1] += [f'{mine:.1f}', f'{mine / theirs:.2f}']
    return table(['training', 'runs', 'minutes', f'times {methods[0]}', 'minutes of the processor',
                  f'times {methods[0]}'], rows) + \
        f'\nOn one thread of {" and of ".join(sorted(machines))}.\n'


def cost(name: str, *works: str) -> str:
    """Seconds, and the ratio to the stock step; all works of the file where none is named."""
    content = read(name)
    rows = []
    for work in works or content['works']:
        ways = content['works'][work]['ways']
        stock = ways['stock']['seconds']
        for way, row in ways.items():
            if way != 'stock' and ', ' not in way and 'nothing' not in way:
                rows.append([content['works'][work]['title'], way, f'{row["seconds"]:.3f}',
                             f'{row["seconds"] / stock:.2f}'])
    machine = content['machine']
    on_cpu = machine['device'] == 'cpu'
    where = f'{machine["threads"]} thread of a CPU' if on_cpu else machine['name']
    return table(['method, model, input', 'way', 's a step', 'times the stock step'], rows) + \
        f'\nOn {where}, torch {machine["torch"]}.\n'


def calibrators(name: str) -> str:
    """A detector as trained, and under each map that is fitted to hits of all classes."""
    run = next((each for each in read('calibration_study')['runs'] if each['name'] == name), None)
    if run is None:
        raise UsageError(f'results/calibration_study.json has no detector {name}')
    rows = []
    for row in run['rows']:
        if row['kind'] == 'none' or row['target'] == 'hit' and not row['classwise']:
            values = [
                row['values'][key]
                for key in ('coco/bbox_mAP', 'calibration/ECE', 'calibration/NLL')
            ]
            rows.append(['as trained' if row['kind'] == 'none' else row['kind'],
                         *(f'{value:.3f}' for value in values)])
    return table(['scores', 'mAP', 'ECE', 'NLL'], rows)


def calibrated(config: str, *methods: str) -> str:
    """What calibrators make of each method's scores, means over its seeds.

    In brackets the difference from the first method without a calibrator, paired by seed.
    """
    # The one that everybody knows, and those that came out best of all
    shown = ('none', 'temperature, hits, all classes', 'platt, IoU, each class',
             'isotonic, IoU, each class')
    measures = ('LaECE_0', 'ECE', 'NLL', 'OCE', 'mAP')
    found: Dict[tuple, Dict[str, float]] = {}  # by method, calibrator and measure: seed -> value
    for run in read('calibration_detectors')['runs']:
        of, method, seed = run['name'].split('/')
        for row in run['rows'] if of == config else []:
            for measure in measures:
                found.setdefault((method, title(row), measure), {})[seed] = value_of(row, measure)
    rows = []
    for method, calibrator in product(methods, shown):
        row = [method, calibrator, str(len(found[method, calibrator, 'ECE']))]
        for measure in measures:
            mine = found[method, calibrator, measure]
            row.append(as_text(mean_interval(list(mine.values()))))
            if rows:
                row[-1] += in_brackets(
                    paired_difference(mine, found[methods[0], shown[0], measure]))
        rows.append(row)
    return table(['method', 'calibrator', 'seeds', *measures], rows)


def earlier(name: str) -> str:
    """Means of runs from before there were studies."""
    found = read('earlier')[name]
    return table(found['head'], found['rows'])


def demo(*names: str) -> str:
    """Each arm's mean over its seeds, and the difference from the baseline."""
    text = ''
    for name in names or sorted(path.stem for path in (RESULTS / 'demo').glob('*.json')):
        content = read(f'demo/{name}')
        seeds = [str(seed) for seed in content['seeds']]
        arms = content['arms']
        baseline = next(iter(arms))
        rows = []
        for arm, runs in arms.items():
            row = [arm]
            for metric in content['metrics']:
                values = {seed: runs[seed][metric] for seed in seeds if seed in runs}
                row.append(as_text(mean_interval(list(values.values()))))
                if arm != baseline and len(values) > 1:
                    gain = paired_difference(values, {s: arms[baseline][s][metric] for s in values})
                    row[-1] += in_brackets(gain)
            rows.append(row)
        text += table([f'seeds {", ".join(seeds)}', *content['metrics']], rows) + '\n'
    return text


TABLES: Dict[str, Callable[..., str]] = dict(
    study=study, studies=studies, time=time, cost=cost, calibrators=calibrators,
    calibrated=calibrated, demo=demo,
    earlier=earlier,
    step_cost=lambda *names: step_cost_text([read(name) for name in names]),
    calibration_reference=lambda: reference_text(read('calibration_reference')),
    calibration_study=lambda: study_text(read('calibration_study')['runs']),
    reliability=lambda: reliability_text(read('reliability')))


def filled(text: str) -> str:
    """A page with all its tables made anew.

    Raises:
        UsageError: If it asks for a table that there is not, or a mark is alone.
    """
    if text.count('<!-- table: ') != 2 * len(PLACE.findall(text)):
        raise UsageError('each <!-- table: KIND --> needs a line of its own, and an '
                         '<!-- table: end --> after it')

    def fill(match: 're.Match') -> str:
        kind, *arguments = match['asked'].split()
        if kind not in TABLES:
            raise UsageError(f'there is no table {kind}, only {", ".join(TABLES)}')
        try:
            return f'{match[1]}{TABLES[kind](*arguments)}{match[4]}'
        except (KeyError, TypeError) as error:  # of what is asked for, or of what the file holds
            raise UsageError(f'cannot make the table {match["asked"]}: {error!r}') from error

    return PLACE.sub(fill, text)


def main() -> None:
    """Fill, or look whether all is filled."""
    args = parse_args()
    changed: List[Path] = []
    try:
        for page in args.pages or [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
            text = page.read_text(encoding='utf-8')
            new = filled(text)
            if new != text:
                changed.append(page)
                if not args.check:
                    page.write_text(new, encoding='utf-8')
    except (UsageError, FileNotFoundError) as error:
        end_in_a_line('fill_pages.py', UsageError(f'{page}: {error}'), args.traceback)
    for page in changed:
        print(f'{page}: {"is not what the results say" if args.check else "filled"}')
    sys.exit(1 if args.check and changed else 0)


if __name__ == '__main__':
    main()
