"""The only rooms (with `families`) that know hooks and Hugging Face forwards."""

from .attachment import Attached, Kept, attach

__all__ = ["Attached", "Kept", "attach"]
