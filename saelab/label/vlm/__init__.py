"""Vision-language models: one way to ask (`chat`), the backends that answer, and what turns answers into labels."""
