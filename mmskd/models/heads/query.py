"""Heads of query models (the DETR family): a few layers behind a decoder."""
from typing import Any, List

import torch
from torch import Tensor, nn

from ..losses.boxes import BoxLesson
from ..losses.soft_target import at_least_float32
from .adapter import HeadAdapter, register_head


@register_head('DETRHead', 'ConditionalDETRHead', 'DABDETRHead', 'DeformableDETRHead', 'DINOHead')
class QueryHeadAdapter(HeadAdapter):
    """Scores and boxes of each decoder layer.

    The teacher's decoder is asked the student's queries.
    """

    has_boxes = True
    decodes = ('decoder', 'bbox_head')

    def box_lessons(self, output: Any, answer: Any) -> List[BoxLesson]:
        """One for each decoder layer, as its own losses."""
        loss = self.class_loss()
        lessons = []
        for mine, scores, theirs in zip(output[1], *map(at_least_float32, answer[:2])):
            confidence = loss.probability(scores)[..., :self.head.num_classes].amax(-1)
            lessons.append(BoxLesson(_corners(mine), _corners(theirs), confidence.flatten()**2))
        return lessons

    def links(self, model: nn.Module) -> List[str]:
        names = ['encoder', 'decoder', 'memory_trans_fc', 'memory_trans_norm']
        # scores the encoder's output to choose the queries
        if getattr(model, 'as_two_stage', False):
            names.append(f'{self.name}.cls_branches.{model.decoder.num_layers}')
        return names


def _corners(boxes: Tensor) -> Tensor:
    """(images, queries, 4), centres and sizes as fractions of the image, as corners (N, 4)."""
    boxes = at_least_float32(boxes).reshape(-1, 4)
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)
