"""The student's crops as a teacher's images: what is where stays known."""
import numpy as np
import pytest
import torch

from mmskd.models.distributions import Axis
from mmskd.models.teachers.crops import Crops, Images

IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
RAW = dict(mean=(0, 0, 0), std=(1, 1, 1))


def blob(size, x, y, width=3.):
    """A white blob on black, (1, 3, H, W), of values from 0 to 255."""
    rows, columns = torch.meshgrid(torch.arange(size[1]), torch.arange(size[0]), indexing='ij')
    image = 255 * torch.exp(-((columns - x)**2 + (rows - y)**2) / (2 * width**2))
    return image.expand(1, 3, -1, -1)


def centre(image):
    mass = image[0, 0] - image[0, 0].min()
    at = [torch.arange(side, dtype=mass.dtype) for side in mass.shape]
    total = mass.sum()
    return (mass.sum(0) * at[1]).sum() / total, (mass.sum(1) * at[0]).sum() / total


@pytest.mark.parametrize('mine,theirs,scaled,margin', [
    ((96, 128), (144, 192), (144, 192), (0, 0)), ((144, 192), (96, 128), (96, 128), (0, 0)),
    ((128, 128), (96, 128), (96, 96), (0, 16)), ((96, 128), (128, 128), (96, 128), (16, 0)),
    ((100, 130), (77, 101), (77, 100), (0, 0))])
def test_a_place_is_found_again(mine, theirs, scaled, margin):
    crops = Crops(Images(mine, **RAW), Images(theirs, **RAW))
    assert (crops.scaled, crops.margin) == (scaled, margin)
    image = crops(blob(mine, 40.3, 60.9))
    assert image.shape == (1, 3, theirs[1], theirs[0])
    axes = [Axis(side, 1.) for side in theirs]
    for axis, found, place in zip(crops.in_students_pixels(axes), centre(image), (40.3, 60.9)):
        assert axis.start + axis.step * found.item() == pytest.approx(place, abs=0.02)


def test_fine_stripes_become_grey():
    """Not other stripes: it is anti-aliased."""
    stripes = torch.arange(128) % 2 * 255.
    image = Crops(Images((128, 128), **RAW), Images((48, 48),
                                                    **RAW))(stripes.expand(1, 3, 128, 128))
    assert (image[..., 4:-4] - 127.5).abs().max() < 15


def test_values_and_channels_are_converted():
    values = np.random.default_rng(0).uniform(0, 255, (2, 3, 16, 12))
    mean, std = (np.array(IMAGENET[key]).reshape(3, 1, 1) for key in ('mean', 'std'))
    given = torch.as_tensor((values - mean) / std).float()  # RGB
    wanted = Images((12, 16), (10., 20., 30.), (2., 4., 8.), rgb=False)
    found = Crops(Images((12, 16), **IMAGENET), wanted)(given)
    expected = (values[:, ::-1] - np.array(wanted.mean).reshape(3, 1, 1)) / np.array(
        wanted.std).reshape(3, 1, 1)
    assert np.allclose(found.numpy(), expected, atol=1e-3)
    same = Crops(Images((12, 16), **IMAGENET), Images((12, 16), **IMAGENET))
    assert same(given) is given


def test_what_is_added_is_black_as_the_teacher_sees_black():
    found = Crops(Images((32, 32), **RAW), Images((32, 48), **IMAGENET))(torch.full((1, 3, 32, 32),
                                                                                    255.))
    black = -torch.tensor(IMAGENET['mean']) / torch.tensor(IMAGENET['std'])
    assert torch.allclose(found[0, :, 0, 0], black) and torch.allclose(found[0, :, -1, -1], black)
    assert (found[0, :, 24] > 2).all()
