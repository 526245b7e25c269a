"""The same step (forward, backward, Adam, decoder norm; k latents a token) with the other trainers that are installed.

Each is the package's own model and loss, called as its own trainer does; what the package does besides (logging,
buffers) is left out, in its favour.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from saelab.bench.sae import alternate, record
from saelab.sae import SAEConfig, Trainer

DISTRIBUTIONS = {
    "sparsify": "eai-sparsify",
    "sae_lens": "sae-lens",
    "overcomplete": "overcomplete",
    "dictionary_learning": "dictionary-learning",
}  # what each package is called where it is installed from


def cases(shapes: list[list[int]], k: int, rules: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Every installed peer at each shape; `speedup` is its time over ours, measured in turns.

    A peer that doesn't import or run beside the other packages here gets a line that says so.
    """
    peers = {"sparsify": sparsify, "sae_lens": sae_lens, "overcomplete": overcomplete}
    peers |= {"dictionary_learning": dictionary_learning}
    installed = {name: build for name, build in peers.items() if find_spec(name)}
    for d_in, latents, batch in shapes:
        x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
        for name, build in {"plain dense torch": plain_torch, **installed}.items():
            case = f"peer step, {name} {d_in}->{latents}"
            try:
                step = build(d_in, latents, k, x)
                step()
            except Exception as error:  # whatever another package raises
                yield {"case": case, "skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            found = version(DISTRIBUTIONS[name]) if name in DISTRIBUTIONS else torch.__version__
            yield {**compared(case, step, x, SAEConfig(d_in, latents, k=k), rounds), "version": found}


def compared(case: str, step: Callable[[], Any], x: torch.Tensor, config: SAEConfig, rounds: int) -> dict[str, Any]:
    """A peer's step against the encoder product, and against ours."""
    out, weights = x.new_empty(len(x), config.latents), torch.randn(config.latents, config.d_in)
    bias = x.new_zeros(config.latents)
    product, theirs = alternate(lambda: torch.addmm(bias, x, weights.T, out=out), step, rounds)
    del out
    trainer = Trainer(config)
    own, theirs_again = alternate(lambda: trainer.step(x), step, rounds)
    return {**record(case, theirs, product, len(x), 0.0), "speedup": round(theirs_again / own, 2)}


def plain_torch(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """TopK by autograd on dense matrices."""
    encoder, decoder = torch.nn.Linear(d_in, latents), torch.nn.Linear(latents, d_in)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4, fused=True)

    def step() -> None:
        values, indices = encoder(x - decoder.bias).topk(k, sorted=False)
        codes = torch.zeros(len(x), latents).scatter(1, indices, values.relu())
        (decoder(codes) - x).square().mean().backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            decoder.weight.div_(decoder.weight.norm(dim=0, keepdim=True))

    return step


def sparsify(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """EleutherAI's sparsify: SparseCoder, with its eager decoder (its Triton kernels need a GPU)."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    with redirect_stdout(sys.stderr):  # it says so in print
        from sparsify import SparseCoder, SparseCoderConfig

    model = SparseCoder(d_in, SparseCoderConfig(num_latents=latents, k=k), device="cpu", dtype=torch.float32)
    project, normalise = model.remove_gradient_parallel_to_decoder_directions, model.set_decoder_norm_to_unit_norm
    return _autograd(model, lambda: model(x).fvu, project, normalise)


def dictionary_learning(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """dictionary_learning: TopKTrainer.update."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    settings = {"steps": 10**6, "layer": 0, "lm_name": "none", "device": "cpu"}
    trainer = TopKTrainer(activation_dim=d_in, dict_size=latents, k=k, **settings)
    steps = iter(range(1, 10**6))
    return lambda: trainer.update(next(steps), x)


def overcomplete(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """overcomplete: TopKSAE with its mean squared error."""
    from overcomplete.sae import TopKSAE

    model = TopKSAE(d_in, nb_concepts=latents, top_k=k, device="cpu")
    return _autograd(model, lambda: (model(x)[2] - x).square().mean())


def sae_lens(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """SAELens: TopKTrainingSAE.training_forward_pass."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=latents, k=k, device="cpu"))

    def loss() -> torch.Tensor:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=1, is_logging_step=False
        )
        return model.training_forward_pass(given).loss

    return _autograd(model, loss)


def _autograd(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor], *around: Callable[[], Any]
) -> Callable[[], Any]:
    """A step by autograd and Adam; `around`: what the package does to the decoder before and after Adam."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    before, after = around or (lambda: None, lambda: None)

    def step() -> None:
        loss().backward()
        before()
        adam.step()
        adam.zero_grad()
        after()

    return step
