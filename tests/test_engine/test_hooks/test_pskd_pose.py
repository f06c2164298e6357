"""PS-KD on the heads of MMPose, with the real models and losses."""
import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip('mmpose')

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.models.teachers.past_self import named_tensors  # noqa: E402
from tests.support import pose_runs, poses, runs  # noqa: E402

families = pytest.mark.parametrize('family', poses.FAMILIES)

# Calls of the loss in one step: stages times units
LOSS_CALLS = {'mspn': 8, 'cpm': 2}


def attached(model: nn.Module, alpha_t: float, **options) -> PSKDHook:
    hook = PSKDHook(**{'precision': None, **options})  # exactly
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = alpha_t
    return hook


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.
        elif hasattr(module, 'drop_prob'):
            module.drop_prob = 0.
    return model


def backward(model: nn.Module) -> dict:
    model.zero_grad()
    poses.total(poses.losses(model)).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters()
            if param.grad is not None}


@pytest.mark.parametrize('family, usual', [('rtmpose', 'rescaled'), ('heatmap', 'paper')])
def test_the_form_where_none_is_named(family, usual):
    hook = attached(poses.build(family), 0.5)
    assert [loss.form for head in hook.heads_taught for loss in head.losses.values()] == [usual]


class Outputs:
    """Keeps what the head gives to its loss, to read the gradients."""

    def __init__(self, hook: PSKDHook):
        self.tensors = []
        for head in hook.heads_taught:
            for loss in head.losses.values():
                loss.register_forward_pre_hook(self._keep)

    def _keep(self, module, args):
        for pred in args[0] if isinstance(args[0], tuple) else [args[0]]:
            pred.student.retain_grad()
            self.tensors.append(pred.student)


def snapshot(model: nn.Module) -> dict:
    return {name: (type(module), sorted(vars(module)), len(module._forward_hooks),
                   len(module._forward_pre_hooks), list(module._modules))
            for name, module in model.named_modules()}


@families
def test_stock_loss_at_alpha_zero_and_no_gradient_where_both_agree(family):
    model = without_dropout(poses.build(family))
    stock_losses, stock = poses.losses(model), backward(model)
    hook = attached(model, alpha_t=0.)
    pskd_losses, pskd = poses.losses(model), backward(model)

    assert stock_losses.keys() == pskd_losses.keys()
    assert all(torch.equal(stock_losses[key], pskd_losses[key]) for key in stock_losses)
    assert stock.keys() == pskd.keys()
    assert all(torch.equal(stock[name], pskd[name]) for name in stock)
    seen = [(head.calls, head.paired) for head in hook.heads_taught]
    assert sum(calls for calls, _ in seen) == sum(paired for _, paired in seen) == LOSS_CALLS.get(
        family, 1)

    # Batch statistics in both, running statistics that do not move
    hook.alpha_t = 1.
    buffers = {name: value.clone() for name, value in hook.teacher.named_buffers()}
    outputs = Outputs(hook)
    loss = poses.total(poses.losses(model))
    loss.backward()
    assert max(tensor.grad.abs().max() for tensor in outputs.tensors) < 1e-7
    assert hook.disagreement == pytest.approx(0, abs=1e-7)
    assert abs(loss.item()) < (1e-7 if family in poses.KL else 1e-12)
    assert all(torch.equal(buffers[name], value) for name, value in hook.teacher.named_buffers())


@pytest.mark.parametrize('family', ['rtmpose', 'heatmap', 'mspn'])
def test_gradient_where_they_disagree(family):
    """What makes the test above mean something."""
    model = without_dropout(poses.build(family))
    hook = attached(model, alpha_t=1.)
    with torch.no_grad():
        for parameter in hook.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    outputs = Outputs(hook)
    poses.total(poses.losses(model)).backward()
    assert max(tensor.grad.abs().max() for tensor in outputs.tensors) > 1e-6
    assert hook.disagreement > 1e-5


