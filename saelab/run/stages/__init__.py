"""One function a stage: inputs, a frozen config and a root folder in, an artifact out. Each stage owns its recipe."""
