"""The terms of box and mask heads against their formulas."""
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.models.head_distill.roi import BoxDistiller, mask_term  # noqa: E402
from mmskd.models.heads import adapter_of  # noqa: E402
from tests.support import detectors  # noqa: E402

CLASSES, ROIS = 3, 6


@pytest.mark.parametrize('agnostic', [False, True])
def test_boxes_count_by_the_probability_of_their_class(agnostic):
    head = detectors.build('faster_rcnn', **{
        'roi_head.bbox_head.num_classes': CLASSES,
        'roi_head.bbox_head.reg_class_agnostic': agnostic}).roi_head.bbox_head
    boxes = 1 if agnostic else CLASSES
    (z, d), (t, e) = ((torch.randn(ROIS, CLASSES + 1).double(), torch.randn(ROIS,
                                                                            boxes * 4).double())
                      for _ in range(2))
    terms = BoxDistiller(adapter_of('roi_head.bbox_head', head))((z, d), (t, e))
    q = t.softmax(1)
    assert torch.allclose(terms['loss_cls'], (q * (q.log() - z.log_softmax(1))).sum(1).mean())
    weight = q[:, :-1].sum(1, keepdim=True) if agnostic else q[:, :-1]
    distance = (d - e).abs().view(ROIS, boxes, 4).sum(-1)
    assert torch.allclose(terms['loss_bbox'], (weight * distance).sum() / ROIS)


def test_the_mask_of_the_label_counts():
    head = SimpleNamespace(loss_mask=SimpleNamespace(loss_weight=2.))
    z, t = torch.randn(2, ROIS, CLASSES, 4, 4).double()
    labels = torch.randint(CLASSES, (ROIS, ))
    p, q = (torch.stack([side[i, label] for i, label in enumerate(labels)]).sigmoid()
            for side in (z, t))
    divergence = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    assert torch.allclose(mask_term(head, z, t, labels), 2 * divergence.mean(), rtol=1e-4)
