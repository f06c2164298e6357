"""Dropout without a module of its own is off in a teacher, whatever mode it is asked in."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmskd.models.teachers import FixedModes, PastSelf, freeze
from mmskd.models.teachers.compiled import teacher_to_ask
from mmskd.models.teachers.functional_dropout import DropoutOff


def attention(module, x):
    return F.scaled_dot_product_attention(x, x, x, None, 0.5 if module.training else 0.)


def named_attention(module, x):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if module.training else 0.)


def heads_attention(module, x):
    weight, bias = torch.ones(24, 8), torch.zeros(24)
    return F.multi_head_attention_forward(
        x, x, x, 8, 1, weight, bias, None, None, False, 0.5, torch.eye(8), torch.zeros(8),
        module.training)[0]


WAYS = {
    'dropout': lambda module, x: F.dropout(x, 0.5, module.training),
    'in place': lambda module, x: F.dropout(x.clone(), p=0.5, training=module.training,
                                            inplace=True),
    'channels': lambda module, x: F.dropout1d(x, training=module.training),
    'alpha': lambda module, x: F.alpha_dropout(x, 0.5, module.training),
    'rrelu': lambda module, x: F.rrelu(-x, training=module.training),
    'attention': attention,
    'named attention': named_attention,
    'attention with heads': heads_attention
}


class Inside(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(8, 8)

    def forward(self, x):
        return self.way(self, self.layer(x))


@pytest.mark.parametrize('precision', [None, 'auto'])
@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
def test_a_teacher_says_the_same_each_time(way, precision):
    model, x = nn.Sequential(Inside(way)).train(), torch.rand(3, 4, 8) + 1
    truth = nn.Sequential(Inside(way)).eval()
    truth.load_state_dict(model.state_dict())
    past = PastSelf(model)
    past.follow_modes()
    modes = FixedModes(fixed := freeze(nn.Sequential(Inside(way))))
    fixed.load_state_dict(model.state_dict())
    modes.apply(True)
    for source in (past.model, fixed):
        assert source[0].training
        form = teacher_to_ask(source, precision)
        for _ in range(3):
            form.follow()
            torch.testing.assert_close(form.ask(form.model, x), truth(x), atol=1e-2, rtol=1e-2)
    assert not torch.equal(model(x), model(x)), 'the student drops'


def test_who_has_met_none_is_not_looked_at_again(monkeypatch):
    off, seen = DropoutOff(), []
    monkeypatch.setattr('mmskd.models.teachers.functional_dropout.WithoutDropout.__enter__',
                        lambda mode: seen.append(mode) or mode)
    monkeypatch.setattr('mmskd.models.teachers.functional_dropout.WithoutDropout.__exit__',
                        lambda mode, *error: None)
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    for question in (first, first, second, first):
        with off.while_asking(question):
            pass
    assert len(seen) == 2
