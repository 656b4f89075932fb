"""Pages of text, drawn locally: one large page, and small ones with questions that the tiny base can answer.

    python data/pages.py --out DIR --test 60 --size 1008

DIR/page.png is the large page, of --size by --size pixels; DIR/test.json and DIR/images are the small ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: `data.scenes` is in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.scenes.drawing import draw
from data.scenes.page import draw_page, page_questions, page_scene, repeated_share
from data.scenes.rows import rows_of, write_json


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description="Draw pages of text.")
    made.add_argument("--out", type=Path, required=True, help="folder to write to")
    made.add_argument("--test", type=int, default=60, metavar="N", help="small pages with questions (60)")
    made.add_argument("--size", type=int, default=1008, help="width and height of the large page in pixels (1008)")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args(arguments)
    folder = options.out / "images" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    page = draw_page(options.size, options.size, options.seed)
    page.save(options.out / "page.png")
    rows = []
    for index in range(options.test):
        one, name = page_scene(options.seed, "test", index), f"test/{index:06d}.png"
        draw(one).save(options.out / "images" / name)
        rows += rows_of(f"page-{index:06d}", name, page_questions(one), group=False)
    write_json(options.out / "test.json", rows)
    print(f"page.png: {repeated_share(page, 28):.1%} of its units of 28 pixels repeat another one")
    print(f"test: {options.test} images, {len(rows)} questions; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
