"""What load_weights takes: what the model itself takes, all of it and nothing else."""
import copy
import re
from collections import OrderedDict

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from mmskd.checkpoint import load_weights, weights
from mmskd.errors import UsageError
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')

RESNET = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, num_stages=2,
              strides=(1, 2), dilations=(1, 1), out_indices=(1, ))
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class Net(nn.Module):
    """A norm layer, a constant that is not saved, and what prepares the images."""

    def __init__(self, channels=2, table=4):
        super().__init__()
        self.data_preprocessor = ImgDataPreprocessor(MEAN, STD)
        self.layer = nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels))
        self.register_buffer('position_ids', torch.arange(table), persistent=False)


def random_weights(model, seed=0):
    """The model with weights that tell one seed from another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator))
    return model


def built(scope, model, seed):
    """A model with random weights; building takes its config apart."""
    with DefaultScope.overwrite_default_scope(scope):
        return random_weights(MODELS.build(copy.deepcopy(model)), seed)


def equal(model, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def write(path, state_dict, **beside):
    torch.save(dict(state_dict=state_dict, **beside), path)
    return str(path)


@pytest.fixture
def warned(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(weights, 'print_log', lambda line, *rest: lines.append(line))
    return lines


# ------------------------------------------------------------------ the forms of a file


@pytest.mark.parametrize('form', ['state_dict', 'model', 'bare', 'of a wrapped model'])
def test_forms_that_hold_weights(form, tmp_path):
    trained, model = random_weights(Net()), random_weights(Net(), 1)
    state = trained.state_dict()
    content = dict(
        state_dict=dict(state_dict=state), model=dict(model=state), bare=state)
    content['of a wrapped model'] = dict(state_dict={f'module.{key}': state[key] for key in state})
    torch.save(content[form], tmp_path / 'x.pth')
    assert load_weights(model, str(tmp_path / 'x.pth')) == {}
    assert equal(model, trained)


def test_returns_what_the_file_says_of_itself(tmp_path):
    meta = dict(dataset_meta=dict(classes=('a', 'b')), epoch=3)
    path = write(tmp_path / 'x.pth', Net().state_dict(), meta=meta)
    assert load_weights(Net(), path) == meta


def test_counters_may_be_missing(tmp_path):
    """As in MMEngine: files from before PyTorch 0.4.1, and converted ones, have none."""
    trained, model = random_weights(Net()), random_weights(Net(), 1)
    state = trained.state_dict()
    del state['layer.1.num_batches_tracked']
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, trained)


@pytest.mark.parametrize('content,message', [
    ([torch.ones(1)], 'x.pth holds no weights but a list'),
    (dict(epoch=1, optimizer={}), 'x.pth holds no weights, only epoch, optimizer'),
    ({}, 'x.pth holds no weights, only nothing'),
])
def test_a_file_without_weights(content, message, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UsageError, match=message):
        load_weights(Net(), str(tmp_path / 'x.pth'))


def test_places_that_are_not_read():
    with pytest.raises(UsageError, match='open-mmlab://.* from a file or from http'):
        load_weights(Net(), 'open-mmlab://resnet50')


# ------------------------------------------------------------------ what need not fit


def test_constants_that_are_no_longer_saved(tmp_path, warned):
    """MMEngine saved mean and std until September 2022, transformers position_ids until 4.31."""
    trained, model = random_weights(Net()), random_weights(Net(), 1)
    constants = {key: value for key, value in trained.named_buffers()
                 if key not in trained.state_dict()}
    assert len(constants) == 3
    load_weights(model, write(tmp_path / 'x.pth', {**trained.state_dict(), **constants}))
    assert equal(model, trained) and not warned


@pytest.mark.parametrize('change,message', [
    ({'data_preprocessor.mean': torch.zeros(3, 1, 1)},
     r'mean = \[0.0, 0.0, 0.0\]; .* \[123.675, 116.28, 103.53\]'),
    ({'data_preprocessor.std': torch.ones(1, 1, 1)}, r'std = \[1.0\]; .* \[58.395'),
    ({'data_preprocessor.depth_mean': torch.ones(1)}, r'depth_mean = \[1.0\]; .* has None'),
    ({'position_ids': torch.arange(1, 5)}, r'position_ids = \[1.0, 2.0, 3.0\]; .* \[0.0, 1.0'),
])
def test_other_constants_are_warned_about(change, message, tmp_path, warned):
    load_weights(Net(), write(tmp_path / 'x.pth', {**Net().state_dict(), **change}))
    assert len(warned) == 1 and re.search(message, warned[0]) and 'x.pth' in warned[0]


def test_copies_of_an_ema_hook(tmp_path):
    """MMCV 1.x and MMDetection 2.x keep them as buffers of the model; YOLOX's files have them."""
    trained, model = random_weights(Net()), random_weights(Net(), 1)
    state = trained.state_dict()
    state.update({f'ema_{key.replace(".", "_")}': torch.zeros_like(value)
                  for key, value in trained.state_dict().items()})
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, trained)
    state['ema_of_something_else'] = torch.ones(1)
    with pytest.raises(UsageError, match=r'beyond the model 1 weight \(ema_of_something_else\)'):
        load_weights(model, write(tmp_path / 'x.pth', state))


