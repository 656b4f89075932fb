"""What a reduction kept, drawn on the user's own pictures.

    page = show(model, processor, [Image.open("cat.jpg")], "What colour is the cat?", [DART(keep=64), FastV(keep=64)])

`geometry` says which rectangle of which picture each visual token sees, `chosen` what a forward kept of them, and
`overlay` draws the one over the other; `side_by_side` puts panels on a page.
"""

from ..models.geometry import Place, geometry
from .draw import side_by_side
from .figure import show
from .overlay import Choice, chosen, overlay

__all__ = ["Choice", "Place", "chosen", "geometry", "overlay", "show", "side_by_side"]
