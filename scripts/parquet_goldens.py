#!/usr/bin/env python3
"""Parquet files as the usual programs write them, and their rows as JSON lines, for
tests/suite/files.rs.

Needs datasets 5.2.0, pyarrow 26.0.1, duckdb 2.0.1, fastparquet 2026.9.0, pandas 3.1.1, polars 2.1.0.

    PYTHONHASHSEED=0 python scripts/parquet_goldens.py tests/data/parquet

The JSON lines are DuckDB's reading of each file (`COPY (FROM 'x.parquet') TO 'x.jsonl' (FORMAT json)`,
the command of the guide), and `datasets` agrees with it where it can read the file.
"""

import json
import os
import sys
import tempfile

import datasets
import duckdb
import fastparquet
import pandas
import polars
import pyarrow
import pyarrow.parquet

FOLDER = sys.argv[1]
os.makedirs(FOLDER, exist_ok=True)


def path(name):
    return os.path.join(FOLDER, name)


def say(role, content, **other):
    return {"role": role, "content": content, **other}


def call(arguments):
    return [{"type": "function", "function": {"name": "f", "arguments": arguments}}]


PAIRS = [
    {
        "prompt": [say("user", "Cold in Oslo?")],
        "chosen": [say("assistant", "Yes, \"-3\" — cold.")],
        "rejected": [say("assistant", "No.\nNot at all.")],
        "margin": 0.12345678901234566,
    },
    {
        "prompt": [say("system", "Be short."), say("user", "2+2?")],
        "chosen": [say("assistant", "4")],
        "rejected": [say("assistant", "")],
        "margin": None,
    },
    {
        "prompt": [],
        "chosen": [say("assistant", "🙂")],
        "rejected": [say("assistant", "n"), say("user", "?"), say("assistant", None)],
        "margin": -1e-11,
    },
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"b": {"n": 1}, "a": {}}}}}]
TALKS = [
    {
        "prompt": [say("user", "go", tool_calls=None)],
        "chosen": [say("assistant", None, tool_calls=call({"unit": "C", "lr": 0.5, "n": 3}))],
        "rejected": [say("assistant", "no", tool_calls=None)],
        "tools": TOOLS,
    },
    {
        "prompt": [say("user", [{"type": "text", "text": "go"}], tool_calls=None)],
        "chosen": [say("assistant", None, tool_calls=call({"city": ["Oslo", None]}))],
        "rejected": [say("assistant", 'I say "no"', tool_calls=None)],
        "tools": TOOLS,
    },
]

# What `datasets` makes of conversations with tools: columns of JSON, in lists and structs.
datasets.Dataset.from_list(TALKS, on_mixed_types="use_json").to_parquet(path("use_json.parquet"))
message = {
    "role": datasets.Value("string"),
    "content": datasets.Json(),
    "tool_calls": datasets.List(datasets.Json()),
}
features = datasets.Features(
    {name: datasets.List(message) for name in ("prompt", "chosen", "rejected")}
    | {"tools": datasets.List(datasets.Json())}
)
datasets.Dataset.from_list(TALKS, features=features).to_parquet(path("features.parquet"))

# Lists of objects are JSON to fastparquet.
fastparquet.write(path("fastparquet.parquet"), pandas.DataFrame(PAIRS))

# Each compression, by the programs that choose it.
for compression in ("zstd", "snappy", "gzip", "lz4", "brotli", "uncompressed"):
    polars.DataFrame(PAIRS).write_parquet(path(f"{compression}.parquet"), compression=compression)

# Pages of the second version, several of them, with and without a dictionary.
many = [
    {"text": f"row {i % 7}", "number": i, "words": [[f"w{j}"] * (j % 3) for j in range(i % 5)] or None}
    for i in range(700)
]
for version in ("1.0", "2.0"):
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(many),
        path(f"pages_{version[0]}.parquet"),
        compression="zstd",
        data_page_version=version,
        data_page_size=512,
        row_group_size=300,
        use_dictionary=["text"],
    )

# Every type that DuckDB has; what JSON has no value for stands in columns of its own.
duckdb.execute(
    f"""COPY (SELECT
        MAP {{'k0': '"x"'::JSON, 'k1': '1'::JSON, 'k2': '{{"b": [1, null], "a": 0.5}}'::JSON}} AS arguments,
        MAP {{3: 'three', 1: 'one'}} AS numbered,
        '{{"deep": {{"z": 1, "a": "\\u00e9"}}}}'::JSON AS json,
        '{{"not": "decoded"}}' AS string,
        [{{'a': [1, NULL], 'b': NULL::INTEGER[]}}, {{'a': [], 'b': [2]}}] AS nested,
        [[['a'], []], NULL, [NULL]] AS lists,
        NULL::STRUCT(x INTEGER) AS nothing,
        12.500::DECIMAL(18, 3) AS small,
        (-0.05)::DECIMAL(4, 2) AS tiny,
        12345678901234567890.0123456789::DECIMAL(38, 10) AS large,
        7::DECIMAL(38, 0) AS whole,
        18446744073709551615::UBIGINT AS unsigned,
        200::UTINYINT AS byte,
        (-9223372036854775808)::BIGINT AS least,
        1e-12::DOUBLE AS double,
        0.5::FLOAT AS single,
        true AS truth,
        'b'::ENUM ('a', 'b') AS one_of,
        '0193e8a0-1b2c-7d3e-8f40-5a6b7c8d9e0f'::UUID AS uuid,
        3.0::DOUBLE AS three
    ) TO '{path('types.parquet')}' (COMPRESSION zstd)"""
)
for name in sorted(os.listdir(FOLDER)):
    if name.endswith(".parquet"):
        lines = path(name.replace(".parquet", ".jsonl"))
        duckdb.execute(f"COPY (FROM '{path(name)}') TO '{lines}' (FORMAT json)")
        rows = [json.loads(line) for line in open(lines)]
        # It has no maps of JSON, and decimals of its own.
        if name != "types.parquet":
            theirs = datasets.load_dataset("parquet", data_files=path(name), split="train", cache_dir=tempfile.mkdtemp())
            theirs = json.loads(json.dumps(theirs.to_list()))
            assert theirs == rows, (name, theirs[0], rows[0])
# The six compressions hold the same rows: one file of lines for all.
for compression in ("snappy", "gzip", "lz4", "brotli", "uncompressed"):
    assert open(path(f"{compression}.jsonl")).read() == open(path("zstd.jsonl")).read()
    os.remove(path(f"{compression}.jsonl"))
# The test makes these rows itself.
for version in "12":
    assert [json.loads(line) for line in open(path(f"pages_{version}.jsonl"))] == many
    os.remove(path(f"pages_{version}.jsonl"))

# What JSON does not have, and dates, whose text is the program's own.
duckdb.execute(
    f"""COPY (SELECT
        'p' AS prompt, 'a' AS chosen, 'b' AS rejected,
        'NaN'::DOUBLE AS score, INTERVAL 3 DAYS AS age, 'x'::BLOB AS image,
        MAP {{DATE '2020-01-02': 1}} AS days,
        DATE '2020-01-02' AS date, TIME '03:04:05.000006' AS time,
        TIMESTAMP '2020-01-02 03:04:05.000006' AS timestamp,
        TIMESTAMP_NS '2020-01-02 03:04:05.000000007' AS nanoseconds,
        DATE '-5877641-06-25' + 1 AS long_ago
    ) TO '{path('not_json.parquet')}'"""
)
