"""What is concluded from runs that differ in one thing or another."""
import numpy as np
import pytest

from mmskd.evaluation.detection import DetectionRule
from mmskd.evaluation.pose import PoseRule
from mmskd.evaluation.report import members as module
from mmskd.evaluation.report.members import data_difference, evaluator_differences, members_of
from mmskd.evaluation.report.results import (
    confidences,
    judged_table,
    number,
    own_table,
    summary,
)
from mmskd.evaluation.report.runs import Run, group_runs
from tests.support.report_runs import detections, poses, predict_from, write_run

SEEDS = (0, 1, 2)
METRIC = 'coco/bbox_mAP'


class Study:
    """Two groups, the second one better, whatever else is the matter."""

    def __init__(self, root, monkeypatch, seeds=SEEDS, make=detections, scope='mmdet',
                 **evaluators):
        self.found, self.folders, self.scope = {}, [], scope
        for number_, (name, skill) in enumerate((('base', .3), ('better', .8))):
            for i, seed in enumerate(seeds):
                folder = write_run(root / f'{name}_s{i}', seed, lr=number_ + .1, scope=scope,
                                   evaluator=evaluators.get(name, ()))
                predictions = make(10 * number_ + i, skill)
                predictions.metrics = {METRIC: skill + i / 100 + number_ * i / 500,
                                       'my_metric': 1. + skill + i / 50}
                self.found[str(folder)] = predictions
                self.folders.append(folder)
        predict_from(self.found, monkeypatch)

    def tables(self, notes=None):
        groups = group_runs([Run(folder) for folder in self.folders])
        rule = DetectionRule() if self.scope == 'mmdet' else PoseRule()
        task = 'detection' if self.scope == 'mmdet' else 'pose'
        self.members = members_of(groups, 'val', 'last', rule, [] if notes is None else notes, True)
        self.names = [group.name for group in groups]
        return (judged_table(self.members, len(groups), task),
                own_table(self.members, len(groups), task, 'val'))

    def predictions(self, i):
        return self.found[str(self.folders[i])]


@pytest.fixture
def study(tmp_path, monkeypatch):
    return Study(tmp_path, monkeypatch)


def rows(table):
    return {row.label: row for row in table.rows + table.others}


def test_a_difference_beyond_chance(study):
    judged, own = study.tables()
    row = rows(judged)['mAP']
    assert row.verdict(1) == 'better' and row.differences[1].paired and row.differences[1].n == 3
    assert row.lower is False and len(row.values[0]) == 3
    assert rows(judged)['LRP'].verdict(1) == 'better' and rows(judged)['LRP'].lower
    assert rows(own)['mAP'].verdict(1) == 'better' and own.why_not == ''
    (name, words), = summary((judged, own), study.names)
    assert name == 'better' and 'better beyond chance over 3 pairs of seeds' in words


def test_what_depends_on_how_much_is_emitted_has_no_verdict(study):
    judged, _ = study.tables()
    row = rows(judged)['NLL']
    assert row in judged.others and row.verdict(1) == '' and 'how much a model emits' in row.why_not
    assert {'LaECE_0', 'LaACE_0', 'OCE', 'LRP'} <= {row.label for row in judged.rows}


def test_the_sign_of_the_calibration_error_is_said_where_it_is_sure(study):
    """Scores keep their order, and are above, below and about what they should tell."""
    plain = {folder: predictions.scores.copy() for folder, predictions in study.found.items()}
    for said, high in (('overconfident: scores are', (True, True, True)),
                       ('underconfident: scores are', (False, False, False)),
                       ('neither over- nor under', (True, False, False))):
        for i, (folder, scores) in enumerate(plain.items()):
            study.found[folder].scores[:] = 1 - .1 * (1 - scores) if high[i % 3] else .2 * scores
        found = confidences(study.tables()[0], study.members, study.names, 'detection')
        assert [name for name, _ in found] == study.names
        assert all(words.startswith(said) for _, words in found), found


def test_an_unknown_direction_has_no_verdict(study):
    _, own = study.tables()
    row = rows(own)['my_metric']
    assert abs(row.differences[1].mean) > row.differences[1].margin
    assert row.verdict(1) == '' and row.lower is None and 'more is not better' in row.why_not


@pytest.mark.parametrize('setting', [
    dict(iou_thr=.75), dict(score_thr=.3), dict(calibrator='t.json'), dict(prefix='other')])
