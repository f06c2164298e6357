"""Teachers that agree with the student in every shape, and answer something else."""
import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.heads import TaughtHead, choose_heads
from mmskd.models.heads.classifier import classifier_head
from mmskd.models.teachers.question import check_boxes, check_names, check_teacher
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

if HAS_MMDET:
    from tests.support import detectors
if HAS_MMPOSE:
    from tests.support import pose_runs

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


def build(scope, model):
    """A model with the same weights on each call."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def check(student, teacher, boxes=False, **options):
    """Ask, and leave the student as it was."""
    heads = [TaughtHead(adapter) for adapter in choose_heads(student)]
    try:
        check_teacher(student, teacher, heads, **options)
        if boxes:
            check_boxes(heads, teacher)
    finally:
        for head in heads:
            head.remove()


# ------------------------------------------------------------------ detectors

ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[0.5, 2.],
               strides=[8, 16])
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
DENSE_HEADS = {
    'RetinaNet': dict(type='RetinaHead', anchor_generator=ANCHORS, loss_cls=FOCAL,
                      bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
    'FCOS': dict(type='FCOSHead', strides=[8, 16], regress_ranges=((-1, 64), (64, 1e8)),
                 norm_cfg=None, loss_cls=FOCAL),
    'YOLOX': dict(type='YOLOXHead', strides=[8, 16]),
    'VFNet': dict(type='VFNetHead', strides=[8, 16], norm_cfg=None,
                  regress_ranges=((-1, 64), (64, 1e8)),
                  anchor_generator=dict(ANCHORS, ratios=[1.], center_offset=0.)),
}


def detector(kind='RetinaNet', images=3, anchors=None, **head):
    """A small detector of these heads, of images of so many channels."""
    import mmdet.models  # noqa: F401
    own = dict(DENSE_HEADS[kind], num_classes=5, in_channels=8, feat_channels=8, stacked_convs=1)
    if anchors:
        own['anchor_generator'] = dict(own['anchor_generator'], **anchors)
    return build('mmdet', dict(
        type=kind,
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * images,
                               std=[64.] * images),
        backbone=dict(type='ResNet', depth=18, in_channels=images, base_channels=4,
                      stem_channels=4, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
                      out_indices=(1, 2)),
        neck=dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2),
        bbox_head=dict(own, **head)))


@needs_mmdet
@pytest.mark.parametrize('kind', DENSE_HEADS)
def test_a_detector_goes_together_with_its_like(kind):
    check(detector(kind), detector(kind), boxes=True)


PLACES = {
    'size': ('RetinaNet', dict(anchors=dict(octave_base_scale=8)),
             r'bbox_head.prior_generator puts prior 0 of stride \(8, 8\) at: '
             r'\[-22.6, -11.3, 22.6, 11.3\] in the student, \[-45.3, -22.6, 45.3, 22.6\]'),
    'ratios': ('RetinaNet', dict(anchors=dict(ratios=[1 / 3, 3.])), 'puts prior 0 of stride'),
    'order of ratios': ('RetinaNet', dict(anchors=dict(ratios=[2., 0.5])), 'puts prior 0 of'),
    'strides': ('RetinaNet', dict(anchors=dict(strides=[16, 32])),
                r'strides: \(\(8, 8\), \(16, 16\)\) in the student, \(\(16, 16\), \(32, 32\)\)'),
    'base sizes': ('RetinaNet', dict(anchors=dict(base_sizes=[8, 32])), r'of stride \(16, 16\)'),
    'centre': ('RetinaNet', dict(anchors=dict(center_offset=0.5)), 'puts prior 0 of stride'),
    'points': ('YOLOX', dict(strides=[4, 8]), r'strides: \(\(8, 8\), .* \(\(4, 4\), \(8, 8\)\) in'),
    'ranges': ('FCOS', dict(regress_ranges=((-1, 32), (32, 1e8))), 'objects of such sizes at each'),
    'the generator that assigns': (
        'VFNet', dict(anchors=dict(octave_base_scale=6)), 'atss_prior_generator puts prior 0'),
}


@needs_mmdet
@pytest.mark.parametrize('name', PLACES)
def test_other_places_are_refused(name):
    kind, change, message = PLACES[name]
    with pytest.raises(UsageError, match=message):
        check(detector(kind), detector(kind, **change))


@needs_mmdet
def test_points_and_boxes_are_no_places_of_each_other():
    other = detector('FCOS')
    other.bbox_head.prior_generator = detector(
        anchors=dict(ratios=[1.])).bbox_head.prior_generator
    with pytest.raises(UsageError, match='bbox_head.prior_generator puts prior 0'):
        check(detector('FCOS'), other)


@needs_mmdet
def test_a_list_and_a_tuple_ask_the_same():
    check(detector(anchors=dict(ratios=(0.5, 2.))), detector())


@needs_mmdet
def test_boxes_mean_something_by_their_coder():
    other = detector(bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[.1, .1, .2, .2]))
    check(detector(), other)  # class scores alone
    with pytest.raises(UsageError, match=r"bbox_coder is: .*'stds': \(1.0, .*'stds': \(0.1, 0.1"):
        check(detector(), other, boxes=True)


@needs_mmdet
def test_softmax_and_sigmoid_scores_are_not_compared():
    """The RoI heads of MMDetection have a score for the background in either case."""
    small = {'backbone.base_channels': 4, 'backbone.stem_channels': 4,
             'neck.in_channels': [4, 8, 16, 32], 'neck.out_channels': 8,
             'roi_head.bbox_head.fc_out_channels': 8,
             'rpn_head.in_channels': 8, 'rpn_head.feat_channels': 8,
             'roi_head.bbox_roi_extractor.out_channels': 8, 'roi_head.bbox_head.in_channels': 8}
    student = detectors.build('faster_rcnn', **small)
    check(student, detectors.build('faster_rcnn', **small))
    with pytest.raises(UsageError, match='a sigmoid for each class: False in the student, True'):
        check(student, detectors.build(
            'faster_rcnn', **small, **{'roi_head.bbox_head.loss_cls.use_sigmoid': True}))
    with pytest.raises(UsageError, match=r'features are so large .*student, \[\(32, 32\)'):
        check(student, detectors.build(
            'faster_rcnn', **small, **{'neck.start_level': 1, 'neck.num_outs': 5}))


FEW = {f'{part}.layer_cfg.ffn_cfg.feedforward_channels': 8 for part in ('encoder', 'decoder')}


@pytest.fixture(scope='module')
def asks_queries():
    return detectors.build('deformable_detr', **FEW)


@needs_mmdet
@pytest.mark.parametrize('change,message', [
    ({'decoder.num_layers': 1}, 'so many decoder layers: 2 in the student, 1'),
    ({'with_box_refine': True}, 'refined from layer to layer: False in the student, True'),
    ({'as_two_stage': True, 'with_box_refine': True}, 'queries from the encoder: False'),
])
def test_other_queries_are_refused(change, message, asks_queries):
    with pytest.raises(UsageError, match=message):
        check(asks_queries, detectors.build('deformable_detr', **FEW, **change))


# ------------------------------------------------------------------ images


@needs_mmdet
def test_images_of_one_channel():
    check(detector(images=1), detector(images=1))
    gray = detector(images=1)
    gray.data_preprocessor = detector().data_preprocessor
    with pytest.raises(UsageError, match='so many channels: 3 in the student, 1 in the teacher'):
        check(detector(), gray)


@needs_mmdet
def test_another_module_is_only_asked_what_it_tells():
    """It need not have OpenMMLab's attributes; that it normalises in another way cannot be seen."""
    student = detector()
    teacher = nn.Module()
    for name in ('backbone', 'neck', 'bbox_head'):
        teacher.add_module(name, nn.Identity())
    check(student, teacher)


