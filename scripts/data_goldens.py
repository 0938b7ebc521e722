"""What TRL's own preprocessing makes of rows of all shapes: tests/data/trl_rows.json. And a few of
the rows as Parquet, as `datasets` and pandas write them.

Needs TRL, transformers, tokenizers and datasets (it ran with TRL 1.16, transformers 5.23,
tokenizers 0.23.3, datasets 5.2):

    PYTHONHASHSEED=0 python scripts/data_goldens.py tests/data/trl_rows.json tests/data/rows.parquet

(TRL's `is_conversational` looks at one key of a set: of a row that mixes strings and messages, the
hash seed decides which.)

The rows are made here, and so are the tokenizer, a byte-level BPE learnt from them, and its chat
template. Ids come from `_prepare_dataset` of `DPOTrainer` and `KTOTrainer`, which ask for nothing
but a tokenizer; masks from `apply_chat_template(return_assistant_tokens_mask=True)`, as
`SFTTrainer` with `assistant_only_loss` takes them.
"""

import copy
import itertools
import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
from datasets import IterableDataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from trl.data_utils import extract_prompt, maybe_extract_prompt
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

# `tests/suite/trl_rows.rs` renders the same by hand.
TEMPLATE = """
{%- macro said(message) %}
    {%- if message.content is string %}{{- message.content }}
    {%- elif message.content %}
        {%- for part in message.content %}{{- part.text }}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if mood is defined %}{{- '<|start|>system\\nMood: ' + mood + '<|end|>\\n' }}{%- endif %}
{%- if tools %}{{- '<|start|>system\\nTools: ' }}{{- tools | tojson }}{{- '<|end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- said(message) }}
        {%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}
        {{- '<|end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- said(message) + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if thinking is defined and not thinking %}{{- '<think>\\n</think>\\n' }}{%- endif %}
{%- endif %}
"""

FACTS = [
    ("What colour is the sky?", "It is blue.", "It is green, as everybody knows."),
    ("2+2?", "4", "5"),
    ("Wie heißt die Hauptstadt von Norwegen?", "Oslo.", "Bergen, glaube ich."),
    ("Name three\nprimes.", "2, 3, 5", "\n\n4, 6"),
    ("  Spaces  ", " kept ", "lost"),
    ("一加一?", "二 🙂", "三"),
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **other):
    return {"role": "assistant", "content": text, **other}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"unit": {}, "city": {}}}}]


def call(city):
    arguments = {"unit": "C", "city": city, "at": {"z": 1, "a": [True, None, 1.5, "é"]}}
    return [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]


def tool(text):
    return {"role": "tool", "name": "weather", "content": text}


