"""The teacher compiled for inference says what the teacher says, and follows what it was compiled
from.
"""
import copy
import platform

import pytest
import torch
from torch import nn

from mmskd.models.teachers import PastSelf, freeze
from mmskd.models.teachers import compiled as module
from mmskd.models.teachers.compiled import CompiledTeacher, fast_dtype, teacher_to_ask
from mmskd.models.teachers.folding import folded


class Block(nn.Module):
    """Named as in residual networks, with a norm of each kind and a convolution that is used twice.
    """

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU())
        self.again, self.norms = self.conv2, nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])

    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        for norm in self.norms:
            x = norm(self.again(x))
        return self.tail(x)


@pytest.fixture
def source():
    torch.manual_seed(0)
    net = Block()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return freeze(net)


@pytest.fixture
def images():
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def answers(teacher, source, images):
    """Of the compiled teacher and of its source."""
    teacher.follow()
    with torch.no_grad():
        return teacher.ask(teacher.model, images), source(images)


def test_folding_is_exact_in_float64():
    conv, norm = nn.Conv2d(3, 4, 3).double(), nn.BatchNorm2d(4).double().eval()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias), norm.running_mean.normal_()
    x = torch.randn(2, 3, 5, 5).double()
    weight, bias = folded(conv.weight, conv.bias, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), norm(conv(x)))
    weight, bias = folded(conv.weight, None, norm)
    conv.bias = None
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), norm(conv(x)))


def test_norms_are_folded_where_one_follows_one(source, images):
    teacher = CompiledTeacher(source)
    mine, theirs = answers(teacher, source, images)
    torch.testing.assert_close(mine, theirs)
    assert is_folded(teacher.model.bn1) and is_folded(teacher.model.tail[1])
    assert not is_folded(teacher.model.bn2)  # its convolution has another use


class Residual(nn.Module):
    """A convolution and a norm layer behind it, by names that say so; what happens is up to a
    function.
    """

    def __init__(self, forward, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), norm(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), norm(3)
        self._called = forward
        for layer in (self.bn1, self.bn2):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self._called(self, x)


class NormWithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return super().forward(x).relu()


def straight(net, x):
    return net.bn2(net.conv2(net.bn1(net.conv1(x)).relu()))


def norm_first(net, x):
    return net.conv2(net.bn2(net.conv1(net.bn1(x).relu())).relu())


def looked_at_on_the_way(net, x):
    between = net.conv1(x)
    return net.bn1(between) + between


def norm_of_two(net, x):
    return net.bn1(net.conv1(x)) + net.bn1(net.conv2(x))


def not_always_normalised(net, x):
    return net.conv1(net.bn1(net.conv1(x)))


def weights_used_by_themselves(net, x):
    return net.bn1(net.conv1(x)) + nn.functional.conv2d(x, net.conv1.weight, padding=1)


def weights_shared(net, x):
    net.conv2.weight = net.conv1.weight
    return net.bn2(net.conv2(net.bn1(net.conv1(x))))


@pytest.mark.parametrize('forward, pairs', [(straight, 2), (norm_first, 1),
                                            (looked_at_on_the_way, 0), (norm_of_two, 0),
                                            (not_always_normalised, 0),
                                            (weights_used_by_themselves, 0), (weights_shared, 0)])
def test_only_a_norm_that_gets_all_of_a_convolution_is_folded(forward, pairs, images):
    torch.manual_seed(0)
    net = Residual(forward)
    if forward is weights_shared:
        forward(net, images)
    source = freeze(net)
    teacher = CompiledTeacher(source)
    mine, theirs = answers(teacher, source, images)
    torch.testing.assert_close(mine, theirs)
    assert sum(map(is_folded, teacher.model.modules())) == pairs


@pytest.mark.parametrize('change', [
    lambda net: nn.utils.spectral_norm(net.conv1), lambda net: nn.utils.weight_norm(net.conv1),
    lambda net: nn.utils.parametrizations.spectral_norm(net.conv1),
    lambda net: net.conv1.register_forward_hook(lambda conv, args, output: output * 2),
    lambda net: net.bn1.register_forward_pre_hook(lambda norm, args: (args[0] * 2, ))])
@pytest.mark.filterwarnings('ignore')
def test_what_is_between_the_two_stays_there(change, images):
    torch.manual_seed(0)
    source = Residual(straight)
    change(source)
    source = freeze(source)
    teacher = CompiledTeacher(source)
    mine, theirs = answers(teacher, source, images)
    torch.testing.assert_close(mine, theirs)
    assert not is_folded(teacher.model.bn1) and is_folded(teacher.model.bn2)


