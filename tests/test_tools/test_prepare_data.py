"""Public data sets laid out from small sources that are made up, and from what real ones hold."""
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

DATA = os.environ.get('MMSKD_TEST_DATA')


def needs(name):
    return pytest.mark.skipif(not DATA or not Path(DATA, name).is_dir(),
                              reason=f'MMSKD_TEST_DATA has no {name}')


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (200, 100, 50)).save(path)


def voc(root, name, objects, size=(40, 30)):
    items = ''.join(
        f'<object><name>{label}</name><bndbox>' +
        ''.join(f'<{key}>{value}</{key}>' for key, value in zip(
            ('xmin', 'ymin', 'xmax', 'ymax'), box)) + '</bndbox></object>'
        for label, box in objects)
    path = root / 'BCCD' / 'Annotations' / f'{name}.xml'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>'
                    f'{items}</annotation>')


def split_list(root, split, names):
    path = root / 'BCCD' / 'ImageSets' / 'Main' / f'{split}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{name}\n' for name in names))


def bccd_source(root):
    for split, name in dict(train='b', val='a', test='c').items():
        split_list(root, split, [name])
        picture(root / 'BCCD' / 'JPEGImages' / f'{name}.jpg')
        voc(root, name, [('WBC', (5, 6, 20, 16)), ('Platelets', (30, 20, 44, 31)),
                         ('RBC', (7, 7, 7, 9))])
    return root


def read(folder, split):
    return json.loads((folder / 'annotations' / f'{split}.json').read_text())


@pytest.fixture
def tool(load_tool):
    return load_tool('prepare_data')


@pytest.fixture
def few(tool, monkeypatch):
    """Lets a data set have few images."""

    def few(name, counts):
        monkeypatch.setitem(tool.DATA_SETS, name, tool.DATA_SETS[name]._replace(counts=counts))

    return few


@pytest.fixture
def run(tool, monkeypatch):
    def run(*argv):
        monkeypatch.setattr('sys.argv', ['prepare_data.py', *map(str, argv)])
        tool.main()

    return run


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_bccd(kind, run, few, tmp_path, capsys):
    few('bccd', dict.fromkeys(('train', 'val', 'test'), (1, 2)))
    source = bccd_source(tmp_path / 'source')
    if kind == 'zip':
        with zipfile.ZipFile(tmp_path / 'source.zip', 'w') as archive:
            for path in source.rglob('*.*'):
                archive.write(path, path.relative_to(source))
        source = tmp_path / 'source.zip'
    elif kind == 'tar':
        if not hasattr(tarfile, 'data_filter'):
            pytest.skip('this Python has no safe way to unpack')
        with tarfile.open(tmp_path / 'source.tgz', 'w:gz') as archive:
            archive.add(source, 'top')
        source = tmp_path / 'source.tgz'
    out = tmp_path / 'data' / 'bccd'
    run('bccd', source, '--out', out)
    assert 'train 1 images, 2 annotations' in capsys.readouterr().out
    coco = read(out, 'train')
    assert coco['images'] == [dict(id=1, file_name='b.jpg', width=40, height=30)]
    assert [item['category_id'] for item in coco['annotations']] == [2, 3]
    # The second is clipped; the third, without an area, is left out
    assert [item['bbox'] for item in coco['annotations']] == [[5, 6, 15, 10], [30, 20, 10, 10]]
    assert [item['area'] for item in coco['annotations']] == [150, 100]
    assert sorted(path.name for path in (out / 'images').iterdir()) == ['a.jpg', 'b.jpg', 'c.jpg']
    assert 'MIT' in (out / 'LICENSE').read_text()
    assert [path.name for path in out.parent.iterdir()] == ['bccd'], 'nothing is left behind'


def test_aquarium_is_made_smaller(run, few, tmp_path):
    few('aquarium', dict.fromkeys(('train', 'val', 'test'), (1, 1)))
    for split in ('train', 'valid', 'test'):
        folder = tmp_path / 'source' / split
        picture(folder / 'IMG_1.rf.0.jpg', (768, 1024))
        coco = dict(
            images=[dict(id=0, file_name='IMG_1.rf.0.jpg', width=768, height=1024)],
            # Roboflow's categories begin with one for all of them
            categories=[dict(id=0, name='creatures'), dict(id=3, name='puffin')],
            annotations=[dict(id=9, image_id=0, category_id=3, bbox=[128, 256, 640, 512])])
        (folder / '_annotations.coco.json').write_text(json.dumps(coco))
    out = tmp_path / 'aquarium'
    run('aquarium', tmp_path / 'source', '--out', out)
    coco = read(out, 'val')
    assert coco['images'] == [dict(id=1, file_name='val_0001.jpg', width=360, height=480)]
    item, = coco['annotations']
    assert item['bbox'] == [60, 120, 300, 240]
    assert coco['categories'][item['category_id'] - 1]['name'] == 'puffin'


