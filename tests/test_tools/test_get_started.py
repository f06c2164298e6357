"""The configs and commands of docs/get_started.md, on little data and with a thin backbone."""
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'get_started.md').read_text()
LESS = {
    'my_boxes.py': [
        'model.backbone.depth=18', 'model.backbone.init_cfg=None',
        'model.neck.in_channels=[64,128,256,512]',
        'train_dataloader.dataset.pipeline.2.scale=(96,72)',
        'val_dataloader.dataset.pipeline.1.scale=(96,72)', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False', 'train_cfg.max_epochs=1'
    ],
    'my_keypoints.py': [
        'model.backbone.init_cfg=None', 'train_dataloader.batch_size=4',
        'val_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False', 'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1'
    ]
}


def section(title):
    return re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', PAGE, re.M | re.S)[1]


def follow(title, folder, run_tool, monkeypatch):
    """Write the files of a section and run its commands; the number of trainings."""
    monkeypatch.chdir(folder)
    trainings = 0
    for code in re.findall(r'^```python\n(.*?)^```', section(title), re.M | re.S):
        name = re.match(r'# (\S+\.py)\n', code)[1]
        (folder / name).write_text(code)
    for line in re.search(r'^```bash\n(.*?)^```', section(title), re.M | re.S)[1].splitlines():
        python, tool, *arguments = shlex.split(line)
        assert python == 'python'
        if tool == 'tools/make_demo_data.py':
            run_tool('make_demo_data', *arguments, '--train', '4', '--val', '2', '--quiet')
        else:
            assert tool == 'tools/train.py'
            run_tool('train', *arguments, '--cfg-options', *LESS[arguments[0]])
            trainings += 1
    return trainings


def test_own_boxes(tmp_path, run_tool, monkeypatch, capsys):
    assert follow('Your own boxes', tmp_path, run_tool, monkeypatch) == 2
    assert 'pskd_alpha' in capsys.readouterr().out
    for run in ('my_boxes', 'my_boxes_pskd'):
        assert (tmp_path / 'work_dirs' / run / 'epoch_1.pth').is_file()


@pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')
def test_own_keypoints(tmp_path, run_tool, monkeypatch, capsys):
    assert follow('Your own keypoints', tmp_path, run_tool, monkeypatch) == 2
    assert 'calibration/ECE' in capsys.readouterr().out
    assert len(list((tmp_path / 'work_dirs').glob('my_keypoints*/best_PCK_*.pth'))) == 2
