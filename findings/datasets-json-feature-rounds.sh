#!/usr/bin/env bash
# The feature Json() of datasets 5.2.0 keeps ten decimals of a number: 1e-12 becomes 0.0, without a
# word, at any depth of the value. What is written to Parquet has lost the digits: no reader can bring
# them back. A column of type float64 keeps them.
#
# Met with data sets of conversations with tools, whose arguments become Json() columns: a learning
# rate or a p-value in a call is another number after `to_parquet`.
#
# Installs datasets in a temporary folder (about 200 MB) and fails if this has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q datasets==5.2.0
HF_HOME="$place/hub" HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place/rows.parquet" <<'PYTHON'
import sys

import datasets
import pyarrow.parquet
from datasets import Dataset, Features, Json, Value

datasets.disable_progress_bars()
numbers = [1e-12, 2.5e-10, 0.12345678901234566, 1e-3]
path = sys.argv[1]
features = Features({"json": Json(), "float": Value("float64")})
rows = [{"json": {"arguments": {"x": x}}, "float": x} for x in numbers]
Dataset.from_list(rows, features=features).to_parquet(path)

table = pyarrow.parquet.read_table(path)
stored = table.column("json").to_pylist()
print("datasets", datasets.__version__, "stores", stored)
assert stored == [
    '{"arguments":{"x":0.0}}',
    '{"arguments":{"x":0.0000000002}}',
    '{"arguments":{"x":0.123456789}}',
    '{"arguments":{"x":0.001}}',
], "this has changed"
assert table.column("float").to_pylist() == numbers
PYTHON
