"""The commands of docs/own_dwpose.md, one after the other, on a few generated figures."""
import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmpose')

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'own_dwpose.md'
SHORT = """
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=5))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images and one json, in which some have a box alone."""
    from mmskd.datasets import write_demo_data
    folder = tmp_path_factory.mktemp('own')
    write_demo_data(folder / 'made', kind='stick-figures', train=10, val=1)
    (folder / 'made' / 'train').rename(folder / 'photos')
    coco = json.loads((folder / 'made' / 'annotations' / 'train.json').read_text())
    for item in coco['annotations'][-2:]:
        del item['keypoints']
    (folder / 'labels.json').write_text(json.dumps(coco))
    return folder


def shortened(folder):
    """The written configs at 64x64, for five epochs."""
    for path in folder.glob('mouse/*.py'):
        text = path.read_text()
        text = text.replace('(192, 192)', '(64, 64)').replace('(12, 12)', '(4, 4)')
        text = re.sub(r'num_workers=\d', 'num_workers=0', text).replace('persistent_workers=True',
                                                                       'persistent_workers=False')
        text = text.replace('batch_size=16', 'batch_size=4').replace('epoch_100', 'epoch_5')
        path.write_text(text + (SHORT if path.name == 'student.py' else ''))


def test_the_seven_commands(folder, run_tool, monkeypatch):
    monkeypatch.chdir(folder)
    block = re.search(r'```bash\n(.*?)```', PAGE.read_text(), re.S).group(1)
    commands = [shlex.split(line) for line in block.strip().splitlines()]
    assert len(commands) == 7
    for program, script, *arguments in commands:
        assert program == 'python'
        arguments = [argument.replace('epoch_100', 'epoch_5').replace('epoch_20', 'epoch_1')
                     for argument in arguments]
        run_tool(Path(script).stem, *arguments)
        if 'prepare' in script:
            shortened(folder)
    assert len(list(folder.glob('published/mouse-*.pth'))) == 1
    log = '\n'.join(path.read_text() for path in folder.glob('work_dirs/distilled/*/*.log'))
    assert 'loss_logit' in log
    # What was written answers as the model does
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(str(folder / 'mouse.onnx'),
                                           providers=['CPUExecutionProvider'])
    x, y = session.run(['simcc_x', 'simcc_y'], {'input': np.zeros((3, 3, 64, 64), np.float32)})
    names = json.loads((folder / 'labels.json').read_text())['categories'][0]['keypoints']
    assert x.shape == y.shape == (3, len(names), 128)


def test_what_was_prepared(folder):
    """Runs after the commands: all images once, the mirrored names, the crops without labels."""
    parts = {
        path.stem: json.loads(path.read_text())
        for path in folder.glob('data/mouse/annotations/*.json')
    }
    given = {
        item['id']: item for item in json.loads((folder / 'labels.json').read_text())['annotations']
    }
    ids = {name: {item['id'] for item in part['annotations']} for name, part in parts.items()}
    images = {name: {image['id'] for image in part['images']} for name, part in parts.items()}
    assert set(ids) == {'train', 'val', 'unlabelled'} and all(ids.values())
    assert ids['train'] | ids['val'] == {key for key, item in given.items() if 'keypoints' in item}
    assert not images['val'] & (images['train'] | images['unlabelled'])
    assert ids['unlabelled'] <= {key for key, item in given.items() if 'keypoints' not in item}
    from mmengine.config import Config
    info = Config.fromfile(str(folder / 'mouse' / 'data.py')).metainfo.keypoint_info
    for item in info.values():
        assert bool(item['swap']) == item['name'].startswith(('left', 'right'))


