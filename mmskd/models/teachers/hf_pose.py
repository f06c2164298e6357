"""A teacher from Hugging Face: ViTPose in transformers."""
from typing import Any, Dict, List, Tuple, Union

import torch
from torch import Tensor

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import MODELS

from ..distributions import Axis
from .crops import Images
from .metainfo import given_metainfo
from .onnx_pose import MEAN, STD
from .pose_teacher import Answers, PoseTeacher

SIGMA = 2.
"""Of ViTPose's labels, in cells of the heatmap."""


@MODELS.register_module()
class HFPoseTeacher(PoseTeacher):
    """``VitPoseForPoseEstimation`` of transformers. Its weights are read from safetensors alone.

    Args:
        model (str): A local folder, or an id on the Hub.
        dataset_index (int): Of models with experts (ViTPose+), which data set's keypoints they are
            asked for. Defaults to 0: COCO.
        metainfo (dict | str, optional): As in
            :class:`~mmskd.models.teachers.onnx_pose.OnnxPoseTeacher`. Defaults to None: the names
            in its config.

    Raises:
        UsageError: If transformers is missing or too old, or there is no such model.
    """

    def __init__(self, model: str, dataset_index: int = 0, metainfo: Union[None, str, dict] = None):
        super().__init__()
        options = Options('HFPoseTeacher')
        options.text('model', model)
        self._expert = options.whole('dataset_index', dataset_index, least=0)
        transformers = _transformers()
        try:
            self.model = transformers.VitPoseForPoseEstimation.from_pretrained(
                model, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UsageError(
                f'HFPoseTeacher: model={model!r} is no VitPoseForPoseEstimation with safetensors, '
                'here '
                f'or on the Hub: {str(error).splitlines()[0]}') from error
        self.model.eval()
        config = self.model.config
        self._experts = getattr(config.backbone_config, 'num_experts', 1)
        if self._expert >= self._experts:
            raise UsageError(
                f'HFPoseTeacher: dataset_index={self._expert}, and {model} has {self._experts} '
                'expert(s), from 0')
        height, width = config.backbone_config.image_size
        self._size: Tuple[int, int] = (width, height)
        self._values = _image_values(transformers, model)
        names = [config.id2label[index] for index in sorted(config.id2label)]
        self._metainfo: Dict[str, Any] = given_metainfo('HFPoseTeacher', metainfo)
        if not self._metainfo and not names[0].startswith('LABEL_'):
            self._metainfo = dict(keypoint_id2name=dict(enumerate(names)))
        with torch.no_grad():
            self._maps = tuple(self(torch.zeros(1, 3, height, width)).shape[1:])

    def images(self) -> Images:
        return Images(self._size, *self._values)

    def answers(self) -> Answers:
        keypoints, rows, columns = self._maps
        axes: List[Axis] = []
        for pixels, cells in zip(self._size, (columns, rows)):
            step = (pixels - 1) / (cells - 1)  # UDP
            axes.append(Axis(cells, step, 0., (SIGMA * step)**2))
        return Answers(tuple(axes), keypoints, None, self._metainfo)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps."""
        asked = {} if self._experts == 1 else dict(dataset_index=torch.full(
            (len(images), ), self._expert, device=images.device))
        return self.model(pixel_values=images, **asked).heatmaps


def _transformers() -> Any:
    try:
        import transformers
        assert transformers.VitPoseForPoseEstimation
    except (ImportError, AttributeError) as error:
        raise UsageError(
            'HFPoseTeacher needs the package transformers, 4.48 or later, which is not here '
            f'({str(error).splitlines()[0]}): pip install transformers') from error
    return transformers


def _image_values(transformers: Any, model: str) -> Tuple[List[float], List[float]]:
    """Mean and deviation of the channels, for values from 0 to 255."""
    try:
        given, _ = transformers.VitPoseImageProcessor.get_image_processor_dict(model)
    except (OSError, ValueError, ImportError):
        given = {}
    if not given.get('image_mean'):
        return list(MEAN), list(STD)
    return [value * 255
            for value in given['image_mean']], [value * 255 for value in given['image_std']]
