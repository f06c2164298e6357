"""Make data and configs of a folder of images and one json with keypoints.

The json is COCO's: `images`, `annotations` with `bbox` and `keypoints` (x, y and 0, 1 or 2 of
each), and one category with the names of its keypoints. Every fifth image validates. Annotations
with a box and no keypoints become crops from which the student learns what the teacher sees.

    python tools/prepare_poses.py photos/ labels.json mouse

writes data/mouse/ (the images are linked, not copied), and four configs in mouse/: data.py,
teacher.py, student.py, and distilled.py, in which the teacher teaches the student.
"""
import argparse
import json
import re
import sys
from pathlib import Path
from typing import Dict, List

from mmskd.errors import UsageError

EVERY = 5
SIGMA = 0.062  # COCO's wrists: nobody has measured how far annotators differ on other things

DATA = '''# Written by tools/prepare_poses.py
dataset_type = 'CocoDataset'
data_root = 'data/{name}/'
metainfo = dict(
    dataset_name={name!r},
    keypoint_info={{
{keypoints}
    }},
    skeleton_info={{
{skeleton}
    }},
    joint_weights=[1.] * {count},
    sigmas=[{sigma}] * {count})

codec = dict(
    type='SimCCLabel', input_size=(192, 192), sigma=(4.9, 4.9), simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False)

before = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale')]
after = [dict(type='TopdownAffine', input_size=codec['input_size'])]
train_pipeline = [
    *before,
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomBBoxTransform', shift_factor=0.1, scale_factor=[0.7, 1.3], rotate_factor=60),
    *after,
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs')
]
val_pipeline = [*before, *after, dict(type='PackPoseInputs')]
common = dict(
    data_root=data_root, data_mode='topdown', metainfo=metainfo, data_prefix=dict(img='images/'))

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, ann_file='annotations/train.json', pipeline=train_pipeline,
                 **common))
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type, ann_file='annotations/val.json', test_mode=True, pipeline=val_pipeline,
        **common))
test_dataloader = val_dataloader
val_evaluator = [dict(type='PCKAccuracy', thr=0.05, norm_item='bbox'), dict(type='EPE')]
test_evaluator = val_evaluator
'''

STUDENT = '''# Written by tools/prepare_poses.py
_base_ = [
    'mmskd::_base_/models/rtmpose_t_stride16.py', 'data.py', 'mmskd::_base_/schedules/pose_100e.py'
]
codec = _base_.codec
model = dict(
    head=dict(
        out_channels={count},
        input_size=codec['input_size'],
        in_featuremap_size=(12, 12),
        simcc_split_ratio=codec['simcc_split_ratio'],
        decoder=codec))
'''

TEACHER = '''# Written by tools/prepare_poses.py
_base_ = 'student.py'
model = dict(backbone=dict(deepen_factor=0.67, widen_factor=0.75), head=dict(in_channels=384))
'''

DISTILLED = '''# Written by tools/prepare_poses.py.
# Train teacher.py first, or name a published teacher:
#     teacher=dict(config='mmpose::...', checkpoint='https://...', keypoints='by_name')
_base_ = 'student.py'
{unlabelled}custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(config='teacher.py', checkpoint='work_dirs/teacher/epoch_100.pth'))
]
'''

UNLABELLED = '''train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CombinedDataset',
        metainfo=_base_.metainfo,
        pipeline=_base_.train_pipeline,
        datasets=[
            dict(_base_.train_dataloader.dataset, pipeline=[]),
            dict(
                _base_.train_dataloader.dataset,
                type='mmskd.UnlabelledCocoDataset',
                pipeline=[],
                ann_file='annotations/unlabelled.json')
        ]))
'''


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder with the images')
    parser.add_argument('labels', type=Path, help='COCO json')
    parser.add_argument('name', help='of the data set: a folder of this name gets the configs')
    return parser.parse_args()


def prepare(images: Path, labels: Path, name: str) -> List[Path]:
    """Write data and configs into the working directory.

    Args:
        images (Path): Folder with the images.
        labels (Path): COCO json.
        name (str): Of the data set.

    Returns:
        list[Path]: The configs.

    Raises:
        UsageError: If the json is not as described; it says what is wrong.
    """
    if not re.fullmatch(r'[A-Za-z]\w*', name):
        raise UsageError(f'{name!r} is no name for a folder of configs: letters, digits and _')
    coco = _read(images, labels)
    out, configs = Path('data', name), Path(name)
    for path in (out, configs):
        if path.exists():
            raise UsageError(f'{path} is there already; choose another name, or move it away')
    (out / 'annotations').mkdir(parents=True)
    (out / 'images').symlink_to(images.resolve(), target_is_directory=True)
    splits = _split(coco)
    for split, part in splits.items():
        (out / 'annotations' / f'{split}.json').write_text(json.dumps(part))
    category, = coco['categories']
    configs.mkdir()
    count = len(category['keypoints'])
    texts = {
        'data': DATA.format(name=name, count=count, sigma=SIGMA, keypoints=_keypoints(
            category['keypoints']), skeleton=_skeleton(category)),
        'student': STUDENT.format(count=count),
        'teacher': TEACHER,
        'distilled': DISTILLED.format(unlabelled=UNLABELLED if 'unlabelled' in splits else '')
    }
    for key, text in texts.items():
        (configs / f'{key}.py').write_text(text)
    return [configs / f'{key}.py' for key in texts]


