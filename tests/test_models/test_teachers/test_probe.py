"""A blank image of the kind that a model takes, and what the model makes of it."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.teachers.probe import image_channels, probe_features
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

if HAS_MMDET:
    from tests.support import detectors
if HAS_MMPOSE:
    from tests.support import poses

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


class Net(nn.Module):
    """Features of images of so many channels, which a space-to-depth layer sees first."""

    def __init__(self, channels=3, blocks=1):
        super().__init__()
        self.last = nn.Conv2d(8, 4, 3)  # not the first that an image meets
        self.first = nn.Conv2d(channels * blocks**2, 8, 3)
        self.norm = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout())
        self.blocks = blocks
        self.bbox_head = nn.Module()

    def extract_feat(self, images):
        return self.last(self.norm(self.first(
            nn.functional.pixel_unshuffle(images, self.blocks)))),


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('blocks', [1, 2])
def test_the_first_convolution_says_how_many_channels_an_image_has(channels, blocks):
    net = Net(channels, blocks)
    assert image_channels(net) == channels
    (features, ) = probe_features(net)
    assert features.shape == (1, 4, 256 // blocks - 4, 256 // blocks - 4)
    assert not net.first._forward_pre_hooks and not net.last._forward_pre_hooks


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_the_image_has_the_models_precision(dtype):
    (features, ) = probe_features(Net(1).to(dtype))
    assert features.dtype is dtype and not features.requires_grad


def test_modes_and_statistics_stay():
    net = Net().train()
    net.norm[0].eval()
    modes = [module.training for module in net.modules()]
    chance = torch.get_rng_state()
    probe_features(net)
    assert [module.training for module in net.modules()] == modes
    assert net.norm[0].num_batches_tracked == 0 and torch.equal(torch.get_rng_state(), chance)


class Still(nn.Module):
    """No parameter, no buffer, no convolution."""

    def __init__(self, bad=False):
        super().__init__()
        self.bad = bad
        self.bbox_head = nn.Identity()

    def extract_feat(self, images):
        if self.bad:
            raise TypeError('a second argument is missing')
        return images[:, :, ::2, ::2], images[:, :1]


def test_a_model_without_parameters_takes_the_students_kind():
    levels = probe_features(Still(), like=Net().double())
    assert [(level.dtype, level.shape) for level in levels] == [
        (torch.float64, (1, 3, 128, 128)), (torch.float64, (1, 1, 256, 256))]
    assert probe_features(Still())[0].dtype is torch.float32


@pytest.mark.parametrize('model,message', [
    (nn.Identity(), 'Identity has no extract_feat'),
    (Still(bad=True), 'Still has no features of a blank image of .*: a second argument is miss'),
])
def test_models_without_features_of_an_image(model, message):
    with pytest.raises(UsageError, match=message):
        probe_features(model)


@needs_mmdet
def test_yolox_rearranges_the_image_first():
    assert [level.shape[-1] for level in probe_features(detectors.build('yolox'))] == [32, 16, 8]


def test_a_detector_whose_last_map_has_no_room_in_a_small_image():
    """SSD: 3 x 3 without padding, where an image of 256 pixels has come down to 2 x 2."""
    class Deep(Still):

        def __init__(self):
            super().__init__()
            self.extra = nn.Conv2d(3, 4, 5)

        def extract_feat(self, images):
            return self.extra(nn.functional.avg_pool2d(images, 64)),

    assert probe_features(Deep())[0].shape == (1, 4, 4, 4)


@needs_mmdet
def test_a_detector_of_gray_images():
    import mmdet.models  # noqa: F401
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5], std=[64.]),
            backbone=dict(type='ResNet', depth=18, in_channels=1, base_channels=4,
                          stem_channels=4),
            neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=4),
            bbox_head=dict(type='RetinaHead', num_classes=1, in_channels=8, feat_channels=8,
                           stacked_convs=1)))
    assert [level.shape[-1] for level in probe_features(model)] == [64, 32, 16, 8]


@needs_mmpose
def test_a_pose_estimator_sees_its_own_size():
    (level, ) = probe_features(poses.build('rtmpose'))
    assert level.shape == (1, 384, 4, 3)
