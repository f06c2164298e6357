"""A teacher in an ``.onnx`` file: RTMPose, RTMW and DWPose as they are deployed."""
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import MODELS

from ..distributions import Axis
from .crops import Images
from .metainfo import given_metainfo
from .pose_teacher import Answers, PoseTeacher

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, as in all configs of RTMPose, for RGB."""


@MODELS.register_module()
class OnnxPoseTeacher(PoseTeacher):
    """A SimCC model in an ``.onnx`` file, run by onnxruntime.

    The size of its images, its keypoints and its bins are read from the file. It runs on the device
    of the images where onnxruntime has a provider for it, else on the CPU; the tensors are handed
    over as they are. Only operators that onnxruntime knows are run: no library of others is loaded,
    whatever the file asks for.

    Args:
        file (str): The ``.onnx`` file. One input (N, 3, H, W) in float32, outputs ``simcc_x`` (N,
            K, W * ratio) and ``simcc_y`` (N, K, H * ratio), of these names or in this order.
        beta (float): Inverse temperature of its outputs, which the file does not say: ``loss.beta``
            of the head that it was trained with, 10 for RTMPose and DWPose, 1 for RTMW.
        sigma (sequence[float], optional): Of its labels, in bins of x and of y, as in the codec of
            its config (with ``label_softmax`` and ``label_beta=10``, as all of these have it).
            Defaults to None: as wide as the student's.
        mean (sequence[float]): What is subtracted of each channel, for values from 0 to 255.
            Defaults to ImageNet's. 0 for a file that normalises by itself.
        std (sequence[float]): What it is divided by then. Defaults to ImageNet's. 1 for a file that
            normalises by itself, 255 for one that takes values from 0 to 1.
        to_rgb (bool): Whether it takes RGB, else BGR. Defaults to True.
        metainfo (dict | str, optional): Of the data that it was trained on, for the names of its
            keypoints: as MMPose's ``metainfo``, or the file, e.g.
            'configs/_base_/datasets/coco_wholebody.py'. Defaults to None.

    Raises:
        UsageError: If onnxruntime is missing, or the file is no such model; names the reason.
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, file: str, beta: Optional[float] = None,
                 sigma: Optional[Sequence[float]] = None, mean: Sequence[float] = MEAN,
                 std: Sequence[float] = STD, to_rgb: bool = True, metainfo: Union[None, str,
                                                                                  dict] = None):
        super().__init__()
        options = Options('OnnxPoseTeacher')
        self.file = options.text('file', file)
        if beta is None:
            raise UsageError(
                'OnnxPoseTeacher: beta is not given, and an .onnx file does not say it: the '
                'inverse temperature of the loss that it was trained with, 10 for RTMPose and '
                'DWPose, 1 for RTMW'
            )
        self.beta = options.number('beta', beta, above=0)
        self._mean, self._std = _numbers(options, 'mean', mean,
                                         3), _numbers(options, 'std', std, 3, above=0)
        if min(self._std) < 1:
            raise UsageError(
                f'OnnxPoseTeacher: mean and std are for values from 0 to 255, and std={std!r} is '
                'for values from 0 to 1: multiply both by 255')
        self._rgb = options.flag('to_rgb', to_rgb)
        widths = None if sigma is None else _numbers(options, 'sigma', sigma, 2, above=0)
        self._metainfo = given_metainfo('OnnxPoseTeacher', metainfo)
        if not os.path.isfile(file):
            raise FileNotFoundError(f'OnnxPoseTeacher: no file {file}')
        self._sessions: Dict[str, Any] = {}
        session = self._session('cpu')
        self._input, self._batch, self._size = _read_input(file, session)
        self._outputs = _output_names(file, session)
        self._shapes = self._read_shapes(session)
        self._keypoints = self._shapes[0][0]
        self._axes = tuple(
            Axis(bins, side / bins, 0., None if widths is None else widths[place]**2 / 10
                 * (side / bins)**2)
            for place, ((_, bins), side) in enumerate(zip(self._shapes, self._size)))

    def images(self) -> Images:
        return Images(self._size, self._mean, self._std, self._rgb)

    def answers(self) -> Answers:
        return Answers(self._axes, self._keypoints, float(self.beta), self._metainfo)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Logits over the bins of x and of y."""
        images = images.float()
        if not self._batch:
            return tuple(self._run(images.contiguous()))
        count = len(images)
        missing = -count % self._batch
        padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        found = [self._run(part.contiguous()) for part in padded.split(self._batch)]
        return tuple(torch.cat(parts)[:count] for parts in zip(*found))

    def _run(self, images: Tensor) -> List[Tensor]:
        device = images.device
        session = self._session(device.type)
        if session is None:
            return [axis.to(device) for axis in self._run(images.cpu())]
        import numpy as np
        if images.is_cuda:
            torch.cuda.current_stream(device).synchronize()  # onnxruntime has a stream of its own
        binding = session.io_binding()
        place = device.type, device.index or 0
        binding.bind_input(self._input, *place, np.float32, tuple(images.shape), images.data_ptr())
        found = [images.new_empty(len(images), *shape) for shape in self._shapes]
        for name, axis in zip(self._outputs, found):
            binding.bind_output(name, *place, np.float32, tuple(axis.shape), axis.data_ptr())
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return found

    def _read_shapes(self, session: Any) -> List[Tuple[int, int]]:
        """How many keypoints and bins there are along x and y, by the answer on a blank image."""
        import numpy as np
        width, height = self._size
        # Two images: a file may say that it takes any number of them, and hold one in its inner
        # shapes
        blank = np.zeros((self._batch or 2, 3, height, width), np.float32)
        try:
            found = session.run(list(self._outputs), {self._input: blank})
        except Exception as error:  # of onnxruntime, which has many
            raise UsageError(f'{self.file} does not run: {_first_line(error)}') from error
        shapes = [value.shape for value in found]
        if any(len(shape) != 3 or shape[:2] != (len(blank), shapes[0][1]) for shape in shapes):
            raise UsageError(
                f'{self.file}: its outputs {", ".join(self._outputs)} have the shapes {shapes}, '
                'and those of a SimCC model are (N, keypoints, bins). Write a PoseTeacher for it '
                '(docs/extend.md)'
            )
        self._check_answer(found)
        return [tuple(shape[1:]) for shape in shapes]

    def _check_answer(self, found: Sequence[Any]) -> None:
        """Refuse what is no logits over bins of x and y, as the answer on a blank image shows."""
        import numpy as np
        (x, y), (width, height) = [value.shape[2] for value in found], self._size
        names = ' and '.join(self._outputs)
        if abs(x / width - y / height) > 1 / min(width, height):
            swapped = abs(x / height - y / width) <= 1 / min(width, height)
            raise UsageError(
                f'{self.file}: {names} have {x} and {y} bins for images of {width}x{height}, and '
                'SimCC has as many for a pixel of x as of y. '
                + ('They are swapped: the bins of x must come first'
                   if swapped else 'Write a PoseTeacher for it (docs/extend.md)'))
        if all(value.min() >= 0 and np.allclose(value.sum(-1), 1, atol=1e-3) for value in found):
            raise UsageError(
                f'{self.file}: {names} are probabilities, which add up to 1; beta is for what '
                'comes before the softmax. Export the model without it, or write a PoseTeacher '
                'that gives their logarithm (docs/extend.md)')

    def _session(self, kind: str) -> Any:
        """What runs the file on a kind of device; None if onnxruntime cannot."""
        if kind not in self._sessions:
            runtime = _onnxruntime()
            provider = f'{kind.upper()}ExecutionProvider'
            if provider in runtime.get_available_providers():
                self._sessions[kind] = _open(self.file, runtime, provider)
            else:
                print_log(f'{self.file} runs on the CPU: onnxruntime here has no {provider} '
                          '(the package onnxruntime-gpu has)', 'current')
                self._sessions[kind] = None
        return self._sessions[kind]

    def __getstate__(self) -> dict:
        """Without the sessions, which are opened anew where they are needed."""
        return dict(vars(self), _sessions={})


def _numbers(options: Options, name: str, given: Any, count: int,
             above: Optional[float] = None) -> List[float]:
    """An option that is a list of numbers."""
    if not isinstance(given, (list, tuple)) or len(given) != count:
        options.refuse(name, f'a list of {count} numbers', given)
    return [
        float(options.number(f'{name}[{index}]', one, above=above))
        for index, one in enumerate(given)
    ]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f'OnnxPoseTeacher needs the package onnxruntime, which is not here ({error}): '
            'pip install onnxruntime') from error
    return onnxruntime


def _open(file: str, runtime: Any, provider: str) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(file, options, providers=[provider])
    except Exception as error:  # of onnxruntime, which has many
        raise UsageError(
            f'{file} is no .onnx file that onnxruntime runs: {_first_line(error)}') from error


def _read_input(file: str, session: Any) -> Tuple[str, Optional[int], Tuple[int, int]]:
    """Name, batch size (None: any), and width and height of the images that a model takes."""
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or inputs[0].type != 'tensor(float)':
        given = ', '.join(f'{one.name} {one.shape} {one.type}' for one in inputs)
        raise UsageError(
            f'{file} takes {given}; a model of poses takes one tensor(float) of images, (N, 3, H, '
            'W)'
        )
    if not all(isinstance(side, int) for side in shape[2:]):
        raise UsageError(
            f'{file} takes images of any size, {shape}, and its bins are of one. Export it with a '
            'fixed height and width')
    return inputs[0].name, shape[0] if isinstance(shape[0], int) else None, (shape[3], shape[2])


def _output_names(file: str, session: Any) -> Tuple[str, str]:
    names = [one.name for one in session.get_outputs()]
    if {'simcc_x', 'simcc_y'} <= set(names):
        return 'simcc_x', 'simcc_y'
    if len(names) != 2:
        raise UsageError(
            f'{file} has the outputs {", ".join(names)}; a SimCC model has simcc_x and simcc_y. '
            'Write a PoseTeacher for it (docs/extend.md)')
    return names[0], names[1]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