def _read(images: Path, labels: Path) -> dict:
    try:
        coco = json.loads(labels.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f'{labels} is no json that can be read: {error}') from error
    coco = coco if isinstance(coco, dict) else {}
    missing = [key for key in ('images', 'annotations', 'categories') if not coco.get(key)]
    if missing:
        raise UsageError(
            f'{labels} has no {", ".join(missing)}; COCO\'s json has images, annotations and '
            'categories'
        )
    if len(coco['categories']) != 1 or not coco['categories'][0].get('keypoints'):
        raise UsageError(
            f'{labels} must have one category with the names of its keypoints, and has '
            f'{len(coco["categories"])} categories')
    _check_category(labels, coco['categories'][0])
    _check_images(images, labels, coco['images'])
    _check_annotations(labels, coco)
    return coco


def _check_category(labels: Path, category: dict) -> None:
    names = category['keypoints']
    odd = next(
        (name for name in names if not isinstance(name, str) or not name or names.count(name) > 1),
        None)
    if odd is not None:
        raise UsageError(f'{labels}: each keypoint needs a name of its own, and one is {odd!r}')
    for link in category.get('skeleton') or []:
        if len(link) != 2 or not all(
                isinstance(end, int) and 1 <= end <= len(names) for end in link):
            raise UsageError(
                f'{labels}: skeleton has {link}; COCO\'s has two numbers from 1 to {len(names)}')


def _check_images(folder: Path, labels: Path, images: List[dict]) -> None:
    for image in images:
        if not all(image.get(key) for key in ('file_name', 'width', 'height')) or 'id' not in image:
            raise UsageError(
                f'{labels}: an image needs id, file_name, width and height, and one is {image}')
        if not (folder / image['file_name']).is_file():
            raise UsageError(f'{folder / image["file_name"]} is not there, and {labels} names it')


def _check_annotations(labels: Path, coco: dict) -> None:
    count, known = len(
        coco['categories'][0]['keypoints']), {image['id'] for image in coco['images']}
    seen, category = set(), coco['categories'][0].get('id')
    for item in coco['annotations']:
        key, box = item.get('id'), item.get('bbox', ())
        if key is None or key in seen:
            raise UsageError(f'{labels}: each annotation needs an id of its own, and one has {key}')
        seen.add(key)
        if category is None or item.get('category_id') != category:
            raise UsageError(
                f'{labels}: annotation {key} has the category_id {item.get("category_id")}, and '
                f'the id of the one category is {category}')
        points = item.get('keypoints') or [0] * 3 * count
        if item.get('image_id') not in known or len(box) != 4 or len(
                points) != 3 * count or not all(
                    isinstance(number, (int, float))
                    for number in (*box, *points)) or min(box[2:]) <= 0:
            raise UsageError(
                f'{labels}: annotation {key} needs an image, a bbox of 4 numbers (x, y, width, '
                f'height), and no keypoints or 3 numbers for each of the {count}')


def _split(coco: dict) -> Dict[str, dict]:
    """Labels to train with and to validate with, and what has a box alone, if there is any."""
    labelled = [item for item in coco['annotations'] if any((item.get('keypoints') or [])[2::3])]
    bare = [item for item in coco['annotations'] if not any((item.get('keypoints') or [])[2::3])]
    places = sorted({item['image_id'] for item in labelled}, key=str)
    val = set(places[EVERY - 1::EVERY])
    parts = dict(train=[item for item in labelled if item['image_id'] not in val],
                 val=[item for item in labelled if item['image_id'] in val])
    if not all(parts.values()):
        raise UsageError(f'{len(places)} images with keypoints are too few: {EVERY} are the least')
    if bare:
        parts['unlabelled'] = [item for item in bare if item['image_id'] not in val]
    return {split: dict(coco, annotations=items, images=[
        image for image in coco['images'] if image['id'] in {item['image_id'] for item in items}])
        for split, items in parts.items()}


def _keypoints(names: List[str]) -> str:
    lines = []
    for index, name in enumerate(names):
        swap = _mirrored(name, names)
        swap = swap if _mirrored(swap, names) == name else ''
        color = [128, 128, 128] if not swap else [255, 128, 0] if name > swap else [0, 128, 255]
        lines.append(
            f'        {index}: dict(name={name!r}, id={index}, color={color}, type=\'upper\', '
            f'swap={swap!r})')
    return ',\n'.join(lines)


def _mirrored(name: str, names: List[str]) -> str:
    """The name of the same keypoint on the other side; '' if there is none."""
    for one, other in (('left', 'right'), ('Left', 'Right'), ('LEFT', 'RIGHT'), ('l', 'r'), ('L',
                                                                                             'R')):
        for mine, theirs in ((one, other), (other, one)):
            for found in re.finditer(mine, name):
                candidate = name[:found.start()] + theirs + name[found.end():]
                if candidate in names:
                    return candidate
    return ''


def _skeleton(category: dict) -> str:
    names = category['keypoints']
    links = [(names[start - 1], names[end - 1]) for start, end in category.get('skeleton') or []]
    return ',\n'.join(f'        {index}: dict(link={link!r}, id={index}, color=[0, 255, 0])'
                      for index, link in enumerate(links))


def main() -> None:
    args = parse_args()
    try:
        written = prepare(args.images, args.labels, args.name)
    except UsageError as error:
        sys.stderr.write(f'prepare_poses.py: {error}\n')
        sys.exit(2)
    for path in written:
        print(path)


if __name__ == '__main__':
    main()
