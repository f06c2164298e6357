"""Make a stock checkpoint of one that DWPoseDistiller saved.

MMPose's DWPoseDistiller, and PoseEstimatorDistiller of the DWPose repository, save teacher and
student in one file. What was trained is, after stage 1, the student; after stage 2, the student's
head on the teacher's backbone and neck: the backbone that the student has there was never used.
Which stage it was is read from the file where that is certain; else --stage has to say it.

The file that is written has the stock model's keys and plain metadata, as publish_model.py writes
it. A checkpoint that is a stock model's already, as those that were released, keeps its weights.
"""
import argparse
import ast
import os
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Optional

from mmskd.checkpoint import load_checkpoint_safely, publishable, write_checkpoint
from mmskd.ending import add_traceback, end_in_a_line

DISTILLERS = ('DWPoseDistiller', 'PoseEstimatorDistiller')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', help='checkpoint of a distiller')
    parser.add_argument('out_file', help='file to write')
    parser.add_argument(
        '--stage', type=int, choices=[1, 2],
        help='which stage of the distillation the file comes from; needed only where it does not '
        'say so itself')
    add_traceback(parser)
    return parser.parse_args()


def part(mapping: dict, name: str) -> OrderedDict:
    """What belongs to a submodule, with names as the submodule itself gives them.

    Args:
        mapping (dict): A state dict, or its ``_metadata``, where the submodule has an entry itself.
        name (str): The submodule, as ``'student'``.
    """
    return OrderedDict((key[len(name) + 1:], value) for key, value in mapping.items()
                       if f'{key}.'.startswith(f'{name}.'))


def join(student: dict, teacher: dict, stage: int) -> OrderedDict:
    """The student, or, after stage 2, the teacher with the student's head."""
    if stage == 1:
        return student
    head = {key: value for key, value in student.items() if f'{key}.'.startswith('head.')}
    body = {key: value for key, value in teacher.items() if not f'{key}.'.startswith('head.')}
    return OrderedDict({**body, **head})


def shapes(state_dict: dict) -> dict:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def body_shapes(state_dict: dict) -> dict:
    return shapes({key: value for key, value in state_dict.items() if not key.startswith('head.')})


def stage_of_config(text: str) -> Optional[int]:
    """What a config says, which is read but not run; None if it is not that of a distiller."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value.value for keyword in node.keywords
                     if isinstance(keyword.value, ast.Constant)}
            if str(given.get('type')).rpartition('.')[2] in DISTILLERS:
                return 2 if given.get('two_dis') else 1
    return None


def stage_of(checkpoint: dict, given: Optional[int] = None) -> int:
    """The stage that a distiller's checkpoint comes from.

    Raises:
        ValueError: If neither the file nor ``given`` says it, or if they say different things.
    """
    stage = stage_of_config(str(checkpoint['meta'].get('cfg')))
    student, teacher = (part(checkpoint['state_dict'], name) for name in ('student', 'teacher'))
    if stage is None and body_shapes(student) != body_shapes(teacher):
        stage = 1  # the student's head would not fit on such a teacher
    if stage is None and given is None:
        raise ValueError(
            'the file does not say which stage it comes from: give --stage 1 (the student was '
            'trained) or --stage 2 (two_dis=True: the head alone was)')
    if None not in (stage, given) and stage != given:
        raise ValueError(f'--stage {given} was given, but the file comes from stage {stage}')
    return stage or given


def check_is_distiller(weights: dict) -> None:
    """Raise ValueError if a state dict lacks a part that every distiller has."""
    for name in ('student.backbone', 'student.head', 'teacher.backbone'):
        if not part(weights, name):
            found = ', '.join(sorted({key.partition('.')[0] for key in weights}))
            raise ValueError(f'the file has no {name}: it is not a checkpoint of DWPoseDistiller '
                             f'(its state_dict has {found})')


def stock_weights(checkpoint: dict, stage: Optional[int] = None) -> OrderedDict:
    """The stock model's part of a distiller's weights.

    Args:
        checkpoint (dict): As :func:`publishable` gives it.
        stage (int, optional): 1 or 2. Default: None, as the checkpoint says.

    Returns:
        OrderedDict: A state dict; that of the checkpoint if it is a stock model's already.

    Raises:
        ValueError: If it is not a distiller's checkpoint or lacks a part, and as
            :func:`stage_of` does.
    """
    weights = checkpoint['state_dict']
    if part(weights, 'backbone') and part(weights, 'head'):
        print("the file has a stock model's weights already")
        return weights
    check_is_distiller(weights)
    stage = stage_of(checkpoint, stage)
    student = part(weights, 'student')
    stock = join(student, part(weights, 'teacher'), stage)
    if shapes(stock) != shapes(student):
        wrong = sorted(key for key, _ in shapes(stock).items() ^ shapes(student).items())
        raise ValueError('teacher and student are not the same model, as they are in stage 2: '
                         f'{wrong[0]} is not in both, or of another shape')
    metadata = weights._metadata
    stock._metadata = join(part(metadata, 'student'), part(metadata, 'teacher'), stage)
    print(f'stage {stage}:', 'the student' if stage == 1 else "its head on the teacher's body")
    return stock


def convert(in_file: str, out_file: str, stage: Optional[int] = None) -> None:
    """Write the stock model's part of ``in_file`` to ``out_file``.

    Raises:
        FileNotFoundError: If there is no ``in_file``.
        ValueError, RuntimeError, pickle.UnpicklingError: If it cannot be converted.
    """
    checkpoint = publishable(load_checkpoint_safely(in_file, map_location='cpu'))
    checkpoint['state_dict'] = stock_weights(checkpoint, stage)
    checkpoint['meta'].pop('cfg', None)  # it is the distiller's
    unfinished = Path(f'{out_file}.unfinished')
    write_checkpoint(checkpoint, unfinished)
    os.replace(unfinished, out_file)


def main() -> None:
    args = parse_args()
    try:
        convert(args.in_file, args.out_file, args.stage)
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        end_in_a_line('convert_dwpose_checkpoint.py', error, args.traceback)


if __name__ == '__main__':
    main()
