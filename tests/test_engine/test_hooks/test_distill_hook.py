"""DistillHook: DWPose's numbers, real runs, resume, detectors, and what it refuses."""
import copy
import pickle

import pytest
import torch
from mmengine.hooks import Hook

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.hooks import DistillHook, PSKDHook
from mmskd.engine.weight_schedule import WeightSchedule
from mmskd.errors import UsageError
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

if HAS_MMPOSE:
    from tests.support import pose_runs, poses, runs
if HAS_MMDET:
    from tests.support import detectors

needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')

WIDE = {'backbone.widen_factor': 0.5, 'head.in_channels': 512}
DWPOSE = [dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
          dict(type='mmskd.SimCCDistillLoss', weight=0.1)]


@pytest.fixture(scope='module')
def retinanet():
    return detectors.build('retinanet')


def snapshot(model):
    return {name: (type(module), sorted(vars(module)), len(module._forward_hooks),
                   len(module._forward_pre_hooks), list(module._modules))
            for name, module in model.named_modules()}


# ------------------------------------------------------------------ DWPose's numbers


def dwpose_distiller(tmp_path, student, teacher):
    """MMPose's own wrapper of both models, with their weights; the teacher in eval mode."""
    from mmengine.config import Config
    from mmpose.models.distillers import DWPoseDistiller
    paths = []
    for name, options in (('student', {}), ('teacher', WIDE)):
        paths.append(str(tmp_path / f'{name}.py'))
        Config(dict(model=poses.stock_config('rtmpose', **options))).dump(paths[-1])
    methods = [[Config(dict(type='FeaLoss', name='loss_fea', use_this=True, student_channels=384,
                            teacher_channels=512, alpha_fea=7e-5))],
               [Config(dict(type='KDLoss', name='loss_logit', use_this=True, weight=0.1))]]
    distiller = DWPoseDistiller(
        teacher_cfg=paths[1], student_cfg=paths[0],
        distill_cfg=[Config(dict(methods=method)) for method in methods])
    distiller.student.load_state_dict(student.state_dict())
    distiller.teacher.load_state_dict(teacher.state_dict())
    distiller.train()
    distiller.teacher.eval()
    return distiller


@needs_mmpose
@pytest.mark.parametrize('epoch', [0, 5, 9], ids=['1', 'T/2', 'T'])
def test_losses_are_those_of_dwpose_distiller(tmp_path, epoch):
    student, teacher = poses.build('rtmpose'), poses.build('rtmpose', seed=1, **WIDE)
    distiller = dwpose_distiller(tmp_path, student, teacher)
    inputs, samples = poses.batch(student)
    hook = DistillHook(precision=None, teacher=teacher, losses=DWPOSE)
    hook.attach(student)
    hook.losses[0].projections[0].load_state_dict(distiller.distill_losses['loss_fea'].align.state_dict())
    hook.r_t = 1 - epoch / 10
    from mmengine.logging import MessageHub
    hub = MessageHub.get_current_instance()
    hub.update_info('epoch', epoch)
    hub.update_info('max_epochs', 10)

    theirs = distiller(inputs, samples, mode='loss')
    ours = student(inputs, samples, mode='loss')
    names = dict(loss_kpt='loss_kpt', loss_fea='loss_feature', loss_logit='loss_logit')
    assert {names[key] for key in theirs if 'loss' in key} == {key for key in ours if 'loss' in key}
    for key, name in names.items():
        assert torch.allclose(ours[name], theirs[key], rtol=1e-6), key
    poses.total(theirs).backward()
    poses.total(ours).backward()
    mine = {name: param.grad for name, param in student.named_parameters()}
    for name, param in distiller.student.named_parameters():
        assert torch.allclose(mine[name], param.grad, rtol=1e-4, atol=1e-6), name


