"""HeadDistillHook on detectors: what is frozen stays bit for bit, the heads learn from the trained
ones.
"""
import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from mmskd.engine.hooks import HeadDistillHook  # noqa: E402
from tests.support import detectors, runs  # noqa: E402

HEADS = {
    **dict.fromkeys(detectors.FAMILIES, ['bbox_head']),
    'faster_rcnn': ['roi_head.bbox_head'], 'cascade_rcnn': ['roi_head.bbox_head'],
    'mask_rcnn': ['roi_head.bbox_head', 'roi_head.mask_head'],
}
QUERIES = ('detr', 'deformable_detr', 'dino')
FAMILIES = [name for name in detectors.FAMILIES if name not in QUERIES]
CLASSES = 5
DENSE = {'bbox_head.num_classes': CLASSES}
STAGE = {'fc_out_channels': 64, 'num_classes': CLASSES}
BOXES = {'train_cfg.rcnn.sampler.num': 32,
         **{f'roi_head.bbox_head.{key}': value for key, value in STAGE.items()}}
SMALLER = {
    **dict.fromkeys(FAMILIES, {
        **DENSE, 'bbox_head.feat_channels': 64,
        'bbox_head.stacked_convs': 2
    }),
    'ssd': DENSE,
    'faster_rcnn': BOXES,
    'mask_rcnn': {
        **BOXES, 'roi_head.mask_head.num_classes': CLASSES,
        'roi_head.mask_head.num_convs': 1
    },
    'cascade_rcnn': {
        f'train_cfg.rcnn.{stage}.sampler.num': 32
        for stage in range(3)
    },
}
for stage in range(3):
    SMALLER['cascade_rcnn'].update(
        {f'roi_head.bbox_head.{stage}.{key}': value for key, value in STAGE.items()})
"""Besides ``detectors.SMALLER``; which outputs there are, and what they mean, is not touched."""


def build(family: str) -> nn.Module:
    return detectors.build(family, **SMALLER.get(family, {}))


def batch(model: nn.Module, images: int = 2) -> tuple:
    return detectors.batch(64, images, num_classes=CLASSES, masks=model.with_mask)


def losses_of(model: nn.Module, data=None) -> dict:
    return detectors.losses(model, data or batch(model))


def trained(family: str, folder) -> str:
    """A checkpoint whose every parameter and statistic differs from what :func:`build` gives."""
    model = build(family)
    generator = torch.Generator().manual_seed(5)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.02
            value.add_(noise.abs() if name.endswith('running_var') else noise)
            if 'rtm_reg' in name and name.endswith('bias'):
                value.add_(2)  # strides: the boxes of a trained head have some extent
    return saved(model, folder)


