"""Maps of any torch classifier: the attention it learned, and attributions computed afterwards.

:func:`explain` computes a map, :data:`METHODS` is the registry. A map shows where, never why.
"""

from heedmap.attribution.registry import METHODS, Method, explain, method_of
from heedmap.attribution.request import Explanation, Target

__all__ = ["METHODS", "Explanation", "Method", "Target", "explain", "method_of"]