@needs_mmpose
def test_the_teacher_stays_in_eval_and_invisible_keypoints_count():
    student, teacher = poses.build('rtmpose'), poses.build('rtmpose', seed=1)
    statistics = {name: value.clone() for name, value in teacher.named_buffers()}
    hook = DistillHook(precision=None, teacher=teacher,
                       losses=[dict(type='mmskd.SimCCDistillLoss')])
    hook.attach(student)
    student.train()
    inputs, samples = poses.batch(student)
    seen = [student(inputs, samples, mode='loss')['loss_logit']]
    for sample in samples:
        sample.gt_instance_labels.keypoint_weights[:] = 0
    student.eval(), student.train()
    seen.append(student(inputs, samples, mode='loss')['loss_logit'])
    assert torch.equal(*seen) and seen[0] > 0
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(statistics[name], value) for name, value in teacher.named_buffers())


@needs_mmpose
@pytest.mark.parametrize('family', ['rtmpose', 'rtmw', 'heatmap', 'mspn', 'cpm'])
def test_pose_families(family):
    """The stock losses as they were, terms that teach, and no trace afterwards."""
    student, teacher = poses.build(family).eval(), poses.build(family, seed=1)
    stock, before, keys = poses.losses(student), snapshot(student), list(student.state_dict())
    hook = DistillHook(precision=None, teacher=teacher)
    hook.attach(student)
    assert list(student.state_dict()) == keys
    taught = poses.losses(student)
    assert all(torch.equal(taught[key], value) for key, value in stock.items())
    features = {'loss_feature'} if family in poses.KL else set()  # too heavy for heatmaps
    assert set(taught) - set(stock) == {'loss_logit'} | features
    grads = torch.autograd.grad(sum(taught[key] for key in {'loss_logit'} | features), [
        param for param in student.parameters()], allow_unused=True)
    assert sum(grad is not None and grad.abs().max() > 0 for grad in grads) > len(grads) / 2
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert poses.losses(twin).keys() == stock.keys()
    hook.detach()
    assert snapshot(student) == before and list(student.state_dict()) == keys
    assert torch.equal(poses.total(poses.losses(student)), poses.total(stock))


@needs_mmpose
def test_a_teacher_that_agrees_has_nothing_to_say():
    student = poses.build('rtmpose').eval()
    hook = DistillHook(precision=None, teacher=copy.deepcopy(student), gt_weight=0., losses=DWPOSE)
    hook.attach(student)
    losses = poses.losses(student)
    assert losses['loss_feature'] == 0 and losses['loss_logit'].abs() < 1e-7
    assert losses['loss_kpt'] == 0
    poses.total(losses).backward()
    assert max(param.grad.abs().max() for param in student.parameters()
               if param.grad is not None) < 1e-3


@needs_mmpose
def test_autocast_to_bfloat16(monkeypatch):
    from mmpose.models.heads.coord_cls_heads import rtmcc_head
    # numpy has no bfloat16, so the stock head cannot measure its accuracy in it
    monkeypatch.setattr(rtmcc_head, 'to_numpy', lambda pred: [item.float().detach().numpy()
                                                              for item in pred] if isinstance(
                                                                  pred, tuple) else pred.numpy())
    student, teacher = poses.build('rtmpose'), poses.build('rtmpose', seed=1, **WIDE)
    hook = DistillHook(precision=None, teacher=teacher)
    hook.attach(student)
    exact = poses.losses(student)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = poses.losses(student)
    assert torch.allclose(losses['loss_logit'].float(), exact['loss_logit'], rtol=0.1)
    poses.total(losses).backward()
    assert all(param.grad.isfinite().all()
               for param in student.parameters()
               if param.grad is not None)


# ------------------------------------------------------------------ detectors


