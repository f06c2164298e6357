"""What each formula of the papers comes to on fixed numbers, by NumPy in float64 and without mmskd.

    python -m tests.golden.make_losses        # writes tests/golden/losses.json

The numbers are ramps of sines, so that no version of a random generator has a part in them.
"""
import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name('losses.json')
LABELS = [2, 0, 4, 1]  # of four samples and five classes; 5 and more is background
ALPHA, BETA = 0.3, 10.


def numbers(*shape, shift=0.):
    """Fixed numbers in [-2, 2], of the shape that is asked for."""
    return 2 * np.sin(1.7 * np.arange(np.prod(shape)) + shift).reshape(shape)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def divergence(target, prob, axis=-1):
    return (target * (np.log(target) - np.log(prob))).sum(axis)


def cross_entropy(target, z):
    return -(target * np.log(softmax(z))).sum(-1)


def binary(target, z):
    return -(target * np.log(sigmoid(z)) + (1 - target) * np.log(1 - sigmoid(z)))


def standardised(x):
    """Each channel over images and places."""
    mean = x.mean((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(((x - mean)**2).mean((0, 2, 3), keepdims=True))


def values():
    """The value of each function of ``mmskd.models.losses.functional`` that a paper defines."""
    z, q = numbers(4, 5), numbers(4, 5, shift=.9)
    y = np.eye(5)[LABELS]
    maps, taught = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, shift=.4)
    bins, teacher = numbers(2, 3, 8, shift=.2) / 5, numbers(2, 3, 8, shift=.6) / 5
    sides, their_sides = numbers(3, 4, 7), numbers(3, 4, 7, shift=.5)
    found = {}

    # Kim et al., ICCV 2021, eq. (3): y_t = (1 - alpha) y + alpha P
    soft = (1 - ALPHA) * y + ALPHA * softmax(q)
    found['pskd_cross_entropy'] = cross_entropy(soft, z)
    each = (1 - ALPHA) * y + ALPHA * sigmoid(q)
    found['pskd_binary_cross_entropy'] = binary(each, z)
    # Lin et al., ICCV 2017, towards that target, with a = 0.25 and gamma = 2
    found['pskd_focal'] = ((.25 * each + .75 * (1 - each)) *
                           np.abs(each - sigmoid(z))**2 * binary(each, z))

    # Yang et al., ICCV 2023: NKD with gamma = 1.5 and tau = 2
    S, T = softmax(z), softmax(q)
    total = 0
    for n, t in enumerate(LABELS):
        others = np.arange(5) != t
        mine, theirs = softmax(z[n, others] / 2), softmax(q[n, others] / 2)
        total += -T[n, t] * np.log(S[n, t]) - 1.5 * 4 * (theirs * np.log(mine)).sum()
    found['nkd'] = total / 4
    # USKD with alpha = 1, beta = 0.1 and mu = 0.005; the weak logits are q
    squares, total = S[np.arange(4), LABELS]**2, 0
    for n, t in enumerate(LABELS):
        others = np.arange(5) != t
        score = S[n] / S[n, others].sum() + T[n] / T[n, others].sum()
        rank = 1 + np.argsort(np.argsort(-score))
        zipf = (1 / rank)[others] / (1 / rank)[others].sum()
        total -= (squares[n] + 1 - squares.mean()) * np.log(S[n, t])
        total -= .1 * (zipf * np.log(softmax(z[n, others]))).sum()
        total += .005 * cross_entropy(.9 * y[n] + .1 / 5, q[n])
    found['uskd'] = total / 4

    # Yang et al., ICCVW 2023: the bins of one axis twice, with beta = 10; features with weight 0.5
    kl = divergence(softmax(BETA * teacher), softmax(BETA * bins))
    found['simcc_kl'] = 2 * kl.sum(1).mean() / 3
    found['feature_l2'] = .5 * ((maps - taught)**2).sum() / 2
    found['heatmap_l2'] = ((maps - taught)**2).mean()

    # Cao et al., NeurIPS 2022; Shu et al., ICCV 2021, of standardised maps, tau = 2
    mine, theirs = standardised(maps), standardised(taught)
    found['pearson_distance'] = ((mine - theirs)**2).mean() / 2
    mine, theirs = (softmax(side.reshape(2, 3, 20) / 2) for side in (mine, theirs))
    found['channel_kl'] = 4 * divergence(theirs, mine).mean()
    # Zheng et al., CVPR 2022, tau = 10
    kl = divergence(softmax(their_sides / 10), softmax(sides / 10))
    found['bins_kl'] = 100 * kl.mean(-1)
    return {name: np.asarray(value).tolist() for name, value in found.items()}


def main():
    how = dict(command='python -m tests.golden.make_losses', numpy=np.__version__)
    FILE.write_text(json.dumps(dict(how=how, values=values()), indent=1) + '\n')


if __name__ == '__main__':
    main()
