"""No file outside the image folder is opened, asked of Python itself: it tells of every opening."""

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


sys.addaudithook(listen)  # for the rest of the process: such hooks cannot be taken away


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder", "neighbour"])
def test_an_image_outside_is_refused_and_not_opened(tmp_path, way):
    folder, secret, beside = tmp_path / "images", tmp_path / "secret.png", tmp_path / "images2" / "c.png"
    for file in (folder / "a.png", secret, beside):
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
        assert any(Path(name).name == "a.png" for name in OPENED)  # the listener hears
        for action in (store.open, store.probe, store.size):
            with pytest.raises(BadRowError):
                action(ImageRef(path=path))
        resolved = {Path(name).resolve() for name in OPENED}
    finally:
        LISTENING[0] = False
        OPENED.clear()
    assert not resolved & {secret.resolve(), beside.resolve()}
