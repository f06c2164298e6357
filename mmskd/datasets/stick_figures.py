"""Generated pose data: people-like figures of lines, some of whose joints are hidden.

A figure faces the viewer: its left side is on the right of the image. Both sides have the same
colour, so that crossed limbs can be told apart only by following them to the body.
"""
from typing import List, Tuple

import numpy as np
from PIL import Image, ImageDraw

from mmskd.optional import HAS_MMPOSE

from . import drawing

KEYPOINTS = ('head', 'left_shoulder', 'right_shoulder', 'left_elbow', 'right_elbow', 'left_wrist',
             'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle',
             'right_ankle')
SKELETON = (('left_shoulder', 'right_shoulder'), ('left_hip', 'right_hip'),
            ('left_shoulder', 'left_hip'), ('right_shoulder', 'right_hip'),
            ('left_shoulder', 'left_elbow'), ('right_shoulder', 'right_elbow'),
            ('left_elbow', 'left_wrist'), ('right_elbow', 'right_wrist'), ('left_hip', 'left_knee'),
            ('right_hip', 'right_knee'), ('left_knee', 'left_ankle'), ('right_knee', 'right_ankle'))
LINKS = tuple((KEYPOINTS.index(a), KEYPOINTS.index(b)) for a, b in SKELETON)
# COCO's per-joint deviations; the head takes the ears', as it is no smaller a target
SIGMAS = (0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089)
CATEGORIES = [
    dict(
        id=1,
        name='stick_figure',
        supercategory='person',
        keypoints=list(KEYPOINTS),
        skeleton=[[a + 1, b + 1] for a, b in LINKS])
]

EMPTY_SHARE = 0.08  # images without figures
MAX_FIGURES = 3
MAX_OCCLUDERS = 2
TORSOS = (16.0, 30.0)  # length from hip to neck, in pixels
MIN_VISIBLE = 0.5  # share of a figure that later things must leave in sight

# Lengths in units of the torso
NECK_TO_HEAD, HEAD_RADIUS, SHOULDER, HIP = 0.36, 0.24, 0.3, 0.19
UPPER_ARM, FOREARM, THIGH, SHIN = 0.55, 0.5, 0.62, 0.6
LIMB_WIDTH = 0.14


def swapped(name: str) -> str:
    """The keypoint that takes the place of ``name`` in a mirror; '' for one in the middle."""
    side, _, joint = name.partition('_')
    return {'left': f'right_{joint}', 'right': f'left_{joint}'}.get(side, '')


def sample_joints(rng: np.random.Generator) -> np.ndarray:
    """A random posture, (13, 2) in torso lengths, with the middle of the hips at the origin."""
    lean = rng.normal(0, 0.15)
    up, across = np.array([np.sin(lean), -np.cos(lean)]), np.array([np.cos(lean), np.sin(lean)])

    def reach(start, side, angle, length):
        """The end of a limb that points ``angle`` radians outwards from straight down."""
        return start + length * (side * np.sin(angle) * across - np.cos(angle) * up)

    joints = {'head': up + NECK_TO_HEAD * up @ drawing.rotation(rng.normal(0, 0.2))}
    for name, side in (('left', 1), ('right', -1)):
        shoulder, hip = up + side * SHOULDER * across, side * HIP * across
        arm, leg = rng.uniform(-0.3, 2.7), rng.uniform(-0.15, 0.7)
        elbow = reach(shoulder, side, arm, UPPER_ARM)
        knee = reach(hip, side, leg, THIGH)
        joints[f'{name}_shoulder'], joints[f'{name}_hip'] = shoulder, hip
        joints[f'{name}_elbow'], joints[f'{name}_knee'] = elbow, knee
        joints[f'{name}_wrist'] = reach(elbow, side, arm + rng.uniform(-2.2, 1.2), FOREARM)
        joints[f'{name}_ankle'] = reach(knee, side, leg + rng.uniform(-0.8, 0.3), SHIN)
    return np.stack([joints[name] for name in KEYPOINTS])


def place(rng: np.random.Generator, joints: np.ndarray) -> Tuple[np.ndarray, float]:
    """Scale a posture and put it inside the image.

    Returns:
        tuple: The joints, (13, 2) in pixels rounded to 1/100, and the torso's length in pixels.
    """
    margin = HEAD_RADIUS + 0.02  # no stroke reaches further from a joint
    extent = np.ptp(joints, axis=0) + 2 * margin
    image = np.array([drawing.WIDTH, drawing.HEIGHT])
    torso = min(rng.uniform(*TORSOS), *(image / extent))
    room = image - torso * extent
    corner = rng.random(2) * room
    return np.round(corner + torso * (joints - joints.min(axis=0) + margin), 2), torso


def draw_figure(canvas: Image.Image, joints: np.ndarray, torso: float, colour) -> None:
    """Draw a figure, its head a disc, on the canvas or mask."""
    draw = ImageDraw.Draw(canvas)
    joints, torso = joints * drawing.SCALE, torso * drawing.SCALE
    width = max(2, round(LIMB_WIDTH * torso))

    def disc(centre, radius):
        draw.ellipse([*(centre - radius), *(centre + radius)], fill=colour)

    neck = (joints[1] + joints[2]) / 2
    for start, end in [(joints[a], joints[b]) for a, b in LINKS] + [(neck, joints[0])]:
        draw.line([*start, *end], fill=colour, width=width)
    for joint in joints[1:]:
        disc(joint, width / 2)
    disc(joints[0], HEAD_RADIUS * torso)