# ------------------------------------------------------------------ pose estimators

SIMCC = dict(type='SimCCLabel', input_size=(64, 64), sigma=(3., 3.), simcc_split_ratio=2.0,
             normalize=False)
HEATMAP = dict(input_size=(64, 64), heatmap_size=(16, 16))
MSRA = dict(HEATMAP, type='MSRAHeatmap', sigma=1.5)
UDP = dict(HEATMAP, type='UDPHeatmap', sigma=1.5)


def estimator(codec=MSRA, **head):
    """A small pose estimator that learns the targets of this codec."""
    import mmpose.models  # noqa: F401
    kind = 'simcc' if codec['type'] == 'SimCCLabel' else 'heatmap'
    model = pose_runs.model(kind)
    model['head'].update(decoder=codec, **head)
    return build('mmpose', model)


DECOUPLED = dict(HEATMAP, type='DecoupledHeatmap')
HAND = dict(type='Hand3DHeatmap', image_size=[64, 64], heatmap_size=[16, 16, 16], depth_size=16)
CODECS = {
    'UDP': (MSRA, UDP, 'MSRAHeatmap.* in the student, .*UDPHeatmap'),
    'DARK': (MSRA, dict(MSRA, unbiased=True),
             r"codec: {'type': 'MSRAHeatmap', 'unbiased': False} in the student, "
             r"{'type': 'MSRAHeatmap', 'unbiased': True} in the teacher"),
    'sigma': (UDP, dict(UDP, sigma=2.), "'sigma': 1.5} in the student.*'sigma': 2.0} in the"),
    'sigma of bins': (SIMCC, dict(SIMCC, sigma=(3., 4.)), r"'sigma': \(3.0, 4.0\)"),
    'normalised': (SIMCC, dict(SIMCC, normalize=True), "'normalize': True} in the teacher"),
    'smoothing': (SIMCC, dict(SIMCC, smoothing_type='standard', label_smooth_weight=0.1),
                  "'label_smooth_weight': 0.1"),
    'smoothness': (dict(SIMCC, smoothing_type='standard', label_smooth_weight=0.1),
                   dict(SIMCC, smoothing_type='standard', label_smooth_weight=0.2),
                   "'label_smooth_weight': 0.2"),
    'one that draws numbers': (DECOUPLED, dict(DECOUPLED, heatmap_min_overlap=0.5),
                               "'heatmap_min_overlap': 0.5} in the teacher"),
    'one that asks for more': (HAND, dict(HAND, depth_size=32), "'depth_size': 32} in the teacher"),
}