@needs_mmdet
@pytest.mark.parametrize('family', detectors.FAMILIES if HAS_MMDET else [])
def test_detector_families(family):
    """Every family that PS-KD supports learns features, classes and boxes, and its own losses stay.
    """
    student, teacher = detectors.build(family), detectors.build(family)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if 'bbox_head' in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    stock, before = detectors.losses(student), snapshot(student)
    hook = DistillHook(precision=None, teacher=teacher)
    hook.attach(student)
    taught = detectors.losses(student)
    if family == 'ssd':  # picks its hardest negatives by the sum of both
        assert detectors.total(taught, 'loss_cls') > detectors.total(stock, 'loss_cls')
    else:
        assert taught['loss_logit'] > 0
        assert torch.equal(detectors.total(taught, 'loss_cls'), detectors.total(stock, 'loss_cls'))
    assert set(taught) - set(stock) - {'loss_logit'} == {'loss_feature', 'loss_box'}
    assert taught['loss_feature'] >= 0 and taught['loss_box'] > 0
    head = [parameter for name, parameter in student.named_parameters() if 'bbox_head' in name]
    touched = torch.autograd.grad(taught['loss_box'], head, retain_graph=True, allow_unused=True)
    assert sum(grad.abs().sum() for grad in touched if grad is not None) > 0
    assert torch.equal(detectors.total(taught, 'bbox'), detectors.total(stock, 'bbox'))
    detectors.total(taught).backward()
    hook.detach()
    assert snapshot(student) == before


@needs_mmdet
@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn', 'gfl'])
def test_a_bigger_detector_teaches_features_at_the_neck_and_logits(family):
    wide = {'backbone.depth': 50, 'neck.in_channels': [256, 512, 1024, 2048]}
    student, teacher = detectors.build(family), detectors.build(family, **wide)
    hook = DistillHook(precision=None, teacher=teacher, losses=[
        dict(type='mmskd.FeatureDistillLoss', weight=1e-6), dict(type='mmskd.ClassDistillLoss')])
    hook.attach(student)
    losses = detectors.losses(student)
    assert losses['loss_feature'] > 0 and losses['loss_logit'].isfinite()
    assert len(hook.losses[0].projections) == 5  # one of each level


@needs_mmdet
@pytest.mark.parametrize('family', ['retinanet', 'gfl', 'faster_rcnn', 'deformable_detr'])
def test_boxes_of_the_previous_generation(family):
    """A copy agrees, and one in bfloat16 all but: its boxes are asked, and decoded in float32."""
    student = detectors.build(family).eval()
    # DETR has other losses otherwise; its norms and dropout stay as the teacher's
    student.training = True
    found = {}
    for precision in (None, 'bfloat16'):
        hook = DistillHook(copy.deepcopy(student), [dict(type='mmskd.BoxDistillLoss')],
                           precision=precision)
        hook.attach(student)
        found[precision] = detectors.losses(student)['loss_box']
        hook.detach()
    assert found[None].abs() < 1e-6 and found[None].requires_grad
    assert found['bfloat16'].abs() < 2e-2


@needs_mmdet
def test_boxes_that_mean_something_else_are_left_out_and_refused_where_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmskd.models.distill_terms.print_log',
                        lambda line, *args: said.append(line))
    student = detectors.build('retinanet')
    teacher = detectors.build('retinanet', **{'bbox_head.bbox_coder.target_stds': [.1, .1, .2, .2]})
    hook = DistillHook(teacher)
    hook.attach(student)
    assert [type(loss).__name__ for loss in hook.losses] == ['ClassDistillLoss', 'PKDLoss']
    assert 'boxes are not taught' in said[0] and 'bbox_coder' in said[0]
    hook.detach()
    before = snapshot(student)
    with pytest.raises(ValueError, match='bbox_head.bbox_coder is'):
        DistillHook(teacher, [dict(type='mmskd.BoxDistillLoss')]).attach(student)
    assert snapshot(student) == before


@needs_mmdet
def test_the_past_self_teaches_boxes():
    student = detectors.build('retinanet')
    hook = PSKDHook(loss=dict(type='mmskd.BoxDistillLoss', weight=2.), precision=None)
    hook.attach(student)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.no_grad():
        student.bbox_head.retina_reg.bias.add_(0.1)
    first = detectors.losses(student)['loss_box']
    hook.alpha_t = 0.25
    assert first > 0 and torch.allclose(detectors.losses(student)['loss_box'] * 2, first)


