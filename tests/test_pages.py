"""Every block of every page does what the page says, and a page that lies is found out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter

import pytest
from page_session import check_unrun, commands_of, run_page
from pages import PAGES, PageError, find_difference, name_of, read_page

#: How many blocks may be left out since something is not here, by what it is. More of them is a
#: decision, and made here.
LEFT_OUT = {
    "a Google account": 9,
    "a container engine": 4,
    "a package index": 4,
    "another shell": 1,
    "hours": 4,
    "real machines": 2,
}

#: The test that types blocks word for word into a terminal, which would take as long here again.
TYPED = "tests/test_newcomer.py"


# Some pages are a morning's work, with a dozen clusters.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_of_a_page_runs(path):
    page = read_page(path)
    if all(block.reason is not None for block in page.blocks):
        return
    failures = run_page(page, print)
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_is_not_run_is_checked(path):
    failures = {
        block.place: fault
        for block in read_page(path).blocks
        if block.reason is not None and (fault := check_unrun(block)) is not None
    }
    assert not failures


def test_few_blocks_are_not_run():
    blocks = [block for path in PAGES for block in read_page(path).blocks if not block.hidden]
    elsewhere = [block for block in blocks if block.reason is not None]
    for block in elsewhere:
        print(block.place, block.language, block.reason)
    needs = Counter(block.markers["needs"] for block in elsewhere if "needs" in block.markers)
    assert {what: count for what, count in needs.items() if count > LEFT_OUT[what]} == {}
    # What another test runs is run, too, but not as readers do it, except for what it types.
    unlike = [block for block in elsewhere if block.markers.get("run by") != TYPED]
    assert len(unlike) < len(blocks) / 4


@pytest.mark.gcloud
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not on this machine")
def test_gclouds_own_parser_reads_the_commands_that_are_not_run(tmp_path):
    commands = {
        # gcloud looks whether a project can have such a name.
        re.sub(r"\bPROJECT\b", "my-project", command): block.place
        for path in PAGES
        for block in read_page(path).blocks
        if block.language == "bash" and block.reason is not None
        for command in commands_of(block)
        if command.startswith("gcloud ")
    }
    assert len(commands) > 8
    listed = tmp_path / "commands.json"
    listed.write_text(json.dumps([{"command_string": command} for command in commands]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listed}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
    )
    read = json.loads(done.stdout)
    assert len(read) == len(commands), done.stderr
    # Answers are in the order of the questions; what they repeat has been changed a little.
    answers = zip(commands.values(), read, strict=True)
    refused = {place: one["error_message"] for place, one in answers if not one["success"]}
    assert refused == {}


# -- what the runner does --------------------------------------------------------------------------


def run_text(tmp_path, text):
    """Run a page of this text; return what is wrong with it."""
    path = tmp_path / "page.md"
    path.write_text(text)
    return run_page(read_page(path), print)


def test_a_page_is_one_session(tmp_path):
    text = """<!-- page: machines: paper -->
<!-- page: bash
export SHARED=42 PAGE_NAME=dashboard
touch /tmp/kept
-->

```bash
cd ..
dask gce list > listed 2>&1
test NAME = dashboard
```

```python
import asyncio
import os

number = int(os.environ["SHARED"])
await asyncio.sleep(0)
number
```

```text
42
```

```pycon
>>> number + 1
43
```

<!-- page: fails: NameError: name 'lost' is not defined -->
```python
lost
```

- In a list:

  <!-- page: output of: cat listed -->
  ```text
  No clusters in project local-project.
  ```

<!-- page: bash
test -e /tmp/kept
export SHARED=43
-->

<!-- page: new session -->
```python
import os

assert os.environ["SHARED"] == "43"
assert "number" not in globals()
```

<!-- page: answers: yes -->
```bash
read -r answer
test -t 0
test "$answer" = yes
```

```yaml
gce:
  n-workers: 3
```

