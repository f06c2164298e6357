"""PS-KD on every detector family it promises, with the real mmdet models and losses."""
import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.models.teachers.past_self import named_tensors  # noqa: E402
from tests.support.detectors import FAMILIES, build, losses, total  # noqa: E402

families = pytest.mark.parametrize('family', FAMILIES)

# Calls of a classification loss in one step: levels, cascade stages, or decoder layers (DINO:
# matching and denoising queries of two layers, and the encoder's proposals).
LOSS_CALLS = {
    'retinanet': 5, 'fcos': 1, 'atss': 5, 'gfl': 5, 'tood': 5, 'vfnet': 1, 'rtmdet': 3, 'yolox': 1,
    'ssd': 2, 'faster_rcnn': 1, 'cascade_rcnn': 3, 'mask_rcnn': 1, 'detr': 2, 'deformable_detr': 2,
    'dino': 5
}


def attached(model: nn.Module, alpha_t: float, **options) -> PSKDHook:
    hook = PSKDHook(**{'precision': None, **options})  # exactly
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = alpha_t
    return hook


def gradients(model: nn.Module) -> dict:
    return {name: param.grad.clone() for name, param in model.named_parameters()
            if param.grad is not None}


def backward(model: nn.Module, part: str = 'loss', **options) -> dict:
    """Gradients of the losses (of a part of them) by parameter name."""
    model.zero_grad()
    total(losses(model, **options), part).backward()
    return gradients(model)


def use_batch_statistics(model: nn.Module, batch_statistics: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_statistics)
        elif isinstance(module, nn.Dropout):
            module.p = 0.
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.


class ClassLogits:
    """Keeps the class scores of all heads of one forward pass, to read their gradients."""

    def __init__(self, model: nn.Module):
        self.scores = []
        modules = dict(model.named_modules())
        heads = [module for name, module in modules.items() if name == 'bbox_head'
                 or name == 'roi_head.bbox_head' or name.startswith('roi_head.bbox_head.')]
        heads = [
            head for head in heads if hasattr(head, 'loss_cls') or hasattr(head, 'loss_by_feat')
        ]
        if getattr(model, 'as_two_stage', False):
            heads.append(model.bbox_head.cls_branches[model.decoder.num_layers])
        self.handles = [head.register_forward_hook(self._keep) for head in heads]

    def _keep(self, module, args, output):
        scores = output if isinstance(output, torch.Tensor) else output[0]
        for score in scores if isinstance(scores, (list, tuple)) else [scores]:
            score.retain_grad()
            self.scores.append(score)

    def gradients(self) -> list:
        return [score.grad for score in self.scores if score.grad is not None]


def snapshot(model: nn.Module) -> dict:
    """All that attach could leave behind: classes, attributes and hooks of each module."""
    return {
        name: (type(module), sorted(vars(module)), len(module._forward_hooks),
               len(module._forward_pre_hooks), list(module._modules))
        for name, module in model.named_modules()
    }


@families
def test_alpha_zero_is_the_stock_loss_bit_for_bit(family):
    model = build(family)
    stock_losses = losses(model)
    stock = backward(model)
    hook = attached(model, alpha_t=0.)

    pskd_losses = losses(model)
    pskd = backward(model)

    assert stock_losses.keys() == pskd_losses.keys()
    for key, value in stock_losses.items():
        assert torch.equal(torch.stack([*value]) if isinstance(value, list) else value,
                           torch.stack([*pskd_losses[key]]) if isinstance(value, list)
                           else pskd_losses[key])
    assert stock.keys() == pskd.keys()
    assert all(torch.equal(stock[name], pskd[name]) for name in stock)
    seen = [(head.calls, head.paired) for head in hook.heads_taught]
    assert sum(calls for calls, _ in seen) == sum(paired for _, paired in seen) \
        == LOSS_CALLS[family]


@families
@pytest.mark.parametrize('batch_statistics', [False, True], ids=['running', 'batch'])
def test_no_gradient_where_present_and_past_self_agree(family, batch_statistics):
    model = build(family)
    use_batch_statistics(model, batch_statistics)
    hook = attached(model, alpha_t=1.)
    logits = ClassLogits(model)
    buffers = {name: value.clone() for name, value in hook.teacher.named_buffers()}

    total(losses(model), 'loss_cls').backward()

    gradient = torch.cat([grad.flatten() for grad in logits.gradients()])
    assert len(gradient) and gradient.abs().max() < 1e-7
    assert hook.disagreement == pytest.approx(0, abs=1e-7)
    assert all(torch.equal(buffers[name], value)
               for name, value in hook.teacher.named_buffers())


