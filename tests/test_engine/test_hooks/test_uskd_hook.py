"""USKDHook: the loss it adds, the classifier it owns, and what it leaves alone."""
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.hooks import NKDHook, USKDHook
from mmskd.models.losses.functional import uskd
from mmskd.optional import HAS_MMDET, HAS_MMPOSE
from mmskd.registry import HOOKS
from tests.support import classifiers
from tests.support.classifiers import CHANNELS, NUM_CLASSES, TinyClassifier
from tests.support.processes import train_in_two

OPTIONS = dict(layer='net.stage3', channels=CHANNELS, num_classes=NUM_CLASSES,
               loss_module='criterion')
CONFIG = dict(type='mmskd.USKDHook', **OPTIONS)
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


def build(**options):
    torch.manual_seed(0)
    return TinyClassifier(), HOOKS.build(dict(CONFIG, **options))


def losses(model, **changes):
    return model(**dict(classifiers.batch(), **changes), mode='loss')


def config(work_dir, hook=None, **changes):
    return classifiers.config(work_dir, [dict(CONFIG, **(hook or {}))], **changes)


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, USKDHook))


# The loss -----------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_middle_feature_and_the_logits():
    model, hook = build()
    data = classifiers.batch()
    with torch.no_grad():
        feature = model.net.stage3(
            model.net.stage2(model.net.maxpool(model.net.conv1(data['inputs']))))
        logits = model.net(data['inputs'])
    stock = losses(model)
    hook.attach(model)
    ours = losses(model)
    weak = F.linear(feature.mean((2, 3)), hook.classifier.weight, hook.classifier.bias)
    assert ours.keys() == {'loss', 'loss_uskd'} and torch.equal(ours['loss'], stock['loss'])
    assert ours['loss_uskd'].item() == pytest.approx(uskd(logits, weak, data['labels']).item())


def test_gradients_reach_the_classifier_and_the_model():
    model, hook = build()
    hook.attach(model)
    losses(model)['loss_uskd'].backward()
    assert all(parameter.grad.any() for parameter in hook.classifier.parameters())
    assert model.net.fc.weight.grad.any() and model.net.conv1[0].weight.grad.any()


def test_the_weak_loss_trains_what_is_below_the_layer_only():
    model, hook = build(loss=dict(type='mmskd.USKDLoss', alpha=0., beta=0., mu=1.))
    hook.attach(model)
    losses(model)['loss_uskd'].backward()
    assert model.net.stage3[0].branch2[0].weight.grad.any()
    assert not model.net.fc.weight.grad.any() and not model.net.conv5[0].weight.grad.any()


def test_soft_labels_of_a_mixture():
    model, hook = build()
    hook.attach(model)
    labels = classifiers.batch()['labels']
    mixed = 0.6 * F.one_hot(labels, NUM_CLASSES) + 0.4 * F.one_hot(labels.flip(0), NUM_CLASSES)
    loss = losses(model, labels=mixed)['loss_uskd']
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert not torch.equal(loss, losses(model)['loss_uskd'])


def test_other_modes_and_evaluation_are_stock():
    model, hook = build()
    calls = []
    stock = model.eval()(**classifiers.batch())
    hook.attach(model)
    hook.classifier.register_forward_hook(lambda *args: calls.append(1))
    assert torch.equal(model(**classifiers.batch()), stock)
    assert torch.equal(model(**classifiers.batch(), mode='tensor'), stock)
    assert not calls
    losses(model)
    assert calls == [1]


def test_mixed_precision():
    model, hook = build()
    hook.attach(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = losses(model)['loss_uskd']
    loss.backward()
    assert loss.dtype == torch.float32 and hook.classifier.weight.grad.isfinite().all()


@pytest.mark.parametrize('tokens', ['mean', 'first'])
def test_tokens(tokens):
    """As of a transformer's block; a tuple stands for its first item."""
    model, hook = build(tokens=tokens)
    feature = torch.randn(2, 7, CHANNELS)
    expected = feature.mean(1) if tokens == 'mean' else feature[:, 0]
    assert torch.equal(hook._vector(feature), expected)
    assert torch.equal(hook._vector((feature, (1, 7))), expected)


# The model stays as it is -------------------------------------------------------------------------


def test_detached_leaves_no_trace():
    model, hook = build()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: {key: len(value) for key, value in state.items() if 'hooks' in key}
             for name, state in before.items()}
    keys = list(model.state_dict())
    hook.attach(model)
    assert list(model.state_dict()) == keys
    hook.detach()
    hook.detach()
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert {key: len(vars(module)[key]) for key in hooks[name]} == hooks[name]
    assert losses(model).keys() == {'loss'}
    hook.attach(model)
    assert losses(model).keys() == {'loss', 'loss_uskd'}
    with pytest.raises(RuntimeError, match='detach'):
        hook.attach(model)


