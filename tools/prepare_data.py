"""Lay out a public data set as the configs expect it, in data/<name>/, from what you downloaded.

    python tools/prepare_data.py                      where the data sets are, and their licences
    python tools/prepare_data.py bccd BCCD_Dataset-master.zip
    python tools/prepare_data.py bccd --check         looks at data/bccd/ as it is

The source is a folder or an archive (zip, tar) that holds the files anywhere inside. Nothing is
downloaded. The result is looked at: the numbers of images and annotations, sizes and boxes.
"""
import argparse
import csv
import json
import shutil
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from PIL import Image
from rich.console import Console

from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.progress import track

Coco = Dict[str, list]
BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')
AQUARIUM_CLASSES = ('fish', 'jellyfish', 'penguin', 'puffin', 'shark', 'starfish', 'stingray')
AQUARIUM_SIDE = 480  # pixels of the longer side; the originals have 1024
# The frames of the open field that validate: a quarter, drawn once
OPENFIELD_VAL = (2, 3, 8, 16, 22, 23, 25, 29, 30, 37, 43, 44, 52, 54, 57, 58, 59, 69, 72, 73, 84,
                 88, 91, 92, 101, 105, 106, 113, 115)
MOUSE_SKELETON = [[1, 2], [1, 3], [2, 4], [3, 4]]


def convert_bccd(source: Path, out: Path) -> None:
    """Pascal VOC's xml to COCO's json; boxes without an area are left out."""
    lists = {split: _only(source, f'ImageSets/Main/{split}.txt').read_text().split()
             for split in ('train', 'val', 'test')}
    categories = [dict(id=i, name=name) for i, name in enumerate(BCCD_CLASSES, 1)]
    for split, names in lists.items():
        coco = dict(images=[], annotations=[], categories=categories)
        for name in track(sorted(names), split):
            root = _parse_xml(_only(source, f'Annotations/{name}.xml'))
            size = tuple(int(root.findtext(f'size/{side}')) for side in ('width', 'height'))
            image = _add_image(coco, f'{name}.jpg', size)
            shutil.copy(_only(source, f'JPEGImages/{name}.jpg'), out / 'images')
            for item in root.iter('object'):
                x1, y1, x2, y2 = (int(item.findtext(f'bndbox/{corner}'))
                                  for corner in ('xmin', 'ymin', 'xmax', 'ymax'))
                label = _label(item.findtext('name'), BCCD_CLASSES)
                _add_box(coco, image, label, (x1, y1, x2, y2))
        _write(coco, out, split)


def convert_aquarium(source: Path, out: Path) -> None:
    """Roboflow's export in COCO's json, with images made smaller."""
    categories = [dict(id=i, name=name) for i, name in enumerate(AQUARIUM_CLASSES, 1)]
    for split, folder in dict(train='train', val='valid', test='test').items():
        file = _only(source, f'{folder}/_annotations.coco.json')
        given = json.loads(file.read_text())
        names = {category['id']: category['name'] for category in given['categories']}
        coco = dict(images=[], annotations=[], categories=categories)
        boxes: Dict[int, list] = {}
        for item in given['annotations']:
            boxes.setdefault(item['image_id'], []).append(item)
        images = sorted(given['images'], key=lambda image: image['file_name'])
        for number, image in enumerate(track(images, split), 1):
            name = f'{split}_{number:04d}.jpg'
            with Image.open(file.parent / Path(image['file_name']).name) as picture:
                scale = AQUARIUM_SIDE / max(picture.size)
                size = tuple(round(scale * side) for side in picture.size)
                picture.convert('RGB').resize(size, Image.LANCZOS).save(
                    out / 'images' / name, quality=90)
            added = _add_image(coco, name, size)
            for item in boxes.get(image['id'], []):
                x, y, width, height = (scale * value for value in item['bbox'])
                label = _label(names[item['category_id']], AQUARIUM_CLASSES)
                _add_box(coco, added, label, (x, y, x + width, y + height))
        _write(coco, out, split)


def convert_openfield_mouse(source: Path, out: Path) -> None:
    """DeepLabCut's csv to COCO's json; the box is around the keypoints with a quarter to spare."""
    _convert_keypoints(
        _only(source, 'labeled-data/m4s1/CollectedData_Pranav.csv'), out,
        is_val=lambda number: number in OPENFIELD_VAL, skeleton=MOUSE_SKELETON,
        margin=lambda width, height: 8 + max(width, height) / 4)


def convert_mirror_mouse(source: Path, out: Path) -> None:
    """Lightning Pose's csv to COCO's json; every fourth frame validates."""
    _convert_keypoints(
        _only(source, 'mirror-mouse-example/CollectedData.csv'), out,
        is_val=lambda number: number % 4 == 1, skeleton=[], margin=lambda width, height: 12)


