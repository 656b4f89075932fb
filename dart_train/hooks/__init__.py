"""The forward under reduction. The only package that registers hooks on a user's model."""

from .attachment import Attached, Kept, attach, attached_to

__all__ = ["Attached", "Kept", "attach", "attached_to"]
