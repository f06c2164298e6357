"""tools/analysis/step_time.py: every way to train a model, timed side by side."""
import pytest

pytest.importorskip('mmdet')


@pytest.mark.parametrize('config, rows', [
    ('tiny.py', ['stock', 'PS-KD', 'PS-KD, bfloat16', 'head distillation']),
    ('mmdet::detr/detr_r50_8xb2-150e_coco.py', ['stock', 'PS-KD', 'PS-KD, bfloat16']),
    ('mmskd::bccd/faster_rcnn_r18_bccd.py', ['stock', 'PS-KD', 'head distillation'])])
def test_table(run_tool, tiny, capsys, config, rows):
    run_tool('analysis/step_time', config, '--size', '64', '--batch', '1', '--steps', '1')
    out = capsys.readouterr().out
    assert [line.split('│')[1].strip() for line in out.splitlines() if line.startswith('│')] == rows
    assert ('DETR is not supported' in out) == ('head distillation' not in rows)
    assert ('PS-KD, bfloat16 is left out: "ROIAlign_forward"' in out) == ('PS-KD, bfloat16' not in rows)
