"""The check reports every fault by its code, with any number of workers and without a model; fuzzed rows never crash
it."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dart_train.cli.training import data as main
from dart_train.data.check import check_rows
from dart_train.data.check_report import as_text
from dart_train.data.encoder import Encoder
from dart_train.data.issues import CODES
from dart_train.data.sources import SourceSpec, open_sources
from dart_train.reduction import DART
from tests.data.conftest import llava_row
from tests.data.images import encoded, noise
from tests.data.test_formats import JUNK
from tests.zoo import FAMILIES

TINY = FAMILIES["llava"].processor()


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def talk(*values, image=None):
    roles = ["human", "gpt"] * len(values)
    row = {"conversations": [{"from": r, "value": v} for r, v in zip(roles, values, strict=False)]}
    return {**row, "image": image} if image is not None else row


def faulty_rows(folder):
    """One row for each fault that can be found without a model, by the code that it must get."""
    (folder / "cut.png").write_bytes(encoded(noise(200, 200))[:5000])
    (folder / "text.png").write_text("not an image")
    (folder / "grey.png").write_bytes(encoded(noise().convert("L")))
    (folder / "line.png").write_bytes(encoded(Image.new("RGB", (3000, 2))))
    (folder / "dot.png").write_bytes(encoded(Image.new("RGB", (2, 2))))
    (folder / "bomb.png").write_bytes(encoded(Image.new("1", (20_000, 20_000))))
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    (folder / "moving.png").write_bytes(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encoded(noise(), "JPEG", exif=exif))
    (folder / "out.png").symlink_to("/etc/hostname")
    shown = {
        "truncated_image": "cut.png", "unreadable_image": "text.png", "missing_image": "none.png",
        "outside_folder": "../rows.jsonl", "url_refused": "http://host/a.png", "bomb": "bomb.png",
        "extreme_shape": "line.png", "tiny_image": "dot.png", "mode_converted": "grey.png",
        "animated_image": "moving.png", "rotated_image": "turned.jpg", "bad_base64": "data:image/png;base64,!",
    }  # fmt: skip
    rows = {code: talk(f"<image>What of {code}?", "That.", image=name) for code, name in shown.items()}
    return {
        **rows,
        "lost_characters": talk("What \ufffd?", "That."),
        "mark_mismatch": talk("<image><image>Which?", "That.", image="0.png"),
        "empty_conversation": {"conversations": [], "image": "0.png"},
        "empty_turn": talk("What?", ""),
        "role_order": talk("What?"),
        "unknown_role": {"conversations": [{"from": "robot", "value": "hi"}]},
        "bad_json": '{"conversations": [',
        "bad_type": "[1]",
        "bad_text": talk("What \ud800?", "That."),
        "unknown_format": {"text": "hi"},
        "unsupported_media": {**talk("What?", "That."), "audio": "a.wav"},
        "bad_weight": {"conversations": [{"from": "human", "value": "?", "weight": 1}, {"from": "gpt", "value": "!"}]},
        "bad_tool_call": {**talk("What?", "That."), "tools": "weather"},
    }


def run(path, images, workers=1, encoder=None, **options):
    sources = open_sources([SourceSpec(str(path), str(images))])
    return check_rows(sources, encoder, workers=workers, progress=False, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_found_by_name(tmp_path, image_folder, workers):
    faults = faulty_rows(image_folder)
    good = [llava_row(n, f"{n % 3}.png") for n in range(4)]
    result = run(write(tmp_path / "rows.jsonl", [*faults.values(), *good]), image_folder, workers)
    assert {code: item["count"] for code, item in result["findings"].items()} == dict.fromkeys(faults, 1)
    warnings = [code for code in faults if CODES[code][0] == "warning"]
    assert result["rows"] == len(faults) + 4 and result["usable"] == 4 + len(warnings)
    assert result["errors"] == result["dropped"] == len(faults) - len(warnings)
    for number, code in enumerate(faults):
        assert result["findings"][code]["examples"][0]["id"].startswith(f"rows.jsonl:{number}")


def test_all_findings_of_a_row_are_reported(tmp_path, image_folder):
    (image_folder / "grey.png").write_bytes(encoded(noise().convert("L")))
    row = talk("<image><image><image>What?", "That.", image=["none.png", "grey.png", "../x.png"])
    result = run(write(tmp_path / "rows.jsonl", [row]), image_folder)
    assert set(result["findings"]) == {"missing_image", "mode_converted", "outside_folder"}
    assert result["dropped"] == 1 and result["errors"] == 2


def test_duplicates_are_found_across_sources(tmp_path, image_folder):
    train = write(tmp_path / "train.jsonl", [llava_row(0, "0.png"), llava_row(1), {**llava_row(0, "0.png"), "id": "x"}])
    validation = write(tmp_path / "validation.jsonl", [llava_row(2), llava_row(1), llava_row(0, "1.png")])
    sources = open_sources([SourceSpec(str(path), str(image_folder)) for path in (train, validation)])
    found = check_rows(sources, progress=False)["findings"]["duplicate"]
    assert found["count"] == 2
    assert found["examples"] == [
        {"id": "train.jsonl:2 (id x)", "message": "of train.jsonl:0 (id row-0)"},
        {"id": "validation.jsonl:1 (id row-1)", "message": "of train.jsonl:1 (id row-1)"},
    ]


def test_tokens_are_counted_before_and_after_the_reduction(tmp_path, image_folder):
    path = write(tmp_path / "rows.jsonl", [llava_row(n, f"{n % 3}.png" if n < 3 else None) for n in range(5)])
    encoder = Encoder(TINY)
    tokens = run(path, image_folder, encoder=encoder, reducers=[DART(keep=16)])["tokens"]
    assert tokens["visual"]["sum"] == 3 * 64 and tokens["visual_reduced"]["sum"] == 3 * 16
    assert tokens["total"]["sum"] - tokens["total_reduced"]["sum"] == 3 * (64 - 16)
    for values in tokens.values():
        counts, edges = values["histogram"]["counts"], values["histogram"]["edges"]
        assert sum(counts) == 5 and edges[0] <= values["min"] and values["max"] < edges[-1]
    assert run(path, image_folder, encoder=encoder)["tokens"].keys() == {"total", "visual"}


@pytest.mark.parametrize("policy, code, dropped", [
    ("drop", "too_long", 3), ("truncate_text", "truncated_text", 0), ("error", "over_limit", 3),
])  # fmt: skip
def test_effect_of_max_length_is_reported(tmp_path, image_folder, policy, code, dropped):
    long = [talk(f"<image>Number {n}? " + "really? " * 30, "Yes.", image=f"{n}.png") for n in range(3)]
    path = write(tmp_path / "rows.jsonl", [*long, *(llava_row(n, "0.png") for n in range(2))])
    result = run(path, image_folder, encoder=Encoder(TINY, 160, policy))
    assert {code: item["count"] for code, item in result["findings"].items()} == {code: 3}
    assert result["dropped"] == dropped and bool(result["errors"]) == (policy == "error")
    assert result["tokens"]["total"]["max"] > 300


def test_row_that_training_refuses_is_refused_by_the_check(tmp_path, image_folder):
    path = write(tmp_path / "rows.jsonl", [talk("What is </s>?", "That."), talk("What?", "This.")])
    assert run(path, image_folder, encoder=Encoder(TINY))["findings"].keys() == {"control_token"}


def test_streamed_source_is_checked(tmp_path, image_folder, llava_file):
    sources = open_sources([SourceSpec(str(llava_file), str(image_folder), streaming=True)])
    result = check_rows(sources, Encoder(TINY), progress=False)
    assert result["rows"] == result["usable"] == 6 and result["tokens"]["visual"]["sum"] == 3 * 64


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JUNK.map(lambda junk: json.dumps(junk, default=str)) | st.text(max_size=30), min_size=1, max_size=8))
def test_fuzzed_rows_never_crash_the_check(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("fuzz")
    lines = [json.dumps(llava_row(1)), *(row.replace("\n", " ").replace("\r", " ") for row in rows)]
    path = folder / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    result = run(path, folder, encoder=Encoder(TINY), out=folder)
    assert result["rows"] == sum(bool(line.strip()) for line in lines)
    as_text(result)


DAMAGE = JUNK | st.sampled_from(["<image>" * 3, "/etc/passwd", "..", "a\0b", "x" * 5000, -1, 10**30, {}, []])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_value_in_a_good_row_never_crashes_the_check(image_folder, data):
    row = json.loads(json.dumps(llava_row(1, "0.png")))
    keys = [("id",), ("image",), ("conversations",)]
    keys += [("conversations", turn, *key) for turn in (0, 1) for key in ((), ("from",), ("value",))]
    *way, last = data.draw(st.sampled_from(keys))
    target = row
    for step in way:
        target = target[step]
    target[last] = data.draw(DAMAGE)
    path = image_folder.parent / "fuzzed.jsonl"
    path.write_text(json.dumps(row, default=str))
    result = run(path, image_folder, encoder=Encoder(TINY))
    assert result["rows"] == 1 and set(result["findings"]) <= set(CODES)


def test_row_id_is_reported_even_if_the_row_cannot_be_read(tmp_path, image_folder):
    unread = {**llava_row(7), "conversations": [{"from": "robot", "value": "hi"}]}
    result = run(write(tmp_path / "rows.jsonl", [llava_row(1), unread, "{"]), image_folder)
    assert result["findings"]["unknown_role"]["examples"][0]["id"] == "rows.jsonl:1 (id row-7)"
    assert result["findings"]["bad_json"]["examples"][0]["id"] == "rows.jsonl:2"


def test_more_dropped_rows_than_max_bad_fraction_fail_the_check(tmp_path, image_folder):
    path = write(tmp_path / "rows.jsonl", [llava_row(n, "0.png") for n in range(4)])
    result = run(path, image_folder, encoder=Encoder(TINY, 60, "drop"), max_bad_fraction=0.5)
    assert result["findings"].keys() == {"too_long"} and result["too_many_dropped"] and not result["errors"]
    assert "100.0% of the rows are dropped, more than data.max_bad_fraction 50.0%" in as_text(result)
    assert not run(path, image_folder, encoder=Encoder(TINY), max_bad_fraction=0.5)["too_many_dropped"]


def test_check_command_writes_check_json_and_sets_the_exit_code(tmp_path, image_folder, llava_file, capsys):
    out = tmp_path / "out"
    call = ["check", "--rows", str(llava_file), "--images", str(image_folder), "--out", str(out), "--workers", "1"]
    assert main([*call, "--quiet"]) == 0
    assert "6 rows: 6 usable, 0 dropped" in capsys.readouterr().out
    bad = write(tmp_path / "bad.jsonl", [llava_row(1), llava_row(0, "none.png")])
    call[2] = str(bad)
    assert main([*call, "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "missing_image" in shown and "bad.jsonl:1 (id row-0): 'none.png'" in shown
    written = json.loads((out / "check.json").read_text())
    assert written["findings"]["missing_image"]["count"] == 1 and written["dropped"] == 1
    (line,) = (out / "check_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "missing_image"


RECIPE = """
model: {{path: {model}}}
reduction: {{method: dart, keep: 16, schedule: {{kind: fixed}}}}
data:
  train: [{{path: {rows}, images: {images}}}]
  validation: [{{path: {rows}, images: {images}, limit: 2, name: held_out}}]
  max_length: 2048
