"""saelab: sparse autoencoders for vision models, and one labelling pipeline for neurons and SAE features alike."""

__version__ = "0.1.0"
