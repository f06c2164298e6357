"""The code in the documentation runs."""
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[1] / 'docs'


def blocks(page: str) -> list:
    """The Python code on a page."""
    return re.findall(r'^```python\n(.*?)^```', (DOCS / page).read_text(encoding='utf-8'), re.M | re.S)


@pytest.fixture(scope='module')
def own():
    """What a user's own files define."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    from mmskd.registry import MODELS as MMSKD_MODELS
    names = {}
    for block in blocks('extend.md'):
        exec(compile(block, 'docs/extend.md', 'exec'), names)
    yield names
    for name in ('PolyLoss', 'BoxesFirstHead'):
        MODELS._module_dict.pop(name)
    MMSKD_MODELS._module_dict.pop('ScriptedTeacher')


@pytest.mark.parametrize('family,options', [
    ('faster_rcnn', {'roi_head.bbox_head.loss_cls': dict(_delete_=True, type='PolyLoss')}),
    ('retinanet', {'bbox_head.type': 'BoxesFirstHead'})], ids=['loss', 'head'])
def test_a_users_own_loss_and_head_are_taught(own, family, options):
    from mmskd.engine.hooks import PSKDHook
    from tests.support import detectors
    model = detectors.build(family, **options)
    stock = detectors.total(detectors.losses(model), 'loss_cls')
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.
    assert torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)
    with torch.no_grad():
        for parameter in hook.teacher.parameters():
            parameter.mul_(1.1)
    hook.alpha_t = 0.8
    assert not torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)
    head, = hook.heads_taught
    assert head.calls == head.paired > 0
    hook.detach()
    assert torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)


def test_a_users_own_teacher_teaches(own, tmp_path):
    pytest.importorskip('mmpose')
    from mmskd.engine.hooks import DistillHook
    from tests.support import poses
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 2, 1))
    torch.nn.init.constant_(model[1].bias, 5.)  # heatmaps without a bump above 0 say nothing
    torch.jit.script(model).save(str(tmp_path / 'pose.pt'))
    student = poses.build('rtmpose')
    student.dataset_meta = dict(keypoint_id2name=dict(enumerate('abcdefghijklmnopq')))
    hook = DistillHook(teacher=dict(type='mmskd.ScriptedTeacher', file=str(tmp_path / 'pose.pt'),
                                    names=['c', 'nobody'], keypoints='by_name'))
    hook.attach(student)
    assert poses.losses(student)['loss_logit'] > 0
    assert len(hook._teacher.untaught) == 16
