"""Tables of a study: what is compared with what, what is left out, and how many seeds it takes."""
import json
import re
import sys

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mmskd.errors import UsageError


@pytest.fixture(scope='module')
def tool():
    from tests.test_tools.conftest import tool_module
    return tool_module('benchmarks/study_report')


def a_run(method, seed, mAP, **changes):
    metrics = {'mAP': dict(last=mAP + 0.01, mean=mAP, test=mAP - 0.1),
               'ECE': dict(last=0.1, mean=0.2, test=None)}
    return dict(dict(config='small', method=method, seed=seed, status='done', reason='',
                     seconds=120., commit='c' * 40, changed=False, environment=0,
                     metrics=metrics), **changes)


BASELINE = [0.50, 0.52, 0.48, 0.51]
BETTER = [0.53, 0.545, 0.515, 0.53]


@pytest.fixture
def content():
    runs = [a_run('better', seed, mAP) for seed, mAP in enumerate(BETTER)]
    runs += [a_run('baseline', seed, mAP) for seed, mAP in enumerate(BASELINE)]
    runs.append(a_run('worse', 0, 0.4))
    runs.append(a_run('worse', 1, 0, status='diverged', reason='the loss is no number', metrics={}))
    return dict(
        study='try', runs=runs,
        environments=[dict(gpu=None, processor='a processor', cores=2, python='3.11.7',
                           packages=dict(torch='2.9.1'))],
        definition=dict(
            description='What it\nis for.', configs={'small': 'configs/small.py', 'none': 'x.py'},
            methods=dict(better=None, baseline=None, worse=None, absent=None), baseline='baseline',
            metrics=['mAP', 'ECE'], average_last=3, test=True))


@pytest.fixture
def write(tmp_path):
    def write(content, name='try.json'):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def row(text, method):
    """Cells of the first table's row."""
    return [cell.strip() for cell in re.search(rf'^\| {method} \|(.*)\|$', text, re.M).group(1)
            .split('|')]


def test_the_interval_is_that_of_the_paired_t_test(tool, content, write):
    study = tool.StudyResults(write(content))
    compared = study.compare('small', 'better', 'mAP', 'mean')
    low, high = ttest_rel(BETTER, BASELINE).confidence_interval()
    assert compared.difference.mean == pytest.approx((low + high) / 2)
    assert compared.difference.margin == pytest.approx((high - low) / 2)
    text = tool.report(study, 'mean')
    assert row(text,
               'better')[:3] == ['4', '0.5300 ± 0.0195', f'**+0.0275 ± {(high - low) / 2:.4f}**']
    assert row(text, 'baseline')[1:] == [row(text, 'baseline')[1], '', '']
    assert text.index('| baseline |') < text.index('| better |'), 'the baseline comes first'


def test_a_config_may_be_compared_with_the_baseline_of_another(tool, content, write):
    for run in content['runs']:
        if run['method'] == 'better':
            run['config'] = 'none'
    content['definition']['against'] = dict(none='small')
    compared = tool.StudyResults(write(content)).compare('none', 'better', 'mAP', 'mean')
    assert compared.difference.mean == pytest.approx(np.mean(BETTER) - np.mean(BASELINE))
    assert compared.difference.n == 4 and compared.difference.paired


def test_the_baseline_of_such_a_config_is_compared_as_well(tool, content, write):
    content['runs'] += [a_run('baseline', seed, mAP + 0.1, config='none')
                        for seed, mAP in enumerate(BASELINE)]
    content['definition']['against'] = dict(none='small')
    study = tool.StudyResults(write(content))
    assert tool.table(study, 'none', 'mAP', 'mean')[2].split('|')[4].strip() == '+0.1000 ± 0.0000'
    assert tool.table(study, 'small', 'mAP', 'mean')[2].split('|')[4].strip() == ''


def test_only_seeds_that_both_have_are_paired(tool, content, write):
    content['runs'] = [run for run in content['runs'] if run['method'] != 'baseline'
                       or run['seed'] in (1, 2)]
    compared = tool.StudyResults(write(content)).compare('small', 'better', 'mAP', 'mean')
    assert compared.difference.n == 2 and compared.value.n == 4
    assert compared.difference.mean == pytest.approx(0.03)


def test_a_gpu_and_a_cpu_are_not_paired(tool, content, write):
    content['environments'].append(dict(content['environments'][0], gpu='a GPU'))
    for run in content['runs']:
        if run['method'] == 'better' and run['seed'] > 1:
            run['environment'] = 1
    compared = tool.StudyResults(write(content)).compare('small', 'better', 'mAP', 'mean')
    assert compared.difference.n == 2 and compared.value.n == 4
    assert compared.difference.mean == pytest.approx(0.0275)


