"""Every file format gives the same samples; opening a source decodes, downloads and unpickles nothing."""

import io
import json
import pickle
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train.data import sources as json_source
from dart_train.data.issues import BadRowError
from dart_train.data.sample import ImageRef
from dart_train.data.sources import SourceSpec, open_source, open_sources
from tests.data.conftest import llava_row
from tests.data.images import encoded, noise


def samples(spec, **options):
    source = open_source(SourceSpec(str(spec), **options))
    return [source.sample(row, index) for index, row in enumerate(source.rows)]


def flat(numbers):
    return {
        "image": [{"bytes": encoded(noise(seed=n)), "path": f"{n}.png"} for n in numbers],
        "question": [f"What is number {n}?" for n in numbers],
        "answer": [f"It is {n}." for n in numbers],
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_json_list_and_json_lines_give_the_same_rows(llava_file, llava_rows, tmp_path, streaming):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n\n".join(json.dumps(row) for row in llava_rows) + "\n")
    listed = samples(llava_file, streaming=streaming)
    assert [sample.id for sample in listed] == [f"row-{n}" for n in range(6)]
    assert listed == samples(lines, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["parquet", "arrow", "saved", "saved_splits", "tar"])
def test_columnar_files_saved_sets_and_tars_give_the_same_samples(tmp_path, form, streaming):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = datasets.Dataset.from_dict(flat(range(3))).cast_column("image", datasets.Image())
    if form == "parquet":
        rows.to_parquet(folder / "train-0000.parquet")
        rows.select([0]).to_parquet(folder / "test-0000.parquet")
    elif form == "arrow":
        rows.save_to_disk(tmp_path / "made")
        next((tmp_path / "made").glob("*.arrow")).rename(folder / "data.arrow")
    elif form == "saved":
        rows.save_to_disk(folder)
    elif form == "saved_splits":
        datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(folder)
    else:
        write_tar(folder / "train-0.tar", flat(range(3)))
    found = samples(folder, streaming=streaming)
    assert [sample.turns[0].parts[-1] for sample in found] == [f"What is number {n}?" for n in range(3)]
    assert [sample.images[0].data for sample in found] == [encoded(noise(seed=n)) for n in range(3)]


def write_tar(path, columns):
    with tarfile.open(path, "w") as tar:
        for n, (image, question, answer) in enumerate(zip(*columns.values(), strict=True)):
            text = json.dumps({"question": question, "answer": answer}).encode()
            for name, data in ((f"{n:03}.json", text), (f"{n:03}.png", image["bytes"])):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_inside_columnar_files_are_never_opened_by_the_loader(tmp_path, streaming):
    images = [{"bytes": b"junk", "path": "a.png"}, {"bytes": None, "path": "/etc/passwd"}]
    text = datasets.Value("string")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "question": text, "answer": text})
    table = pa.Table.from_pylist([{"images": images, "question": "?", "answer": "!"}], schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    (sample,) = samples(tmp_path / "rows.parquet", streaming=streaming)
    assert sample.images == [ImageRef(data=b"junk"), ImageRef(path="/etc/passwd")]
    with pytest.raises(BadRowError, match="outside_folder"):
        open_source(SourceSpec(str(tmp_path / "rows.parquet"))).store.open(sample.images[1])


def test_opened_source_can_be_pickled_for_a_worker(tmp_path):
    datasets.Dataset.from_dict(flat(range(3))).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    source = pickle.loads(pickle.dumps(open_source(SourceSpec(str(tmp_path / "set")))))
    assert isinstance(source.rows[1]["image"], dict)


def test_columns_split_limit_and_names(tmp_path, llava_file):
    renamed = {"pic": flat([0, 1])["image"], "q": ["a", "b"], "a": ["c", "d"]}
    datasets.Dataset.from_dict(renamed).to_parquet(tmp_path / "validation.parquet")
    columns = {"image": "pic", "question": "q", "answer": "a"}
    spec = SourceSpec(str(tmp_path / "validation.parquet"), columns=columns, limit=1, name="val")
    source = open_source(spec)
    assert [source.sample(row, i).id for i, row in enumerate(source.rows)] == ["val:0"]
    assert len(samples(llava_file, limit=4)) == len(samples(llava_file, limit=4, streaming=True)) == 4
    both = open_sources([SourceSpec(str(llava_file)), SourceSpec(str(llava_file)), SourceSpec(str(llava_file))])
    assert [source.name for source in both] == ["rows.json", "rows.json#2", "rows.json#3"]


def test_one_broken_line_is_one_bad_row(tmp_path):
    good = json.dumps(llava_row(1))
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{good}\n{{"id": [1, \n"just text"\n{{"id": {{"a": 1}}, "conversations": 3}}\n{good}\n')
    source = open_source(SourceSpec(str(path)))
    outcome = []
    for index, row in enumerate(source.rows):
        try:
            outcome.append(source.sample(row, index).id)
        except BadRowError as bad:
            outcome.append(bad.code)
    assert outcome == ["row-1", "bad_json", "bad_type", "unknown_format", "row-1"]


def test_truncated_json_list_has_a_bad_row(tmp_path, llava_rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(llava_rows)[:-40])
    source = open_source(SourceSpec(str(path)))
    assert len(source.rows) == 6 and source.sample(source.rows[4], 4).id == "row-4"
    with pytest.raises(BadRowError, match="bad_json"):
        source.sample(source.rows[5], 5)


def test_changed_file_is_read_again(tmp_path, llava_rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(llava_rows[:2]))
    assert len(samples(path)) == 2
    path.write_text(json.dumps(llava_rows[:5]))
    assert len(samples(path)) == 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 2]), st.booleans(), st.integers(1, 40))
def test_json_list_read_in_chunks_is_the_list(items, indent, ascii_only, chunk):
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_source, "CHUNK", chunk)
        read = [json.loads(item) for item in json_source._list_items(io.StringIO(text, newline="\n"))]
    assert read == items


def test_hub_id_without_network_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"never downloaded .* .HF_HUB_OFFLINE is set.*download it first"):
        open_source(SourceSpec("owner/missing"))


def test_wrong_paths_are_refused_with_what_was_expected(tmp_path, llava_file):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "rows.pkl").write_bytes(pickle.dumps([1]))
    for path, words in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path / "empty", "contains no data files; expected"),
        (tmp_path / "empty" / "rows.pkl", "rows.pkl.* is not supported; expected"),
    ):
        with pytest.raises(ValueError, match=words):
            open_source(SourceSpec(str(path)))
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match="contains no rows"):
        open_source(SourceSpec(str(tmp_path / "blank.jsonl")))
    with pytest.raises(ValueError, match="split 'test' is not in"):
        datasets.Dataset.from_dict(flat([0])).to_parquet(tmp_path / "empty" / "train.parquet")
        open_source(SourceSpec(str(tmp_path / "empty"), split="test"))
    with pytest.raises(ValueError, match=r"images: .* is not a folder"):
        open_source(SourceSpec(str(llava_file), images=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("end", ["", "\n", " \n\n"])
def test_json_list_on_one_line_with_any_end_of_file(tmp_path, end):
    rows = [{"a": 1}, {"b": [2]}, 3]
    (tmp_path / "rows.json").write_text(json.dumps(rows) + end)
    assert [json.loads(row["text"]) for row in json_source.json_rows([str(tmp_path / "rows.json")], [])] == rows


def test_json_lines_that_are_lists_are_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[1, 2]\n[3]\n")
    found = [json.loads(row["text"]) for row in json_source.json_rows([str(tmp_path / "rows.jsonl")], [])]
    assert found == [[1, 2], [3]]
