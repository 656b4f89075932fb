"""An image is opened inside its folder, within limits, upright and RGB, or refused by name."""

import contextlib
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dart_train.data.images import ImageStore, fitted_size
from dart_train.data.issues import BadRowError
from dart_train.data.sample import ImageRef
from tests.data.images import encoded, noise


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    noise().save(root / "a.png")
    noise().save(root / "deep" / "b.png")
    noise().save(tmp_path / "secret.png")
    return root


def refused(store, ref, code):
    for action in (store.open, store.probe, store.size):
        with pytest.raises(BadRowError) as error:
            action(ref)
        assert error.value.code == code


def test_path_inside_the_folder_opens(folder):
    store = ImageStore(folder)
    for path in ("a.png", "deep/b.png", "deep/../a.png", str(folder / "a.png")):
        assert np.array_equal(np.asarray(store.open(ImageRef(path=path))), np.asarray(noise()))
        assert store.size(ImageRef(path=path)) == (40, 30)


def test_path_that_leaves_the_folder_is_refused(folder, tmp_path):
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "images2").mkdir()
    noise().save(tmp_path / "images2" / "c.png")
    for path in ("../secret.png", "deep/../../secret.png", str(tmp_path / "secret.png"), "link.png", "up/secret.png",
                 "../images2/c.png", "/etc/passwd"):  # fmt: skip
        refused(ImageStore(folder), ImageRef(path=path), "outside_folder")


@pytest.fixture
def snapshot(tmp_path):
    """The layout of a hub cache: links into ../../blobs, and a folder that is a link to another disk."""
    for name in ("blobs", "snapshots/1/images", "coco"):
        (tmp_path / name).mkdir(parents=True)
    noise().save(tmp_path / "blobs" / "abc.png")
    noise().save(tmp_path / "coco" / "b.png")
    root = tmp_path / "snapshots" / "1" / "images"
    (root / "a.png").symlink_to("../../../blobs/abc.png")
    (root / "coco").symlink_to(tmp_path / "coco")
    return root


def test_links_out_of_the_folder_need_follow_links(snapshot, tmp_path):
    a, b = ImageRef(path="a.png"), ImageRef(path="coco/b.png")
    for ref in (a, b):
        with pytest.raises(BadRowError, match=r"outside_folder.*set data.follow_links to true"):
            ImageStore(snapshot).open(ref)
        assert ImageStore(snapshot, follow_links=True).open(ref).size == (40, 30)
    allowed = ImageStore(snapshot, follow_links=(str(tmp_path / "blobs"),))
    assert allowed.open(a).size == (40, 30)
    with pytest.raises(BadRowError, match=r"outside the folders of data.follow_links"):
        allowed.open(b)


@pytest.mark.parametrize("path", ["../../../blobs/abc.png", "coco/../blobs/abc.png", "/etc/hostname", "deep/../../x"])
def test_follow_links_does_not_allow_a_row_to_name_a_place_outside(snapshot, path):
    refused(ImageStore(snapshot, follow_links=True), ImageRef(path=path), "outside_folder")


def test_link_to_a_device_or_to_itself_is_refused_with_follow_links(snapshot):
    (snapshot / "zero.png").symlink_to("/dev/zero")
    (snapshot / "loop.png").symlink_to("loop.png")
    for name in ("zero.png", "loop.png"):
        refused(ImageStore(snapshot, follow_links=True), ImageRef(path=name), "missing_image")


