"""What a checkpoint says of its teachers, and what a resumed run makes of it."""
import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmskd.engine import taught_by
from mmskd.engine.hooks import (
    DistillHook,
    HeadDistillHook,
    NKDHook,
    PSKDHook,
    TeachingHook,
    USKDHook,
)
from mmskd.engine.hooks.teaching_hook import go_together, note_teachers
from mmskd.engine.taught_by import compare, plain
from mmskd.errors import UsageError

TEACHER = dict(config='a.py', checkpoint='b.pth')


def runner(*hooks, max_epochs=4, batch_size=8):
    return SimpleNamespace(
        hooks=list(hooks), train_loop=SimpleNamespace(max_epochs=max_epochs),
        train_dataloader=SimpleNamespace(batch_size=batch_size), _resume=True)


def saved(*hooks, **options):
    """A checkpoint of a run with these hooks."""
    checkpoint = dict(meta={}, message_hub=dict(
        log_scalars={'train/loss': 1, 'train/pskd_alpha': 2, 'val/mAP': 3}))
    note_teachers(runner(*hooks, **options), checkpoint)
    return checkpoint


def resume(checkpoint, *hooks, **options):
    """Compare it as MMEngine lets the hooks do; returns what was said."""
    lines = []
    taught_by.print_log = lambda line, logger, level: lines.append(line)
    compare(runner(*hooks, **options), checkpoint, {type(hook).__name__: hook for hook in hooks})
    return lines


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    monkeypatch.setattr(taught_by, 'print_log', taught_by.print_log)


def test_what_is_saved_is_plain_and_whole(tmp_path):
    checkpoint = saved(PSKDHook(alpha_T=.5),
                       USKDHook('a', 8, num_classes=3, loss=dict(type='mmskd.USKDLoss')))
    path = tmp_path / 'a.pth'
    torch.save(checkpoint, path)
    assert torch.load(path, weights_only=True)['meta'][taught_by.META_KEY] == dict(
        methods=dict(
            PSKDHook=dict(alpha_T=.5, interval=None, precision=PSKDHook().precision, heads=None,
                          loss=None, form=None, about='all', schedule='rising', begin=0,
                          stop=None, past='epoch', past_momentum=None, loss_module=None),
            USKDHook=dict(layer='a', channels=8, num_classes=3, loss_module='head.loss_module',
                          tokens='mean', loss=dict(type='mmskd.USKDLoss'))),
        run=dict(batch_size=8, world_size=1, max_epochs=4))
    assert plain(dict(a=(1, nn.Linear(1, 1), int))) == dict(a=[1, 'a Linear that was given', 'int'])


def test_a_copy_of_a_hook_has_its_options():
    hook = copy.deepcopy(PSKDHook(alpha_T=.5))
    assert hook.given_options['alpha_T'] == .5
    with pytest.raises(TypeError, match='teacher'):
        DistillHook()



def test_the_same_run_goes_on_without_a_word():
    checkpoint = saved(PSKDHook(alpha_T=.5))
    assert resume(checkpoint, PSKDHook(alpha_T=.5)) == []
    assert set(checkpoint['message_hub']['log_scalars']) == {
        'train/loss', 'train/pskd_alpha', 'val/mAP'}


@pytest.mark.parametrize(
    'before, after, message',
    [([PSKDHook()
       ], [], 'was taught by PSKDHook, and custom_hooks has no hook of mmskd. Resume with the'),
     ([PSKDHook()], [HeadDistillHook('a.pth')
                     ], 'taught by PSKDHook, and custom_hooks has HeadDistillHook'),
     ([PSKDHook()], [DistillHook(TEACHER)], 'taught by PSKDHook, and custom_hooks has DistillHook'),
     ([], [HeadDistillHook('a.pth')
           ], 'taught by no hook of mmskd, and custom_hooks has HeadDistillHook'),
     ([DistillHook(TEACHER)], [NKDHook(TEACHER)], 'by DistillHook, and custom_hooks has NKDHook'),
     ([PSKDHook()], [PSKDHook(), USKDHook('a', 8, 3)
                     ], 'PSKDHook, and custom_hooks has PSKDHook and USKD'),
     ([DistillHook(TEACHER)], [DistillHook(TEACHER, [dict(type='mmskd.NKDLoss')])],
      r"DistillHook.losses was None when .*, and is \[.*\], which cannot change within a run"),
     ([HeadDistillHook('a')], [HeadDistillHook('a', heads=['head'])
                               ], 'HeadDistillHook.heads was None'),
     ([USKDHook('a', 8, 3)], [USKDHook('b', 8, 3)
                              ], "USKDHook.layer was 'a' .* and is 'b', which cannot"), ])