<!-- page: keeps running: listening -->
```bash
trap 'echo stopped > stopped; exit 0' INT
echo listening
while true; do sleep 0.1; done
```
"""
    assert run_text(tmp_path, text) == []


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```bash\nfalse\ntrue\n```", "exit status 1"),
        ("```bash\ndask gce no-such-command\n```", "No such command"),
        ("```pycon\n>>> 1 + 1\n3\n```", "this is not there"),
        ("```python\nprint('a')\n```\n\n```text\nb\n```", "this is not there"),
        ("<!-- page: fails: no -->\n```python\npass\n```", "it should fail"),
        ("<!-- page: fails: another -->\n```python\n1 / 0\n```", "ZeroDivisionError"),
        ("<!-- page: answers: no -->\n```bash\nread -r x && test $x = y\n```", "exit status 1"),
        ("<!-- page: keeps running: x -->\n```bash\necho y\n```", "has not said"),
        ("<!-- page: value of: 1 + 1 -->\n```text\n3\n```", "this is not there"),
        ("```yaml\ngce:\n  no-such-setting: 1\n```", "no_such_setting"),
        ("```yaml\ngce:\n  n-workers: many\n```", "n_workers"),
        ("```python\nimport os\n\nos._exit(0)\n```", "the process has ended"),
    ],
)
def test_a_page_that_lies_is_found_out(tmp_path, block, said):
    (failure,) = run_text(tmp_path, f"<!-- page: machines: paper -->\n\n{block}\n")
    assert said in failure


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- page: skipped -->\n```python\n1\n```", "no marker is written 'skipped'"),
        ("<!-- page: fails -->\n```python\n1\n```", "no marker is written 'fails'"),
        ("<!-- page: plan -->\n```bash\n1\n```", "'plan' is not for a block of bash"),
        ("<!-- page: needs: time -->\n```bash\n1\n```", "what it needs is none of"),
        ("<!-- page: plan -->\n\nText.\n", "no block behind the marker"),
        ("<!-- page: yaml\na: 1\n-->\n", "only 'python' and 'bash' have lines"),
        ("Text <!-- page: plan -->\n", "a line of its own"),
        ("```python\n1\n", "a block without an end"),
        ("```json\n{}\n```", "needs a marker that says why"),
        ("```ruby\n1\n```", "nobody knows how to run 'ruby'"),
        ("```bash\n1\n```\n<!-- page: machines: paper -->\n```bash\n1\n```", "first block"),
        ("<!-- page: plan -->\n<!-- page: plan -->\n```python\n1\n```", "twice"),
    ],
)
def test_a_marker_that_is_none_is_refused(tmp_path, text, said):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(PageError, match=said):
        read_page(path)


@pytest.mark.parametrize(
    ("marker", "block", "said"),
    [
        ("excerpt of: setup.cfg", "text\nname = dask-gce\nname = another", "is not in setup.cfg"),
        ("excerpt of: no-such-file", "text\na", "there is no"),
        ("run by: tests/no_such_test.py", "bash\ntrue", "there is no"),
        ("run by: ci/docs.sh", "bash\nfalse --nobody-says-this", "does neither name"),
        ("needs: hours", "python\n1 +", "invalid syntax"),
        ("needs: hours", "bash\nif true", "syntax error"),
    ],
)
def test_what_is_wrong_is_found_where_it_is_not_run(tmp_path, marker, block, said):
    path = tmp_path / "page.md"
    path.write_text(f"<!-- page: {marker} -->\n```{block}\n```\n")
    (read,) = read_page(path).blocks
    assert said in (check_unrun(read) or "nothing is wrong")


def test_an_excerpt_and_a_test_elsewhere_are_accepted(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "<!-- page: excerpt of: setup.cfg -->\n"
        "```text\nname = dask-gce\n...\nlicense = BSD-3-Clause\n```\n"
        "<!-- page: run by: ci/docs.sh -->\n```bash\nset -euo pipefail # as ever\n```\n"
    )
    assert [check_unrun(block) for block in read_page(path).blocks] == [None, None]


@pytest.mark.parametrize(
    ("shown", "printed", "options", "missing"),
    [
        ("2026-11-22 03:20:54Z a-3f9a61c2 1", "2025-01-02 13:20:59Z a-00bc 1", {}, None),
        ("a-3f9a61c2 1", "a-00bc 2", {}, "a-<random> 1"),
        ("1 h 2 min, $1.20", "3 s, $5", {"other_numbers": True}, None),
        ("1 h 2 min, $1.20", "3 s, 5 EUR", {"other_numbers": True}, "<duration>, $<number>"),
        ("b\na", "a\nb", {}, "a"),
        ("b\na", "a\nb", {"any_order": True}, None),
        ("a\na", "a\nb", {"any_order": True}, "a"),
        ("long line that\nis broken", "a\nlong line that is broken\nb", {}, None),
        ("long ...", "a\nlong line\nb", {}, None),
        ("tls://10.0.0.1:8786", "tls://127.3.2.1:41231", {}, None),
    ],
)
def test_a_text_is_compared_but_for_what_varies(shown, printed, options, missing):
    assert find_difference(shown, printed, **options) == missing
