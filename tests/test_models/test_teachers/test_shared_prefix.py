import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmdet.registry import MODELS  # noqa: E402

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.models.teachers.frozen import frozen_copy  # noqa: E402
from mmskd.models.teachers.shared_prefix import SharedPrefix, prefix_of  # noqa: E402
from tests.support import detectors  # noqa: E402


def taught(family='retinanet', precision=None, **options):
    """A model that has moved away from its past self, and the hook."""
    model = detectors.build(family, **options)
    hook = PSKDHook(precision=precision)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.02)
    return model, hook


def calls_of(module):
    seen = []
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    return seen


def gradients(model):
    losses = detectors.losses(model)
    detectors.total(losses).backward()
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_what_is_shared_changes_no_bit(monkeypatch):
    shared = gradients(taught()[0])
    monkeypatch.setattr(SharedPrefix, 'holds', lambda self: False)
    asked = gradients(taught()[0])
    for mine, theirs in zip(shared, asked):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            other = theirs[name]
            pairs = zip(value, other) if isinstance(value, list) else [(value, other)]
            assert all(a is b is None or torch.equal(a, b) for a, b in pairs), name


def test_the_past_self_goes_on_from_what_the_student_has_computed():
    model, hook = taught()
    stem, first = calls_of(hook.teacher.backbone.conv1), calls_of(hook.teacher.backbone.layer1)
    own = calls_of(model.backbone.layer1)
    detectors.losses(model)
    assert stem[0].shape[1] == 3  # the images, as they are
    assert torch.equal(first[0], own[0])


@pytest.mark.parametrize('precision', [None, 'bfloat16'])
def test_the_past_self_computes_by_itself_what_learns(precision):
    model, hook = taught(precision=precision)
    detectors.losses(model)
    model.backbone.conv1.weight.requires_grad_(True)
    assert not hook._mirror._shared.holds()
    stem = calls_of(hook._asked.model.backbone.conv1)
    detectors.losses(model)
    assert stem[0].shape[1] == 64


def test_weights_that_were_changed_are_not_shared():
    model, hook = taught()
    prefix = hook._mirror._shared
    assert prefix.holds()
    with torch.no_grad():
        model.backbone.layer1[0].conv1.weight.mul_(2)
    assert not prefix.holds()
    hook.refresh_teacher()
    assert prefix.holds()


def test_statistics_of_the_batch_are_not_shared():
    model, hook = taught()
    model.backbone.bn1.train()
    assert not hook._mirror._shared.holds()


def test_a_backbone_that_learns_from_its_input_on_shares_nothing():
    model, hook = taught(**{'backbone.frozen_stages': -1})
    assert hook._mirror._shared is None
    detectors.losses(model)


@pytest.mark.parametrize('options,names', [
    ({}, ['conv1', 'bn1', 'relu', 'maxpool', 'layer1']),
    ({'backbone.frozen_stages': 0}, ['conv1', 'bn1', 'relu', 'maxpool']),
    ({'backbone.type': 'ResNetV1d'}, ['stem', 'maxpool', 'layer1']),
])
def test_what_a_resnet_shares(options, names):
    assert prefix_of(detectors.build('retinanet', **options).backbone) == names


@pytest.mark.parametrize('kind', ['ResNet', 'mmskd.EfficientNetLite'])
@pytest.mark.parametrize('frozen,out_indices', [
    (2, (0, 1, 2, 3)), (4, (1, 2)), (3, (3, )), (0, (0, 3))])
def test_what_a_backbone_returns_is_its_own_however_many_stages_are_frozen(
        kind, frozen, out_indices):
    if 'Lite' in kind:
        pytest.importorskip('timm')
    options = dict(depth=18, base_channels=4) if kind == 'ResNet' else {}
    model = nn.Module()
    model.backbone = MODELS.build(
        dict(type=kind, frozen_stages=frozen, out_indices=out_indices, **options))
    model.train()
    teacher, seen = frozen_copy(model), []
    prefix = SharedPrefix(model, teacher, teacher)
    prefix.listen(seen.append)
    image = torch.rand(1, 3, 64, 64)
    expected = teacher.backbone(image)
    assert prefix.holds() and not seen
    model.backbone(image)
    with prefix.given(seen[0]):
        answer = teacher.backbone(torch.full_like(image, float('nan')))
    assert len(answer) == len(out_indices) and all(map(torch.equal, answer, expected))


def test_a_forward_of_ones_own_is_not_known():
    model = detectors.build('retinanet')

    class Other(type(model.backbone)):

        def forward(self, x):
            return super().forward(x.flip(-1))

    model.backbone.__class__ = Other
    assert prefix_of(model.backbone) == []


def test_efficientnet_lite_shares_its_frozen_stages(monkeypatch):
    pytest.importorskip('timm')
    backbone = dict(_delete_=True, type='mmskd.EfficientNetLite', out_indices=(1, 2, 3, 4),
                    frozen_stages=2)
    options = {'backbone': backbone, 'neck.in_channels': [24, 40, 112, 320]}
    model, hook = taught(**options)
    blocks = calls_of(hook.teacher.backbone.features.blocks[0])
    shared = gradients(model)[1]
    assert blocks[0].shape[1] == 3
    monkeypatch.setattr(SharedPrefix, 'holds', lambda self: False)
    asked = gradients(taught(**options)[0])[1]
    assert all(shared[name] is asked[name] is None or torch.equal(shared[name], asked[name])
               for name in shared)


def test_a_backbone_whose_forward_was_replaced_shares_nothing():
    """MMEngine's efficient_conv_bn_eval traces it: its stages are not called as modules."""
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
    model = detectors.build('retinanet')
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    for precision in (None, 'auto'):
        hook = PSKDHook(precision=precision)
        hook.attach(model)
        hook.refresh_teacher()
        hook.alpha_t = 0.5
        detectors.losses(model)
        assert hook.disagreement < 1e-5
        hook.detach()