def test_failed_runs_are_listed_and_in_no_mean(tool, content, write):
    text = tool.report(tool.StudyResults(write(content)), 'mean')
    assert row(text, 'worse') == ['1', '0.4000', '-0.1000', '']
    assert '- small/worse/1: diverged, the loss is no number' in text
    assert 'absent' not in text and '## none' not in text
    content['runs'] = [run for run in content['runs'] if run['status'] == 'done']
    assert 'In no mean' not in tool.report(tool.StudyResults(write(content)), 'mean')


@pytest.mark.parametrize('value, mean, meaning', [
    ('mean', '0.5300', 'mean of the last 3 validations'), ('last', '0.5400', 'last validation'),
    ('test', '0.4300', 'test split')])
def test_what_is_compared(value, mean, meaning, tool, content, write):
    text = tool.report(tool.StudyResults(write(content)), value)
    assert row(text, 'better')[1].startswith(mean) and f'Values: {meaning}' in text


def test_a_metric_without_values(tool, content, write):
    study = tool.StudyResults(write(content))
    assert tool.table(study, 'small', 'ECE', 'test')[2:] == [
        '| baseline | 0 | – |  |  |', '| better | 0 | – | – |  |', '| worse | 0 | – | – |  |']
    # No difference at all: no number of seeds shows it
    assert tool.table(study, 'small', 'ECE', 'mean')[3].endswith('| +0.0000 ± 0.0000 | over 1000 |')


def test_where_the_numbers_come_from(tool, content, write):
    content['runs'][0].update(commit='d' * 40, changed=True)
    content['runs'][1].update(seconds=None)
    text = tool.report(tool.StudyResults(write(content)), 'mean')
    assert 'a processor, 2 cores; Python 3.11.7, torch 2.9.1.' in text
    assert 'commit cccccccccc, dddddddddd with changes.' in text
    assert '9 runs took 0.3 hours of training, 2.0 minutes in the median.' in text
    assert 'What it is for.' in text


@pytest.mark.parametrize('effect, n', [(1.0, 10), (0.5, 34), (2.0, 5), (0.2, 199)])
def test_seeds_are_those_of_the_tables(effect, n, tool):
    """Sample sizes for a power of 80 % at 5 %, two-sided, as G*Power has them."""
    assert tool.seeds_needed(effect, 1.0) == tool.seeds_needed(-3 * effect, 3.0) == n


def test_power_is_the_share_of_tests_that_find_it(tool):
    samples = np.random.default_rng(0).normal(0.9, 1.0, (20000, 6))
    statistic = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(6))
    assert tool.power(0.9, 6) == pytest.approx((abs(statistic) > 2.570582).mean(), abs=0.01)
    assert tool.power(0.0, 5) == pytest.approx(0.05)
    assert tool.power(50.0, 2) == pytest.approx(1.0)


def test_seeds_at_the_edges(tool):
    assert tool.seeds_needed(0.0, 1.0) is None
    assert tool.seeds_needed(0.1, 0.0) == 2
    assert tool.seeds_needed(0.01, 1.0) is None


def test_command_line(tool, content, write, tmp_path, monkeypatch, capsys):
    first, second = write(content), write(dict(content, study='again'), 'again.json')
    monkeypatch.setattr(sys, 'argv', ['study_report.py', str(first), str(second)])
    tool.main()
    assert capsys.readouterr().out.count('\n## small\n') == 2
    out = tmp_path / 'docs' / 'studies.md'
    monkeypatch.setattr(sys, 'argv', ['study_report.py', str(first), '--out', str(out)])
    tool.main()
    plot = out.with_name('try_small.svg')
    drawn = plot.read_bytes()
    tool.main()
    assert plot.read_bytes() == drawn, 'the same numbers give the same bytes'
    assert f']({plot.name})' in out.read_text() and plot.read_text().lstrip().startswith('<?xml')


def test_errors(tool, content, write, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match='there is no file .*gone.json'):
        tool.StudyResults(tmp_path / 'gone.json')
    with pytest.raises(UsageError, match='does not hold the results of a study'):
        tool.StudyResults(write([1]))
    for key in ('method', 'metrics', 'status'):
        damaged = dict(content['runs'][0])
        del damaged[key]
        with pytest.raises(UsageError, match='does not hold the results of a study'):
            tool.StudyResults(write(dict(content, runs=[damaged])))
    content['definition']['test'] = False
    monkeypatch.setattr(sys, 'argv', ['study_report.py', str(write(content)), '--value', 'test'])
    with pytest.raises(SystemExit, match='try did not measure on the test split'):
        tool.main()
