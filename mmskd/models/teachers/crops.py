"""The student's crops as another model wants them.

Its size, its channels, its mean and deviation.
"""
from typing import NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributions import Axis


class Images(NamedTuple):
    """The images that a model takes.

    Attributes:
        size (tuple[int]): Width and height, in pixels.
        mean (sequence[float]): Of each channel, for values from 0 to 255; is subtracted.
        std (sequence[float]): The values are divided by it then.
        rgb (bool): Whether red comes first, else blue. Defaults to True.
    """
    size: Tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    rgb: bool = True


class Crops(nn.Module):
    """Makes a teacher's images of the student's, on their device.

    The crop keeps its shape: it is scaled by one factor, and black is added on two sides where the
    teacher's images have another aspect, as MMPose does it where a crop leaves the image. Scaling
    is bilinear, with anti-aliasing.

    Args:
        student (Images): What is given.
        teacher (Images): What is wanted.
    """

    def __init__(self, student: Images, teacher: Images):
        super().__init__()
        self.given, self.wanted = student, teacher
        factor = min(wanted / given for given, wanted in zip(student.size, teacher.size))
        self.scaled = tuple(max(1, round(side * factor)) for side in student.size)
        self.margin = tuple((wanted - side) // 2 for wanted, side in zip(teacher.size, self.scaled))
        for name, images in (('given', student), ('wanted', teacher)):
            for key in ('mean', 'std'):
                value = torch.tensor([float(number) for number in getattr(images, key)])
                self.register_buffer(f'{name}_{key}', value.view(-1, 1, 1), persistent=False)
        self._same_values = (student.rgb == teacher.rgb and
                             torch.allclose(self.given_mean, self.wanted_mean) and
                             torch.allclose(self.given_std, self.wanted_std))

    @property
    def scale(self) -> Tuple[float, float]:
        """tuple[float]: Height and width of the crop in the teacher's images, in the student's."""
        width, height = (scaled / given for scaled, given in zip(self.scaled, self.given.size))
        return height, width

    def forward(self, images: Tensor) -> Tensor:
        """The teacher's images of the student's, (N, 3, height, width)."""
        if self._same_values and tuple(self.given.size) == tuple(self.wanted.size):
            return images
        images = images.float() * self.given_std + self.given_mean
        if self.given.rgb != self.wanted.rgb:
            images = images.flip(1)
        if self.scaled != tuple(self.given.size):
            images = F.interpolate(images, self.scaled[::-1], mode='bilinear', antialias=True,
                                   align_corners=False)
        left, top = self.margin
        right, bottom = (wanted - side - margin for wanted, side, margin in
                         zip(self.wanted.size, self.scaled, self.margin))
        if any((left, right, top, bottom)):
            images = F.pad(images, (left, right, top, bottom))
        return (images - self.wanted_mean) / self.wanted_std

    def in_students_pixels(self, axes: Sequence[Axis]) -> Tuple[Axis, ...]:
        """Where the teacher's bins along x and y are in the student's crop.

        A third axis stays as it is.
        """
        found = []
        for axis, given, scaled, margin in zip(axes, self.given.size, self.scaled, self.margin):
            scale = given / scaled
            # Centres of pixels: (u + 0.5) scales
            found.append(axis.mapped(scale, (0.5 - margin) * scale - 0.5))
        return (*found, *axes[2:])
