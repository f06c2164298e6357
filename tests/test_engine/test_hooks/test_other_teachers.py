"""Teachers with other keypoints, bins, sizes: stock models of MMPose with random weights, both
stages.
"""
import copy
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

pytest.importorskip('mmpose')

from mmskd.engine.hooks import DistillHook, HeadDistillHook, NKDHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.teachers.metainfo import given_metainfo  # noqa: E402
from mmskd.models.teachers.translated import TranslatedTeacher  # noqa: E402
from tests.support import pose_runs, poses  # noqa: E402

DATA = os.environ.get('MMSKD_TEST_DATA')
WHOLE = 'mmpose::wholebody_2d_keypoint/rtmpose/coco-wholebody'
LARGE = f'{WHOLE}/rtmpose-l_8xb32-270e_coco-wholebody-384x288.py'
NARROW = {'backbone.deepen_factor': 0.167, 'backbone.widen_factor': 0.25, 'head.in_channels': 256}
REAL = {
    'head.input_size': (192, 256),
    'head.in_featuremap_size': (6, 8),
    'head.decoder.input_size': (192, 256)
}
EIGHT = ('snout', 'left_eye', 'right_eye', 'left_wrist', 'right_wrist', 'left_ankle', 'right_ankle',
         'tail')


@cache
def metainfo(name):
    return given_metainfo('test', f'configs/_base_/datasets/{name}.py')


def student(family='rtmpose', names='coco', **options):
    model = poses.build(family, **options)
    model.dataset_meta = metainfo(names) if isinstance(names, str) else dict(
        keypoint_id2name=dict(enumerate(names)))
    return model


def files(folder, family, names, seed=1, **options):
    """A config and a checkpoint of a stock model with random weights."""
    model = poses.build(family, seed, **options)
    paths = {
        key: str(folder / f'teacher{seed}.{end}')
        for key, end in (('config', 'py'), ('checkpoint', 'pth'))
    }
    Config(dict(model=poses.stock_config(family, **options),
                default_scope='mmpose')).dump(paths['config'])
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(metainfo(names)))),
               paths['checkpoint'])
    return paths


def attached(model, **options):
    hook = DistillHook(**options)
    hook.attach(model)
    return hook


def assert_settled(model, hook, data):
    """Where the student says what the teacher says in its bins, nothing is to be learnt."""
    answers, _ = hook._teacher(data[0])
    leaves = [answer.clone().requires_grad_() if torch.is_tensor(answer) else
              tuple(axis.clone().requires_grad_() for axis in answer) for answer in answers]
    head = hook.heads_taught[0].head
    stock = head.forward
    head.forward = lambda feats: leaves if isinstance(stock(feats), list) else leaves[0]
    try:
        losses = poses.losses(model, data)
    finally:
        del head.forward
    losses['loss_logit'].backward()
    for leaf in leaves:
        for axis in [leaf] if torch.is_tensor(leaf) else leaf:
            assert axis.grad.abs().max() < 1e-6


CASES = {
    '133 to 17, by name': (dict(), ('rtmw', 'coco_wholebody', {}), 'by_name', 17),
    '133 to 8, by name': (dict(
        names=EIGHT, **{'head.out_channels': 8}), ('rtmw', 'coco_wholebody', {}), 'by_name', 6),
    '133 to 8, by dict': (dict(names=EIGHT,
                               **{'head.out_channels': 8}), ('rtmw', 'coco_wholebody', {}), {
                                   'snout': 'nose',
                                   3: 91,
                                   'tail': 22
                               }, 3),
    '384x288 to 256x192': (REAL, (LARGE, 'coco_wholebody', NARROW), 'by_name', 17),
    'HRNet to RTMPose': (dict(), ('hrnet', 'coco', {}), None, 17),
    'RTMPose to HRNet': (dict(family='hrnet'), ('rtmpose', 'coco', {}), 'by_name', 17),
    'HRNet to Hourglass, larger': (dict(family='hourglass'), ('hrnet', 'coco', {}), 'by_name', 17),
    'other values': (dict(), ('rtmpose', 'coco', {
        'data_preprocessor.mean': [0., 0., 0.],
        'data_preprocessor.bgr_to_rgb': False
    }), None, 17),
}


