"""scripts/label.py with a real vision-language model behind a real server, and the same model in process."""

import json
import os
import sys
import time
from pathlib import Path

import commands
import pytest
from servers import transformers_serve
from small_images import coloured
from tiny_vlm import save_tiny_vlm

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"unit", "labels", "status", "prompt", "sheets", "raw", "model", "prompt_tokens", "completion_tokens", "cost"}
FIELDS |= {"seconds", "attempts", "positives", "contrasts", "mode", "request", "error"}
KEY = "sk-nobody-may-see-this"


def label(folder: Path, *more: str) -> list[str]:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "label.py"),
        "images=folder",
        f"images.root={folder / 'pictures'}",
    ]
    command += [
        f"root={folder / 'runs'}",
        "layers=[_blocks.15]",
        "bases=[neuron]",
        "scorer=[csp,pearson]",
        "label.nulls=5",
        "label.mining.k=5",
        "label.vocabulary=[classes,captions]",
    ]
    return [*command, "workers=0", "device=cpu", "proposer.units=top:6", "proposer.max_tokens=20", *more]


def proposals(folder: Path, proposer: str) -> list[dict]:
    file = next((folder / "runs" / "proposals").glob(f"neuron-{proposer}-*/proposals.jsonl"), None)
    return [json.loads(line) for line in file.read_text().splitlines()] if file else []


@pytest.mark.slow
def test_behind_a_server_after_a_kill_and_in_process_the_answers_are_the_same(tmp_path):
    pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    pytest.importorskip("efficientnet_lite_pytorch")
    coloured(tmp_path / "pictures", 40, size=64)
    model = save_tiny_vlm(tmp_path / "tiny")
    env = {**os.environ, "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with transformers_serve(model, tmp_path / "serve.log") as url:
        asked = label(tmp_path, "proposer=openai", f"proposer.base_url={url}", f"proposer.model={model}")
        asked += ["proposer.concurrency=1"]
        first = commands.start(asked, env=env)
        deadline = time.monotonic() + 400
        while len(proposals(tmp_path, "openai")) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        killed = first.kill()
        before = proposals(tmp_path, "openai")
        assert 2 <= len(before) < 6, killed.stderr[-2000:]
        done = commands.run(asked, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
    served = proposals(tmp_path, "openai")
    assert len(served) == 6 and all(row in served for row in before)
    assert all(set(row) >= FIELDS and row["cost"] is None and row["completion_tokens"] > 0 for row in served)
    assert "6 units: " in done.stdout and "cost unknown (no price is set)" in done.stdout
    local = label(tmp_path, "proposer=transformers", f"proposer.model={model}", "proposer.batch_size=2")
    inside = commands.run(local, env=env)
    assert inside.returncode == 0, inside.stderr[-2000:]
    assert [row["raw"] for row in proposals(tmp_path, "transformers")] == [row["raw"] for row in served]
    written = [file for file in tmp_path.rglob("*") if file.is_file() and "tiny" not in file.parts]
    assert not any(KEY.encode() in file.read_bytes() for file in written) and KEY not in done.stdout + done.stderr
