"""Foreign checkpoints: built by hand from their documented formats, and against the real packages where installed."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import in_place_of_the_hub
from safetensors.torch import save_file

from saelab import hub
from saelab.errors import UserError
from saelab.sae import SAE, Meta, convert

D, M, K = 6, 20, 3


@pytest.fixture
def parts():
    g = torch.Generator().manual_seed(0)
    made = {"W_enc": torch.randn(D, M, generator=g), "b_enc": torch.randn(M, generator=g) * 0.1}
    made |= {"W_dec": torch.randn(M, D, generator=g), "b_dec": torch.randn(D, generator=g)}
    return {**made, "x": torch.randn(50, D, generator=g) * 2 + 1}


def dense(pre: torch.Tensor, k: int | None = None, threshold: float | None = None) -> torch.Tensor:
    if k is not None:
        kept = pre.topk(k, dim=1)
        return torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    return pre.relu() * (pre > (threshold or 0.0))


def agrees(sae: SAE, x: torch.Tensor, codes: torch.Tensor, rebuilt: torch.Tensor) -> None:
    torch.testing.assert_close(sae.encode(x).dense(), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), rebuilt, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_saelens_topk_by_hand(tmp_path, parts, centred, norm):
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    save_file({n: parts[n].contiguous() for n in names}, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "topk", "d_in": D, "d_sae": M, "k": K, "apply_b_dec_to_input": centred}
    config |= {"normalize_activations": norm, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x, undo = parts["x"], lambda out: out
    if norm == "layer_norm":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        x, undo = (x - mean) / (std + 1e-5), lambda out: out * std + mean
    elif norm == "constant_norm_rescale":
        factor = D**0.5 / x.norm(dim=1, keepdim=True)
        x, undo = x * factor, lambda out: out / factor
    lengths = parts["W_dec"].norm(dim=1)
    codes = dense(((x - parts["b_dec"] * centred) @ parts["W_enc"] + parts["b_enc"]) * lengths, K)
    rebuilt = undo(codes / lengths @ parts["W_dec"] + parts["b_dec"])
    scale = D**0.5 if norm == "constant_norm_rescale" else 1.0
    sae = convert.load(tmp_path)
    torch.testing.assert_close(sae.encode(parts["x"]).dense(), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(parts["x"]), rebuilt, rtol=1e-4, atol=1e-4)
    assert sae.meta.source["format"] == "SAELens" and scale > 0


def test_dictionary_learning_by_hand(tmp_path, parts):
    linear = {"encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"], "decoder.weight": parts["W_dec"].T}
    pre = (parts["x"] - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    cases = {
        "AutoEncoder": ({"bias": parts["b_dec"]}, dense(pre)),
        "AutoEncoderTopK": ({"b_dec": parts["b_dec"], "k": torch.tensor(K)}, dense(pre, K)),
        "BatchTopKSAE": (
            {"b_dec": parts["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(1.5)},
            dense(pre, threshold=1.5),
        ),
    }
    for name, (more, codes) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save({**linear, **more}, folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name}, "buffer": {}}))
        agrees(convert.load(folder), parts["x"], codes, codes @ parts["W_dec"] + parts["b_dec"])


def test_a_dictionary_learning_file_without_its_config_is_read_by_its_tensors_or_refused(tmp_path, parts):
    """Its key names. `threshold` is a buffer of both TopK and BatchTopK, and -1 for the first 1000 steps."""
    x, file = parts["x"], tmp_path / "ae.pt"
    linear = {"encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"], "decoder.weight": parts["W_dec"].T}
    bare = {n: parts[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    raw = x @ parts["W_enc"] + parts["b_enc"]
    centred = (x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    k, groups = torch.tensor(K), torch.tensor([M // 2, M - M // 2])
    cases = {
        "AutoEncoder": ({**linear, "bias": parts["b_dec"]}, dense(centred)),
        "AutoEncoderNew": ({**linear, "decoder.bias": parts["b_dec"]}, dense(raw)),
        "AutoEncoderTopK": ({**linear, "b_dec": parts["b_dec"], "k": k}, dense(centred, K)),
        "JumpReluAutoEncoder": ({**bare, "threshold": torch.full((M,), 1.5)}, dense(raw, threshold=1.5)),
        "MatryoshkaBatchTopKSAE": (
            {**bare, "k": k, "threshold": torch.tensor(1.5), "group_sizes": groups},
            dense(centred, threshold=1.5),
        ),
    }
    for name, (state, codes) in cases.items():
        torch.save(state, file)
        sae = convert.load(file)
        assert sae.meta.source["dict_class"] == name
        agrees(sae, x, codes, codes @ parts["W_dec"] + parts["b_dec"])
    for threshold in (-1.0, 1.5):
        torch.save({**linear, "b_dec": parts["b_dec"], "k": k, "threshold": torch.tensor(threshold)}, file)
        with pytest.raises(
            UserError, match=r"ae\.pt: .*TopK and BatchTopK have the same tensors.*config\.json"
        ) as told:
            convert.load(file)
        named = str(told.value).split("write one: ")[1].split(" or ")  # what the line says to write does help
        for text in (named[0], named[0].replace("AutoEncoderTopK", named[1].strip('"'))):
            (tmp_path / "config.json").write_text(text)
            kept = dense(centred, K) if "AutoEncoderTopK" in text else dense(centred, threshold=max(0.0, threshold))
            agrees(convert.load(file), x, kept, kept @ parts["W_dec"] + parts["b_dec"])
        (tmp_path / "config.json").unlink()
    torch.save({**linear, "b_dec": parts["b_dec"]}, file)  # TopK before it had buffers: k lies nowhere
    with pytest.raises(UserError, match=r"k=0.*give k"):
        convert.load(file)
    agrees(convert.load(file, k=K), x, dense(centred, K), dense(centred, K) @ parts["W_dec"] + parts["b_dec"])


def test_sparsify_prisma_saev_and_overcomplete_by_hand(tmp_path, parts):
    x, W_enc, W_dec = parts["x"], parts["W_enc"], parts["W_dec"]
    centred = (x - parts["b_dec"]) @ W_enc + parts["b_enc"]
    own = {n: parts[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    folders = {n: tmp_path / n for n in ("sparsify", "prisma", "saev", "overcomplete")}
    for folder in folders.values():
        folder.mkdir()

    tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": parts["b_enc"]}
    save_file({**tensors, "W_dec": W_dec, "b_dec": parts["b_dec"]}, folders["sparsify"] / "sae.safetensors")
    (folders["sparsify"] / "cfg.json").write_text(json.dumps({"k": K, "d_in": D, "activation": "topk"}))
    codes = dense(centred, K)
    agrees(convert.load(folders["sparsify"]), x, codes, codes @ W_dec + parts["b_dec"])

    torch.save(own, folders["prisma"] / "weights.pt")
    (folders["prisma"] / "config.json").write_text(
        json.dumps({"architecture": "standard", "activation_fn_str": "relu"})
    )
    agrees(convert.load(folders["prisma"]), x, dense(centred), dense(centred) @ W_dec + parts["b_dec"])
    config = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    (folders["prisma"] / "config.json").write_text(
        json.dumps(config | {"normalize_activations": "constant_norm_rescale"})
    )
    factor = D**0.5 / x.norm(dim=1, keepdim=True)
    codes = dense((x * factor - parts["b_dec"]) @ W_enc + parts["b_enc"], K)
    agrees(convert.load(folders["prisma"]), x, codes, (codes @ W_dec + parts["b_dec"]) / factor)

    with (folders["saev"] / "sae.pt").open("wb") as file:
        activation = {"cls": "TopK", "params": {"top_k": K}}
        file.write((json.dumps({"schema": 2, "cfg": {"activation": activation}}) + "\n").encode())
        torch.save(own, file)
    codes = dense(x @ W_enc + parts["b_enc"], K)
    agrees(convert.load(folders["saev"] / "sae.pt"), x, codes, codes @ W_dec + parts["b_dec"])
    with (folders["saev"] / "sae.pt").open("wb") as file:
        activation = {"cls": "BatchTopK", "params": {"top_k": K}}
        file.write((json.dumps({"schema": 5, "cfg": {"activation": activation}}) + "\n").encode())
        torch.save({**own, "activation.threshold": torch.tensor(0.9)}, file)
    codes = dense(x @ W_enc + parts["b_enc"], threshold=0.9)
    agrees(convert.load(folders["saev"] / "sae.pt"), x, codes, codes @ W_dec + parts["b_dec"])

    norm = torch.nn.BatchNorm1d(M).eval()
    norm.running_mean.copy_(torch.linspace(-1, 1, M))
    norm.running_var.copy_(torch.linspace(0.5, 2, M))
    encoder = {"encoder.final_block.0.weight": W_enc.T.contiguous(), "encoder.final_block.0.bias": parts["b_enc"]}
    encoder |= {f"encoder.final_block.1.{n}": t for n, t in norm.state_dict().items()}
    torch.save({**encoder, "dictionary._weights": W_dec}, folders["overcomplete"] / "sae.pt")
    codes = dense(norm(x @ W_enc + parts["b_enc"]).detach(), K)
    rows = W_dec / W_dec.norm(dim=1, keepdim=True)
    agrees(convert.load(folders["overcomplete"] / "sae.pt", k=K), x, codes, codes @ rows)


def test_from_the_hub_by_name(tmp_path, parts):
    """The hub client's own cache, as a download leaves it; without a network. In a process of its own: it reads its
    settings when it is imported.
    """
    kept = tmp_path / "hub" / "models--someone--saes"
    folder = kept / "snapshots" / "0123456789abcdef0123456789abcdef01234567" / "layer_3"
    folder.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(folder.parent.name)
    own = {n: parts[n].contiguous() for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(own, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "d_in": D, "d_sae": M, "k": K}))
    code = """
