"""Heads of MMPose: which are taught, and what each stage refuses."""
import pytest
import torch

pytest.importorskip('mmpose')

from mmengine.config import ConfigDict  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmpose.registry import MODELS  # noqa: E402
from mmpose.utils import register_all_modules  # noqa: E402

from mmskd.engine.hooks import DistillHook, HeadDistillHook, PSKDHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.heads import choose_heads  # noqa: E402
from tests.support import poses  # noqa: E402

BODY = poses.BODY
INTERNET = ('mmpose::hand_3d_keypoint/internet/interhand3d/'
            'internet_res50_4xb16-20e_interhand3d-256x256.py')


def build(config, **options):
    register_all_modules(init_default_scope=True)
    cfg = ConfigDict(get_config(config).model, **options)
    cfg.backbone.init_cfg = None
    return MODELS.build(cfg)


def saved(model, folder) -> str:
    path = str(folder / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_a_teacher_of_another_temperature_is_read_in_its_own():
    """RTMW is trained with beta 1, RTMPose with 10: the same distribution is beta times other
    logits.
    """
    student = poses.build('rtmpose').eval()
    teacher = poses.build('rtmpose', **{'head.loss.beta': 1.}).eval()
    teacher.load_state_dict(student.state_dict())
    head = teacher.head
    forward = head.forward
    head.forward = lambda feats: tuple(10. * axis for axis in forward(feats))
    hook = DistillHook(teacher=teacher, losses=[dict(type='mmskd.SimCCDistillLoss')],
                       precision=None)
    hook.attach(student)
    assert poses.losses(student)['loss_logit'].abs() < 1e-6
    del head.forward
    assert poses.losses(student)['loss_logit'] > 1e-3


@pytest.mark.parametrize('config', [
    f'{BODY}/topdown_regression/coco/td-reg_res50_rle-8xb64-210e_coco-256x192.py',
    'mmpose::face_2d_keypoint/topdown_heatmap/wflw/td-hm_hrnetv2-w18_awing-8xb64-60e_wflw-256x256.py'],
    ids=['rle', 'adaptive-wing'])
def test_features_alone_need_no_soft_target(config):
    student, teacher = build(config), build(config)
    features = dict(type='mmskd.FeatureDistillLoss')
    hook = DistillHook(teacher=teacher, losses=[features])
    hook.attach(student)
    assert not hook.heads_taught and len(hook._features) == 1
    hook.detach()
    with pytest.raises(UsageError, match=r'PSKDHook: model.head'):
        PSKDHook().attach(student)


def test_the_head_within_a_head_of_visibility_is_chosen():
    config = f'{BODY}/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
    inner = get_config(config).model.head
    model = build(config, head=dict(
        type='VisPredictHead', pose_cfg=inner,
        loss=dict(type='BCELoss', use_target_weight=True)))
    assert [head.name for head in choose_heads(model)] == ['head.pose_head']


def test_stage_two_refuses_what_would_not_learn(tmp_path):
    cpm = poses.build('cpm')
    with pytest.raises(UsageError, match='CPMHead.*no parameters that could start anew'):
        HeadDistillHook(saved(cpm, tmp_path)).attach(cpm)
    internet = build(INTERNET)
    with pytest.raises(UsageError, match='InternetHead.*nothing would teach the depth of the root'):
        HeadDistillHook(saved(internet, tmp_path)).attach(internet)


def test_labels_count_by_their_weight_in_all_losses(tmp_path):
    model = poses.build('rtmpose')
    hook = HeadDistillHook(saved(model, tmp_path), gt_weight=0.5, reinit_head=False, precision=None)
    stock = poses.losses(model.eval())
    hook.attach(model)
    assert torch.allclose(poses.losses(model)['loss_kpt'], 0.5 * stock['loss_kpt'])
