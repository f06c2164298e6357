"""What must be seen on a GPU: that everything is there, in each precision, and that a state comes
back to it.
"""
import io

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.engine.hooks import CalibratedScores, DistillHook, HeadDistillHook, PSKDHook  # noqa: E402
from mmskd.evaluation.calibrators import Calibrator, LogitMap  # noqa: E402
from mmskd.models.teachers.frozen import named_tensors  # noqa: E402
from tests.support import detectors, runs  # noqa: E402

pytestmark = pytest.mark.cuda

PRECISIONS = [None, torch.float16, torch.bfloat16]
KNOWN = [('retinanet', None), ('retinanet', torch.float16), ('gfl', torch.bfloat16)]
"""RetinaNet's own focal loss, MMCV's operator, knows no bfloat16."""


@pytest.fixture
def family():
    return 'retinanet'


@pytest.fixture
def model(family):
    return detectors.build(family).cuda()


@pytest.fixture
def data():
    inputs, samples = detectors.batch()
    return inputs.cuda(), [sample.cuda() for sample in samples]


def step(model, data, dtype=None):
    """Forward and backward; all gradients are finite."""
    scale = 1 if dtype is not torch.float16 else 1024
    with torch.autocast('cuda', dtype=dtype or torch.float16, enabled=dtype is not None):
        losses = detectors.losses(model, data)
    (detectors.total(losses) * scale).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return losses


def places(module):
    return {tensor.device.type for _, tensor in named_tensors(module)}


@pytest.mark.parametrize('dtype', PRECISIONS)
@pytest.mark.parametrize('precision', [None, 'auto', 'float16', 'bfloat16'])
def test_past_self(model, data, dtype, precision):
    hook = PSKDHook(precision=precision)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    step(model, data, dtype)
    assert places(hook.teacher) == places(hook._asked.model) == {'cuda'}
    same = precision is None
    assert hook.disagreement == 0 if same else hook.disagreement < 5e-3


def test_a_state_comes_back_to_the_gpu(model, data):
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    file = io.BytesIO()
    torch.save(hook.state(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    hook.refresh_teacher()
    hook.restore(torch.load(file, map_location='cpu', weights_only=True))
    assert places(hook.teacher) == {'cuda'}
    hook.alpha_t = 0.5
    step(model, data)
    assert hook.disagreement > 0


@pytest.mark.parametrize('family, dtype', KNOWN)
def test_projections(model, data, family, dtype):
    teacher = detectors.build(family)  # on the CPU as it is given
    hook = DistillHook(teacher,
                       [dict(type='mmskd.FeatureDistillLoss'),
                        dict(type='mmskd.ClassDistillLoss')])
    hook.attach(model)
    step(model, data, dtype)
    assert places(hook._asked.model) == {'cuda'} and places(hook.losses) <= {'cuda'}


@pytest.mark.parametrize('family, dtype', KNOWN)
def test_second_stage(model, data, dtype, tmp_path):
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    hook = HeadDistillHook(str(tmp_path / 'trained.pth'))
    hook.attach(model)
    step(model, data, dtype)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.bbox_head.cls_convs[0].conv.weight.grad.device.type == 'cuda'


def test_folding_is_seen_on_a_gpu_too(model, data):
    hook = PSKDHook()
    hook.attach(model.eval())
    model.train(False)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    detectors.losses(model, data)
    norms = [module for module in hook._asked.model.backbone.modules()
             if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all('forward' in vars(norm) for norm in norms)


@pytest.mark.parametrize('name', ['rtmpose', 'heatmap'])
@pytest.mark.parametrize('dtype', [None, torch.float16])  # MMPose's own losses know no bfloat16
def test_keypoints(name, dtype):
    poses = pytest.importorskip('tests.support.poses')
    model = poses.build(name)
    inputs, samples = poses.batch(model)
    model, data = model.cuda(), (inputs.cuda(), [sample.cuda() for sample in samples])
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.autocast('cuda', dtype=dtype or torch.float16, enabled=dtype is not None):
        loss = poses.total(poses.losses(model, data))
    loss.backward()
    assert loss.isfinite() and places(hook._asked.model) == {'cuda'} and hook.disagreement < 5e-2


@pytest.mark.parametrize('name', ['faster_rcnn', 'fcos', 'gfl', 'detr', 'dino'])
def test_families(name):
    model = detectors.build(name).cuda()
    inputs, samples = detectors.batch()
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    step(model, (inputs.cuda(), [sample.cuda() for sample in samples]))
    assert all(head.taught for head in hook.heads_taught)
    assert places(hook._asked.model) == {'cuda'}


@pytest.mark.parametrize('amp', [None, 'float16'])
def test_a_run_that_is_resumed(tmp_path, amp):
    """As one that is not, but for what a GPU adds up in another order; the checkpoint holds the
    past self.
    """
    def config(name):
        cfg = runs.config(root, tmp_path / name, length=5, hook=dict(interval=2))
        if amp:
            cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=amp)
        return cfg

    root = runs.data(tmp_path / 'data')
    whole = runs.train(config('whole'))
    first = runs.runner(config('stopped'))
    first.register_hook(runs.InterruptHook(7))
    with pytest.raises(runs.Interruption):
        first.train()
    cfg = config('stopped')
    cfg.resume = True
    resumed = runs.train(cfg)
    assert resumed.iter == whole.iter == 10
    expected, found = runs.weights(whole), runs.weights(resumed)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.device.type == found[key].device.type == 'cuda'
        torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_calibrated_scores(tmp_path):
    """A calibrator maps what is predicted on a GPU, and leaves it there."""
    path = str(tmp_path / 'calibrator.json')
    Calibrator('detection', 'platt', 'iou', list('abcde'), [LogitMap(1.5, -.5)] * 5, [.2] * 5,
               ()).save(path)
    model = detectors.build('retinanet', **{'bbox_head.num_classes': 5}).cuda().eval()
    model.dataset_meta = dict(classes=list('abcde'))
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=.3)
    inputs, samples = detectors.batch()
    inputs = inputs.cuda()
    with torch.no_grad():
        plain = model(inputs, [sample.clone() for sample in samples], mode='predict')
        hook = CalibratedScores(path)
        hook.attach(model)
        mapped = model(inputs, [sample.clone() for sample in samples], mode='predict')
    for before, after in zip(plain, mapped):
        assert after.pred_instances.scores.device.type == 'cuda' and len(before.pred_instances)
        expected = (before.pred_instances.scores.logit() * 1.5 - .5).sigmoid()
        torch.testing.assert_close(after.pred_instances.scores, expected, rtol=1e-4, atol=1e-5)