def test_a_norm_that_does_more_is_not_folded(images):
    source = freeze(Residual(straight, NormWithActivation))
    mine, theirs = answers(CompiledTeacher(source), source, images)
    torch.testing.assert_close(mine, theirs)


def test_a_hook_on_a_folded_norm_sees_what_it_says(source, images):
    teacher = CompiledTeacher(source)
    seen = []
    teacher.model.bn1.register_forward_hook(lambda norm, args, output: seen.append(output.clone()))
    answers(teacher, source, images)
    torch.testing.assert_close(seen[-1], source.bn1(source.conv1(images)))
    assert is_folded(teacher.model.bn1)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_looking_on_draws_no_random_numbers(images):
    source = freeze(nn.Sequential(nn.Conv2d(3, 3, 1), Noise()))
    teacher = CompiledTeacher(source)
    after = []
    for ask in (source, lambda x: teacher.ask(teacher.model, x)):
        teacher.follow()
        torch.manual_seed(3)
        ask(images)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def is_folded(module):
    return isinstance(module, nn.BatchNorm2d) and 'forward' in vars(module)


def test_modes_and_weights_are_followed(source, images):
    teacher = CompiledTeacher(source)
    answers(teacher, source, images)
    for change in (lambda: source.bn1.train(), lambda: source.conv1.weight.mul_(2),
                   lambda: source.bn1.running_mean.add_(1), lambda: source.bn1.eval()):
        with torch.no_grad():
            change()
        for layer in source.modules():
            layer.track_running_stats = False  # as a past self has it
        mine, theirs = answers(teacher, source, images)
        torch.testing.assert_close(mine, theirs)
        assert is_folded(teacher.model.bn1) != source.bn1.training


def test_what_has_not_changed_is_not_written_again(source, images, monkeypatch):
    teacher = CompiledTeacher(source)
    teacher.follow()
    calls = []
    monkeypatch.setattr(module.Layer, 'write', lambda layer: calls.append(layer))
    teacher.follow()
    assert not calls
    source.conv1.weight.data.add_(0)
    source.conv1.weight.add_(1)
    teacher.follow()
    assert calls


def test_half_precision_is_close_and_costs_half(source, images):
    teacher = CompiledTeacher(source, 'bfloat16')
    mine, theirs = answers(teacher, source, images)
    assert mine.dtype == teacher.dtype == torch.bfloat16
    torch.testing.assert_close(mine.float(), theirs, atol=0.1, rtol=0.05)
    weights = [layer.weight for layer in teacher.model.modules() if isinstance(layer, nn.Conv2d)]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert source.conv1.weight.dtype == torch.float32
    assert is_folded(
        teacher.model.bn1), 'the first convolution too: nothing else may look at its weight'


class Stubborn(nn.Linear):
    """Knows no half precision."""

    def forward(self, x):
        with torch.autocast('cpu', enabled=False):
            if x.dtype != torch.float32:
                raise RuntimeError('"stubborn" not implemented for \'BFloat16\'')
            return super().forward(x)


def test_a_part_that_knows_no_half_precision_runs_in_float32():
    source = freeze(nn.Sequential(nn.Linear(3, 3), Stubborn(3, 3)))
    teacher = CompiledTeacher(source, 'bfloat16')
    mine, theirs = answers(teacher, source, torch.ones(2, 3))
    torch.testing.assert_close(mine, theirs)
    with pytest.raises(RuntimeError, match='mat1'):  # an error of another kind is not hidden
        teacher.ask(teacher.model, torch.ones(2, 5))


@pytest.mark.parametrize('words, fast', [
    ('AuthenticAMD avx2', False), ('AuthenticAMD avx512_bf16', True),
    ('GenuineIntel avx512_bf16', False), ('GenuineIntel avx512_bf16 amx_bf16', True), ('', False)])
def test_the_precision_is_that_of_the_device(words, fast, monkeypatch):
    monkeypatch.setattr(module, '_cpu_words', lambda: set(words.split()))
    fast = fast and torch.backends.mkldnn.is_available()
    assert fast_dtype(torch.device('cpu')) is (torch.bfloat16 if fast else None)
    assert fast_dtype(torch.device('meta')) is None