def rows():
    """Name and row; a row with `label` has an unpaired completion."""
    for i, (question, good, bad) in enumerate(FACTS):
        yield f"plain {i}", {"prompt": question, "chosen": good, "rejected": bad}
        yield f"plain, a space {i}", {"prompt": question + " ", "chosen": good, "rejected": bad}
        yield f"plain, merging {i}", {"prompt": question[:-1], "chosen": question[-1] + good, "rejected": bad}
        yield f"implicit {i}", {"chosen": f"{question} {good}", "rejected": f"{question} {bad}"}
        yield f"implicit, continued {i}", {"chosen": f"{question} {good}", "rejected": f"{question} {good} More."}
        yield f"ends already {i}", {"prompt": question, "chosen": good + "<|end|>", "rejected": bad}
        yield f"unpaired {i}", {"prompt": question, "completion": bad, "label": i % 2 == 0}
        talk = {"prompt": [user(question)], "chosen": [assistant(good)], "rejected": [assistant(bad)]}
        yield f"chat {i}", talk
        yield f"chat unpaired {i}", {"prompt": talk["prompt"], "completion": talk["chosen"], "label": i % 2 == 0}
        yield f"chat, system {i}", {**talk, "prompt": [{"role": "system", "content": "Short."}, user(question)]}
        yield f"chat, kwargs {i}", {**talk, "chat_template_kwargs": {"mood": "calm"}}
        yield f"chat, opened otherwise {i}", {**talk, "chat_template_kwargs": {"thinking": False}}
        both = {side: talk["prompt"] + talk[side] for side in ("chosen", "rejected")}
        yield f"chat, implicit {i}", both
        yield f"chat, string prompt {i}", {"prompt": question, **both}
        parts = {side: [assistant([{"type": "text", "text": talk[side][0]["content"]}])] for side in both}
        yield f"chat, parts {i}", {"prompt": [user([{"type": "text", "text": question}, {"type": "text", "text": "!"}])], **parts}
        more = [assistant(good), user("Are you sure?")]
        yield f"chat, several turns {i}", {
            "prompt": talk["prompt"],
            "chosen": more + [assistant("Yes.")],
            "rejected": [assistant(bad), user("Are you sure?"), assistant("No."), user("So?"), assistant("...")],
        }
        yield f"chat, long prompt {i}", {**talk, "prompt": [user("Hi"), assistant("Hello"), user(question)]}
    for (i, city), with_content, tools in itertools.product(
        enumerate(["Oslo", "Rio"]), ["null", "missing", "text"], [TOOLS, json.dumps(TOOLS), None]
    ):
        asks = assistant({"null": None, "text": "Let me see."}.get(with_content), tool_calls=call(city))
        if with_content == "missing":
            del asks["content"]
        name = f"tools {city}, {with_content}, {type(tools).__name__}"
        row = {
            "prompt": [user(f"Is it cold in {city}?")],
            "chosen": [asks, tool("-3"), assistant("Yes, -3 C.")],
            "rejected": [assistant("No.")],
        }
        if tools is not None:
            row["tools"] = tools
        yield name, row
        yield f"{name}, unpaired", {
            "prompt": row["prompt"],
            "completion": [asks, tool("-3"), tool("or -4"), assistant("Yes.")],
            "label": i == 0,
            **{key: row[key] for key in row if key == "tools"},
        }
        yield f"{name}, in the prompt", {
            "prompt": [*row["prompt"], asks, tool("-3")],
            "chosen": [assistant("Yes.")],
            "rejected": [assistant("No.")],
            **{key: row[key] for key in row if key == "tools"},
        }
    q, a, b = user("Q?"), assistant("A"), assistant("B")
    yield "no tools", {"prompt": [q], "chosen": [a], "rejected": [b], "tools": []}
    yield "null tools", {"prompt": [q], "chosen": [a], "rejected": [b], "tools": None}
    yield "null kwargs", {"prompt": [q], "chosen": [a], "rejected": [b], "chat_template_kwargs": None}
    yield "implicit, one side continues", {"chosen": [q, a], "rejected": [q, a, user("And?"), b]}
    yield "implicit, parted by the user", {"chosen": [q, a, user("x"), a], "rejected": [q, a, user("y"), b]}
    yield "implicit, identical", {"chosen": [q, a], "rejected": [q, a]}
    yield "implicit, nothing in common", {"chosen": [q, a], "rejected": [user("P?"), a]}
    yield "implicit, no prompt", {"chosen": [a], "rejected": [b]}
    yield "implicit text, identical", {"chosen": "same", "rejected": "same"}
    yield "implicit text, nothing in common", {"chosen": "ab", "rejected": "cd"}
    yield "implicit text, a space at the end", {"chosen": "ab ", "rejected": "cd"}
    yield "implicit text, an empty side", {"chosen": "", "rejected": "cd"}
    yield "empty answer", {"prompt": "Q?", "chosen": "", "rejected": "no"}
    yield "empty message", {"prompt": [q], "chosen": [assistant("")], "rejected": [b]}
    yield "no message", {"prompt": [q], "chosen": [], "rejected": [b]}
    yield "prompt ends with the assistant", {"prompt": [q, assistant("Well,")], "chosen": [a], "rejected": [b]}
    yield "two answers in a row", {"prompt": [q], "chosen": [a, b], "rejected": [b]}
    yield "string prompt, not repeated", {"prompt": "Q?", "chosen": [a], "rejected": [b]}
    yield "string prompt, another one", {"prompt": "Else?", "chosen": [q, a], "rejected": [q, b]}
    yield "string answers", {"prompt": [q], "chosen": "A", "rejected": "B"}
    yield "a prompt of messages that is repeated", {"prompt": [q], "chosen": [q, a], "rejected": [q, b]}
    yield "a turn of the user ends it", {"prompt": [q], "chosen": [a, user("Thanks.")], "rejected": [b]}
    yield "nobody answers", {"prompt": [q], "chosen": [user("Well?")], "rejected": [user("Hm?")]}
    yield "keys of another order", {"chosen": [{"content": "Q?", "role": "user"}, a], "rejected": [q, b]}
    yield "unpaired as a number", {"prompt": "Q?", "completion": "A", "label": 1}


