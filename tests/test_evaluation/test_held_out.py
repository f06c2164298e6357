"""Which images two splits share, whatever the splits and files are called."""
import os

import numpy as np

from mmskd.evaluation.held_out import image_keys, random_half, shared_images


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f'{name}.jpg').write_bytes(content)
    return [str(folder / f'{name}.jpg') for name in files]


def test_the_same_files():
    files = [f'data/val/{i}.jpg' for i in range(5)]
    assert shared_images(files, files) == files
    assert shared_images(files[:3], files[2:]) == files[2:3]
    assert shared_images(files[:2], files[2:]) == []
    assert shared_images(files[:1] * 3, files) == files[:1], 'each once'


def test_other_ways_to_the_same_file(tmp_path, monkeypatch):
    files = write(tmp_path / 'val', a=b'1', b=b'2')
    os.symlink(tmp_path / 'val', tmp_path / 'test')
    monkeypatch.chdir(tmp_path)
    for path in ('val/a.jpg', './val/../val/a.jpg', 'test/a.jpg'):
        assert shared_images([path], files) == [path]


def test_copies_under_other_names(tmp_path):
    val = write(tmp_path / 'val', a=b'picture', b=b'another')
    test = write(tmp_path / 'test', x=b'picture', b=b'anothER', c=b'of another size')
    assert shared_images(val, test) == val[:1], 'by content, not by name and size'


def test_what_is_not_here_is_compared_by_name():
    assert shared_images(['s3://bucket/1.jpg', 's3://bucket/2.jpg'], ['s3://bucket/2.jpg']) == [
        's3://bucket/2.jpg']


def test_halves_are_of_images_and_seeded():
    files = [f'{i // 3}.jpg' for i in range(33)]  # eleven images, three people on each
    half = random_half(files, 0)
    assert half.sum() == 15 and len({f for f, kept in zip(files, half) if kept}) == 5
    assert not {f for f, kept in zip(files, half) if kept} & {
        f for f, kept in zip(files, half) if not kept}
    np.testing.assert_array_equal(random_half(files, 0), half)
    assert (random_half(files, 1) != half).any()
    # The order of the samples decides nothing
    order = np.random.default_rng(0).permutation(33)
    np.testing.assert_array_equal(random_half([files[i] for i in order], 0), half[order])
    assert not random_half([], 0).size and not random_half(['a'], 0).any()


def test_keys_are_the_same_on_another_machine():
    assert image_keys(['/data/coco/val2017/1.jpg']) == image_keys(
        ['D:\\sets\\coco\\val2017\\1.jpg'])
    assert image_keys(['coco/val2017/1.jpg']) != image_keys(['coco/test2017/1.jpg'])
    assert len(image_keys(['a/1.jpg', 'a/2.jpg', 'a/1.jpg'])) == 2
