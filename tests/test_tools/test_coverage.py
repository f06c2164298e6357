"""tools/analysis/coverage.py: each hook on families that no other test has, and what the tool calls
a fault.
"""
import copy
import functools
import json
import sys

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')

from tests.test_tools.conftest import ROOT, tool_module  # noqa: E402

sys.path.append(str(ROOT / 'tools' / 'analysis'))

import small_models  # noqa: E402

from mmskd.engine.hooks import PSKDHook, USKDHook  # noqa: E402

BODY = 'mmpose::body_2d_keypoint/topdown_'
CONFIGS = {
    'fovea': 'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'fsaf': 'mmdet::fsaf/fsaf_r50_fpn_1x_coco.py',
    'guided anchors': 'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
    'yolov3': 'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py',
    'ld': 'mmdet::ld/ld_r50-gflv1-r101_fpn_1x_coco.py',
    'double heads': 'mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'dynamic r-cnn': 'mmdet::dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
    'conditional detr': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'free anchor': 'mmdet::free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'autoassign': 'mmdet::autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'mask2former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'vipnas': f'{BODY}heatmap/coco/td-hm_vipnas-mbv3_8xb64-210e_coco-256x192.py',
    'visibility': f'{BODY}heatmap/coco/td-hm-vis_res50_8xb64-210e_coco-aic-256x192-merge.py',
    'guided anchors, two stages': 'mmdet::guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
    'pisa': 'mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py',
    'ddq': 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
    'htc': 'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'crowddet': 'mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py',
    'cascade rpn': 'mmdet::cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'tracker': 'mmdet::qdtrack/'
               'qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
    'simcc on deconvolutions': 'mmpose::body_2d_keypoint/simcc/coco/'
                               'simcc_res50_8xb32-140e_coco-384x288.py',
    'distiller': 'mmpose::wholebody_2d_keypoint/dwpose/ubody/'
                 's1_dis/dwpose_l_dis_m_coco-ubody-256x192.py',
    'rle': f'{BODY}regression/coco/td-reg_mobilenetv2_rle-pretrained-8xb64-210e_coco-256x192.py',
}
TAUGHT = [
    'fovea', 'fsaf', 'guided anchors', 'ld', 'double heads', 'dynamic r-cnn', 'conditional detr',
    'vipnas', 'visibility'
]


@pytest.fixture(scope='module')
def tool():
    small_models.import_models()
    return tool_module('analysis/coverage')


@pytest.fixture(scope='module')
def stock(tool):
    return functools.lru_cache(maxsize=1)(lambda name: tool.take_stock(CONFIGS.get(name, name)))


@pytest.mark.parametrize('family, hook', [
    *((family, 'PSKDHook') for family in TAUGHT), ('fovea', 'DistillHook'),
    ('double heads', 'NKDLoss'), ('vipnas', 'HeadDistillHook'), ('vipnas', 'DistillHook'),
    ('guided anchors, two stages', 'HeadDistillHook'), ('pisa', 'USKDHook')
])
def test_taught(tool, stock, family, hook):
    assert tool.outcome(stock(family), hook) == ('taught', '')


@pytest.mark.parametrize('family, reason', [
    ('free anchor', 'bag of anchors'), ('autoassign', 'confidence'), ('mask2former', 'queries'),
    ('rle', 'coordinates')])
def test_refused(tool, stock, family, reason):
    for hook in ('PSKDHook', 'HeadDistillHook'):
        status, message = tool.outcome(stock(family), hook)
        assert status == 'refused'
        assert hook in message
    assert reason in tool.outcome(stock(family), 'PSKDHook')[1]


@pytest.mark.parametrize(
    'family, hook, reason',
    [('ddq', 'PSKDHook', 'other queries'), ('ddq', 'DistillHook', 'other queries'),
     ('htc', 'PSKDHook', 'model.roi_head.semantic_head'),
     ('htc', 'NKDLoss', 'model.roi_head.semantic_head'),
     ('crowddet', 'PSKDHook', 'the smaller one of two pairings'),
     ('crowddet', 'USKDHook', 'two pairings'),
     ('cascade rpn', 'other heads', 'the stage before it has moved'),
     ('tracker', 'NKDHook', 'from frame to frame'),
     ('tracker', 'other heads', 'from frame to frame'),
     ('simcc on deconvolutions', 'other heads', 'it is a part of model.head'),
     ('distiller', 'NKDHook', 'a teacher of its own'),
     ('distiller', 'USKDHook', 'a teacher of its own'),
     ('double heads', 'USKDHook', "Set layer='roi_head.bbox_head.fc_branch.0'")])
def test_refused_before_the_first_iteration(tool, stock, family, hook, reason):
    status, message = tool.outcome(stock(family), hook)
    assert (status, reason in message) == ('refused', True), message


def test_advice_for_double_heads_is_good(stock):
    small = stock('double heads').small
    model = small.copy()
    hook = USKDHook('roi_head.bbox_head.fc_branch.0', model.roi_head.bbox_head.fc_out_channels, 81,
                    'roi_head.bbox_head.loss_cls')
    hook.attach(model)
    small_models.loss_values(small.losses(model))['loss_uskd'].sum().backward()
    assert hook.classifier.weight.grad.abs().max() > 0


def test_no_softmax(tool, stock):
    assert tool.outcome(stock('fovea'), 'USKDHook') == ('-', '')


class Idle:
    """Teaches nothing."""

    alpha_t = 0.

    def __init__(self, **options):
        pass

    def attach(self, model):
        self.teacher = copy.deepcopy(model)

    def refresh_teacher(self):
        pass

    def detach(self):
        pass


