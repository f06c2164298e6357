"""What a config may say of a teacher, and what is refused before anything is built."""
import pytest
from torch import nn

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
        TeacherOption('DistillHook', teacher).build(nn.Linear(1, 1))
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('keypoints', [[0, 1], 'by name', 3])
def test_keypoints_are_by_name_or_a_dict(keypoints):
    with pytest.raises(
            UsageError,
            match=r"teacher.keypoints must be 'by_name' or a dict of the student's keypoints"):
        TeacherOption('DistillHook', dict(config='a.py', checkpoint='a.pth', keypoints=keypoints))


def test_a_teacher_is_not_to_share_weights_with_its_student():
    """It would be frozen, and the student with it."""
    student = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    teacher = nn.Sequential(nn.Linear(1, 1), student[0])
    for same, name in ((teacher, '1.weight'), (student, '0.weight')):
        with pytest.raises(UsageError, match=f'DistillHook: teacher: {name} is a weight of the '
                                             'student itself.*give a copy'):
            TeacherOption('DistillHook', same).build(student)
    assert all(parameter.requires_grad for parameter in student.parameters())
