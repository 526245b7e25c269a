"""Answers as models really give them, prompt templates, token rules, recorded answers."""

import json

import pytest
from pictures import Pictures, exemplars
from PIL import Image

from saelab.errors import UserError
from saelab.label import propose
from saelab.label.vlm import parse, prompts, tokens
from saelab.label.vlm.chat import Picture, Request

GUIDED = (
    '{"concepts": ["dog snout", "whiskers", "wet nose"], "evidence": "all close-ups", "confidence": 0.8, "none": false}'
)
THREE = ("dog snout", "whiskers", "wet nose")


@pytest.mark.parametrize(
    "text",
    [
        GUIDED,
        f"```json\n{GUIDED}\n```",
        f"Here is my answer: {GUIDED} I hope that helps!",
        f"<think>Maybe cats, or {{'a': 1}}?</think>{GUIDED}",
        '{"Concepts": "dog snout, whiskers, wet nose"}',
        '["dog snout", "whiskers", "wet nose"]',
        '{"concepts": ["dog snout", "whiskers", "wet nose"], "evidence": "all of them sh',
        '{"concepts": ["dog snout", "whiskers", "wet nose", "a unfinis',
        "dog snout, whiskers, wet nose",
        "Concepts: dog snout, whiskers, wet nose.",
        "1. dog snout\n2. whiskers\n3. wet nose",
        "- dog snout\n- **whiskers**\n- wet nose\n",
        "Concepts:\n* dog snout\n* whiskers\n* wet nose",
        '"dog snout", "whiskers", "wet nose"',
        "dog snout, whiskers, Whiskers, wet nose",
        '{"concepts": ["dog snout", "the very long tail of some dog", "whiskers", "wet nose"]}',
    ],
)
def test_three_concepts_however_they_are_put(text):
    answer = parse.concepts(text)
    assert (answer.status, answer.concepts) == ("answered", THREE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What they share:\n1. Wapiti\n2. Dromedary (camel)\n3", ("Wapiti", "Dromedary (camel)")),
        ("1. cat\n2.", ("cat",)),
        ("3\n7\n4", ("3", "7", "4")),  # digits that somebody sees
        ("7\n1\n3", ("7", "1", "3")),
        ("a digit\n2", ("a digit", "2")),
    ],
)
def test_a_list_cut_off_after_a_number_names_no_number(text, expected):
    assert parse.concepts(text).concepts == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "I'm sorry, I can't help with that.",
        "These photos show dogs. They also show cats.",
        "The pictures have a common theme of dogs playing, in a garden",
        "a, b, c, d, e, f, g, h",
        '{"answer": 3}',
        '{"concepts": "the very long tail of some dog"}',
        '{"concepts": [1, 2]}',
        '{"concepts": ["half of a stri',
        "\ufffd\x05\x15\ufffd, !!! ???",
        "\ufffdPmw\x1b\ufffdPm",  # an untrained model's
        '{"concepts": ["--", "snout\ufffd"]}',
    ],
)
def test_nothing_is_made_up_from_what_is_no_answer(text):
    assert parse.concepts(text) == parse.Answer()


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "None.",
        "Nothing in common",
        "There is no common concept.",
        '{"concepts": []}',
        '{"concepts": ["none"]}',
        '{"concepts": ["dog"], "evidence": "", "confidence": 0.1, "none": true}',
    ],
)
def test_nothing_in_common_is_an_answer(text):
    answer = parse.concepts(text)
    assert answer.status == "none" and answer.concepts == ()


# ---- the kinds of answers that models are known for ----------------------------------------------------------------

DRAFT = 'Maybe {"concepts": ["dog"], "none": false}? No, the contrasts show dogs too.'
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]


@pytest.mark.parametrize("opened, ended", MARKS)
def test_what_stands_behind_the_last_end_mark_is_the_answer(opened, ended):
    for text in (
        f"{opened}{DRAFT}{ended}{GUIDED}",
        f"{DRAFT}\n{ended}\n\n{GUIDED}",  # the template wrote the opening mark
        f"{opened}{DRAFT}{ended}{DRAFT}{ended}\n{GUIDED}",
        f"Sure.{opened}{DRAFT}{ended}dog snout, whiskers, wet nose",
        f"{GUIDED}{opened}{DRAFT}{ended}\n",  # the answer came first
        f"{GUIDED}\n{opened}{DRAFT}",
    ):
        assert parse.concepts(text).concepts == THREE, text
    assert parse.concepts(f"{opened}{DRAFT}") == parse.Answer() == parse.concepts(f"{DRAFT}{ended}")
    assert parse.numbers(f'Perhaps {{"fits": [3]}}, no.{ended}{{"fits": [1, 2]}}', "fits", 8) == [1, 2]


