import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmskd.models.pairing import Pair, has_pair, map_leaves, pair, unpair


@pytest.fixture
def scores():
    """Student and teacher scores of shape (2, 6, 4, 5) whose pairing any shape operation can be
    checked on.
    """
    torch.manual_seed(0)
    student = torch.randn(2, 6, 4, 5, requires_grad=True)
    return student, student.detach() + 100


def assert_aligned(out) -> None:
    assert isinstance(out, Pair)
    student, teacher = unpair(out)
    assert type(student) is Tensor and type(teacher) is Tensor
    assert student.shape == teacher.shape
    assert torch.allclose(teacher, student + 100)
    assert not teacher.requires_grad


MASK = torch.arange(120) % 3 == 0

SHAPE_OPERATIONS = {
    'permute': lambda x: x.permute(0, 2, 3, 1),
    'torch.permute': lambda x: torch.permute(x, (0, 2, 3, 1)),
    'reshape': lambda x: x.reshape(2, -1, 3),
    'view': lambda x: x.view(2, 6, -1),
    'flatten': lambda x: x.flatten(1),
    'torch.flatten': lambda x: torch.flatten(x, 1),
    'transpose': lambda x: x.transpose(1, 2),
    'contiguous': lambda x: x.permute(0, 2, 3, 1).contiguous(),
    'index': lambda x: x[0],
    'ellipsis': lambda x: x[..., 1:],
    'mask': lambda x: x.permute(0, 2, 3, 1).reshape(-1, 2)[MASK],
    'masked_select': lambda x: x.flatten().masked_select(torch.arange(240) % 2 == 0),
    'integers': lambda x: x.reshape(-1, 6)[torch.tensor([3, 1, 2])],
    'index_select': lambda x: x.index_select(1, torch.tensor([5, 0])),
    'gather': lambda x: x.gather(1, torch.zeros(2, 1, 4, 5, dtype=torch.long)),
    'torch.gather': lambda x: torch.gather(x, 1, torch.zeros(2, 1, 4, 5, dtype=torch.long)),
    'squeeze': lambda x: x[:1].squeeze(0),
    'unsqueeze': lambda x: x.unsqueeze(1),
    'expand': lambda x: x[:1].expand(3, -1, -1, -1),
    'repeat': lambda x: x.repeat(1, 2, 1, 1),
    'detach': lambda x: x.detach(),
    'clone': lambda x: x.clone(),
    'float': lambda x: x.double().float(),
    'to': lambda x: x.to(torch.float64),
    'type_as': lambda x: x.type_as(torch.zeros(1, dtype=torch.float64)),
    'cat': lambda x: torch.cat([x, x], 1),
    'cat of levels': lambda x: torch.cat([x[:, :, :2], x[:, :, 2:]], dim=2),
    'stack': lambda x: torch.stack([x, x]),
}


@pytest.mark.parametrize('name', SHAPE_OPERATIONS)
def test_shape_operations_move_both_sides(scores, name):
    assert_aligned(SHAPE_OPERATIONS[name](pair(*scores)))


@pytest.mark.parametrize('operation', [
    lambda x: x.split(3, 1), lambda x: torch.split(x, [1, 5], 1), lambda x: x.chunk(2),
    lambda x: x.unbind(0), lambda x: torch.unbind(x), lambda x: list(x), lambda x: [*iter(x)],
    lambda x: [level for level, _ in zip(x, range(2))], lambda x: torch.tensor_split(x, 2)
])
def test_operations_that_return_several(scores, operation):
    pieces = operation(pair(*scores))
    assert len(pieces) >= 2
    for piece in pieces:
        assert_aligned(piece)


def test_masked_fill_hides_the_same_places(scores):
    mask = torch.zeros(2, 6, 4, 5, dtype=torch.bool)
    mask[0, 1] = True
    student, teacher = unpair(pair(*scores).masked_fill(mask, 0.))
    assert (student[0, 1] == 0).all() and (teacher[0, 1] == 0).all()
    assert torch.allclose(teacher[1], student[1] + 100)


