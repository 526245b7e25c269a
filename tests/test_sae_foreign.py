"""Foreign SAEs are understood or refused, by name: whatever a file holds, no other error and no silent default."""

import json
import logging
import string
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from saelab.errors import UserError
from saelab.sae import SAE, convert

D, N, K = 6, 20, 3
G = torch.Generator().manual_seed(0)
W_ENC, W_DEC = torch.randn(D, N, generator=G), torch.randn(N, D, generator=G)
B_ENC, B_DEC = torch.randn(N, generator=G) * 0.1, torch.randn(D, generator=G)
X = torch.randn(60, D, generator=G) * 2 + 1
FOUR = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
LINEAR = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.contiguous()}
SPARSIFY = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
QUICK = settings(max_examples=40, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KNOWN = """k architecture activation activation_fn_str activation_fn_kwargs normalize_activations d_in d_sae signed
    transcode apply_b_dec_to_input rescale_acts_by_decoder_norm matryoshka_widths is_transcoder num_latents
    dict_class"""

# format -> (tensors, settings) of a whole file
WHOLE = {
    "SAELens": (FOUR, {"architecture": "topk", "k": K, "d_in": D, "d_sae": N, "dtype": "float32", "device": "cuda"}),
    "sparsify": (SPARSIFY, {"activation": "topk", "k": K, "d_in": D, "num_latents": N, "expansion_factor": 32}),
    "ViT-Prisma": (FOUR, {"activation_fn_str": "relu", "d_in": D, "lr": 0.1, "is_transcoder": False}),
    "dictionary_learning": (
        {**LINEAR, "b_dec": B_DEC, "k": torch.tensor(K)},
        {"dict_class": "AutoEncoderTopK", "k": K},
    ),
    "saev": (FOUR, {"d_model": D, "d_sae": N, "seed": 0, "activation": {"cls": "TopK", "params": {"top_k": K}}}),
}
FORMATS = sorted(WHOLE)


def write(folder: Path, kind: str, tensors: dict, config: dict) -> Path:
    """A file of the format, with its configuration where the package puts it; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if kind in ("SAELens", "sparsify"):
        file = folder / ("sae_weights.safetensors" if kind == "SAELens" else "sae.safetensors")
        save_file(tensors, file)
        (folder / "cfg.json").write_text(json.dumps(config))
        return file
    file = folder / {"ViT-Prisma": "weights.pt", "dictionary_learning": "ae.pt", "saev": "sae.pt"}[kind]
    if kind == "saev":
        with file.open("wb") as opened:
            opened.write((json.dumps({"schema": 2, "cfg": config}) + "\n").encode())
            torch.save(tensors, opened)
        return file
    torch.save(tensors, file)
    outer = {"trainer": config, "buffer": {}} if kind == "dictionary_learning" else config
    (folder / "config.json").write_text(json.dumps(outer))
    return file


def refused(path: Path, *words: str, **options) -> str:
    with pytest.raises(UserError) as error:
        convert.load(path, **options)
    text = str(error.value)
    assert "\n" not in text and "weights_only=False" not in text
    for word in words:
        assert word in text
    return text


@pytest.mark.parametrize("kind", FORMATS)
@settings(QUICK, max_examples=15)
@given(name=st.text(string.ascii_letters + "_.", min_size=1, max_size=12))
def test_a_tensor_that_no_reader_takes_refuses_the_file_by_name(kind, name, tmp_path):
    tensors, config = WHOLE[kind]
    convert.load(write(tmp_path, kind, tensors, config))
    if name not in {*tensors, "threshold", "state_dict", "model", "dictionary._weights", "log_threshold", "b_dec_out"}:
        assert name in refused(write(tmp_path, kind, {**tensors, name: torch.ones(N)}, config))


@pytest.mark.parametrize("kind", FORMATS)
@settings(QUICK, max_examples=15)
@given(
    name=st.text(string.ascii_lowercase, min_size=4, max_size=12).map(lambda text: f"new_{text}"),
    value=st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.none(), st.lists(st.integers())),
)
def test_a_setting_that_no_reader_knows_refuses_the_file_by_name_unless_it_is_off(kind, name, value, tmp_path):
    tensors, config = WHOLE[kind]
    file = write(tmp_path, kind, tensors, {**config, name: value})
    if value in (None, False, 0, "", [], "none", "None"):
        convert.load(file)
    else:
        assert name in refused(file)


@pytest.mark.parametrize("kind", FORMATS)
@settings(QUICK, max_examples=15)
@given(data=st.data())
def test_numbers_that_are_not_finite_and_sizes_that_contradict_are_refused(kind, data, tmp_path):
    tensors, config = dict(WHOLE[kind][0]), WHOLE[kind][1]
    name = data.draw(st.sampled_from(sorted(n for n in tensors if n != "k")))
    broken = tensors[name].clone()
    if data.draw(st.booleans()):
        broken.view(-1)[data.draw(st.integers(0, broken.numel() - 1))] = data.draw(
            st.sampled_from([torch.nan, torch.inf, -torch.inf])
        )
        refused(write(tmp_path, kind, {**tensors, name: broken}, config), name, "NaN or an infinity")
    else:
        axis = data.draw(st.integers(0, broken.ndim - 1))
        refused(write(tmp_path, kind, {**tensors, name: broken.narrow(axis, 1, broken.shape[axis] - 1)}, config))


@pytest.mark.parametrize("kind", FORMATS)
@settings(QUICK, max_examples=25)
@given(junk=st.binary(max_size=300), cut=st.floats(0, 0.999), how=st.sampled_from(["junk", "cut", "head", "pointer"]))
def test_whatever_bytes_a_file_holds_only_one_line_comes_out(kind, junk, cut, how, tmp_path):
    file = write(tmp_path, kind, *WHOLE[kind])
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    parts = {"junk": junk, "cut": whole[: int(cut * len(whole))], "head": junk + whole[len(junk) :], "pointer": pointer}
    file.write_bytes(parts[how])
    if how == "pointer":
        refused(file, "Git LFS pointer")
    elif how == "cut":
        assert "pickle" not in refused(file)
    else:
        try:
            convert.load(file)
        except UserError as error:
            assert "\n" not in str(error) and "weights_only=False" not in str(error)


@pytest.mark.parametrize("kind", ["SAELens", "sparsify", "ViT-Prisma", "dictionary_learning"])
@settings(QUICK, max_examples=25)
@given(value=JSON, name=st.sampled_from(KNOWN.split()))
def test_whatever_json_a_setting_holds_only_one_line_comes_out(kind, value, name, tmp_path):
    tensors, config = WHOLE[kind]
    for settings_ in ({**config, name: value}, value):
        file = write(tmp_path, kind, tensors, config)
        beside = file.parent / ("cfg.json" if kind in ("SAELens", "sparsify") else "config.json")
        beside.write_text(json.dumps({"trainer": settings_} if kind == "dictionary_learning" else settings_))
        try:
            convert.load(file)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("SAELens", {"activation_fn_str": "tanh-relu"}, ["tanh-relu"]),
        (
            "SAELens",
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "postact_fn": "gelu"}},
            ["postact_fn"],
        ),
        ("SAELens", {"architecture": "phase_multiplexed"}, ["phase_multiplexed"]),
        ("SAELens", {"normalize_activations": "batch_norm"}, ["batch_norm"]),
        ("SAELens", {"k": N + 1}, ["20"]),
        ("SAELens", {"k": 2.5}, ["k=2.5"]),
        ("SAELens", {"d_in": D + 1}, ["d_in=7", "6"]),
        ("sparsify", {"activation": "groupmax"}, ["groupmax"]),
        ("sparsify", {"gram_lookup": True}, ["gram_lookup"]),
        ("sparsify", {"num_latents": 0, "expansion_factor": 4}, ["expansion_factor=4"]),
        ("sparsify", {"transcode": True}, ["transcoder", "encoder_only=True"]),
        ("sparsify", {"signed": True}, ["signed", "split"]),
        ("ViT-Prisma", {"architecture": "gated"}, ["gated"]),
        ("ViT-Prisma", {"normalize_activations": "expected_average_only_in"}, ["expected_average_only_in"]),
        ("saev", {"activation": {"cls": "Gelu", "params": {}}}, ["Gelu"]),
        ("saev", {"activation": {"cls": "TopK", "params": {"top_k": K, "dither": 1.0}}}, ["dither"]),
        ("dictionary_learning", {"dict_class": "GatedAutoEncoder"}, ["GatedAutoEncoder"]),
        ("dictionary_learning", {"activation_dim": D + 1}, ["activation_dim=7"]),
    ],
)
def test_what_cannot_be_expressed_is_named(kind, change, words, tmp_path):
    tensors, config = WHOLE[kind]
    refused(write(tmp_path, kind, tensors, {**config, **change}), *words)


def test_unknown_schemas_truncation_and_options_that_contradict(tmp_path):
    file = write(tmp_path, "saev", *WHOLE["saev"])
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"schema": 2', b'"schema": 9'))
    refused(file, "schema 9")
    file = write(tmp_path / "p", "ViT-Prisma", *WHOLE["ViT-Prisma"])
    file.write_bytes(file.read_bytes()[:-200])
    refused(file, "cut off or damaged")
    refused(write(tmp_path / "k", "SAELens", *WHOLE["SAELens"]), "says 3", k=4)
    refused(tmp_path / "k", "known: split", signed="both")
    overcomplete = tmp_path / "o.pt"
    state = {"encoder.final_block.0.weight": W_ENC.T, "encoder.final_block.0.bias": B_ENC, "dictionary._weights": W_DEC}
    torch.save(state, overcomplete)
    refused(overcomplete, "neither the activation nor k")
    assert convert.load(overcomplete, k=0).meta.rule == "relu" and convert.load(overcomplete, k=K).meta.k == K
    torch.save({**state, "thresholds": torch.ones(N)}, overcomplete)
    refused(overcomplete, "thresholds", k=K)


@pytest.mark.parametrize("kind", FORMATS)
def test_half_precision_is_widened_before_it_is_used(kind, tmp_path):
    """Norms and biases of half-precision weights, in half precision, are off by a thousandth."""
    tensors, config = WHOLE[kind]
    half = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    if kind == "SAELens":
        config = {**config, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    found = convert.load(write(tmp_path / "half", kind, half, config))
    wide = {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
    expected = convert.load(write(tmp_path / "wide", kind, wide, config))
    assert found.W_enc.dtype == torch.float32
    assert torch.equal(found.encode_dense(X), expected.encode_dense(X))


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
def test_signed_latents_are_kept_by_size_whatever_their_sign(transcode, skips, tmp_path):
    config = {**WHOLE["sparsify"][1], "signed": True, "transcode": transcode, "skip_connection": skips}
    tensors = {**SPARSIFY, **({"W_skip": torch.eye(D)} if skips else {})}
    file = write(tmp_path, "sparsify", tensors, config)
    sae = convert.load(file, signed="split", encoder_only=transcode or skips)
    pre = (X - (0 if transcode else B_DEC)) @ W_ENC + B_ENC
    kept = pre.abs().topk(K).indices
    codes = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))
    found = sae.encode_dense(X)
    assert (codes < 0).any()
    torch.testing.assert_close(found[:, :N] - found[:, N:], codes, rtol=1e-4, atol=1e-5)
    assert bool((found >= 0).all()) and bool(((found > 0).sum(1) == K).all())
    if not (transcode or skips):
        torch.testing.assert_close(sae(X), codes @ W_DEC + B_DEC, rtol=1e-4, atol=1e-4)


OUT = 9  # width of the layer that a transcoder writes
TRANSCODERS = {
    "SAELens": ("SAELens", {"architecture": "transcoder", "d_out": OUT}, {"b_dec": torch.ones(OUT)}, 0.0),
    "SAELens, skip": (
        "SAELens",
        {"architecture": "jumprelu_skip_transcoder", "d_out": OUT, "normalize_activations": "layer_norm"},
        {"b_dec": torch.ones(OUT), "threshold": torch.full((N,), 0.7), "W_skip": torch.ones(OUT, D)},
        0.7,
    ),
    "ViT-Prisma": (
        "ViT-Prisma",
        {"activation_fn_str": "relu", "is_transcoder": True, "d_out": OUT},
        {"b_dec": B_DEC, "b_dec_out": torch.ones(OUT)},
        0.0,
    ),
    "ViT-Prisma, skip": (
        "ViT-Prisma",
        {"is_transcoder": True, "transcoder_with_skip_connection": True, "normalize_activations": "layer_norm"},
        {"b_dec": B_DEC, "b_dec_out": torch.ones(OUT), "W_skip": torch.eye(D)},
        0.0,
    ),
}


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_is_labelled_by_its_encoder_and_never_decodes(name, tmp_path):
    kind, config, more, threshold = TRANSCODERS[name]
    tensors = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": torch.randn(N, OUT, generator=G), **more}
    file = write(tmp_path, kind, tensors, config)
    refused(file, "transcoder", "encoder_only=True")
    sae = convert.load(file, encoder_only=True)
    x = X
    if config.get("normalize_activations") == "layer_norm":
        x = (X - X.mean(1, keepdim=True)) / (X.std(1, keepdim=True) + 1e-5)
    pre = (x - (B_DEC if kind == "ViT-Prisma" else 0)) @ W_ENC + B_ENC
    torch.testing.assert_close(sae.encode_dense(X), pre.relu() * (pre > threshold), rtol=1e-4, atol=1e-4)
    sae.save(tmp_path / "ours" / "new")
    again = SAE.load(tmp_path / "ours" / "new")
    for use in (lambda: again(X), lambda: again.decode(again.encode(X)), lambda: convert.save_saelens(again, tmp_path)):
        with pytest.raises(UserError, match="transcoder"):
            use()


@pytest.mark.parametrize("centred", [True, False])
@settings(QUICK, max_examples=10)
@given(scale=st.floats(0.01, 100))
def test_the_scale_of_training_is_folded_in_from_its_file_or_asked_for(centred, scale, tmp_path):
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    file = write(tmp_path, "SAELens", FOUR, {**config, "apply_b_dec_to_input": centred})
    beside = tmp_path / "activation_scaler.json"
    beside.unlink(missing_ok=True)
    refused(file, "needs the scale")
    pre = (X * scale - B_DEC * centred) @ W_ENC + B_ENC
    expected = (pre.relu() @ W_DEC + B_DEC) / scale
    given_ = convert.load(file, scale=scale)
    beside.write_text(json.dumps({"scaling_factor": scale}))
    for sae in (given_, convert.load(file)):
        torch.testing.assert_close(sae.encode_dense(X), pre.relu(), rtol=1e-3, atol=1e-3 * scale + 1e-4)
        torch.testing.assert_close(sae(X), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    refused(file, "leave scale out", scale=2 * scale)
    for wrong in (-1, 0, "2", None, True, [1]):
        beside.write_text(json.dumps({"scaling_factor": wrong}))
        refused(file)
    beside.write_text(json.dumps({"scaling_factor": 0.5}))
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "none"}))
    refused(file, "contradicts normalize_activations")


def test_saelens_jumprelu_and_matryoshka_of_today(tmp_path):
    lengths = W_DEC.norm(dim=1)
    threshold = torch.linspace(-1, 2, N)  # SAELens counts a negative one as 0
    config = {"architecture": "jumprelu", "jumprelu_bandwidth": 0.05, "l0_coefficient": 1.0, "metadata": {"x": 1}}
    pre = (X - B_DEC) @ W_ENC + B_ENC
    found = convert.load(write(tmp_path / "jump", "SAELens", {**FOUR, "threshold": threshold}, config))
    codes = pre.relu() * (pre > threshold.relu())
    torch.testing.assert_close(found.encode_dense(X), codes, rtol=1e-4, atol=1e-4)
    config = {"architecture": "matryoshka_batchtopk", "k": 2.5, "matryoshka_widths": [4, 10, N]}
    config |= {"rescale_acts_by_decoder_norm": True, "use_matryoshka_aux_loss": True, "topk_threshold_lr": 0.01}
    tensors = {**FOUR, "topk_threshold": torch.tensor(1.5, dtype=torch.double)}
    found = convert.load(write(tmp_path / "matryoshka", "SAELens", tensors, config))
    assert found.meta.prefixes == (4, 10, N)
    scaled = pre * lengths
    codes = scaled.relu() * (scaled > 1.5)
    torch.testing.assert_close(found.encode_dense(X), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(X), codes / lengths @ W_DEC + B_DEC, rtol=1e-4, atol=1e-4)
    refused(write(tmp_path / "k", "SAELens", tensors, {**config, "matryoshka_widths": [10, 4, N]}), "prefixes")


def test_files_and_folders_are_found_as_people_name_them(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(tmp_path / "hub" / "layer_3", "SAELens", *WHOLE["SAELens"])
    expected = convert.load(file.parent).encode_dense(X)
    file.rename(file.with_name("other.safetensors"))
    for place in ("~/hub/layer_3", file.with_name("other.safetensors"), "~/hub/layer_3/other.safetensors"):
        assert torch.equal(convert.load(place).encode_dense(X), expected)
    refused(tmp_path / "hub", "layer_3")
    refused(Path("~/absent"), "no such file or folder")
    (file.parent / "cfg.json").unlink()
    refused(file.parent, "no cfg.json")
    with caplog.at_level(logging.WARNING):
        (file.parent / "cfg.json").write_text("[1]")
        refused(file.parent, "expected settings by name")
