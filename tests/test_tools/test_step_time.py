"""tools/analysis/step_time.py: every way to train a model, timed side by side."""
import pytest

pytest.importorskip('mmdet')

HALF = 'PS-KD, bfloat16'


@pytest.mark.parametrize('config, distills', [
    ('tiny.py', True), ('mmskd::bccd/faster_rcnn_r18_bccd.py', True),
    ('mmdet::detr/detr_r50_8xb2-150e_coco.py', False)])
def test_table(run_tool, tiny, capsys, config, distills):
    run_tool('analysis/step_time', config, '--size', '128', '--batch', '1', '--steps', '1')
    out = capsys.readouterr().out
    rows = [line.split('│')[1].strip() for line in out.splitlines() if line.startswith('│')]
    assert [row for row in rows if row != HALF] == ['stock', 'PS-KD'] + ['head distillation'] * distills
    assert ('DETR is not supported' in out) != distills
    assert (HALF in rows) != (f'{HALF} is left out: ' in out)  # mmcv's RoIAlign on a CPU has none
