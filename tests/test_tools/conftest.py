"""A tiny data set, tiny configs on it, and the tools called as from the command line."""
import contextlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DETECTOR = """
_base_ = 'mmskd::demo/retinanet_shapes.py'
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
    test_cfg=dict(score_thr=0.0, max_per_img=5))
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=-1))
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
"""


@contextlib.contextmanager
def working_in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def tool_module(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str((ROOT / 'tools' / name).parent))  # as Python does with a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def call_tool(name, *argv):
    """What ``python tools/<name>.py <argv>`` does; the process-wide settings are put back."""
    from mmengine.runner import CheckpointLoader
    argv_before, schemes_before = sys.argv, dict(CheckpointLoader._schemes)
    sys.argv = [f'{name}.py', *map(str, argv)]
    try:
        tool_module(name).main()
    finally:
        sys.argv = argv_before
        CheckpointLoader._schemes.clear()
        CheckpointLoader._schemes.update(schemes_before)


@pytest.fixture
def load_tool():
    return tool_module


@pytest.fixture(scope='session')
def run_tool():
    return call_tool


@pytest.fixture
def refusal(capsys):
    """Calls a tool that must end in one line and exit code 2; returns the line."""

    def refusal(name, *argv):
        with pytest.raises(SystemExit) as ending:
            call_tool(name, *argv)
        printed = capsys.readouterr().err
        assert ending.value.code == 2 and 'Traceback' not in printed
        line = printed.splitlines()[-1]
        assert line.startswith(f'{name}.py: ')
        return line

    return refusal


@pytest.fixture
def prepare(monkeypatch):
    """The config that a tool would run with, whether its data is there or not."""

    def prepare(name, *argv):
        tool = tool_module(name)
        monkeypatch.setattr(tool, 'check_data', lambda *args: None)
        for check in ('check_checkpoint', 'choose_checkpoint'):
            monkeypatch.setattr(tool, check, lambda *args: None, raising=False)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *argv])
        return tool.prepare(tool.parse_args())

    return prepare


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory):
    from mmskd.datasets import write_demo_data
    folder = tmp_path_factory.mktemp('a folder')  # the tools must cope with the blank
    write_demo_data(folder / 'data' / 'shapes', train=8, val=4)
    write_demo_data(folder / 'data' / 'figures', kind='stick-figures', train=6, val=4)
    (folder / 'tiny.py').write_text(DETECTOR)
    (folder / 'tiny_pose.py').write_text(tool_module('stress/tiny').FIGURES)
    return folder


@pytest.fixture
def tiny(tiny_folder, monkeypatch):
    """Makes the folder with tiny.py and tiny_pose.py the working directory."""
    monkeypatch.chdir(tiny_folder)
    return tiny_folder


@pytest.fixture(scope='session')
def trained(tiny_folder):
    """The checkpoint of tiny.py after its one epoch."""
    with working_in(tiny_folder):
        call_tool('train', 'tiny.py', '--work-dir', 'work_dirs/trained')
    return tiny_folder / 'work_dirs' / 'trained' / 'epoch_1.pth'
