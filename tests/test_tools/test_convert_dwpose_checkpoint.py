import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint

from mmskd.checkpoint import load_checkpoint_safely

pytest.importorskip('mmpose')

MODEL = """
default_scope = 'mmpose'
codec = dict(
    type='SimCCLabel', input_size=(64, 64), sigma=(2., 2.), simcc_split_ratio=2.0,
    normalize=False, use_dark=False)
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3),
    backbone=dict(
        type='CSPNeXt', arch='P5', expand_ratio=0.5, deepen_factor=0.167, widen_factor={width},
        out_indices=(2, 3, 4), norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU')),
    neck=dict(
        type='CSPNeXtPAFPN', in_channels=[{c3}, {c4}, {c5}], out_channels=None, num_csp_blocks=1,
        norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU', inplace=True)),
    head=dict(
        type='RTMCCHead', in_channels={c5}, out_channels=13, input_size=codec['input_size'],
        in_featuremap_size=(2, 2), simcc_split_ratio=codec['simcc_split_ratio'],
        final_layer_kernel_size=3,
        gau_cfg=dict(
            hidden_dims=16, s=8, expansion_factor=2, dropout_rate=0., drop_path=0., act_fn='SiLU',
            use_rel_bias=False, pos_enc=False),
        loss=dict(type='KLDiscretLoss', use_target_weight=True, beta=10., label_softmax=True),
        decoder=codec),
    test_cfg=dict(flip_test=False))
"""
DISTILLATION = """
_base_ = 'tiny_pose.py'
codec = dict(
    type='SimCCLabel', input_size=(64, 64), sigma=(2., 2.), simcc_split_ratio=2.0,
    normalize=False, use_dark=False)
before = [
    dict(type='LoadImage'), dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=(64, 64))
]
train_dataloader = dict(dataset=dict(pipeline=[
    *before, dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')]))
model = dict(
    _delete_=True, type='DWPoseDistiller', teacher_cfg='{teacher}.py', student_cfg='small.py',
    data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3),
    {more})
"""
LOGIT = "dict(type='KDLoss', name='loss_logit', use_this=True, weight=1.0)"
FEATURE = ("dict(type='FeaLoss', name='loss_fea', use_this=True, student_channels=64, "
           'teacher_channels=128, alpha_fea=7e-5)')
STAGE1 = f'distill_cfg=[dict(methods=[{FEATURE}]), dict(methods=[{LOGIT}])]'
STAGE2 = (f"distill_cfg=[dict(methods=[{LOGIT}])], two_dis=True, "
          "teacher_pretrained='stage1.pth', train_cfg=dict(max_epochs=1)")


def write_models(folder):
    for name, width in (('small', 1 / 16), ('large', 1 / 8)):
        channels = {f'c{i}': int(2**(i + 5) * width) for i in (3, 4, 5)}
        (folder / f'{name}.py').write_text(MODEL.format(width=width, **channels))


