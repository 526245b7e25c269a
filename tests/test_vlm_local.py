"""A real (tiny, random) vision-language model: in this process, and behind `transformers serve`; both say the same."""

import pytest
from pictures import Pictures, exemplars
from servers import transformers_serve
from tiny_vlm import byte_tokenizer, save_tiny_vlm

from saelab.errors import UserError
from saelab.label import propose
from saelab.label.propose import build_case, load_chat, load_proposer

IMAGES = Pictures()
SMALL = {"sheet_px": 448, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("tiny_vlm"))


@pytest.fixture(scope="module")
def requests():
    """Requests of different lengths: sheets of 4 or 1 positives, with and without contrasts, and separate parts."""
    ex = exemplars(6)
    made = []
    for unit, (mode, layout, shown) in enumerate(
        [("contrast", "sheet", 4), ("positives", "sheet", 4), ("contrast", "parts", 2), ("positives", "parts", 3)]
    ):
        asking = load_proposer("openai", model="any", layout=layout, shown=shown, part_px=64, **SMALL)
        made.append(asking.request(build_case(ex, IMAGES, unit, mode, 0, shown)))
    return made


def test_a_batch_answers_as_each_request_alone(model, requests):
    """Left padding and the pictures' order within a batch are right if and only if nothing changes."""
    one_by_one = load_chat("transformers", model=str(model), device="cpu", batch_size=1).ask(requests)
    alone = {request.name: reply for request, reply in one_by_one}
    all_at_once = load_chat("transformers", model=str(model), device="cpu", batch_size=4).ask(reversed(requests))
    batched = {request.name: reply for request, reply in all_at_once}
    assert {name: reply.text for name, reply in batched.items()} == {n: reply.text for n, reply in alone.items()}
    assert all(batched[name].prompt_tokens == alone[name].prompt_tokens for name in alone)
    assert len({reply.text for reply in alone.values()}) == 4  # what it says hangs on what it is shown


def test_the_answer_hangs_on_the_picture(model):
    ex = exemplars(2)
    asking = load_proposer("openai", model="any", **SMALL)
    requests = [asking.request(build_case(ex, IMAGES, unit, "positives", 0, 4)) for unit in (0, 1)]
    assert requests[0].parts[0] == requests[1].parts[0]  # the same words, other pictures
    replies = [reply for _, reply in load_chat("transformers", model=str(model), device="cpu").ask(requests)]
    assert replies[0].text != replies[1].text


def test_tokens_are_those_of_the_processor(model, requests):
    """InternVL: (tiles + thumbnail) x tokens a tile + 2 for each picture, and a byte a token of text here."""
    (_, reply), *_ = load_chat("transformers", model=str(model), device="cpu").ask(requests[1:2])
    tokenizer = byte_tokenizer()
    text = sum(len(tokenizer(part)["input_ids"]) for part in requests[1].parts if isinstance(part, str))
    frame = len(tokenizer("<|im_start|>user\n\n<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert reply.prompt_tokens == text + frame + (4 + 1) * 4 + 2
    assert 1 <= reply.completion_tokens <= 12 and reply.cost is None


def test_a_run_keeps_noise_as_unparsed_and_resumes(model, tmp_path):
    proposer = load_proposer("transformers", model=str(model), device="cpu", batch_size=2, **SMALL)
    first = propose.run(proposer, exemplars(), IMAGES, [0, 1, 2], tmp_path, progress=False)
    lines = (tmp_path / "proposals.jsonl").read_text().splitlines()
    rows = propose.run(proposer, exemplars(), IMAGES, range(5), tmp_path, progress=False)
    assert rows[:3] == first and (tmp_path / "proposals.jsonl").read_text().splitlines()[:3] == lines
    total = propose.summary(rows, range(5))
    assert sum(total["status"].values()) == 5 and total["status"].get("failed") is None
    assert all(p.raw is not None and p.labels == () for p in rows if p.status == "unparsed")
    assert total["cost"] is None and total["prompt_tokens"] == sum(p.prompt_tokens for p in rows)


def test_what_does_not_fit_the_context_fails_alone(model, tmp_path, requests):
    whole = [reply for _, reply in load_chat("transformers", model=str(model), device="cpu").ask(requests)]
    context = sorted(reply.prompt_tokens for reply in whole)[1] + 12  # two of the four requests fit, just so
    small = save_tiny_vlm(tmp_path / "small", context=context)
    replies = [reply for _, reply in load_chat("transformers", model=str(small), device="cpu").ask(requests)]
    assert sum(reply.text is None for reply in replies) == 2
    for reply, free in zip(replies, whole, strict=True):
        fits = free.prompt_tokens + 12 <= context
        assert reply.text == (free.text if fits else None)
        assert fits or "lower proposer.sheet_px" in reply.error


def test_models_that_can_not_be_asked(tmp_path, requests):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with pytest.raises(UserError, match=r"proposer\.model=.*nowhere: can't be loaded"):
        next(load_chat("transformers", model=str(tmp_path / "nowhere"), device="cpu").ask(requests))
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "text")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="takes no pictures"):
        next(load_chat("transformers", model=str(tmp_path / "text"), device="cpu").ask(requests))
    with pytest.raises(UserError, match=r"proposer\.dtype"):
        load_chat("transformers", model="any", dtype="int3")


@pytest.mark.slow
def test_behind_transformers_serve_the_same_model_says_the_same(model, tmp_path):
    pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    ex = exemplars(5)
    inside = load_proposer("transformers", model=str(model), device="cpu", **SMALL)
    expected = propose.run(inside, ex, IMAGES, range(5), tmp_path / "inside", progress=False)
    with transformers_serve(model, tmp_path / "serve.log") as url:
        served = load_proposer("openai", model=str(model), base_url=url, concurrency=2, **SMALL)
        rows = propose.run(served, ex, IMAGES, range(5), tmp_path / "served", progress=False)
        parts = load_proposer("openai", model=str(model), base_url=url, layout="parts", part_px=64, shown=3, **SMALL)
        more = propose.run(parts, ex, IMAGES, [0], tmp_path / "parts", mode="shuffled_contrast", progress=False)
        with pytest.raises(UserError, match="all 1 units failed"):  # the server is pinned to its model
            other = load_proposer("openai", model="another", base_url=url, retries=0, **SMALL)
            propose.run(other, ex, IMAGES, [0], tmp_path / "other", progress=False)
    assert [p.raw for p in rows] == [p.raw for p in expected]
    assert [p.prompt_tokens for p in rows] == [p.prompt_tokens for p in expected]
    assert [p.status for p in rows] == [p.status for p in expected]
    # one attempt each was answered; a connection that idled too long may have been closed on another
    assert all(p.completion_tokens >= 1 and p.attempts - p.uncertain == 1 for p in rows)
    assert len(more[0].sheets) == 6 and more[0].raw is not None
