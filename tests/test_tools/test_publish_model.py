import hashlib
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from mmskd.checkpoint import load_checkpoint_safely

READ_WITHOUT_MMSKD = """
import sys, torch
assert 'mmengine' not in sys.modules
checkpoint = torch.load(sys.argv[1], weights_only=True)
assert set(checkpoint) == {'meta', 'state_dict'}, list(checkpoint)
print(sorted(checkpoint['meta']))
"""


def save(path, **extra):
    meta = dict(
        cfg='model = dict()',
        epoch=3,
        dataset_meta=dict(
            classes=('a', 'b'), palette=[(1, 2, 3)], sigmas=np.ones(2, np.float32),
            weight=np.float64(0.5), ids={0: 'a'}))
    weights = OrderedDict({'w': torch.arange(3.), 'n': torch.tensor(2)})
    torch.save(dict(meta=meta, state_dict=weights, optimizer=dict(lr=1), **extra), path)


def published(folder):
    file, = folder.glob('out-*.pth')
    return file, torch.load(file, weights_only=True)


def test_keeps_weights_and_plain_metadata_only(tmp_path, run_tool):
    save(tmp_path / 'in.pth', ema_state_dict=dict(steps=1), mmskd_past_self=torch.ones(1))
    run_tool('publish_model', tmp_path / 'in.pth', tmp_path / 'new' / 'out.pth')
    file, checkpoint = published(tmp_path / 'new')
    assert set(checkpoint) == {'meta', 'state_dict'}
    assert torch.equal(checkpoint['state_dict']['w'], torch.arange(3.))
    assert checkpoint['meta']['epoch'] == 3
    assert checkpoint['meta']['dataset_meta'] == dict(
        classes=('a', 'b'), palette=[(1, 2, 3)], sigmas=[1.0, 1.0], weight=0.5, ids={0: 'a'})
    assert type(checkpoint['meta']['dataset_meta']['weight']) is float


def test_name_has_the_hash_and_is_the_same_each_time(tmp_path, run_tool):
    save(tmp_path / 'in.pth')
    run_tool('publish_model', tmp_path / 'in.pth', tmp_path / 'out.pth')
    run_tool('publish_model', tmp_path / 'in.pth', tmp_path / 'out')
    file, _ = published(tmp_path)
    assert file.stem == 'out-' + hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(['in.pth', file.name])


def test_leaves_out_what_is_not_plain(tmp_path, run_tool, capsys):
    checkpoint = dict(meta=dict(size=torch.Size([1, 2]), tensor=torch.ones(1), epoch=1),
                      state_dict=dict(w=torch.ones(1)))
    torch.save(checkpoint, tmp_path / 'in.pth')
    run_tool('publish_model', tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert "meta['tensor'] is left out" in capsys.readouterr().out
    assert 'tensor' not in published(tmp_path)[1]['meta']


@pytest.mark.parametrize('content, message', [
    (dict(meta=dict()), 'no state_dict'),
    (dict(state_dict=dict(w='text')), "state_dict['w'] is no tensor but str"),
    (torch.nn.Linear(1, 1), 'asks for torch.nn.modules.linear.Linear'),
])
def test_errors(content, message, tmp_path, run_tool):
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(SystemExit) as error:
        run_tool('publish_model', tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert message in str(error.value)
    assert not list(tmp_path.glob('out*'))


def test_missing_file(tmp_path, run_tool):
    with pytest.raises(SystemExit, match='no checkpoint'):
        run_tool('publish_model', tmp_path / 'nowhere.pth', tmp_path / 'out.pth')


def test_real_checkpoint_is_read_without_allow_list(tiny, trained, tmp_path, run_tool):
    pytest.importorskip('mmdet')
    run_tool('publish_model', trained, tmp_path / 'out.pth')
    file, checkpoint = published(tmp_path)
    assert checkpoint['meta']['dataset_meta']['classes'][0] == 'circle'
    done = subprocess.run([sys.executable, '-c', READ_WITHOUT_MMSKD, file], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert 'dataset_meta' in done.stdout

    # The averaged weights of EMAHook are those that are published
    raw = load_checkpoint_safely(trained)
    key = 'bbox_head.retina_cls.weight'
    assert not torch.equal(raw['state_dict'][key], raw['ema_state_dict'][f'module.{key}'])
    assert torch.equal(checkpoint['state_dict'][key], raw['state_dict'][key])


def test_published_model_is_tested_and_loaded(tiny, trained, tmp_path, run_tool):
    pytest.importorskip('mmdet')
    from mmdet.apis import init_detector
    run_tool('publish_model', trained, tmp_path / 'out.pth')
    file, _ = published(tmp_path)
    run_tool('test', 'tiny.py', file, '--work-dir', 'work_dirs/published')
    for path in (file, trained):
        model = init_detector('tiny.py', str(path), device='cpu')
        assert model.dataset_meta['classes'][0] == 'circle'
    assert Path('work_dirs/published').is_dir()