def keypoint_source(folder, csv_name, rows, prefix='labeled-data'):
    for path, _ in rows:
        picture(folder / path, (100, 80))
    lines = ['scorer,me,me,me,me', 'bodyparts,nose,nose,tail,tail', 'coords,x,y,x,y']
    lines += [','.join([path, *map(str, values)]) for path, values in rows]
    (folder / csv_name).write_text('\n'.join(lines) + '\n')


def test_mirror_mouse(run, few, tmp_path):
    few('mirror_mouse', dict(train=(1, 1), val=(1, 1)))
    folder = tmp_path / 'lightning-pose-main' / 'data' / 'mirror-mouse-example'
    folder.mkdir(parents=True)
    keypoint_source(folder, 'CollectedData.csv', [
        ('labeled-data/img06.png', (30, 40, 50, 45)), ('labeled-data/img05.png', (20, 30, '', ''))])
    run('mirror_mouse', tmp_path, '--out', tmp_path / 'out')
    item, = read(tmp_path / 'out', 'val')['annotations']
    assert item['keypoints'] == [20, 30, 2, 0, 0, 0] and item['num_keypoints'] == 1
    assert item['bbox'] == [8, 18, 24, 24]
    item, = read(tmp_path / 'out', 'train')['annotations']
    assert item['bbox'] == [18, 28, 44, 29]
    assert read(tmp_path / 'out', 'train')['categories'][0]['keypoints'] == ['nose', 'tail']


@needs('openfield_mouse')
@needs('mirror_mouse')
@pytest.mark.parametrize('name, csv_name, inside', [
    ('openfield_mouse', 'CollectedData_Pranav.csv', 'labeled-data/m4s1'),
    ('mirror_mouse', 'CollectedData.csv', 'mirror-mouse-example')])
def test_keypoints_come_out_as_the_real_ones(name, csv_name, inside, run, tmp_path):
    """The split, the boxes and the keypoints of the data that the results were measured on."""
    known = {split: json.loads(Path(DATA, name, 'annotations', f'{split}.json').read_text())
             for split in ('train', 'val')}
    names = known['val']['categories'][0]['keypoints']
    rows = [
        'scorer' + 2 * len(names) * ',x',
        ','.join(['bodyparts', *(n for n in names for _ in 'xy')]), 'coords' + len(names) * ',x,y'
    ]
    folder = tmp_path / 'source' / inside
    for coco in known.values():
        for image, item in zip(coco['images'], coco['annotations']):
            path = (folder / image['file_name']).with_suffix('.png')
            picture(path, (image['width'], image['height']))
            points = item['keypoints']
            cells = [str(value) if points[i + 2] else '' for i in range(0, len(points), 3)
                     for value in points[i:i + 2]]
            rows.append(','.join([f'labeled-data/{path.name}', *cells]))
    (folder / csv_name).write_text('\n'.join(rows))
    run(name, tmp_path / 'source', '--out', tmp_path / 'out')
    for split, coco in known.items():
        made = read(tmp_path / 'out', split)
        assert made['images'] == coco['images']
        for mine, theirs in zip(made['annotations'], coco['annotations']):
            assert mine['keypoints'] == theirs['keypoints']
            assert mine['bbox'] == pytest.approx(theirs['bbox'], abs=0.011)
        assert made['categories'][0]['skeleton'] == coco['categories'][0]['skeleton']


@needs('bccd')
def test_bccd_comes_out_as_the_real_one(run, tmp_path):
    for split in ('train', 'val', 'test'):
        coco = json.loads(Path(DATA, 'bccd', 'annotations', f'{split}.json').read_text())
        labels = {category['id']: category['name'] for category in coco['categories']}
        boxes = {image['id']: [] for image in coco['images']}
        for item in coco['annotations']:
            x, y, width, height = item['bbox']
            boxes[item['image_id']].append((labels[item['category_id']],
                                            (x, y, x + width, y + height)))
        stems = {image['id']: Path(image['file_name']).stem for image in coco['images']}
        split_list(tmp_path, split, stems.values())
        for number, stem in stems.items():
            voc(tmp_path, stem, boxes[number], (640, 480))
            target = tmp_path / 'BCCD' / 'JPEGImages' / f'{stem}.jpg'
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(Path(DATA, 'bccd', 'images', f'{stem}.jpg'))
    run('bccd', tmp_path / 'BCCD', '--out', tmp_path / 'out')
    for split in ('train', 'val', 'test'):
        coco = json.loads(Path(DATA, 'bccd', 'annotations', f'{split}.json').read_text())
        made = read(tmp_path / 'out', split)
        for mine, theirs in zip(made['annotations'], coco['annotations']):
            assert [mine[key] for key in ('id', 'category_id', 'bbox', 'area')] == \
                [theirs[key] for key in ('id', 'category_id', 'bbox', 'area')]


