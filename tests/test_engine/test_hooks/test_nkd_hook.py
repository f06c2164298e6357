"""NKDHook: the loss that a teacher adds, and what it leaves alone."""
import copy
import pickle

import pytest
import torch
from torch import nn

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.hooks import NKDHook
from mmskd.models.losses.functional import nkd
from mmskd.registry import HOOKS
from tests.support import classifiers
from tests.support.classifiers import NUM_CLASSES, TinyClassifier


def build(teacher=None, **options):
    """A student and a hook; the teacher has other weights."""
    torch.manual_seed(1)
    teacher = TinyClassifier() if teacher is None else teacher
    torch.manual_seed(0)
    return TinyClassifier(), teacher, HOOKS.build(
        dict(dict(type='mmskd.NKDHook', teacher=teacher, loss_module='criterion'), **options))


def losses(model, **changes):
    return model(**dict(classifiers.batch(), **changes), mode='loss')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint of a teacher."""
    folder = tmp_path_factory.mktemp('teacher')
    cfg = classifiers.config(folder, length=3)
    cfg.dump(str(folder / 'teacher.py'))
    classifiers.train(cfg)
    return dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'epoch_3.pth'))


def config(work_dir, teacher, **changes):
    hook = dict(type='mmskd.NKDHook', teacher=teacher, loss_module='criterion')
    return classifiers.config(work_dir, [hook], **changes)


@pytest.mark.parametrize('options', [{}, dict(loss=dict(type='mmskd.NKDLoss', gamma=3.5, tau=3.))])
def test_the_loss_is_that_of_the_logits_of_both(options):
    model, teacher, hook = build(**options)
    data = classifiers.batch()
    stock = losses(model)
    hook.attach(model)
    ours = losses(model)
    with torch.no_grad():
        expected = nkd(model(data['inputs']), teacher.eval()(data['inputs']), data['labels'],
                       hook.losses[0].gamma, hook.losses[0].tau)
    assert ours.keys() == {'loss', 'loss_nkd'} and torch.equal(ours['loss'], stock['loss'])
    assert ours['loss_nkd'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_is_in_eval_mode_and_takes_no_gradient_and_nothing_moves():
    model, teacher, hook = build()
    hook.attach(model)
    before = copy.deepcopy(teacher.state_dict())
    losses(model.train())['loss_nkd'].backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))
    assert model.net.fc.weight.grad.any() and model.net.conv1[0].weight.grad.any()


def test_detached_leaves_no_trace_and_copies_are_stock():
    model, _, hook = build()
    keys = list(model.state_dict())
    hook.attach(model)
    assert list(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert losses(twin).keys() == {'loss'}
    with pytest.raises(RuntimeError, match='detach'):
        hook.attach(model)
    hook.detach()
    hook.detach()
    assert losses(model).keys() == {'loss'}
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert not model.criterion._forward_pre_hooks


def test_other_modes_do_not_ask_the_teacher():
    model, teacher, hook = build()
    hook.attach(model)
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    model(**classifiers.batch(), mode='tensor')
    assert not calls
    losses(model)
    assert calls == [1]


def test_trains_from_a_config_and_resumes(tmp_path, trained):
    whole = classifiers.train(config(tmp_path / 'whole', trained))
    assert whole.message_hub.get_scalar('train/loss_nkd').current() > 0
    saved = load_checkpoint_safely(str(tmp_path / 'whole/epoch_4.pth'))
    TinyClassifier().load_state_dict(saved['state_dict'], strict=True)
    assert not any('teacher' in key or 'nkd' in key for key in saved)
    cfg = config(tmp_path / 'resumed', trained)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole/epoch_2.pth')
    resumed = classifiers.train(cfg)
    stock = classifiers.train(classifiers.config(tmp_path / 'stock'))
    states = [runner.model.state_dict().values() for runner in (whole, resumed, stock)]
    assert all(map(torch.equal, *states[:2])) and not all(map(torch.equal, *states[1:]))
    assert losses(whole.model).keys() == {'loss'}


def test_the_checkpoint_is_the_teacher(trained):
    _, _, hook = build(trained)
    model = TinyClassifier()
    hook.attach(model)
    saved = load_checkpoint_safely(trained['checkpoint'])['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in hook._teacher.state_dict().items())


def test_compile_is_refused(tmp_path, trained):
    with pytest.raises(RuntimeError, match='`compile`.*Remove'):
        classifiers.train(config(tmp_path, trained, compile=True))


def test_teachers_that_do_not_fit(tmp_path, trained):
    with pytest.raises(ValueError, match=r"dict\(config=..., checkpoint=...\).*\['config'\]"):
        NKDHook(teacher=dict(config='x.py'))
    with pytest.raises(FileNotFoundError, match='no checkpoint .*absent.pth'):
        build(dict(trained, checkpoint=str(tmp_path / 'absent.pth')))[2].attach(TinyClassifier())
    with pytest.raises(FileNotFoundError, match='no config file absent.py'):
        build(dict(trained, config='absent.py'))[2].attach(TinyClassifier())
    other = tmp_path / 'other.pth'
    torch.save(nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(ValueError, match=r'other.pth does not fit TinyClassifier: it lacks'):
        build(dict(trained, checkpoint=str(other)))[2].attach(TinyClassifier())

    model, _, hook = build(TinyClassifier(NUM_CLASSES + 2))
    hook.attach(model)
    with pytest.raises(ValueError, match=r'student predicts \(8, 5\) and the teacher \(8, 7\)'):
        losses(model)

    model, teacher, hook = build()
    teacher.data_preprocessor.register_buffer('mean', torch.tensor([1., 2., 3.]))
    with pytest.raises(ValueError, match=r'data_preprocessor normalises: .*\[1.0, 2.0, 3.0\]'):
        hook.attach(model)
    assert not model._forward_pre_hooks


def test_students_that_do_not_fit():
    model, _, hook = build(loss_module='head.loss_module')
    with pytest.raises(ValueError, match="NKDHook.*no module 'head.loss_module'"):
        hook.attach(model)
    model, _, hook = build()
    model.criterion = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError, match='NKDHook.*sigmoid loss'):
        hook.attach(model)
    model, _, hook = build(loss_module='unused')
    model.unused = nn.CrossEntropyLoss()
    hook.attach(model)
    with pytest.raises(RuntimeError, match='model.unused never called CrossEntropyLoss'):
        losses(model)