def test_copies_of_an_attached_model_are_stock():
    model, hook = build()
    hook.attach(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert losses(twin).keys() == {'loss'}
    assert losses(model).keys() == {'loss', 'loss_uskd'}


def test_an_error_in_the_model_leaves_no_forward_pass_open():
    model, hook = build()
    hook.attach(model)
    with pytest.raises((ValueError, RuntimeError)):
        losses(model, labels=torch.zeros(3, dtype=torch.long))
    assert losses(model).keys() == {'loss', 'loss_uskd'}


# In a Runner --------------------------------------------------------------------------------------


@pytest.mark.parametrize('changes', [
    dict(), dict(loop='iter', length=8),
    dict(optim_wrapper__paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.)),
    dict(optim_wrapper__accumulative_counts=2)], ids=['epoch', 'iter', 'groups', 'accumulation'])
def test_resumed_equals_never_interrupted(tmp_path, changes):
    whole = classifiers.train(config(tmp_path / 'run', **changes))
    cfg = config(tmp_path / 'resumed', **changes)
    cfg.resume = True
    cfg.load_from = str(tmp_path / 'run' / ('iter_4.pth' if 'loop' in changes else 'epoch_2.pth'))
    resumed = classifiers.train(cfg)
    for first, second in ((whole.model, resumed.model),
                          (hook_of(whole).classifier, hook_of(resumed).classifier)):
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_the_checkpoint_is_stock_but_for_one_key(tmp_path):
    runner = classifiers.train(config(tmp_path, length=1))
    saved = load_checkpoint_safely(str(tmp_path / 'epoch_1.pth'))
    TinyClassifier().load_state_dict(saved['state_dict'], strict=True)
    assert saved[USKDHook.state_key].keys() == {'weight', 'bias'}
    assert torch.equal(saved[USKDHook.state_key]['weight'], hook_of(runner).classifier.weight)
    assert not runner.model._forward_pre_hooks and losses(runner.model).keys() == {'loss'}


def test_the_classifier_learns(tmp_path):
    runner = classifiers.runner(
        config(tmp_path, dict(loss=dict(type='mmskd.USKDLoss', mu=1.)), length=2))
    hook = hook_of(runner)
    seen = []
    attach = hook.attach
    hook.attach = lambda model: (seen.append(hook.classifier.weight.clone()), attach(model))
    runner.train()
    assert not torch.equal(seen[0], hook.classifier.weight)
    assert runner.message_hub.get_scalar('train/loss_uskd').current() > 0


def test_the_model_starts_with_the_weights_that_it_has_without_the_hook(tmp_path):
    class Stop(Exception):
        pass

    def start(cfg):
        runner = classifiers.runner(cfg)

        def stop():
            raise Stop

        runner.train_loop.run = stop
        with pytest.raises(Stop):
            runner.train()
        return {name: value.clone()
                for name, value in runner.model.state_dict().items()}, torch.rand(3)

    with_hook, draw = start(config(tmp_path / 'uskd'))
    stock, stock_draw = start(classifiers.config(tmp_path / 'stock'))
    assert all(map(torch.equal, with_hook.values(), stock.values()))
    assert torch.equal(draw, stock_draw)


def test_a_checkpoint_of_stock_training_is_started_from_not_resumed(tmp_path):
    classifiers.train(classifiers.config(tmp_path / 'stock', length=1))
    cfg = config(tmp_path / 'uskd', length=2)
    cfg.load_from = str(tmp_path / 'stock/epoch_1.pth')
    classifiers.train(cfg)
    cfg.resume = True
    with pytest.raises(RuntimeError, match='without USKD.*load_from'):
        classifiers.train(cfg)


def test_compile_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match='`compile`.*Remove'):
        classifiers.train(config(tmp_path, compile=True))