@pytest.mark.parametrize('name', ['bccd', 'aquarium', 'openfield_mouse', 'mirror_mouse'])
def test_check_of_the_real_ones(name, run, monkeypatch):
    if not DATA or not Path(DATA, name).is_dir():
        pytest.skip(f'MMSKD_TEST_DATA has no {name}')
    run(name, '--check', '--out', Path(DATA, name))


def test_check_finds_what_is_wrong(tool, run, few, tmp_path):
    few('bccd', dict.fromkeys(('train', 'val', 'test'), (1, 2)))
    out = tmp_path / 'out'
    run('bccd', bccd_source(tmp_path / 'source'), '--out', out)
    found = lambda: list(tool.problems(tool.DATA_SETS['bccd'], out))  # noqa: E731
    assert found() == []
    coco = read(out, 'train')
    coco['annotations'][0]['bbox'] = [30, 6, 15, 10]
    (out / 'annotations' / 'train.json').write_text(json.dumps(coco))
    picture(out / 'images' / 'a.jpg', (30, 40))
    (out / 'images' / 'c.jpg').unlink()
    lines = found()
    for line, message in zip(lines, ['the box of annotation 1 is not inside its image',
                                     'a.jpg has (30, 40) pixels, ', 'c.jpg is not there']):
        assert message in line
    assert len(lines) == 3
    few('bccd', dict(train=(1, 2), val=(1, 3)))
    assert any('has 2 annotations, 3 are known' in line for line in found())


@pytest.mark.parametrize('argv, message', [
    (['bccd'], 'BCCD_Dataset .*: download it'),
    (['bccd', 'nowhere.zip'], 'nowhere.zip is neither a folder nor'),
    (['bccd', '.'], 'the source has no file .../ImageSets/Main/train.txt'),
    (['bccd', '--check'], 'train.json is not there .and 2 more'),
    (['aquarium', '.', '--out', 'there'], 'there is there already'),
])
def test_errors(argv, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').mkdir()
    with pytest.raises(SystemExit, match=f'prepare_data.py: .*{message}'):
        run(*argv)
    assert [path.name for path in tmp_path.rglob('*')] in (['there'], ['there', 'data'],
                                                           ['data', 'there'])


@pytest.mark.parametrize('change, message', [
    (lambda source: voc(source, 'a', [('neutrophil',
                                       (1, 1, 5, 5))]), 'the class neutrophil; there'),
    (lambda source: voc(source, 'a', [('WBC', (1, 1, 5, 'x'))]), 'not laid out as .*BCCD_Dataset'),
    (lambda source: (source / 'BCCD/Annotations/a.xml').write_text('<a>'), 'not laid out as'),
    (lambda source: picture(source / 'copy' / 'JPEGImages' / 'a.jpg'), 'has 2 files .*a.jpg, one')
])
def test_a_source_of_another_kind_is_named(change, message, run, tmp_path):
    source = bccd_source(tmp_path / 'source')
    change(source)
    with pytest.raises(SystemExit, match=message):
        run('bccd', source, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists(), 'half a data set is none'


def test_entities_are_not_expanded(run, tmp_path):
    source = bccd_source(tmp_path / 'source')
    path = source / 'BCCD' / 'Annotations' / 'a.xml'
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text())
    with pytest.raises(SystemExit, match='declares entities'):
        run('bccd', source, '--out', tmp_path / 'out')


def test_an_archive_cannot_write_elsewhere(run, tmp_path):
    with zipfile.ZipFile(tmp_path / 'source.zip', 'w') as archive:
        archive.writestr('../../outside.txt', 'x')
    with pytest.raises(SystemExit, match='no file'):
        run('bccd', tmp_path / 'source.zip', '--out', tmp_path / 'data' / 'bccd')
    assert not list(tmp_path.parent.glob('outside.txt')) + list(tmp_path.glob('outside.txt'))