@pytest.mark.parametrize('name', CASES)
def test_stock_models(name, tmp_path):
    mine, (family, names, options), keypoints, taught = CASES[name]
    model = student(**mine).eval()
    data = poses.batch(model)
    stock = poses.losses(model, data)
    teacher = files(tmp_path, family, names, **options)
    hook = attached(model, teacher=dict(teacher, keypoints=keypoints))
    assert isinstance(hook._teacher, TranslatedTeacher)
    losses = poses.losses(model, data)
    new = {key: losses[key] for key in set(losses) - set(stock)}
    strides_agree = family in ('rtmpose', 'rtmw', LARGE) and 'family' not in mine
    assert set(new) == {'loss_logit', *['loss_feature'] * strides_agree}
    assert all(value.isfinite() and value > 0 for value in new.values())
    assert all(torch.equal(losses[key], value) for key, value in stock.items())
    sum(new.values()).backward()
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads) and any(grad.abs().max() > 0
                                                                          for grad in grads)
    assert f'teaches {taught} of {model.head.out_channels} keypoints' in hook._teacher.describe()[0]
    assert_settled(model, hook, data)
    hook.detach()
    assert poses.losses(model, data).keys() == stock.keys()


def test_each_of_133_moves_the_keypoint_that_learns_from_it(tmp_path):
    model = student()
    hook = attached(model, teacher=dict(files(tmp_path, 'rtmw', 'coco_wholebody'),
                                        keypoints='by_name'), precision=None)
    whole = hook._teacher.teachers[0].model
    whole.extract_feat = lambda images: images
    quiet = torch.zeros(1, 133, 192), torch.zeros(1, 133, 256)
    images = torch.zeros(1, 3, 128, 96)

    def moved(fires):
        spoken = tuple(axis.clone() for axis in quiet)
        for axis in spoken:
            axis[0, fires, 77] = 50.
        whole.head.forward = lambda feats: spoken
        (answer, ), _ = hook._teacher(images)
        return [index for index in range(17) if answer[0][0, index].argmax() == 77 ==
                answer[1][0, index].argmax()]

    assert [moved(index) for index in range(17)] == [[index] for index in range(17)]
    assert not any(moved(index) for index in (17, 60, 91, 132))


def test_untaught_keypoints_learn_from_labels_alone(tmp_path):
    model = student(names=EIGHT, **{'head.out_channels': 8})
    teacher = dict(files(tmp_path, 'rtmw', 'coco_wholebody'), keypoints='by_name')
    hook = attached(model, teacher=teacher)
    data = poses.batch(model)
    seen = {}
    model.head.loss_module.register_forward_pre_hook(lambda module, args: seen.update(pred=args[0]))
    losses = poses.losses(model, data)
    for key, taught in (('loss_kpt', range(1, 8)), ('loss_logit', range(1, 7))):
        grads = torch.autograd.grad(losses[key], seen['pred'], retain_graph=True)
        # The labels' first keypoint is invisible
        moved = [
            index for index in range(8) if any(grad[:, index].abs().max() > 0 for grad in grads)
        ]
        assert moved == list(taught), key
    hook.detach()
    with pytest.raises(UsageError,
                       match='with gt_weight=0 nothing would teach 0 snout, 7 tail of the student'):
        attached(model, teacher=teacher, gt_weight=0.)


def test_ensemble_flip_and_confidence_in_one(tmp_path):
    model = student()
    teachers = [dict(files(tmp_path, 'rtmw', 'coco_wholebody'), keypoints='by_name', flip=True),
                dict(files(tmp_path, 'hrnet', 'coco', seed=2), weight_by='confidence')]
    hook = attached(model, teacher=teachers)
    data = poses.batch(model)
    assert poses.losses(model, data)['loss_logit'] > 0
    assert_settled(model, hook, data)
    assert hook.teacher == teachers and 'teacher 2 of 2 teaches 17' in ' '.join(
        hook._teacher.describe())
    hook.detach()
    features = [dict(type='mmskd.FeatureDistillLoss'), dict(type='mmskd.SimCCDistillLoss')]
    with pytest.raises(UsageError, match='features are compared with those of one model of MMPose'):
        attached(model, teacher=teachers, losses=features)