@families
def test_gradient_where_they_disagree(family):
    """What makes the test above mean something."""
    model = build(family)
    use_batch_statistics(model, True)
    hook = attached(model, alpha_t=1.)
    with torch.no_grad():
        for parameter in hook.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    logits = ClassLogits(model)

    total(losses(model), 'loss_cls').backward()

    assert max(grad.abs().max() for grad in logits.gradients()) > 1e-5
    assert hook.disagreement > 1e-5


@families
def test_attach_and_detach_leave_no_trace(family):
    model = build(family)
    losses(model)  # some heads remember things from their first pass on
    before, keys = snapshot(model), list(model.state_dict())
    use_batch_statistics(model, False)
    weights = {name: value.clone() for name, value in named_tensors(model)}

    hook = attached(model, alpha_t=.5)
    assert list(model.state_dict()) == keys
    assert snapshot(model) != before
    losses(model)
    hook.detach()

    assert snapshot(model) == before
    assert list(model.state_dict()) == keys
    assert all(torch.equal(weights[name], value) for name, value in named_tensors(model))
    assert hook.teacher is None


@families
def test_a_copy_of_an_attached_model_is_a_model_without_a_teacher(family):
    model = build(family)
    use_batch_statistics(model, False)
    stock = total(losses(model))
    hook = attached(model, alpha_t=1.)
    losses(model)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(total(losses(twin)), stock)
        assert list(twin.state_dict()) == list(model.state_dict())
    assert hook.teacher is not None and losses(model)


def test_tood_is_taught_in_both_phases_of_its_assignment():
    """TOOD has one class loss for its first epochs and another for the rest."""
    model = build('tood')
    use_batch_statistics(model, False)
    hook = attached(model, alpha_t=1.)
    for epoch in (0, 10):
        logits = ClassLogits(model)
        total(losses(model, epoch=epoch), 'loss_cls').backward()
        assert max(grad.abs().max() for grad in logits.gradients()) < 1e-7
        assert hook.heads_taught[0].paired == 5
    assert {type(loss).__name__ for loss in hook.heads_taught[0].losses.values()} == \
        {'PSKDFocalLoss', 'PSKDQualityFocalLoss'}


# forms, and whose targets
# --------------------------------------------------------------------------


@pytest.mark.parametrize('family', ['retinanet', 'gfl', 'vfnet', 'faster_rcnn', 'yolox'])
def test_detectors_are_rescaled_where_no_form_is_named(family):
    model, found = build(family), {}
    for form in (None, 'paper', 'rescaled'):
        hook = attached(model, alpha_t=.7, form=form)
        with torch.no_grad():
            for parameter in hook.teacher.parameters():
                parameter.mul_(0.9)
        torch.manual_seed(0)
        found[form] = total(losses(model), 'loss_cls').item()
        hook.detach()
    assert found[None] == found['rescaled'] != found['paper']


@pytest.mark.parametrize('family,form', [('retinanet', 'rescaled'), ('gfl', 'kl'),
                                         ('faster_rcnn', 'kl')])
def test_no_gradient_where_both_agree_in_other_forms(family, form):
    model = build(family)
    hook = attached(model, alpha_t=1., form=form)
    logits = ClassLogits(model)
    total(losses(model), 'loss_cls').backward()
    assert torch.cat([grad.flatten() for grad in logits.gradients()]).abs().max() < 1e-7
    hook.detach()
    assert not any({'form', 'about', 'alpha_t'} & vars(module).keys() for module in model.modules())


@pytest.mark.parametrize('family', ['retinanet', 'vfnet', 'faster_rcnn', 'ssd'])
def test_the_fewer_are_softened_the_smaller_is_what_is_added(family):
    found, model = {}, build(family)
    for about, alpha_t in (('all', 0.), ('positives', 1.), ('confidence', 1.), ('all', 1.)):
        hook = attached(model, alpha_t=alpha_t, form='added', about=about)
        with torch.no_grad():
            for parameter in hook.teacher.parameters():
                parameter.mul_(0.9)
        found[about, alpha_t] = total(losses(model), 'loss_cls').item()
        hook.detach()
    assert found['all', 0.] < found['positives', 1.] <= found['all', 1.]
    assert found['all', 0.] < found['confidence', 1.] < found['all', 1.]
