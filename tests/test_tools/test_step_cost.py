"""tools/benchmarks/step_cost.py: ways to train a model, measured side by side."""
import json

import pytest

pytest.importorskip('mmdet')

CONFIG = 'mmskd::bccd/retinanet_r18_bccd.py'


def test_report_and_its_table(run_tool, tmp_path, capsys):
    out = tmp_path / 'new' / 'report.json'
    run_tool('benchmarks/step_cost', '--config', CONFIG, '--size', '64', '96', '--batch', '1',
             '--steps', '1', '--warmup', '0', '--out', str(out))
    report = json.loads(out.read_text())
    ways = report['works']['config']['ways']
    assert list(ways) == ['stock', 'PS-KD', 'PS-KD, float32'] and ways['stock']['ratio'] == 1
    # the teacher is no part of the checkpoint
    assert len({(row['checkpoint_bytes'], row['parameter_bytes']) for row in ways.values()}) == 1
    assert report['machine']['device'] == 'cpu'
    seconds, ratio = ways['PS-KD']['seconds'], ways['PS-KD']['ratio']
    assert f'| PS-KD | {seconds:.3f} | {ratio:.3f} |' in capsys.readouterr().out


def test_a_teacher_of_larger_crops_in_an_onnx_file(load_tool):
    for package in ('mmpose', 'onnx', 'onnxruntime'):
        pytest.importorskip(package)
    tool, onnx = load_tool('benchmarks/step_cost'), 'teacher of larger crops, .onnx'
    work = tool.WORKS['own_mouse']
    assert onnx in work.ways
    ways = tool.measure(work._replace(batch=1, ways=('stock', onnx)), 1, 0, 'cpu')['ways']
    assert ways[onnx]['seconds'] > 0 and len({row['checkpoint_bytes']
                                              for row in ways.values()}) == 1


def test_what_is_not_there_is_refused(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('benchmarks/step_cost', 'nothing')
    assert 'there is no work nothing; there are pskd_retinanet' in capsys.readouterr().err
