"""One distribution over the places of a keypoint, on the bins of another model.

A SimCC head says for each bin of x and of y how likely the keypoint is there; a heatmap head gives
each cell the height of a bump whose summit is 1. Both are descriptions of a probability density
over the crop, so the answer of one can be brought to the bins of the other: :func:`bridge` says how
for one axis, and four functions apply it.

What changes on the way, beside the grid, is the width of the bump. A trained head answers with the
width that its labels had, and the labels of another codec are wider or narrower. :func:`bridge`
widens by a Gaussian and narrows by a power of the density, neither of which moves its summit; a
perfect answer of the teacher becomes about what the student's label would have been.

Errors, as tested: the summit is at most half a bin of the target's from where that of the bump is,
between the source's bins (give or take 2 % of the coarser bin), and the mean moves by at most that
where nothing lies outside. Narrowing has a limit, :data:`SHARPEST` source bins of standard
deviation, since what lies between the bins cannot be known from them. Heatmaps keep the height of
their summit, which is their certainty. An outer product knows no diagonals: two candidates (x1, y1)
and (x2, y2) of a SimCC answer come with two ghosts.
"""
import math
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

SHARPEST = 0.8
"""Standard deviation, in bins, of the narrowest bump that a grid shows without bias."""

SMALLEST = 1e-12
"""The smallest probability of a bin, so that it has a logarithm."""


class Axis(NamedTuple):
    """The bins of a SimCC head along x or y, or a heatmap's columns or rows, in pixels of a crop.

    Attributes:
        count (int): How many.
        step (float): Distance from one to the next; negative where they are numbered from the
            right.
        start (float): Where the first one is.
        variance (float, optional): Of the bump that a label makes, in pixels squared. Defaults to
            None: as wide as that of the other side.
    """
    count: int  # type: ignore[assignment]  # not tuple.count, which nothing calls
    step: float
    start: float = 0.
    variance: Optional[float] = None

    def mirrored(self, size: float) -> 'Axis':
        """The same bins as seen in the mirror of a crop that is ``size`` pixels wide."""
        return self._replace(step=-self.step, start=size - 1 - self.start)

    def mapped(self, scale: float, shift: float) -> 'Axis':
        """In other pixels, ``scale * pixel + shift``."""
        variance = None if self.variance is None else self.variance * scale**2
        return Axis(self.count, self.step * scale, self.start * scale + shift, variance)


class Bridge(NamedTuple):
    """How the answer along one axis becomes one on other bins. See :func:`bridge`.

    Attributes:
        power (float): First the density is raised to it.
        matrix (Tensor, optional): Then its masses are spread, (source bins, target bins). None: as
            they are.
        summit (float): Mass in the bin of the summit, of what becomes of a label on the source's
            bins.
        fall (float): What a heatmap's summit of 1 would be after these two, without correction.
    """
    power: float
    matrix: Optional[Tensor]
    summit: float
    fall: float


def bridge(source: Axis, target: Axis) -> Bridge:
    """Bring the answers along an axis to other bins, and to the width that is usual there.

    With variances ``v`` of the source and ``w`` of the target, and one ``g`` of the Gaussian that
    spreads a bin over others: ``g = max(w - v, (0.8 bins)^2)``, of the coarser grid, or
    ``max(w - v, 0)`` where the grids are the same. If ``v + g > w`` the density is first raised to
    the power ``v / (w - g)``, which makes a Gaussian as much narrower.

    Args:
        source (Axis): Of the teacher, in pixels of the student's crop.
        target (Axis): Of the student, in the same.

    Returns:
        Bridge: Rows of its matrix add up to 1, less what falls outside of the target's bins.
    """
    wanted = target.variance if target.variance is not None else source.variance or 0.
    width = wanted if source.variance is None else source.variance
    steps = abs(source.step), abs(target.step)
    aligned = source[:3] == target[:3]
    if aligned and abs(wanted - width) <= 0.01 * wanted:
        return Bridge(1., None, steps[1] / math.sqrt(2 * math.pi * wanted) if wanted else 1., 1.)
    spread = max(wanted - width, 0. if aligned else (SHARPEST * max(steps))**2)
    narrowed = min(width, max(wanted - spread, (SHARPEST * steps[0])**2))
    power = width / narrowed if narrowed else 1.
    reached = narrowed + spread
    summit = steps[1] / math.sqrt(2 * math.pi * reached)
    fall = math.sqrt(narrowed / reached) * steps[1] / steps[0]
    return Bridge(power, _spreading(source, target, spread) if spread else None, summit, fall)


