"""ViTPose of transformers as a teacher."""
import json

import pytest
import torch

pytest.importorskip('mmpose')
transformers = pytest.importorskip('transformers')

from mmskd.engine.hooks import DistillHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.teachers import hf_pose  # noqa: E402
from mmskd.models.teachers.hf_pose import HFPoseTeacher  # noqa: E402
from tests.support import poses  # noqa: E402

NAMES = ['Nose', 'L_Eye', 'R_Eye', 'L_Ear', 'R_Ear', 'L_Shoulder', 'R_Shoulder']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny ViTPose with random weights, as it is saved."""
    folder = tmp_path_factory.mktemp('vitpose')
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[128, 96], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, mlp_ratio=1, out_indices=[1])
    config = transformers.VitPoseConfig(backbone_config=backbone, id2label=dict(enumerate(NAMES)),
                                        label2id={
                                            name: index for index, name in enumerate(NAMES)
                                        })
    transformers.VitPoseForPoseEstimation(config).save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(
            dict(image_processor_type='VitPoseImageProcessor', image_mean=[0.5, 0.25, 0.1],
                 image_std=[0.2, 0.2, 0.2])))
    return folder


def test_it_says_what_it_is(folder):
    teacher = HFPoseTeacher(str(folder))
    images, answers = teacher.images(), teacher.answers()
    assert images.size == (96, 128) and images.mean[1] == pytest.approx(63.75) and images.rgb
    assert answers.keypoints == 7 and answers.beta is None
    columns, rows = answers.axes
    assert (columns.count, rows.count) == (24, 32)
    assert columns.step * 23 == pytest.approx(95) and rows.variance == pytest.approx(
        (2 * 127 / 31)**2)
    inputs = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        assert torch.equal(teacher(inputs), teacher.model(pixel_values=inputs).heatmaps)


def test_it_teaches_bins_by_name(folder):
    student = poses.build('rtmpose')
    student.dataset_meta = dict(keypoint_id2name=dict(enumerate(
        ['nose', 'left_eye', 'right_eye', *(f'other{index}' for index in range(14))])))
    hook = DistillHook(
        teacher=dict(type='mmskd.HFPoseTeacher', model=str(folder), keypoints='by_name', flip=True))
    hook.attach(student)
    assert hook._teacher.describe()[1:4] == [
        '  0 nose      <- 0 Nose', '  1 left_eye  <- 1 L_Eye', '  2 right_eye <- 2 R_Eye']
    losses = poses.losses(student)
    assert losses['loss_logit'].isfinite() and losses['loss_logit'] > 0
    losses['loss_logit'].backward()
    student.train()
    poses.losses(student)
    assert not any(module.training for module in hook._teacher.modules())


def test_experts_are_those_that_there_are(folder):
    with pytest.raises(UsageError, match=r'dataset_index=1, and .* has 1 expert\(s\)'):
        HFPoseTeacher(str(folder), dataset_index=1)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="model='.*' is no VitPoseForPoseEstimation"):
        HFPoseTeacher(str(tmp_path))
    monkeypatch.setitem(__import__('sys').modules, 'transformers', None)
    with pytest.raises(UsageError,
                       match='needs the package transformers.*pip install transformers'):
        hf_pose._transformers()
