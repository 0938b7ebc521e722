#!/usr/bin/env python3
"""What transformers renders, for finetune/tests/chat_template.rs.

    python3 -m venv target/chat && target/chat/bin/pip install transformers==5.24.0 jinja2==3.1.6
    target/chat/bin/python finetune/scripts/chat_goldens.py

The templates in finetune/tests/data/chat are ours: they use the constructs of five families (ChatML, Llama 3,
Qwen 2.5 and 3, Gemma 2, Mistral), and none of their prose. The models' own
templates are compared as well, but not kept here, since their licences differ; TRL's package
(Apache-2.0) has copies of 72:

    target/chat/bin/pip install trl==1.16.0
    target/chat/bin/python finetune/scripts/chat_goldens.py --originals target/chat_originals.json
    BURN_PREFERENCE_CHAT=target/chat_originals.json \\
        cargo test --test suite the_models_own_templates -- --ignored --nocapture
"""

import argparse
import datetime
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, __version__
from transformers.utils import chat_template_utils

DATA = Path(__file__).parent.parent / "tests" / "data" / "chat"
BOS, EOS = "<s>", "</s>"
CONTROL = [BOS, EOS, "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
           "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]


class Noon(datetime.datetime):
    """The clock of `strftime_now`."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 7, 12, 5, 9)


chat_template_utils.datetime = Noon

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "Says how warm it is in a place, in °C or \"°F\".",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "A town"},
            "unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["place"]},
        "return": {"type": "number"}}},
    {"type": "function", "function": {
        "name": "add", "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}},
]
# Keys out of alphabetical order, and numbers that Python and Rust write differently.
CALL = {"type": "function", "id": "call00001", "function": {
    "name": "weather", "arguments": {"unit": "C", "place": "Zürich <&> 'Bern'", "days": 3, "near": [1.0, 1e-07, 2.5e+20, 0.1],
                                     "exact": True, "not": None, "deep": {"b": {}, "a": []}}}}
ADD = {"type": "function", "id": "call00002", "function": {"name": "add", "arguments": {"b": 2, "a": -1.5}}}

user = lambda text: {"role": "user", "content": text}
assistant = lambda text, **more: {"role": "assistant", "content": text, **more}
system = lambda text: {"role": "system", "content": text}
tool = lambda content, id: {"role": "tool", "tool_call_id": id, "name": "weather", "content": content}

CONVERSATIONS = {
    "one turn": [user("How warm is it?")],
    "an answer": [user("  How warm is it?\n"), assistant(" Cold,\n\tand \"wet\" \n")],
    "several turns": [user("Hi"), assistant("Hello 👋🏽."), user("Grüezi, 你好"), assistant("你好!"), user("")],
    "a system turn": [system(" Be kind. "), user("Hi"), assistant("Hello.")],
    "a tool": [user("How warm is it?"), {"role": "assistant", "content": None, "tool_calls": [CALL]},
               tool("{\"celsius\": 3}", "call00001"), assistant("3 °C.")],
    "a tool without content": [user("How warm is it?"), {"role": "assistant", "tool_calls": [CALL]},
                               tool({"content": 3, "list": [True, None, "é"]}, "call00001"), assistant("3 °C.")],
    "two calls": [system("Use tools."), user("And 2 − 1.5?"), assistant("I look.", tool_calls=[CALL, ADD]),
                  tool("3", "call00001"), tool("0.5", "call00002"), assistant("3 and 0.5")],
    "a built-in tool": [user("How warm is it?"), {"role": "assistant", "tool_calls": [
        {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {
            "unit": "C", "exact": True, "not": None, "near": [1.0, 0.25, "it's"], "deep": {"b": {}, "a": []}}}}]},
        tool("3", "call00001")],
    "arguments as text": [user("Add"), {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "call00002", "function": {"name": "add", "arguments": "{\"b\": 2}"}}]},
        tool("2", "call00002"), assistant("2")],
    "thoughts": [user("2+2?"), assistant("<think>\nTwo and two.\n</think>\n\n4"), user("3+3?"),
                 assistant("<think>\nThree twice.\n</think>\n\n6")],
    "thoughts apart": [user("2+2?"), assistant("4", reasoning_content="\nTwo and two.\n")],
    "a result as a user turn": [user("2+2?"), assistant("<think>add</think>4"), user("<result>4</result>")],
    "odd characters": [user("\x01 \x1f\x7f \"\\/\b\f\r\n\t é 👋 <a href='x'>&amp;</a> \u2028"), assistant(" a, b ,c ")],
    "two users": [user("Hi"), user("Hello?")],
    "an unknown role": [user("Hi"), {"role": "critic", "content": "No."}],
    "a call with a bad id": [user("Add"), {"role": "assistant", "content": None, "tool_calls": [{**ADD, "id": "1"}]}],
}
# Conversation, tools?, generation prompt, other variables.
CASES = [(name, tools, prompt, {}) for name in CONVERSATIONS for tools in (False, True) for prompt in (False, True)] + [
    ("one turn", False, True, {"enable_thinking": False}),
    ("one turn", False, True, {"enable_thinking": True}),
    ("a built-in tool", True, False, {"builtin_tools": ["code", "weather", "search"], "date_string": "1 Jan 2000"}),
]


# Over "odd characters" and the tools, one by one.
SNIPPETS = [
    "{{ messages | tojson }}", "{{ messages | tojson(ensure_ascii=true) }}", "{{ tools | tojson(indent=2) }}",
    "{{ tools[1] | tojson(sort_keys=true) }}", "{{ tools | tojson(separators=(',', ':')) }}",
    "{{ tools[0] | tojson(indent=1, separators=(' ,', ' : ')) }}", "{{ {} | tojson(indent=2) }}{{ [] | tojson(indent=2) }}",
    "{{ [1, -2, 0.5, 1.0, 1e-5, 0.0001, 1e15, 1e16, 123456789.125, 1e300, -2.5e-9, true, false, none] | tojson }}",
    "{{ 1e-5 }} {{ 1e16 }} {{ 0.1 }} {{ 2.0 }} {{ 3 }} {{ true }} {{ none }}", "{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 3 }}",
    "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A, %B %d, %H:%M:%S') }}",
    "{{ messages[1].content.split(',') | length }}{{ messages[1].content.split(',')[-1] }}", "{{ messages[1].content.strip() }}|",
    "{{ messages[1].content.lstrip() }}|{{ messages[1].content.rstrip() }}|{{ messages[1].content.strip(' ac') }}",
    "{{ 'xxaxx'.lstrip('x') }}{{ 'xxaxx'.rstrip('x') }}", "{{ 'a-b-c'.replace('-', '+') }}{{ 'aaa'.replace('a', 'b', 1) }}",
    "{{ 'Abc'.upper() }}{{ 'Abc'.lower() }}{{ 'abc'.title() }}{{ 'abc' | capitalize }}", "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('ab') }}",
    "{{ 'abc'[::-1] }}{{ 'abc'[1:] }}{{ 'abc'[:-1] }}{{ 'abc'[-1] }}", "{{ [1, 2, 3][::-1] }}{{ [1, 2, 3][-2:] }}",
    "{{ messages[0].missing }}|{{ messages[0].missing is defined }}|{{ messages[0]['missing'] is none }}", "{{ missing.deeper }}",
    "{{ messages[0].get('role') }}{{ messages[0].get('missing') }}{{ messages[0].get('missing', 'x') }}",
    "{% for key, value in tools[1].function.items() %}{{ key }}={{ value is mapping }};{% endfor %}",
    "{{ tools[1].function.keys() | list }}", "{{ tools[1].function | items | list | length }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = i + x %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = i + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% set ns = namespace(x=1) %}{% generation %}{% set ns.x = 2 %}{% endgeneration %}{{ ns.x }}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc\n\n", "  {{ 'a' }}  \n  {#- x -#}  \n b",
    "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc", "a\n  {%- generation -%}\n  b\n  {%- endgeneration -%}\nc", "a {%+ if true %} b {% endif +%}\n c",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem is defined }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.last }}{% else %}none{% endfor %}", "{% for m in [] %}{% else %}none{% endfor %}",
    "{% macro f(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}", "{{ messages | map(attribute='role') | join(', ') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
    "{{ 'a' ~ 1 ~ none ~ true }}{{ 'x' * 3 }}", "{{ 'a' if false }}|{{ 'a' if false else 'b' }}", "{{ 'user' in messages[0].role }}{{ 'role' in messages[0] }}{{ 3 not in [1] }}",
    "{{ none is iterable }}{{ 'a' is iterable }}{{ 3 is iterable }}{{ {} is mapping }}{{ [] is sequence }}{{ 'a' is string }}{{ 1 is number }}{{ true is boolean }}",
    "{{ messages | first | tojson }}{{ (messages | last).role }}{{ [3, 1, 2] | sort }}{{ [1, 1] | unique | list }}", "{{ 'abc' | length }}{{ '<&>' | e }}{{ '  a ' | trim }}",
    "{{ [1, 'a', none, true] }}{{ {'a': 'b'} }}", "{{ '%s' | format('a') }}{{ 'a' | replace('a', 'b') }}{{ x | default('d') }}{{ '' | default('d', true) }}",
    "{{ 1e-5 | string }} {{ 1e16 ~ '' }} {{ 'a' ~ 1e-7 ~ 1e22 ~ 0.5 ~ none ~ true ~ missing }} {{ -1e-5 ~ 2 * 1e-6 ~ 3 }}",
    "{{ [1e-5, 1e16, 0.5, -0.0] }} {{ {'a': 1e-5, 1: [none, {}]} }} {{ (1e-5,) }} {{ (1e16, 'a') }} {{ [[1e-5], {'b': (1, 2)}] }}",
    "{{ messages | map(attribute='content') | list }}", "{{ [\"it's\", 'a\"b', 'c\\\\d', '\\n', 'e\u0301', '\u0301', '\u00a0', '\u200b', '\U000e0001', '👋🏽'] }}",
    "{{ 1e-5 | trim }} {{ 1e16 | upper }} {{ 1e-5 | e }} {{ [1e-5, 'a', none] | join('|') }} {{ [1e-5] | map('string') | first }}",
    "{{ [{'a': {'b': 1e-5}}] | join(', ', attribute='a.b') }} {{ 'abc' | join('-') }} {{ 1e-5 | replace('e', 'E') }}",
    "{% set x = 1e-5 ~ '!' %}{{ x }}{% if 1e-5 ~ '' == '1e-05' and not 1e16 ~ '' != '1e+16' %}same{% endif %}{{ 'a' ~ (1e-5 if true else 2) ~ [1e-5][0] }}",
    "{{ '{} {}'.format(1e-5, 'x') }} {{ '{:.1f} {}'.format(1.25, 1e16) }}", "{% raw %}{{ a ~ b }}{% endraw %}{# {{ a ~ #}{{ '}}' ~ '%}' ~ 1e-5 }}",
    "a\r\n{% if true %}\r\nb{{ 'c\r\nd' }}\r\n{% endif %}\re\r\n", "a\r\n  {%- if true %}\r\n  b\r\n  {%- endif %}\r\n\r\n",
    "{{ raise_exception('no') }}", "{{ 1 + 'a' }}", "{{ messages[5].role }}", "{{ bos_token + eos_token }}", "{{ dict(a=1) | tojson }}",
    "{% set content %}<{{ messages[0].role }}>{% endset %}{{ content }}", "{% filter upper %}abc{% endfilter %}", "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}",
    "{% if messages[0].role != 'user' or not (tools and add_generation_prompt) %}a{% elif 1 < 2 <= 2 %}b{% endif %}",
]


def snippet(tokens, source):
    call = dict(chat_template=source, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    try:
        return {"source": source, "text": tokens.apply_chat_template(CONVERSATIONS["odd characters"], **call)}
    except (jinja2.exceptions.TemplateError, TypeError):
        return {"source": source}


# Blocks that begin or end with blanks, or are nothing else, and a tokenizer that drops blanks.
BLANKS = ["a {% generation %} b c {% endgeneration %} d", "a{% generation %}   {% endgeneration %} d", "a {% generation %} b{% endgeneration %}",
          "ab{% generation %}c{% endgeneration %}d e", "a{% generation %}{% endgeneration %}b {% generation %}c {% endgeneration %}",
          "{% generation %} {% endgeneration %}a{% generation %}b  {% endgeneration %} {% generation %}  c{% endgeneration %}"]


def blanks():
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = PreTrainedTokenizerFast(tokenizer_object=words)
    call = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    mask = lambda source: tokens.apply_chat_template([user("")], chat_template=source, **call)["assistant_masks"]
    return {"tokenizer": json.loads(words.to_str()), "masks": [[source, mask(source)] for source in BLANKS]}


# What stands beside tokenizer.json, in new and old files. The words 340 and following are free.
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
NAMED = {"bos_token": BOS, "eos_token": EOS}
BESIDE = [
    {"tokenizer_config.json": {**NAMED, "added_tokens_decoder": {
        "340": {**FLAGS, "content": "<tool>", "special": False}, "341": {**FLAGS, "content": "<x>", "lstrip": True}}, "pad_token": "<pad>"}},
    {"tokenizer_config.json": {**NAMED, "eos_token": "<end>", "additional_special_tokens": ["<x>", "<tool>"]}},
    {"tokenizer_config.json": {**NAMED, "extra_special_tokens": {"image_token": "<x>"}, "other_token": "<tool>"}},
    {"tokenizer_config.json": {**NAMED}, "special_tokens_map.json": {"eos_token": {**FLAGS, "content": "<end>"}},
     "added_tokens.json": {"<tool>": 340, "<end>": 341}},
    {"tokenizer_config.json": {**NAMED, "eos_token": "er"}}, {"tokenizer_config.json": {**NAMED, "split_special_tokens": True}},
    {"tokenizer_config.json": {**NAMED, "added_tokens_decoder": {"0": {**FLAGS, "content": BOS, "rstrip": True}}},
     "special_tokens_map.json": {"eos_token": "<x>"}},
]
TEXT = f"{BOS} weather <tool> <x><end>her{EOS}<pad>"
NAMES = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ other_token }}"


def beside(files):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(DATA / "tokenizer.json", folder)
        for name, content in files.items():
            Path(folder, name).write_text(json.dumps(content))
        tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    names = tokens.apply_chat_template([user("")], chat_template=NAMES, tokenize=False)
    ids = tokens(TEXT, add_special_tokens=False)["input_ids"]
    return {"files": files, "text": TEXT, "ids": ids, "template": NAMES, "names": names, "end": tokens.eos_token_id,
            "decoded": tokens.decode(ids, skip_special_tokens=True)}


def tokenizer():
    """Bytes and a few merges: small, and every boundary of characters is inside some token."""
    path = DATA / "tokenizer.json"
    if not path.exists():
        tokens = Tokenizer(models.BPE())
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=CONTROL, show_progress=False,
                                      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
        tokens.train_from_iterator([json.dumps(list(CONVERSATIONS.values()), ensure_ascii=False)], trainer)
        tokens.save(str(path), pretty=False)
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=BOS, eos_token=EOS)


def runs(mask):
    """Where ones start and end."""
    edges = [i for i in range(len(mask) + 1) if (mask[i - 1] if i else 0) != (mask[i] if i < len(mask) else 0)]
    return [edges[i:i + 2] for i in range(0, len(edges), 2)]


def golden(tokens, template, name, with_tools, prompt, kwargs):
    case = {"conversation": name, "tools": with_tools, "add_generation_prompt": prompt, "kwargs": kwargs}
    call = dict(tools=TOOLS if with_tools else None, chat_template=template, add_generation_prompt=prompt, **kwargs)
    try:
        case["text"] = tokens.apply_chat_template(CONVERSATIONS[name], tokenize=False, **call)
        marked = "generation" in template and "endgeneration" in template
        out = tokens.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=True,
                                         return_assistant_tokens_mask=marked, **call)
        case["tokens"] = len(out["input_ids"])
        if marked:
            case["assistant"] = runs(out["assistant_masks"])
    except jinja2.exceptions.TemplateError as error:
        case["error"] = str(error)
    except TypeError as error:  # None + str, in the template
        case["error"] = str(error)
    return case


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--originals", type=Path, help="render TRL's copies of the models' templates into this file")
    args = parser.parse_args()
    tokens = tokenizer()
    folder = DATA
    if args.originals:
        folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    families = []
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        cases = [golden(tokens, template, *case) for case in CASES]
        family = {"name": path.stem, "cases": cases}
        if args.originals:
            family["template"] = template
        families.append(family)
        print(f"{path.stem}: {len(cases)} cases, {sum('error' in case for case in cases)} of them refused")
    goldens = {
        "by": f"transformers {__version__}, jinja2 {jinja2.__version__}",
        "now": str(Noon.now()), "bos_token": BOS, "eos_token": EOS,
        "tools": TOOLS, "conversations": CONVERSATIONS, "templates": families,
        "snippets": [snippet(tokens, source) for source in SNIPPETS],
        "blanks": blanks(),
        "beside": [beside(files) for files in BESIDE],
    }
    out = args.originals or DATA / "goldens.json"
    out.write_text(json.dumps(goldens, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
