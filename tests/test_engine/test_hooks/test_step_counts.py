"""What a step with a past self does more than a stock one, counted: no times, which depend on the
machine.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip('mmdet')

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.models import pairing  # noqa: E402
from tests.support import detectors  # noqa: E402

WAITS = ('_local_scalar_dense', 'nonzero', 'equal', 'is_nonzero', 'masked_select')
"""Operators after which the CPU would wait for a GPU."""


class HostSyncs(TorchDispatchMode):
    """Counts them; indexing by a mask is one too."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith('index') and name != 'index_select' and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1])
        self.count += by_mask or name in WAITS
        return func(*args, **(kwargs or {}))


def counts(model, monkeypatch):
    """Of one forward and backward."""
    found = dict(assigned=0, pairs=0)
    assigner, wrap = model.bbox_head.assigner, pairing._wrap
    assign = assigner.assign

    def counting(key, function):
        def call(*args, **kwargs):
            found[key] += 1
            return function(*args, **kwargs)
        return call

    with monkeypatch.context() as patch, HostSyncs() as syncs:
        patch.setattr(assigner, 'assign', counting('assigned', assign))
        patch.setattr(pairing, '_wrap', counting('pairs', wrap))
        detectors.total(detectors.losses(model)).backward()
    return dict(found, syncs=syncs.count)


def test_a_step_adds_one_pass_of_the_teacher_and_nothing_that_waits(monkeypatch):
    model = detectors.build('retinanet')
    stock = counts(model, monkeypatch)
    assert stock['assigned'] == 2 and not stock['pairs'] and stock['syncs'] > 0
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t, hook.measures = 0.5, False
    detectors.losses(model)  # the first pass looks on which norm layers may be folded
    calls = []
    asked = hook._asked.model
    for name in ('backbone', 'neck', 'bbox_head', 'bbox_head.cls_convs.0.conv'):
        asked.get_submodule(name).register_forward_hook(lambda *args, name=name: calls.append(name))
    taught = counts(model, monkeypatch)
    assert {name: calls.count(name) for name in calls} == {
        'backbone': 1, 'neck': 1, 'bbox_head': 1, 'bbox_head.cls_convs.0.conv': 5}
    assert not list(asked.bbox_head.reg_convs.parameters()), 'its boxes are compared with nothing'
    assert taught['assigned'] == stock['assigned']
    assert taught['syncs'] <= stock[
        'syncs'], 'the stock focal loss waits at each level, the soft one does not'
    # 4 maps of the backbone, 5 of the neck; 5 of scores, which are permuted and reshaped, and are
    # then put together and taken apart again as the loss has it
    assert taught['pairs'] <= 4 + 5 + 5 * 4, taught
    assert hook.disagreement == 0, 'measuring it is left to the steps that are logged'
