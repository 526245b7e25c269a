"""The same step (forward, backward, Adam, decoder norm; k latents a token) with the other trainers that are installed.

Each is the package's own model and loss, called as its own trainer does; what the package does besides (logging,
buffers) is left out, in its favour. `quality.py` measures what they reach.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from saelab.bench.sae import alternate, record
from saelab.sae import SAEConfig, Trainer

DISTRIBUTIONS = {
    "sparsify": "eai-sparsify",
    "sae_lens": "sae-lens",
    "overcomplete": "overcomplete",
    "dictionary_learning": "dictionary-learning",
}  # what each package is called where it is installed from


LR = 1e-4  # where only speed is measured


@dataclass(frozen=True)
class Peer:
    """One package's TopK model while it trains."""

    step: Callable[[Tensor, float], Any]  # a whole step on tokens [batch, d_in], with the learning rate of now
    rebuild: Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens to reconstructions and dense codes [batch, latents]


Builder = Callable[[int, int, int, Tensor], Peer]  # d_in, latents, k, the mean of the tokens [d_in]


def installed() -> dict[str, Builder]:
    """The packages that are installed, by the name they are imported by."""
    known: dict[str, Builder] = {"sparsify": sparsify, "sae_lens": sae_lens, "overcomplete": overcomplete}
    known |= {"dictionary_learning": dictionary_learning}
    return {name: build for name, build in known.items() if find_spec(name)}


def not_installed() -> Iterator[dict[str, Any]]:
    """A line for each package that is not there, so that no table lacks it unsaid."""
    for name, distribution in DISTRIBUTIONS.items():
        if name not in installed():
            yield {"case": f"peer, {name}", "skipped": f"not installed; pip install {distribution}"}


def cases(shapes: list[list[int]], k: int, rules: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Every installed peer at each shape; `speedup` is its time over ours, measured in turns.

    A peer that doesn't import or run beside the other packages here gets a line that says so.
    """
    yield from not_installed()
    for d_in, latents, batch in shapes:
        x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
        for name, build in {"plain dense torch": plain_torch, **installed()}.items():
            case = f"peer step, {name} {d_in}->{latents}"
            try:
                peer = build(d_in, latents, k, torch.zeros(d_in))
                peer.step(x, LR)
            except Exception as error:  # whatever another package raises
                yield {"case": case, "skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            step = partial(peer.step, x, LR)
            yield {**compared(case, step, x, SAEConfig(d_in, latents, k=k), rounds), "version": version_of(name)}


def version_of(name: str) -> str:
    """The version of a package that is installed, torch's for plain torch."""
    return version(DISTRIBUTIONS[name]) if name in DISTRIBUTIONS else torch.__version__


def compared(case: str, step: Callable[[], Any], x: torch.Tensor, config: SAEConfig, rounds: int) -> dict[str, Any]:
    """A peer's step against the encoder product, and against ours."""
    out, weights = x.new_empty(len(x), config.latents), torch.randn(config.latents, config.d_in)
    bias = x.new_zeros(config.latents)
    product, theirs = alternate(lambda: torch.addmm(bias, x, weights.T, out=out), step, rounds)
    del out
    trainer = Trainer(config)
    own, theirs_again = alternate(lambda: trainer.step(x), step, rounds)
    return {**record(case, theirs, product, len(x), 0.0), "speedup": round(theirs_again / own, 2)}


def plain_torch(d_in: int, latents: int, k: int, mean: Tensor) -> Peer:
    """TopK by autograd on dense matrices."""
    encoder, decoder = torch.nn.Linear(d_in, latents), torch.nn.Linear(latents, d_in)
    decoder.bias.data.copy_(mean)

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = encoder(x - decoder.bias).topk(k, sorted=False)
        codes = torch.zeros(len(x), latents).scatter(1, indices, values.relu())
        return decoder(codes), codes

    def normalise() -> None:
        decoder.weight.div_(decoder.weight.norm(dim=0, keepdim=True))

    model = torch.nn.ModuleList([encoder, decoder])
    return Peer(_autograd(model, lambda x: (rebuild(x)[0] - x).square().mean(), after=normalise), rebuild)


def sparsify(d_in: int, latents: int, k: int, mean: Tensor) -> Peer:
    """EleutherAI's sparsify: SparseCoder, with its eager decoder (its Triton kernels need a GPU)."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    with redirect_stdout(sys.stderr):  # it says so in print
        from sparsify import SparseCoder, SparseCoderConfig

    model = SparseCoder(d_in, SparseCoderConfig(num_latents=latents, k=k), device="cpu", dtype=torch.float32)
    model.b_dec.data.copy_(mean)  # as its trainer does on the first batch
    project, normalise = model.remove_gradient_parallel_to_decoder_directions, model.set_decoder_norm_to_unit_norm

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        found = model(x)
        codes = torch.zeros(len(x), latents).scatter(1, found.latent_indices, found.latent_acts)
        return found.sae_out, codes

    return Peer(_autograd(model, lambda x: model(x).fvu, project, normalise), rebuild)


def dictionary_learning(d_in: int, latents: int, k: int, mean: Tensor) -> Peer:
    """dictionary_learning: TopKTrainer.update, which takes its b_dec from the first batch; the rate follows ours."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    settings = {"steps": 10**6, "layer": 0, "lm_name": "none", "device": "cpu", "warmup_steps": 0, "lr": LR}
    trainer = TopKTrainer(activation_dim=d_in, dict_size=latents, k=k, **settings)
    steps = iter(range(10**6))
    trainer.scheduler = SimpleNamespace(step=lambda: None)

    def step(x: Tensor, lr: float) -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = lr
        trainer.update(next(steps), x)

    return Peer(step, lambda x: trainer.ae(x, output_features=True))


def overcomplete(d_in: int, latents: int, k: int, mean: Tensor) -> Peer:
    """overcomplete: TopKSAE with its mean squared error; its batch norm uses running moments when it rebuilds."""
    from overcomplete.sae import TopKSAE

    model = TopKSAE(d_in, nb_concepts=latents, top_k=k, device="cpu")

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        model.eval()
        _, codes, found = model(x)
        model.train()
        return found, codes

    return Peer(_autograd(model, lambda x: (model(x)[2] - x).square().mean()), rebuild)


def sae_lens(d_in: int, latents: int, k: int, mean: Tensor) -> Peer:
    """SAELens: TopKTrainingSAE.training_forward_pass."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=latents, k=k, device="cpu"))
    model.b_dec.data.copy_(mean)

    def loss(x: Tensor) -> Tensor:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=1, is_logging_step=False
        )
        return model.training_forward_pass(given).loss

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = model.encode(x)
        codes = codes.to_dense() if codes.is_sparse else codes
        return model.decode(codes), codes

    return Peer(_autograd(model, loss), rebuild)


def _autograd(
    model: torch.nn.Module,
    loss: Callable[[Tensor], Tensor],
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> Callable[[Tensor, float], Any]:
    """A step by autograd and Adam; `before`, `after`: what the package does to the decoder around Adam."""
    adam = torch.optim.Adam(model.parameters(), lr=LR, fused=True)

    def step(x: Tensor, lr: float) -> None:
        for group in adam.param_groups:
            group["lr"] = lr
        loss(x).backward()
        with torch.no_grad():
            before()
            adam.step()
            adam.zero_grad()
            after()

    return step
