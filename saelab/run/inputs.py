"""What a run looks at: pictures, hosts, their cached activations, an encoder and its embeddings."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from saelab import cache, encoders, hosts
from saelab import images as image_sources
from saelab.cache import ActivationCache
from saelab.cache.unstored import check_crops
from saelab.errors import UserError
from saelab.files import check_folder
from saelab.images import ImageSet
from saelab.run.config import RunConfig
from saelab.run.device import choose_device
from saelab.run.given import Given
from saelab.run.stages.sae import check_names, sae_configs, vary_sae
from saelab.run.timings import Timings
from saelab.sae.fit import check_shards
from saelab.sae.start import check_device


class Inputs:
    """Everything that exists before there are units. `saelab.run.bases.Bases` goes on from it."""

    def __init__(self, config: RunConfig, given: Given | None = None) -> None:
        self.config, self.given = config, given or Given()
        self.root, self.device = Path(config.root), choose_device(config.device)
        check_folder("root", self.root, "give a folder that can be written to, for example root=PATH")
        self.timings, self.notes = Timings(), list[str]()

    @cached_property
    def images(self) -> ImageSet:
        """The pictures."""
        with self.timings.of("images"):
            return self.given.images or image_sources.load(**self.config.images)

    @cached_property
    def host(self) -> hosts.Host:
        """The model that is looked into."""
        return self.given.host or self._load_host(self.config.host.weights)

    @cached_property
    def random_host(self) -> hosts.Host:
        """The same network with random weights."""
        return self._load_host("random")

    @cached_property
    def caches(self) -> Mapping[str, ActivationCache]:
        """The activations of each layer; with `stream`, computed when they are read."""
        config, arrays = self.config, self.config.arrays
        if self.given.activations:
            if config.stream is not None:
                raise UserError("stream", "true", "there is no host that could compute your arrays", "leave it out")
            return {
                name: cache.adopt(array, self.root, self.images, name=name, dtype=config.dtype)
                for name, array in self.given.activations.items()
            }
        if arrays.activations is not None:
            where = (self.root, self.images, arrays.key, arrays.offsets, arrays.name, config.dtype)
            return {arrays.name: cache.adopt(arrays.activations, *where)}
        self.check_layers()
        return self._write_caches(self.host)

    @cached_property
    def random_caches(self) -> Mapping[str, ActivationCache]:
        """The activations of each layer of the host with random weights."""
        return self._write_caches(self.random_host)

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The image-text encoder that labels."""
        return self.given.encoder or encoders.load(self.config.encoder.name, device=self.device)

    @cached_property
    def embeddings(self) -> encoders.ImageEmbeddings:
        """The pictures in the encoder's space."""
        config, images = self.config, self.images
        if self.given.embeddings is not None:
            from saelab.encoders.arrays import adopt_embeddings

            return adopt_embeddings(self.given.embeddings, images, self.root)
        encoder = self.encoder
        with self.timings.of("embeddings"):
            return encoders.image_embeddings(images, encoder, self.root, config.batch_size, config.workers)

    @property
    def weights_are_given(self) -> bool:
        """Are there arrays instead of a host?"""
        return bool(self.given.activations) or self.config.arrays.activations is not None

    @property
    def weights(self) -> str:
        """Digest of the host's weights; of arrays there are none."""
        return "arrays" if self.weights_are_given else self.host.digest

    @property
    def host_name(self) -> str:
        """The host as a person would cite it."""
        return "arrays" if self.weights == "arrays" else self.host.name

    @cached_property
    def variants(self) -> dict[str, dict[str, Any]]:
        """The SAE settings of each entry of `also`."""
        return {text: vary_sae(text, self.config.sae) for text in self.config.also}

    def check_layers(self) -> None:
        """Raise UserError for layers that the host lacks, and for tokens and heads that it can't give."""
        heads = "heads" in self.config.bases
        if self.weights == "arrays":  # there is no host to ask
            if heads:
                raise UserError("bases", "heads", "arrays don't say where heads end", "give the host instead")
            return
        for layer in self.host.resolve(self.config.layers):
            self.host.choice(layer, self.config.policy)
            if heads:
                self.host.heads(layer)

    def check_saes(self, processes: int | None = None) -> None:
        """Raise UserError for SAEs that don't fit their layer, and for shards and devices that can't train them.

        processes: that are to train them. None: the SAEs may be there, whatever trained them.
        """
        self.check_layers()
        layers = self.host.resolve(self.config.layers) if self.weights != "arrays" else ()
        for given in (self.config.sae, *self.variants.values()) if layers and not self.given.saes else ():
            check_names(given, layers)
            for layer in layers:
                configs, train = sae_configs(given, layer, self.host.d_in(layer), self.config.seeds)
                check_shards(configs, train, processes)
                if processes is not None:
                    for config in configs:
                        check_device(config, self.device, train.graph, processes)

    # ---- parts -------------------------------------------------------------------------------------------------

    def _load_host(self, weights: str) -> hosts.Host:
        own = self.config.host
        device = (self.config.stream and self.config.stream.device) or self.device
        return hosts.load(own.name, weights, device, own.dtype, own.seed, own.transform)

    def _write_caches(self, host: hosts.Host) -> Mapping[str, ActivationCache]:
        images, own = self.images, self.config
        if own.stream is not None and own.stream.crop is not None:
            check_crops(images, host)  # before the units of other bases take a pass of the host
        make = cache.write if own.stream is None else cache.recompute
        with self.timings.of("activations"):
            return make(
                images,
                host,
                list(own.layers),
                self.root,
                own.policy,
                own.dtype,
                own.batch_size,
                own.workers,
                own.tokens_per_image,
            )
