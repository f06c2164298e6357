"""Which predicted keypoints hit: how far they are from the annotated ones, in two units."""
import numpy as np


def normalized_distances(predicted, annotated, size: float) -> np.ndarray:
    """Distance of each keypoint in units of a reference size, the quantity that PCK thresholds.

    As in mmpose's ``keypoint_pck_accuracy``, up to the keypoints that do not count.

    Args:
        predicted (array): Predicted keypoints in pixels, shape (..., K, 2).
        annotated (array): Annotated keypoints in pixels, shape (..., K, 2).
        size (float): Reference size in pixels, above 0.

    Returns:
        ndarray: Distances, shape (..., K).
    """
    return np.linalg.norm((np.asarray(predicted) - np.asarray(annotated)) / size, axis=-1)


def oks_terms(predicted, annotated, area: float, sigmas) -> np.ndarray:
    r"""The term of each keypoint in the object keypoint similarity (OKS), whose mean the OKS is.

    .. math:: \exp\left(-\frac{d_i^2}{2 s^2 k_i^2}\right), \quad s^2 = \mathrm{area}, \;
        k_i = 2 \sigma_i

    as in COCO's keypoint evaluation (https://cocodataset.org/#keypoints-eval).

    Args:
        predicted (array): Predicted keypoints in pixels, shape (..., K, 2).
        annotated (array): Annotated keypoints in pixels, shape (..., K, 2).
        area (float): Area of the object in square pixels, above 0.
        sigmas (array): The data set's per-keypoint deviations, shape (K,).

    Returns:
        ndarray: Terms in [0, 1], 1 is best, shape (..., K), float64.
    """
    squared = ((np.asarray(predicted, np.float64) - np.asarray(annotated)) ** 2).sum(-1)
    return np.exp(-squared / (2 * area * (2 * np.asarray(sigmas, np.float64)) ** 2))
