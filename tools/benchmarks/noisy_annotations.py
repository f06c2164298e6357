"""Annotations with mistakes in them, the same in each epoch: where soft targets should matter.

Configs import it by ``custom_imports = dict(imports=['benchmarks.noisy_annotations'])``, which
tools/train.py finds, and name it in the place of ``LoadAnnotations``.
"""
import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadNoisyAnnotations(LoadAnnotations):
    """Loads annotations of which some are wrong and some are missing.

    Which ones depends on ``seed`` and the image's id alone: not on the epoch, the worker or the
    seed of the training.

    Args:
        num_classes (int): Of the data set.
        wrong (float): Share of the objects that have another class, each other one as often.
            Defaults to 0.
        missing (float): Share of the objects that are left out. Defaults to 0.
        seed (int): Defaults to 0.
        kwargs: Of mmdet's LoadAnnotations.
    """

    def __init__(self, num_classes: int, wrong: float = 0., missing: float = 0., seed: int = 0,
                 **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.wrong, self.missing = num_classes, wrong, missing
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """The results of an image, with its mistakes."""
        random = np.random.default_rng([self.seed, results['img_id']])
        instances = []
        for instance in results['instances']:
            # Three numbers for each, so that one kind of mistake does not move the other
            is_missing, is_wrong, shift = random.random(3)
            label = instance['bbox_label']
            if is_wrong < self.wrong:
                label = (label + 1 + int(shift * (self.num_classes - 1))) % self.num_classes
            if is_missing >= self.missing:
                instances.append(dict(instance, bbox_label=label))
        return super().transform(dict(results, instances=instances))