def saved(model: nn.Module, folder) -> str:
    path = str(folder / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def in_heads(name: str, family: str) -> bool:
    return name.startswith(tuple(f'{head}.' for head in HEADS[family]))


def split(state: dict, family: str) -> tuple:
    """What is frozen, and what is the heads'."""
    parts = [{key: value.clone() for key, value in state.items() if in_heads(key, family) == inside}
             for inside in (False, True)]
    return tuple(parts)


def loss_value(losses: dict, key: str) -> float:
    return detectors.total(losses, key).item()


@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_heads_learn(family, tmp_path):
    model = build(family)
    keys, flags = list(model.state_dict()), requires_grad(model)
    fresh = split(model.state_dict(), family)[1]
    hook = HeadDistillHook(checkpoint=trained(family, tmp_path))
    hook.attach(model)
    source = load_checkpoint_safely(hook.checkpoint)['state_dict']
    assert list(model.state_dict()) == keys
    frozen, head = split(model.state_dict(), family)
    runs.assert_equal(frozen, split(source, family)[0])
    runs.assert_equal(head, fresh)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.5)
    losses = losses_of(model.train())
    terms = {key: value for key, value in losses.items() if 'distill_' in key}
    assert terms and all(value.isfinite() and value > 0 for value in terms.values())
    assert all(loss_value({key: value}, 'loss') == 0
               for key, value in losses.items() if 'loss' in key and key not in terms)
    detectors.total(losses).backward()
    for name, param in model.named_parameters():  # none without: DDP need not look for unused ones
        assert (param.grad is not None) == in_heads(name, family), name
    optimizer.step()
    for _ in range(2):
        if family != 'ssd':  # which cannot predict in MMDetection 3.3
            model.eval()(*batch(model), mode='predict')
        optimizer.zero_grad()
        detectors.total(losses_of(model.train())).backward()
        optimizer.step()
    frozen_now, head_now = split(model.state_dict(), family)
    runs.assert_equal(frozen_now, frozen)
    assert all(not torch.equal(value, head[key]) for key, value in head_now.items()
               if key.endswith('.weight') and value.dim() > 1)

    hook.detach()
    assert requires_grad(model) == flags and list(model.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not [type(module) for module in model.modules()
                if type(module).__module__.startswith('mmskd')]


def requires_grad(model: nn.Module) -> dict:
    return {name: param.requires_grad for name, param in model.named_parameters()}


@pytest.mark.parametrize('family', FAMILIES)
def test_the_trained_heads_have_nothing_to_learn_from_themselves(family, tmp_path):
    model = build(family)
    hook = HeadDistillHook(checkpoint=trained(family, tmp_path), reinit_head=False, precision=None)
    hook.attach(model)
    losses = losses_of(model.train())
    assert all(
        loss_value({key: value}, 'loss') == 0 for key, value in losses.items() if 'loss' in key)
    detectors.total(losses).backward()
    assert max(param.grad.abs().max()
               for param in model.parameters()
               if param.grad is not None) < 1e-6


# steps, learning rate
TRAINING = {
    **dict.fromkeys(FAMILIES, (100, 1e-3)),
    **dict.fromkeys(('fcos', 'atss', 'gfl', 'vfnet'), (50, 2e-3)),
    'ssd': (25, 2e-3), 'cascade_rcnn': (80, 1e-3), 'rtmdet': (100, 4e-3), 'yolox': (150, 1e-3)}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_fresh_head_goes_to_the_level_of_the_trained_one(family, tmp_path):
    model = build(family)
    hook = HeadDistillHook(checkpoint=trained(family, tmp_path))
    hook.attach(model)
    teacher = {key: value.clone() for key, value in hook._distiller.teacher.state_dict().items()}
    # SSD's last map is one pixel, of which a norm layer in training needs two
    data = batch(model, images=2 if family == 'ssd' else 1)
    features = model.eval().extract_feat(data[0])
    model.extract_feat = lambda inputs: features  # they do not change
    steps, rate = TRAINING[family]
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad],
                                 rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = []
    for _ in range(steps):
        losses = losses_of(model.train(), data)
        optimizer.zero_grad()
        detectors.total(losses).backward()
        optimizer.step()
        schedule.step()
        seen.append({key: value.item() for key, value in losses.items() if 'distill_' in key})
    first, last = seen[0], seen[-1]
    assert 0 <= sum(last.values()) < 0.2 * sum(first.values())
    for key in first:  # scores, qualities, masks
        assert 'bbox' in key or 'dfl' in key or -1e-5 < last[key] < 0.1 * first[key], key
    runs.assert_equal(dict(hook._distiller.teacher.state_dict()), teacher)


# mmcv's ops on a CPU know no bfloat16
@pytest.mark.parametrize('family', ['retinanet', 'gfl', 'rtmdet', 'yolox'])
def test_mixed_precision_compares_in_float32(family, tmp_path):
    model = build(family)
    hook = HeadDistillHook(checkpoint=trained(family, tmp_path))
    hook.attach(model)
    whole = losses_of(model.train())
    with torch.autocast('cpu', torch.bfloat16):
        half = losses_of(model.train())
    for key in [key for key in whole if 'distill_' in key]:
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(whole[key].item(), rel=0.02)
    detectors.total(half).backward()
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.requires_grad)


def test_gamma_and_gt_weight_are_factors(tmp_path):
    model = build('faster_rcnn')
    checkpoint = trained('faster_rcnn', tmp_path)
    seen = {}
    for gamma, gt_weight in ((1., 1.), (2., 0.5), (0., 1.)):
        hook = HeadDistillHook(checkpoint=checkpoint, gamma=gamma, gt_weight=gt_weight)
        hook.attach(model)
        seen[gamma] = losses_of(model.train())
        hook.detach()
    for key in ('loss_cls', 'loss_bbox'):
        assert torch.allclose(seen[2.][key], 0.5 * seen[1.][key]) and seen[1.][key] > 0
        assert torch.equal(seen[0.][key], seen[1.][key])
        assert torch.allclose(seen[2.][f'distill_{key}'], 2 * seen[1.][f'distill_{key}'])
    assert not [key for key in seen[0.] if 'distill' in key]
    assert loss_value(seen[1.], 'rpn') == 0  # frozen, whatever the weight


def test_heads_can_be_chosen(tmp_path):
    model = build('mask_rcnn')
    hook = HeadDistillHook(checkpoint=trained('mask_rcnn', tmp_path), heads=['roi_head.bbox_head'])
    hook.attach(model)
    losses = losses_of(model.train())
    assert 'distill_loss_cls' in losses and 'distill_loss_mask' not in losses
    assert not any(param.requires_grad for param in model.roi_head.mask_head.parameters())
    assert not model.roi_head.mask_head.training and model.roi_head.training


