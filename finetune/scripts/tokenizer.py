#!/usr/bin/env python3
"""A tokenizer of 40 ids, which fits the tiny models of goldens.py, and preferences in its characters.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0
    .venv/bin/python finetune/scripts/tokenizer.py

Writes tests/data/tokenizer/: `tokenizer.json` (a token a character, and `<unk>` for each byte of the others),
`tokenizer_config.json` with a chat template, and pairs, unpaired completions and lists as JSON lines.
"""
import itertools
import json
import pathlib

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizer"
# Ids 0 to 5, as Llama numbers the first ones.
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz \n.,?!01"
# The tiny models with a sliding window see 32 tokens.
LONGEST = 30
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('no role ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def tokenizer():
    # By bytes, with their usual names of the space and the newline: of a folder whose config says
    # qwen2, transformers takes no more than the vocabulary and the merges, and adds the rest.
    tokens = SPECIAL + [{" ": "Ġ", "\n": "Ċ"}.get(character, character) for character in CHARACTERS]
    assert len(set(tokens)) == len(tokens) == 40
    # Nothing is merged.
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>")
    made = Tokenizer(model)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # As Llama's: a text, unlike a rendered conversation, gets its beginning here.
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


user = lambda text: dict(role="user", content=text)
assistant = lambda text: dict(role="assistant", content=text)
good = lambda text: [assistant(f"yes, {text}.")]
bad = lambda text: [assistant(f"no {text}!")]
# Shorter and longer than the good answer.
others = [lambda _: [assistant("no!")], bad, lambda text: [assistant(f"no, not {text}!")]]


def questions():
    """24 prompts with a word of their answer: 20 of one turn, 4 of two."""
    animals, colours = ["cat", "dog", "fox", "bee", "owl"], ["red", "old", "big", "wet"]
    asked = [([user(f"a {colour} {animal}?")], f"a {animal}" if i % 3 else animal)
             for i, (animal, colour) in enumerate(itertools.product(animals, colours))]
    asked += [([user("hi"), assistant("yes."), user(f"{n}?")], n) for n in ["0", "1", "10", "11"]]
    # Neighbours have other words.
    return [asked[i * 7 % 24] for i in range(24)]


def rows():
    """What begins with yes and ends in a point is better."""
    asked = questions()
    pairs = [dict(prompt=prompt, chosen=good(word), rejected=others[i % 3](word)) for i, (prompt, word) in
             enumerate(asked)]
    unpaired = [dict(prompt=prompt, completion=(good if i % 2 else bad)(word), label=bool(i % 2))
              for i, (prompt, word) in enumerate(asked)]
    ranked = []
    for i, (prompt, word) in enumerate(asked[:12]):
        responses = [good(word), [assistant(f"yes {word}!")], bad(word)]
        order = list(itertools.permutations(range(3)))[i % 6]
        ranked.append(dict(prompt=prompt, responses=[responses[k] for k in order],
                           scores=[[1.0, 0.25, -0.5][k] for k in order]))
    return dict(pairs=pairs, unpaired=unpaired, ranked=ranked)


def check(found, rows):
    """The longest row, in tokens."""
    longest = 0
    for row in rows:
        completions = row.get("responses") or [row[key] for key in ("chosen", "rejected", "completion") if key in row]
        ids = lambda messages, **more: found.apply_chat_template(messages, return_dict=False, **more)
        prompt = ids(row["prompt"], add_generation_prompt=True)
        for completion in completions:
            whole = ids(row["prompt"] + completion)
            assert whole[: len(prompt)] == prompt and whole[-1] == found.eos_token_id
            assert found.unk_token_id not in whole and max(whole) < 40
            assert whole.count(found.bos_token_id) == 1
            longest = max(longest, len(whole))
    assert longest <= LONGEST, longest
    return longest


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(OUT / "tokenizer.json"))
    config = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
                  additional_special_tokens=SPECIAL[4:], clean_up_tokenization_spaces=False,
                  model_max_length=64, tokenizer_class="TokenizersBackend", chat_template=TEMPLATE)
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, lines in rows().items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (OUT / f"{name}.jsonl").write_text(text)
    found = transformers.AutoTokenizer.from_pretrained(OUT)
    assert len(found) == 40 and found.convert_ids_to_tokens(range(6)) == SPECIAL
    assert found("ab\nZ.").input_ids == [1, 6, 7, 33, 3, 34]
    assert found.decode(found("yes, 10?\n no").input_ids, skip_special_tokens=True) == "yes, 10?\n no"
    # Some classes of transformers, chosen by the model's config, read the files in their own way.
    for config in OUT.parent.glob("*/config.json"):
        other = transformers.AutoTokenizer.from_pretrained(OUT, config=transformers.AutoConfig.from_pretrained(config))
        for line in rows()["pairs"]:
            of = lambda one: one.apply_chat_template(line["prompt"] + line["chosen"], return_dict=False)
            assert of(found) == of(other), config
    for name, lines in rows().items():
        print(name, len(lines), "rows of at most", check(found, lines), "tokens")


main()
