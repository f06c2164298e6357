import copy

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.models.heads import TaughtHead, choose_heads  # noqa: E402
from mmskd.models.pairing import Pair, unpair  # noqa: E402
from mmskd.models.taps import Tap  # noqa: E402
from mmskd.models.teachers import Mirror  # noqa: E402
from mmskd.models.teachers.mirror import feature_links  # noqa: E402
from tests.support import detectors  # noqa: E402


@pytest.mark.parametrize('family,links', [
    ('retinanet', ['backbone', 'neck']),
    ('ssd', ['backbone', 'neck']),
    ('mask_rcnn', ['backbone', 'neck', 'roi_head.bbox_roi_extractor']),
    ('cascade_rcnn', ['backbone', 'neck', *(f'roi_head.bbox_roi_extractor.{i}' for i in range(3))]),
    ('deformable_detr', ['backbone', 'neck', 'encoder', 'decoder']),
    ('dino', ['backbone', 'neck', 'encoder', 'decoder', 'memory_trans_fc', 'memory_trans_norm',
              'bbox_head.cls_branches.2']),
])
def test_links_between_image_and_head(family, links):
    model = detectors.build(family)
    assert feature_links(model, choose_heads(model)) == links


def mirror_of(model):
    return Mirror(model, [TaughtHead(head) for head in choose_heads(model)])


def other_self(model):
    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    return teacher


def seen_by(model, name):
    """What a head's loss is called with: its class scores."""
    seen = []
    head = model.get_submodule(name)
    loss = head.loss_cls
    loss.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


def test_the_pair_of_a_dense_head_is_the_teachers_own_prediction():
    model = detectors.build('gfl').eval()
    teacher = other_self(model)
    mirror = mirror_of(model)
    seen = seen_by(model, 'bbox_head')
    inputs, samples = detectors.batch()
    mirror.start(teacher)
    detectors.losses(model, (inputs, samples))
    mirror.stop()
    expected = teacher.bbox_head(teacher.extract_feat(inputs))[0]
    assert len(seen) == len(expected) == 5
    for scores, level in zip(seen, expected):
        assert torch.equal(unpair(scores)[1], level.permute(0, 2, 3, 1).reshape(-1, 80))


def test_the_teacher_of_a_two_stage_model_is_asked_about_the_students_boxes():
    model = detectors.build('faster_rcnn').eval()
    teacher = other_self(model)
    mirror = mirror_of(model)
    boxes, seen = [], seen_by(model, 'roi_head.bbox_head')
    model.roi_head.bbox_roi_extractor.register_forward_pre_hook(
        lambda module, args: boxes.append(args[1]))
    inputs, samples = detectors.batch()
    mirror.start(teacher)
    detectors.losses(model, (inputs, samples))
    features = teacher.roi_head.bbox_roi_extractor(teacher.extract_feat(inputs)[:4], boxes[0])
    assert torch.equal(unpair(seen[0])[1], teacher.roi_head.bbox_head(features)[0])


def test_the_teacher_of_a_query_model_decodes_the_students_queries():
    model = detectors.build('dino')
    teacher = other_self(model)
    mirror = mirror_of(model)
    asked = {}
    for name, net in (('student', model), ('teacher', teacher)):
        net.decoder.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: asked.update({name: kwargs}), with_kwargs=True)
    mirror.start(teacher)
    detectors.losses(model)
    for same in ('query', 'reference_points', 'self_attn_mask'):
        assert torch.equal(asked['student'][same], asked['teacher'][same])
    assert not torch.equal(asked['student']['value'], asked['teacher']['value'])
    assert asked['teacher']['reg_branches'] is teacher.bbox_head.reg_branches


def test_modules_see_plain_tensors_and_removal_leaves_nothing():
    model = detectors.build('mask_rcnn')
    mirror = mirror_of(model)
    kinds = []
    for module in model.modules():
        module.register_forward_pre_hook(
            lambda module, args: kinds.extend(type(arg) for arg in args))
    mirror.start(other_self(model))
    detectors.losses(model)
    assert sum(kind is Pair for kind in kinds) <= 1  # the loss itself
    mirror.remove()
    assert not model.backbone._forward_hooks and not model.rpn_head._forward_hooks


def test_without_a_teacher_nothing_is_paired():
    model = detectors.build('retinanet')
    mirror = mirror_of(model)
    seen = seen_by(model, 'bbox_head')
    detectors.losses(model)
    mirror.start(other_self(model))
    mirror.stop()
    detectors.losses(model)
    assert not any(isinstance(scores, Pair) for scores in seen)


def test_a_tap_is_copied_as_nothing():
    calls = []
    tap = Tap(calls.append)
    tap(1)
    copy.deepcopy(tap)(2)
    assert calls == [1]
