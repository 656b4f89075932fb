"""Images of named things with labels, price tags and notes, and questions whose answers are known.

    python -m data.things --out DIR --train 2000 --validation 200 --test 500

The things are emoji in two styles, which are in this folder (`sprites`): one style for training, the other for a test
of what was learned about things rather than about drawings of them. Some names are in no training image.
"""

from data.things.catalogue import STYLES, Thing, things
from data.things.drawing import SIZE, draw
from data.things.questions import KINDS, Question, questions
from data.things.scene import SPLITS, Cell, ThingScene, describe, fingerprint, scene
from data.things.writer import ThingsSettings, write

__all__ = [
    "KINDS", "SIZE", "SPLITS", "STYLES", "Cell", "Question", "Thing", "ThingScene", "ThingsSettings", "describe",
    "draw", "fingerprint", "questions", "scene", "things", "write",
]  # fmt: skip