def test_refused(before, after, message):
    with pytest.raises(UsageError, match=message) as error:
        resume(saved(*before), *after)
    assert 'load_from' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'before, after, options, line',
    [([PSKDHook()], [PSKDHook(alpha_T=.5)
                     ], {}, 'PSKDHook.alpha_T was 0.8 when the checkpoint was saved, '
      'and is 0.5; the run goes on with the new one'),
     ([PSKDHook()], [PSKDHook(interval=2)], {}, 'PSKDHook.interval was None'),
     ([HeadDistillHook('a')], [HeadDistillHook('b')], {}, "HeadDistillHook.checkpoint was 'a'"),
     ([DistillHook(TEACHER)], [DistillHook(TEACHER, gt_weight=2)
                               ], {}, 'DistillHook.gt_weight was 1.0'),
     ([], [PSKDHook()], {}, 'PSKDHook has not taught the run so far'),
     ([PSKDHook()], [PSKDHook()], dict(batch_size=4), 'batch_size was 8'),
     ([PSKDHook()], [PSKDHook()], dict(max_epochs=9), 'max_epochs was 4'),
     ([], [], dict(batch_size=4), 'batch_size was 8'), ])
def test_said_by_name(before, after, options, line):
    checkpoint = saved(*before)
    said, = resume(checkpoint, *after, **options)
    assert said.startswith(f'resume: {line}')
    # What the method of before has logged does not go on
    assert set(checkpoint['message_hub']['log_scalars']) == {'val/mAP'}


def test_another_number_of_processes(monkeypatch):
    checkpoint = saved(PSKDHook())
    monkeypatch.setattr(taught_by, 'get_world_size', lambda: 2)
    assert resume(checkpoint, PSKDHook())[0].startswith('resume: world_size was 1')


def test_each_checkpoint_is_compared_once():
    checkpoint = saved(PSKDHook())
    assert len(resume(checkpoint, PSKDHook(alpha_T=.1))) == 1
    assert resume(checkpoint, PSKDHook(alpha_T=.1)) == []


def test_a_checkpoint_that_says_nothing():
    for meta in ({}, None, {taught_by.META_KEY: 'x'}):
        assert resume(dict(meta=meta)) == []
    assert resume(dict(meta={}), PSKDHook()) == ['resume: PSKDHook has not taught the run so far']


def test_what_goes_together_is_what_the_document_says():
    from pathlib import Path
    document = (Path(__file__).parents[2] / 'docs' / 'reliability.md').read_text()
    table = [[cell.strip().strip('`') for cell in line.strip()[1:-1].split('|')]
             for line in document.splitlines() if line.startswith('| ') and 'Hook`' in line]
    names, *rows = table
    kinds = dict(PSKDHook=PSKDHook, DistillHook=DistillHook, HeadDistillHook=HeadDistillHook,
                 NKDHook=NKDHook, USKDHook=USKDHook)
    assert names[1:] == [row[0] for row in rows] == list(kinds)
    for first, *cells in rows:
        for second, cell in zip(kinds, cells):
            assert go_together(kinds[first], kinds[second]) == (cell == 'yes'), (first, second)


def test_hooks_of_ones_own():
    class Own(TeachingHook):
        goes_with = ('PSKDHook', )

    class OwnPSKD(PSKDHook):
        pass

    assert go_together(Own, OwnPSKD) and go_together(PSKDHook, Own)
    assert not go_together(Own, DistillHook) and not go_together(Own, Own)
