"""The same step (forward, backward, Adam, decoder norm; k latents a token) with the other trainers that are installed.

Each is the package's own model and loss, called as its own trainer does; what the package does besides (logging,
buffers) is left out, in its favour.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from bench_cases.sae import alternate, record

from saelab.sae import SAEConfig, Trainer


def cases(shapes: list[list[int]], k: int, rules: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Every installed peer at each shape; `speedup` is its time over ours, measured in turns."""
    peers = {"sparsify": sparsify, "sae_lens": sae_lens, "overcomplete": overcomplete}
    peers |= {"dictionary_learning": dictionary_learning}
    for d_in, latents, batch in shapes:
        x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
        for name, build in {"plain dense torch": plain_torch, **peers}.items():
            if build is not plain_torch and find_spec(name) is None:
                continue
            step, out = build(d_in, latents, k, x), x.new_empty(batch, latents)
            weights, bias = torch.randn(latents, d_in), torch.zeros(latents)
            product, theirs = alternate(
                lambda w=weights, b=bias, o=out, x=x: torch.addmm(b, x, w.T, out=o), step, rounds
            )
            trainer = Trainer(SAEConfig(d_in, latents, k=k))
            own, theirs_again = alternate(lambda t=trainer, x=x: t.step(x), step, rounds)
            line = record(f"peer step, {name} {d_in}->{latents}", theirs, product, batch, 0.0)
            yield {**line, "speedup": round(theirs_again / own, 2)}


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
    """EleutherAI's sparsify: SparseCoder."""
    from sparsify import SparseCoder, SparseCoderConfig

    model = SparseCoder(d_in, SparseCoderConfig(num_latents=latents, k=k), device="cpu", dtype=torch.float32)
    return _autograd(model, lambda: model(x).fvu, model.set_decoder_norm_to_unit_norm)


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
    return _autograd(model, lambda: (model(x)[2] @ model.get_dictionary() - x).square().mean(), lambda: None)


def sae_lens(d_in: int, latents: int, k: int, x: torch.Tensor) -> Callable[[], Any]:
    """SAELens: TopKTrainingSAE.training_forward_pass."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=latents, k=k, device="cpu"))

    def loss() -> torch.Tensor:
        given = TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=1)
        return model.training_forward_pass(given).loss

    return _autograd(model, loss, lambda: None)


def _autograd(model: torch.nn.Module, loss: Callable[[], torch.Tensor], after: Callable[[], Any]) -> Callable[[], Any]:
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad()
        after()

    return step