def randomize(model):
    """No two parts alike, so that a part that is taken from the wrong place is seen."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value), alpha=0.05)
    return model


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Makes a folder with small.py and large.py the working directory."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def distiller(teacher, **settings):
    from mmpose.models.distillers import DWPoseDistiller
    with DefaultScope.overwrite_default_scope('mmpose'):
        return DWPoseDistiller(f'{teacher}.py', 'small.py', **settings)


def save(model, path, **meta):
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), path)


def stock(path):
    """The stock model with the weights of a file."""
    from mmpose.models import build_pose_estimator
    with DefaultScope.overwrite_default_scope('mmpose'):
        model = build_pose_estimator(Config.fromfile('small.py').model)
    checkpoint = torch.load(path, weights_only=True)  # no list of allowed classes
    assert set(checkpoint) == {'meta', 'state_dict'} and 'cfg' not in checkpoint['meta']
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    return model.eval()


def predict(backbone_of, head_of):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = torch.cat(head_of.eval().head(backbone_of.eval().extract_feat(images)), dim=1)
    assert out.isfinite().all() and out.std() > 0
    return out


# ------------------------------------------------------------------ what is taken


def test_stage1_is_the_student(models, run_tool):
    model = randomize(distiller('large'))
    save(model, 'in.pth', epoch=3)
    run_tool('convert_dwpose_checkpoint', 'in.pth', 'new/out.pth')
    converted = stock('new/out.pth')
    assert torch.equal(predict(converted, converted), predict(model.student, model.student))
    assert torch.load('new/out.pth', weights_only=True)['meta']['epoch'] == 3


def test_stage2_is_the_head_on_the_body_of_the_teacher(models, run_tool):
    model = randomize(distiller('small', two_dis=True))
    save(model, 'in.pth')
    run_tool('convert_dwpose_checkpoint', 'in.pth', 'out.pth', '--stage', '2')
    converted = stock('out.pth')
    assert torch.equal(predict(converted, converted), predict(model.teacher, model.student))
    assert not torch.equal(predict(converted, converted), predict(model.student, model.student))
    assert not torch.equal(predict(converted, converted), predict(model.teacher, model.teacher))


@pytest.mark.parametrize('two_dis', [False, True])
def test_metadata_goes_with_the_weights(two_dis, models, load_tool):
    """Modules read their version from it when they load."""
    model = distiller('small')
    checkpoint = dict(meta=dict(), state_dict=model.state_dict())
    tool = load_tool('convert_dwpose_checkpoint')
    converted = tool.stock_weights(checkpoint, 2 if two_dis else 1)
    expected = model.student.state_dict()
    assert dict(converted._metadata) == dict(expected._metadata)
    assert set(converted) == set(expected)


@pytest.mark.parametrize('weights', ['stock', 'stock with --stage'])
def test_stock_checkpoint_stays(weights, models, run_tool):
    """The DWPose repository released such, with all that a training leaves behind."""
    model = randomize(distiller('small').student)
    meta = dict(cfg="model = dict(type='PoseEstimatorDistiller')")
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict(), message_hub=dict()), 'in.pth')
    stage = ['--stage', '2'] if 'stage' in weights else []
    run_tool('convert_dwpose_checkpoint', 'in.pth', 'out.pth', *stage)
    converted = stock('out.pth')
    assert torch.equal(predict(converted, converted), predict(model, model))


# ------------------------------------------------------------------ which stage


@pytest.mark.parametrize('kind', ['DWPoseDistiller', 'mmpose.DWPoseDistiller',
                                  'PoseEstimatorDistiller'])
@pytest.mark.parametrize('two_dis', [None, False, True])
def test_config_says_the_stage(two_dis, kind, load_tool):
    given = {} if two_dis is None else dict(two_dis=two_dis)
    cfg = Config(dict(model=dict(type=kind, student_cfg='a.py', distill_cfg=[], **given)))
    tool = load_tool('convert_dwpose_checkpoint')
    assert tool.stage_of_config(cfg.pretty_text) == (2 if two_dis else 1)


@pytest.mark.parametrize('text', [
    '', 'None', 'model = dict(', "model = dict(type='TopdownPoseEstimator', two_dis=True)",
    'model = dict(two_dis=True)', 'x = dict(**{})'])
def test_other_configs_say_nothing(text, load_tool):
    assert load_tool('convert_dwpose_checkpoint').stage_of_config(text) is None


def test_config_is_not_run(models, load_tool, tmp_path):
    text = "open('mark', 'w')\nmodel = dict(type='DWPoseDistiller', two_dis=True)"
    assert load_tool('convert_dwpose_checkpoint').stage_of_config(text) == 2
    assert not (tmp_path / 'mark').exists()


# ------------------------------------------------------------------ what is refused


def refused(run_tool, *argv):
    with pytest.raises(SystemExit) as error:
        run_tool('convert_dwpose_checkpoint', 'in.pth', 'out.pth', *argv)
    return str(error.value)


def test_stage_must_be_said_where_it_is_not_known(models, run_tool, tmp_path):
    save(distiller('small'), 'in.pth')
    assert '--stage 1' in refused(run_tool)
    assert not list(tmp_path.glob('out*'))


def test_stage_must_not_contradict_the_file(models, run_tool):
    save(distiller('large'), 'in.pth')
    assert 'comes from stage 1' in refused(run_tool, '--stage', '2')
    cfg = "model = dict(type='DWPoseDistiller', two_dis=True)"
    save(distiller('small'), 'in.pth', cfg=cfg)
    assert 'comes from stage 2' in refused(run_tool, '--stage', '1')


@pytest.mark.parametrize('missing', ['student.backbone', 'student.head', 'teacher.backbone'])
def test_missing_parts(missing, models, run_tool):
    weights = distiller('small').state_dict()
    for key in [key for key in weights if key.startswith(missing)]:
        weights.pop(key)
    save_checkpoint(dict(state_dict=weights), 'in.pth')
    assert f'has no {missing}' in refused(run_tool, '--stage', '2')


def test_half_a_model_is_not_written(models, run_tool):
    weights = distiller('small').state_dict()
    lost = next(key for key in weights if key.startswith('teacher.neck.'))
    weights.pop(lost)
    cfg = "model = dict(type='DWPoseDistiller', two_dis=True)"
    save_checkpoint(dict(meta=dict(cfg=cfg), state_dict=weights), 'in.pth')
    message = refused(run_tool)
    assert 'not the same model' in message and lost[len('teacher.'):] in message


@pytest.mark.parametrize('content, message', [
    (dict(meta=dict()), 'no state_dict'),
    (dict(state_dict=dict(weight=torch.ones(1))), 'not a checkpoint of DWPoseDistiller (its '
     'state_dict has weight)'),
    (dict(state_dict={'backbone.weight': torch.ones(1)}), 'not a checkpoint of DWPoseDistiller'),
    (torch.nn.Linear(1, 1), 'asks for torch.nn.modules.linear.Linear'),
])
def test_other_files(content, message, tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'in.pth')
    assert message in refused(run_tool)
    assert not list(tmp_path.glob('out*'))


def test_missing_file(tmp_path, run_tool):
    with pytest.raises(SystemExit, match='there is no checkpoint'):
        run_tool('convert_dwpose_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.pth')


# ------------------------------------------------------------------ after a real training


def test_both_stages_of_a_training(tiny, run_tool):
    """Upstream's two stages, with the converted student of the first as teacher of the second."""
    write_models(tiny)
    for stage, teacher, more in ((1, 'large', STAGE1), (2, 'small', STAGE2)):
        (tiny / f'stage{stage}_cfg.py').write_text(
            DISTILLATION.format(teacher=teacher, more=more))
        run_tool('train', f'stage{stage}_cfg.py', '--work-dir', f'work_dirs/stage{stage}')
        file = tiny / 'work_dirs' / f'stage{stage}' / 'epoch_1.pth'
        run_tool('convert_dwpose_checkpoint', file, f'stage{stage}.pth')

        trained = distiller(teacher, distill_cfg=[ConfigDict(item) for item in Config.fromfile(
            f'stage{stage}_cfg.py').model.distill_cfg])
        trained.load_state_dict(load_checkpoint_safely(str(file))['state_dict'])
        converted = stock(f'stage{stage}.pth')
        body = trained.student if stage == 1 else trained.teacher
        assert torch.equal(predict(converted, converted), predict(body, trained.student))
    assert not torch.equal(predict(stock('stage1.pth'), stock('stage1.pth')),
                           predict(stock('stage2.pth'), stock('stage2.pth')))