import sys, torch
from saelab.errors import UserError
from saelab.sae import convert
convert.load("someone/saes/layer_3").save(sys.argv[1])
try:
    convert.load("someone/else")
except UserError as error:
    print(error)
"""
    settings = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "ours.safetensors")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "someone/else" in done.stdout and "hub" in done.stdout and len(done.stdout.splitlines()) == 1
    codes = dense((parts["x"] - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"], K)
    agrees(SAE.load(tmp_path / "ours.safetensors"), parts["x"], codes, codes @ parts["W_dec"] + parts["b_dec"])


class Opinion:
    """Something that only pickle can store."""


def test_pickles_and_unknown_things_are_refused(tmp_path, parts):
    torch.save({"model": Opinion()}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match=r"Opinion\), which could run code") as error:
        convert.load(tmp_path / "ae.pt")
    assert "weights_only" not in str(error.value)
    torch.save({"something": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="known format"):
        convert.load(tmp_path / "other.pt")
    save_file(
        {n: parts[n].contiguous() for n in ("W_enc", "b_enc", "W_dec", "b_dec")}, tmp_path / "sae_weights.safetensors"
    )
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "gated"}))
    with pytest.raises(UserError, match="architecture='gated' can't be expressed"):
        convert.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        convert.load("./nowhere")
    bare = {n: parts[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    (tmp_path / "bare").mkdir()
    torch.save(bare, tmp_path / "bare" / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt: no config\.json beside it says which activation"):
        convert.load(tmp_path / "bare")
    torch.save({**bare, "threshold": parts["b_enc"]}, tmp_path / "bare" / "weights.pt")
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"activation_fn_str": "relu"}))
    with pytest.raises(UserError, match="has a threshold"):
        convert.load(tmp_path / "bare")
    torch.save({"encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"]}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: .* needs the tensor decoder\.weight"):
        convert.load(tmp_path / "other.pt")


@pytest.mark.parametrize("rule", ["topk", "relu", "batchtopk"])
def test_out_to_saelens_and_back(tmp_path, parts, rule):
    threshold = torch.full((M,), 1.2) if rule == "batchtopk" else None
    rows = parts["W_dec"] / parts["W_dec"].norm(dim=1, keepdim=True)
    meta = Meta(rule, K if rule != "relu" else 0)
    sae = SAE(parts["W_enc"].T.contiguous(), parts["b_enc"], rows, parts["b_dec"], meta, threshold)
    convert.save_saelens(sae, tmp_path, {"fvu": 0.125, "density": {}})
    agrees(convert.load(tmp_path), parts["x"], sae.encode(parts["x"]).dense(), sae(parts["x"]))
    card = (tmp_path / "README.md").read_text()
    assert "| fvu | 0.125 |" in card and f"| latents | {M} |" in card and card.startswith("---\n")
    real = saelens("SAE").load_from_disk(tmp_path)
    agrees(sae, parts["x"], real.encode(parts["x"]).detach(), real(parts["x"]).detach())


def package(name: str):
    """A real package. Where it is missing the test skips, except with SAELAB_PEERS=1, by which CI promises them all."""
    return importlib.import_module(name) if os.environ.get("SAELAB_PEERS") else pytest.importorskip(name)


def saelens(name: str):
    """A class of the real package, where it is installed and can be imported."""
    try:
        return getattr(package("sae_lens"), name)
    except ImportError as error:  # sae-lens imports transformer-lens, whose versions fit some others only
        if os.environ.get("SAELAB_PEERS"):
            raise
        pytest.skip(f"sae-lens can't be imported: {error}")


def fill(real, parts) -> None:
    """Weights that no convention leaves unseen: decoder rows of many lengths, biases, centres and thresholds."""
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(real, name).copy_(parts[name])
        if hasattr(real, "threshold"):
            real.threshold.copy_(torch.linspace(0, 2, M))
        if hasattr(real, "topk_threshold"):
            real.topk_threshold.fill_(1.5)


SAELENS = [
    (kind, norm, centred)
    for kind in ("Standard", "TopK", "TopK rescaled", "JumpReLU")
    for norm in ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
    for centred in (True, False)
]


@pytest.mark.parametrize(("kind", "norm", "centred"), SAELENS)
def test_the_real_saelens(tmp_path, parts, kind, norm, centred):
    name = kind.split()[0]
    settings = {"k": K, "rescale_acts_by_decoder_norm": "rescaled" in kind} if name == "TopK" else {}
    settings |= {"normalize_activations": norm, "apply_b_dec_to_input": centred}
    real = saelens(f"{name}SAE")(saelens(f"{name}SAEConfig")(d_in=D, d_sae=M, **settings))
    fill(real, parts)
    real.save_model(tmp_path)
    given = {}
    if norm == "expected_average_only_in":  # SAELens scales outside its SAE, by a number that only its training knows
        given = {"scale": 1.0}
        with pytest.raises(UserError, match="needs the scale of the input in training"):
            convert.load(tmp_path)
    sae, x = convert.load(tmp_path, **given), parts["x"]
    agrees(sae, x, real.encode(x).detach(), real(x).detach())
    if norm in ("none", "layer_norm"):
        convert.save_saelens(sae, tmp_path / "again")
        back = saelens("SAE").load_from_disk(tmp_path / "again")
        agrees(sae, x, back.encode(x).detach(), back(x).detach())


def test_the_real_saelens_reads_what_is_pushed(tmp_path, parts):
    sae = SAE(parts["W_enc"].T.contiguous(), parts["b_enc"], parts["W_dec"], parts["b_dec"], Meta("topk", K))
    sae.save(tmp_path / "sae")
    entry = hub.Entry(tmp_path / "sae", host="toy", layer="layer 1", name="sae")
    done, x = hub.push(entry, "org/name", out=tmp_path / "out", dry_run=True), parts["x"]
    shared = SAE.from_pretrained(str(done.folder), "toy/layer_1/sae")
    assert torch.equal(shared.encode_dense(x), sae.encode_dense(x))
    real = saelens("SAE").load_from_disk(done.folder / "toy" / "layer_1" / "sae")
    agrees(shared, x, real.encode(x).detach(), real(x).detach())
    with in_place_of_the_hub(tmp_path / "cache"):
        hub.push(entry, "org/name", out=tmp_path / "sent")
        fetched = saelens("SAE").from_pretrained("org/name", "toy/layer_1/sae")
    agrees(shared, x, fetched.encode(x).detach(), fetched(x).detach())


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_the_real_saelens_in_training(tmp_path, parts, kind, rescaled):
    more = {"matryoshka_widths": [M // 2, M]} if kind == "MatryoshkaBatchTopK" else {}
    settings = {"d_in": D, "d_sae": M, "k": K, "rescale_acts_by_decoder_norm": rescaled, **more}
    real = saelens(f"{kind}TrainingSAE")(saelens(f"{kind}TrainingSAEConfig")(**settings))
    fill(real, parts)
    real.save_model(tmp_path / "training")
    real.save_inference_model(tmp_path / "inference")
    final, x = saelens("SAE").load_from_disk(tmp_path / "inference"), parts["x"]
    for form in ("training", "inference"):
        agrees(convert.load(tmp_path / form), x, final.encode(x).detach(), final(x).detach())


LEARNT = {  # dictionary_learning's classes: module, further arguments, whether they have W_enc (else encoder.weight)
    "AutoEncoder": ("dictionary", [], False),
    "AutoEncoderNew": ("dictionary", [], False),
    "JumpReluAutoEncoder": ("dictionary", [], True),
    "AutoEncoderTopK": ("trainers.top_k", [K], False),
    "BatchTopKSAE": ("trainers.batch_top_k", [K], False),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", [K, [M // 2, M - M // 2]], True),
}


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("named", [True, False])
def test_the_real_dictionary_learning(tmp_path, parts, name, named):
    package("dictionary_learning")
    module, more, whole = LEARNT[name]
    real = getattr(importlib.import_module(f"dictionary_learning.{module}"), name)(D, M, *more)
    with torch.no_grad():
        if whole:
            for weight in ("W_enc", "b_enc", "W_dec", "b_dec"):
                getattr(real, weight).copy_(parts[weight])
        else:
            centre = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
            real.get_parameter(centre).copy_(parts["b_dec"])
            real.encoder.bias.copy_(parts["b_enc"])
        if hasattr(real, "threshold"):
            real.threshold.copy_(torch.linspace(0, 2, M) if name == "JumpReluAutoEncoder" else torch.tensor(1.2))
    torch.save(real.state_dict(), tmp_path / "ae.pt")
    if named:
        (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name}}))
    elif name in ("AutoEncoderTopK", "BatchTopKSAE"):
        with pytest.raises(UserError, match="TopK and BatchTopK have the same tensors"):
            convert.load(tmp_path / "ae.pt")
        return
    agrees(convert.load(tmp_path / "ae.pt"), parts["x"], real.encode(parts["x"]).detach(), real(parts["x"]).detach())


def test_the_real_saev(tmp_path, parts):
    """Its first release, the only one on the package index."""
    package("saev")
    from saev import config, nn

    real = nn.SparseAutoencoder(config.SparseAutoencoder(d_vit=D, exp_factor=3))
    three = {"W_enc": parts["W_enc"][:, : 3 * D], "b_enc": parts["b_enc"][: 3 * D], "W_dec": parts["W_dec"][: 3 * D]}
    fill(real, {**three, "b_dec": parts["b_dec"]})
    nn.dump(str(tmp_path / "sae.pt"), real)
    rebuilt, codes, _ = real(parts["x"])
    agrees(convert.load(tmp_path / "sae.pt"), parts["x"], codes.detach(), rebuilt.detach())


def test_the_real_sparsify(tmp_path, parts, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = package("sparsify")
    real = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=M, k=K), device="cpu", dtype=torch.float32)
    real.b_dec.data, real.encoder.bias.data = parts["b_dec"], parts["b_enc"]
    real.save_to_disk(tmp_path)
    sae, found = convert.load(tmp_path), real.encode(parts["x"])
    codes = torch.zeros(50, M).scatter(1, found.top_indices, found.top_acts).detach()
    agrees(sae, parts["x"], codes, real.decode(found.top_acts, found.top_indices).detach())


def test_the_real_overcomplete(tmp_path, parts):
    real = package("overcomplete.sae").TopKSAE(D, nb_concepts=M, top_k=K)
    real.train()
    real(parts["x"])  # moves its batch norm
    real.eval()
    torch.save(real.state_dict(), tmp_path / "sae.pt")
    _, codes = real.encode(parts["x"])
    agrees(convert.load(tmp_path / "sae.pt", k=K), parts["x"], codes.detach(), real.decode(codes).detach())