def test_two_processes_agree(tmp_path):
    cfg = config(tmp_path / 'run', length=2)
    cfg.custom_imports = dict(imports=['tests.support.classifiers'])
    cfg.custom_hooks.append(dict(type='USKDRecorder'))
    cfg.pop('env_cfg')  # the backend is the tool's to choose
    cfg.dump(str(tmp_path / 'config.py'))

    train_in_two(tmp_path / 'config.py')
    first, second = (torch.load(tmp_path / 'run' / f'rank{rank}.pt', weights_only=True)
                     for rank in (0, 1))
    assert first['wrapped'] and first['losses'] != second['losses']
    for part in ('weights', 'classifier'):
        assert all(map(torch.equal, first[part].values(), second[part].values()))
    after_one_epoch = load_checkpoint_safely(str(tmp_path / 'run/epoch_1.pth'))[USKDHook.state_key]
    assert not torch.equal(first['classifier']['weight'], after_one_epoch['weight'])


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize('options,message', [
    (dict(channels=0), 'channels must be a whole number, at least 1, got 0'),
    (dict(num_classes=1), 'num_classes must be a whole number, at least 2'),
    (dict(tokens='last'), "tokens must be 'mean', 'first' or 'each', got 'last'")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize('options,message', [
    (dict(layer='net.layer3'),
     "no module 'net.layer3'.*`layer`; model.net has: conv1, maxpool, stage2"),
    (dict(layer='backbone.layer3'), "no module 'backbone.layer3'.*the model has: .*net, criterion"),
    (dict(loss_module='head.loss_module'), "no module 'head.loss_module'.*`loss_module`")
])
def test_names_that_the_model_does_not_have(options, message):
    model, hook = build(**options)
    with pytest.raises(ValueError, match=message):
        hook.attach(model)
    assert not model._forward_pre_hooks and not model._forward_hooks


@pytest.mark.parametrize('options,error,message', [
    (dict(channels=99), ValueError, r'model.net.stage3 gives \(8, 16\).*\(N, 99\)'),
    (dict(num_classes=7), ValueError, r'model.criterion is called with \(8, 5\).*\(8, 7\)'),
    (dict(loss_module='net.fc'), ValueError, 'model.net.fc is called with something else'),
    (dict(loss_module='net.conv5'), ValueError, 'model.net.conv5 is called with'),
    (dict(layer='data_preprocessor'), RuntimeError, 'model.data_preprocessor was called 0 times')])
def test_modules_that_do_not_fit_are_refused_in_the_first_forward_pass(options, error, message):
    model, hook = build(**options)
    hook.attach(model)
    with pytest.raises(error, match=message):
        losses(model)


def test_a_loss_module_that_is_not_called_is_refused():
    model, hook = build()
    model.unused, hook.loss_module = nn.CrossEntropyLoss(), 'unused'
    hook.attach(model)
    with pytest.raises(RuntimeError, match='model.unused was called 0 times.*`loss_module`'):
        losses(model)


def test_a_loss_of_a_tuple_is_refused():
    model, hook = build()
    model.net.register_forward_hook(lambda module, args, logits: (logits, logits))
    hook.attach(model)
    with pytest.raises(ValueError, match='model.criterion is called with a tuple'):
        losses(model)


def test_a_sigmoid_loss_is_refused():
    model, hook = build()
    model.criterion = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError,
                       match=r'model.criterion \(BCEWithLogitsLoss\) is a sigmoid loss'):
        hook.attach(model)


def test_a_layer_without_gradients_is_refused():
    model, hook = build()
    hook.attach(model)
    model.net.stage2.register_forward_pre_hook(lambda *args: torch.set_grad_enabled(False) and None)
    model.net.conv5.register_forward_pre_hook(lambda *args: torch.set_grad_enabled(True) and None)
    with pytest.raises(RuntimeError, match='activation_checkpointing'):
        losses(model)


# Detectors ----------------------------------------------------------------------------------------


@needs_mmdet
@pytest.mark.parametrize('ignore_background', [False, True])
def test_roi_head(ignore_background):
    from tests.support import detectors
    model = detectors.build('faster_rcnn')
    stock = detectors.losses(model)
    hook = USKDHook(layer='roi_head.bbox_roi_extractor', channels=256, num_classes=81,
                    loss_module='roi_head.bbox_head.loss_cls',
                    loss=dict(type='mmskd.USKDLoss', ignore_background=ignore_background))
    hook.attach(model)
    ours = detectors.losses(model)
    loss = ours.pop('loss_uskd')
    assert detectors.total(ours) == detectors.total(stock)
    loss.backward()
    assert loss > 0 and hook.classifier.weight.grad.any()
    assert model.roi_head.bbox_head.fc_cls.weight.grad.any()


@needs_mmdet
def test_the_queries_of_detr():
    """The weak logits are those of the first decoder layer, the final ones and labels those of the
    last.
    """
    from tests.support import detectors
    model = detectors.build('detr')
    stock = detectors.losses(model)
    hook = USKDHook(layer='decoder.layers.0', channels=256, num_classes=81, tokens='each',
                    loss_module='bbox_head.loss_cls')
    hook.attach(model)
    seen = {}
    model.decoder.layers[0].register_forward_hook(
        lambda module, args, output: seen.update(query=output))
    model.bbox_head.loss_cls.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(call=args, factor=kwargs['avg_factor']),
        with_kwargs=True)
    ours = detectors.losses(model)
    logits, labels, weight = seen['call']
    of_label = torch.tensor(model.bbox_head.loss_cls.class_weight)[labels]
    expected = hook.loss(logits, hook.classifier(seen['query'].flatten(0, 1)), labels,
                         weight * of_label, seen['factor'])
    assert torch.allclose(ours.pop('loss_uskd'), expected)
    assert detectors.total(ours) == detectors.total(stock)


