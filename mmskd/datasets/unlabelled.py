"""Crops without keypoints, from which a student learns what its teacher sees."""
from typing import Optional

from mmpose.datasets.datasets.body import CocoDataset
from mmpose.registry import DATASETS as MMPOSE_DATASETS

from mmskd.registry import DATASETS


@DATASETS.register_module()
class UnlabelledCocoDataset(CocoDataset):
    """Boxes of a COCO json, without keypoints; those that are there are not read.

    MMPose's own data sets leave out what has no keypoints. Here every box that is no crowd is a
    crop in which no keypoint is visible, so that the labels' losses are 0 and only a teacher has
    something to say.

    The arguments are those of ``CocoDataset``; ``metainfo`` names the student's keypoints.
    """

    def parse_data_info(self, raw_data_info: dict) -> Optional[dict]:
        """As the stock one's, with all keypoints invisible in the middle of the box."""
        annotation = raw_data_info['raw_ann_info']
        if 'bbox' not in annotation:
            return None
        left, top, width, height = annotation['bbox']
        count = self.metainfo['num_keypoints']
        middle = [left + width / 2, top + height / 2, 0]
        annotation = dict(annotation, keypoints=middle * count)
        annotation.pop('num_keypoints', None)  # 0 means: leave it out
        return super().parse_data_info(dict(raw_data_info, raw_ann_info=annotation))


# CombinedDataset looks for its parts in MMPose's registry alone
MMPOSE_DATASETS.register_module(module=UnlabelledCocoDataset, force=True)
