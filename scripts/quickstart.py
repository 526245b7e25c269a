"""The main job: from photos to a page on which neurons and SAE features carry labels, measured and compared.

`python scripts/quickstart.py` takes the packaged photos and EfficientNet-Lite0; `images=folder images.root=PATH`,
`host=...`, `layers=[...]`, `encoder=...` and every other setting of conf/pipeline.yaml can be given. What has been made
already is reused.
"""

import time

import record
from command import command
from omegaconf import DictConfig
from screens import last_screen
from stages import Run

from saelab import report


@command("quickstart")
def main(cfg: DictConfig) -> None:
    """Run every stage, write runs/<name>.json and the report, and print a last screen."""
    start = time.perf_counter()
    run = Run(cfg)
    run_json = record.write(run)
    index = report.build(run_json, run.root / "report" / cfg.name)
    print(last_screen(run, index, time.perf_counter() - start))


if __name__ == "__main__":
    main()
