"""Writes the generated data sets as COCO json and images."""
import json
from pathlib import Path
from typing import Callable, List, Optional, Union

import numpy as np
from PIL import Image

from . import drawing, shapes, stick_figures

# kind: (what draws one image, COCO categories)
KINDS = {
    'shapes': (shapes.draw_shapes, shapes.CATEGORIES),
    'stick-figures': (stick_figures.draw_stick_figures, stick_figures.CATEGORIES),
}
SPLITS = ('train', 'val')
SETTINGS_FILE = 'demo_data.json'


def write_demo_data(out_dir: Union[str, Path],
                    kind: str = 'shapes',
                    train: int = 480,
                    val: int = 160,
                    seed: int = 0,
                    on_image: Optional[Callable[[], None]] = None) -> None:
    """Write a generated data set.

    ::

        out_dir/
          demo_data.json            the arguments that it was made with
          annotations/train.json    COCO json
          annotations/val.json
          train/000001.png ...
          val/000001.png ...

    The same arguments give the same bytes, so that writing again changes nothing. Each image has a
    seed of its own: a smaller data set is the beginning of a larger one.

    Args:
        out_dir (str or Path): Folder to write to; made if it does not exist.
        kind (str): ``'shapes'`` (detection) or ``'stick-figures'`` (pose). Default: ``'shapes'``.
        train (int): Number of training images. Default: 480.
        val (int): Number of validation images. Default: 160.
        seed (int): Not negative. Default: 0.
        on_image (callable, optional): Called without arguments after each image. Default: None.

    Raises:
        ValueError: If ``kind`` is unknown, or a number is out of range.
        FileExistsError: If ``out_dir`` holds something else than this very data set.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {", ".join(KINDS)}, but got {kind!r}')
    if train < 1 or val < 1 or seed < 0:
        raise ValueError('train and val must be at least 1 and seed at least 0, but got '
                         f'train={train}, val={val}, seed={seed}')
    out_dir = Path(out_dir)
    claim(out_dir, dict(kind=kind, train=train, val=val, seed=seed))
    for split, count in zip(SPLITS, (train, val)):
        write_split(out_dir, split, kind, count, seed, on_image)


def claim(out_dir: Path, settings: dict) -> None:
    """Note in the folder what is to be written there, or refuse to mix it with something else."""
    note = out_dir / SETTINGS_FILE
    if note.is_file():
        found = json.loads(note.read_text())
        if found != settings:
            raise FileExistsError(f'{out_dir} holds a data set made with {found}, not {settings}; '
                                  'remove it or choose another folder')
    elif out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(f'{out_dir} holds something else; choose another folder')
    out_dir.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings) + '\n')


def write_split(out_dir: Path, split: str, kind: str, count: int, seed: int,
                on_image: Optional[Callable[[], None]]) -> None:
    """Write the images of one split and then its json, by which one knows that it is complete."""
    draw, categories = KINDS[kind]
    images: List[dict] = []
    annotations: List[dict] = []
    (out_dir / split).mkdir(exist_ok=True)
    for image_id in range(1, count + 1):
        image, objects = draw(np.random.default_rng([seed, SPLITS.index(split), image_id]))
        file_name = f'{image_id:06d}.png'
        Image.fromarray(image).save(out_dir / split / file_name)
        images.append(
            dict(id=image_id, file_name=file_name, width=drawing.WIDTH, height=drawing.HEIGHT))
        for item in objects:
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **item))
        if on_image is not None:
            on_image()
    content = dict(
        info=dict(description=f'mmskd generated {kind}, {split}, seed {seed}'),
        images=images,
        annotations=annotations,
        categories=categories)
    (out_dir / 'annotations').mkdir(exist_ok=True)
    (out_dir / 'annotations' / f'{split}.json').write_text(json.dumps(content) + '\n')


def is_complete(out_dir: Union[str, Path]) -> bool:
    """Whether ``out_dir`` holds a data set that was written to its end."""
    return all((Path(out_dir) / 'annotations' / f'{split}.json').is_file() for split in SPLITS)
