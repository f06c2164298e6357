"""The configs of the two mice: they build, differ by their hook, and take a step."""
import os
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmskd.config import load_config
from mmskd.engine.schedule import shorten_schedule

pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[1] / 'configs' / 'openfield_mouse'
MIRROR = ROOT.with_name('mirror_mouse')
NAMES = sorted(str(path) for folder in (ROOT, MIRROR) for path in folder.glob('*.py'))
KEYPOINTS = {'openfield_mouse': 4, 'mirror_mouse': 17}
SUBSETS = {'rtmpose_t_mouse-head': 3, 'rtmpose_t_mirror-top-128x128': 8}
STUDENT = 'rtmpose_t_mouse.py'
UNLABELLED = 'dwpose_s1_rtmpose-s_rtmpose-t_mouse-third.py'
HEATMAPS = 'td-hm_cspnext-t_mouse.py'
MIRRORED = '../mirror_mouse/rtmpose_t_mirror.py'
TAUGHT = ('pskd_rtmpose_t_mouse.py', 'dwpose_s1_rtmpose-s_rtmpose-t_mouse.py',
          'dwpose_s2_rtmpose-t_mouse.py')
DATA = os.environ.get('MMSKD_TEST_DATA')


def build(name):
    from mmpose.registry import MODELS
    cfg = load_config(str(ROOT / name))
    with DefaultScope.overwrite_default_scope('mmpose'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', NAMES, ids=lambda name: Path(name).stem)
def test_builds_from_scratch_and_swaps_what_a_mirror_swaps(name):
    cfg = load_config(str(ROOT / name))
    assert 'Pretrained' not in str(cfg.model), 'nothing is downloaded'
    model = build(name)
    keypoints = SUBSETS.get(Path(name).stem, KEYPOINTS[Path(name).parent.name])
    # What is encoded for the loss is what the head decodes
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.dataset if dataset.type == 'RepeatDataset' else dataset
    assert model.head.out_channels == len(dataset.metainfo.keypoint_info) == keypoints
    encoder = next(step.encoder for step in dataset.pipeline if step.type == 'GenerateTarget')
    assert encoder.to_dict() == cfg.model.head.decoder.to_dict()
    swaps = {info['name']: info['swap'] for info in dataset.metainfo.keypoint_info.values()}
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


def test_a_third_of_the_labels_and_all_of_the_frames():
    stock, alone, taught = (load_config(str(ROOT / name)) for name in (
        STUDENT, 'rtmpose_t_mouse-third.py', UNLABELLED))
    labelled, bare = taught.train_dataloader.dataset.datasets
    assert alone.train_dataloader.dataset.dataset.indices == labelled.indices
    assert sorted([*labelled.indices, *bare.indices]) == list(range(87))
    assert len(labelled.indices) * 3 == 87 and bare.type == 'mmskd.UnlabelledCocoDataset'
    for cfg in (alone, taught):
        assert cfg.val_dataloader == stock.val_dataloader and cfg.model == stock.model
    assert taught.custom_hooks[-1].teacher.config == 'rtmpose_s_mouse-third.py'


def test_mirror_mouse_names_its_keypoints_as_the_annotations_do():
    import json
    if not DATA or not Path(DATA, 'mirror_mouse').is_dir():
        pytest.skip('MMSKD_TEST_DATA has no mirror_mouse')
    cfg = load_config(str(ROOT / MIRRORED))
    coco = json.loads(Path(DATA, 'mirror_mouse', 'annotations', 'val.json').read_text())
    named = [info['name'] for _, info in sorted(cfg.metainfo.keypoint_info.items())]
    assert named == coco['categories'][0]['keypoints']
    # It always runs to the same side: nothing is to be mirrored, in training or in test
    assert not cfg.model.test_cfg.flip_test
    assert 'RandomFlip' not in str(cfg.train_dataloader.dataset.pipeline)


@pytest.mark.parametrize('name', [*TAUGHT, UNLABELLED, HEATMAPS, MIRRORED])
def test_takes_steps_and_validates(name, tmp_path, monkeypatch):
    import torch
    from mmengine.runner import Runner
    cfg = load_config(str(ROOT / name))
    if not DATA or not Path(DATA, Path(cfg.data_root).name).is_dir():
        pytest.skip(f'MMSKD_TEST_DATA has no {cfg.data_root}')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(Path(DATA).resolve())
    hook = cfg.custom_hooks[-1]
    for owner, model in ((hook.get('teacher', {}), 'rtmpose_s_mouse.py'), (hook, STUDENT)):
        if 'checkpoint' in owner:
            torch.save(dict(state_dict=build(model).state_dict()), 'trained.pth')
            owner.checkpoint = 'trained.pth'
    cfg.merge_from_dict({
        'work_dir': 'work', 'param_scheduler': [], 'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1, 'experiment_name': name, 'visualizer.name': name,
        **{f'{split}_dataloader.{key}': value for split in ('train', 'val')
           for key, value in (('dataset.indices', 8), ('num_workers', 0))
           if split == 'val' or name != UNLABELLED or key == 'num_workers'}})
    if name == UNLABELLED:
        for dataset in cfg.train_dataloader.dataset.datasets:
            dataset.indices = dataset.indices[:4]
    runner = Runner.from_cfg(Config(cfg.to_dict(), filename=str(ROOT / name)))
    runner.train()
    assert runner.iter == 1
    assert 0 <= runner.message_hub.get_scalar('val/PCK').current() <= 1
    names = runner.val_dataloader.dataset.metainfo['keypoint_id2name']
    assert names[3] == ('paw4RH_top' if name == MIRRORED else 'tailbase')
