"""A canvas for generated images, and their background, clutter, blur and noise.

Coordinates are image pixels, x to the right and y down, with pixel (i, j) covering the square from
(i, j) to (i + 1, j + 1). Everything is drawn ``SCALE`` times larger and averaged down, which gives
smooth edges, and masks that are exact to a quarter of a pixel.
"""
from typing import Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 160, 128  # multiples of 32: a detector need not pad them
SCALE = 4
MIN_CONTRAST = 70.0  # between an object and the background, as a distance in RGB
MAX_BLUR = 1.0  # standard deviation of the Gaussian, in pixels
NOISE = (1.0, 6.0)  # range of its standard deviation, in grey levels


def draw_polygon(canvas: Image.Image, polygon: np.ndarray, colour) -> None:
    """Fill ``polygon``, of shape (K, 2) in pixels, on the canvas or mask."""
    ImageDraw.Draw(canvas).polygon((polygon * SCALE).ravel().tolist(), fill=colour)


def blank_mask() -> Image.Image:
    """An empty mask of the canvas' size; ``np.asarray`` makes it a bool array."""
    return Image.new('1', (WIDTH * SCALE, HEIGHT * SCALE))


def polygon_mask(polygon: np.ndarray) -> np.ndarray:
    """Which canvas pixels ``polygon`` covers, (HEIGHT * SCALE, WIDTH * SCALE) of bool."""
    mask = blank_mask()
    draw_polygon(mask, polygon, 1)
    return np.asarray(mask)


def mask_box(mask: np.ndarray) -> Tuple[float, float, float, float]:
    """The smallest box (x, y, w, h), in pixels, around a canvas mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = columns[0] / SCALE, rows[0] / SCALE
    return x, y, (columns[-1] + 1) / SCALE - x, (rows[-1] + 1) / SCALE - y


def rotation(angle: float) -> np.ndarray:
    """The (2, 2) matrix that, behind ``points @``, turns row vectors by ``angle`` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def background(rng: np.random.Generator) -> Tuple[Image.Image, np.ndarray]:
    """A canvas with a linear gradient between two dark colours.

    Returns:
        tuple: The canvas (RGB) and its mean colour, of shape (3,).
    """
    start, end = rng.uniform(30, 90) + rng.uniform(-25, 25, size=(2, 3))
    along = np.array([WIDTH, HEIGHT]) * rng.uniform(-1, 1, size=2)
    y, x = np.mgrid[0:1:HEIGHT * 1j, 0:1:WIDTH * 1j]
    ramp = x * along[0] + y * along[1]
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)
    pixels = np.clip(start + (end - start) * ramp[..., None], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(pixels).resize((WIDTH * SCALE, HEIGHT * SCALE), Image.NEAREST)
    return canvas, (start + end) / 2


def colour_against(rng: np.random.Generator, other: np.ndarray) -> Tuple[int, int, int]:
    """A random colour that stands out from the colour ``other``, RGB."""
    while True:
        colour = random_colour(rng)
        if np.linalg.norm(colour - other) >= MIN_CONTRAST:
            return colour


def add_clutter(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw things that are no objects: thin lines and small triangles in any colour."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 7)):
        ends = rng.uniform([0, 0], [WIDTH, HEIGHT], size=(2, 2)) * SCALE
        width = int(rng.integers(SCALE // 2, 2 * SCALE))
        draw.line(ends.ravel().tolist(), fill=random_colour(rng), width=width)
    for _ in range(rng.integers(2, 7)):
        corners = rng.uniform([0, 0], [WIDTH, HEIGHT]) + rng.uniform(-7, 7, size=(3, 2))
        draw_polygon(canvas, corners, random_colour(rng))


def random_colour(rng: np.random.Generator) -> Tuple[int, int, int]:
    """One of eight bright colours: with more, a model soon knows single objects by their colour."""
    return tuple(rng.choice((130, 250), size=3).tolist())


def develop(canvas: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Average the canvas down to the image, blur it and add noise.

    Args:
        canvas (Image.Image): The RGB canvas.
        rng (np.random.Generator): Source of the strength of both and of the noise.

    Returns:
        np.ndarray: (HEIGHT, WIDTH, 3) of uint8, RGB.
    """
    image = canvas.reduce(SCALE).filter(ImageFilter.GaussianBlur(rng.uniform(0, MAX_BLUR)))
    noise = rng.uniform(*NOISE) * rng.standard_normal((HEIGHT, WIDTH, 1))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