def test_what_is_no_training_step_is_left_alone(tmp_path):
    model = build('fcos')
    hook = HeadDistillHook(checkpoint=trained('fcos', tmp_path), precision=None)
    hook.attach(model)
    asked = []
    hook._distiller.teacher['bbox_head'].register_forward_hook(lambda *args: asked.append(1))
    inputs, samples = detectors.batch()
    model.eval()
    with torch.no_grad():
        model(inputs, samples, mode='predict')
    assert not asked
    losses_of(model.train())
    assert len(asked) == 1


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize('family', QUERIES)
def test_query_models_are_refused(family):
    with pytest.raises(ValueError, match='is not supported: .*decoder'):
        HeadDistillHook(checkpoint='x.pth').attach(detectors.build(family))


@pytest.mark.parametrize(
    'family, changes, heads, message',
    [('retinanet', {
        'bbox_head.type': 'FreeAnchorRetinaHead'
    }, None, 'FreeAnchorRetinaHead\\) cannot learn from a trained head.*bag of anchors'),
     ('faster_rcnn', {
         'roi_head.type': 'PISARoIHead'
     }, None, 'model.roi_head is PISARoIHead'),
     ('faster_rcnn', {
         'roi_head.bbox_head.reg_decoded_bbox': True
     }, None, 'reg_decoded_bbox=True'),
     ('faster_rcnn', {}, ['rpn_head'], r'model.rpn_head \(RPNHead\) cannot learn.*not known'),
     ('faster_rcnn', {}, ['roi_head.mask_head'
                          ], 'has no roi_head.mask_head. .*: roi_head.bbox_head'),
     ('fcos', {
         'bbox_head.loss_cls.type': 'EQLV2Loss'
     }, None, 'EQLV2Loss, has no soft-target form'),
     ('fcos', {
         'bbox_head.loss_centerness': dict(type='L1Loss', _delete_=True)
     }, None, 'model.bbox_head.loss_centerness is L1Loss'), ])
def test_what_cannot_be_aligned_is_named(family, changes, heads, message, tmp_path):
    if 'bbox_head.loss_cls.type' in changes:
        model = build(family)
        from mmdet.models.losses import EQLV2Loss
        model.bbox_head.loss_cls = EQLV2Loss(num_classes=80)
    else:
        model = detectors.build(family, **changes)
    flags, state = requires_grad(model), {
        key: value.clone() for key, value in model.state_dict().items()
    }
    with pytest.raises(ValueError, match=message):
        HeadDistillHook(checkpoint=saved(model, tmp_path), heads=heads).attach(model)
    assert requires_grad(model) == flags
    runs.assert_equal(dict(model.state_dict()), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data')


KINDS = {'retinanet': runs.config, 'faster_rcnn': runs.two_stage_config}


def config(kind, data_root, work_dir, checkpoint, loop='epoch', length=4, ema=True, **options):
    cfg = KINDS[kind](data_root, work_dir, loop, length, ema=ema)
    cfg.custom_hooks[0] = dict(type='mmskd.HeadDistillHook', checkpoint=checkpoint, **options)
    return cfg


@pytest.fixture(scope='module')
def checkpoints(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    for kind, make in KINDS.items():
        runs.train(make(data_root, folder / kind, length=2))
    return {kind: str(folder / kind / 'epoch_2.pth') for kind in KINDS}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('reinit', [True, False], ids=['fresh', 'continued'])
def test_a_run_leaves_all_but_the_heads_bit_equal(data_root, checkpoints, tmp_path, kind, reinit):
    cfg = config(kind, data_root, tmp_path / 'run', checkpoints[kind], reinit_head=reinit,
                 gt_weight=0. if reinit else 0.5, precision=None)
    runner = runs.train(cfg)
    state = load_checkpoint_safely(str(tmp_path / 'run' / 'epoch_4.pth'))['state_dict']
    before = load_checkpoint_safely(checkpoints[kind])['state_dict']
    assert state.keys() == before.keys()
    for weights in (state, runner.model.state_dict()):
        runs.assert_equal(split(weights, kind)[0], split(before, kind)[0])
    assert any(not torch.equal(state[key], before[key]) for key in split(state, kind)[1])
    assert all(param.requires_grad for name, param in runner.model.named_parameters()
               if not name.startswith('backbone.'))
    loss, _ = runner.message_hub.get_scalar('train/distill_loss_cls').data
    assert len(loss) == 8 and (loss[1:] > 0).all() and (loss[0] > 0) == reinit


@pytest.mark.parametrize('kind, loop, length, stop', [
    ('retinanet', 'epoch', 4, 'epoch_2.pth'), ('faster_rcnn', 'iter', 8, 'iter_6.pth')])
def test_resumed_equals_never_interrupted(data_root, checkpoints, tmp_path, kind, loop, length,
                                          stop):
    make = lambda name: config(  # noqa: E731
        kind, data_root, tmp_path / name, checkpoints[kind], loop, length, gt_weight=0.2)
    whole = runs.train(make('whole'))
    cfg = make('resumed')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / stop)
    runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))