"""


def test_check_takes_sources_model_limits_and_reduction_from_a_recipe(tmp_path, image_folder, llava_file, capsys):
    TINY.save_pretrained(tmp_path / "model")
    paths = {"model": tmp_path / "model", "rows": llava_file, "images": image_folder}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(**paths))
    call = ["check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    assert main(call) == 0
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    assert list(written["sources"]) == ["rows.json", "held_out"] and written["rows"] == 8
    assert written["tokens"]["visual"]["sum"] == 4 * 64 and written["tokens"]["visual_reduced"]["sum"] == 4 * 16
    assert written["findings"]["duplicate"]["count"] == 2  # validation rows that are training rows
    assert "visual tokens, reduced" in capsys.readouterr().out
    assert main([*call[:2], "data.max_length=90", *call[2:]]) == 1  # half of the rows would be dropped
    assert main([*call[:2], "data.max_length=90", "data.max_bad_fraction=0.6", *call[2:]]) == 0
    assert "too_long" in json.loads((tmp_path / "out" / "check.json").read_text())["findings"]


def test_follow_links_in_a_recipe_allows_linked_images(tmp_path, image_folder, llava_file, capsys):
    for file in image_folder.iterdir():
        file.rename(tmp_path / file.name)
        file.symlink_to(f"../{file.name}")
    TINY.save_pretrained(tmp_path / "model")
    paths = {"model": tmp_path / "model", "rows": llava_file, "images": image_folder}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(**paths))
    call = ["check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path), "--workers", "1", "--quiet"]
    assert main(call) == 1
    assert "to allow links, set data.follow_links to true" in capsys.readouterr().out
    assert main([*call[:2], f"data.follow_links=[{tmp_path / 'model'}]", *call[2:]]) == 1
    for value in ("true", f"[{tmp_path}]"):
        assert main([*call[:2], f"data.follow_links={value}", *call[2:]]) == 0


def test_rows_are_checked_if_the_model_cannot_be_reached(tmp_path, image_folder, llava_file, capsys, monkeypatch):
    monkeypatch.setattr("dart_train.models.processors.load_processor", _out_of_reach)
    paths = {"model": "owner/missing", "rows": llava_file, "images": image_folder}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(**paths))
    assert main(["check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path), "--workers", "1", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "tokens are not measured: no processor at 'owner/missing'" in shown.err
    assert "8 rows" in shown.out and "token lengths: not measured" in shown.out
    call = ["check", "--rows", str(llava_file), "--model", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert main(call) == 2


def _out_of_reach(path, **options):
    raise OSError(f"{path} is not here, and there is no network")


def test_wrong_options_are_refused_with_exit_code_2(tmp_path, capsys):
    for call, words in (
        (["check"], "give either a recipe, or --rows"),
        (["check", "--rows", str(tmp_path / "none.json")], "does not exist"),
        (["check", str(tmp_path / "none.yaml")], "none.yaml"),
    ):
        assert main(call) == 2
        assert words in capsys.readouterr().err


def test_repeated_pixels_of_the_users_images_are_counted(tmp_path):
    """Half of each image is one colour; `data check` reports what a stage in the vision tower would drop."""
    rows = []
    for number in range(3):
        image = Image.effect_noise((64, 64), 80).convert("RGB")
        image.paste((10, 20, 30), (0, 0, 64, 32))
        image.save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a ship"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    sources = open_sources([SourceSpec(str(tmp_path / "rows.json"), str(tmp_path))])
    encoder = Encoder(FAMILIES["qwen2_5_vl"].processor())
    result = check_rows(sources, encoder, progress=False, tower_tolerance=0.0)
    repeated = result["repeated_units"]
    assert repeated["images"] == 3 and 0.3 < repeated["dropped_share"] < 0.5
    assert "of the units repeat the pixels" in as_text(result)
