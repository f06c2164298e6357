"""The stock mmdet detectors that the tests run on: real configs, small images."""
from typing import List, Tuple

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

FAMILIES = {
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'atss': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'gfl': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'tood': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'vfnet': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'ssd': 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'faster_rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn': 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'detr': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'deformable_detr': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}


R18 = {'backbone.depth': 18}
FPN = {**R18, 'neck.in_channels': [64, 128, 256, 512]}
TRANSFORMER = {**R18, 'num_queries': 20, 'encoder.num_layers': 1, 'decoder.num_layers': 2}
SMALLER = {
    **dict.fromkeys(FAMILIES, FPN), 'rtmdet': {}, 'yolox': {}, 'ssd': {},
    **dict.fromkeys(('faster_rcnn', 'mask_rcnn'),
                    {**FPN, 'roi_head.bbox_head.fc_out_channels': 64}),
    'cascade_rcnn': {**FPN, **{f'roi_head.bbox_head.{stage}.fc_out_channels': 64
                               for stage in range(3)}},
    'detr': {**TRANSFORMER, 'neck.in_channels': [512]},
    'deformable_detr': {**TRANSFORMER, 'neck.in_channels': [128, 256, 512]},
    'dino': {**TRANSFORMER, 'neck.in_channels': [128, 256, 512]}
}
"""What makes the stock model quick on a CPU; its heads and losses are not touched."""


def stock_config(name: str, **options) -> ConfigDict:
    """The model section of a stock config, without pretrained weights.

    Args:
        name (str): One of ``FAMILIES``, or any config by its mmdet name.
        options: Changes to the model section, by dotted key.
    """
    config = get_config(FAMILIES.get(name, name))
    changes = {**SMALLER.get(name, {}), **options}
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    config.model.backbone.init_cfg = None
    return config.model


def build(name: str, **options) -> nn.Module:
    """A stock detector in train mode, with the same random weights on each call."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(stock_config(name, **options)).train()
    # Until init_weights, which logs each parameter, these are whatever the memory held.
    for module in model.modules():
        if hasattr(module, 'level_embed'):
            nn.init.normal_(module.level_embed)
    return model


def batch(size: int = 64, images: int = 2, objects: int = 3,
          num_classes: int = 80, masks: bool = False) -> Tuple[Tensor, List[DetDataSample]]:
    """Preprocessed images and their ground truth, the same on each call."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(images, 3, size, size, generator=generator)
    samples = []
    for _ in range(images):
        corner = torch.rand(objects, 2, generator=generator) * size / 2
        extent = (torch.rand(objects, 2, generator=generator) * 0.4 + 0.1) * size
        sample = DetDataSample(metainfo=dict(
            img_shape=(size, size), batch_input_shape=(size, size), ori_shape=(size, size),
            pad_shape=(size, size), scale_factor=(1., 1.), img_id=0))
        boxes = torch.cat([corner, corner + extent], 1)
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(num_classes, (objects, ), generator=generator))
        sample.ignored_instances = InstanceData(bboxes=boxes.new_zeros(0, 4))
        if masks:
            sample.gt_instances.masks = _box_masks(boxes, size)
            sample.ignored_instances.masks = _box_masks(boxes[:0], size)
        samples.append(sample)
    return inputs, samples


def _box_masks(boxes: Tensor, size: int):
    from mmdet.structures.mask import BitmapMasks
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    return BitmapMasks(masks.numpy(), size, size)


def losses(model: nn.Module, data=None, seed: int = 0, epoch: int = 0) -> dict:
    """The training losses; sampling and query noise as the seed has it (TOOD asks for the epoch).
    """
    torch.manual_seed(seed)
    MessageHub.get_current_instance().update_info('epoch', epoch)
    if data is None:
        data = batch(masks=model.with_mask)
    inputs, samples = data
    return model(inputs, [sample.clone() for sample in samples], mode='loss')


def total(loss_dict: dict, part: str = 'loss') -> Tensor:
    """The sum of the losses whose key ends with ``part`` (RPN left out for the class losses)."""
    values = [value for key, value in loss_dict.items()
              if 'loss' in key and part in key and not ('cls' in part and 'rpn' in key)]
    return sum(sum(item.sum() for item in value) if isinstance(value, (list, tuple)) else
               value.sum() for value in values)
