"""Real runs, a few iterations each, that a report can be made of."""
import pytest

IMAGES = 4


@pytest.fixture(scope='session')
def detection_runs(tmp_path_factory):
    """Work dirs of a baseline and of PS-KD, with two seeds each."""
    pytest.importorskip('mmdet')
    from tests.support import runs
    root = tmp_path_factory.mktemp('detection')
    data = runs.data(root / 'data', train=8, val=IMAGES)
    folders = []
    for name in ('baseline', 'pskd'):
        for seed in (0, 1):
            folder = root / f'{name}_s{seed}'
            cfg = runs.config(data, folder, length=2, model__test_cfg__score_thr=0.0,
                              randomness__seed=seed)
            if name == 'baseline':
                cfg.custom_hooks = []
            # Without the flip, which is random
            pipeline = [step for step in cfg.val_dataloader.dataset.pipeline
                        if step.type != 'RandomFlip']
            cfg.val_dataloader.dataset.pipeline = pipeline
            cfg.val_evaluator = [cfg.val_evaluator, dict(
                type='mmskd.DetCalibrationMetric', score_thr=0.0, n_bins=10, classwise=True,
                ann_file=str(data / 'annotations/val.json'))]
            runs.train(cfg)
            folders.append(folder)
    return folders


@pytest.fixture(scope='session')
def pose_runs(tmp_path_factory):
    """Work dirs of heatmap estimators that differ in their learning rate."""
    pytest.importorskip('mmpose')
    from mmengine.config import Config

    from mmskd.datasets import write_demo_data
    from tests.support import runs
    from tests.test_tools.conftest import tool_module
    figures = tool_module('stress/tiny').FIGURES
    root = tmp_path_factory.mktemp('pose')
    write_demo_data(root / 'data', kind='stick-figures', train=6, val=IMAGES)
    folders = []
    for name, lr in (('slow', 1e-4), ('fast', 1e-2)):
        cfg = Config.fromstring(figures.replace('data/figures', str(root / 'data')), '.py')
        cfg.merge_from_dict({
            'optim_wrapper.optimizer.lr': lr, 'work_dir': str(root / name), 'experiment_name': name,
            'randomness': dict(seed=0), 'log_level': 'ERROR', 'train_cfg.max_epochs': 2,
            'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1)})
        runs.train(cfg)
        folders.append(root / name)
    return folders