@needs_mmdet
def test_generations_mix_hard_and_soft_target():
    """gt_weight 1 - a and a logit loss of weight a: for a cross entropy the target's mix."""
    student, teacher = detectors.build('faster_rcnn').eval(), detectors.build('faster_rcnn').eval()
    with torch.no_grad():
        teacher.roi_head.bbox_head.fc_cls.bias.normal_()
    hook = DistillHook(precision=None, teacher=copy.deepcopy(teacher), schedule='constant',
                       gt_weight=0.7, losses=[dict(type='mmskd.ClassDistillLoss', weight=0.3)])
    hook.attach(student)
    born_again = detectors.losses(student)
    hook.detach()

    pskd = PSKDHook(form='paper')
    pskd.attach(student)
    pskd.refresh_teacher()
    pskd.teacher.load_state_dict(teacher.state_dict())
    pskd.alpha_t = 0.3
    mixed = detectors.losses(student)
    assert torch.allclose(born_again['loss_cls'] + born_again['loss_logit'], mixed['loss_cls'])
    assert torch.equal(born_again['loss_bbox'], mixed['loss_bbox'])


# ------------------------------------------------------------------ in a Runner


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return pose_runs.data(tmp_path_factory.mktemp('figures') / 'data')


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    """Config and checkpoint of a teacher that is twice as wide, of each kind."""
    folder = tmp_path_factory.mktemp('teachers')
    found = {}
    for kind in ('simcc', 'heatmap'):
        cfg = pose_runs.config(data_root, folder / kind, [], kind, length=1, base=16)
        runs.train(cfg)
        cfg.dump(str(folder / f'{kind}.py'))
        found[kind] = dict(config=str(folder / f'{kind}.py'),
                           checkpoint=str(folder / kind / 'epoch_1.pth'))
    return found


class Decay(Hook):
    """Remembers the factor of each iteration."""
    priority = 'VERY_LOW'

    def __init__(self):
        self.seen, self.losses = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(runner.message_hub.get_scalar('train/distill_weight').current())
        self.losses.append({key: float(value) for key, value in outputs.items()})


@needs_mmpose
@pytest.mark.parametrize('kind', ['simcc', 'heatmap'])
@pytest.mark.parametrize('loop,length,stop', [('epoch', 4, 'epoch_2.pth'),
                                              ('iter', 8, 'iter_6.pth')])
def test_run_and_resume(data_root, trained, tmp_path, kind, loop, length, stop):
    logits = 'mmskd.SimCCDistillLoss' if kind == 'simcc' else 'mmskd.HeatmapDistillLoss'
    hook = dict(type='mmskd.DistillHook', teacher=trained[kind],
                losses=[dict(type='mmskd.FeatureDistillLoss'), dict(type=logits)])
    whole = runs.runner(
        pose_runs.config(data_root, tmp_path / 'whole', [hook], kind, loop, length, ema=True))
    decay = Decay()
    whole.register_hook(decay)
    distill = next(hook for hook in whole.hooks if isinstance(hook, DistillHook))
    projections = []
    distill.detach = lambda: projections.append(distill.state()) or DistillHook.detach(distill)
    whole.train()

    steps = len(decay.seen) // length  # of an epoch; 1 in an iteration loop
    share = [1 - (step // steps) / length for step in range(len(decay.seen))]
    assert decay.seen == pytest.approx(share)
    assert all({'loss_feature', 'loss_logit'} <= set(row) for row in decay.losses)

    saved = load_checkpoint_safely(str(tmp_path / 'whole' / stop))
    assert saved['state_dict'].keys() == whole.model.state_dict().keys()
    projection, = [
        value for name, value in saved[DistillHook.state_key].items() if 'weight' in name
    ]
    assert projection.shape[:2] == (32, 16)
    final, = [value for name, value in projections[0].items() if 'weight' in name]
    assert not torch.equal(projection, final), 'the projection is not trained'

    cfg = pose_runs.config(data_root, tmp_path / 'resumed', [hook], kind, loop, length, ema=True)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / stop)
    runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))


