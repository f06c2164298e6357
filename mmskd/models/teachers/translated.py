"""Teachers with other keypoints, images or bins, whose answers are brought to the student's."""
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..distributions import (
    SMALLEST,
    bridge,
    heatmap_to_heatmap,
    heatmap_to_simcc,
    simcc_to_heatmap,
    simcc_to_simcc,
)
from .crops import Crops, Images
from .keypoints import Keypoints, Mapped, describe_mapping, map_keypoints, untaught
from .pose_teacher import Answers, HeadTeacher, MMPoseTeacher, PoseTeacher, confidence

Masses = Union[Tensor, Tuple[Tensor, ...]]


class Asked(NamedTuple):
    """A teacher, and what a config asks of it.

    Attributes:
        teacher (PoseTeacher): Who is asked.
        keypoints (str | dict, optional): As in
            :func:`~mmskd.models.teachers.keypoints.map_keypoints`.
        flip (bool): Whether it is asked about the mirrored crop, too. Defaults to False.
        weight_by (str, optional): 'confidence': what it is unsure about counts less. Defaults to
            None.
    """
    teacher: PoseTeacher
    keypoints: Any = None
    flip: bool = False
    weight_by: Optional[str] = None


class TranslatedTeacher(nn.Module):
    """One or several teachers of keypoints that answer as the student does.

    The answers are averaged as distributions (or heatmaps), for each keypoint over those teachers
    that know it, by how sure they are where that is asked for.

    Args:
        asked (Sequence[Asked]): The teachers.
        images (Images): The student's images.
        answers (Answers): What the student's answers mean.
        stages (int): How many answers the student gives, one after the other; all are taught the
            same. Defaults to 1.

    Raises:
        UsageError: If a teacher's keypoints or bins cannot be brought to the student's.
    """

    def __init__(self, asked: Sequence[Asked], images: Images, answers: Answers, stages: int = 1):
        super().__init__()
        self._stages, self._beta = stages, answers.beta
        self._student = Keypoints('student', answers.keypoints, answers.metainfo)
        self._views, self._maps, self._theirs = nn.ModuleList(), [], []
        for one in asked:
            said = one.teacher.answers()
            theirs = Keypoints('teacher', said.keypoints, said.metainfo)
            mapped = map_keypoints(one.keypoints, self._student, theirs)
            self._maps.append(mapped)
            self._theirs.append(theirs)
            # the last one's features are compared
            for mirrored in (True, False) if one.flip else (False, ):
                self._views.append(View(one, said, images, answers, mapped,
                                        theirs.mirrored() if mirrored else None))
        taught = [any(one[index] is not None for one in self._maps)
                  for index in range(answers.keypoints)]
        # Means are over all keypoints, and are to be over those that are taught
        self._mean = len(taught) / sum(taught)

    @property
    def untaught(self) -> List[str]:
        """list[str]: The student's keypoints that no teacher knows."""
        return untaught(self._maps, self._student)

    @property
    def teachers(self) -> List[PoseTeacher]:
        """list[PoseTeacher]: Each of them once."""
        return list(dict.fromkeys(view.teacher for view in self._views))

    @property
    def scale(self) -> Tuple[float, float]:
        """tuple[float]: Height and width of the crop in the last one's images, in the student's."""
        return self._views[-1].crops.scale

    def ask_in(self, precision: Optional[str]) -> None:
        """Ask the models of MMPose in this precision from here on; others know their own."""
        for teacher in self.teachers:
            if isinstance(teacher, MMPoseTeacher):
                teacher.ask_in(precision)

    @torch.no_grad()
    def forward(self, images: Any) -> Tuple[List[Masses], Tensor]:
        """Ask.

        Args:
            images (Tensor): The student's, (N, 3, H, W); features for a :class:`HeadTeacher`.

        Returns:
            tuple: The answers, one for each stage of the student: what its head returns; and how
            much each keypoint counts, (N, K), with a mean of 1 where all that are taught count
            fully.
        """
        self.eval()  # for good, whatever the student's mode is
        found = [view(images) for view in self._views]
        weights = torch.stack([weight for _, weight in found])
        knows = torch.stack([view.knows for view in self._views]).to(weights)
        shares = weights / weights.sum(0).clamp_min(SMALLEST)
        if self._beta is None:
            answer = sum(maps * share[..., None, None] for (maps, _), share in zip(found, shares))
        else:
            answer = tuple(
                _logits(sum(axis * share[..., None]
                            for axis, share in zip(axes, shares)), self._beta)
                for axes in zip(*(masses for masses, _ in found)))
        total = weights.sum(0) / knows.sum(0).clamp_min(1)
        return [answer] * self._stages, total * self._mean

    def describe(self) -> List[str]:
        """Lines for the log: what is taught by what."""
        lines = []
        for index, (mapped, theirs) in enumerate(zip(self._maps, self._theirs)):
            known = sum(one is not None for one in mapped)
            several = f' {index + 1} of {len(self._maps)}' if len(self._maps) > 1 else ''
            lines.append(f'teacher{several} teaches {known} of {len(mapped)} keypoints:')
            lines += ['  ' + line for line in describe_mapping(mapped, self._student, theirs)]
        return lines