# ------------------------------------------------------------------ what is refused


def without(key):
    return lambda state: state.pop(key)


REFUSED = {
    'missing': (without('layer.0.bias'), r'lacks 1 weight \(layer.0.bias\)$'),
    'unexpected': (lambda state: state.update(extra=torch.ones(1)),
                   r'has beyond the model 1 weight \(extra\)$'),
    'shape': (lambda state: state.update({'layer.0.weight': torch.ones(5, 3, 1, 1)}),
              r'in another shape 1 weight '
              r'\(layer.0.weight: \[5, 3, 1, 1\] instead of \[2, 3, 1, 1\]\)$'),
    'no tensor': (lambda state: state.update({'layer.0.weight': 'text'}), 'layer.0.weight.*str'),
    'another model': (
        lambda state: [state.update(conv=state.pop(key)) for key in list(state)],
        r'lacks 6 weights \(layer.0.bias, layer.0.weight, layer.1.bias and 3 more\); has beyond'),
    'distiller': (lambda state: [state.update({f'student.{key}': state.pop(key)})
                                 for key in list(state)], 'convert_dwpose_checkpoint.py'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_the_names_and_unchanged(name, tmp_path):
    change, message = REFUSED[name]
    state = random_weights(Net()).state_dict()
    change(state)
    model = random_weights(Net(), 1)
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match=message) as error:
        load_weights(model, write(tmp_path / 'x.pth', state))
    assert 'x.pth does not fit Net: it ' in str(error.value) and '\n' not in str(error.value)
    assert equal(model, before) and not model._load_state_dict_post_hooks


# ------------------------------------------------------------------ MMPose 0.x


def pose_model(head, seed):
    import mmpose.models  # noqa: F401
    return built('mmpose', dict(
        type='TopdownPoseEstimator', backbone=RESNET, head=head,
        data_preprocessor=dict(type='PoseDataPreprocessor', mean=MEAN, std=STD)), seed)


MSE = dict(type='KeypointMSELoss')
OLD_HEADS = {
    'TopdownHeatmapSimpleHead': dict(
        type='HeatmapHead', in_channels=8, out_channels=3, deconv_out_channels=(4, ),
        deconv_kernel_sizes=(4, ), loss=MSE),
    'TopdownHeatmapSimpleHead with convolutions': dict(
        type='HeatmapHead', in_channels=8, out_channels=3, deconv_out_channels=None,
        conv_out_channels=(4, 4), conv_kernel_sizes=(1, 1), loss=MSE),
    'ViPNASHeatmapSimpleHead': dict(
        type='ViPNASHead', in_channels=8, out_channels=3, deconv_out_channels=(16, ),
        deconv_kernel_sizes=(4, ), deconv_num_groups=(8, ), conv_out_channels=(4, ),
        conv_kernel_sizes=(1, ), loss=MSE),
    'TopdownHeatmapMultiStageHead': dict(
        type='CPMHead', in_channels=8, out_channels=3, num_stages=2, loss=MSE),
    'TopdownHeatmapMSMUHead': dict(
        type='MSPNHead', num_stages=1, num_units=2, out_shape=(16, 16), unit_channels=8,
        out_channels=3, use_prm=True, loss=[MSE] * 2, level_indices=[0, 1]),
    'DeepposeRegressionHead': dict(
        type='RegressionHead', in_channels=8, num_joints=3,
        loss=dict(type='SmoothL1Loss')),
    'DeepposeRegressionHead with RLE': dict(
        type='RLEHead', in_channels=8, num_joints=3, loss=dict(type='RLELoss')),
}


def of_mmpose_0(model):
    """The weights of a model under the names that MMPose 0.x gave them."""
    convs = getattr(model.head, 'conv_layers', ())
    number_of_convs = len(convs) if isinstance(convs, nn.Sequential) else 0
    state = OrderedDict()
    for key, value in model.state_dict().items():
        if number_of_convs:  # the last convolution was one of the sequence
            key = key.replace('head.final_layer.', f'head.final_layer.{number_of_convs}.')
            key = key.replace('head.conv_layers.', 'head.final_layer.')
        key = key.replace('head.loss_module.', 'head.loss.')
        state[re.sub('^head', 'keypoint_head', key)] = value
    return state


@needs_mmpose
@pytest.mark.parametrize('versions', [False, True], ids=['no versions', 'versions'])
@pytest.mark.parametrize('head', OLD_HEADS)
def test_files_of_mmpose_0(head, versions, tmp_path):
    trained, model = (pose_model(OLD_HEADS[head], seed) for seed in (0, 1))
    state = of_mmpose_0(trained)
    assert any(key.startswith('keypoint_head.') for key in state)
    if versions:  # of its modules; 1 where nothing was set
        state._metadata = OrderedDict((name, dict(version=1))
                                      for name in ('', 'backbone', 'keypoint_head'))
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, trained)