@needs_mmpose
@pytest.mark.parametrize('loop, length, checkpoints', [
    ('epoch', 5, ('epoch_1.pth', 'epoch_4.pth')), ('iter', 10, ('iter_2.pth', 'iter_8.pth'))])
def test_silent_at_first_and_at_last(data_root, trained, tmp_path, loop, length, checkpoints):
    """Then the stock losses count in full, the projection rests, and a resumed run is the same."""
    begin, stop = (2, 4) if loop == 'epoch' else (3, 7)
    hook = dict(type='mmskd.DistillHook', teacher=trained['simcc'], schedule='cosine', begin=begin,
                stop=stop, gt_weight=0.5,
                losses=[dict(type='mmskd.FeatureDistillLoss'),
                        dict(type='mmskd.SimCCDistillLoss')])
    whole = runs.runner(
        pose_runs.config(data_root, tmp_path / 'whole', [hook], 'simcc', loop, length))
    seen = Decay()
    whole.register_hook(seen)
    whole.train()
    schedule, steps = WeightSchedule('', 'cosine', begin, stop), len(seen.seen) // length
    assert seen.seen == pytest.approx(
        [schedule.at(step // steps, length) for step in range(len(seen.seen))])
    speaks = [('loss_logit' in row and row['loss_logit'] > 0) for row in seen.losses]
    assert speaks == [weight > 0 for weight in seen.seen]
    assert not any('loss_feature' in row for row in seen.losses[1:begin * steps])
    assert whole.message_hub.get_scalar('train/loss_feature').current() == 0

    saved = [load_checkpoint_safely(str(tmp_path / 'whole' / name))[DistillHook.state_key]
             for name in checkpoints]
    for name in checkpoints:
        cfg = pose_runs.config(data_root, tmp_path / name, [hook], 'simcc', loop, length)
        cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / name)
        runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))
    assert any(not torch.equal(saved[0][key], saved[1][key]) for key in saved[0])


@needs_mmpose
def test_the_labels_teach_in_full_while_the_teacher_is_silent():
    student, teacher = poses.build('rtmpose').eval(), poses.build('rtmpose', seed=1)
    stock = poses.losses(student)
    hook = DistillHook(teacher=teacher, gt_weight=0., precision=None)
    hook.attach(student)
    hook.r_t = 0.
    for _ in range(2):  # asked once, then not at all
        silent = poses.losses(student)
        assert torch.equal(silent['loss_kpt'], stock['loss_kpt'])
        assert not any(
            value.requires_grad for name, value in silent.items() if name == 'loss_feature')
    assert set(silent) == set(stock)
    hook.r_t = 1.
    assert poses.losses(student)['loss_kpt'] == 0


@needs_mmpose
def test_a_config_beside_the_runs_config(data_root, trained, tmp_path, monkeypatch):
    """A relative path is relative to the config, as in ``_base_``, from whatever folder one starts.

    The config that the run dumps into its work dir, where no such path leads to the teacher, finds
    it too.
    """
    from mmengine.config import Config
    from mmengine.runner import Runner
    folder = tmp_path / 'configs'
    folder.mkdir()
    Config.fromfile(trained['simcc']['config']).dump(str(folder / 'teacher.py'))
    hook = dict(type='mmskd.DistillHook', teacher=dict(trained['simcc'], config='teacher.py'))
    pose_runs.config(data_root, tmp_path / 'run', [hook], length=1).dump(str(folder / 'student.py'))
    monkeypatch.chdir(tmp_path)
    for place in ('configs', 'run'):
        cfg = Config.fromfile(str(tmp_path / place / 'student.py'))
        cfg.experiment_name = cfg.visualizer.name = f'from {place}'
        Runner.from_cfg(cfg).train()
    assert cfg.custom_hooks[0].teacher.config == str(folder / 'teacher.py')


