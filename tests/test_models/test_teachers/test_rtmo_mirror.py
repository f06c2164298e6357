"""RTMO: a teacher answers about the bins of the student's boxes."""
import copy

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

pytest.importorskip('mmpose')

from mmskd.engine.hooks import DistillHook, PSKDHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from tests.support import poses  # noqa: E402

RTMO = f'{poses.BODY}/rtmo/body7/rtmo-s_8xb32-600e_body7-640x640.py'
METAINFO = dict(from_file='configs/_base_/datasets/coco.py')
SMALL = {
    'backbone.deepen_factor': 0.1,
    'backbone.widen_factor': 0.125,
    'neck.in_channels': [32, 64, 128],
    'neck.hidden_dim': 32,
    'neck.encoder_cfg.self_attn_cfg.embed_dims': 32,
    'neck.encoder_cfg.self_attn_cfg.num_heads': 2,
    'neck.encoder_cfg.ffn_cfg.embed_dims': 32,
    'neck.encoder_cfg.ffn_cfg.feedforward_channels': 32,
    'neck.projector.in_channels': [32, 32],
    'neck.projector.out_channels': 32,
    'head.head_module_cfg.in_channels': 32,
    'head.head_module_cfg.cls_feat_channels': 16,
    'head.head_module_cfg.channels_per_group': 4,
    'head.head_module_cfg.widen_factor': 0.5,
    'head.head_module_cfg.pose_vec_channels': 24,
    'head.dcc_cfg.in_channels': 24,
    'head.dcc_cfg.feat_channels': 16,
    'head.dcc_cfg.num_bins': (24, 32),
    'head.assigner.oks_calculator.metainfo': METAINFO['from_file'],
    'head.loss_oks.metainfo': METAINFO['from_file'],
    'data_preprocessor.batch_augments': None
}


def build(seed=0, **options):
    return poses.build(RTMO, seed, **{**SMALL, **options})


@pytest.fixture(scope='module')
def student():
    return build().eval()  # batch statistics of few places say little


@pytest.fixture(scope='module')
def teacher():
    return build(1).eval()


def batch(people=(2, 1), size=96):
    """Noise with some people in each image."""
    from mmpose.structures import PoseDataSample
    rng = np.random.RandomState(0)
    samples = []
    for count in people:
        corner = torch.from_numpy(rng.uniform(0, size / 3, (count, 2))).float()
        boxes = torch.cat([corner, corner + size / 2], 1)
        points = corner[:, None] + torch.from_numpy(rng.uniform(0, size / 2,
                                                                (count, 17, 2))).float()
        half = np.array([size / 2., size / 2.])
        sample = PoseDataSample(
            metainfo=dict(input_size=(size,
                                      size), img_shape=(size,
                                                        size), input_center=half, input_scale=2
                          * half))
        sample.gt_instances = InstanceData(bboxes=boxes)
        sample.gt_instance_labels = InstanceData(
            bboxes=boxes, labels=torch.zeros(count, dtype=torch.long), keypoints=points,
            keypoints_visible=torch.ones(count, 17), areas=torch.full((count, ), size**2 / 4.))
        samples.append(sample)
    return torch.rand(len(people), 3, size, size,
                      generator=torch.Generator().manual_seed(0)), samples


def attached(student, teacher, **options):
    hook = DistillHook(teacher=teacher, **{'precision': None, **options})
    hook.attach(student)
    return hook


def losses(model, data):
    inputs, samples = data
    return model(inputs, copy.deepcopy(samples), mode='loss')


def in_training(model):
    """Heads in train mode predict proxy poses, which the assigner needs; statistics stay."""
    model.head.head_module.training = True
    return model


@pytest.fixture(autouse=True)
def training(student):
    in_training(student)