def draw_eyes(canvas: Image.Image, joints: np.ndarray, torso: float) -> None:
    """Two dark dots on a white ground in the face, across the line from neck to head."""
    neck = (joints[1] + joints[2]) / 2
    up = (joints[0] - neck) / np.linalg.norm(joints[0] - neck)
    for side in (-1, 1):
        eye = joints[0] + torso * (0.08 * up + side * 0.09 * up[::-1] * [-1, 1])
        for radius, colour in ((0.075, 'white'), (0.04, 'black')):
            corners = np.stack([eye - radius * torso, eye + radius * torso]) * drawing.SCALE
            ImageDraw.Draw(canvas).ellipse(corners.ravel().tolist(), fill=colour)


def figure_mask(joints: np.ndarray, torso: float) -> np.ndarray:
    """Which canvas pixels a figure covers, (512, 640) of bool."""
    mask = drawing.blank_mask()
    draw_figure(mask, joints, torso, 1)
    return np.asarray(mask)


def sample_occluder(rng: np.random.Generator) -> np.ndarray:
    """A box turned by any angle that hides what is behind it, (4, 2) in pixels."""
    half = rng.uniform(5, 16, size=2)
    corners = half * [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    centre = rng.uniform([0, 0], [drawing.WIDTH, drawing.HEIGHT])
    return corners @ drawing.rotation(rng.uniform(0, np.pi)) + centre


def sample_scene(rng: np.random.Generator):
    """The figures and then the occluders of one image, from back to front.

    A thing that would cover an earlier figure too much is left out.

    Returns:
        tuple: The figures as (joints, torso, mask), the occluders' polygons, and for each figure
        the mask of what is still in sight of it.
    """
    figures: list = []
    occluders: list = []
    visible: list = []

    def clear_of(mask):
        """What ``mask`` leaves of each figure, or None if that is too little of one."""
        left = [other & ~mask for other in visible]
        enough = all(
            now.sum() >= MIN_VISIBLE * whole.sum() for now, (_, _, whole) in zip(left, figures))
        return left if enough else None

    count = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, MAX_FIGURES + 1)
    for _ in range(count):
        joints, torso = place(rng, sample_joints(rng))
        mask = figure_mask(joints, torso)
        left = clear_of(mask)
        if left is not None:
            figures.append((joints, torso, mask))
            visible = left + [mask]
    for _ in range(rng.integers(0, MAX_OCCLUDERS + 1)):
        polygon = sample_occluder(rng)
        left = clear_of(drawing.polygon_mask(polygon))
        if left is not None:
            occluders.append(polygon)
            visible = left
    return figures, occluders, visible


def annotation(joints: np.ndarray, mask: np.ndarray, visible: np.ndarray) -> dict:
    """The COCO annotation of one figure.

    All 13 keypoints are labelled: with v = 2 in sight, with v = 1 behind something else. Box and
    area are of the whole figure, hidden or not.
    """
    column, row = np.floor(joints * drawing.SCALE).astype(int).T
    v = np.where(visible[row, column], 2, 1)
    keypoints = np.column_stack([joints, v]).tolist()
    return dict(
        category_id=1,
        bbox=[float(side) for side in drawing.mask_box(mask)],
        area=float(mask.sum()) / drawing.SCALE**2,
        iscrowd=0,
        num_keypoints=len(KEYPOINTS),
        keypoints=[value for x, y, flag in keypoints for value in (x, y, int(flag))])


def draw_stick_figures(rng: np.random.Generator) -> Tuple[np.ndarray, List[dict]]:
    """Draw one image.

    Args:
        rng (np.random.Generator): Source of everything in it.

    Returns:
        tuple: The image, (128, 160, 3) of uint8 RGB, and its COCO annotations without ids.
    """
    canvas, mean_colour = drawing.background(rng)
    drawing.add_clutter(canvas, rng)
    figures, occluders, visible = sample_scene(rng)
    for joints, torso, _ in figures:
        draw_figure(canvas, joints, torso, drawing.colour_against(rng, mean_colour))
        draw_eyes(canvas, joints, torso)
    for polygon in occluders:
        drawing.draw_polygon(canvas, polygon, drawing.random_colour(rng))
    annotations = [
        annotation(joints, mask, seen) for (joints, _, mask), seen in zip(figures, visible)
    ]
    return drawing.develop(canvas, rng), annotations


def metainfo() -> dict:
    """The data set's description in the form that mmpose's ``METAINFO`` takes."""
    colours = dict(left=[0, 114, 178], right=[213, 94, 0])
    legs = ('hip', 'knee', 'ankle')
    keypoint_info = {
        i: dict(
            name=name,
            id=i,
            color=colours.get(name.split('_')[0], [0, 0, 0]),
            type='lower' if name.endswith(legs) else 'upper',
            swap=swapped(name))
        for i, name in enumerate(KEYPOINTS)
    }
    skeleton_info = {
        i: dict(link=link, id=i, color=colours[link[1].split('_')[0]])
        for i, link in enumerate(SKELETON)
    }
    return dict(
        dataset_name='stick_figures',
        keypoint_info=keypoint_info,
        skeleton_info=skeleton_info,
        joint_weights=[1.0] * len(KEYPOINTS),
        sigmas=list(SIGMAS))


if HAS_MMPOSE:
    from mmpose.datasets.datasets.base import BaseCocoStyleDataset

    from mmskd.registry import DATASETS

    @DATASETS.register_module()
    class StickFigureDataset(BaseCocoStyleDataset):
        """The figures that ``tools/make_demo_data.py OUT_DIR --kind stick-figures`` writes.

        The arguments are those of mmpose's ``BaseCocoStyleDataset``.
        """

        METAINFO = metainfo()
