"""What is compared between two one-stage heads, against formulas and against the heads' own
decoding.
"""
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures.bbox import bbox_overlaps  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402

from mmskd.models.head_distill.dense import DenseDistiller  # noqa: E402
from mmskd.models.heads import adapter_of  # noqa: E402
from tests.support import detectors  # noqa: E402

SIZES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
CLASSES = 3
DECODED = ['fcos', 'atss', 'gfl', 'tood', 'vfnet', 'rtmdet', 'yolox', 'retinanet']


def build(family, **options):
    options = {'bbox_head.num_classes': CLASSES, **options}
    return detectors.build(family, **options).bbox_head


def maps(head, seed, sizes=SIZES, images=2, dtype=torch.float64):
    """Outputs as of a RetinaNet or FCOS head: noise."""
    generator = torch.Generator().manual_seed(seed)
    count = head.num_base_priors
    channels = [count * head.cls_out_channels, count * 4] + [1] * hasattr(head, 'conv_centerness')
    noise = lambda channel, size: torch.randn(  # noqa: E731
        images, channel, *size, generator=generator, dtype=dtype)
    outputs = [[noise(channel, size) for size in sizes] for channel in channels]
    if len(outputs) == 3:
        outputs[1] = [level.exp() for level in outputs[1]]  # distances
    return outputs


def rows(levels, width):
    """Independent of the order of priors, as long as it is the same for all outputs."""
    return torch.cat([level.unflatten(1, (-1, width)).movedim(2, -1).reshape(-1, width)
                      for level in levels])


def focal(logits, target, gamma=2., alpha=0.25):
    p = logits.sigmoid()
    entropy = -(target * p.log() + (1 - target) * (1 - p).log())
    return (alpha * target + (1 - alpha) * (1 - target)) * (target - p).abs()**gamma * entropy


def test_retinanet_by_the_formula():
    head = build('retinanet')
    student, teacher = maps(head, 1), maps(head, 2)
    terms = DenseDistiller(adapter_of('bbox_head', head))(student, teacher)
    (z, d), (t, e) = ([rows(side[0], CLASSES), rows(side[1], 4)] for side in (student, teacher))
    q = t.sigmoid()
    weight = q.amax(1)**2
    assert torch.allclose(terms['loss_cls'], focal(z, q).sum() / weight.sum())
    assert torch.allclose(terms['loss_bbox'], (weight[:, None] *
                                               (d - e).abs()).sum() / weight.sum())
    assert list(terms) == ['loss_cls', 'loss_bbox']


def test_fcos_by_the_formula():
    head = build('fcos')
    student, teacher = maps(head, 1), maps(head, 2)
    terms = DenseDistiller(adapter_of('bbox_head', head))(student, teacher)
    mine, theirs = ([rows(side[0], CLASSES), rows(side[1], 4), rows(side[2], 1)[:, 0]]
                    for side in (student, teacher))
    weight = theirs[0].sigmoid().amax(1)**2
    overlap = (torch.minimum(mine[1], theirs[1]).unflatten(1, (2, 2)).sum(1)).prod(1)
    area = [side[1].unflatten(1, (2, 2)).sum(1).prod(1) for side in (mine, theirs)]
    iou = overlap / (area[0] + area[1] - overlap)
    expected = -(weight * iou.log()).sum() / weight.sum()
    assert torch.allclose(terms['loss_bbox'], expected, rtol=1e-5)
    p, q = mine[2].sigmoid(), theirs[2].sigmoid()
    divergence = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    assert torch.allclose(terms['loss_centerness'], (weight * divergence).sum() / weight.sum())


def test_ssd_keeps_the_share_of_its_mining():
    head = build('ssd')
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([[
        torch.randn(1, count * width, size, size, generator=generator)
        for count, size in zip(head.prior_generator.num_base_priors, (5, 3, 2, 1, 1, 1))
    ]
                         for width in (CLASSES + 1, 4)]
                        for _ in range(2))
    term = DenseDistiller(adapter_of('bbox_head', head))(student, teacher)['loss_cls']
    z, t = (rows(side[0], CLASSES + 1) for side in (student, teacher))
    q = t.softmax(1)
    foreground = q[:, :-1].amax(1)**2
    weight = foreground + 3 * foreground.sum() * (1 - foreground) / (1 - foreground).sum()
    assert torch.allclose(weight.sum(), 4 * foreground.sum())
    divergence = (q * (q.log() - z.log_softmax(1))).sum(1)
    assert torch.allclose(term, (weight * divergence).sum() / foreground.sum(), rtol=1e-4)


