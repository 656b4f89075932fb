"""The only rooms (with `families`) that know hooks and Hugging Face forwards."""

from .attached import Attached, attach
from .kept import Kept

__all__ = ["Attached", "Kept", "attach"]
