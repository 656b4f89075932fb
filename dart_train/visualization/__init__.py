"""What a reduction kept, drawn on the user's own images.

    page = show(model, processor, [Image.open("cat.jpg")], "What colour is the cat?", [DART(keep=64), FastV(keep=64)])

`dart_train.models.token_places` finds which rectangle of which image each visual token shows, `choice_of_row` what a
forward kept of them, and `overlay_panel` draws the one over the other; `side_by_side` puts panels on a page.
"""

from .draw import side_by_side
from .figure import show
from .overlay import Choice, choice_of_row, overlay_panel

__all__ = ["Choice", "choice_of_row", "overlay_panel", "show", "side_by_side"]