@needs_mmdet
@pytest.mark.parametrize('teaching', ['PSKDHook', 'DistillHook'])
def test_beside_a_teacher(teaching):
    from mmskd.engine import hooks
    from tests.support import detectors
    model = detectors.build('faster_rcnn', **{'roi_head.bbox_head.fc_out_channels': 64})
    teacher = hooks.PSKDHook(precision=None) if teaching == 'PSKDHook' else hooks.DistillHook(
        detectors.build('faster_rcnn', **{'roi_head.bbox_head.fc_out_channels': 64}),
        precision=None)
    teacher.attach(model)
    if teaching == 'PSKDHook':
        teacher.refresh_teacher()
        teacher.alpha_t = 0.5
    alone = detectors.losses(model)
    hook = USKDHook(layer='roi_head.bbox_roi_extractor', channels=256, num_classes=81,
                    loss_module='roi_head.bbox_head.loss_cls')
    hook.attach(model)
    both = detectors.losses(model)
    assert both.pop('loss_uskd') > 0
    assert detectors.total(both) == detectors.total(alone)


@needs_mmpose
@pytest.mark.parametrize('family', ['rtmpose', 'simcc'])
def test_simcc(family):
    """A keypoint on an axis is a sample; its class is the bin with the largest label."""
    from tests.support import poses
    model = poses.build(family)
    data = poses.batch(model)
    stock = poses.losses(model, data)
    layer, channels = ('backbone.stage3', 192) if family == 'rtmpose' else ('backbone.layer3', 256)
    channels = channels if family == 'simcc' else dict(model.named_modules())[
        'backbone.stage3'][0].conv.out_channels
    keypoints, bins = model.head.out_channels, (192, 256)
    hook = USKDHook(layer=layer, channels=channels, num_classes=keypoints * sum(bins))
    hook.attach(model)
    seen = {}
    dict(model.named_modules())[layer].register_forward_hook(
        lambda module, args, output: seen.update(feature=output.mean((2, 3))))
    model.head.loss_module.register_forward_hook(
        lambda module, args, output: seen.update(call=args))
    ours = poses.losses(model, data)
    weak = hook.classifier(seen['feature']).split([keypoints * width for width in bins], 1)
    expected = 0
    for own, axis, label in zip(weak, *seen['call'][:2]):
        visible = seen['call'][2].flatten() > 0
        expected = expected + hook.loss(
            axis.flatten(0, 1)[visible] * model.head.loss_module.beta,
            own.reshape(axis.shape).flatten(0, 1)[visible], label.flatten(0, 1)[visible].argmax(1))
    loss = ours.pop('loss_uskd')
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert poses.total(ours) == poses.total(stock)
    loss.backward()
    assert hook.classifier.weight.grad.any()
    with pytest.raises(ValueError, match=r'model.head.loss_module is called with \(34, 192\) and'):
        wrong = USKDHook(layer=layer, channels=channels, num_classes=17)
        hook.detach()
        wrong.attach(model)
        poses.losses(model, data)


@needs_mmdet
@pytest.mark.parametrize('family,message', [
    ('retinanet', r'model.bbox_head.loss_cls \(FocalLoss\) is a sigmoid loss'),
    ('detr', r'model.bbox_head.loss_cls is called with \(40, 81\).*\(2, 81\)')])
def test_other_detectors_are_refused(family, message):
    from tests.support import detectors
    model = detectors.build(family)
    hook = USKDHook(layer='backbone.layer3', channels=256, num_classes=81,
                    loss_module='bbox_head.loss_cls')
    with pytest.raises(ValueError, match=message):
        hook.attach(model)
        detectors.losses(model)


# Classifiers of mmpretrain ------------------------------------------------------------------------


@pytest.mark.parametrize('mixup', [False, True])
def test_mmpretrain(mixup):
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS
    from mmpretrain.structures import DataSample
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='mmpretrain.ImageClassifier', _scope_='mmpretrain',
        data_preprocessor=dict(mean=[127.5] * 3, std=[64.] * 3, num_classes=4),
        train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)) if mixup else None,
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64,
                  loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))))
    data = model.data_preprocessor(dict(
        inputs=[torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(4)],
        data_samples=[DataSample().set_gt_label(label) for label in range(4)]), training=True)
    assert ('gt_score' in data['data_samples'][0]) == mixup
    teacher = copy.deepcopy(model)
    uskd_hook = USKDHook(layer='backbone.layer3', channels=32, num_classes=4)
    nkd_hook = NKDHook(teacher=teacher)
    uskd_hook.attach(model)
    nkd_hook.attach(model)
    ours = model(**data, mode='loss')
    assert ours.keys() == {'loss', 'loss_uskd', 'loss_nkd'}
    sum(ours.values()).backward()
    assert uskd_hook.classifier.weight.grad.any() and sum(ours.values()).isfinite()