class View(nn.Module):
    """A teacher's answer on the crop or on its mirror image, in the student's bins.

    Args:
        asked (Asked): The teacher.
        said (Answers): What its answers mean.
        images (Images): The student's.
        answers (Answers): The student's.
        mapped (list): The teacher's index for each keypoint of the student, or None.
        mirrored (list[int], optional): The teacher's keypoints in a mirror, to look into one.
            Defaults to None.
    """

    def __init__(self, asked: Asked, said: Answers, images: Images, answers: Answers,
                 mapped: Mapped, mirrored: Optional[Sequence[int]] = None):
        super().__init__()
        self.teacher, self._said = asked.teacher, said
        self._convert = _conversion(said, answers)
        self._weighs, self.mirrored = asked.weight_by is not None, mirrored is not None
        self.crops = Crops(images, asked.teacher.images())
        axes = said.axes
        if self.mirrored:
            axes = (axes[0].mirrored(asked.teacher.images().size[0]), *axes[1:])
        self._bridges = [bridge(theirs, mine)
                         for theirs, mine in zip(self.crops.in_students_pixels(axes), answers.axes)]
        index = [0 if one is None else one for one in mapped]
        index = [mirrored[one] for one in index] if mirrored is not None else index
        self.register_buffer('index', torch.tensor(index), persistent=False)
        self.register_buffer('knows', torch.tensor([one is not None for one in mapped]),
                             persistent=False)

    def forward(self, images: Any) -> Tuple[Masses, Tensor]:
        """Probabilities over the student's bins (or heatmaps), and weights (N, K)."""
        if not isinstance(self.teacher, HeadTeacher):
            images = self.crops(images)
        answer = self.teacher(images.flip(-1) if self.mirrored else images)
        # Probabilities of hundreds of bins are no matter of half precision
        with torch.autocast(self.index.device.type, enabled=False):
            answer = answer if isinstance(answer, Tensor) else tuple(answer)
            answer = _each(answer, lambda axis: axis.float()[:, self.index])
            masses, inside = self._convert(answer, self._said.beta, self._bridges)
            weights = inside * self.knows
            if self._weighs:
                weights = weights * confidence(answer, self._said)
        return masses, weights

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'View':
        """The bridges go where the buffers go."""
        super()._apply(fn, *args, **kwargs)
        self._bridges = [way._replace(matrix=None if way.matrix is None else fn(way.matrix))
                         for way in self._bridges]
        return self


def _conversion(theirs: Answers, mine: Answers) -> Any:
    """How answers of one kind become such of another."""
    if len(theirs.axes) == len(mine.axes) == 3 and theirs.axes[2] != mine.axes[2]:
        raise UsageError(
            'the bins of depth of the teacher are others than the student\'s, and what is near and '
            'far is a matter of the data they were trained on. Take a teacher with the same codec')
    if theirs.beta is not None and len(theirs.axes) != len(mine.axes):
        raise UsageError(
            f'the teacher answers with {theirs.kind} and the student with {mine.kind}: an axis '
            'more or less cannot be made up. Take a teacher of as many dimensions')
    if theirs.beta is None:
        if mine.beta is None:
            return lambda answer, beta, ways: heatmap_to_heatmap(answer, ways)
        if len(mine.axes) != 2:
            raise UsageError(
                'the teacher answers with heatmaps and the student with bins along three axes: '
                'depth cannot be made up. Take a teacher of as many dimensions')
        return lambda answer, beta, ways: heatmap_to_simcc(answer, ways)
    return simcc_to_simcc if mine.beta is not None else simcc_to_heatmap


def _each(answer: Masses, func: Any) -> Masses:
    return func(answer) if isinstance(answer, Tensor) else tuple(func(axis) for axis in answer)


def _logits(probabilities: Tensor, beta: float) -> Tensor:
    """What gives these probabilities at the student's temperature."""
    return probabilities.clamp_min(SMALLEST).log() / beta
