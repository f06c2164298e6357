"""Heads of query models (the DETR family): a few layers behind a decoder."""
from typing import List

from torch import nn

from .adapter import HeadAdapter, register_head


@register_head('DETRHead')
class QueryHeadAdapter(HeadAdapter):
    """Scores of each decoder layer's queries; the teacher's decoder is asked about the student's queries."""

    def links(self, model: nn.Module) -> List[str]:
        names = ['encoder', 'decoder', 'memory_trans_fc', 'memory_trans_norm']
        if getattr(model, 'as_two_stage', False):  # scores the encoder's output to choose the queries
            names.append(f'{self.name}.cls_branches.{model.decoder.num_layers}')
        return names
