"""What the conversions of docs/guide/data.md make of rows as published sets have them:
tests/data/published_rows.json.

Needs DuckDB (it ran with 2.0.1):

    python scripts/published_rows.py docs/guide/data.md tests/data/published_rows.json

The rows are invented; their columns are those of the sets.
"""

import json
import os
import re
import sys
import tempfile

import duckdb


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ROWS = {
    "ultrafeedback.jsonl": [
        {"source": "evol", "instruction": "Name a red fruit.", "models": ["a", "b", "c"], "completions": [
            {"model": "a", "response": "A banana.", "overall_score": 2.5, "principle": "honesty"},
            {"model": "b", "response": "A cherry.", "overall_score": 8, "principle": "honesty"},
            {"model": "c", "response": "Red.", "overall_score": 4, "principle": "honesty"},
        ]},
        {"source": "evol", "instruction": "Alone?", "models": ["a"], "completions": [
            {"model": "a", "response": "Yes.", "overall_score": 5, "principle": "honesty"}]},
    ],
    "helpsteer2.jsonl": [
        {"prompt": "2+2?", "response": "22", "helpfulness": 1, "correctness": 0, "verbosity": 2},
        {"prompt": "2+2?", "response": "4, \"four\"", "helpfulness": 4, "correctness": 4, "verbosity": 1},
        {"prompt": "Equal?", "response": "Yes.", "helpfulness": 3, "correctness": 3, "verbosity": 1},
        {"prompt": "Equal?", "response": "No.", "helpfulness": 3, "correctness": 3, "verbosity": 1},
        {"prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWell?", "response": "Good.", "helpfulness": 4,
         "correctness": 4, "verbosity": 0},
    ],
    "helpsteer3.jsonl": [
        {"domain": "general", "language": "english", "context": [user("Hi"), assistant("Hello."), user("Where is Oslo?")],
         "response1": "In Norway.", "response2": "In Peru.", "overall_preference": -2,
         "individual_preference": [{"score": -2, "reasoning": "It is."}]},
        {"domain": "general", "language": "english", "context": [user("2+2?")],
         "response1": "5", "response2": "4", "overall_preference": 1, "individual_preference": []},
        {"domain": "general", "language": "english", "context": [user("Equal?")],
         "response1": "A", "response2": "B", "overall_preference": 0, "individual_preference": []},
    ],
    "nectar.jsonl": [
        {"prompt": "\n\nHuman: Name a red fruit.\n\nAssistant: ", "turns": 1, "num_responses": 2, "source": ["x"],
         "good_natured": True, "answers": [
             {"answer": "A banana.", "model": "a", "rank": 2.0}, {"answer": "A cherry.", "model": "b", "rank": 1.0}]},
    ],
    "saferlhf.jsonl": [
        {"prompt": "How do I sleep well?", "response_0": "Never.", "response_1": "In the dark.",
         "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1},
        {"prompt": "2+2?", "response_0": "4", "response_1": "5",
         "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 0},
    ],
    "shp.jsonl": [
        {"post_id": "a", "history": "Why is the sky blue?", "human_ref_A": "It scatters.", "human_ref_B": "Paint.",
         "labels": 1, "score_A": 9, "score_B": 2, "score_ratio": 4.5},
        {"post_id": "b", "history": "2+2?", "human_ref_A": "5", "human_ref_B": "4",
         "labels": 0, "score_A": 1, "score_B": 3, "score_ratio": 3.0},
    ],
    "nemo.jsonl": [
        {"context": [user("2+2?")], "completions": [
            {"rank": 0, "completion": [assistant("4")]}, {"rank": 1, "completion": [assistant("5")]}]},
        {"context": [user("Hi"), assistant("Hello."), user("3+3?")], "completions": [
            {"rank": 1, "completion": [assistant("33")]}, {"rank": 0, "completion": [assistant("6")]}]},
    ],
}


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main():
    guide, output = sys.argv[1:]
    with open(guide, encoding="utf-8") as file:
        commands = re.findall(r"```sql\n(.*?)```", file.read(), re.DOTALL)
    cases = []
    for command in commands:
        source = re.search(r"FROM '([^']+)'", command).group(1)
        target = re.search(r"TO '([^']+)'", command).group(1)
        with tempfile.TemporaryDirectory() as folder:
            before = os.getcwd()
            os.chdir(folder)
            with open(source, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in ROWS[source])
            duckdb.sql(command)
            rows = lines(target)
            os.chdir(before)
        cases.append({"source": source, "target": target, "command": command, "raw": ROWS[source], "rows": rows})
    assert {case["source"] for case in cases} == set(ROWS)
    with open(output, "w", encoding="utf-8") as file:
        json.dump(cases, file, ensure_ascii=False, indent=1)
        file.write("\n")


main()