@pytest.mark.parametrize('operation', [
    lambda x: x + 1, lambda x: x.sigmoid(), lambda x: x.softmax(1), lambda x: x.max(1)[0],
    lambda x: x * x, lambda x: x.sum(), lambda x: F.relu(x), lambda x: x > 0, lambda x: -x,
    lambda x: torch.zeros_like(x), lambda x: x.new_zeros(3), lambda x: x.topk(2, dim=1)[0],
    lambda x: F.conv2d(x, torch.ones(1, 6, 1, 1)), lambda x: x.mean((2, 3))
])
def test_everything_else_sees_the_student_alone(scores, operation):
    out = operation(pair(*scores))
    assert type(out) is Tensor
    assert torch.equal(out, operation(scores[0]))


def test_a_list_of_which_only_some_are_pairs_becomes_plain(scores):
    out = torch.cat([pair(*scores), scores[0]])
    assert type(out) is Tensor and torch.equal(out, torch.cat([scores[0], scores[0]]))


def test_a_plain_tensor_stays_plain_beside_a_pair(scores):
    plain = torch.zeros(2, 6, 20)
    assert type(plain.view_as(pair(*scores))) is Tensor
    assert type(torch.zeros(2, 6, 4, 5)[pair(*scores) > 0]) is Tensor


@pytest.mark.parametrize('change', [
    lambda x: x.add_(1), lambda x: x.clamp_(0), lambda x: x.__setitem__(0, 0.),
    lambda x: x.__iadd__(1)
])
def test_a_change_in_place_drops_the_teacher(scores, change):
    tensor = pair(scores[0] * 1, scores[1])
    change(tensor)
    student, teacher = unpair(tensor)
    assert teacher is None and not has_pair([tensor])
    assert not torch.equal(student, scores[0])
    assert type(tensor.flatten()) is Tensor


def test_gradient_and_graph_are_those_of_the_student(scores):
    student, teacher = scores
    loss = (torch.cat([pair(student, teacher).permute(0, 2, 3, 1)[1]]) ** 2).sum()
    loss.backward()
    expected = torch.zeros_like(student)
    expected[1] = 2 * student.detach()[1]
    assert torch.equal(student.grad, expected)
    assert unpair(pair(student, teacher))[0] is student


def test_other_shapes_are_refused(scores):
    with pytest.raises(ValueError, match=r'\(2, 6, 4, 5\).*\(1, 6, 4, 5\)'):
        pair(scores[0], scores[1][:1])


def test_overrides_replace_a_torch_function_and_follow(scores):
    seen = []

    def cross_entropy(logits, labels, **kwargs):
        seen.append(unpair(logits))
        return F.cross_entropy(seen[-1][0], labels, **kwargs)

    logits = pair(*scores, overrides={F.cross_entropy: cross_entropy})
    labels = torch.zeros(40, dtype=torch.long)
    loss = F.cross_entropy(logits.permute(0, 2, 3, 1).reshape(-1, 6), labels, reduction='none')
    assert loss.shape == (40, ) and len(seen) == 1 and seen[0][1] is not None


def test_autocast_reaches_the_student_only(scores):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = F.conv2d(pair(*scores), torch.ones(1, 6, 1, 1))
    assert type(out) is Tensor and out.dtype == torch.bfloat16


def test_nothing_keeps_a_pair_alive_after_the_step(scores):
    tensor = pair(*scores)
    alive = weakref.ref(tensor), weakref.ref(tensor.flatten())
    loss = tensor.sigmoid().sum()
    loss.backward()
    del tensor
    gc.collect()
    assert [reference() for reference in alive] == [None, None] and type(loss) is Tensor


def test_map_leaves_keeps_the_structure():
    value = {'a': [1, (2, 3)], 'b': torch.Size([4])}
    assert map_leaves(lambda x: x * 2, value) == {'a': [2, (4, 6)], 'b': torch.Size([8])}
    assert map_leaves(lambda x, y: x + y, (1, [2]), (10, [20])) == (11, [22])
