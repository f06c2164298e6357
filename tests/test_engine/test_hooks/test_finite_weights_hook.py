import pytest
import torch
from mmengine.hooks import Hook

from mmskd.engine.hooks import FiniteWeightsHook
from mmskd.errors import RunStopped, UsageError
from mmskd.models.finite import all_finite, first_not_finite
from tests.support.tiny_runs import TinyModel, tiny_runner


class Poison(Hook):
    """Puts a NaN into the gradients of an iteration."""

    def __init__(self, iteration, layer='layers.2.bias'):
        self.iteration, self.layer = iteration, layer

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            runner.model.get_parameter(self.layer).register_hook(lambda grad: grad * float('nan'))


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_stops_with_iteration_layer_and_the_last_good_checkpoint(tmp_path, loop):
    name = 'epoch_2.pth' if loop == 'epoch' else 'iter_4.pth'
    runner = tiny_runner(tmp_path, loop, max_keep_ckpts=1,
                         custom_hooks=[FiniteWeightsHook(), Poison(5)])
    with pytest.raises(RunStopped) as error:
        runner.train()
    line = str(error.value)
    assert line.startswith(
        f'iteration 6 (epoch {3 if loop == "epoch" else 1}) has made NaN or infinity of '
        'the weights, first in layers.2.bias; the last good checkpoint is ')
    assert f'{tmp_path / name}. Lower the learning rate' in line
    assert [path.name for path in tmp_path.glob('*.pth')] == [name], 'nothing is saved over it'


def test_without_it_the_run_goes_on(tmp_path):
    runner = tiny_runner(tmp_path, custom_hooks=[Poison(5)])
    runner.train()
    assert first_not_finite(runner.model)


def test_weights_to_begin_with(tmp_path):
    runner = tiny_runner(tmp_path, custom_hooks=[FiniteWeightsHook()])
    runner.model.layers[1].running_var[0] = float('inf')
    with pytest.raises(UsageError, match='to begin with are not finite: layers.1.running_var'):
        runner.train()


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(RunStopped, match='iteration 1 .* no checkpoint was saved so far'):
        tiny_runner(tmp_path, custom_hooks=[FiniteWeightsHook(), Poison(0)]).train()


def test_what_counts_as_finite():
    model = TinyModel()
    assert first_not_finite(model) is None
    model.register_buffer('mask', torch.full((2, ), -float('inf')), persistent=False)
    assert first_not_finite(model) is None, 'a mask'
    model.layers[0].weight.data[1, 1] = float('nan')
    assert first_not_finite(model) == 'layers.0.weight'
    assert all_finite([]) and all_finite([torch.tensor([3]), torch.zeros(0)])
    assert not all_finite([torch.zeros(3), torch.tensor([1., float('-inf')])])
