"""Which keypoint teaches which: by name across the data sets of MMPose, by dict, and what is
refused.
"""
from functools import cache

import pytest

from mmskd.errors import UsageError
from mmskd.models.teachers.keypoints import Keypoints, describe_mapping, map_keypoints
from mmskd.models.teachers.metainfo import given_metainfo

pytest.importorskip('mmpose')

COUNTS = dict(coco=17, coco_wholebody=133, halpe26=26, aic=14, crowdpose=14, mpii=16, ap10k=17,
              coco_openpose=18)


@cache
def metainfo(name):
    return given_metainfo('test', f'configs/_base_/datasets/{name}.py')


def known(name, side='teacher'):
    """The keypoints of a data set of MMPose."""
    return Keypoints(side, COUNTS[name], metainfo(name))


def named(*names, side='student'):
    return Keypoints(side, len(names), dict(keypoint_id2name=dict(enumerate(names))))


def pairs(student, teacher, option='by_name'):
    mine, theirs = known(student, 'student'), known(teacher)
    return {mine.names[index]: theirs.names[other]
            for index, other in enumerate(map_keypoints(option, mine, theirs)) if other is not None}


@pytest.mark.parametrize('student,teacher,count', [('coco', 'coco_wholebody', 17),
                                                   ('halpe26', 'coco_wholebody', 23),
                                                   ('coco_openpose', 'coco_wholebody', 17),
                                                   ('coco_wholebody', 'coco', 17),
                                                   ('aic', 'coco_wholebody', 12),
                                                   ('crowdpose', 'halpe26', 13),
                                                   ('mpii', 'coco', 12), ('ap10k', 'coco', 11)])
def test_by_name_across_data_sets(student, teacher, count):
    found = pairs(student, teacher)
    assert len(found) == count
    for mine, theirs in found.items():
        for side in ('left', 'right'):
            letter = side[0].upper() + '_'
            assert (mine.startswith((side, letter))) == (theirs.startswith(
                (side, letter))), (mine, theirs)


def test_the_same_count_in_another_order():
    """AIC begins with the right shoulder, CrowdPose with the left one."""
    found = pairs('aic', 'crowdpose')
    assert len(found) == 14 and found['head_top'] == 'top_head'
    assert all(mine == theirs for mine, theirs in found.items() if mine != 'head_top')
    with pytest.raises(
            UsageError, match="number 0 is 'right_shoulder' in the student, 'left_shoulder' in the "
            "teacher. .*keypoints='by_name'"):
        pairs('aic', 'crowdpose', None)


@pytest.mark.parametrize('name', COUNTS)
def test_a_mirror_swaps_what_mmpose_swaps(name):
    meta = dict(metainfo(name))
    flip = meta.pop('flip_indices')
    assert known(name).mirrored() == flip
    if name != 'coco_wholebody':  # whose face's names do not say it
        assert Keypoints('teacher', COUNTS[name], meta).mirrored() == flip


def test_what_is_taught_by_what_is_said():
    mine, theirs = named('snout', 'leftear', 'tail'), known('ap10k')
    mapped = map_keypoints({'snout': 'Nose', 2: 4}, mine, theirs)
    assert mapped == [2, None, 4]
    assert describe_mapping(mapped, mine, theirs) == [
        '0 snout   <- 2 Nose', '1 leftear <- labels alone', '2 tail    <- 4 Root of tail']


def test_where_words_would_be_the_same_the_names_count():
    mine, theirs = named('top_head', 'head_top'), named('head_top', 'top_head', side='teacher')
    assert map_keypoints('by_name', mine, theirs) == [1, 0]


def test_the_same_name_comes_before_the_same_words():
    """The same name is found though the other side has a second one with its words."""
    mine = named('left_eye', 'L_Ear', 'eye_right', 'нос', '耳')
    theirs = named('L_Eye', 'left_eye', 'right_eye', 'L_ear', 'ear left', 'хвост', '耳',
                   side='teacher')
    assert map_keypoints('by_name', mine, theirs) == [1, None, 2, None, 6]
    # Two unknown alphabets are not the same name
    assert map_keypoints('by_name', named('a', 'нос'), named('a', 'хвост',
                                                             side='teacher')) == [0, None]


def test_one_name_for_two_keypoints_is_refused():
    twice = named('eye', 'nose', 'eye', side='teacher')
    for option in ('by_name', {'nose': 'eye'}):
        with pytest.raises(UsageError,
                           match="the teacher has several keypoints 'eye'. Use .*indices"):
            map_keypoints(option, named('eye', 'nose'), twice)
    assert map_keypoints({'nose': 1}, named('eye', 'nose'), twice) == [None, 1]


@pytest.mark.parametrize(
    'flip,message', [([0, 1, 2], "'left_eye' is the same in a mirror, and there is 'right_eye'"),
                     ([1, 2, 0], 'and not the other way round'),
                     ([0, 2, 7], 'a mirror makes 2 right_eye keypoint 7|other way round')])
def test_a_mirror_that_swaps_nothing_or_nonsense_is_refused(flip, message):
    meta = dict(keypoint_id2name=dict(enumerate(('nose', 'left_eye', 'right_eye'))),
                flip_indices=flip)
    with pytest.raises(UsageError, match=message):
        Keypoints('teacher', 3, meta).mirrored()


@pytest.mark.parametrize(
    'option,message',
    [({
        'snuot': 'Nose'
    }, "the student has no keypoint 'snuot'; did you mean 'snout'"),
     ({
         'snout': 'Noes'
     }, "the teacher has no keypoint 'Noes'; did you mean 'Nose'"),
     ({
         'snout': 17
     }, 'the teacher has no keypoint 17; its 17 keypoints are 0 to 16'),
     ({
         -1: 0
     }, 'the student has no keypoint -1'), ({
         'snout': 2,
         0: 3
     }, 'names 0 snout of the student twice'),
     ({
         'snout': 2,
         'tail': 'Nose'
     }, 'gives 2 Nose of the teacher to two keypoints of the student'),
     ({
         'leftear': 'R_Eye'
     }, "'leftear' of the student would learn from 'R_Eye', which is on the other side"),
     ({}, 'nothing would be taught'), ('by name', "must be 'by_name' or a dict"),
     ('by_name', 'no keypoint in common; the student has snout, leftear, tail, the teacher L_Eye'),
     (None, "the student has 3 keypoints and the teacher 17. .*'by_name'"),
     ({
         True: 0
     }, 'no keypoint True')])
def test_what_cannot_be_is_refused_in_a_line(option, message):
    with pytest.raises(UsageError, match=message) as refusal:
        map_keypoints(option, named('snout', 'leftear', 'tail'), known('ap10k'))
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(
    'option,message',
    [('by_name', 'what the student calls its 3 keypoints is not known'),
     ({
         'snout': 0
     }, "the names of the keypoints of the student are not known, so 'snout' cannot be found")])
def test_unknown_names(option, message):
    with pytest.raises(UsageError, match=message):
        map_keypoints(option, Keypoints('student', 3), known('ap10k'))
    assert map_keypoints({0: 5}, Keypoints('student', 3), known('ap10k')) == [5, None, None]
    with pytest.raises(UsageError, match='teacher.flip: what the student calls'):
        Keypoints('student', 3).mirrored()


def test_metainfo_is_a_file_or_a_dict():
    with pytest.raises(UsageError, match='OnnxPoseTeacher: metainfo must be a file'):
        given_metainfo('OnnxPoseTeacher', dict(names=['a']))
    with pytest.raises(UsageError, match='gone.py.* cannot be read'):
        given_metainfo('OnnxPoseTeacher', 'gone.py')
