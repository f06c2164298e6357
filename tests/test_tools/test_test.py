import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
needs_mmpose = pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
POSE = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'


def test_detector(run_tool, tiny, trained):
    run_tool('test', 'tiny.py', trained, '--out', 'out.pkl', '--dump', 'dump.pkl', '--show-dir',
             'drawn', '--work-dir', 'work_dirs/test')
    for name in ('out.pkl', 'dump.pkl'):
        predictions = pickle.loads(Path(name).read_bytes())
        assert len(predictions) == 4
        assert len(predictions[0]['pred_instances']['bboxes']) == 5
    assert len(list(Path('work_dirs/test').rglob('drawn/*.png'))) == 4
    metrics, = Path('work_dirs/test').rglob('*_*/*.json')
    assert 'coco/bbox_mAP' in json.loads(metrics.read_text())


def test_detector_with_tta(run_tool, tiny, trained):
    with pytest.warns(UserWarning, match='tta'):
        run_tool('test', 'tiny.py', trained, '--tta', '--out', 'tta.pkl', '--work-dir',
                 'work_dirs/tta')
    assert len(pickle.loads(Path('tta.pkl').read_bytes())) == 4


def test_no_model_of_another_shape(refusal, tiny, trained):
    line = refusal('test', 'tiny.py', trained, '--work-dir', 'work_dirs/shape', '--cfg-options',
                   'model.bbox_head.num_classes=9', 'experiment_name=shape')
    assert 'epoch_1.pth does not fit RetinaNet: it has in another shape 2 weights' in line


def test_no_other_model_by_its_url(refusal, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: torch.save(
        dict(state_dict={'backbone.other': torch.zeros(1)}), path))
    line = refusal('test', 'tiny.py', 'https://host/other.pth', '--work-dir', 'work_dirs/other')
    assert 'https://host/other.pth holds no weight of this model (RetinaNet)' in line


@needs_mmpose
def test_pose_model(run_tool, tiny):
    run_tool('train', 'tiny_pose.py', '--no-validate', '--work-dir', 'work_dirs/pose')
    run_tool('test', 'tiny_pose.py', 'work_dirs/pose/epoch_1.pth', '--out', 'metrics.json',
             '--dump', 'pose.pkl', '--work-dir', 'work_dirs/pose_test')
    assert 'PCK' in json.loads(Path('metrics.json').read_text())
    assert 'pred_instances' in pickle.loads(Path('pose.pkl').read_bytes())[0]


def test_mmdet_flags(prepare):
    cfg = prepare('test', RETINANET, 'x.pth', '--show', '--show-dir', 'drawn', '--work-dir', 'flag',
                  '--cfg-options', 'work_dir=option')
    hook = cfg.default_hooks.visualization
    assert hook.draw and hook.show and hook.wait_time == 2 and hook.test_out_dir == 'drawn'
    assert cfg.load_from == 'x.pth' and cfg.work_dir == 'flag'


@needs_mmpose
def test_mmpose_flags(prepare):
    cfg = prepare('test', POSE, 'x.pth', '--show', '--badcase', '--interval', '3', '--work-dir',
                  'flag', '--cfg-options', 'work_dir=option')
    bad = cfg.default_hooks.badcase
    assert bad.enable and bad.show and bad.wait_time == 1 and bad.interval == 3
    assert bad.metric == cfg.model.head.loss
    assert not cfg.default_hooks.visualization.enable, 'only bad cases are shown'
    assert cfg.load_from == 'x.pth' and cfg.work_dir == 'option'


@pytest.mark.parametrize('argv, message', [
    ([RETINANET, 'nowhere.pth'], 'no checkpoint nowhere.pth'),
    ([RETINANET, 'https://host/x.pth'], 'instances_val2017.json (test), which is not there'),
    ([RETINANET, 'x.pth', '--out', 'metrics.json'], 'must end in .pkl'),
    ([RETINANET, 'x.pth', '--badcase'], '--badcase is for MMPose'),
    pytest.param([POSE, 'x.pth', '--tta'], '--tta is for MMDetection', marks=needs_mmpose),
    pytest.param([POSE, 'x.pth', '--dump', 'x.json'], 'must end in .pkl', marks=needs_mmpose),
])
def test_errors_before_anything_is_built(argv, message, refusal, tiny):
    assert message in refusal('test', *argv)
