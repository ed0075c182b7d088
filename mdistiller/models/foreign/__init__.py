"""Networks of others: ``torchvision:NAME``, ``timm:NAME`` and ``path/to/file.py:NAME``.

They return logits alone; :class:`Foreign` adds the features that methods ask for.
"""

from .adapter import adapt_input
from .sources import PRETRAINED, build_foreign, check_foreign, is_foreign, short_name
from .wrapper import Foreign, bare, logits_of, name_of

__all__ = [
    "PRETRAINED",
    "Foreign",
    "adapt_input",
    "bare",
    "build_foreign",
    "check_foreign",
    "is_foreign",
    "logits_of",
    "name_of",
    "short_name",
]
