"""Sparse autoencoders: train, measure, save, load, convert.

    from saelab.sae import SAE, SAEConfig, TrainConfig, fit

    fit(data, config, train=None, folder=None, *, mean=None, variance=None, start=None, held_out=None, device="cpu",
        logger=None, progress=True) -> Fit(sae, quality, folder)

`data`: an array, memory map or tensor [tokens, d_in], or a saelab.cache.batches.Batches (with the mine split's rows).
`config`: SAEConfig(d_in, latents, rule, k, ...). `train`: TrainConfig(batch_size, epochs or steps, ...).
`mean`, `variance`: of a cache's header; computed where not given. `start`: an SAE to begin from. `held_out`: tokens
that training never sees, measured beside the others. `folder`: gets sae.safetensors, training.json (what it was made
from), quality.json and metrics.jsonl, and checkpoints/ while training, from which the same call resumes after a kill.
Once it is finished, the same call returns it, and another recipe is refused.
As a stage: `artifacts.ensure(root, "sae", name, recipe, lambda folder: fit(batches, config, train, folder, ...))`.
`fit_many(data, [configs], train, [folders], ...)` trains several in one pass, and `fit_layers` those of several layers
on `saelab.cache.stream`'s streams, whose activations are never stored. `Trainer(config).step(x)` is one step.
`rules.RULES` holds the rules; `fidelity.measure(sae, mine, test, ...)` measures all there is to measure of an SAE.
"""

from saelab.sae.config import SAEConfig, TrainConfig, settle
from saelab.sae.fit import Fit, fit, fit_layers, fit_many
from saelab.sae.model import SAE, Codes, Meta
from saelab.sae.quality import quality
from saelab.sae.rules import RULES, Gate, Rule, Selection
from saelab.sae.train import Trainer

__all__ = [
    "RULES",
    "SAE",
    "Codes",
    "Fit",
    "Gate",
    "Meta",
    "Rule",
    "SAEConfig",
    "Selection",
    "TrainConfig",
    "Trainer",
    "fit",
    "fit_layers",
    "fit_many",
    "quality",
    "settle",
]
