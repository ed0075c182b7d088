"""The locks of folder.py under the name they had; for imports not yet moved."""

from .folder import claim, is_locked

__all__ = ["claim", "is_locked"]
