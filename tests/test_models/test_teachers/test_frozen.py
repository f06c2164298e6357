"""Copying and freezing any model, and seeing a batch as the original does."""
import pytest
import torch
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from mmskd.models.teachers.frozen import (
    FixedModes,
    FollowedModes,
    device_of,
    freeze,
    frozen_copy,
    is_random,
)


class Keeps(nn.Sequential):
    """Keeps a tensor of its last forward pass on itself, as CondInst's and YOLACT's heads do."""

    def forward(self, x):
        out = super().forward(x)
        self.last = dict(maps=[out])
        return out

    def eval(self):  # as of LD's and LAD's detectors
        super().eval()


def test_tensors_of_an_earlier_pass_do_not_prevent_a_copy():
    model = Keeps(nn.Linear(2, 2))
    model(torch.ones(1, 2))
    copied = frozen_copy(model)
    assert torch.equal(copied.last['maps'][0], model.last['maps'][0])
    assert not copied.last['maps'][0].requires_grad and model.last['maps'][0].requires_grad
    assert freeze(model) is model and not model.training and not model[0].weight.requires_grad


def test_a_copy_runs_its_own_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    turn_on_activation_checkpointing(model, ['0'])
    copied = frozen_copy(model)
    with torch.no_grad():
        copied[0].weight.zero_(), copied[0].bias.zero_()
    assert copied(torch.ones(1, 2)).abs().sum() == 0 and 'forward' in vars(model[0])


def test_a_module_that_chooses_its_forward_keeps_it():
    """As timm's FasterNet and MMPose's RepVGG do."""
    class Chooses(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.forward = self.twice

        def twice(self, x):
            return 2 * nn.Linear.forward(self, x)

    model, x = nn.Sequential(Chooses()), torch.ones(1, 2)
    copied = frozen_copy(model)
    assert torch.equal(copied(x), model(x))
    with torch.no_grad():
        copied[0].weight.zero_(), copied[0].bias.zero_()
    assert copied(x).abs().sum() == 0 and model(x).abs().sum() > 0


def test_modes_are_followed_but_for_what_is_random():
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if self.training else x

    def build():
        return nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), Branches(),
                             nn.MultiheadAttention(4, 2))

    original, copied = build().train(), build()
    modes = FollowedModes(original, freeze(copied))
    before = copied[0].running_mean.clone()
    modes.apply()
    assert [module.training for module in copied] == [True, False, True, False]
    copied[0](torch.randn(4, 3))
    assert torch.equal(copied[0].running_mean, before)
    original[0].eval()
    modes.apply()
    assert not copied[0].training


def test_a_fixed_teacher_answers_in_the_students_form_with_its_own_statistics():
    teacher = freeze(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.ReLU()))
    FixedModes(teacher).apply(True)
    assert [module.training for module in (teacher, *teacher)] == [False, False, False, True]


def test_drop_path_is_random():
    mmcv = pytest.importorskip('mmcv.cnn.bricks')
    assert is_random(mmcv.DropPath(0.1)) and is_random(
        nn.Dropout2d()) and not is_random(nn.Linear(1, 1))


def test_a_teacher_of_torchvision_does_not_drop_paths():
    from torchvision.ops import StochasticDepth
    for kind in (lambda: StochasticDepth(0.5, 'row'), nn.RReLU):
        student, teacher = nn.Sequential(kind()).train(), freeze(nn.Sequential(kind()))
        alone = teacher(-torch.ones(64, 1))
        FixedModes(teacher).apply(True)
        assert torch.equal(teacher(-torch.ones(64, 1)), alone)
        FollowedModes(student, teacher).apply()
        assert torch.equal(teacher(-torch.ones(64, 1)), alone)


def test_the_device_of_a_model_without_parameters():
    assert device_of(nn.ReLU()) == torch.device('cpu')