@pytest.mark.parametrize(
    "text, said",
    [
        (r'{"concepts": ["polka\_dots", "it\'s wet"]}', ("polka_dots", "it's wet")),
        (r'{"concepts": ["caf\u00e9 \alpha"]}', ("café alpha",)),
        ('{"concepts": ["polka\tdots", "two\nlines"]}', ("polka dots", "two lines")),
        ('{"concepts": ["the "wet" nose", "paw"]}', ('the "wet" nose', "paw")),
        ("{'concepts': ['cat', 'dog'], 'none': False}", ("cat", "dog")),
        ("{'concepts': ['dog's tail', \"cat\"], 'none': None,}", ("dog's tail", "cat")),
        ('{concepts: ["cat", "dog",], none: false}', ("cat", "dog")),
        ("{“concepts”: [“cat”, “dog”]}", ("cat", "dog")),
        ('{"concepts"：["条纹"，"斑点"]}', ("条纹", "斑点")),
        ('{"concepts": "条纹，斑点"}', ("条纹", "斑点")),
        ("条纹，斑点，狗", ("条纹", "斑点", "狗")),
        ("条纹、斑点。", ("条纹", "斑点")),
        ("概念：「条纹」、「斑点」", ("条纹", "斑点")),
        ("1、条纹 2、斑点", ("条纹", "斑点")),
        ("1）条纹\n2）斑点", ("条纹", "斑点")),
        ("（1）条纹（近看）\n（2）斑点", ("条纹（近看）", "斑点")),
        ("dog; cat; bird", ("dog", "cat", "bird")),
        ('{"concepts": ["tail (dog)", "(cat)", "(a) and (b)"]}', ("tail (dog)", "cat", "(a) and (b)")),
        ('{"concepts": [{"name": "cat"}, {"concept": "dog", "score": 0.2}]}', ("cat", "dog")),
        ('{"concepts": {"cat": 0.9, "dog": 0.1}}', ("cat", "dog")),
        ('{"concepts": {"1": "cat", "2": "dog"}}', ("cat", "dog")),
        ('{"concepts": [["cat"], ["dog"], null]}', ("cat", "dog")),
        ('[{"concept": "cat"}, {"concept": "dog"}]', None),  # two objects that name different concepts
        ('{"answer": {"Concepts": ["cat"]}}', ("cat",)),
        ('Contrasts: []. Positives: {"concepts": ["cat"]}', ("cat",)),
        ('Contrasts: []. Positives: ["cat"]', ("cat",)),
        ('Contrasts: ["grass"]. Positives: ["cat"]', None),
        ('Contrasts: {"concepts": ["grass"]}. Positives: {"concepts": ["cat"]}', None),
        ('{"concepts": ["cat"]}\n{"concepts": ["Cat", "cat"]}', None),
        ('{"concepts": ["cat"]}\n```json\n{"concepts": ["cat"]}```', ("cat",)),
        ("<|begin_of_box|>cat, dog<|end_of_box|>", ("cat", "dog")),
        ("<answer>cat, dog</answer>", ("cat", "dog")),
        ('\ufeff{"concepts": ["\u200bcat"]}', ("cat",)),
        ('{"concepts": ["cat", "dog"], "evidence": "it is {', ("cat", "dog")),
        ('{"concepts": "cat, dog", "evi', ("cat", "dog")),
        ('{"concepts": ["cat"], "confidence": ' + "9" * 5000 + "}", ("cat",)),
        ('{"concepts": [at most 3 names, best first], "evidence": "one sentence"}', None),  # the prompt, echoed
        ("Nothing here: []", None),
        ("这些照片里有很多只正在草地上玩耍的小狗和小猫", None),
        ("抱歉，我无法回答", None),
    ],
)
def test_other_ways_to_put_concepts(text, said):
    answer = parse.concepts(text)
    assert (answer.status, answer.concepts) == (("answered", said) if said else ("unparsed", ()))


def test_evidence_and_confidence_come_along():
    answer = parse.concepts(GUIDED)
    assert answer.evidence == "all close-ups" and answer.confidence == 0.8
    read = [(1, 1.0), (80, 0.8), ('"80%"', 0.8), ('"0.8"', 0.8), ('"high"', None), (-1, None), ("true", None)]
    for said, meant in read:
        text = f'{{"concepts": ["a b"], "confidence": {said}}}'
        assert parse.concepts(text).confidence == meant, said


def test_numbers_from_a_detection():
    usable = ['{"fits": [3, 1]}', "1, 3", "[1, 3]", '```json\n{"fits": [1, 3, 3]}\n```', "1 3", "1，3", "#1, #3."]
    usable += ['{"fits": ["1", "3"]}', '{"fits": "1, 3"}', "{'Fits': [1.0, 3]}", '{"answer": {"fits": [1, 3]}}']
    for text in usable:
        assert parse.numbers(text, "fits", 4) == [1, 3], text
    assert parse.numbers('{"fits": []}', "fits", 4) == [] == parse.numbers("none", "fits", 4)
    unusable = [
        '{"fits": [5]}',
        "photos one and three",
        "the 3rd and the 1st",
        '{"fits": "all"}',
        "",
        '{"fits": [true]}',
        '{"fits": [1, 3',
        '{"fits": [1, 3]',
        '{"fits": [1]} {"fits": [3]}',
        '{"fits": null}',
        '{"fits": [-1]}',
        '{"fits": [1.5]}',
        "-1",
        "1.5",
        "1-3",
        "9" * 5000,
        "不是1，是3",
    ]
    for text in unusable:
        assert parse.numbers(text, "fits", 4) is None, text


