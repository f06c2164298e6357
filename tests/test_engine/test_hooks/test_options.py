"""Options of hooks: each is checked, and its owner named."""
import pytest
from mmengine.registry import HOOKS

from mmskd.errors import UsageError

TEACHER = dict(config='a.py', checkpoint='b.pth')
WEAK = dict(layer='backbone.layer3', channels=8, num_classes=3)


@pytest.mark.parametrize('name, options, message', [
    ('PSKDHook', dict(alpha_T='high'),
     r"PSKDHook: alpha_T must be a number in \[0, 1\], got 'high'"),
    ('PSKDHook', dict(alpha_T=-.1), 'alpha_T must be'),
    ('PSKDHook', dict(alpha_T=True), 'alpha_T must be'),
    ('PSKDHook', dict(interval=0), 'interval must be a whole number, at least 1, or None, got 0'),
    ('PSKDHook', dict(interval=1.5), 'interval must be'),
    ('PSKDHook', dict(precision='half'), "precision must be .*'bfloat16'.*got 'half'"),
    ('PSKDHook', dict(heads='bbox_head'), r"heads must be a list of names, as \['bbox_head'\]"),
    ('PSKDHook', dict(heads=[]), 'heads must be a list of names, or None'),
    ('PSKDHook', dict(loss='mmskd.NKDLoss'), r"loss must be dict\(type='mmskd.NKDLoss'\), or None"),
    ('DistillHook', dict(teacher='t.pth'),
     r"teacher must be dict\(config=..., checkpoint=...\), .*got 't"),
    ('DistillHook', dict(teacher=dict(config='a.py')), 'teacher must be'),
    ('DistillHook', dict(teacher=dict(config=None, checkpoint='b')),
     'teacher.config must be a string'),
    ('DistillHook', dict(teacher=TEACHER, schedule='linear'),
     "DistillHook: schedule must be .*'falling' .*got 'linear'"),
    ('DistillHook', dict(teacher=TEACHER, begin=3,
                         stop=3), 'DistillHook: stop must be a whole number, at least 4'),
    ('PSKDHook', dict(form='mix'),
     "PSKDHook: form must be 'paper', 'kl', 'rescaled', 'added' or None, got 'mix'"),
    ('PSKDHook', dict(about='objects'),
     "about must be 'all', 'positives' or 'confidence', got 'objects'"),
    ('PSKDHook', dict(schedule=True),
     "schedule must be 'rising', 'constant', 'falling' or 'cosine', got True"),
    ('PSKDHook', dict(begin=-1), 'begin must be a whole number, at least 0, got -1'),
    ('PSKDHook', dict(begin=2, stop=1), 'stop must be a whole number, at least 3, or None, got 1'),
    ('PSKDHook', dict(
        form='kl', loss=dict(type='mmskd.NKDLoss')), 'form and about say how targets are softened'),
    ('DistillHook', dict(teacher=TEACHER, gt_weight=-1), 'gt_weight must be a number, at least 0'),
    ('DistillHook', dict(teacher=TEACHER,
                         losses=dict(type='mmskd.NKDLoss')), 'losses must be a list'),
    ('DistillHook', dict(teacher=TEACHER, losses=[]), 'losses must be a list'),
    ('DistillHook', dict(teacher=TEACHER,
                         heads='head'), r"heads must be a list of names, as \['head"),
    ('HeadDistillHook', dict(checkpoint=''), "checkpoint must be a string, got ''"),
    ('HeadDistillHook', dict(checkpoint='a', gamma='1'), 'gamma must be a number, at least 0'),
    ('HeadDistillHook', dict(checkpoint='a', gamma=0), 'gamma and gt_weight are both 0'),
    ('HeadDistillHook', dict(checkpoint='a',
                             reinit_head='no'), 'reinit_head must be True or False'),
    ('HeadDistillHook', dict(checkpoint='a', heads=[]), 'heads must be a list'),
    ('NKDHook', dict(teacher=TEACHER, loss='mmskd.NKDLoss'), 'NKDHook: loss must be'),
    ('NKDHook', dict(teacher=TEACHER, loss_module=None), 'NKDHook: loss_module must be a string'),
    ('USKDHook', dict(WEAK, layer=3), 'USKDHook: layer must be a string'),
    ('USKDHook', dict(WEAK, channels=0), 'channels must be a whole number, at least 1'),
    ('USKDHook', dict(WEAK, num_classes=1), 'num_classes must be a whole number, at least 2'),
    ('USKDHook', dict(WEAK, tokens='all'), "tokens must be 'mean', 'first' or 'each', got 'all'"),
    ('USKDHook', dict(WEAK, loss=[]), 'USKDHook: loss must be'),
    ('USKDHook', dict(WEAK, loss=dict(type='mmskd.USKDLoss', mu=-1)), 'USKDLoss: mu must be'),
    ('CalibrationPictureHook', dict(num_images=0), 'num_images must be a whole number, at least 1'),
    ('CalibrationPictureHook', dict(score_thr='a'), 'score_thr must be'),
])
def test_options_of_hooks(name, options, message):
    with pytest.raises(UsageError, match=message):
        HOOKS.build(dict(options, type=f'mmskd.{name}'))


def test_of_a_hook_that_is_there():
    from mmskd.engine.hooks import PSKDHook
    hook = PSKDHook()
    with pytest.raises(UsageError, match=r'alpha_t must be a number in \[0, 1\], got 7'):
        hook.alpha_t = 7
    assert hook.alpha_t == 0
    with pytest.raises(UsageError, match=r'call attach\(model\) first'):
        hook.refresh_teacher()