@needs_mmpose
@pytest.mark.parametrize('name', CODECS)
def test_targets_of_other_codecs_are_refused(name):
    mine, theirs, message = CODECS[name]
    state = np.random.get_state()[1].tolist()
    check(estimator(mine), estimator(mine))
    assert np.random.get_state()[1].tolist() == state
    with pytest.raises(UsageError, match=message):
        check(estimator(mine), estimator(theirs))


@needs_mmpose
@pytest.mark.parametrize('codec,change', [
    (SIMCC, dict(use_dark=True)), (SIMCC, dict(decode_visibility=True)),
    (SIMCC, dict(sigma=[3, 3])), (UDP, dict(blur_kernel_size=17)),
])
def test_what_is_read_out_of_an_output_may_differ(codec, change):
    check(estimator(codec), estimator(dict(codec, **change)))


# ------------------------------------------------------------------ names

LETTERS = dict(classes=('a', 'b', 'c', 'd', 'e'))


def keypoints(*names):
    return dict(keypoint_id2name=dict(enumerate(names)))


@needs_mmdet
@pytest.mark.parametrize('classes,message', [
    (('b', 'a', 'c', 'd', 'e'), "bbox_head .RetinaHead. has classes .* the same in another order: "
                                "number 0 is 'a' in the student, 'b' in the teacher"),
    (('a', 'b', 'C', 'd', 'e'), "spelled in another way: number 2 is 'c' in the student, 'C'"),
])
def test_classes_of_another_alphabet_are_refused(classes, message):
    student, teacher = detector(), detector()
    teacher.dataset_meta = dict(classes=classes)
    with pytest.raises(UsageError, match=message):
        check(student, teacher, metainfo=LETTERS)
    check(student, teacher, metainfo=teacher.dataset_meta)
    check(student, teacher)  # the student's are not known
    student.dataset_meta = LETTERS  # as init_detector leaves it
    with pytest.raises(UsageError, match=message):
        check(student, teacher)


