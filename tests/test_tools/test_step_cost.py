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


@pytest.mark.parametrize('argv, message', [
    (['nothing'], 'there is no work nothing; there are pskd_retinanet'),
    (['--steps', '0'], '--steps 0: at least 1'), (['--batch', '0'], '--batch 0: at least 1'),
    (['pskd_rtmpose', '--config', CONFIG], '--config is measured instead of pskd_rtmpose'),
    (['--config', 'nothing.py'], 'step_cost.py: there is no config file nothing.py')])
def test_what_is_not_there_is_refused(argv, message, run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('benchmarks/step_cost', *argv)
    assert message in capsys.readouterr().err


def test_heatmaps_of_any_size(load_tool):
    pytest.importorskip('mmpose')
    tool = load_tool('benchmarks/step_cost')
    model = tool._build('mmskd::openfield_mouse/td-hm_cspnext-t_mouse.py')
    inputs, samples = tool.random_batch(model, (1, 1), 1, 'cpu')
    size = model.head.decoder.heatmap_size
    assert tuple(size) != (48, 64) and samples[0].gt_fields.heatmaps.shape[1:] == tuple(size)[::-1]
    assert model(inputs, samples, mode='loss')