@needs_mmpose
@pytest.mark.parametrize('versions', [False, True], ids=['no versions', 'versions'])
def test_signs_and_channels_are_converted_as_mmengine_does(versions, tmp_path):
    """DEKR of 0.x points the other way and has its root last; an own file is taken as it is."""
    head = dict(type='DEKRHead', in_channels=8, num_keypoints=3, num_heatmap_filters=4,
                num_displacement_filters_per_keypoint=2, heatmap_loss=MSE,
                displacement_loss=dict(type='SoftWeightSmoothL1Loss'))
    import mmpose.models  # noqa: F401
    model = dict(type='BottomupPoseEstimator', backbone=RESNET, head=head)
    trained, ours, theirs = (built('mmpose', model, seed) for seed in range(3))
    state = trained.state_dict()
    if not versions:
        state = OrderedDict((re.sub('^head', 'keypoint_head', key).replace(
            'displacement_conv_layers', 'offset_conv_layers'), value)
            for key, value in state.items())
    path = write(tmp_path / 'x.pth', state)
    load_weights(ours, path)
    load_checkpoint(theirs, path)
    assert equal(ours, theirs) and equal(ours, trained) is versions


@needs_mmpose
def test_constants_that_mmpose_drops_are_compared_too(tmp_path, warned):
    model = pose_model(OLD_HEADS['DeepposeRegressionHead'], 0)
    state = {**model.state_dict(), 'data_preprocessor.mean': torch.zeros(3, 1, 1),
             'data_preprocessor.std': torch.tensor(STD).view(3, 1, 1)}
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert len(warned) == 1 and 'data_preprocessor.mean' in warned[0]


@needs_mmpose
def test_an_old_file_that_cannot_be_converted_is_refused(tmp_path):
    heads = [OLD_HEADS[f'TopdownHeatmapSimpleHead{more}'] for more in (' with convolutions', '')]
    state = of_mmpose_0(pose_model(heads[0], 0))
    model = pose_model(heads[1], 1)
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match='cannot be converted .* AssertionError'):
        load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, before)


# ------------------------------------------------------------------ MMDetection


def detector(kind, seed, backbone=None, **head):
    import mmdet.models  # noqa: F401
    loss = dict(type='FocalLoss', use_sigmoid=True)
    return built('mmdet', dict(
        type=kind, backbone=dict(RESNET, **(backbone or {})),
        data_preprocessor=dict(type='DetDataPreprocessor', mean=MEAN, std=STD),
        neck=dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1),
        bbox_head=dict(num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
                       loss_cls=loss, **head)), seed)


RETINA = dict(type='RetinaHead', loss_bbox=dict(type='L1Loss'),
              anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4,
                                    scales_per_octave=3, ratios=[1.], strides=[8]),
              bbox_coder=dict(type='DeltaXYWHBBoxCoder'))


@needs_mmdet
@pytest.mark.parametrize('older', ['data_preprocessor', 'ema'])
def test_files_of_older_mmdetection(older, tmp_path, warned):
    trained, model = (detector('RetinaNet', seed, **RETINA) for seed in (0, 1))
    state = trained.state_dict()
    if older == 'ema':
        state.update({f'ema_{key.replace(".", "_")}': value + 1 for key, value in state.items()})
    else:
        state.update({f'data_preprocessor.{name}': torch.tensor(value).view(3, 1, 1)
                      for name, value in (('mean', MEAN), ('std', STD))})
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, trained) and not warned


@needs_mmdet
def test_names_of_the_first_mmdetection(tmp_path):
    fcos = dict(type='FCOSHead', strides=[8], regress_ranges=((-1, 1e8), ), norm_cfg=None)
    trained, model = (detector('FCOS', seed, **fcos) for seed in (0, 1))
    state = {re.sub('head.conv_(cls|reg|centerness)', r'head.fcos_\1', key): value
             for key, value in trained.state_dict().items()}
    assert 'bbox_head.fcos_cls.weight' in state
    load_weights(model, write(tmp_path / 'x.pth', state))
    assert equal(model, trained)


@needs_mmdet
def test_a_convolution_that_computes_what_an_older_file_lacks(tmp_path):
    """Statistics of its weights, in MMCV's ConvAWS."""
    trained, ours, theirs = (detector('RetinaNet', seed, dict(conv_cfg=dict(type='ConvAWS')),
                                      **RETINA) for seed in range(3))
    state = OrderedDict((key, value) for key, value in trained.state_dict().items()
                        if 'weight_gamma' not in key and 'weight_beta' not in key)
    assert len(state) < len(trained.state_dict())
    path = write(tmp_path / 'x.pth', state)
    load_weights(ours, path)
    load_checkpoint(theirs, path)
    assert equal(ours, theirs)
