"""Dropout that a model calls as a function, which no mode of a module keeps off."""
import inspect
from contextlib import contextmanager
from typing import Callable, Dict, Iterator

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

RANDOM = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
          F.feature_alpha_dropout, F.rrelu, F.multi_head_attention_forward)
SIGNATURES = {func: inspect.signature(func) for func in RANDOM}


class WithoutDropout(TorchFunctionMode):
    """Within it these functions do what they do outside of training.

    Attributes:
        met (bool): Whether one was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in SIGNATURES:
            self.met = True
            given = SIGNATURES[func].bind(*args, **kwargs)
            given.arguments['training'] = False
            args, kwargs = given.args, given.kwargs
        elif func is F.scaled_dot_product_attention and (len(args) > 4 or 'dropout_p' in kwargs):
            self.met = True
            args, kwargs = args[:4] + (0., ) * (len(args) > 4) + args[5:], dict(kwargs)
            kwargs.update(dict.fromkeys(kwargs.keys() & {'dropout_p'}, 0.))
        return func(*args, **kwargs)


class DropoutOff:
    """Keeps it off while the modules of a teacher are asked.

    Looking at each call of torch takes some microseconds, so it ends with the first call of a
    module that has met none.
    """

    def __init__(self) -> None:
        self._has: Dict[Callable, bool] = {}

    @contextmanager
    def while_asking(self, question: Callable) -> Iterator[None]:
        """While this module, or function, is called."""
        if not self._has.get(question, True):
            yield
            return
        with WithoutDropout() as mode:
            yield
        self._has[question] = mode.met
