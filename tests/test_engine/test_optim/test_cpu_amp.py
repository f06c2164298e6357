"""Mixed precision without a GPU: convolutions in bfloat16, boxes and losses in float32."""
import copy
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmengine.registry import OPTIM_WRAPPERS  # noqa: E402

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.engine.optim import CPUAmpOptimWrapper  # noqa: E402
from tests.support import detectors  # noqa: E402


@pytest.fixture(scope='module')
def stock():
    return detectors.build('retinanet')


@pytest.fixture
def model(stock):
    return copy.deepcopy(stock)


def wrapper_of(model, **options):
    return OPTIM_WRAPPERS.build(
        dict(type='mmskd.CPUAmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), 1e-3),
             **options))


def test_what_runs_in_which_precision(model):
    wrapper = wrapper_of(model)
    assert isinstance(wrapper, CPUAmpOptimWrapper)
    seen = {}
    for name in ('backbone.conv1', 'neck.fpn_convs.0.conv', 'bbox_head.reg_convs.0.conv',
                 'bbox_head.retina_cls', 'bbox_head.retina_reg'):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.dtype}))
    with wrapper.optim_context(model):
        losses = detectors.losses(model)
    assert list(seen.values()) == [torch.bfloat16] * 4 + [torch.float32]
    assert {loss.dtype for loss in losses['loss_cls'] + losses['loss_bbox']} == {torch.float32}
    assert not [name for name, module in model.named_modules() if 'forward' in vars(module)]
    detectors.losses(model)
    assert seen['backbone.conv1'] == torch.float32, 'outside of a step nothing changes'


def test_a_step_is_close_to_one_in_float32_and_keeps_float32_weights(model):
    before = detectors.total(detectors.losses(model)).item()
    wrapper = wrapper_of(model, accumulative_counts=2, clip_grad=dict(max_norm=1))
    before_step = model.backbone.layer4[0].conv1.weight.detach().clone()
    for step in range(2):
        with wrapper.optim_context(model):
            loss = detectors.total(detectors.losses(model))
        assert loss.item() == pytest.approx(before, rel=0.02)
        wrapper.update_params(loss)
        same = torch.equal(model.backbone.layer4[0].conv1.weight, before_step)
        assert same == (step == 0), 'gradients are accumulated'
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 'loss_scaler' not in wrapper.state_dict()


BOX_LAYERS = {
    'fcos': ('conv_reg', 'conv_centerness'), 'atss': ('atss_reg', 'atss_centerness'),
    'gfl': ('gfl_reg', ), 'rtmdet': ('rtm_reg', ),
    'yolox': ('multi_level_conv_reg', 'multi_level_conv_obj'), 'vfnet': (), 'tood': (), 'ssd': (),
    'faster_rcnn': (), 'detr': ()
}
DCN = {'backbone.depth': 50, 'neck.in_channels': [256, 512, 1024, 2048],
       'backbone.dcn': dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
       'backbone.stage_with_dcn': (False, False, False, True)}


@pytest.mark.parametrize('name', BOX_LAYERS)
def test_boxes_of_known_heads_are_predicted_in_float32(name):
    model = detectors.build(name)
    seen = {}

    def look(module, args, output, name):
        seen[name] = output.dtype

    head = model.get_submodule('bbox_head' if hasattr(model, 'bbox_head') else 'roi_head')
    layers = {layer for name in BOX_LAYERS[name] for layer in head.get_submodule(name).modules()}
    for part, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(partial(look, name=part))
    stock = detectors.total(detectors.losses(model)).item()
    with wrapper_of(model).optim_context(model):
        loss = detectors.total(detectors.losses(model))
    loss.backward()
    assert loss.item() == pytest.approx(stock, rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for part, dtype in seen.items():
        plain = not layers or head.get_submodule(part) in layers
        assert dtype == (torch.float32 if plain else torch.bfloat16), part


@pytest.mark.parametrize('name, options', [
    ('fcos', {'bbox_head.dcn_on_last_conv': True}), ('retinanet', DCN)])
def test_operators_of_mmcv_run_in_float32(name, options):
    model = detectors.build(name, **options)
    stock = detectors.total(detectors.losses(model)).item()
    with wrapper_of(model).optim_context(model):
        loss = detectors.total(detectors.losses(model))
    loss.backward()
    assert loss.item() == pytest.approx(stock, rel=0.05)


def test_weight_zero_is_stock_and_an_unchanged_past_self_agrees(model):
    """With ``precision=None`` the past self says in bfloat16 exactly what the student says in it.
    """
    wrapper = wrapper_of(model)
    with wrapper.optim_context(model):
        stock = detectors.total(detectors.losses(model))
    hook = PSKDHook(precision=None)
    hook.attach(model)
    hook.refresh_teacher()
    with wrapper.optim_context(model):
        assert torch.equal(detectors.total(detectors.losses(model)), stock)
    assert hook.disagreement == 0


def test_maps_narrower_than_a_stride_have_whole_gradients():
    """torch's CPU kernels leave parts of them unwritten in bfloat16: an FPN's extra levels on small
    images.
    """
    model = nn.Module()
    model.backbone = nn.Conv2d(32, 32, 3, stride=2, padding=1)
    image = torch.randn(2, 32, 1, 1)
    for _ in range(4):
        garbage = [torch.full((32 * 32 * 9, ), 1e30) for _ in range(8)]
        del garbage
        with wrapper_of(model).optim_context(model):
            model.backbone(image).square().sum().backward()
        grad, model.backbone.weight.grad = model.backbone.weight.grad, None
        outside = grad.clone()
        outside[:, :, 1, 1] = 0
        assert not outside.any() and grad[:, :, 1, 1].abs().max() < 1e3


def test_what_it_cannot_do_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='Linear has none; use OptimWrapper'):
        with wrapper_of(model).optim_context(model):
            pass
    model = nn.Linear(2, 2, device='meta')
    with pytest.raises(ValueError, match='the model is on meta; use AmpOptimWrapper'):
        with wrapper_of(model).optim_context(model):
            pass