class Hardened(PSKDHook):
    """Teaches only where there is nothing to learn: where the past self is the present one."""

    def begin(self, model):
        if not all(map(torch.equal, model.parameters(), self.teacher.parameters())):
            self.alpha_t = 0.
        return super().begin(model)


class Spoiled(PSKDHook):
    """Changes a loss that has no class."""

    def attach(self, model):
        super().attach(model)
        self.handle = model.register_forward_hook(lambda module, args, losses: {
            **losses, 'loss_bbox': losses['loss_bbox'] * (1 + self.alpha_t)})

    def detach(self):
        super().detach()
        self.handle.remove()


class Untidy(PSKDHook):
    """Leaves something behind."""

    def attach(self, model):
        super().attach(model)
        model.bbox_head.teacher_of_it = 1


class Broken(PSKDHook):
    """Takes the model, and fails in the first iteration."""

    def attach(self, model):
        super().attach(model)
        model.register_forward_pre_hook(lambda module, args: 1 / 0)


@pytest.mark.parametrize('hook, reason', [
    (Idle, 'with itself for a past self the class loss has a gradient'),
    (Hardened, 'untaught: a call of bbox_head.loss_cls is the stock one at alpha 1'),
    (Spoiled, 'loss_bbox changes as well'), (Untidy, 'left traces in model.bbox_head'),
    (Broken, 'ZeroDivisionError')])
def test_all_else_is_a_fault(tool, stock, monkeypatch, hook, reason):
    monkeypatch.setattr(tool, 'PSKDHook', hook)
    status, message = tool.outcome(stock('fovea'), 'PSKDHook')
    assert status == 'FAULT'
    assert reason in message


def test_a_model_is_the_same_each_time(stock):
    small = stock('vipnas').small
    first, second, other = (small_models.loss_values(small.losses(model))
                            for model in (small.copy(), small.build(0), small.another()))
    assert torch.equal(first['loss_kpt'], second['loss_kpt'])
    assert not torch.equal(first['loss_kpt'], other['loss_kpt'])


def test_families():
    first, same, other, assigned = (small_models.signature(
        small_models.load_config(f'mmdet::{name}.py'))
                                    for name in ('retinanet/retinanet_r50_fpn_1x_coco',
                                                 'retinanet/retinanet_r101_fpn_2x_coco',
                                                 'ghm/retinanet_r50_fpn_ghm-1x_coco',
                                                 'atss/atss_r50_fpn_1x_coco'))
    assert first == same
    assert len({first, other, assigned}) == 3


WORKER = """
import json, sys
print('{}', flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if 'PSKDHook' in request['hooks'] and request['config'] == 'deadly':
        sys.exit(3)
    print(json.dumps(dict(hooks={hook: ['taught', ''] for hook in request['hooks']})), flush=True)
"""


def test_a_process_that_dies_is_a_fault_and_does_not_stop_the_others(tool, tmp_path, capsys):
    hooks = ['PSKDHook', 'DistillHook']
    command = [sys.executable, '-c', WORKER]
    results = tool.try_all(['deadly', 'tame'], hooks, 2, tmp_path, 60, command)

    assert results['deadly']['hooks']['PSKDHook'] == ['FAULT', 'the process ended with status 3']
    assert results['deadly']['hooks']['DistillHook'] == results['tame']['hooks']['PSKDHook'] == [
        'taught', ''
    ]
    assert tool.faults(results) == [('deadly', 'PSKDHook', 'the process ended with status 3')]
    assert '[2/2, 0 min left]' in capsys.readouterr().out
    # Known ones are not tried again, and a new hook is tried alone
    assert tool.try_all(['deadly', 'tame'], hooks, 1, tmp_path, 60, ['no such command']) == results
    more = tool.try_all(['deadly'], [*hooks, 'USKDHook'], 1, tmp_path, 60, command)
    assert more['deadly']['hooks'] == {**results['deadly']['hooks'], 'USKDHook': ['taught', '']}


def test_what_is_tried_again_takes_the_place_of_its_own(tool, tmp_path):
    def report(command, **families):
        return dict(versions=dict(mmdet='3', mmpose='1'), date='today', code='x', command=command,
                    families=[dict(key=[key], configs=1, results={key: dict(hooks=hooks)})
                              for key, hooks in families.items()])

    file = tmp_path / 'coverage.json'
    file.write_text(json.dumps(tool.merge(file, report(
        'all', a=dict(PSKDHook=['taught'], NKDHook=['-']), b=dict(PSKDHook=['refused'])), True)))
    merged, = tool.merge(file, report('--only a', a=dict(PSKDHook=['FAULT'])), False).values()
    assert [family['results'] for family in merged['families']] == [
        dict(a=dict(hooks=dict(PSKDHook=['FAULT'], NKDHook=['-']))),
        dict(b=dict(hooks=dict(PSKDHook=['refused'])))]
    assert tool._origin('', merged) == ['mmdet 3, mmpose 1; today, `all`; then today, `--only a`.']


def test_the_document_is_that_of_the_results_and_has_no_fault(tool):
    stacks = json.loads((ROOT / 'results' / 'coverage.json').read_text())
    assert (ROOT / 'docs' / 'coverage.md').read_text() == tool.render(stacks)
    for report in stacks.values():
        results = {name: result for family in report['families']
                   for name, result in family['results'].items()}
        assert len(results) > 150
        assert not tool.faults(results)
