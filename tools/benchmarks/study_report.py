"""Tables and plots of studies, from the json files that study.py writes.

    python tools/benchmarks/study_report.py results/studies/detectors.json
    python tools/benchmarks/study_report.py results/studies/*.json --out docs/studies.md

Each method is compared with the study's baseline seed by seed, both on a CPU or on the same GPU:
the mean of the differences and Student's 95 % interval. Beside it stands how many seeds it takes to
show an effect of this size: paired t-test, two-sided at 5 %, with a power of 80 %. Runs that failed
or diverged are listed, and are in no mean.
"""
import argparse
import json
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from scipy.stats import nct, t

from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.report.statistics import Interval, mean_interval, paired_difference

VALUES = ('mean', 'last', 'test')
MEANING = {'mean': 'mean of the last {average_last} validations', 'last': 'last validation',
           'test': 'test split'}
POWER = 0.8
SIGNIFICANCE = 0.05
MOST_SEEDS = 1000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('studies', nargs='+', type=Path, help='json files of study.py')
    parser.add_argument('--value', choices=VALUES, default='mean',
                        help='what to compare: the mean of the last validations, the last one, or '
                        'the test split; default: mean')
    parser.add_argument('--out', type=Path,
                        help='markdown file, plots beside it; default: print, and draw nothing')
    add_traceback(parser)
    return parser.parse_args()


def power(effect: float, n: int) -> float:
    """The chance that a paired t-test shows an effect.

    Args:
        effect (float): Mean of the differences over their standard deviation.
        n (int): Number of pairs, at least 2.

    Returns:
        float: Between 0.05, without an effect, and 1.
    """
    bound = t.ppf(1 - SIGNIFICANCE / 2, n - 1)
    shift = effect * math.sqrt(n)
    # Far from 0, scipy's noncentral t is nan on the side where nothing is left
    return float(nct.sf(bound, n - 1, shift) + np.nan_to_num(nct.cdf(-bound, n - 1, shift)))


def seeds_needed(mean: float, deviation: float) -> Optional[int]:
    """How many seeds a paired t-test takes to show a difference.

    Args:
        mean (float): Mean of the differences.
        deviation (float): Their standard deviation.

    Returns:
        int or None: At least 2; None for more than 1000, or without a difference.
    """
    if mean == 0:
        return None
    if deviation == 0:
        return 2
    low, high = 1, MOST_SEEDS
    if power(abs(mean) / deviation, high) < POWER:
        return None
    while high - low > 1:  # power grows with n
        middle = (low + high) // 2
        if power(abs(mean) / deviation, middle) < POWER:
            low = middle
        else:
            high = middle
    return high


class Comparison(NamedTuple):
    """A method beside the baseline.

    Attributes:
        value (Interval): Mean over its seeds.
        difference (Interval): Mean of the differences over the seeds that both have.
        needed (int, optional): Seeds that it takes to show a difference of this size.
    """
    value: Interval
    difference: Interval
    needed: Optional[int]


class Pair(NamedTuple):
    """What two runs have in common whose values may be subtracted.

    Attributes:
        seed (int): Of the run.
        gpu (str, optional): None on a CPU, which adds up in another order.
    """
    seed: int
    gpu: Optional[str]