@needs_mmpose
def test_keypoints_in_another_order_are_refused():
    student, teacher = estimator(out_channels=3), estimator(out_channels=3)
    teacher.dataset_meta = keypoints('tail', 'nose', 'ear')
    check(student, teacher, metainfo=dict(keypoint_name2id=dict(nose=1, tail=0, ear=2)))
    message = "head .HeatmapHead. has keypoints .* in another order: number 0 is 'nose'"
    with pytest.raises(UsageError, match=message):
        check(student, teacher, metainfo=keypoints('nose', 'tail', 'ear'))


class Asked:
    """A head that is taught."""
    name = 'head'

    def __init__(self, **attributes):
        self.head = nn.Module()
        vars(self.head).update(attributes)

    def __str__(self):
        return 'model.head'


@pytest.mark.parametrize('mine,theirs,outputs', [
    (None, LETTERS, 5), (LETTERS, {}, 5), (LETTERS, dict(classes=None), 5),
    (LETTERS, dict(classes=('e', 'd', 'c', 'b', 'a')), 1),  # an RPN
    (LETTERS, dict(classes=('only', 'four', 'of', 'them')), 5),  # left from another data set
    (LETTERS, dict(classes=[dict(id=1)] * 5), 5),
])
def test_names_that_do_not_describe_the_head_are_not_compared(mine, theirs, outputs):
    check_names([Asked(num_classes=outputs)], mine, theirs, keypoints=False)


def test_the_order_is_that_of_the_numbers():
    """Also where a file was JSON, or an array."""
    names = [str(index) for index in range(12)]
    by_text = dict(keypoint_id2name={str(index): name for index, name in enumerate(names)})
    check_names([Asked(out_channels=12)], keypoints(*names), by_text, keypoints=True)
    check_names([Asked(num_classes=12)], dict(classes=np.array(names)), dict(classes=names),
                keypoints=False)


def test_names_of_mmdetection_2_are_compared():
    with pytest.raises(UsageError, match="number 0 is 'a' in the student, 'x' in the teacher"):
        check_names([Asked()], dict(CLASSES='a'), dict(classes=['x']), keypoints=False)


@needs_mmdet
def test_features_alone_need_only_the_same_images():
    """Classes, anchors and codecs are no matter of a backbone."""
    student, teacher = detector(), detector(anchors=dict(octave_base_scale=8), num_classes=7)
    teacher.dataset_meta = dict(classes=('e', 'd', 'c', 'b', 'a'))
    check_teacher(student, teacher, [], metainfo=LETTERS)


# ------------------------------------------------------------------ classifiers


class Classifier(BaseModel):
    """With MMPretrain's names; its architecture is no matter of the teacher's."""

    class Prepares(BaseDataPreprocessor):

        def __init__(self, to_rgb):
            super().__init__()
            self.register_buffer('mean', torch.tensor([127.5]).view(-1, 1, 1), False)
            self.register_buffer('std', torch.tensor([64.]).view(-1, 1, 1), False)
            self.to_rgb = to_rgb

    def __init__(self, head='head', num_classes=5, to_rgb=True):
        super().__init__(self.Prepares(to_rgb))
        self.add_module(head, nn.Linear(3, num_classes))
        self.get_submodule(head).num_classes = num_classes
        self.get_submodule(head).loss_module = nn.CrossEntropyLoss()

    def forward(self, inputs, mode='tensor'):
        raise AssertionError('asked for nothing')


@pytest.mark.parametrize('teacher,classes,message', [
    (Classifier('classifies'), 'abcde', None),
    (Classifier('classifies'), 'abced', "model.head.loss_module has classes .* number 3 is 'd'"),
    (Classifier(to_rgb=False), 'abcde', "'swaps_channels': True.* in the student, .*False"),
    (Classifier(num_classes=6), 'abcdef', 'head has so many classes: 5 in the student, 6'),
])
def test_classifiers(teacher, classes, message):
    teacher.dataset_meta = dict(classes=list(classes))
    student = Classifier()
    heads = [TaughtHead(classifier_head(student, 'head.loss_module'))]
    if message is None:
        check_teacher(student, teacher, heads, metainfo=LETTERS)
    else:
        with pytest.raises(UsageError, match=message):
            check_teacher(student, teacher, heads, metainfo=LETTERS)
