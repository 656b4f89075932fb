"""No file outside the image folder is opened: an audit hook of Python records every file that is opened."""

import sys
from pathlib import Path

import pytest

from dart_train.data.images import ImageStore
from dart_train.data.issues import BadRowError
from dart_train.data.sample import ImageRef
from tests.data.images import noise

OPENED: list[str] = []
LISTENING = [False]


def listen(event, args):
    if LISTENING[0] and event == "open":
        OPENED.append(str(args[0]))


sys.addaudithook(listen)  # for the rest of the process: audit hooks cannot be removed


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder", "neighbour"])
def test_image_outside_the_folder_is_refused_and_not_opened(tmp_path, way):
    folder, secret, neighbour = tmp_path / "images", tmp_path / "secret.png", tmp_path / "images2" / "c.png"
    for file in (folder / "a.png", secret, neighbour):
        file.parent.mkdir(exist_ok=True)
        noise().save(file)
    (folder / "link.png").symlink_to(secret)
    (folder / "deep").symlink_to(tmp_path)
    path = {"up": "../secret.png", "absolute": str(secret), "link": "link.png", "linked folder": "deep/secret.png",
            "neighbour": "../images2/c.png"}[way]  # fmt: skip
    store = ImageStore(folder)
    LISTENING[0] = True
    try:
        store.open(ImageRef(path="a.png"))
        assert any(Path(name).name == "a.png" for name in OPENED)  # the hook records
        for action in (store.open, store.probe, store.size):
            with pytest.raises(BadRowError):
                action(ImageRef(path=path))
        resolved = {Path(name).resolve() for name in OPENED}
    finally:
        LISTENING[0] = False
        OPENED.clear()
    assert not resolved & {secret.resolve(), neighbour.resolve()}