def test_features_of_a_teacher_with_other_keypoints(tmp_path):
    """They are of the same crop, so they can be compared all the same."""
    model = student()
    config = files(tmp_path, 'rtmpose', 'coco_wholebody', **{'head.out_channels': 133})
    hook = attached(model, teacher=dict(config, keypoints='by_name', flip=True), losses=[
        dict(type='mmskd.FeatureDistillLoss'), dict(type='mmskd.SimCCDistillLoss')])
    data = poses.batch(model)
    losses = poses.losses(model, data)
    inner, = hook._teacher.teachers
    with torch.no_grad():
        mine, theirs = (side.extract_feat(data[0])[-1] for side in (model, inner.model))
    assert losses['loss_feature'] > 0
    assert hook.losses[0](mine, theirs).item() == pytest.approx(losses['loss_feature'].item(),
                                                                rel=1e-2)


@pytest.mark.parametrize('loss', ['FeatureDistillLoss', 'PKDLoss'])
def test_features_of_a_larger_crop_are_scaled(loss, tmp_path):
    model = student(**{'head.input_size': (64, 96), 'head.in_featuremap_size': (2, 3),
                       'head.decoder.input_size': (64, 96)})
    hook = attached(model, teacher=files(tmp_path, 'rtmpose', 'coco', seed=2), precision=None,
                    losses=[dict(type=f'mmskd.{loss}'), dict(type='mmskd.SimCCDistillLoss')])
    images, samples = poses.batch(model)
    images = images[..., :96, :64]
    found = poses.losses(model, (images, samples))['loss_feature']
    view, = hook._teacher._views
    with torch.no_grad():
        mine = model.extract_feat(images)[-1]
        theirs = view.teacher.model.extract_feat(view.crops(images))[-1]
    assert mine.shape[-2:] == (3, 2) and theirs.shape[-2:] == (4, 3)
    scaled = torch.nn.functional.interpolate(theirs, (3, 2), mode='bilinear', antialias=True)
    assert torch.equal(hook.losses[0](mine, theirs), hook.losses[0](mine, scaled))
    assert torch.equal(found, hook.losses[0](mine, scaled)) and found > 0


@pytest.mark.parametrize('change,message',
                         [(dict(keypoints='by_names'), "teacher.keypoints must be 'by_name'"),
                          (dict(flip=1), 'flip must be True or'),
                          (dict(weight_by='score'), "weight_by must be 'confidence' or None"),
                          (dict(keypoint='by_name'), 'teacher must be dict.config=.*got the keys')])
@pytest.mark.parametrize('several', [False, True])
def test_options_are_checked(change, message, several):
    teacher = dict(config='a.py', checkpoint='b.pth', **change)
    with pytest.raises(UsageError, match=message):
        DistillHook(teacher=[teacher] if several else teacher)


def test_what_only_keypoints_have_is_refused_elsewhere(tmp_path):
    with pytest.raises(UsageError, match='teacher is an empty list'):
        DistillHook(teacher=[])
    model = student()
    teacher = dict(files(tmp_path, 'rtmpose', 'coco'), flip=True)
    with pytest.raises(UsageError, match='teacher.flip goes with losses of predictions'):
        attached(model, teacher=teacher, losses=[dict(type='mmskd.FeatureDistillLoss')])
    with pytest.raises(UsageError,
                       match="teacher of 3|17 keypoints.*keypoints='by_name'|and the teacher 133"):
        attached(model, teacher=files(tmp_path, 'rtmw', 'coco_wholebody', seed=2))
    with pytest.raises(UsageError, match='codec MegviiHeatmap, whose answers are not brought'):
        attached(model, teacher=dict(files(tmp_path, 'mspn', 'coco', seed=3), keypoints='by_name'))
    classifier = torch.nn.Linear(2, 2)
    assert isinstance(NKDHook(teacher=classifier).teacher, torch.nn.Linear)


# ------------------------------------------------------------------ DSNT


