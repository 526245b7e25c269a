"""The way out and back: SAEs with their labels on the Hugging Face hub.

    from saelab import hub
    from saelab.hub import labels
    from saelab.sae import SAE

    hub.push_run("runs/quickstart.json", "org/name", hub.PushSettings(license="apache-2.0"))
    sae = SAE.from_pretrained("org/name", "host/layer/sae_seed_0")
    rows = labels.from_pretrained("org/name", "host/layer/sae_seed_0")

Each SAE gets a folder: its weights in saelab's and in SAELens' format, what it was trained on, its quality, labels with
their nulls, evaluation, effects where they were measured, and a card made from these. Pictures stay at home unless they
are asked for.
"""

from saelab.hub.client import Pushed, upload
from saelab.hub.entries import Entry, read_entries
from saelab.hub.labels import digest_weights
from saelab.hub.settings import PushSettings
from saelab.hub.share import push, push_run

__all__ = ["Entry", "PushSettings", "Pushed", "digest_weights", "push", "push_run", "read_entries", "upload"]