@families
def test_attach_and_detach_leave_no_trace(family):
    model = poses.build(family).eval()
    poses.losses(model)
    before, keys = snapshot(model), list(model.state_dict())
    weights = {name: value.clone() for name, value in named_tensors(model)}

    hook = attached(model, alpha_t=.5)
    assert list(model.state_dict()) == keys and snapshot(model) != before
    stock = poses.total(poses.losses(copy.deepcopy(model)))
    assert torch.equal(poses.total(poses.losses(pickle.loads(pickle.dumps(model)))), stock)
    poses.losses(model)
    hook.detach()

    assert snapshot(model) == before and list(model.state_dict()) == keys
    assert all(torch.equal(weights[name], value) for name, value in named_tensors(model))
    assert torch.equal(poses.total(poses.losses(model)), stock)


BODY = 'mmpose::body_2d_keypoint'


@pytest.mark.parametrize(
    'config,head,reason',
    [('topdown_regression/coco/td-reg_res50_rle-8xb64-210e_coco-256x192.py', 'RLEHead',
      'coordinates'),
     ('topdown_regression/coco/td-reg_res50_8xb64-210e_coco-256x192.py', 'RegressionHead',
      'coordinates'),
     ('integral_regression/coco/ipr_res50_8xb64-210e_coco-256x256.py',
      'DSNTHead|IntegralRegressionHead', 'coordinates'),
     ('integral_regression/coco/ipr_res50_dsnt-8xb64-210e_coco-256x256.py', 'DSNTHead',
      'DistillHook teaches'),
     ('rtmo/body7/rtmo-s_8xb32-600e_body7-640x640.py', 'RTMOHead', 'DistillHook teaches its bins'),
     ('yoloxpose/coco/yoloxpose_tiny_4xb64-300e_coco-416.py', 'YOLOXPoseHead', 'one stage'),
     ('dekr/coco/dekr_hrnet-w32_8xb10-140e_coco-512x512.py', 'DEKRHead', 'one stage'),
     ('topdown_heatmap/coco/td-hm_hrnet-w32_udp-regress-8xb64-210e_coco-256x192.py', 'HeatmapHead',
      'CombinedTargetMSELoss, has no soft-target form.*gaussian'), ])
def test_what_has_no_distribution_is_refused_by_name(config, head, reason):
    model = poses.build(f'{BODY}/{config}')
    before = snapshot(model)
    with pytest.raises(ValueError, match=fr'model\.head \({head}\).*{reason}'):
        PSKDHook().attach(model)
    assert snapshot(model) == before


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return pose_runs.data(tmp_path_factory.mktemp('figures') / 'data')


@pytest.mark.parametrize('kind', ['simcc', 'heatmap'])
def test_trains_resumes_and_saves_a_stock_checkpoint(data_root, tmp_path, kind):
    hook = dict(type='mmskd.PSKDHook', alpha_T=0.8)
    whole = runs.train(pose_runs.config(data_root, tmp_path / 'whole', [hook], kind, ema=True))
    cfg = pose_runs.config(data_root, tmp_path / 'resumed', [hook], kind, ema=True)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))

    stock = runs.train(pose_runs.config(data_root, tmp_path / 'stock', [], kind, ema=True))
    saved = load_checkpoint_safely(str(tmp_path / 'whole' / 'epoch_4.pth'))
    assert saved['state_dict'].keys() == stock.model.state_dict().keys()
    assert any(not torch.equal(value, stock.model.state_dict()[name])
               for name, value in whole.model.state_dict().items()), 'nothing was softened'


def test_a_past_self_in_half_precision():
    """MMEngine's AmpOptimWrapper wants a GPU; what it does is autocast."""
    # numpy has no bfloat16, so the stock heads cannot measure their accuracy in it
    model = poses.build('heatmap', train_cfg=dict(compute_acc=False))
    hook = attached(model, alpha_t=0.5, precision='bfloat16')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = poses.total(poses.losses(model))
    loss.backward()
    assert loss.isfinite() and hook.disagreement < 0.01
    assert all(param.grad.isfinite().all()
               for param in model.parameters()
               if param.grad is not None)