def test_the_term_is_of_the_teachers_bins_at_the_students_boxes(student, teacher):
    """By hand, at each place that the head has chosen: the teacher's own vector there, asked about
    the student's box.
    """
    data, seen = batch(), []
    stock = losses(student, data)
    dcc = student.head.dcc
    forward_train = dcc.forward_train

    def spy(vectors, boxes, grids):
        out = forward_train(vectors, boxes, grids)
        seen.append((boxes.detach(), grids.detach(), [bins.detach() for bins in out[1]]))
        return out

    hook = attached(student, teacher)
    dcc.forward_train = spy
    try:
        found = losses(student, data)
    finally:
        del dcc.forward_train
        hook.detach()
    assert all(
        torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value))
        for key, value in stock.items())
    (boxes, grids, mine), = seen
    with torch.no_grad():
        *_, maps = teacher.head.head_module(teacher.extract_feat(data[0]))
        flat = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        points = torch.cat(teacher.head.prior_generator.grid_priors(
            [level.shape[2:] for level in maps], device='cpu'))
        *_, own = student.head.head_module(student.extract_feat(data[0]))
        own = torch.cat([level.flatten(2).transpose(1, 2) for level in own], 1)
        chosen = []
        for row, grid in enumerate(grids):  # in which image, is known by the student's answer there
            place = int((points - grid).abs().sum(1).argmin())
            there = [
                dcc.forward_train(image[place][None], boxes[row:row + 1], grid[None])[1][0]
                for image in own
            ]
            errors = torch.stack([(bins - mine[0][row]).abs().max() for bins in there])
            chosen.append(flat[int(errors.argmin()), place])
        _, theirs, _ = teacher.head.dcc.forward_train(torch.stack(chosen), boxes, grids)
    expected = sum((t.double() * (t.double().log() - s.double().log())).sum(-1).mean()
                   for s, t in zip(mine, theirs))
    assert expected > 0 and found['loss_logit'].item() == pytest.approx(expected.item(), rel=1e-3)


def test_its_own_copy_teaches_nothing(student, teacher):
    grads = []
    for other in (copy.deepcopy(student), teacher):
        hook = attached(student, other)
        term = losses(student, batch((1, )))['loss_logit']
        hook.detach()
        grads.append(torch.autograd.grad(term, student.head.dcc.x_fc.weight)[0].abs().max())
        assert len(grads) == 2 or term.abs() < 1e-6
    assert grads[0] < 1e-4 * grads[1]


def test_a_teacher_of_another_size_with_other_bins(student):
    teacher = build(
        1, **{
            'head.head_module_cfg.pose_vec_channels': 40,
            'head.dcc_cfg.in_channels': 40,
            'head.dcc_cfg.num_bins': (48, 20),
            'head.dcc_cfg.feat_channels': 8
        }).eval()
    for precision in (None, 'auto'):
        hook = attached(student, teacher, precision=precision, gt_weight=0.5)
        stock = losses(student, batch((1, )))
        assert stock['loss_logit'] > 0 and torch.isfinite(stock['loss_logit'])
        hook.detach()
    assert 'loss_logit' not in losses(student, batch((1, )))
    hook = attached(student, teacher)
    assert 'loss_logit' not in losses(student, batch((0, 0))), 'nobody is there'
    student(batch()[0], batch()[1], mode='predict')
    hook.detach()


def test_what_is_refused(student, teacher):
    with pytest.raises(UsageError, match='so many keypoints: 17 in the student, 14 in the teacher'):
        attached(student, build(1, **{'head.num_keypoints': 14}))
    with pytest.raises(UsageError, match='strides'):
        attached(student, build(1, **{'head.prior_generator.strides': [8, 16]}))
    with pytest.raises(UsageError,
                       match='around the boxes that it predicts.*without keypoints, flip'):
        attached(student, [teacher, teacher])
    with pytest.raises(UsageError, match='DistillHook teaches its bins'):
        PSKDHook().attach(student)
    with pytest.raises(UsageError, match='SimCCDistillLoss goes with KLDiscretLoss'):
        attached(student, teacher, losses=[dict(type='mmskd.SimCCDistillLoss')])