class StudyResults:
    """What a json file of study.py holds.

    Raises:
        UsageError: If it is none.
    """

    def __init__(self, path: Path):
        try:
            content = json.loads(path.read_text())
            self.name: str = content['study']
            self.definition: Dict[str, Any] = content['definition']
            self.environments: List[dict] = content['environments']
            self.runs: List[dict] = content['runs']
            for run in self.runs:
                for key in ('config', 'method', 'seed', 'reason'):
                    run[key]
                if run['status'] == 'done':
                    run['metrics'].items()
        except FileNotFoundError as error:
            raise UsageError(f'there is no file {path}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f'{path} does not hold the results of a study') from error
        self.metrics: List[str] = self.definition['metrics']
        self.methods: List[str] = list(self.definition['methods'])
        self.baseline: str = self.definition.get('baseline', self.methods[0])
        self._against: Dict[str, str] = self.definition.get('against') or {}

    def values(self, config: str, method: str, metric: str, value: str) -> Dict[Pair, float]:
        """The value of the runs that are done and have one."""
        found = {}
        for run in self.runs:
            if (run['config'], run['method'], run['status']) == (config, method, 'done'):
                number = run['metrics'].get(metric, {}).get(value)
                if number is not None:
                    gpu = self.environments[run['environment']]['gpu']
                    found[Pair(run['seed'], gpu)] = number
        return found

    def configs(self) -> List[str]:
        return [config for config in self.definition['configs']
                if any(run['config'] == config for run in self.runs)]

    def trained(self, config: str) -> List[str]:
        """The methods that a config was trained with, the baseline first."""
        methods = [method for method in self.methods
                   if any((run['config'], run['method']) == (config, method) for run in self.runs)]
        return sorted(methods, key=lambda method: method != self.baseline)

    def is_compared(self, config: str, method: str) -> bool:
        """Whether there is another row to compare it with: not for the baseline itself."""
        return method != self.baseline or self._against.get(config, config) != config

    def compare(self, config: str, method: str, metric: str, value: str) -> Comparison:
        mine = self.values(config, method, metric, value)
        theirs = self.values(self._against.get(config, config), self.baseline, metric, value)
        pairs = [mine[pair] - theirs[pair] for pair in mine if pair in theirs]
        needed = seeds_needed(np.mean(pairs), np.std(pairs, ddof=1)) if len(pairs) > 1 else None
        return Comparison(mean_interval(list(mine.values())), paired_difference(mine, theirs),
                          needed)


def as_text(interval: Interval, sign: bool = False) -> str:
    """``0.487 ± 0.012``, ``0.487`` from one value, or a dash."""
    if interval.n == 0:
        return '–'
    form = '{:+.4f}' if sign else '{:.4f}'
    margin = '' if interval.n < 2 else f' ± {interval.margin:.4f}'
    return form.format(interval.mean) + margin


def table(study: StudyResults, config: str, metric: str, value: str) -> List[str]:
    """A row for each method, in markdown. A difference whose interval excludes 0 is bold."""
    rows = ['| method | seeds | value | difference | seeds to show it |',
            '| --- | --- | --- | --- | --- |']
    for method in study.trained(config):
        compared = study.compare(config, method, metric, value)
        difference, needed = '', ''
        if study.is_compared(config, method):
            difference = as_text(compared.difference, sign=True)
            if compared.difference.excludes_zero:
                difference = f'**{difference}**'
            if compared.difference.n > 1:
                needed = f'{compared.needed}' if compared.needed else f'over {MOST_SEEDS}'
        rows.append(f'| {method} | {compared.value.n} | {as_text(compared.value)} | {difference} | '
                    f'{needed} |')
    return rows


def unfinished(study: StudyResults) -> List[str]:
    """A line for each run that is in no mean: it failed or diverged."""
    lines = [f'- {run["config"]}/{run["method"]}/{run["seed"]}: {run["status"]}, {run["reason"]}'
             for run in study.runs if run['status'] != 'done']
    return ['', 'In no mean:', '', *lines] if lines else []


def provenance(study: StudyResults) -> List[str]:
    """Where the numbers come from."""
    lines = []
    for environment in study.environments:
        packages = ', '.join(f'{name} {version}'
                             for name, version in environment['packages'].items())
        machine = environment['gpu'] or f'{environment["processor"]}, {environment["cores"]} cores'
        lines.append(f'{machine}; Python {environment["python"]}, {packages}.')
    seconds = [run['seconds'] for run in study.runs if run.get('seconds')]
    if seconds:
        lines.append(f'{len(seconds)} runs took {sum(seconds) / 3600:.1f} hours of training, '
                     f'{np.median(seconds) / 60:.1f} minutes in the median.')
    commits = {(run['commit'] or 'unknown')[:10] + (' with changes' if run['changed'] else '')
               for run in study.runs}
    lines.append(f'Code: commit {", ".join(sorted(commits))}.')
    return ['', ' '.join(lines)]


def report(study: StudyResults, value: str, plots: Optional[Path] = None) -> str:
    """The markdown of a study.

    Args:
        study (StudyResults): The study.
        value (str): One of ``VALUES``.
        plots (Path, optional): Folder to draw to; the text refers to the plots by their names.
            Defaults to None: no plots.
    """
    definition = study.definition
    meaning = MEANING[value].format(average_last=definition.get('average_last', 1))
    lines = [f'# {study.name}', '', ' '.join((definition.get('description') or '').split()), '',
             f'Values: {meaning}, mean over the seeds ± 95 % interval; differences from '
             f'{study.baseline}, paired by seed, bold where the interval excludes 0. Of twenty '
             'intervals about one does so by chance.']
    for config in study.configs():
        lines += ['', f'## {config}', '', f'`{definition["configs"][config]}`']
        for metric in study.metrics:
            lines += ['', f'### {metric}', '', *table(study, config, metric, value)]
        if plots is not None:
            name = f'{study.name}_{config}.svg'
            draw(study, config, value, plots / name)
            lines += ['', f'![differences from {study.baseline} on {config}]({name})']
    return '\n'.join([*lines, *unfinished(study), *provenance(study)]) + '\n'


def draw(study: StudyResults, config: str, value: str, path: Path) -> None:
    """The differences of all methods with their intervals, a panel for each metric."""
    methods = [method for method in study.trained(config) if method != study.baseline]
    figure = Figure(figsize=(3.2 * len(study.metrics) + 1.5, 0.4 * len(methods) + 1.2),
                    layout='constrained')
    axes = figure.subplots(1, len(study.metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, study.metrics):
        for row, method in enumerate(methods):
            difference = study.compare(config, method, metric, value).difference
            if difference.n:
                margin = 0 if np.isnan(difference.margin) else difference.margin
                axis.errorbar(difference.mean, row, xerr=margin, fmt='o', capsize=3,
                              color='#0072B2' if difference.excludes_zero else '#808080')
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set(title=metric, xlabel=f'difference from {study.baseline}')
        axis.grid(alpha=0.3, axis='x')
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({'svg.hashsalt': study.name}):  # the same numbers give the same bytes
        figure.savefig(path, metadata=dict(Date=None))


def main() -> None:
    args = parse_args()
    try:
        studies = [StudyResults(path) for path in args.studies]
        for study in studies:
            if args.value == 'test' and not study.definition.get('test'):
                raise UsageError(f'{study.name} did not measure on the test split')
        folder = args.out.parent if args.out else None
        text = '\n'.join(report(study, args.value, folder) for study in studies)
    except UsageError as error:
        end_in_a_line('study_report.py', error, args.traceback)
    if args.out is None:
        print(text, end='')
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        Console().print(f'{args.out}', soft_wrap=True, highlight=False)


if __name__ == '__main__':
    main()
