"""Write a SimCC model as an .onnx file: from the image to the bins, as RTMPose is deployed.

The file has the input `input` (N, 3, H, W), normalised by the config's mean and deviation, and the
outputs `simcc_x` and `simcc_y` (and `simcc_z` of a model in space). mmskd.OnnxPoseTeacher reads it,
and so does what runs RTMPose.
"""
import argparse
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError
from mmskd.models.heads import is_pose_estimator
from mmskd.models.teachers.fixed import build_teacher
from mmskd.models.teachers.pose_teacher import MMPoseTeacher


class Bins(nn.Module):
    """A model from its images to its answers."""

    def __init__(self, teacher: MMPoseTeacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor):
        return self.teacher(images)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the model, a file or package::path')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('out_file', help='.onnx file to write')
    return parser.parse_args()


def export(config: str, checkpoint: str, out_file: str) -> None:
    """Write the file.

    Raises:
        UsageError: If the model is no SimCC model, or the package onnx is missing.
    """
    try:
        import onnx  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise UsageError(f'the package onnx is not here ({error}): pip install onnx') from error
    model = build_teacher(config, checkpoint)
    if not is_pose_estimator(model):
        raise UsageError(
            f'{config} is no pose estimator of MMPose ({type(model).__name__}); only SimCC models '
            'are written'
        )
    teacher = MMPoseTeacher(model)
    if teacher.answers().beta is None:
        raise UsageError(f'{config} predicts heatmaps; only SimCC models are written')
    width, height = teacher.images().size
    names = ['simcc_x', 'simcc_y', 'simcc_z'][:len(teacher.answers().axes)]
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    blank = torch.zeros(2, 3, height, width)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of shapes that are constants, as they should be
        options = dict(dynamo=False) if torch.__version__ >= '2.5' else {}
        torch.onnx.export(
            Bins(teacher).eval(), blank, out_file, input_names=['input'], output_names=names,
            dynamic_axes={name: {0: 'batch'} for name in ('input', *names)}, **options)


def main() -> None:
    args = parse_args()
    try:
        export(args.config, args.checkpoint, args.out_file)
    except (OSError, ImportError, ValueError, UnpicklingError) as error:
        sys.stderr.write(f'export_onnx.py: {error}\n')
        sys.exit(2)
    print(args.out_file)


if __name__ == '__main__':
    main()
