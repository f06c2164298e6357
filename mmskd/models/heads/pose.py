"""Heads of MMPose's top-down estimators: SimCC and heatmaps."""
from typing import Any, Dict, List

from torch import nn

from ..losses.softmax_call import is_simcc_loss
from .adapter import HeadAdapter, adapter_of, derives_from, register_head


@register_head('BaseHead')
class PoseHeadAdapter(HeadAdapter):
    """Its output goes to the loss as it is: the teacher's answer joins it there, for each stage."""

    @property
    def config_key(self) -> str:
        return f'model.{self.name}.loss'

    def obstacle(self, model: nn.Module) -> str:
        """Heads that build on another one (SimCC on deconvolutions) leave that one's loss alone."""
        outer = self.name.rpartition('.')[0]
        head = model.get_submodule(outer)
        if derives_from(
                head,
                'BaseHead') and not isinstance(adapter_of(outer, head), VisibilityHeadAdapter):
            return (
                f'it is a part of model.{outer} ({type(head).__name__}), and its own loss is not '
                'asked for. Leave it out with the option `heads`.')
        return ''

    def target_losses(self) -> Dict[str, nn.Module]:
        found = getattr(self.head, 'loss_module', None)
        # one for each stage; RTMW3D has some of its coordinates beside its bins'
        if isinstance(found, nn.ModuleList):
            several = {f'loss_module.{index}': loss for index, loss in enumerate(found)}
            return {key: loss for key, loss in several.items() if is_simcc_loss(loss)} or several
        return {} if found is None else {'loss_module': found}

    def advice(self, loss: nn.Module, counterparts: List[str]) -> str:
        if type(loss).__name__ == 'CombinedTargetMSELoss':
            return (
                'Its targets hold offsets besides the heatmaps. Use heatmaps alone: '
                f'heatmap_type="gaussian" in the codec, and KeypointMSELoss as {self.config_key}.')
        bins = hasattr(self.head, 'simcc_split_ratio')
        fitting = [name for name in counterparts if ('Discret' in name) == bins] or counterparts
        return super().advice(loss, fitting)


@register_head('VisPredictHead')
class VisibilityHeadAdapter(HeadAdapter):
    """Predicts beside another head which keypoints are visible; the other one is taught."""


@register_head('InternetHead')
class InterNetAdapter(PoseHeadAdapter):
    """Heatmaps of two hands, the depth between them and which hands there are."""

    untaught = 'the depth of the root and the kind of hand; leave this stage out'


@register_head('DSNTHead')
class DSNTAdapter(PoseHeadAdapter):
    """Coordinates, and the distributions over the cells of a heatmap that they are the means of.

    These are taught.
    """

    def __init__(self, name: str, head: nn.Module, exact: bool = False):
        super().__init__(name, head, exact)
        if not self.target_losses():
            self.refusal = (
                'it predicts coordinates, and does not compare its heatmaps as distributions '
                '(JSDiscretLoss)')

    def target_losses(self) -> Dict[str, nn.Module]:
        losses = getattr(self.head.loss_module, 'loss_modules', [])
        return {f'loss_module.loss_modules.{index}': loss for index, loss in enumerate(losses)
                if type(loss).__name__ == 'JSDiscretLoss'}

    def taught_output(self, output: Any) -> Any:
        _, heatmaps = output
        return heatmaps

    def advice(self, loss: nn.Module, counterparts: List[str]) -> str:
        return (
            'Its coordinates are no distribution, and a divergence to a softer heatmap has no '
            'stock form. DistillHook teaches its heatmaps.')
