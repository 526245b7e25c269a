"""The command line: Hydra's edge, one module a command. Nobody imports it."""
