import copy

import pytest
import torch
from torch import nn

from mmskd.models.teachers import PastSelf


class Net(nn.Module):
    """Norms that learn, norms that are frozen, dropout."""

    def __init__(self):
        super().__init__()
        self.learning = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.frozen = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4).eval())
        self.rest = nn.Sequential(nn.Dropout(0.5), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
        self.register_buffer('scale', torch.ones(1), persistent=False)

    def forward(self, x):
        return self.rest(self.frozen(self.learning(x))) * self.scale


@pytest.fixture
def student():
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return net


@pytest.fixture
def images():
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_sees_the_batch_as_the_student_does(student, images):
    past = PastSelf(student)
    past.follow_modes()
    student.rest[0].p = 0.  # the past self has no dropout
    buffers = copy.deepcopy(dict(past.model.named_buffers()))
    assert torch.equal(past.model(images), student(images))
    assert all(torch.equal(value, buffers[name]) for name, value in past.model.named_buffers())

    student.eval()
    past.refresh()  # the student's running statistics have moved meanwhile
    past.follow_modes()
    assert torch.equal(past.model(images), student(images))


def test_refresh_copies_what_the_student_is_now_and_nothing_later(student):
    past = PastSelf(student)
    with torch.no_grad():
        student.learning[0].weight.add_(1)
        student.learning[1].running_mean.add_(1)
        student.scale.add_(1)
    past.refresh()
    expected = copy.deepcopy(past.state_dict())
    for name, tensor in past.state_dict().items():
        assert torch.equal(tensor,
                           dict([*student.named_parameters(), *student.named_buffers()])[name])
    with torch.no_grad():
        student.learning[0].weight.add_(1)
    assert all(torch.equal(value, expected[name]) for name, value in past.state_dict().items())


def test_is_no_part_of_the_student_and_takes_no_gradient(student):
    keys = list(student.state_dict())
    past = PastSelf(student)
    assert list(student.state_dict()) == keys
    assert not any(parameter.requires_grad for parameter in past.model.parameters())
    assert not {id(p) for p in student.parameters()} & {id(p) for p in past.model.parameters()}


def test_state_goes_round(student):
    past, other = PastSelf(student), PastSelf(Net())
    other.load_state_dict(past.state_dict())
    assert all(torch.equal(value, other.state_dict()[name])
               for name, value in past.state_dict().items())
    with pytest.raises(ValueError, match='scale'):
        other.load_state_dict({k: v for k, v in past.state_dict().items() if k != 'scale'})


def test_a_forward_patched_on_the_student_is_not_called(student, images):
    """Activation checkpointing replaces ``forward`` on the instance by a closure over the student.
    """
    calls = []
    stock = student.frozen.forward
    student.frozen.forward = lambda x: calls.append(1) or stock(x)
    past = PastSelf(student)
    past.model(images)
    assert not calls


def test_synchronised_batch_norm_is_followed_too():
    """SyncBN needs a GPU to run; its modes do not."""
    student = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    past = PastSelf(student)
    past.follow_modes()
    norms = [(past.model.learning[1], True), (past.model.frozen[1], False)]
    for norm, training in norms:
        assert isinstance(norm, nn.SyncBatchNorm)
        assert norm.training is training and not norm.track_running_stats


def test_an_average_moves_the_weights_and_copies_the_buffers(student):
    past = PastSelf(student)
    before = past.state_dict()
    frozen = past.model.frozen[0].weight
    student.frozen.requires_grad_(False)
    past.refresh()
    version = frozen._version
    with torch.no_grad():
        student.learning[0].weight.add_(1)
        student.learning[1].running_mean.add_(1)
    assert past.average(0.75) is None
    after = past.state_dict()
    torch.testing.assert_close(after['learning.0.weight'], before['learning.0.weight'] + 0.25)
    assert torch.equal(after['learning.1.running_mean'], student.learning[1].running_mean)
    assert torch.equal(after['frozen.1.running_var'], before['frozen.1.running_var'])
    assert frozen._version == version  # nobody has to look at it again

    student.frozen.requires_grad_(True)
    with torch.no_grad():
        student.frozen[0].weight.add_(1)
    past.average(0.75)
    student.frozen.requires_grad_(False)
    past.average(0.75)  # frozen at last, while the average is on its way there
    torch.testing.assert_close(past.state_dict()['frozen.0.weight'],
                               before['frozen.0.weight'] + 0.4375)


def test_an_average_with_what_is_not_finite_stays_as_it_was(student):
    past = PastSelf(student)
    before = past.state_dict()
    with torch.no_grad():
        student.learning[0].weight.add_(1)
        student.frozen[0].bias[0] = float('nan')
    assert past.average(0.75) == 'frozen.0.bias'
    assert all(torch.equal(value, before[name]) for name, value in past.state_dict().items())


def test_a_copy_of_another_model_of_the_same_modules(student):
    past, other = PastSelf(student), Net()
    assert past.refresh(other) is None
    assert torch.equal(past.state_dict()['learning.0.weight'], other.learning[0].weight)
