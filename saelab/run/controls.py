"""Controls of what units do: the bases that a claim about a run's units has to beat, as far as the run lacks them."""

from dataclasses import replace

from saelab.run.config import ProposerSettings, RunConfig
from saelab.run.given import Given

ALWAYS = ("random_rotation", "pca")
OF_SAES = ("untrained", "frozen_decoder")  # SAEs that learned nothing, or only their encoder
RANDOM_HOST = "random_host"


def missing_controls(config: RunConfig, given: Given) -> list[str]:
    """Kinds of bases, and RANDOM_HOST, that a run of these settings lacks.

    SAEs given from elsewhere have no untrained twin, and a model given as an object none with random weights.
    """
    wanted = list(ALWAYS)
    if "sae" in config.bases and not given.saes:
        wanted += OF_SAES
        if given.host is None and not config.random_host and config.host.weights != "random":
            wanted.append(RANDOM_HOST)
    return [kind for kind in wanted if kind not in config.bases]


def control_config(config: RunConfig, kinds: list[str]) -> RunConfig:
    """The settings of a run of these controls alone. Nobody is asked for candidates: the run's own labels serve."""
    return replace(
        config,
        bases=tuple(kind for kind in kinds if kind != RANDOM_HOST),
        random_host=RANDOM_HOST in kinds,
        proposer=ProposerSettings("none"),
        seeds=config.seeds[:1],
        also=(),
        effects=None,
    )
