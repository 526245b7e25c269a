"""Training on a pretended device that is not the CPU: the CPU's numbers, resume, and no wait in a step."""

import pytest
import torch
from elsewhere import Elsewhere, Streams

from saelab.artifacts import read_json
from saelab.cache import Batches
from saelab.cache.pinned import to_device
from saelab.errors import UserError
from saelab.sae import SAE, SAEConfig, TrainConfig, Trainer, fit, rough, screen, select
from saelab.sae.distributed import Group
from saelab.sae.model import Meta

STEP = {"lr": 2e-3, "dead_after": 300}
CONFIGS = {
    "topk": SAEConfig(12, 128, k=3, **STEP),
    "screened": SAEConfig(12, 128, k=3, screen="bfloat16", **STEP),
    "batchtopk": SAEConfig(12, 64, rule="batchtopk", k=3, **STEP),
    "multi_topk": SAEConfig(12, 64, k=3, multi_topk=True, clip=0.5, **STEP),
    "matryoshka": SAEConfig(12, 64, rule="batchtopk", k=3, prefixes=(0.25, 1), **STEP),
    "archetypal": SAEConfig(12, 64, k=3, decoder="archetypal", candidates=20, **STEP),
    "jumprelu": SAEConfig(12, 64, rule="jumprelu", k=3, **STEP),
    "relu": SAEConfig(12, 64, rule="relu", lr=2e-3, resample_every=4, dead_after=100),
}


class Stop(Exception):
    pass


def tokens() -> torch.Tensor:
    return torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) + 2


CASES = [(name, kind, False) for name in CONFIGS for kind in ("mps", "cuda")]
CASES += [(name, "cuda", True) for name in ("topk", "multi_topk", "archetypal")]


@pytest.mark.parametrize(("name", "kind", "fast"), CASES)
def test_training_elsewhere_gives_the_numbers_of_the_cpu_and_resumes(name, kind, fast, tmp_path, monkeypatch):
    """`fast`: as on a CPU with bfloat16 and int8 instructions, where auto screens, beside a device without them."""
    for test in ("has_fast_bfloat16", "has_fast_int8"):
        monkeypatch.setattr(rough, test, lambda device: fast and device.type == "cpu")
    monkeypatch.setattr(rough, "has_amx", lambda device: False)
    Streams(monkeypatch)
    train = TrainConfig(batch_size=64, steps=10, log_every=1, checkpoint_every=4)
    here = fit(tokens(), CONFIGS[name], train, progress=False)

    def stops(which: int, step: int, numbers: dict) -> None:
        if step == 6:
            raise Stop

    with Elsewhere(kind):
        with pytest.raises(Stop):
            fit(tokens(), CONFIGS[name], train, tmp_path, device=kind, progress=False, logger=stops)
        there = fit(tokens(), CONFIGS[name], train, tmp_path, device=kind, progress=False)
        assert there.sae.device.type == kind
    for part, tensor in SAE.load(tmp_path).tensors().items():
        torch.testing.assert_close(tensor, here.sae.tensors()[part], rtol=1e-3, atol=1e-3, msg=part)
    for part in ("fvu", "l0", "cosine"):
        assert there.quality[part] == pytest.approx(here.quality[part], rel=1e-2)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"relu"}))
def test_a_step_makes_the_host_wait_for_nothing(name):
    with Elsewhere("cuda") as device:
        trainer, x = Trainer(CONFIGS[name], "cuda"), tokens().to("cuda")
        trainer.step(x)
        trainer.silent[:5] = 10**6
        assert device.waits, "the first step measures the data"
        device.waits = 0
        trainer.step(x)
        assert device.waits == 0
        float(trainer.step(x)["loss"])
        assert device.waits == 1


def test_processes_that_wait_for_each_other_hold_the_host(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)  # queued, as by nccl
    with Elsewhere("cuda") as device:
        Group().wait(torch.device("cuda"))
        assert device.waits == 0, "one process waits for nobody"
        Group((0, 1)).wait(torch.device("cuda"))
        assert device.waits == 1


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_card_holds_some_rows_of_the_screen_at_a_time(rule, monkeypatch):
    """The numbers of the whole at once, of which none as large is made."""
    config = SAEConfig(12, 128, rule=rule, k=3, screen="bfloat16", **STEP)
    with Elsewhere("cuda"):
        whole, parts = Trainer(config, "cuda"), Trainer(config, "cuda")
        x = tokens().to("cuda")
        for _ in range(3):
            whole.step(x)
        monkeypatch.setattr(select, "AT_ONCE", 128 * 70)
        made = []
        real = torch.addmm
        monkeypatch.setattr(torch, "addmm", lambda *given, **more: (made.append(real(*given, **more)), made[-1])[1])
        for _ in range(3):
            parts.step(x)
        assert max(out.numel() for out in made if out.dtype == torch.bfloat16) == 128 * 70
        assert parts.screen == "bfloat16"
        for name, tensor in whole.weights.items():
            torch.testing.assert_close(parts.weights[name].cpu(), tensor.cpu(), rtol=1e-5, atol=1e-6)


