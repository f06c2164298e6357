"""PSKDHook on softmax classifiers."""
import copy
import pickle

import pytest
import torch
from torch import nn

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.hooks import PSKDHook
from mmskd.optional import HAS_MMDET
from tests.support import classifiers
from tests.support.classifiers import NUM_CLASSES, TinyClassifier
from tests.support.runs import assert_equal, weights
from tests.test_tools.conftest import call_tool


def build(alpha_t=0., **options):
    """A classifier whose past self has other weights."""
    torch.manual_seed(0)
    model = TinyClassifier()
    hook = PSKDHook(loss_module='criterion', precision=None, **options)
    hook.attach(model)
    hook.refresh_teacher()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    hook.alpha_t = alpha_t
    return model, hook


def loss_of(model, **changes):
    return model(**dict(classifiers.batch(), **changes), mode='loss')['loss']


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize('soft_labels', [False, True])
@pytest.mark.parametrize('form, scale', [('paper', 1.), (None, 1 / 0.4)])
def test_the_target_is_softened_with_what_the_past_self_says(soft_labels, form, scale):
    """Where no form is named, the labels keep their whole weight."""
    model, hook = build(0.6, form=form)
    data = classifiers.batch()
    if soft_labels:  # mixup, CutMix
        one_hot = nn.functional.one_hot(data['labels'], NUM_CLASSES).float()
        data['labels'] = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    teacher = copy.deepcopy(hook.teacher).train()  # with the statistics of the batch
    past = teacher.net(data['inputs']).detach()
    loss = loss_of(model, **data)
    logits = model.net(data['inputs'])
    hard = data['labels'] if soft_labels else nn.functional.one_hot(data['labels'], NUM_CLASSES)
    target = 0.4 * hard.double() + 0.6 * past.double().softmax(1)
    expected = -scale * (target * logits.double().log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert hook.disagreement == pytest.approx(
        (logits.softmax(1) - past.softmax(1)).abs().mean().item(), rel=1e-4)


def test_alpha_zero_is_stock_and_agreement_has_no_gradient():
    model, hook = build(0.)
    ours = gradients(model, loss_of(model))
    stock = copy.deepcopy(model)  # a copy is not taught
    assert all(map(torch.equal, ours, gradients(stock, loss_of(stock))))
    hook.refresh_teacher()
    hook.alpha_t = 1.
    largest = max(gradient.abs().max() for gradient in gradients(model, loss_of(model)))
    assert largest < 1e-6 < max(gradient.abs().max() for gradient in ours)


def traces(model):
    return {name: (type(module), set(vars(module)), len(module._forward_pre_hooks),
                   len(module._forward_hooks)) for name, module in model.named_modules()}


def test_detached_leaves_no_trace():
    model = TinyClassifier()
    before = traces(model)
    keys = list(model.state_dict())
    hook = PSKDHook(loss_module='criterion')
    hook.attach(model)
    assert type(model.criterion).__name__ == 'PSKDTorchCrossEntropyLoss'
    assert list(model.state_dict()) == keys
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    loss_of(model).backward()
    hook.detach()
    assert traces(model) == before
    pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize('change,options,message', [
    (None, {}, "TinyClassifier has no module 'head.loss_module'. Choose another `loss_module`; the "
     'model has: .*criterion'),
    (nn.BCEWithLogitsLoss(), dict(loss_module='criterion'),
     'model.criterion .*sigmoid loss.*PS-KD'),
    (nn.NLLLoss(), dict(loss_module='criterion'),
     'model.criterion: its criterion, NLLLoss, has no soft-target form. Make model.criterion one '
     'of CrossEntropyLoss.*another loss in `loss_module`'),
    (None, dict(loss_module='criterion',
                heads=['net.fc']), "loss_module='criterion' names the loss of a classifier")
])
def test_what_cannot_be_taught_is_refused_by_name(change, options, message):
    model = TinyClassifier()
    model.criterion = change or model.criterion
    with pytest.raises(ValueError, match=f'^PSKDHook: {message}'):
        PSKDHook(**options).attach(model)
    assert not model._forward_pre_hooks


def test_what_goes_another_way_is_refused_in_the_first_pass():
    class Beside(TinyClassifier):
        """Calls no loss module, computes with its logits, or says no logits."""
        way = ''

        def forward(self, inputs, labels=None, mode='tensor'):
            logits = self.net(inputs)
            if mode != 'loss':
                return dict(logits=logits) if self.way == 'dict' else logits
            if self.way == 'function':
                return dict(loss=nn.functional.cross_entropy(logits, labels))
            times = 2 if self.way == 'twice' else 1
            return dict(loss=sum(self.criterion(logits, labels) for _ in range(times)))

    for way, message in (('function',
                          'never called PSKDTorch.*another loss in the option `loss_module`'),
                         ('dict', "Beside returns a dict in mode='tensor', where the logits"),
                         ('twice', 'only 1 of 2 calls of PSKDTorch')):
        model = Beside()
        model.way = way
        PSKDHook(loss_module='criterion').attach(model)
        with pytest.raises(ValueError, match=message):
            loss_of(model)


@pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
def test_a_detector_has_heads():
    from tests.support import detectors
    with pytest.raises(ValueError, match="loss_module='bbox_head.loss_cls' names the loss of a "
                       'classifier; the heads of RetinaNet are named by `heads`'):
        PSKDHook(loss_module='bbox_head.loss_cls').attach(detectors.build('retinanet'))


def test_mixed_precision_and_a_compiled_past_self():
    model, hook = build(0.5)
    hook.detach()
    hook = PSKDHook(loss_module='criterion', precision='bfloat16', past='average')
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    for _ in range(2):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        assert loss.isfinite() and hook.disagreement < 0.05
        hook.average_teacher()


def config(work_dir, **options):
    hook = dict(type='mmskd.PSKDHook', loss_module='criterion', **options)
    return classifiers.config(work_dir, [hook])


def test_a_run_and_its_resume(tmp_path):
    whole = classifiers.train(config(tmp_path / 'whole'))
    saved = load_checkpoint_safely(tmp_path / 'whole/epoch_2.pth')
    TinyClassifier().load_state_dict(saved['state_dict'], strict=True)
    cfg = config(tmp_path / 'resumed')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole/epoch_2.pth')
    assert_equal(weights(classifiers.train(cfg)), weights(whole))
    stock = classifiers.train(classifiers.config(tmp_path / 'stock'))
    nothing = classifiers.train(config(tmp_path / 'zero', alpha_T=0.))
    assert_equal(weights(nothing), weights(stock))
    assert not torch.equal(weights(whole)['net.fc.weight'], weights(stock)['net.fc.weight'])
    assert type(whole.model.criterion) is nn.CrossEntropyLoss


def test_the_command_line(tmp_path):
    """tools/train.py with a config of a classifier, without MMDetection or MMPose in it."""
    cfg = classifiers.config(tmp_path / 'run', length=2, log_level='INFO')
    cfg.experiment_name = 'command_line'
    cfg.dump(tmp_path / 'config.py')
    call_tool('train', tmp_path / 'config.py', '--pskd', 'loss_module=criterion', 'past=average',
              '--work-dir', tmp_path / 'run')
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert ("soft targets in the form 'rescaled' for model.criterion: CrossEntropyLoss -> "
            'PSKDTorchCrossEntropyLoss') in log
    assert 'pskd_alpha: 0.8000' in log
