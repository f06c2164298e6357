"""Choices by the loss are those of a training without a teacher; values are the soft ones."""
import torch
from torch import nn

from mmskd.models.losses.mining import MinedLoss


def test_the_largest_hard_losses_are_kept_with_their_soft_values():
    soft = torch.tensor([1., 2., 3., 4.], requires_grad=True)
    hard = torch.tensor([9., 1., 8., 2.])
    mined = MinedLoss.of(soft * 1., hard)
    kept, index = (mined * torch.ones(4))[torch.tensor([0, 1, 2])].topk(2)
    assert index.tolist() == [0, 2] and kept.tolist() == [1., 3.]
    kept.sum().backward()
    assert soft.grad.tolist() == [1., 0., 1., 0.] and type(kept) is torch.Tensor
    with torch.no_grad():
        assert mined.argmin().item() == 1 and (mined + 0).tolist() == hard.tolist()
    assert type(mined.sum()) is torch.Tensor and mined.sum() == 10


def test_losses_that_are_joined_with_others_are_the_soft_ones():
    soft, hard = torch.tensor([1., 2.]), torch.tensor([9., 1.])
    mined = MinedLoss.of(soft, hard)
    assert torch.stack([mined, mined])[1].tolist() == torch.cat([mined])[:2].tolist() == [1., 2.]
    chosen = torch.where(condition=soft > 1, input=mined, other=mined * 0)
    assert chosen.tolist() == [0., 2.] and type(chosen) is torch.Tensor
    with torch.no_grad():
        assert torch.stack([mined, mined])[1].tolist() == [9., 1.]


def test_hard_keypoints_are_those_of_the_hard_target():
    import pytest
    pytest.importorskip('mmpose')
    from mmpose.models.losses import KeypointOHKMMSELoss

    from mmskd.models.losses import PSKDKeypointOHKMMSELoss
    from mmskd.models.pairing import pair
    torch.manual_seed(0)
    heatmaps, target, past = torch.rand(3, 2, 6, 4, 4).double()
    weights = torch.rand(2, 6).double()
    options = dict(use_target_weight=True, topk=2, loss_weight=3.)
    ours, stock = PSKDKeypointOHKMMSELoss(**options), KeypointOHKMMSELoss(**options)
    ours.alpha_t = 0.6
    chosen = []
    for each in range(2):
        error = ((heatmaps - target) * weights[..., None, None])**2
        chosen.append(error[each].mean((1, 2)).topk(2).indices)
    soft = 0.4 * target + 0.6 * past
    expected = torch.stack([(((heatmaps - soft) * weights[..., None, None])**2)[each, index].mean(
        (1, 2)) for each, index in enumerate(chosen)]).mean() * 3
    assert torch.allclose(ours(pair(heatmaps, past), target, weights), expected)
    assert torch.equal(ours(heatmaps, target, weights), stock(heatmaps, target, weights))
    assert isinstance(stock, nn.Module)