def _convert_keypoints(file: Path, out: Path, is_val: Callable[[int], bool], skeleton: List[list],
                       margin: Callable[[float, float], float]) -> None:
    """Rows of a csv: path of an image, then x and y of each keypoint, empty where not seen."""
    with file.open(newline='') as opened:
        rows = list(csv.reader(opened))
    names = rows[1][1::2]
    category = dict(id=1, name='mouse', keypoints=names, skeleton=skeleton)
    splits = {split: dict(images=[], annotations=[], categories=[category])
              for split in ('train', 'val')}
    for row in track(sorted(rows[3:]), file.parent.name):
        path = file.parent / Path(row[0]).name
        if not path.is_file():  # Lightning Pose's csv stands beside the folder with the images
            path = file.parent / 'labeled-data' / path.name
        number = int(''.join(filter(str.isdigit, path.stem)))
        coco = splits['val' if is_val(number) else 'train']
        with Image.open(path) as picture:
            picture.convert('RGB').save(out / 'images' / f'{path.stem}.jpg', quality=95)
            image = _add_image(coco, f'{path.stem}.jpg', picture.size)
        places = [(round(float(x), 3), round(float(y), 3)) if x and y else None
                  for x, y in zip(row[1::2], row[2::2])]
        seen = [place for place in places if place]
        left, top = (min(values) for values in zip(*seen))
        right, bottom = (max(values) for values in zip(*seen))
        spare = margin(right - left, bottom - top)
        item = _add_box(coco, image, 1, (left - spare, top - spare, right + spare, bottom + spare))
        item.update(keypoints=[value for place in places for value in (*(place or (0, 0)),
                                                                       2 if place else 0)],
                    num_keypoints=len(seen))
    for split, coco in splits.items():
        _write(coco, out, split)


class DataSet(NamedTuple):
    """A public data set.

    Attributes:
        title (str): What is on it.
        where (str): What to download, and from where.
        licence (str): Its licence, and who gave it.
        convert (callable): Writes images and annotations of a source folder.
        counts (dict): Split -> (images, annotations).
    """
    title: str
    where: str
    licence: str
    convert: Callable[[Path, Path], None]
    counts: Dict[str, Tuple[int, int]]


DATA_SETS = {
    'bccd': DataSet(
        'blood cells under a microscope, 3 classes',
        'github.com/Shenggan/BCCD_Dataset (Code, Download ZIP)',
        'MIT, (c) 2017 shenggan', convert_bccd,
        dict(train=(205, 2804), val=(87, 1137), test=(72, 945))),
    'aquarium': DataSet(
        'animals in two aquariums, 7 classes',
        'public.roboflow.com/object-detection/aquarium (export "raw-1024", format COCO JSON)',
        'CC BY 4.0, Brad Dwyer and others, Roboflow, 2020', convert_aquarium,
        dict(train=(448, 3323), val=(127, 909), test=(63, 582))),
    'openfield_mouse': DataSet(
        'a mouse in an open field, 4 keypoints',
        'github.com/DeepLabCut/DeepLabCut, folder examples/openfield-Pranav-2018-10-30 (Code, '
        'Download ZIP)',
        'LGPL 3.0, with DeepLabCut; Mathis et al., Nature Neuroscience 2018',
        convert_openfield_mouse, dict(train=(87, 87), val=(29, 29))),
    'mirror_mouse': DataSet(
        'a running mouse and its mirror image, 17 keypoints',
        'github.com/paninski-lab/lightning-pose, folder data/mirror-mouse-example (Code, Download '
        'ZIP)',
        'MIT, (c) 2021 Dan Biderman, Matthew Whiteway, Liam Paninski', convert_mirror_mouse,
        dict(train=(67, 67), val=(23, 23))),
}


def _only(source: Path, ending: str) -> Path:
    """The file whose path ends like this, of which a source has one."""
    found = [path for path in source.rglob(Path(ending).name)
             if path.as_posix().endswith(f'/{ending}')]
    if len(found) != 1:
        raise UsageError(f'the source has {len(found) or "no"} file{"s" * (len(found) > 1)} '
                         f'.../{ending}, one is wanted')
    return found[0]


def _parse_xml(path: Path) -> ElementTree.Element:
    text = path.read_text()
    if '<!' in text:  # entities can grow without bound; VOC's files have none
        raise UsageError(f'{path} declares entities or a document type, and is not read')
    return ElementTree.fromstring(text)


def _label(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise UsageError(f'the source has the class {name}; there are {", ".join(classes)}')
    return classes.index(name) + 1


def _add_image(coco: Coco, name: str, size: Tuple[int, int]) -> dict:
    image = dict(id=len(coco['images']) + 1, file_name=name, width=size[0], height=size[1])
    coco['images'].append(image)
    return image


def _add_box(coco: Coco, image: dict, label: int, corners: Iterable[float]) -> Optional[dict]:
    """Add an object, its box clipped to the image; nothing where that leaves no area."""
    x1, y1, x2, y2 = corners
    x1, y1 = max(0, x1), max(0, y1)
    width, height = min(x2, image['width']) - x1, min(y2, image['height']) - y1
    if width <= 0 or height <= 0:
        return None
    box = [round(value, 2) for value in (x1, y1, width, height)]
    item = dict(id=len(coco['annotations']) + 1, image_id=image['id'], category_id=label, bbox=box,
                area=round(width * height, 2), iscrowd=0)
    coco['annotations'].append(item)
    return item


def _write(coco: Coco, out: Path, split: str) -> None:
    (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))


