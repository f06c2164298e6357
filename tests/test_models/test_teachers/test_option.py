"""What a config may say of a teacher, and what is refused before anything is built."""
import pytest

from mmskd.errors import UsageError
from mmskd.models.teachers.option import TeacherOption


@pytest.mark.parametrize(
    'teacher,message',
    [(dict(type='mmskd.OnnxPoseTeecher',
           file='a.onnx'), 'no class mmskd.OnnxPoseTeecher is registered.*custom_imports'),
     (dict(type='mmskd.OnnxPoseTeacher',
           path='a.onnx'), 'OnnxPoseTeacher.*file.*; there are file, beta, sigma'),
     (dict(type='mmskd.HFPoseTeacher', model='folder',
           index=1), "unexpected keyword argument 'index'; there are model")])
def test_a_registered_class_is_given_what_it_takes(teacher, message):
    with pytest.raises(UsageError, match=f'DistillHook: teacher.*{message}') as refusal:
        TeacherOption('DistillHook', teacher).build()
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('keypoints', [[0, 1], 'by name', 3])
def test_keypoints_are_by_name_or_a_dict(keypoints):
    with pytest.raises(
            UsageError,
            match=r"teacher.keypoints must be 'by_name' or a dict of the student's keypoints"):
        TeacherOption('DistillHook', dict(config='a.py', checkpoint='a.pth', keypoints=keypoints))
