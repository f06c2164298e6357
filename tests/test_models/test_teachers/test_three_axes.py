"""Bins of x, y and z, as RTMW3D's: its head, losses and codec are a project beside MMPose and made
here in small.
"""
import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmpose')

from mmpose.codecs.base import BaseKeypointCodec  # noqa: E402
from mmpose.models.heads import RTMCCHead  # noqa: E402
from mmpose.models.losses import KLDiscretLoss  # noqa: E402
from mmpose.registry import KEYPOINT_CODECS, MODELS  # noqa: E402

from mmskd.engine.hooks import DistillHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.losses.functional import simcc_kl  # noqa: E402
from tests.support import poses  # noqa: E402


@KEYPOINT_CODECS.register_module()
class SpaceLabel(BaseKeypointCodec):
    """What SimCC3DLabel says of itself: z goes from -z_range to z_range around the root."""

    def __init__(self, input_size, sigma, simcc_split_ratio=2.0, normalize=False, z_range=2.2):
        super().__init__()
        self.input_size, self.sigma, self.z_range = input_size, sigma, z_range
        self.simcc_split_ratio, self.normalize = simcc_split_ratio, normalize

    def encode(self, keypoints, keypoints_visible=None):
        raise NotImplementedError('it asks for keypoints in space')

    def decode(self, encoded):
        raise NotImplementedError


@MODELS.register_module()
class SpaceLoss(KLDiscretLoss):
    """A weight for each axis."""

    def forward(self, pred_simcc, gt_simcc, target_weight):
        losses = [
            self.criterion(pred.flatten(0, 1), target.flatten(0, 1)).mul(weight.flatten()).sum()
            for pred, target, weight in zip(pred_simcc, gt_simcc, target_weight)
        ]
        return sum(losses) / pred_simcc[0].size(1)


@MODELS.register_module()
class LengthLoss(nn.Module):
    """Of coordinates, as the loss of bones."""

    def forward(self, pred, target):
        return (pred - target).abs().mean()


@MODELS.register_module()
class SpaceHead(RTMCCHead):

    def __init__(self, input_size, loss, decoder, **kwargs):
        flat = dict(type='KLDiscretLoss', use_target_weight=True)
        super().__init__(input_size=input_size[:2], loss=flat, decoder=None, **kwargs)
        self.cls_z = nn.Linear(self.cls_x.in_features, int(input_size[2] * self.simcc_split_ratio),
                               bias=False)
        self.decoder = KEYPOINT_CODECS.build(decoder)
        self.loss_module = nn.ModuleList(map(MODELS.build, loss))

    def forward(self, feats):
        feats = self.gau(self.mlp(self.final_layer(feats[-1]).flatten(2)))
        return self.cls_x(feats), self.cls_y(feats), self.cls_z(feats)

    def loss(self, feats, batch_data_samples, train_cfg=None):
        bins = self.forward(feats)
        labels = [sample.gt_instance_labels for sample in batch_data_samples]
        given = [
            torch.cat([getattr(one, f'keypoint_{axis}_labels') for one in labels]) for axis in 'xyx'
        ]
        weights = torch.cat([one.keypoint_weights for one in labels])
        given[2] = given[2][..., :bins[2].size(-1)]
        places = [axis.softmax(-1).mean(-1) for axis in bins]
        return dict(loss_kld=self.loss_module[0](bins, given, weights.expand(3, *weights.shape)),
                    loss_bone=self.loss_module[1](torch.stack(places), torch.stack(places) * 0))


def build(seed=0, size=(96, 128, 64), **changes):
    codec = dict(type='SpaceLabel', input_size=size, sigma=(4.9, 5.6, 4.),
                 **changes.pop('codec', {}))
    # A model in space has one codec, and data for the tests come by that of the plane
    return poses.build(
        'rtmpose', seed, **{
            'head.type': 'SpaceHead',
            'head.input_size': size,
            'head.in_featuremap_size': (size[0] // 32, size[1] // 32),
            'head.decoder': dict(codec, _delete_=True),
            'head.loss': [
                dict(type='SpaceLoss', beta=10., label_softmax=True, use_target_weight=True),
                dict(type='LengthLoss')
            ],
            **changes
        }).eval()


@pytest.fixture(scope='module')
def student():
    return build()


@pytest.fixture(scope='module')
def data():
    return poses.batch(poses.build('rtmpose'))


def terms(student, teacher, data, **options):
    hook = DistillHook(teacher=teacher, losses=[dict(type='mmskd.SimCCDistillLoss')],
                       precision=None, **options)
    hook.attach(student)
    try:
        return poses.losses(student, data)
    finally:
        hook.detach()


def test_all_three_axes_are_taught(student, data):
    teacher, stock = build(1), poses.losses(student, data)
    found = terms(student, teacher, data)
    mine, theirs = (model.head(model.extract_feat(data[0])) for model in (student, teacher))
    assert torch.allclose(found.pop('loss_logit'), simcc_kl(mine, theirs, 10.,
                                                            0.1)) and len(mine) == 3
    assert all(torch.equal(found[key], value) for key, value in stock.items())
    assert terms(student, copy.deepcopy(student), data)['loss_logit'].abs() < 1e-6


def test_larger_crops_with_the_same_depth(student, data):
    value = terms(student, build(1, (192, 256, 64)), data)['loss_logit']
    assert torch.isfinite(value) and value > 0


@pytest.mark.parametrize('size,codec', [((192, 256, 96), {}), ((192, 256, 64), dict(z_range=3.))])
def test_another_depth_is_refused(student, data, size, codec):
    with pytest.raises(UsageError, match='bins of depth of the teacher are others'):
        terms(student, build(1, size, codec=codec), data)


def test_a_teacher_of_the_plane_is_refused(student, data):
    with pytest.raises(UsageError,
                       match='an axis more or less cannot be made up|has the codec|predicts'):
        terms(student, poses.build('rtmpose', 1), data)
