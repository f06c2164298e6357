"""A teacher that fires at one place moves exactly the keypoint that learns from it."""
import copy

import pytest
import torch

from mmskd.errors import UsageError
from mmskd.models.distributions import Axis
from mmskd.models.losses.functional import heatmap_l2, simcc_kl
from mmskd.models.teachers.crops import Images
from mmskd.models.teachers.pose_teacher import Answers, PoseTeacher
from mmskd.models.teachers.translated import Asked, TranslatedTeacher

VALUES = dict(mean=(0., 0., 0.), std=(1., 1., 1.))
SMALL, LARGE = Images((96, 128), **VALUES), Images((144, 192), **VALUES)


def simcc(images, keypoints, beta, sigma=3., ratio=2.):
    return Answers(tuple(Axis(int(side * ratio), 1 / ratio, 0., sigma**2 / 10 / ratio**2)
                         for side in images.size), keypoints, beta, names(keypoints))


def heatmaps(images, keypoints, cells=4, sigma=2.):
    return Answers(
        tuple(Axis(side // cells, float(cells), 0., (sigma * cells)**2) for side in images.size),
        keypoints, None, names(keypoints))


def names(count):
    flip = [0, *(index + 1 if index % 2 else index - 1 for index in range(1, count))]
    called = ['nose', *(f'{"left" if index % 2 else "right"}_{(index - 1) // 2}'
                        for index in range(1, count))]
    return dict(keypoint_id2name=dict(enumerate(called)), flip_indices=flip)


class Fires(PoseTeacher):
    """Says that keypoint k is at places[k], in pixels of its images; all else at the centre."""

    def __init__(self, images, said, places, sure=1.):
        super().__init__()
        self._images, self._said, self.places, self.sure = images, said, places, sure
        self.seen = []

    def images(self):
        return self._images

    def answers(self):
        return self._said

    def forward(self, images):
        self.seen.append(images)
        middle = [side / 2 for side in (*self._images.size, 32.)[:len(self._said.axes)]]
        at = torch.tensor([self.places.get(index, middle) for index in range(self._said.keypoints)])
        bumps = []
        for place, axis in zip(at.T, self._said.axes):
            where = axis.start + axis.step * torch.arange(axis.count)
            bumps.append(-(where - place[:, None])**2 / 2 / axis.variance)
        if self._said.beta is None:
            x, y = (bump.exp() for bump in bumps)
            return self.sure * (y[:, :, None] * x[:, None]).expand(len(images), -1, -1, -1)
        return tuple(self.sure * bump.expand(len(images), -1, -1) / self._said.beta
                     for bump in bumps)


def places_of(answer, said):
    """Where each keypoint is, in pixels: the mean of the density."""
    if said.beta is None:
        masses = [answer.sum(along) for along in (-2, -1)]
    else:
        masses = [(axis * said.beta).softmax(-1) for axis in answer]
    return torch.stack([(mass / mass.sum(-1, keepdim=True) * (
        axis.start + axis.step * torch.arange(axis.count))).sum(-1)
        for mass, axis in zip(masses, said.axes)], -1)


def ask(teacher, images=SMALL, batch=2):
    width, height = images.size
    (answer, *_), weights = teacher(torch.zeros(batch, 3, height, width))
    return answer, weights


KINDS = dict(rtmpose=(simcc, 10.), rtmw=(simcc, 1.), heatmap=(heatmaps, ))


def says(kind, images, keypoints):
    maker, *beta = KINDS[kind]
    return maker(images, keypoints, *beta)


@pytest.mark.parametrize('mine', KINDS)
@pytest.mark.parametrize('theirs', KINDS)
@pytest.mark.parametrize('size', [SMALL, LARGE], ids=['same', 'larger'])
@pytest.mark.parametrize('option', ['by_name', {0: 4, 3: 1, 'right_0': 'right_2'}],
                         ids=['name', 'dict'])
def test_each_keypoint_learns_from_its_own(mine, theirs, size, option):
    student, said = says(mine, SMALL, 5), says(theirs, size, 8)
    mapped = {index: index for index in range(5)} if option == 'by_name' else {0: 4, 3: 1, 2: 6}
    factor = size.size[0] / SMALL.size[0]
    for mine_index, theirs_index in mapped.items():
        place = (30.2 * factor, 81.7 * factor)
        teacher = TranslatedTeacher([Asked(Fires(size, said, {theirs_index: place}), option)],
                                    SMALL, student)
        answer, weights = ask(teacher)
        found = places_of(answer, student)[0]
        shift = 0.5 / factor - 0.5  # of the centres of pixels
        assert torch.allclose(found[mine_index], torch.tensor([30.2, 81.7]) + shift, atol=0.1)
        others = [index for index in mapped if index != mine_index]
        middle = torch.tensor([48., 64.]) + shift
        assert torch.allclose(found[others], middle.expand(len(others), 2), atol=0.1)
        taught = torch.tensor([index in mapped for index in range(5)])
        assert (weights[:, ~taught] == 0).all()
        assert torch.allclose(weights[:, taught],
                              torch.full_like(weights[:, taught], 5 / len(mapped)), atol=1e-3)


@pytest.mark.parametrize('mine', KINDS)
@pytest.mark.parametrize('theirs', KINDS)
def test_a_student_that_agrees_has_nothing_to_learn(mine, theirs):
    student = says(mine, SMALL, 5)
    teacher = TranslatedTeacher(
        [Asked(Fires(LARGE, says(theirs, LARGE, 8), {2: (50., 70.)}), 'by_name')], SMALL, student)
    answer, weights = ask(teacher)
    if student.beta is None:
        logits = [answer.clone().requires_grad_()]
        loss = heatmap_l2(logits[0], answer, 1., weights)
    else:
        logits = [axis.clone().requires_grad_() for axis in answer]
        loss = simcc_kl(logits, answer, student.beta, 1., keypoint_weights=weights)
    loss.backward()
    assert loss.abs() < 1e-5
    assert max(axis.grad.abs().max() for axis in logits) < 1e-6


def test_the_mean_is_over_what_is_taught():
    """Two of four keypoints taught: the same loss as with these two alone."""
    student, pair = simcc(SMALL, 4, 10.), simcc(SMALL, 2, 10.)
    fires = Fires(SMALL, simcc(SMALL, 2, 10.), {1: (20., 30.)})
    few, few_weights = ask(TranslatedTeacher([Asked(fires)], SMALL, pair))
    many, weights = ask(TranslatedTeacher([Asked(fires, {1: 0, 3: 1})], SMALL, student))
    torch.manual_seed(0)
    logits = [torch.randn(2, 4, axis.count) for axis in student.axes]
    half = [axis[:, [1, 3]] for axis in logits]
    assert torch.allclose(simcc_kl(logits, many, 10., keypoint_weights=weights),
                          simcc_kl(half, few, 10., keypoint_weights=few_weights))
    maps, halves = torch.rand(2, 4, 32, 24), torch.rand(2, 4, 32, 24)
    assert torch.allclose(heatmap_l2(maps, halves, 1., weights),
                          heatmap_l2(maps[:, [1, 3]], halves[:, [1, 3]]))


@pytest.mark.parametrize('kind', ['rtmpose', 'heatmap'])
def test_ensembles_average_over_those_that_know(kind):
    student = says(kind, SMALL, 5)
    first = Asked(Fires(SMALL, student, {0: (20., 40.), 1: (30., 50.)}))
    second = Asked(Fires(SMALL, says(kind, SMALL, 3), {0: (60., 80.)}), 'by_name')
    answer, weights = ask(TranslatedTeacher([first, second], SMALL, student))
    found = places_of(answer, student)[0]
    assert torch.allclose(found[0], torch.tensor([40., 60.]), atol=0.1)  # of both
    assert torch.allclose(found[1], torch.tensor([39., 57.]), atol=0.1)
    assert torch.allclose(found[3], torch.tensor([48., 64.]), atol=0.1)  # of the first alone
    assert torch.allclose(weights, torch.ones(2, 5), atol=1e-3)
    alone = ask(TranslatedTeacher([first], SMALL, student))[0]
    if kind == 'rtmpose':
        both = [torch.stack([(axis * 10).softmax(-1) for axis in pair]).mean(0)
                for pair in zip(alone, ask(TranslatedTeacher([second], SMALL, student))[0])]
        assert torch.allclose((answer[0] * 10).softmax(-1)[:, 0], both[0][:, 0], atol=1e-5)


@pytest.mark.parametrize('mine', ['rtmpose', 'heatmap'])
@pytest.mark.parametrize('theirs', ['rtmpose', 'heatmap'])
def test_the_mirror_is_looked_into_and_out_of(mine, theirs):
    """What it says of the mirrored crop is mirrored back: left is right, and 10 from the left is
    from the right.
    """

    class Eyes(Fires):
        """Sees the left keypoint where the image is white, the right one where it is black."""

        def forward(self, images):
            white = images[0, 0, 0].argmax().item()
            black = images[0, 0, 0].argmin().item()
            self.places = {1: (float(black), 70.), 2: (float(white), 50.), 0: (float(white), 60.)}
            return super().forward(images)

    student, said = says(mine, SMALL, 3), says(theirs, SMALL, 3)
    teacher = TranslatedTeacher([Asked(Eyes(SMALL, said, {}), flip=True)], SMALL, student)
    image = torch.full((1, 3, 128, 96), 100.)
    image[..., 20], image[..., 70] = 255., 0.
    (answer, ), _ = teacher(image)
    found = places_of(answer, student)[0]
    # Keypoint 1 (left): 70 in the crop; in the mirror it is what is called right, at white: 20
    assert torch.allclose(found[:, 0], torch.tensor([20., 45., 45.]), atol=0.15)


def test_flip_needs_to_know_the_sides():
    said = simcc(SMALL, 3, 10.)._replace(metainfo={})
    with pytest.raises(UsageError, match='teacher.flip: what the teacher calls'):
        TranslatedTeacher([Asked(Fires(SMALL, said, {}), flip=True)], SMALL, simcc(SMALL, 3, 10.))


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_unsure_counts_less(kind):
    said = says(kind, SMALL, 3)
    weights = [
        ask(
            TranslatedTeacher([Asked(Fires(SMALL, said, {}, sure), weight_by='confidence')], SMALL,
                              said))[1] for sure in (1., 0.2, 0.)
    ]
    assert (weights[0] > 0.9).all() and (weights[0] <= 1).all()
    assert (weights[1] < 0.6 * weights[0]).all() and (weights[2] < 0.1).all()
    # In an ensemble the surer one is heard
    sure, unsure = (Asked(Fires(SMALL, said, {0: (place, 64.)}, how), weight_by='confidence')
                    for place, how in ((20., 1.), (60., 0.1)))
    answer, _ = ask(TranslatedTeacher([sure, unsure], SMALL, said))
    assert (places_of(answer, said)[0, 0, 0] - 20).abs() < 15


def test_keypoints_outside_of_the_students_crop_do_not_count():
    """The teacher sees black to the left and right, and may place something there."""
    wide = Images((192, 128), **VALUES)
    teacher = Fires(wide, simcc(wide, 2, 10.), {0: (10., 60.), 1: (96., 60.)})
    _, weights = ask(TranslatedTeacher([Asked(teacher)], SMALL, simcc(SMALL, 2, 10.)))
    assert weights[0, 0] < 1e-3 and weights[0, 1] > 0.99


def test_all_stages_are_taught_and_a_copy_answers_the_same():
    said = heatmaps(SMALL, 3)
    teacher = TranslatedTeacher([Asked(Fires(LARGE, heatmaps(LARGE, 3), {}))], SMALL, said,
                                stages=4)
    answers, _ = teacher(torch.zeros(1, 3, 128, 96))
    assert len(answers) == 4
    again, _ = copy.deepcopy(teacher)(torch.zeros(1, 3, 128, 96))
    assert torch.equal(answers[0], again[0])
    assert teacher.describe() == ['teacher teaches 3 of 3 keypoints:', '  0 nose    <- 0 nose',
                                  '  1 left_0  <- 1 left_0', '  2 right_0 <- 2 right_0']


def test_half_precision_stays_outside():
    said = simcc(SMALL, 3, 10.)
    teacher = TranslatedTeacher([Asked(Fires(LARGE, simcc(LARGE, 3, 1.), {}))], SMALL, said)
    exact, _ = ask(teacher)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, _ = ask(teacher)
    assert found[0].dtype == torch.float32 and torch.allclose(found[0], exact[0], atol=1e-4)


def test_depth_cannot_be_made_up():
    flat, deep = simcc(SMALL, 3, 10.), simcc(SMALL, 3, 10.)
    deep = deep._replace(axes=(*deep.axes, Axis(64, 0.5, 0., 1.)))
    for mine, theirs in ((flat, deep), (deep, flat), (deep, heatmaps(SMALL, 3))):
        with pytest.raises(UsageError, match='Take a teacher of as many dimensions'):
            TranslatedTeacher([Asked(Fires(SMALL, theirs, {}))], SMALL, mine)
    other = deep._replace(axes=(*deep.axes[:2], Axis(96, 0.5, 0., 1.)))
    with pytest.raises(UsageError, match='bins of depth'):
        TranslatedTeacher([Asked(Fires(SMALL, other, {}))], SMALL, deep)
    teacher = TranslatedTeacher([
        Asked(
            Fires(
                LARGE,
                simcc(LARGE, 8,
                      1.)._replace(axes=(*simcc(LARGE, 8, 1.).axes, Axis(64, 0.5, 0., 1.))),
                {3: (45., 60., 12.)}), {1: 3})
    ], SMALL, deep)
    assert [axis.shape[-1] for axis in ask(teacher)[0]] == [192, 256, 64]