@pytest.mark.parametrize('width, height', [(256, 256), (128, 192)])  # of the images
def test_dsnt_learns_the_teachers_heatmaps(width, height):
    from mmengine.structures import InstanceData, PixelData
    from mmpose.structures import PoseDataSample
    config = f'{poses.BODY}/integral_regression/coco/ipr_res50_dsnt-8xb64-210e_coco-256x256.py'
    maps = (width // 4, height // 4)
    small = {**poses.R18, 'head.deconv_out_channels': (8, 8, 8),
             'head.in_featuremap_size': (width // 32, height // 32),
             'head.decoder.input_size': (width, height), 'head.decoder.heatmap_size': maps}
    model, teacher = (poses.build(config, seed, **small).eval() for seed in (0, 1))
    sample = PoseDataSample(
        gt_instance_labels=InstanceData(keypoint_labels=torch.rand(1, 17, 2),
                                        keypoint_weights=torch.ones(1, 17)),
        gt_fields=PixelData(heatmaps=torch.rand(17, width * height // 16).softmax(1).view(
            17, *reversed(maps))))
    data = torch.randn(1, 3, height, width), [sample]
    stock = poses.losses(model, data)
    hook = attached(model, teacher=teacher, precision=None)
    losses = poses.losses(model, data)
    assert set(losses) - set(stock) == {'loss_logit'} and torch.equal(losses['loss_kpt'],
                                                                      stock['loss_kpt'])
    with torch.no_grad():
        mine, theirs = (side.head(side.extract_feat(data[0]))[1] for side in (model, teacher))
    expected = (theirs * (theirs.log() - mine.log())).sum((2, 3)).mean()
    assert losses['loss_logit'].item() == pytest.approx(0.1 * expected.item(), rel=1e-3)
    hook.detach()
    attached(model, teacher=copy.deepcopy(model), precision=None)
    assert poses.losses(model, data)['loss_logit'].abs() < 1e-6


# ------------------------------------------------------------------ stage 2


@pytest.mark.parametrize('family', ['rtmpose', 'heatmap'])
def test_a_trained_head_with_other_keypoints_teaches_a_fresh_one(family, tmp_path):
    model = student(family, names=EIGHT, **{'head.out_channels': 8})
    teacher = files(tmp_path, family, 'coco_wholebody', **{'head.out_channels': 133})
    mapping = {**{name: name for name in EIGHT[1:7]}, 'snout': 'nose'}
    with pytest.raises(UsageError, match='does not know 7 tail .* Set gt_weight above 0'):
        HeadDistillHook(teacher=dict(teacher, keypoints=mapping)).attach(model)
    hook = HeadDistillHook(teacher=dict(teacher, keypoints=mapping), gt_weight=1.)
    hook.attach(model)
    trained = torch.load(teacher['checkpoint'], weights_only=False)['state_dict']
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items()
               if key.startswith('backbone.'))
    seen = {}
    model.head.loss_module.register_forward_pre_hook(lambda module, args: seen.update(pred=args[0]))
    losses = poses.losses(model)
    pred = seen['pred'] if isinstance(seen['pred'], tuple) else [seen['pred']]
    grads = torch.autograd.grad(losses['loss_logit'], pred)
    assert [index for index in range(8)
            if any(grad[:, index].abs().max() > 0 for grad in grads)] == list(range(7))
    assert sum('<-' in line for line in hook.announce(None)) == 8
    hook.detach()


def test_stage_2_shares_the_backbone(tmp_path):
    other = files(tmp_path, 'rtmpose', 'coco_wholebody', **{'head.out_channels': 133, **NARROW})
    with pytest.raises(
            UsageError,
            match='backbone and neck of the teacher are not the student.s: backbone.stem'):
        HeadDistillHook(teacher=dict(other, keypoints='by_name')).attach(student())
    for options, message in ((dict(checkpoint='a', teacher=other), 'either checkpoint or teacher'),
                             (dict(teacher=dict(other, flip=True)),
                              'features have no mirror image'), (dict(
                                  teacher=other,
                                  reinit_head=False), 'starts anew'), ({}, 'checkpoint must be')):
        with pytest.raises(UsageError, match=message):
            HeadDistillHook(**options)


# ------------------------------------------------------------------ real images


@pytest.mark.parametrize('stage', [1, 2])
def test_a_run_on_coco_wholebody(stage, tmp_path):
    if not DATA or not Path(DATA, 'coco_wholebody_tiny').is_dir():
        pytest.skip('MMSKD_TEST_DATA has no coco_wholebody_tiny')
    family = 'rtmw' if stage == 1 else 'rtmpose'
    options = {} if stage == 1 else {'head.out_channels': 133}
    teacher = dict(files(tmp_path, family, 'coco_wholebody', **options), keypoints='by_name')
    teacher['config'] = os.path.basename(teacher['config'])  # beside the config of the run
    hook = dict(type=f'mmskd.{"" if stage == 1 else "Head"}DistillHook', teacher=teacher)
    model_cfg = poses.stock_config('rtmpose')
    cfg = pose_runs.config(tmp_path, tmp_path / 'run', [hook], length=1, model_cfg=model_cfg)
    loader = cfg.train_dataloader
    loader.batch_size = 2
    codec = model_cfg.head.decoder
    loader.dataset = dict(
        type='CocoDataset', data_root=str(Path(DATA, 'coco_wholebody_tiny')), data_mode='topdown',
        ann_file='annotations/person_keypoints.json', data_prefix=dict(img='images/'), indices=4,
        pipeline=[
            dict(type='LoadImage'),
            dict(type='GetBBoxCenterScale'),
            dict(type='TopdownAffine', input_size=codec['input_size']),
            dict(type='GenerateTarget', encoder=codec),
            dict(type='PackPoseInputs')
        ])
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.train_cfg.pop('val_interval')
    cfg.log_level = 'INFO'
    (tmp_path / 'student.py').touch()
    runner = Runner.from_cfg(Config(cfg.to_dict(), filename=str(tmp_path / 'student.py')))
    runner.train()
    assert runner.iter == 2
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert 'teacher teaches 17 of 17 keypoints' in log
    assert re.search('16 right_ankle +<- 16 right_ankle', log)
    assert runner.message_hub.get_scalar('train/loss_logit').current() > 0
    dumped = Config.fromfile(str(tmp_path / 'run' / 'student.py'))
    assert os.path.isabs(dumped.custom_hooks[0].teacher.config)
    saved = torch.load(str(tmp_path / 'run' / 'epoch_1.pth'), weights_only=False)
    assert saved['state_dict'].keys() == poses.build('rtmpose').state_dict().keys()


def test_a_translated_teacher_is_compiled_too(tmp_path):
    """Its model of MMPose answers in bfloat16; what becomes of the answers is float32, and close.
    """
    model = student().eval()
    data = poses.batch(model)
    terms = []
    for precision in (None, 'bfloat16'):
        hook = attached(
            model, teacher=dict(files(tmp_path, 'rtmw', 'coco_wholebody'), keypoints='by_name'),
            precision=precision)
        terms.append(poses.losses(model, data)['loss_logit'])
        asked = hook._teacher.teachers[0].asked
        assert {parameter.dtype for parameter in asked.backbone.parameters()} == (
            {torch.float32} if precision is None else {torch.float32, torch.bfloat16})
        hook.detach()
    assert 0 < (terms[0] - terms[1]).abs() < 0.05 * terms[0]


def test_the_obstacle_is_named_and_not_what_would_be_converted():
    """Another mean alone would be no obstacle: grey images and a codec without one bump are."""
    other = {'data_preprocessor.mean': [127.5], 'data_preprocessor.std': [127.5]}
    grey = poses.build('heatmap', 1, **other, **{
        'backbone.in_channels': 1,
        'data_preprocessor.bgr_to_rgb': False
    })
    with pytest.raises(UsageError, match='so many channels: 3 in the student, 1 in the teacher'):
        attached(student(), teacher=grey.eval())
    mspn = poses.build('mspn', 1, **other).eval()
    with pytest.raises(UsageError, match='and that is not converted: .*MegviiHeatmap') as refusal:
        attached(student(), teacher=mspn)
    assert '\n' not in str(refusal.value)
