"""The page on Terraform, word for word: what is exported, and what Terraform makes of it.

Where the page says ``terraform``, that is the real one, with the stand-in for the provider; where
somebody would have to say yes, it is said beforehand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
import terraform_command
from terraform_command import PATIENCE, terraform_at

from dask_gce import names

OBSTACLE = terraform_command.find_obstacle()
pytestmark = [
    pytest.mark.skipif(
        OBSTACLE is not None or shutil.which("terraform") is None,
        reason=OBSTACLE or "the page is about terraform, which is not installed",
    ),
    # A dozen commands, one after the other.
    pytest.mark.timeout(2 * PATIENCE + 100),
]

PAGE = pages.ROOT / "docs/terraform.md"


def blocks() -> Iterator[str]:
    """Yield what is exported, and what is said to be run here."""
    here = str(Path(__file__).relative_to(pages.ROOT))
    for block in pages.read_page(PAGE).blocks:
        ours = block.markers.get("run by") == here
        if block.language == "bash" and (ours or block.text.startswith("dask gce export")):
            yield block.text


def test_the_commands_of_the_page_make_the_clusters_that_it_says(emulator, tmp_path):
    with terraform_at(tmp_path, emulator.endpoint) as terraform:
        environment = {
            **terraform.environment(),
            "DASK_GCE__API_ENDPOINT": emulator.endpoint,
            "PYTHONWARNINGS": "ignore::FutureWarning",
            "NO_PROXY": "127.0.0.1",
            "TF_CLI_ARGS_apply": "-auto-approve",
        }
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "".join(blocks())],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    machines = [each for each in emulator.instances() if each["status"] != "STOPPING"]
    clusters = {each["labels"][names.CLUSTER_LABEL] for each in machines}
    assert clusters == {"grid", "grid-evening"}
    assert len({each["labels"][names.ID_LABEL] for each in machines}) == 2