@pytest.mark.skipif((platform.system(), platform.machine()) != ('Linux', 'x86_64'),
                    reason='others name what their CPU can do in other ways, or not at all')
def test_what_the_cpu_can_do_is_found():
    assert {'vendor_id', 'flags', 'fpu'} <= module._cpu_words()


def test_without_a_precision_the_model_itself_is_asked(source):
    assert teacher_to_ask(source, None, []).model is source


def test_the_source_is_not_changed(source, images):
    before = copy.deepcopy(source.state_dict())
    CompiledTeacher(PastSelf(source).model, 'bfloat16').follow()
    CompiledTeacher(source, 'bfloat16').follow()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert isinstance(source.bn1, nn.BatchNorm2d)


# Real models
# -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('family, tolerance', [('retinanet', 1e-3), ('tood', 1e-3), ('ssd', 5e-3),
                                               ('faster_rcnn', 1e-3), ('deformable_detr', 1e-2),
                                               ('rtmdet', 0.1)])
def test_detectors_are_answered_the_same(family, tolerance):
    """Float32: up to rounding. Bfloat16: the mean error of a probability (batch statistics of 2x2
    places on noise through untrained weights, as of RTMDet here, blow errors up).
    """
    pytest.importorskip('mmdet')
    from mmskd.engine.hooks import PSKDHook
    from tests.support import detectors
    model = detectors.build(family)
    hook = PSKDHook(precision=None)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    heads = [head.adapter for head in hook.heads_taught]
    with torch.no_grad():
        detectors.losses(model)
        plain = hook.disagreement
        off = []
        for precision in (None, 'bfloat16'):
            hook._asked = CompiledTeacher(hook.teacher, precision, heads)
            detectors.losses(model)
            off.append(abs(hook.disagreement - plain))
    assert off[0] < 1e-5 and off[1] < tolerance, off


def test_the_first_pass_says_what_all_others_say():
    """Else a resumed run, whose first pass teaches, would not be exact. A part that gives up
    bfloat16 (RoIAlign does) writes weights, which is no use of them.
    """
    pytest.importorskip('mmdet')
    from mmskd.engine.hooks import PSKDHook
    from tests.support import detectors
    model = detectors.build('faster_rcnn')
    hook = PSKDHook(precision='bfloat16')
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    first, second = (detectors.total(detectors.losses(model)) for _ in range(2))
    assert torch.equal(first, second) and hook.disagreement > 0
    assert is_folded(hook._asked.model.backbone.layer4[0].bn1)


@pytest.mark.parametrize('family', ['retinanet', 'rtmpose'])
def test_weight_zero_is_stock_in_every_precision(family):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpose')
    from mmskd.engine.hooks import PSKDHook
    from tests.support import detectors, poses
    support = detectors if family == 'retinanet' else poses
    model = support.build(family)
    stock = support.total(support.losses(model))
    for precision in (None, 'auto', 'bfloat16'):
        hook = PSKDHook(precision=precision)
        hook.attach(model)
        hook.refresh_teacher()
        assert torch.equal(support.total(support.losses(model)), stock)
        assert precision != 'bfloat16' or hook.disagreement > 0
        hook.detach()


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2', 'SAC', 'own'])
@pytest.mark.parametrize('precision, tolerance', [(None, 1e-5), ('bfloat16', 0.05)])
def test_deformable_convolutions_get_their_offsets_in_the_right_order(kind, precision, tolerance):
    """mmcv's operators read channels-last tensors wrongly, or not at all."""
    ops = pytest.importorskip('mmcv.ops')
    torch.manual_seed(0)
    own = type('Own', (ops.ModulatedDeformConv2dPack, ), {})  # not in mmcv.ops
    layer = {'DCN': ops.DeformConv2dPack, 'DCNv2': ops.ModulatedDeformConv2dPack, 'own': own,
             'SAC': lambda *args, **kwargs: ops.SAConv2d(*args, **kwargs, use_deform=True)}[kind](
                 8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.BatchNorm2d(8))
    for name, parameter in net.named_parameters():
        if 'offset' in name:
            nn.init.normal_(parameter, std=0.3)
    freeze(net)
    teacher, x = CompiledTeacher(net, precision), torch.randn(2, 3, 17, 17)
    teacher.follow()
    with torch.no_grad():
        answer, truth = teacher.ask(teacher.model, x).float(), net(x)
    assert (answer - truth).abs().max() < tolerance * truth.abs().max()
