"""Draw the pictures of docs/own_dwpose.md, on a generated figure.

Made by ``python tools/draw_own_dwpose.py docs/_static``.
"""
import argparse
from pathlib import Path
from typing import Tuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmskd.datasets.stick_figures import KEYPOINTS, LINKS, draw_stick_figures
from mmskd.evaluation.report.charts.theme import LIGHT
from mmskd.models.distributions import Axis, bridge, simcc_to_simcc
from mmskd.models.teachers.crops import Crops, Images
from mmskd.models.teachers.keypoints import Keypoints, describe_mapping, map_keypoints

STUDENT, TEACHER = (96, 96), (144, 192)  # width and height of the crops
RATIO, SIGMAS = 2., (4., 4.9)
MINE = ('head', 'right_shoulder', 'wrist_left', 'right_wrist', 'L_hip', 'R_hip', 'toe_left',
        'toe_right')
BLUE, ORANGE = LIGHT.series[:2]
GREY = LIGHT.muted
BETA = 10.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='for the two .png files')
    return parser.parse_args()


def figure(seed: int = 3) -> Tuple[np.ndarray, np.ndarray]:
    """A square crop of the largest figure of an image, RGB, and its keypoints in it, (K, 2)."""
    image, people = draw_stick_figures(np.random.default_rng(seed))
    person = max(people, key=lambda one: one['area'])
    left, top, width, height = person['bbox']
    side = int(1.15 * max(width, height))
    corner = np.array([left + width / 2 - side / 2,
                       top + height / 2 - side / 2]).round().astype(int)
    padded = np.pad(image, ((side, side), (side, side), (0, 0)))
    x, y = corner + side
    points = np.array(person['keypoints'], float).reshape(-1, 3)[:, :2] - corner
    return padded[y:y + side, x:x + side], points


def crops(image: np.ndarray, points: np.ndarray) -> Tuple[Tensor, Tensor, np.ndarray]:
    """The student's crop and the teacher's, (3, H, W) in 0 to 255; keypoints in the student's."""
    whole = [
        Images(size, (0., 0., 0.), (1., 1., 1.))
        for size in ((len(image), len(image)), STUDENT, TEACHER)
    ]
    given = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    mine = Crops(whole[0], whole[1])(given)
    return mine[0], Crops(whole[1], whole[2])(mine)[0], points * STUDENT[0] / len(image)


def draw_crops(file: Path) -> None:
    """The crops of both, and what a teacher's answer about one keypoint becomes."""
    image, points = figure()
    mine, theirs, points = crops(image, points)
    place = points[KEYPOINTS.index('left_wrist')], points[KEYPOINTS.index('right_wrist')]
    axes = [Axis(int(size[0] * RATIO), 1 / RATIO, 0., sigma**2 / 10 / RATIO**2)
            for size, sigma in zip((STUDENT, TEACHER), SIGMAS)]
    images = [Images(size, (0., 0., 0.), (1., 1., 1.)) for size in (STUDENT, TEACHER)]
    seen, = Crops(*images).in_students_pixels(axes[1:])
    at = seen.start + seen.step * torch.arange(seen.count)
    answer = sum(share * torch.exp(-(at - float(where[0]))**2 / (2 * seen.variance))
                 for share, where in zip((0.8, 0.2), place)).clamp_min(1e-9).log() / BETA
    (converted, ), _ = simcc_to_simcc([answer[None, None]], BETA, [bridge(seen, axes[0])])

    grid = Figure(figsize=(10, 2.9))
    panels = grid.subplots(1, 4, width_ratios=(2, 2, 3, 3))
    for panel, crop, size, who in zip(panels, (mine, theirs), (STUDENT, TEACHER),
                                      ('student', 'teacher')):
        panel.imshow(crop.permute(1, 2, 0).clamp(0, 255).byte().numpy())
        panel.set_title(f"the {who}'s crop, {size[0]}x{size[1]}", fontsize=9)
    panels[0].plot(*zip(*points), '.', color=ORANGE, markersize=4)
    for panel, values, axis, color, who in (
            (panels[2], (answer * BETA).softmax(-1), axes[1], BLUE, 'the teacher says about x'),
            (panels[3], converted[0, 0], axes[0], ORANGE, 'and the student learns')):
        panel.bar(np.arange(axis.count), values.numpy(), width=1., color=color)
        panel.set_title(f'{who}, {axis.count} bins', fontsize=9)
        panel.set_yticks([])
    for panel in panels[:2]:
        panel.set_xticks([])
        panel.set_yticks([])
    save(grid, file)


def draw_keypoints(file: Path) -> None:
    """Which keypoints of a teacher teach those of a student, by their names."""
    teacher = Keypoints('teacher', len(KEYPOINTS),
                        dict(keypoint_id2name=dict(enumerate(KEYPOINTS))))
    student = Keypoints('student', len(MINE), dict(keypoint_id2name=dict(enumerate(MINE))))
    mapped = map_keypoints('by_name', student, teacher)
    image, points = figure()
    grid = Figure(figsize=(7, 3.4))
    left, right = grid.subplots(1, 2, width_ratios=(4, 3))
    left.imshow(image, alpha=0.35)
    for link in LINKS:
        left.plot(*points[list(link)].T, color=GREY, linewidth=1)
    for index, (x, y) in enumerate(points):
        color = ORANGE if index in mapped else GREY
        left.plot(x, y, 'o', color=color, markersize=4)
        beside = KEYPOINTS[index].startswith('right')  # which is on the left of the picture
        left.annotate(KEYPOINTS[index], (x, y), fontsize=6, color=color,
                      xytext=(-4 if beside else 4, -2), textcoords='offset points',
                      ha='right' if beside else 'left')
    left.set_title(f'the teacher knows {len(KEYPOINTS)} keypoints', fontsize=9)
    right.set_title(f'what teaches the {len(MINE)} of the student', fontsize=9)
    for row, (line, one) in enumerate(zip(describe_mapping(mapped, student, teacher), mapped)):
        right.text(0.02, 0.9 - row * 0.11, line, family='monospace', fontsize=8,
                   color=GREY if one is None else ORANGE)
    for panel in (left, right):
        panel.axis('off')
    save(grid, file)


def save(grid: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.tight_layout()
    # The same bytes from the same picture
    grid.savefig(file, dpi=80, metadata=dict(Software=None))


def main() -> None:
    folder = parse_args().folder
    draw_crops(folder / 'own_dwpose_crops.png')
    draw_keypoints(folder / 'own_dwpose_keypoints.png')


if __name__ == '__main__':
    main()
