"""The pipeline: settings in, artifacts out. `Pipeline` makes each stage when it is asked for and reuses what is there.

`config` describes every setting, `stages/` holds one function a stage, `record` writes and reads a run's file.
"""

from saelab.run.config import RunConfig
from saelab.run.pipeline import Pipeline

__all__ = ["Pipeline", "RunConfig"]
