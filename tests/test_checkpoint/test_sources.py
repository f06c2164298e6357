"""Checkpoints from the network, by URL or by name: read as safely as files."""
import contextlib
import json
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, io
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader

from mmskd.checkpoint import NotDownloadedError, use_safe_loading
from mmskd.engine.explaining import explain
from mmskd.errors import UsageError

MARK = 'executed'


class Calls:
    """A pickle of it runs a command when it is read without care."""

    def __reduce__(self):
        return os.system, (f'touch {MARK}',)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The URLs that were downloaded; each gives weights and a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    urls = []

    def download(url, path):
        urls.append(url)
        torch.save(dict(state_dict=dict(w=torch.ones(1)), x=Calls()), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    use_safe_loading()
    return urls


@pytest.mark.parametrize('source, url', [
    ('https://host/path/model.pth?x=1', 'https://host/path/model.pth?x=1'),
    ('torchvision://resnet18', 'https://download.pytorch.org/models/resnet18-f37072fd.pth'),
    ('open-mmlab://vgg16_caffe',
     'https://download.openmmlab.com/pretrain/third_party/vgg16_caffe-292e1171.pth'),
    ('openmmlab://resnet50_caffe', 'https://download.openmmlab.com/pretrain/third_party/'
     'resnet50_caffe-788b5fa3.pth'),  # an old name of detectron/resnet50_caffe
    ('mmcls://vgg11', 'https://download.openmmlab.com/mmclassification/v0/vgg/'
     'vgg11_batch256_imagenet_20210208-4271cd6c.pth'),
])
def test_what_was_downloaded_runs_nothing_and_is_kept(source, url, asked):
    for _ in range(2):
        with pytest.raises(UsageError, match='asks for'):
            CheckpointLoader.load_checkpoint(source)
    assert asked == [url], 'kept after the first time'
    assert not Path(MARK).exists()


def test_weights_by_name_are_those_of_the_backbone_alone(asked, monkeypatch):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: torch.save(
        {'state_dict': {'backbone.w': torch.ones(1), 'head.w': torch.zeros(1)}}, path))
    assert list(CheckpointLoader.load_checkpoint('mmcls://vgg11')['state_dict']) == ['w']
    assert len(CheckpointLoader.load_checkpoint('torchvision://resnet18')['state_dict']) == 2


def test_a_list_of_the_user_names_files(asked, monkeypatch, tmp_path):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text(json.dumps({'mine': 'mine.pth'}))
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'mine.pth')
    assert 'w' in CheckpointLoader.load_checkpoint('open-mmlab://mine')['state_dict']
    torch.save(dict(x=Calls()), tmp_path / 'mine.pth')
    with pytest.raises(UsageError, match='mine.pth was not loaded'):
        CheckpointLoader.load_checkpoint('open-mmlab://mine')
    assert asked == [] and not Path(MARK).exists()


def test_an_unknown_name_says_what_there_is(asked):
    with pytest.raises(UsageError, match='torchvision://resnet19: .* no such model; did you mean .*'
                                         'resnet1'):
        CheckpointLoader.load_checkpoint('torchvision://resnet19')


def test_stores_are_read_safely_or_not_at_all(asked, monkeypatch, tmp_path):
    class Store(LocalBackend):
        @contextlib.contextmanager
        def get_local_path(self, filepath):
            yield tmp_path / filepath.rpartition('/')[2]

    monkeypatch.setitem(io.backends, 'petrel', Store)
    torch.save(dict(state_dict=dict(w=torch.ones(1))), 'good.pth')
    torch.save(dict(x=Calls()), 'bad.pth')
    assert 'w' in CheckpointLoader.load_checkpoint('s3://bucket/good.pth')['state_dict']
    for source in ('s3://bucket/bad.pth', 'mine:petrel://bucket/bad.pth', 'pavi://bad.pth'):
        with pytest.raises(UsageError, match='bad.pth'):
            CheckpointLoader.load_checkpoint(source)
    assert not Path(MARK).exists()


@pytest.mark.parametrize('problem', [
    URLError('Name or service not known'), ConnectionResetError('reset by peer'), TimeoutError()])
@pytest.mark.parametrize('source', ['torchvision://resnet18', 'https://host/resnet18-f37072fd.pth'])
def test_without_a_network_the_config_key_and_the_place_are_named(
        source, problem, asked, monkeypatch, tmp_path):
    def download(url, path):
        raise problem

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    weights = dict(type='Pretrained', checkpoint=source)
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet', init_cfg=weights))))
    with pytest.raises(NotDownloadedError) as refusal:
        BaseModule(weights).init_weights()
    line = explain(refusal.value, cfg)
    assert line.startswith(f'model.backbone.init_cfg.checkpoint: {source} cannot be downloaded (')
    assert f'put it at {tmp_path}/checkpoints/resnet18-f37072fd.pth; or start' in line
    assert line.endswith('--cfg-options model.backbone.init_cfg=None')
    assert explain(refusal.value, Config(dict(load_from=source))).startswith(f'load_from: {source}')
    assert '\n' not in line
