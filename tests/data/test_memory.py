"""Memory does not grow with the rows: they are checked and tokenised in bounded memory."""

import json
import subprocess
import sys

import pytest

from tests.data.conftest import llava_row

# For each file, in a process of its own that has imported everything: checks and tokenises all rows, then reads some
# through the training data set; prints peak megabytes.
RUN = """
import json, os, resource, sys, time
import datasets
from dart_train.data.check import check_rows
from dart_train.data.dataset import RowReader, RowDataset
from dart_train.data.encoder import Encoder
from dart_train.data.sources import SourceSpec, open_sources
from tests.zoo import FAMILIES

images, cache, *paths = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
encoder = Encoder(FAMILIES["llava"].processor(), 2048)


def measure(path):
    sources = open_sources([SourceSpec(path, images)])
    began = time.perf_counter()
    result = check_rows(sources, encoder, workers=2, progress=False)
    seconds = time.perf_counter() - began
    data = RowDataset(RowReader(sources, encoder))
    for row in range(0, len(data), max(1, len(data) // 200)):
        data[row]
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"rows": result["rows"], "tokens": result["tokens"]["total"]["sum"], "own": peaks[0],
                      "worker": peaks[1], "seconds": seconds}), flush=True)


for path in paths:
    child = os.fork()
    if not child:
        measure(path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, path
"""


def write_rows(folder, rows):
    path = folder / f"{rows}.jsonl"
    with path.open("w") as file:
        for n in range(rows):
            row = llava_row(n, f"{n % 3}.png" if n % 4 else None)
            row["conversations"][0]["value"] += " Look closely, then say it." * (n % 20)
            print(json.dumps(row), file=file)
    return str(path)


def measured(folder, images, *numbers):
    paths = [write_rows(folder, rows) for rows in numbers]
    call = [sys.executable, "-c", RUN, str(images), str(folder / "cache"), *paths]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for rows, result in zip(numbers, results, strict=True):
        assert result["rows"] == rows and result["tokens"] > 50 * rows
        print(result)
    return results


@pytest.mark.parametrize("rows, megabytes", [(3000, 50), pytest.param(100_000, 150, marks=pytest.mark.slow)])
def test_many_rows_are_checked_and_tokenised_in_bounded_memory(tmp_path, image_folder, rows, megabytes):
    few, many = measured(tmp_path, image_folder, 1000, rows)
    for process in ("own", "worker"):
        assert many[process] - few[process] < megabytes