@needs_mmpose
def test_keypoints_in_another_order_are_refused_in_a_run(data_root, trained, tmp_path):
    checkpoint = load_checkpoint_safely(trained['heatmap']['checkpoint'])
    names = checkpoint['meta']['dataset_meta']['keypoint_id2name']
    names[0], names[1] = names[1], names[0]
    torch.save(checkpoint, tmp_path / 'other.pth')
    teacher = dict(trained['heatmap'], checkpoint=str(tmp_path / 'other.pth'))
    for hook in (dict(type='mmskd.DistillHook', teacher=teacher),
                 dict(type='mmskd.HeadDistillHook', checkpoint=teacher['checkpoint'])):
        cfg = pose_runs.config(data_root, tmp_path / hook['type'], [hook], 'heatmap', length=1,
                               base=16)
        with pytest.raises(ValueError, match='keypoints .*the same in another order: number 0'):
            runs.train(cfg)


class Oracle(torch.nn.Module):
    """A pose estimator of a user's own, which computes its answer without a parameter."""

    class Head(torch.nn.Module):

        def forward(self, features):
            return features[-1].mean(1, keepdim=True).repeat(1, 17, 1, 1)

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.AvgPool2d(4)
        self.head = self.Head()

    def extract_feat(self, images):
        return images, self.backbone(images)


@needs_mmpose
def test_a_teacher_without_parameters():
    student = poses.build('heatmap')
    hook = DistillHook(precision=None, teacher=Oracle(),
                       losses=[dict(type='mmskd.HeatmapDistillLoss')])
    hook.attach(student)
    assert poses.losses(student)['loss_logit'] > 0


@needs_mmpose
def test_testing_asks_for_no_teacher(data_root, tmp_path):
    hook = dict(type='mmskd.DistillHook', teacher=dict(config='gone.py', checkpoint='gone.pth'))
    cfg = pose_runs.config(data_root, tmp_path / 'run', [hook])
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, {}
    cfg.test_evaluator = cfg.val_evaluator
    assert 'PCK' in str(runs.runner(cfg).test())


# ------------------------------------------------------------------ refusals


@needs_mmpose
@pytest.mark.parametrize(
    'change,message',
    [({'head.out_channels': 21
       }, r"student has 17 keypoints and the teacher 21.*keypoints='by_name'"),
     ({'head.simcc_split_ratio': 3.0
       }, r"teacher's head predicts .*288.* by its codec that would be .*192"),
     ({'backbone.out_indices': (3, ), 'head.in_channels': 192, 'head.in_featuremap_size': (6, 8)
       }, r'features of the student are \[\(4, 3\)\].*teacher \[\(8, 6\)\]'), ])
def test_mismatches_are_refused_with_both_sides(change, message):
    student, teacher = poses.build('rtmpose'), poses.build('rtmpose', **change)
    before = snapshot(student)
    with pytest.raises(ValueError, match=message):
        DistillHook(teacher, [dict(type='mmskd.FeatureDistillLoss'),
                              dict(type='mmskd.SimCCDistillLoss')]).attach(student)
    assert snapshot(student) == before


@needs_mmpose
def test_features_of_another_stride_are_left_out_where_nobody_names_them(monkeypatch):
    said = []
    monkeypatch.setattr('mmskd.models.distill_terms.print_log',
                        lambda line, *args: said.append(line))
    hook = DistillHook(poses.build('rtmpose', **{
        'backbone.out_indices': (3, ), 'head.in_channels': 192, 'head.in_featuremap_size': (6, 8)}))
    hook.attach(poses.build('rtmpose'))
    assert [type(loss).__name__ for loss in hook.losses] == ['SimCCDistillLoss']
    assert 'features are not taught' in said[0] and '[(4, 3)]' in said[0]


@needs_mmpose
@pytest.mark.parametrize('family,loss,wanted', [('heatmap', 'SimCC', 'KLDiscretLoss'),
                                                ('rtmpose', 'Heatmap', 'KeypointMSELoss')])