def simcc_to_simcc(logits: Sequence[Tensor], beta: float,
                   bridges: Sequence[Bridge]) -> Tuple[Tuple[Tensor, ...], Tensor]:
    """Distributions over bins, on other bins.

    Args:
        logits (Sequence[Tensor]): Of each axis, (N, K, W).
        beta (float): Inverse temperature that the logits are meant at.
        bridges (Sequence[Bridge]): Of each axis.

    Returns:
        tuple: The distributions, a tuple of (N, K, W'), each adding up to 1; and how much of them
        lay inside of the target's bins, (N, K).
    """
    return _inside([_spread((axis * (beta * way.power)).softmax(-1), way)
                    for axis, way in zip(logits, bridges)])


def heatmap_to_simcc(heatmaps: Tensor,
                     bridges: Sequence[Bridge]) -> Tuple[Tuple[Tensor, ...], Tensor]:
    """The marginal distributions of heatmaps over the bins of x and of y.

    Args:
        heatmaps (Tensor): (N, K, H, W). What is below 0 counts as 0.
        bridges (Sequence[Bridge]): Of x and of y.

    Returns:
        tuple: As :func:`simcc_to_simcc`; nothing lies inside of a heatmap without a positive value.
    """
    found = []
    for along, way in zip((-2, -1), bridges):
        mass = _raised(heatmaps, way.power).sum(along)
        found.append(_spread(mass / mass.sum(-1, keepdim=True).clamp_min(SMALLEST), way))
    return _inside(found)


def simcc_to_heatmap(logits: Sequence[Tensor], beta: float,
                     bridges: Sequence[Bridge]) -> Tuple[Tensor, Tensor]:
    """The outer product of distributions over x and y, as high as a label where as narrow.

    Args:
        logits (Sequence[Tensor]): Of x and of y, (N, K, Wx) and (N, K, Wy).
        beta (float): Inverse temperature that the logits are meant at.
        bridges (Sequence[Bridge]): Of x and of y.

    Returns:
        tuple[Tensor]: Heatmaps in [0, 1], (N, K, H, W); and how much lay inside, (N, K).
    """
    (x, y), inside = simcc_to_simcc(logits, beta, bridges)
    x, y = (axis / way.summit for axis, way in zip((x, y), bridges))
    return (y.unsqueeze(-1) * x.unsqueeze(-2)).clamp(max=1), inside


def heatmap_to_heatmap(heatmaps: Tensor, bridges: Sequence[Bridge]) -> Tuple[Tensor, Tensor]:
    """Heatmaps on other cells, with bumps of another width.

    Args:
        heatmaps (Tensor): (N, K, H, W). What is below 0 counts as 0, unless nothing is to be done.
        bridges (Sequence[Bridge]): Of x and of y.

    Returns:
        tuple[Tensor]: Heatmaps (N, K, H', W'), as high as they were; and ones, (N, K).
    """
    across, down = bridges
    whole = heatmaps.new_ones(heatmaps.shape[:2])
    if across.matrix is down.matrix is None and across.power == down.power == 1:
        return heatmaps, whole
    summit = heatmaps.flatten(2).amax(-1)[..., None, None].clamp_min(SMALLEST)
    found = _raised(heatmaps / summit, (across.power + down.power) / 2)
    found = _spread(_spread(found, across).transpose(-2, -1), down).transpose(-2, -1)
    return (found / (across.fall * down.fall)).clamp(max=1) * summit, whole


def _raised(heatmaps: Tensor, power: float) -> Tensor:
    positive = heatmaps.clamp_min(0)
    return positive if power == 1 else positive**power


def _spread(masses: Tensor, way: Bridge) -> Tensor:
    return masses if way.matrix is None else masses @ way.matrix.to(masses)


def _inside(found: Sequence[Tensor]) -> Tuple[Tuple[Tensor, ...], Tensor]:
    """Distributions that add up to 1, and what they added up to before, over all axes."""
    sums = [axis.sum(-1) for axis in found]
    inside = torch.stack(sums).prod(0).clamp(max=1)
    return tuple(axis / total.clamp_min(SMALLEST).unsqueeze(-1)
                 for axis, total in zip(found, sums)), inside


def _spreading(source: Axis, target: Axis, variance: float) -> Tensor:
    """Each source bin as a Gaussian over the target's bins, with more of them to both sides."""
    step = abs(target.step)
    at = source.start + source.step * torch.arange(source.count, dtype=torch.float64)
    place = (at - target.start) / target.step
    beside = math.ceil(8 * math.sqrt(variance) / step) + 1
    offsets = torch.arange(-beside, beside + 1, dtype=torch.float64)

    def bump(distance: Tensor) -> Tensor:
        return torch.exp(-(distance * step)**2 / (2 * variance))

    total = bump((place - place.round()).unsqueeze(1) - offsets).sum(1, keepdim=True)
    bins = torch.arange(target.count, dtype=torch.float64)
    return (bump(place.unsqueeze(1) - bins) / total).float()
