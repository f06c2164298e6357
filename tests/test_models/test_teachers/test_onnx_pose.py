"""Teachers in .onnx files: the terms of the same model in PyTorch, and what is refused."""
import copy
import warnings

import pytest
import torch

pytest.importorskip('mmpose')
pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')

from mmskd.engine.hooks import DistillHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.teachers import onnx_pose  # noqa: E402
from mmskd.models.teachers.onnx_pose import OnnxPoseTeacher  # noqa: E402
from mmskd.models.teachers.pose_teacher import MMPoseTeacher  # noqa: E402
from tests.support import poses  # noqa: E402

COCO = 'configs/_base_/datasets/coco.py'


class Exported(torch.nn.Module):
    """What a deployed RTMPose is: from the images to the bins."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.head.forward(self.model.extract_feat(images))


@pytest.fixture(scope='module')
def teacher():
    return poses.build('rtmpose', seed=1).eval()


@pytest.fixture(scope='module')
def file(teacher, tmp_path_factory):
    return export(teacher, tmp_path_factory.mktemp('onnx') / 'rtmpose.onnx')


def export(model, path, batch=None):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            Exported(model).eval(), torch.zeros(batch or 2, 3, 128, 96), str(path),
            input_names=['input'], output_names=['simcc_x',
                                                 'simcc_y'], dynamo=False, dynamic_axes=None
            if batch else {name: {
                0: 'batch'
            } for name in ('input', 'simcc_x', 'simcc_y')})
    return str(path)


def test_terms_are_those_of_the_model_in_pytorch(teacher, file):
    student = poses.build('rtmpose').eval()
    data = poses.batch(student)
    losses = []
    for given in (teacher, dict(type='mmskd.OnnxPoseTeacher', file=file, beta=10., metainfo=COCO)):
        hook = DistillHook(teacher=given, losses=[dict(type='mmskd.SimCCDistillLoss')],
                           precision=None)
        hook.attach(student)
        losses.append(poses.losses(student, data)['loss_logit'])
        hook.detach()
    assert losses[0] > 0 and torch.allclose(*losses, rtol=1e-4, atol=1e-6)


def test_the_file_says_sizes_and_keypoints(teacher, file):
    found, known = OnnxPoseTeacher(file, beta=10., sigma=(4.9, 5.66)), MMPoseTeacher(teacher)
    for one, other in zip(found.images(), known.images()):
        assert one == pytest.approx(other, rel=1e-5)
    mine, theirs = found.answers(), known.answers()
    assert (mine.keypoints, mine.beta) == (theirs.keypoints, theirs.beta) == (17, 10.)
    for one, other in zip(mine.axes, theirs.axes):
        assert one == pytest.approx(other)
    assert OnnxPoseTeacher(file, beta=1).answers().axes[0].variance is None
    again = copy.deepcopy(found)
    images = torch.randn(3, 3, 128, 96)
    assert all(torch.equal(*pair) for pair in zip(found(images), again(images)))


def test_a_file_of_one_batch_size(teacher, tmp_path):
    found = OnnxPoseTeacher(export(teacher, tmp_path / 'one.onnx', batch=2), beta=10.)
    images = torch.randn(3, 3, 128, 96)
    with torch.no_grad():
        assert all(torch.allclose(mine, theirs, atol=1e-4)
                   for mine, theirs in zip(found(images), Exported(teacher).eval()(images)))


def graph(tmp_path, node, shape=('N', 3, 128, 96), outputs=('simcc_x', 'simcc_y')):
    """A file with one node."""
    make = onnx.helper
    value = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    given = make.make_tensor_value_info('input', onnx.TensorProto.FLOAT, shape)
    imports = [make.make_opsetid('', 17), make.make_opsetid('my.own', 1)]
    path = str(tmp_path / 'made.onnx')
    onnx.save(
        make.make_model(make.make_graph(node, 'made', [given], value), opset_imports=imports,
                        ir_version=8), path)
    return path


def node(kind, *outputs, **options):
    return onnx.helper.make_node(kind, ['input'], list(outputs or ('simcc_x', 'simcc_y')),
                                 **options)


@pytest.mark.parametrize('made,message', [
    (dict(node=[node('Anything', domain='my.own')]),
     'is no .onnx file that onnxruntime runs: .*Anything'),
    (dict(node=[node('Identity', 'simcc_x'), node('Abs', 'simcc_y')],
          shape=('N', 3, 'H', 'W')), 'takes images of any size'),
    (dict(node=[node('Identity', 'a'), node('Relu', 'b'),
                node('Abs', 'c')], outputs=('a', 'b', 'c')),
     'has the outputs a, b, c; a SimCC model has simcc_x and simcc_y'),
    (dict(
        node=[node('Identity', 'simcc_x'), node('Identity', 'simcc_y')]),
     'have the shapes .*N, keypoints, bins'),
    (dict(node=[node('Identity', 'simcc_x'),
                node('Identity', 'simcc_y')], shape=('N', 4)), 'takes one tensor'),
], ids=['foreign operator', 'any size', 'outputs', 'shapes', 'input'])
def test_other_files_are_refused_in_a_line(tmp_path, made, message):
    with pytest.raises(UsageError, match=message) as refusal:
        OnnxPoseTeacher(graph(tmp_path, **made), beta=10.)
    assert '\n' not in str(refusal.value)


def answering(tmp_path, *shapes, batch=None, softmax=False):
    """A file with noise of these shapes (without the batch) for each image."""
    make, nodes, weights = onnx.helper, [], []

    def number(name, values, kind=onnx.TensorProto.INT64):
        weights.append(make.make_tensor(name, kind, [len(values)], values))
        return name

    for name, shape in zip(('simcc_x', 'simcc_y'), shapes):
        # The batch is that of the images, or one that is fixed within
        size = [
            make.make_node('Shape', ['input'], [f'{name}_all']),
            make.make_node(
                'Slice',
                [f'{name}_all', number(f'{name}_0', [0]),
                 number(f'{name}_1', [1])], [f'{name}_batch'])
        ]
        first = f'{name}_batch' if batch is None else number(f'{name}_fixed', [batch])
        nodes += [
            *size,
            make.make_node('Concat', [first, number(f'{name}_rest', shape)], [f'{name}_size'],
                           axis=0),
            make.make_node('Expand',
                           [number(f'{name}_value', [.5], onnx.TensorProto.FLOAT), f'{name}_size'],
                           [f'{name}_flat'])
        ]
        nodes.append(make.make_node('Softmax' if softmax else 'Identity', [f'{name}_flat'], [name]))
    value = [
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ('simcc_x', 'simcc_y')
    ]
    given = make.make_tensor_value_info('input', onnx.TensorProto.FLOAT, ('N', 3, 128, 96))
    path = str(tmp_path / 'answers.onnx')
    onnx.save(make.make_model(make.make_graph(nodes, 'answers', [given], value, weights),
                              opset_imports=[make.make_opsetid('', 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    'shapes,options,message',
    [(((4, 256), (4, 192)), {},
      '256 and 192 bins for images of 96x128.*swapped: the bins of x must come first'),
     (((4, 192), (4, 300)), {}, 'as many for a pixel of x as of y. Write a PoseTeacher'),
     (((840, 4), (840, 80)), {}, '4 and 80 bins'),
     (((4, 192), (4, 256)), dict(softmax=True), 'are probabilities, which add up to 1'),
     (((4, 192), (4, 256)), dict(batch=1), 'have the shapes'), ],
    ids=['swapped', 'bins', 'a detector', 'softmax inside', 'a batch of one inside'])
def test_answers_that_are_no_logits_of_x_and_y(tmp_path, shapes, options, message):
    with pytest.raises(UsageError, match=message) as refusal:
        OnnxPoseTeacher(answering(tmp_path, *shapes, **options), beta=10.)
    assert '\n' not in str(refusal.value)


def test_what_is_subtracted_and_how_wide_labels_are(tmp_path):
    file = answering(tmp_path, (4, 192), (4, 256))
    raw = OnnxPoseTeacher(file, beta=1., mean=[0, 0, 0], std=[1, 1, 1], sigma=[4, 5]).images()
    assert (raw.mean, raw.std) == ([0., 0., 0.], [1., 1., 1.])
    for options, message in ((dict(std=[.229, .224, .225]),
                              'values from 0 to 255.*multiply both by 255'),
                             (dict(mean=127.5), 'mean must be a list of 3 numbers'),
                             (dict(sigma=6.), 'sigma must be a'),
                             (dict(sigma=[6., 0]), r'sigma\[1\] must be a number, above 0'),
                             (dict(std=[1, 0, 1]), r'std\[1\] must be')):
        with pytest.raises(UsageError, match=message):
            OnnxPoseTeacher(file, beta=1., **options)


def test_what_is_missing_is_named(file, tmp_path, monkeypatch):
    with pytest.raises(UsageError,
                       match='beta is not given.* 10 for RTMPose and DWPose, 1 for RTMW'):
        OnnxPoseTeacher(file)
    with pytest.raises(FileNotFoundError, match='no file gone.onnx'):
        OnnxPoseTeacher('gone.onnx', beta=1.)
    (tmp_path / 'text.onnx').write_text('no model')
    with pytest.raises(UsageError, match='is no .onnx file'):
        OnnxPoseTeacher(str(tmp_path / 'text.onnx'), beta=1.)
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    with pytest.raises(UsageError, match='needs the package onnxruntime.*pip install onnxruntime'):
        onnx_pose._onnxruntime()
