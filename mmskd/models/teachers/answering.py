"""The teacher that a student gets: the model itself, or one that translates its answers."""
from typing import Any, List, Mapping, Optional, Sequence

from torch import nn

from mmskd.errors import UsageError

from ..heads import TaughtHead, is_pose_estimator
from .option import Built
from .pose_teacher import Answers, HeadTeacher, MMPoseTeacher, PoseTeacher, answers_of, images_of
from .probe import image_channels, output_shapes, probe, stage_count
from .question import check_teacher
from .trained_head import without_features
from .translated import Asked, TranslatedTeacher


def answering(built: Sequence[Built], student: nn.Module, heads: Sequence[TaughtHead],
              metainfo: Optional[Mapping[str, Any]] = None) -> nn.Module:
    """What is to be asked, so that it answers the student's question.

    A model that is built like the student and was trained on the same question is asked as it is.
    Other teachers of keypoints, several of them, and those of which a config asks more get a
    :class:`~mmskd.models.teachers.translated.TranslatedTeacher`.

    Args:
        built (Sequence[Built]): The teachers.
        student (nn.Module): The model that learns.
        heads (Sequence[TaughtHead]): Its heads that are taught.
        metainfo (Mapping, optional): Of the student's training data. Defaults to None: its own
            ``dataset_meta``.

    Raises:
        UsageError: If a teacher was asked another question, and its answers cannot be brought to
            the student's.
    """
    (model, settings), alone = built[0], len(built) == 1
    if alone and not settings and not isinstance(model, PoseTeacher):
        try:
            check_teacher(student, model, heads, metainfo=metainfo)
            return model
        except UsageError as refusal:
            if not heads or not is_pose_estimator(student) or not is_pose_estimator(model):
                raise
            reason = refusal
    else:
        reason = None
        _require_pose(built, student, heads)
    return _translated(built, student, heads, metainfo, reason)


def answering_on_features(built: Built, student: nn.Module, heads: Sequence[Any],
                          metainfo: Optional[Mapping[str, Any]] = None) -> TranslatedTeacher:
    """The head of a trained model with other keypoints, that answers on the student's features.

    Args:
        built (Built): The model, of which backbone and neck are those of the student.
        student (nn.Module): As in :func:`answering`, like the next two.
        heads (Sequence[TaughtHead]): Those to teach.
        metainfo (dict, optional): Of the student's keypoints. Defaults to None.

    Raises:
        UsageError: If it cannot teach the student's head; names the reason.
    """
    if not is_pose_estimator(student) or not is_pose_estimator(built.model):
        raise UsageError(
            'teacher is for estimators of keypoints; give a detector\'s trained model as checkpoint'
        )
    if images_of(built.model) != images_of(student):
        raise UsageError(
            f'the teacher takes {images_of(built.model)} and the student {images_of(student)}: on '
            'other images there are other features. Take a trained model with the same backbone '
            'and images'
        )
    head, = heads
    answers = answers_of(student, 'student')
    if metainfo is not None:
        answers = answers._replace(metainfo=metainfo)
    images = images_of(student)
    asked = Asked(HeadTeacher(without_features(built.model)), **built.settings)
    return TranslatedTeacher([asked], images, answers, stage_count(student, head.name))


def _translated(built: Sequence[Built], student: nn.Module, heads: Sequence[TaughtHead],
                metainfo: Optional[Mapping[str, Any]],
                reason: Optional[UsageError]) -> TranslatedTeacher:
    head, = heads
    try:
        answers = answers_of(student, 'student')
    except UsageError as cannot:
        raise _both(reason, cannot) from cannot
    if metainfo is not None:
        answers = answers._replace(metainfo=metainfo)
    _check_shapes('student', student, answers, head.name)
    asked = []
    for model, settings in built:
        if not isinstance(model, PoseTeacher):
            model = _wrapped(model, student, reason)
        asked.append(Asked(model, **settings))
    return TranslatedTeacher(asked, images_of(student), answers, stage_count(student, head.name))


def _wrapped(model: nn.Module, student: nn.Module, reason: Optional[UsageError]) -> MMPoseTeacher:
    mine, theirs = image_channels(student), image_channels(model, student)
    if mine != theirs:
        raise UsageError(
            'student and teacher do not go together: the images have so many channels: '
            f'{mine} in the student, {theirs} in the teacher')
    teacher = MMPoseTeacher(model)
    try:
        answers = teacher.answers()
    except UsageError as cannot:
        raise _both(reason, cannot) from cannot
    _check_shapes('teacher', model, answers, teacher.head)
    return teacher


def _both(reason: Optional[UsageError], cannot: UsageError) -> UsageError:
    """Why a teacher is not asked as it is, and why its answers are not brought to the student's."""
    return cannot if reason is None else UsageError(
        f'{reason}; and that is not converted: {cannot}')


def _check_shapes(side: str, model: nn.Module, answers: Answers, head: str) -> None:
    """The bins that a codec describes are those that come out."""
    shape = [axis.count for axis in answers.axes]
    expected = [(answers.keypoints, *shape[::-1])] if answers.beta is None else [
        (answers.keypoints, count) for count in shape]
    found = output_shapes(model, head, probe(model))[-len(expected):]
    if found != expected:
        raise UsageError(
            f'the {side}\'s {head} predicts {found}, and by its codec that would be {expected}: '
            'one of head and codec has another size in its config')


def _require_pose(built: Sequence[Built], student: nn.Module, heads: Sequence[TaughtHead]) -> None:
    asked = sorted({key for one in built for key in one.settings})
    what = ' and '.join(f'teacher.{key}' for key in asked) or (
        'a list of teachers' if len(built) > 1 else type(built[0].model).__name__)
    if not is_pose_estimator(student):
        raise UsageError(
            f'{what} goes with estimators of keypoints, and {type(student).__name__} is none')
    if not heads:
        raise UsageError(
            f'{what} goes with losses of predictions, of which the option `losses` has none')
    for one in built:
        if not isinstance(one.model, PoseTeacher) and not is_pose_estimator(one.model):
            raise UsageError(
                f'the teacher {type(one.model).__name__} is neither an estimator of MMPose nor a '
                'PoseTeacher')


def features_from(teacher: nn.Module) -> nn.Module:
    """The model whose features are compared, if features are.

    Raises:
        UsageError: If there is none, or more than one.
    """
    if not isinstance(teacher, TranslatedTeacher):
        return teacher
    models: List[nn.Module] = [
        one.asked for one in teacher.teachers if isinstance(one, MMPoseTeacher)
    ]
    if len(models) != 1 or len(teacher.teachers) != 1:
        raise UsageError(
            'features are compared with those of one model of MMPose; with several teachers, or '
            'those of another kind, leave losses of features out of `losses`')
    return models[0]
