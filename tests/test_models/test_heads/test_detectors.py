"""What heads of detectors decide by their losses stays as it is without a teacher."""
import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from tests.support import detectors  # noqa: E402
from tests.support.detectors import FPN  # noqa: E402


def taught(config, data, alpha_t, **options):
    """Stock losses of a model, and those with a past self that is surer of everything."""
    model = detectors.build(f'mmdet::{config}', **options)
    stock = detectors.losses(model, data)
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    with torch.no_grad():
        for name, parameter in hook.teacher.named_parameters():
            parameter.mul_(1.1 if 'head' in name else 1.)
    hook.alpha_t = alpha_t
    return stock, detectors.losses(model, data), hook


def summed(value):
    return sum(item.sum() for item in value) if isinstance(value, list) else value.sum()


@pytest.mark.parametrize('config', [
    'paa/paa_r50_fpn_1x_coco.py', 'pisa/retinanet-r50_fpn_pisa_1x_coco.py',
    'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py', 'faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py',
    'fsaf/fsaf_r50_fpn_1x_coco.py'], ids=['paa', 'pisa-retinanet', 'pisa-faster', 'ohem', 'fsaf'])
@pytest.mark.parametrize('alpha_t', [1.])
def test_assignment_and_mining_see_the_hard_targets(config, alpha_t):
    data = detectors.batch(64, 1)
    stock, soft, hook = taught(config, data, alpha_t, **FPN)
    moved = [key for key in stock if not torch.equal(summed(stock[key]), summed(soft[key]))]
    assert moved == ['loss_cls'] and all(torch.isfinite(summed(value)) for value in soft.values())
    assert all(head.calls == head.paired > 0 for head in hook.heads_taught)


@pytest.mark.parametrize('config,options', [
    ('solo/solo_r50_fpn_1x_coco.py', FPN), ('solo/decoupled-solo_r50_fpn_1x_coco.py', FPN),
    ('solov2/solov2_r50_fpn_1x_coco.py', FPN), ('yolact/yolact_r50_1xb8-55e_coco.py', FPN),
    ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', FPN),
    ('guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py', FPN)],
    ids=['solo', 'decoupled-solo', 'solov2', 'yolact', 'condinst', 'ga-retinanet'])
def test_heads_that_return_their_scores_elsewhere_or_keep_tensors(config, options):
    data = detectors.batch(64, 1, num_classes=20, masks=True)
    model = detectors.build(f'mmdet::{config}', **options)
    detectors.losses(model, data)  # heads keep tensors of this pass
    stock = detectors.losses(model, data)
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.
    for key, value in detectors.losses(model, data).items():
        assert torch.equal(summed(value), summed(stock[key]))
    hook.alpha_t = 1.
    with torch.no_grad():
        for parameter in hook.teacher.parameters():
            parameter.mul_(1.05)
    assert not torch.equal(summed(detectors.losses(model, data)['loss_cls']),
                           summed(stock['loss_cls']))