def test_a_template_of_ones_own_and_what_it_lacks(tmp_path):
    picture = Picture(b"x", (8, 8), "p")
    file = tmp_path / "mine.jinja"
    file.write_text("Look:\n{{ positives }}\nand not {{ contrasts }}. At most {{ most }}.")
    groups = {"positives": [picture], "contrasts": ["A: ", picture]}
    parts = prompts.fill(prompts.load(file), groups, most=3)
    assert parts == ("Look:\n", picture, "\nand not A: ", picture, ". At most 3.")
    with pytest.raises(UserError, match=r"contrasts.*is missing"):
        prompts.fill("{{ positives }}", groups)
    with pytest.raises(UserError, match="'colour' is undefined"):
        prompts.fill("{{ positives }}{{ contrasts }}{{ colour }}", groups)
    with pytest.raises(UserError, match="Expected an expression"):
        prompts.fill("{% if %}", groups)
    with pytest.raises(UserError, match=r"none of .*concepts_contrast, .*second_look"):
        prompts.load("nowhere")


@pytest.mark.parametrize("name", ["concepts_contrast", "concepts_positives", "list_contrast", "list_positives"])
@pytest.mark.parametrize("layout, tiles", [("sheet", "raw"), ("parts", "heatmap"), ("sheet", "crop")])
def test_shipped_templates_can_be_filled(name, layout, tiles):
    picture = Picture(b"x", (8, 8), "p")
    groups = {"positives": [picture], "contrasts": [picture] if "contrast" in name else []}
    parts = prompts.fill(prompts.load(name), groups, layout=layout, tiles=tiles, most=3, words=4)
    assert sum(isinstance(part, Picture) for part in parts) == len([g for g in groups.values() if g])
    text = " ".join("".join(part for part in parts if isinstance(part, str)).split())
    assert "{{" not in text and "{%" not in text and " 3 " in text and " 4 words" in text


def test_equal_digests_are_equal_questions():
    one, other = Picture(b"1", (8, 8), "a"), Picture(b"2", (8, 8), "a")
    base = Request("propose/1", ("look ", one), {"type": "object"})
    assert base.digest == Request("propose/2", ("look ", Picture(b"1", (8, 8), "b")), {"type": "object"}).digest
    different = [
        Request("propose/1", ("look ", other), {"type": "object"}),
        Request("propose/1", ("look", one), {"type": "object"}),
        Request("propose/1", (one, "look "), {"type": "object"}),
        Request("propose/1", ("look ", one), None),
        Request("propose/1", ("look ", one), {"type": "object"}, 20),
    ]
    assert len({r.digest for r in [base, *different]}) == 6


@pytest.mark.parametrize(
    "rule, size, expected",
    [
        ("internvl", (448, 448), 256),
        ("internvl", (896, 896), 5 * 256),
        ("openai", (512, 512), 85 + 170),
        ("openai", (1024, 1024), 85 + 4 * 170),  # scaled to 768
        ("openai", (2048, 4096), 85 + 6 * 170),  # to 1024 x 2048, then to 768 x 1536
        ("qwen", (896, 896), 1024),
        (77, (896, 896), 77),
    ],
)
def test_picture_tokens_by_the_makers_rules(rule, size, expected):
    assert tokens.picture_tokens(size, rule) == expected


def test_recorded_answers_replay_a_run(tmp_path):
    answers = [GUIDED, "none", "Well. No idea."]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"unit": u, "raw": a}) + "\n" for u, a in enumerate(answers)))
    proposer = propose.load_proposer("recorded", answers=file)
    rows = propose.run(proposer, exemplars(), Pictures(), range(4), tmp_path / "run", progress=False)
    assert [p.status for p in rows] == ["answered", "none", "unparsed", "failed"]
    assert rows[0].labels == THREE and rows[3].error == "answers.jsonl has no answer for propose/3"
    with Image.open(tmp_path / "run" / rows[0].sheets[0]) as sheet:
        assert sheet.size == (896, 896)
    again = propose.load_proposer("recorded", answers=tmp_path / "run" / "proposals.jsonl")
    replayed = propose.run(again, exemplars(), Pictures(), range(3), tmp_path / "again", progress=False)
    assert [p.raw for p in replayed] == answers and [p.labels for p in replayed] == [p.labels for p in rows[:3]]


def test_recorded_answers_that_can_not_be_read(tmp_path):
    with pytest.raises(UserError, match="missing"):
        propose.load_proposer("recorded", answers=tmp_path / "nowhere.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "dog"}\n')
    with pytest.raises(UserError, match="line 1 needs `raw`"):
        propose.load_proposer("recorded", answers=tmp_path / "a.jsonl")
