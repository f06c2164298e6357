"""PAA's head: which anchors are positive is decided by their losses."""
from .adapter import register_head
from .atss import ATSSAdapter


@register_head('PAAHead')
class PAAAdapter(ATSSAdapter):
    """It asks its class loss for the loss of each candidate first, and minimises it afterwards."""

    def is_mining(self, call: dict) -> bool:
        return call.get('reduction_override') == 'none'