@pytest.mark.parametrize(
    'change,message',
    [(dict(categories=[]), 'has no categories'),
     (dict(annotations=[dict(image_id='x', id=7, category_id=1)]), 'annotation 7 '),
     (dict(images=[dict(id=0, file_name='gone.jpg')]),
      'an image needs id, file_name, width and height'),
     (dict(images=[dict(id=0, file_name='gone.jpg', width=3, height=3)]), 'gone.jpg is not there'),
     (dict(categories=[dict(name='a'), dict(name='b')]), 'one category with the names'),
     (dict(categories=[dict(id=1, keypoints=['nose', 'tail', 'nose'])]),
      "a name of its own, and one is 'nose'"),
     (dict(categories=[dict(id=1, keypoints=['nose', 'tail'], skeleton=[[0, 1]])]),
      'two numbers from 1 to 2'),
     (dict(annotations=[dict(id=1), dict(id=1)]), 'annotation 1 |an id of its own'),
     (dict(annotations=[dict(image_id=0)]), 'an id of its own, and one has None')])
def test_other_files_are_refused_in_a_line(folder, tmp_path, refusal, change, message):
    coco = json.loads((folder / 'labels.json').read_text())
    (tmp_path / 'labels.json').write_text(json.dumps({**coco, **change}))
    assert re.search(message,
                     refusal('prepare_poses', folder / 'photos', tmp_path / 'labels.json', 'other'))


@pytest.mark.parametrize('names', [('nose', 'leftear', 'rightear'), ('nose', 'ear_L', 'ear_R'),
                                   ('Nose', 'EarLeft', 'EarRight'), ('nose', 'earL', 'earR'),
                                   ('nose', 'fl', 'fr'), ('nose', 'left elbow', 'right elbow'),
                                   ('nose', 'paw1LH', 'paw1RH')])
def test_names_say_what_a_mirror_swaps(load_tool, names):
    tool = load_tool('prepare_poses')
    assert [tool._mirrored(name, list(names)) for name in names] == ['', names[2], names[1]]


def test_the_table_says_what_data_sets_have_in_common():
    from mmskd.models.teachers.keypoints import Keypoints, map_keypoints
    from mmskd.models.teachers.metainfo import given_metainfo

    def known(side, name):
        meta = given_metainfo(side, f'configs/_base_/datasets/{name}.py')
        return Keypoints(side, len(meta['keypoint_id2name']), meta)

    rows = re.findall(r'^\| (\w+) \| (\w+) \| (\d+) of (\d+) \|(.*)\|$', PAGE.read_text(), re.M)
    assert len(rows) == 7
    for student, teacher, taught, count, alone in rows:
        mine, theirs = known('student', student), known('teacher', teacher)
        mapped = map_keypoints('by_name', mine, theirs)
        left = [mine.names[index] for index, other in enumerate(mapped) if other is None]
        assert (int(taught), int(count)) == (mine.count - len(left), mine.count)
        assert alone.strip() == ', '.join(left)


def test_the_pictures_are_drawn(run_tool, tmp_path):
    """By the script that the page's came from; each is named in it, and small."""
    run_tool('draw_own_dwpose', tmp_path)
    drawn = {path.name for path in tmp_path.glob('*.png')}
    kept = PAGE.parent / '_static'
    assert len(drawn) == 2
    for name in drawn:
        assert f'(_static/{name})' in PAGE.read_text() and (kept / name).stat().st_size < 100_000


def test_teachers_of_the_page_take_what_is_written():
    from mmskd.registry import MODELS
    written = re.findall(r"`(dict\(type='mmskd.*?\))`", PAGE.read_text())
    assert len(written) == 2
    for code in written:
        given = eval(code, dict(dict=dict))
        inspect.signature(MODELS.get(given.pop('type'))).bind(**given)


@pytest.mark.parametrize(
    'config,message',
    [('mmskd::bccd/retinanet_r18_bccd.py', r'is no pose estimator of MMPose \(RetinaNet\)'),
     ('mmskd::openfield_mouse/td-hm_cspnext-t_mouse.py',
      'predicts heatmaps; only SimCC models are written')])
def test_what_is_not_written_as_onnx(tmp_path, refusal, config, message):
    import torch
    from mmengine.registry import MODELS, DefaultScope

    from mmskd.config import load_config, project_of
    pytest.importorskip('onnx')
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope(project_of(cfg)):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'model.pth')
    assert re.search(message,
                     refusal('export_onnx', config, tmp_path / 'model.pth', tmp_path / 'a.onnx'))
