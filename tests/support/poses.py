"""The stock mmpose estimators that the tests run on: real configs, small crops and backbones."""
from typing import List, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmpose.registry import MODELS
from mmpose.structures import PoseDataSample
from mmpose.testing import get_packed_inputs
from mmpose.utils import register_all_modules
from torch import Tensor, nn

BODY = 'mmpose::body_2d_keypoint'
FAMILIES = {
    'rtmpose': f'{BODY}/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py',
    'rtmw': 'mmpose::wholebody_2d_keypoint/rtmpose/cocktail14/'
            'rtmw-m_8xb1024-270e_cocktail14-256x192.py',
    'simcc': f'{BODY}/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py',
    'heatmap': f'{BODY}/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py',
    'hrnet': f'{BODY}/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py',
    'mspn': f'{BODY}/topdown_heatmap/coco/td-hm_2xmspn50_8xb32-210e_coco-256x192.py',
    'hourglass': f'{BODY}/topdown_heatmap/coco/td-hm_hourglass52_8xb32-210e_coco-256x256.py',
    'cpm': f'{BODY}/topdown_heatmap/coco/td-hm_cpm_8xb64-210e_coco-256x192.py',
}
KL = ('rtmpose', 'rtmw', 'simcc')
"""The families with a KL loss; the others compare heatmaps by MSE."""

R18 = {'backbone.depth': 18, 'head.in_channels': 512}
SIMCC = {'head.input_size': (96, 128), 'head.in_featuremap_size': (3, 4),
         'head.decoder.input_size': (96, 128)}
HEATMAP = {'head.decoder.input_size': (96, 128), 'head.decoder.heatmap_size': (24, 32)}
SMALLER = {
    'rtmpose': SIMCC,
    'rtmw': {**SIMCC, 'backbone.deepen_factor': 0.167, 'neck.num_csp_blocks': 1},
    'simcc': {**R18, **SIMCC}, 'heatmap': {**R18, **HEATMAP},
    'hrnet': {'backbone.extra.stage1.num_blocks': (1, ),
              'backbone.extra.stage2.num_channels': (8, 16),
              'backbone.extra.stage3.num_channels': (8, 16, 32),
              'backbone.extra.stage3.num_modules': 1,
              'backbone.extra.stage4.num_channels': (8, 16, 32, 64),
              'backbone.extra.stage4.num_modules': 1, 'head.in_channels': 8, **HEATMAP},
    'mspn': {'backbone.num_blocks': [1, 1, 1, 1], **HEATMAP, 'head.out_shape': (32, 24)},
    'hourglass': {'backbone.stage_channels': (256, 64, 64, 64, 64, 64),
                  'head.decoder.input_size': (128, 128), 'head.decoder.heatmap_size': (32, 32)},
    'cpm': {'backbone.num_stages': 2, 'head.num_stages': 2,
            'head.decoder.input_size': (96, 128), 'head.decoder.heatmap_size': (12, 16)},
}
"""What makes the stock model quick on a CPU: small crops and backbones, its own heads and losses.
"""


def stock_config(name: str, **options) -> ConfigDict:
    """The model section of a stock config, without pretrained weights.

    Args:
        name (str): One of ``FAMILIES``, or any config by its mmpose name.
        options: Changes to the model section, by dotted key.
    """
    config = get_config(FAMILIES.get(name, name))
    changes = {**SMALLER.get(name, {}), **options}
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    config.model.backbone.init_cfg = None
    _without_syncbn(config.model)
    return config.model


def _without_syncbn(node) -> None:
    """On a CPU there is none."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and value.get('type') == 'SyncBN':
            value['type'] = 'BN'
        elif isinstance(value, (dict, list, tuple)):
            _without_syncbn(value)


def build(name: str, seed: int = 0, **options) -> nn.Module:
    """A stock estimator in train mode, with the same random weights on each call."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(seed)
    return MODELS.build(stock_config(name, **options)).train()


def batch(model: nn.Module, images: int = 2) -> Tuple[Tensor, List[PoseDataSample]]:
    """Preprocessed crops and their targets, with invisible keypoints, the same on each call."""
    head = model.head
    width, height = head.decoder.input_size
    np.random.seed(0)  # get_packed_inputs shuffles the flip indices
    packed = get_packed_inputs(
        images, num_keypoints=head.out_channels, num_levels=_levels(head),
        img_shape=(height, width), input_size=(width, height),
        heatmap_size=getattr(head.decoder, 'heatmap_size', None) or (48, 64),
        simcc_split_ratio=getattr(head, 'simcc_split_ratio', 2.0))
    data = model.data_preprocessor(packed, training=True)
    for sample in data['data_samples']:
        labels = sample.gt_instance_labels
        labels.keypoint_weights[..., 0] = 0.
        if _levels(head) > 1:  # (instances, levels, K), but GenerateTarget puts levels first
            weights = labels.keypoint_weights.transpose(0, 1)
            sample.gt_instance_labels = type(labels)(keypoint_weights=weights)
    return data['inputs'], data['data_samples']


def _levels(head: nn.Module) -> int:
    return max(getattr(head, 'level_indices', [0])) + 1


def losses(model: nn.Module, data=None) -> dict:
    """The training losses."""
    inputs, samples = data or batch(model)
    return model(inputs, [sample.clone() for sample in samples], mode='loss')


def total(loss_dict: dict) -> Tensor:
    """What is minimised: the sum of the losses."""
    return sum(value for key, value in loss_dict.items() if 'loss' in key)
