"""`python -m data.real_base build --out DIR` makes the model; `train` and `measure` made it what it is.

`claims` evaluates what was claimed about it before the test."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "real_base.yaml"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m data.real_base", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="download the pretrained parts and write the model with what was trained")
    build.add_argument("--out", type=Path, required=True, help="folder for the model")
    build.add_argument("--size", type=int, help="of images in pixels, if other than in training: a multiple of 14")
    build.add_argument("--untrained", action="store_true", help="with a random projector and no adapter")
    train = commands.add_parser("train", help="train projector and adapter; resumes a stopped training")
    train.add_argument("--until", choices=("projector", "few", "all"), help="the last stage to train")
    measure = commands.add_parser("measure", help="evaluate the trained model and write its card")
    claims = commands.add_parser("claims", help="evaluate the claims on a comparison, and write claims.md")
    claims.add_argument("compared", type=Path, help="folder of the comparison of recipes/real_compare.yaml")
    claims.add_argument("--texts", type=Path, help="folder of the comparison of recipes/real_reading.yaml")
    claims.add_argument("--out", type=Path, help="folder to write to; default: the comparison's")
    for command in (build, train, measure, claims):
        command.add_argument("--recipe", type=Path, default=RECIPE)
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return made


def main(arguments: list[str] | None = None) -> int:
    options, more = parser().parse_known_args(arguments)
    if unknown := [word for word in more if "=" not in word or word.startswith("-")]:
        parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += more
    from dart_train.config.errors import RecipeError

    from .train.recipe import load_real

    try:
        recipe = load_real(options.recipe, options.overrides)
        if options.command == "build":
            from .build import assembled, with_trained

            size = options.size or recipe.pictures.size
            model, processor = assembled(Path(recipe.parts_dir), recipe.pictures.feature_layers, size)
            model = model if options.untrained else with_trained(model, Path(recipe.output_dir))
            model.save_pretrained(options.out)
            processor.save_pretrained(options.out)
            print(f"written to {options.out}")
        elif options.command == "train":
            from .train.command import train

            train(recipe, options.until)
        elif options.command == "measure":
            from .train.measure import evaluate

            evaluate(recipe)
        else:
            from .evidence import write_evidence

            measured = json.loads((Path(recipe.output_dir) / "measured.json").read_text(encoding="utf-8"))
            compared = [folder for folder in (options.compared, options.texts) if folder]
            print(write_evidence(compared, options.out or options.compared, measured))
    except (RecipeError, ValueError) as error:
        print(f"data.real_base: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