@pytest.mark.parametrize('family', ['retinanet', 'fcos'])
def test_more_images_or_more_background_do_not_change_the_loss(family):
    head = build(family)
    distiller = DenseDistiller(adapter_of('bbox_head', head))
    student, teacher = maps(head, 1), maps(head, 2)
    once = distiller(student, teacher)
    twice = distiller(*([[torch.cat([level, level]) for level in levels] for levels in side]
                        for side in (student, teacher)))
    larger = distiller(*([[
        torch.nn.functional.pad(level, (0, level.size(3), 0,
                                        level.size(2)), value=-12. if index == 0 else 1.)
        for level in levels
    ]
                          for index, levels in enumerate(side)]
                         for side in (student, teacher)))
    for key, value in once.items():
        assert torch.allclose(twice[key], value) and torch.allclose(larger[key], value, rtol=1e-3)


@pytest.mark.parametrize('family', DECODED)
def test_overlaps_are_those_of_the_boxes_that_the_head_reports(family):
    """Train-mode outputs, as they are compared here, against eval-mode outputs decoded by the head.
    """
    # or half the boxes are inside out
    options = {'rtmdet': {'bbox_head.exp_on_reg': True}}.get(family, {})
    head = build(family, **{'bbox_head.num_classes': 1, **options}).eval()
    adapter = adapter_of('bbox_head', head)
    if family != 'yolox':  # has no coder, and does not cut boxes at the image's edge
        head.bbox_coder.clip_border = False
    generator = torch.Generator().manual_seed(3)
    levels = len(head.prior_generator.strides)
    compared, reported = [], []
    for _ in range(2):
        features = [torch.randn(1, head.in_channels, *size, generator=generator)
                    for size in SIZES[:levels]]
        with torch.no_grad():
            head.training = True
            outputs = head(features)
            head.training = False
            evaluated = list(head(features))
        index = 2 if family == 'vfnet' else 1
        prediction = adapter.flatten(outputs)[index]
        compared.append(adapter.corners(prediction, adapter.priors(prediction, SIZES[:levels])))
        evaluated[0] = in_order(evaluated[0], family)
        if len(evaluated) == 3:
            evaluated[2] = [torch.ones_like(level) for level in evaluated[2]]
        image = [dict(img_shape=(64, 64), scale_factor=(1., 1.), ori_shape=(64, 64))]
        cfg = ConfigDict(score_thr=-1., nms_pre=10**6, min_bbox_size=-1, max_per_img=10**6)
        result, = head.predict_by_feat(*evaluated, batch_img_metas=image, cfg=cfg, with_nms=False)
        reported.append(result.bboxes)
    assert adapter.exact and adapter.compares_boxes == (family != 'retinanet')
    assert len(compared[0]) == len(reported[0])
    boxes = torch.stack([(side[:, 2:] > side[:, :2]).all(1) for side in reported]).all(0)
    assert boxes.float().mean() > 0.1  # a random head turns some inside out
    ours, theirs = (bbox_overlaps(*pair, is_aligned=True)[boxes] for pair in (compared, reported))
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.std() > 0


def in_order(scores, family):
    """Class scores that fall from prior to prior, so that the head reports the boxes in that order.
    """
    total = sum(level.numel() for level in scores)
    falling, begin = [], 0
    for level in scores:
        _, channels, height, width = level.shape
        values = torch.linspace(0.9, 0.1, total)[begin:begin + level.numel()]
        begin += level.numel()
        values = values if family == 'tood' else values.logit()
        falling.append(values.view(1, height, width, channels).permute(0, 3, 1, 2))
    return falling


def test_boxes_that_are_inside_out_are_drawn_to_the_teachers():
    """RTMDet may predict negative distances; an overlap would reward a box for being more inside
    out.
    """
    head = build('rtmdet')
    scores = [torch.full((1, CLASSES, 1, 1), 20., dtype=torch.float64)]
    teacher = torch.tensor([3., 4., 5., 6.], dtype=torch.float64).view(1, 4, 1, 1)
    distiller = DenseDistiller(adapter_of('bbox_head', head))
    before = None
    for distance in (-1., -10., -100.):
        student = torch.full_like(teacher, distance).requires_grad_()
        loss = distiller([scores, [student]], [scores, [teacher]])['loss_bbox']
        loss.backward()
        assert (student.grad < 0).all()  # less negative is better
        assert before is None or loss > before
        before = loss
    # extents 8 and 10; the teacher is sure
    expected = (teacher + 100).mean() / 9 * head.loss_bbox.loss_weight
    assert torch.allclose(loss, expected)
    assert distiller([scores, [student]], [scores, [student]])['loss_bbox'] == 0  # no box to learn
