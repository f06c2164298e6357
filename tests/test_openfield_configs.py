"""The configs of the open field mouse: they build, differ by their hook, and take a step."""
import os
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmskd.config import load_config
from mmskd.engine.schedule import shorten_schedule

pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[1] / 'configs' / 'openfield_mouse'
NAMES = sorted(path.name for path in ROOT.glob('*.py'))
STUDENT = 'rtmpose_t_mouse.py'
TAUGHT = ('pskd_rtmpose_t_mouse.py', 'dwpose_s1_rtmpose-s_rtmpose-t_mouse.py',
          'dwpose_s2_rtmpose-t_mouse.py')
DATA = os.environ.get('MMSKD_TEST_DATA')
needs_data = pytest.mark.skipif(not DATA or not Path(DATA, 'openfield_mouse').is_dir(),
                                reason='MMSKD_TEST_DATA has no openfield_mouse')


def build(name):
    from mmpose.registry import MODELS
    cfg = load_config(str(ROOT / name))
    with DefaultScope.overwrite_default_scope('mmpose'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', NAMES)
def test_builds_from_scratch_and_swaps_what_a_mirror_swaps(name):
    cfg = load_config(str(ROOT / name))
    assert 'Pretrained' not in str(cfg.model), 'nothing is downloaded'
    model = build(name)
    assert model.head.out_channels == len(cfg.metainfo.keypoint_info) == 4
    swaps = {info['name']: info['swap'] for info in cfg.metainfo.keypoint_info.values()}
    assert all(swaps[other] == name for name, other in swaps.items() if other)


@pytest.mark.parametrize('name', TAUGHT)
def test_differs_by_hook_and_length_only(name):
    taught, stock = (load_config(str(ROOT / which)).to_dict() for which in (name, STUDENT))
    *hooks, hook = taught.pop('custom_hooks')
    assert hooks == stock.pop('custom_hooks') and hook['type'].startswith('mmskd.')
    if 's2' in name:
        made = Config(stock)
        shorten_schedule(made, 0.2)
        stock = dict(made.to_dict(), max_epochs=stock['max_epochs'] // 5)
    assert taught == stock


@needs_data
@pytest.mark.parametrize('name', TAUGHT)
def test_takes_steps_and_validates(name, tmp_path, monkeypatch):
    import torch
    from mmengine.runner import Runner
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(Path(DATA).resolve())
    cfg = load_config(str(ROOT / name))
    hook = cfg.custom_hooks[-1]
    for owner, model in ((hook.get('teacher', {}), 'rtmpose_s_mouse.py'), (hook, STUDENT)):
        if 'checkpoint' in owner:
            torch.save(dict(state_dict=build(model).state_dict()), 'trained.pth')
            owner.checkpoint = 'trained.pth'
    cfg.merge_from_dict({
        'work_dir': 'work', 'param_scheduler': [], 'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1, 'experiment_name': name, 'visualizer.name': name,
        **{f'{split}_dataloader.{key}': value for split in ('train', 'val')
           for key, value in (('dataset.indices', 8), ('num_workers', 0))}})
    runner = Runner.from_cfg(Config(cfg.to_dict(), filename=str(ROOT / name)))
    runner.train()
    assert runner.iter == 1
    assert 0 <= runner.message_hub.get_scalar('val/PCK').current() <= 1
    assert runner.val_dataloader.dataset.metainfo['keypoint_id2name'][3] == 'tailbase'