def test_image_folder_may_be_a_link(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert ImageStore(tmp_path / "alias").open(ImageRef(path="a.png")).size == (40, 30)


def test_path_that_is_not_a_file_is_a_missing_image(folder):
    os.mkfifo(folder / "pipe.png")  # reading it would block
    for path in ("none.png", "deep", "", "pipe.png", "a\0.png", "x" * 5000, "a.png/b.png"):
        refused(ImageStore(folder), ImageRef(path=path), "missing_image")
    refused(ImageStore(None), ImageRef(path="a.png"), "missing_image")


def bytes_of(data, **limits):
    return ImageStore(**limits), ImageRef(data=data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_truncated_file_with_a_complete_header_is_found(kind):
    data = encoded(noise(300, 300), kind)
    store, complete = bytes_of(data)
    assert store.probe(complete) == ((300, 300), [])
    for part in (0.97, 0.5):
        cut = ImageRef(data=data[: int(len(data) * part)])
        for action in (store.open, store.probe):
            with pytest.raises(BadRowError) as error:
                action(cut)
            assert error.value.code in ("truncated_image", "unreadable_image")


def test_postscript_and_empty_bytes_are_not_decoded():
    refused(*bytes_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "unreadable_image")
    refused(*bytes_of(b""), "unreadable_image")


def test_decompression_bombs_are_refused_from_the_header():
    refused(*bytes_of(encoded(Image.new("1", (40_000, 40_000)))), "bomb")
    refused(*bytes_of(encoded(noise(100, 100)), limit=9_999), "bomb")
    assert ImageStore(limit=10_000).open(ImageRef(data=encoded(noise(100, 100)))).size == (100, 100)


def test_image_100000_pixels_wide_is_refused():
    refused(*bytes_of(encoded(Image.new("L", (100_000, 1)))), "extreme_shape")


def image_of_mode(mode):
    ramp = np.linspace(0, 255, 1200).reshape(30, 40)
    if mode == "I;16":
        return Image.fromarray((ramp * 257).astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.float32))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(noise(), *profiles, outputMode="LAB")
    return noise().convert("L").convert(mode) if mode == "LA" else noise().convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK", "I;16", "I", "F", "LAB"])
def test_every_mode_becomes_rgb_and_is_reported(mode):
    store, ref = bytes_of(encoded(image_of_mode(mode), "TIFF"))
    opened = store.open(ref)
    assert opened.mode == "RGB" and opened.size == (40, 30)
    assert np.asarray(opened).std() > 20  # still an image: neither clipped to white nor to black
    assert [finding.code for finding in store.probe(ref)[1]] == ["mode_converted"]


def test_transparency_becomes_white():
    store, ref = bytes_of(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))))
    assert store.open(ref).getpixel((4, 4)) == (255, 255, 255)


def test_16_bit_image_is_scaled_not_clipped():
    store, ref = bytes_of(encoded(Image.fromarray(np.full((9, 9), 32768, dtype=np.uint16))))
    assert store.open(ref).getpixel((4, 4)) in {(127,) * 3, (128,) * 3}


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    store, ref = bytes_of(data)
    assert store.open(ref).getpixel((5, 5)) == (255, 0, 0)
    assert "animated_image" in [finding.code for finding in store.probe(ref)[1]]


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    store, ref = bytes_of(encoded(noise(40, 20), "JPEG", exif=exif))
    assert store.open(ref).size == store.size(ref) == store.probe(ref)[0] == (20, 40)
    assert [finding.code for finding in store.probe(ref)[1]] == ["rotated_image"]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 10**6), st.integers(1, 10**6))
def test_pixel_limits(width, height, one, other):
    low, high = sorted((one, other))
    w, h = fitted_size((width, height), low, high)
    if width * height > high and min(width, height) > 40 and high > 10_000:
        assert w * h <= high and abs(w / h - width / height) < 0.2 * width / height
    elif low <= width * height <= high:
        assert (w, h) == (width, height)
    elif width * height < low:
        assert w * h >= low


def test_opening_resizes_to_the_limits():
    ref = ImageRef(data=encoded(noise(100, 50)))
    assert ImageStore(max_pixels=1250).open(ref).size == (50, 25)
    assert ImageStore(min_pixels=20_000).open(ref).size == (200, 100)
    assert ImageStore(max_pixels=1250).size(ref) == (100, 50)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fuzzed_bytes_are_an_image_or_a_bad_row(data):
    damaged = bytearray(
        encoded(noise(16, 16), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    store, ref = bytes_of(bytes(damaged), limit=1_000_000)
    for action in (store.open, store.probe, store.size):
        with contextlib.suppress(BadRowError):
            action(ref)


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(encoded(noise()))

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_urls_are_refused_unless_allowed(server):
    refused(ImageStore(), ImageRef(url=f"{server}/a.png"), "url_refused")
    assert ImageStore(allow_urls=True).open(ImageRef(url=f"{server}/a.png")).size == (40, 30)
    refused(ImageStore(allow_urls=True), ImageRef(url=f"{server}/b.png"), "url_unreachable")
    refused(ImageStore(allow_urls=True), ImageRef(url="file:///etc/passwd"), "url_refused")