def tokenizer(texts):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<|begin|>", "<|start|>", "<|end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    begin = bpe.token_to_id("<|begin|>")
    bpe.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def prepared(row, tok):
    """The ids as TRL's trainers have them before they are truncated."""
    is_unpaired = "label" in row
    trainer = KTOTrainer if is_unpaired else DPOTrainer
    stub = SimpleNamespace(_tokenizer=tok, calculate_KL=False)
    args = SimpleNamespace(max_length=None, truncation_mode="keep_start", dataset_num_proc=None)
    dataset = IterableDataset.from_generator(lambda: iter([copy.deepcopy(row)]))
    example = next(iter(trainer._prepare_dataset(stub, dataset, tok, args, "train")))
    sides = ["completion"] if is_unpaired else ["chosen", "rejected"]
    return example["prompt_ids"], [example[f"{side}_ids"] for side in sides]


def masks(row, tok, start):
    """Of each completion, which tokens the assistant writes."""
    row = row if "prompt" in row else extract_prompt(row)
    if not isinstance(row["prompt"], list):
        return None
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    sides = ["completion"] if "label" in row else ["chosen", "rejected"]
    found = []
    for side in sides:
        result = tok.apply_chat_template(
            row["prompt"] + row[side],
            tools=tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **(row.get("chat_template_kwargs") or {}),
        )
        found.append(result["assistant_masks"][start:])
    return found


def golden(name, row, tok):
    case = {"name": name, "row": row}
    try:
        try:
            prompt, completions = prepared(row, tok)
        except Exception:
            # What its trainers no longer do and its function for such rows still does.
            if not isinstance(row.get("prompt"), str) or "label" in row:
                raise
            case["by"] = "maybe_extract_prompt"
            columns = {key: row[key] for key in row if key not in ("prompt", "chosen", "rejected")}
            row = {**maybe_extract_prompt(row), **columns}
            prompt, completions = prepared(row, tok)
        case |= {"prompt": prompt, "completions": completions}
        counted = masks(row, tok, len(prompt))
        if counted is not None:
            case["counted"] = ["".join(map(str, mask)) for mask in counted]
    except Exception as error:
        case["error"] = type(error).__name__
    return case


named = list(rows())
tok = tokenizer([*strings([row for _, row in named]), "system assistant user tool Mood: Tools: weather"])
cases = [golden(name, row, tok) for name, row in named]
with open(sys.argv[1], "w") as file:
    tokens = json.loads(tok.backend_tokenizer.to_str())
    file.write('{"tokenizer":' + json.dumps(tokens, ensure_ascii=False, separators=(",", ":")))
    file.write(',"cases":[\n')
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
    file.write(",\n".join(lines) + "\n]}\n")
print(len(cases), "rows,", sum("error" in case for case in cases), "refused")

few = [row for name, row in named if name in ("chat 0", "chat, several turns 1")]
asks = assistant(None, tool_calls=[{"name": "weather", "arguments": '{"unit": "C", "city": "Oslo"}'}])
few.append({"prompt": [user("Cold?")], "chosen": [asks, tool("-3"), assistant("Yes.")], "rejected": [assistant("No.")]})
few = [{**row, "score": 1.5 + i, "tree": i, "tools": json.dumps(TOOLS)} for i, row in enumerate(few)]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(few), sys.argv[2], compression="snappy")
