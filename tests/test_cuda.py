"""What must be seen on a GPU: that everything is there, in each precision, and that a state comes back to it."""
import io

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.engine.hooks import DistillHook, HeadDistillHook, PSKDHook  # noqa: E402
from mmskd.models.teachers.frozen import named_tensors  # noqa: E402
from tests.support import detectors  # noqa: E402

pytestmark = pytest.mark.cuda

PRECISIONS = [None, torch.float16, torch.bfloat16]


@pytest.fixture
def model():
    return detectors.build('retinanet').cuda()


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


@pytest.mark.parametrize('dtype', PRECISIONS)
def test_projections(model, data, dtype):
    teacher = detectors.build('retinanet')  # on the CPU as it is given
    hook = DistillHook(teacher, [dict(type='mmskd.FeatureDistillLoss'), dict(type='mmskd.ClassDistillLoss')])
    hook.attach(model)
    step(model, data, dtype)
    assert places(hook._asked.model) == {'cuda'} and places(hook.losses) <= {'cuda'}


@pytest.mark.parametrize('dtype', PRECISIONS)
def test_second_stage(model, data, dtype, tmp_path):
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    hook = HeadDistillHook(str(tmp_path / 'trained.pth'))
    hook.attach(model)
    step(model, data, dtype)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.bbox_head.retina_cls.weight.grad.device.type == 'cuda'


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
