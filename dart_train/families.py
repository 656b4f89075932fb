"""The former path of `dart_train.models.families`, kept until the next release."""

import warnings

from .models.families import GENERIC, Family, UnknownGridError, families
from .models.families import find_family as family_of

warnings.warn("dart_train.families is now dart_train.models.families", DeprecationWarning, stacklevel=2)

FAMILIES = tuple(families())
NoGrid = UnknownGridError

__all__ = ["FAMILIES", "GENERIC", "Family", "NoGrid", "family_of"]