def test_runs_with_other_evaluators(tmp_path, monkeypatch, setting):
    """Are judged by one rule; what their own evaluators say is shown, and not compared."""
    kind = dict(type='mmskd.DetCalibrationMetric')
    study = Study(tmp_path, monkeypatch, base=[kind], better=[dict(kind, **setting)])
    judged, own = study.tables()
    assert rows(judged)['mAP'].verdict(1) == 'better'
    assert f'DetCalibrationMetric.{next(iter(setting))}' in own.why_not
    assert all(row.verdict(1) == '' and row.why_not for row in own.rows + own.others)
    assert rows(own)['mAP'].differences[1].n == 3


@pytest.mark.parametrize('first, second', [
    (dict(type='PCKAccuracy', thr=.05), dict(type='PCKAccuracy', thr=.2)),
    (dict(type='PCKAccuracy'), dict(type='PCKAccuracy', norm_item='head')),
    (dict(type='mmskd.PoseCalibrationMetric'), dict(type='mmskd.PoseCalibrationMetric', hit='oks'))
])
def test_poses_with_other_evaluators(tmp_path, monkeypatch, first, second):
    study = Study(tmp_path, monkeypatch, make=poses, scope='mmpose', base=[first], better=[second])
    judged, own = study.tables()
    assert rows(judged)['PCK'].verdict(1) == 'better' and 'differ' in own.why_not


def test_evaluators_that_differ_in_nothing_that_matters(tmp_path, monkeypatch):
    for i in (0, 1):  # two files with the same content
        (tmp_path / f'{i}.json').write_text('{}')
    first, second = (dict(type=kind, ann_file=str(tmp_path / f'{i}.json'), **more)
                     for i, kind, more in ((0, 'CocoMetric', {}), (1, 'mmdet.CocoMetric', dict(
                         outfile_prefix='x', classwise=True, collect_device='gpu'))))
    study = Study(tmp_path / 'runs', monkeypatch, base=[first], better=[second])
    assert study.tables()[1].why_not == ''
    (tmp_path / '1.json').write_text('{"images": []}')
    assert 'CocoMetric.annotations' in evaluator_differences(study.members, 'val')


@pytest.mark.parametrize('key, what', [
    ('gt_boxes', 'boxes'), ('gt_labels', 'labels'), ('image_ids', 'image ids'),
    ('gt_ignored', 'ignored objects'), ('gt_areas', 'areas')])
def test_other_data_is_not_compared(study, key, what):
    """The same number of images and boxes, but not the same."""
    for i in (3, 4, 5):
        arrays = study.predictions(i).arrays
        values = arrays[key].copy()
        if key == 'gt_boxes':
            values[[0, 1]] = values[[1, 0]]
        else:
            values[0] = values[0] + 1 if values.dtype != bool else ~values[0]
        arrays[key] = values
    notes = []
    judged, own = study.tables(notes)
    assert {member.left_out for member in study.members[3:]} == {
        f'its {what} are not those of {study.folders[0]}: other data'}
    for table in (judged, own):
        assert all(row.verdict(1) == '' and row.differences[1].n == 0 for row in table.rows)
    assert summary((judged, own), study.names) == []


def test_one_run_with_other_data_is_left_out(study):
    study.predictions(4).names.reverse()
    judged, _ = study.tables()
    assert study.members[4].left_out.startswith('its classes are not those of')
    assert rows(judged)['mAP'].means[1].n == 2 and rows(judged)['mAP'].differences[1].n == 2


def test_the_same_data_from_other_types(study):
    arrays = study.predictions(3).arrays
    arrays['gt_labels'] = arrays['gt_labels'].astype(np.int32)
    study.tables()
    assert not any(member.left_out for member in study.members)


def test_poses_of_other_people_are_not_compared(tmp_path, monkeypatch):
    """As many of them, one on each image."""
    study = Study(tmp_path, monkeypatch, make=poses, scope='mmpose')
    for i in (3, 4, 5):
        arrays = study.predictions(i).arrays
        arrays['gt_keypoints'] = arrays['gt_keypoints'] + 1
    judged, own = study.tables()
    assert 'its keypoints are not those of' in study.members[3].left_out
    assert all(row.verdict(1) == '' for row in judged.rows + own.rows)