def test_a_loss_of_another_kind_of_head_is_refused(family, loss, wanted):
    student, teacher = poses.build(family), poses.build(family, seed=1)
    before = snapshot(student)
    hook = DistillHook(precision=None, teacher=teacher,
                       losses=[dict(type=f'mmskd.{loss}DistillLoss')])
    with pytest.raises(ValueError, match=f'{loss}DistillLoss goes with {wanted}'):
        hook.attach(student)
    assert snapshot(student) == before


@needs_mmdet
@pytest.mark.parametrize('options,message', [
    ({'bbox_head.num_classes': 20}, 'bbox_head has so many classes: 80 in the student, 20'),
    ({'bbox_head.anchor_generator.scales_per_octave': 2}, 'priors a place: 9 in the student, 6'),
])
def test_detectors_that_answer_another_question_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillHook(teacher=detectors.build('retinanet', **options)).attach(
            detectors.build('retinanet'))


@needs_mmdet
@pytest.mark.parametrize('loss,options,message', [
    ('PKD', dict(heads=['bbox_hea']), "heads=.'bbox_hea'.*features alone. Leave heads out"),
    ('PKD', dict(gt_weight=0.5), 'gt_weight=0.5 is for .*no loss of classes.*Leave gt_weight out'),
    ('BoxDistill', dict(gt_weight=0), 'gt_weight=0 is for .*mmskd.ClassDistillLoss')])
def test_options_that_would_do_nothing_or_leave_the_classes_untaught(retinanet, loss, options,
                                                                     message):
    hook = DistillHook(copy.deepcopy(retinanet), [dict(type=f'mmskd.{loss}Loss')], **options)
    before = snapshot(retinanet)
    with pytest.raises(UsageError, match=f'^DistillHook: {message}'):
        hook.attach(retinanet)
    assert snapshot(retinanet) == before


@needs_mmdet
def test_a_teacher_of_another_family_is_refused():
    with pytest.raises(ValueError, match='teacher .RetinaNet. has no roi_head'):
        DistillHook(teacher=detectors.build('retinanet')).attach(detectors.build('faster_rcnn'))


@needs_mmpose
def test_one_teacher_at_a_time():
    model = poses.build('heatmap')
    PSKDHook().attach(model)
    with pytest.raises(RuntimeError, match='another hook of mmskd'):
        DistillHook(teacher=poses.build('heatmap')).attach(model)


@pytest.mark.parametrize(
    'options,message',
    [(dict(teacher=dict(config='a.py')), 'must be dict.config=..., checkpoint=....'),
     (dict(teacher=dict(config='a.py', checkpoint='b'),
           gt_weight=-1), 'gt_weight must be a number, at least 0'),
     (dict(teacher=dict(config='a.py', checkpoint='b'),
           losses=[]), 'losses must be a list of dict.*at least one'), ])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DistillHook(**options)


@needs_mmpose
def test_wrong_files_are_named(trained, tmp_path):
    student = poses.build('heatmap')
    with pytest.raises(FileNotFoundError, match='no config file gone.py'):
        DistillHook(teacher=dict(config='gone.py', checkpoint='x.pth')).attach(student)
    config = trained['simcc']['config']
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        DistillHook(teacher=dict(config=config, checkpoint='gone.pth')).attach(student)
    with pytest.raises(ValueError, match='heatmap.epoch_1.pth does not fit .* lacks'):
        DistillHook(teacher=dict(config=config, checkpoint=trained['heatmap']
                                 ['checkpoint'])).attach(student)
    torch.save(dict(state_dict={'student.head.x': torch.zeros(1)}), tmp_path / 'wrapped.pth')
    with pytest.raises(ValueError, match='convert_dwpose_checkpoint.py makes a stock checkpoint'):
        DistillHook(teacher=dict(config=config, checkpoint=str(tmp_path
                                                               / 'wrapped.pth'))).attach(student)
