"""Each config is what ``--head-distill CHECKPOINT`` makes of its base, written down."""
import re
from pathlib import Path

import mmengine
import pytest

pytest.importorskip('mmdet')

from mmskd.config import config_root, load_config  # noqa: E402
from mmskd.engine.schedule import shorten_schedule  # noqa: E402
from tests.test_configs import build_model, plain  # noqa: E402

ROOT = Path(__file__).resolve().parents[1] / 'configs' / 'head_distill'
CONFIGS = sorted(path.name for path in ROOT.glob('*.py'))


def base_of(name):
    return re.search(r"_base_ = '(.*)'", (ROOT / name).read_text()).group(1)


@pytest.mark.parametrize('name', CONFIGS)
def test_it_is_the_base_for_a_fifth_of_the_schedule_and_one_hook(name):
    base = base_of(name)
    stock = load_config(base if '::' in base else str(ROOT / base))
    assert 'not scaled' not in shorten_schedule(stock, 0.2)
    stock, ours = plain(stock), plain(load_config(str(ROOT / name)))
    *hooks, last = ours.pop('custom_hooks')
    assert hooks == stock.pop('custom_hooks', [])
    assert list(last) == ['type', 'checkpoint'] and last['type'] == 'mmskd.HeadDistillHook'
    # variables of the files, which nobody reads
    helpers = ('max_epochs', 'stage2_num_epochs', 'interval')
    for key in helpers:
        ours.pop(key, None), stock.pop(key, None)
    assert ours == stock


@pytest.mark.parametrize('name', CONFIGS)
def test_the_checkpoint_is_that_of_the_base(name):
    base = base_of(name)
    checkpoint = load_config(str(ROOT / name)).custom_hooks[-1].checkpoint
    if '::' not in base:
        stem = Path(base).stem
        epochs = load_config(str(ROOT / base)).max_epochs
        assert checkpoint == f'work_dirs/{stem}/epoch_{epochs}.pth'
        return
    path = config_root('mmdet') / base.partition('::')[2]
    models = mmengine.load(path.with_name('metafile.yml'))['Models']
    assert [model['Weights'] for model in models if model['Name'] == path.stem] == [checkpoint]


@pytest.mark.parametrize('name', CONFIGS)
def test_its_heads_can_be_distilled(name):
    from mmskd.models.head_distill import heads_to_distill
    heads = heads_to_distill(build_model(load_config(str(ROOT / name))))
    assert [head.name
            for head in heads] == ['roi_head.bbox_head' if 'faster_rcnn' in name else 'bbox_head']
