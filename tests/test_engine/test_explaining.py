"""One line for an error that has a known cause; tests/test_tools/ has those of whole commands."""
import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

import mmskd.engine.hooks  # noqa: F401  # registers them
from mmskd.engine.explaining import explain


@pytest.mark.parametrize('name, scope, similar', [
    ('PSKDHook', 'mmdet', 'mmskd.PSKDHook'),  # of another scope: with its name
    ('mmskd.PSKDHok', 'mmskd', 'PSKDHook'),
    ('EMAHok', 'mmdet', 'EMAHook')])  # MMEngine's are found from everywhere
def test_a_similar_class_is_offered_as_it_is_to_be_written(name, scope, similar):
    line = explain(KeyError(f"'{name} is not in the {scope}::hook registry. Please check'"))
    assert f'there is no hook {name} in {scope}; did you mean {similar}' in line
    assert explain(KeyError('something else')) is None


@pytest.mark.parametrize('cause, line', [
    (lambda: CheckpointHook(save_best='softmax/error'),
     'default_hooks.checkpoint: save_best: nobody knows whether more or less of softmax/error is '
     "better; set default_hooks.checkpoint.rule to 'greater' or 'less'"),
    (lambda: Runner.register_hook(None, 'mmskd.PSKDHook'),
     "custom_hooks: mmskd.PSKDHook is no hook; write dict(type='mmskd.PSKDHook')"),
    pytest.param(lambda: AmpOptimWrapper(optimizer=None),
                 'optim_wrapper: AmpOptimWrapper needs a GPU; mmskd.CPUAmpOptimWrapper does not, '
                 'and tools/train.py --amp takes whichever fits',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'))])
def test_what_mmengine_refuses_says_what_to_do(cause, line):
    with pytest.raises(Exception) as refusal:
        cause()
    assert explain(refusal.value) == line