def problems(data_set: DataSet, out: Path) -> Iterator[str]:
    """What is wrong with a data set that lies in a folder, one line each."""
    for split, (images, annotations) in data_set.counts.items():
        file = out / 'annotations' / f'{split}.json'
        if not file.is_file():
            yield f'{file} is not there'
            continue
        coco = json.loads(file.read_text())
        for what, wanted in (('images', images), ('annotations', annotations)):
            if len(coco[what]) != wanted:
                yield f'{file} has {len(coco[what])} {what}, {wanted} are known'
        sizes = {}
        for image in coco['images']:
            path = out / 'images' / image['file_name']
            sizes[image['id']] = image['width'], image['height']
            if not path.is_file():
                yield f'{path} is not there'
                continue
            with Image.open(path) as picture:
                if picture.size != sizes[image['id']]:
                    yield f'{path} has {picture.size} pixels, {file} says {sizes[image["id"]]}'
        for item in coco['annotations']:
            x, y, width, height = item['bbox']
            whole = sizes.get(item['image_id'], (0, 0))
            if min(x, y) < 0 or min(width, height) <= 0 or x + width > whole[0] + 0.01 \
                    or y + height > whole[1] + 0.01:
                yield f'{file}: the box of annotation {item["id"]} is not inside its image'


def unpack(source: Path, folder: Path) -> Path:
    """The folder of a source, unpacked if it is an archive.

    Raises:
        UsageError: If it is neither a folder nor an archive, or an archive that writes elsewhere.
    """
    if source.is_dir():
        return source
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)  # drops leading slashes and '..'
    elif source.is_file() and tarfile.is_tarfile(source):
        if not hasattr(tarfile, 'data_filter'):
            raise UsageError('this Python unpacks no tar archives safely: unpack it, and give the '
                             'folder')
        with tarfile.open(source) as archive:
            try:
                archive.extractall(folder, filter='data')
            except tarfile.FilterError as error:
                raise UsageError(f'{source} is not unpacked: {error}') from error
    else:
        raise UsageError(f'{source} is neither a folder nor a zip or tar archive')
    return folder


def prepare(name: str, source: Path, out: Path) -> None:
    """Convert a source; the folder appears when all of it is there.

    Raises:
        UsageError: If the folder is there, the source is of another kind, or something is missing.
    """
    data_set = DATA_SETS[name]
    if out.exists():
        raise UsageError(f'{out} is there already: --check looks at it, or remove it')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{name}') as work:
        made = Path(work) / 'made'
        for part in ('images', 'annotations'):
            (made / part).mkdir(parents=True)
        (Path(work) / 'source').mkdir()
        try:
            data_set.convert(unpack(source, Path(work) / 'source'), made)
        except (KeyError, IndexError, ValueError, ElementTree.ParseError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f'{source} is not laid out as {data_set.where} has it '
                             f'({type(error).__name__}: {error})') from error
        (made / 'LICENSE').write_text(f'{name}: {data_set.title}\nFrom {data_set.where}\n'
                                      f'Licence: {data_set.licence}\n')
        made.rename(out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', nargs='?', choices=DATA_SETS, help='which data set')
    parser.add_argument('source', nargs='?', type=Path, help='folder or archive')
    parser.add_argument('--out', type=Path, help='where to, default: data/<name>')
    parser.add_argument('--check', action='store_true', help='only look at what is there')
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console(highlight=False, soft_wrap=True)
    if args.name is None:
        for name, data_set in DATA_SETS.items():
            console.print(f'{name}: {data_set.title}\n    {data_set.where}\n    {data_set.licence}')
        return
    out = args.out or Path('data') / args.name
    try:
        if args.source is not None and not args.check:
            prepare(args.name, args.source, out)
        elif not args.check:
            raise UsageError(f'{args.name} is {DATA_SETS[args.name].where}: download it, and give '
                             'the folder or the archive')
        found = list(problems(DATA_SETS[args.name], out))
        if found:
            more = f' (and {len(found) - 1} more)' if len(found) > 1 else ''
            raise UsageError(f'{found[0]}{more}')
    except UsageError as error:
        end_in_a_line('prepare_data.py', error, args.traceback)
    counts = ', '.join(f'{split} {images} images, {annotations} annotations' for split, (
        images, annotations) in DATA_SETS[args.name].counts.items())
    console.print(f'{out}: {counts}')


if __name__ == '__main__':
    main()
