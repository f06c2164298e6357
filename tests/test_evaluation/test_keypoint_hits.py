"""Distances and OKS terms against the evaluations that define them."""
import contextlib
import io

import numpy as np
import pytest

from mmskd.evaluation.keypoint_hits import normalized_distances, oks_terms

SIGMAS = np.array([.026, .079, .107, .062])


def test_distances_by_hand():
    distances = normalized_distances([[3., 4.], [0., 0.]], [[0., 0.], [0., 10.]], 20.)
    np.testing.assert_allclose(distances, [.25, .5])


def test_a_term_by_hand():
    # d = s * k, with s the square root of the area and k twice sigma
    near, = oks_terms([[10., 0.]], [[0., 0.]], 400., [.25])
    assert near == pytest.approx(np.exp(-.5))


@pytest.mark.parametrize('module', ['xtcocotools', 'pycocotools'])
def test_their_mean_is_the_oks(module):
    coco = pytest.importorskip(f'{module}.coco')
    cocoeval = pytest.importorskip(f'{module}.cocoeval')
    rng = np.random.default_rng(0)
    annotated = rng.uniform(0, 100, (6, 4, 2))
    predicted = annotated + rng.normal(0, 8, annotated.shape)
    visible = rng.integers(0, 3, (6, 4))
    visible[:, 0] = 2
    areas = rng.uniform(500, 4000, 6)

    def instances(keypoints, third, **fields):
        return [dict(id=i + 1, image_id=1, category_id=1, bbox=[0, 0, 100, 100], area=areas[i],
                     keypoints=np.column_stack([keypoints[i], third[i]]).ravel().tolist(),
                     **fields) for i in range(6)]

    def database(annotations):
        base = coco.COCO()
        base.dataset = dict(images=[dict(id=1)], categories=[dict(id=1)], annotations=annotations)
        base.createIndex()
        return base

    with contextlib.redirect_stdout(io.StringIO()):
        truth = database(instances(annotated, visible, iscrowd=0, num_keypoints=4))
        results = database(instances(predicted, np.ones((6, 4)), score=.5))
        if module == 'xtcocotools':
            evaluation = cocoeval.COCOeval(truth, results, 'keypoints', SIGMAS, use_area=True)
        else:
            evaluation = cocoeval.COCOeval(truth, results, 'keypoints')
            evaluation.params.kpt_oks_sigmas = SIGMAS
        evaluation.params.imgIds = [1]
        evaluation._prepare()
        oks = evaluation.computeOks(1, 1)
    ours = [oks_terms(predicted[i], annotated[i], areas[i], SIGMAS)[visible[i] > 0].mean()
            for i in range(6)]
    np.testing.assert_allclose(np.diag(oks), ours, rtol=1e-9)
    assert 0 < min(ours) < .9
