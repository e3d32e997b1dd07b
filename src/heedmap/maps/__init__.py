"""Maps of any torch classifier: the attention it learned, and attributions computed afterwards.

:func:`explain` is the one way in, :data:`METHODS` the one table of methods. A map shows where, never why.
"""

from heedmap.maps.engine import explain
from heedmap.maps.question import Explanation, Target
from heedmap.maps.table import METHODS, Method, method_of

__all__ = ["METHODS", "Explanation", "Method", "Target", "explain", "method_of"]