def test_runs_that_stopped_early_or_diverged_are_left_out(study):
    for i, losses in ((1, [1.] * 5), (4, [1., float('nan')] * 6)):
        folder = study.folders[i]
        write_run(folder, i % 3, lr=.1 + i // 3, stamp='20270101_000000',
                  logged=[dict(loss=loss) for loss in losses])
    judged, _ = study.tables()
    reasons = [member.left_out for member in study.members]
    assert reasons[1] == 'stopped at epoch 5 of 12' and reasons[4].startswith('diverged')
    row = rows(judged)['mAP']
    assert row.means[0].n == row.means[1].n == 2
    assert row.differences[1].n == 2 and row.differences[1].paired


def test_runs_that_are_all_under_way_are_compared(study):
    for folder in study.folders:
        for log in folder.glob('*/vis_data/scalars.json'):
            log.write_text('\n'.join(log.read_text().splitlines()[:4]) + '\n')
    judged, _ = study.tables()
    assert {member.run.unfinished() for member in study.members} == {'stopped at epoch 4 of 12'}
    assert rows(judged)['mAP'].verdict(1) == 'better'


def test_runs_without_a_seed_are_not_paired(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, seeds=(None, None, None))
    judged, own = study.tables()
    row = rows(judged)['mAP']
    assert not row.differences[1].paired and row.differences[1].n == 3
    assert row.verdict(1) == 'better'
    assert 'over unpaired runs' in summary((judged, own), study.names)[0][1]


def test_single_runs_prove_nothing(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, seeds=(0, ))
    judged, own = study.tables()
    assert rows(judged)['mAP'].verdict(1) == ''
    assert 'the difference may be chance' in summary((judged, own), study.names)[0][1]


def test_without_predictions_the_logs_are_shown_and_not_compared(study, monkeypatch):
    def gone(run, *args):
        raise module.UsageError('no checkpoint')

    monkeypatch.setattr(module, 'predictions_of', gone)
    notes = []
    judged, own = study.tables(notes)
    assert judged.rows == [] and len(notes) == 6
    assert own.why_not.startswith('it cannot be told whether all runs were measured on the same')


@pytest.mark.parametrize('shared', [False, True])
def test_thresholds_are_found_on_other_images(tmp_path, monkeypatch, shared):
    """On the validation images, if these are not among those that are measured."""
    study = Study(tmp_path, monkeypatch)

    def predictions_of(run, split, *args):
        paths = [f'{split if not (shared and i) else "val"}_{i}.png' for i in range(4)]
        found = detections(run.seed, truth_seed=int(split == 'val'), paths=paths)
        found.metrics = {METRIC: .5}
        return found

    monkeypatch.setattr(module, 'predictions_of', predictions_of)
    groups = group_runs([Run(folder) for folder in study.folders])
    for group in groups:
        for run in group.runs:
            run.cfg.test_dataloader = dict(dataset=dict(type='mmdet', ann_file='test.json'))
    found = members_of(groups, 'test', 'last', DetectionRule(), [], True)
    for member in found:
        assert ('LaECE_0_own_thr' if shared else 'LaECE_0') in member.verdicts.values
    row = rows(judged_table(found, 2, 'detection'))['LaECE_0']
    assert row.says.endswith('of the same images') == shared


def test_scores_that_are_no_probabilities_are_reported(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, scope='mmpose',
                  make=lambda seed, skill: poses(seed, skill, scale=1.5))
    for predictions in study.found.values():
        predictions.metrics.update({'calibration/mean_ECE': predictions.scores.mean() / 9,
                                    'calibration/clipped': .3})
    judged, own = study.tables()
    found = rows(judged)
    assert found['clipped'].means[1].mean > .2
    assert 'up to 30% of the scores' in rows(own)['mean_ECE'].why_not
    for key in ('ECE', 'NLL', 'Brier'):
        assert found[key].verdict(1) == '' and 'outside [0, 1]' in found[key].why_not
    assert found['AURC'].why_not == '', 'it needs the order alone'
    words = summary((judged, judged), study.names)[0][1]
    assert 'PCK' in words and 'ECE' in words and 'outside [0, 1]' in words


def test_data_differences_are_named():
    assert data_difference(detections(0), detections(1), 'x') == ''
    assert data_difference(detections(0), detections(0, truth_seed=1), 'x') == \
        'its boxes are not those of x: other data'
    assert data_difference(detections(0), detections(0, images=5), 'x').startswith('its image ids')


@pytest.mark.parametrize('value, expected', [
    (0.12345, '0.123'), (-0.5, '−0.500'), (12.345, '12.35'), (1234.5, '1234.5'), (65153., '65153'),
    (float('nan'), '–')])
def test_numbers(value, expected):
    assert number(value) == expected
