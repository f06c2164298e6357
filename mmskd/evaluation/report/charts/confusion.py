"""What is taken for what."""
from typing import List, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .chart import SIZE, Chart, short
from .theme import Theme, style_of

MOST = 10  # classes with a row of their own


def confusion(name: str, title: str, counts: np.ndarray, labels: Sequence[str], group: int = 0,
              nothing: Tuple[str, str] = ('missed', 'nothing there')) -> Chart:
    """A matrix of what objects were taken for, rows add up to 1.

    Of many classes those are shown that are confused most, the others together.

    Args:
        name (str): Name of the chart.
        title (str): Whose predictions these are.
        counts (ndarray): Number of objects by class, (C + 1, C + 1): row c of column k are objects
            of class c that were predicted as k; the last column those that were not found, the last
            row what was predicted where there is no object.
        labels (sequence[str]): C classes or keypoints.
        group (int): Decides the colour. Defaults to 0.
        nothing (tuple[str, str]): Names of the last column and the last row, which is left out
            where its name is empty.
    """
    counts, labels = _fewer(np.asarray(counts, np.float64), list(labels))
    of, taken_for = [*labels, nothing[1]], [*labels, nothing[0]]
    if not nothing[1]:
        counts, of = counts[:-1], of[:-1]
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        colour = theme.series[style_of(group).colour]
        for row, column in np.argwhere(counts > 0):
            value = share[row, column]
            axes.add_patch(Rectangle((column - .5, row - .5), 1, 1, color=colour, lw=0,
                                     alpha=0.08 + 0.5 * value))
            if round(100 * value):
                axes.text(column, row, f'{100 * value:.0f}', ha='center', va='center', fontsize=8,
                          color=theme.ink)
        rows, columns = (np.arange(number) for number in counts.shape)
        axes.set_xticks(columns, [short(text, 14) for text in taken_for], rotation=60, ha='right',
                        rotation_mode='anchor')
        axes.set_yticks(rows, [f'{short(text, 16)} ({number:.0f})'
                               for text, number in zip(of, total[:, 0])])
        figure.suptitle(f'{short(title, 44)}\n% of each row', fontsize=10.5)
        axes.set(xlim=(-.5, columns[-1] + .5), ylim=(rows[-1] + .5, -.5),
                 xlabel='predicted as')
        axes.tick_params(length=0)
        axes.grid(False)
        for edge in rows[1:] - .5:
            axes.axhline(edge, color=theme.muted, lw=.5, alpha=.3)
        for edge in columns[1:] - .5:
            axes.axvline(edge, color=theme.muted, lw=.5, alpha=.3)

    apart = counts * (1 - np.eye(*counts.shape))
    worst = sorted(map(tuple, np.argwhere(apart > 0)), key=lambda at: -apart[at])[:8]
    text = '; '.join(f'{of[row]} as {taken_for[column]} {counts[row, column]:.0f} times'
                     for row, column in worst)
    return Chart(name, title, f'Confusion matrix. {text or "Nothing is confused"}.', draw,
                 (SIZE[0], 1.9 + 0.24 * len(counts)))


def _fewer(counts: np.ndarray, labels: List[str]) -> Tuple[np.ndarray, List[str]]:
    """The same of at most so many classes, with one that stands for the others."""
    if len(labels) <= MOST:
        return counts, labels
    inside = counts[:-1, :-1] * (1 - np.eye(len(labels)))
    order = np.argsort(-(inside.sum(axis=0) + inside.sum(axis=1)), kind='stable')
    kept, others = np.sort(order[:MOST - 1]), np.sort(order[MOST - 1:])
    index = [*kept, len(labels)]
    merged = np.zeros((MOST + 1, MOST + 1))
    place = np.array([*range(MOST - 1), MOST])  # the others come between classes and nothing
    merged[np.ix_(place, place)] = counts[np.ix_(index, index)]
    merged[MOST - 1, place] = counts[np.ix_(others, index)].sum(axis=0)
    merged[place, MOST - 1] = counts[np.ix_(index, others)].sum(axis=1)
    merged[MOST - 1, MOST - 1] = counts[np.ix_(others, others)].sum()
    return merged, [labels[i] for i in kept] + [f'{len(others)} others']