def test_cards_have_float8_from_hopper_on(monkeypatch):
    for capability, has in (((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, own=capability: own)
        assert rough.has_float8(torch.device("cuda")) == has
    assert not rough.has_float8(torch.device("cpu"))


def scaled(a, b, per_row, per_column, out_dtype, use_fast_accum=False):
    """A card's product of float8 matrices, with what it asks for."""
    assert a.stride(1) == 1 and b.stride(0) == 1, "row by column, as the card wants them"
    assert not a.shape[1] % 16 and not b.shape[1] % 16
    assert per_row.shape == (len(a), 1) and per_column.shape == (1, b.shape[1])
    return (a.float() @ b.float() * per_row * per_column).to(out_dtype)


def hopper(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: True)


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
@pytest.mark.parametrize(("d_in", "latents"), [(40, 72), (32, 128)])
def test_float8_chooses_what_float32_does_where_numbers_lie_apart(d_in, latents, rule, monkeypatch):
    """Also with sides that 16 does not divide. Values and gradients are float32's own."""
    hopper(monkeypatch)
    products = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **more: (products.append(1), scaled(*given, **more))[1])
    g = torch.Generator().manual_seed(3)
    rows = torch.cat([torch.eye(d_in), torch.randn(latents - d_in, d_in, generator=g)])
    lengths = torch.where(torch.arange(latents) < d_in, 1.0, 0.01).unsqueeze(1)
    start = SAE(rows * lengths, torch.zeros(latents), rows, torch.zeros(d_in), Meta("topk", 2))
    x = 0.01 * torch.randn(64, d_in, generator=g)
    for size in (5.0, 3.0):
        x[torch.arange(64), torch.randint(d_in, (64,), generator=g)] += size
    with Elsewhere("cuda"):
        configs = (SAEConfig(d_in, latents, rule=rule, k=2, screen=by, **STEP) for by in ("float8", "float32"))
        ours, theirs = (Trainer(config, "cuda", start=start) for config in configs)
        for step in range(4):
            found, wanted = ours.step(x.to("cuda")), theirs.step(x.to("cuda"))
            assert ("screen_recall" in found) == (step == 0)
            assert float(found["fvu"]) == pytest.approx(float(wanted["fvu"]), rel=1e-3)
        assert ours.screen == "float8" and len(products) >= 5
        for name, tensor in theirs.weights.items():
            torch.testing.assert_close(ours.weights[name].cpu(), tensor.cpu(), rtol=1e-4, atol=1e-4, msg=name)


def test_float8_gives_way_to_bfloat16_where_it_finds_too_little(monkeypatch, caplog, tmp_path):
    hopper(monkeypatch)
    Streams(monkeypatch)
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **more: scaled(*given, **more).zero_())
    config = SAEConfig(16, 128, k=3, screen="float8", **STEP)
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(3))
    with Elsewhere("cuda"):
        fit(x, config, TrainConfig(batch_size=64, steps=3), tmp_path, device="cuda", progress=False)
    assert "the float8 screen finds 0." in caplog.text and "bfloat16 chooses from here on" in caplog.text
    assert read_json(tmp_path / "training.json")["sae"]["screen"] == "float8", "what the recipe asked for"


def test_float8_keeps_four_bits_of_each_number_and_finds_most_members(monkeypatch):
    g = torch.Generator().manual_seed(1)
    x, W = (torch.randn(rows, 64, generator=g) for rows in (200, 512))
    x *= 10.0 ** torch.randint(-3, 4, (200, 1), generator=g)
    narrow, scale = rough.quantise_float8(x)
    assert narrow.dtype == torch.float8_e4m3fn and float(narrow.float().abs().max()) == 448
    smallest = 2.0**-9 * scale  # below e4m3's normal numbers the steps are even
    assert bool(((narrow.float() * scale - x).abs() <= torch.maximum(x.abs() / 16, smallest) * 1.0001).all())

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    W = torch.nn.functional.normalize(W, dim=1)
    with Elsewhere("cuda"):
        given = (x.to("cuda"), W.to("cuda"), torch.zeros(512, device="cuda"), 8)
        recall = float(screen.screen_recall(*given, "float8"))
        values, places = screen.screened_top_k(*given, "float8")
        assert recall > 0.999
        exact = (given[0] @ given[1].T).gather(1, places)
        torch.testing.assert_close(values.cpu(), exact.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8"])
def test_batches_go_to_a_card_as_narrow_as_they_are_stored(kind, monkeypatch):
    streams, x = Streams(monkeypatch), (10 * tokens()).numpy().astype(kind)
    here = list(Batches(x, 64).prefetch(0, 5))
    with Elsewhere("cuda") as device:
        coming = to_device(Batches(x, 64).prefetch(0, 5, narrow=True), torch.device("cuda"))
        sent = [part.clone() for part in coming]  # the pretended device holds the buffers themselves
        assert all(part.device.type == "cuda" and part.dtype == torch.float32 for part in sent)
        assert all(torch.equal(part.cpu(), own) for part, own in zip(sent, here, strict=True))
        device.waits = 0
        assert list(to_device(iter(sent), torch.device("cuda")))[1] is not None and device.waits == 0
    wide = "float16" if kind == "float16" else "float32"
    assert streams.seen.count(f"pinned torch.{wide}") == 2, "two buffers, however many batches"
    assert streams.seen.count("copied") == streams.seen.count("wait") == 5
    narrow = list(Batches(x, 64).prefetch(0, 5, narrow=True))
    assert {part.dtype for part in narrow} == {getattr(torch, wide)}


def test_what_is_no_number_is_named_before_it_goes_to_a_card():
    x = tokens().numpy().astype("float16")
    x[:] = 60_000  # whose sum float16 doesn't hold
    assert len(list(Batches(x, 64).prefetch(0, 3, narrow=True))) == 3
    x[77, 3] = float("inf")
    with pytest.raises(UserError, match="row 77 holds NaN or an infinity"):
        list(Batches(x, 600).prefetch(0, 1, narrow=True))
