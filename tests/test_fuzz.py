"""Every reader of foreign bytes against bytes that are nearly right; tests/fuzz has harness and command."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import run
from fuzz.mutate import mutations
from fuzz.targets import names, targets

FUZZ = Path(__file__).parent / "fuzz"
SECONDS, MEGABYTES = 5, 1024
COUNT = 150  # mutations of each target's seeds; with --exhaustive a hundred times as many
SLOW = {"run": 20}  # these build a model each time


@pytest.mark.parametrize("name", names())
def test_a_reader_takes_any_bytes_or_refuses_them(name: str, exhaustive: bool) -> None:
    target = targets()[name]
    found = [path.read_bytes() for path in sorted((FUZZ / "corpus").glob(f"{name}-[0-9a-f]*"))]
    seeds, count = [*target.seeds, *found], SLOW.get(name, COUNT) * (100 if exhaustive else 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = 0
    for data in [*seeds, *mutations(seeds, count)]:
        began = time.process_time()
        try:
            target.run(data)
            taken += 1
        except target.allowed:
            pass
        assert time.process_time() - began < SECONDS, data[:200]
    assert taken >= 1, "not even what we write ourselves"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.parametrize(("found", "code"), [({}, 0), ({"slow": 1}, 1)])
def test_a_finding_fails_the_run_and_is_printed(
    found: dict[str, int],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fuzzed(command: list[str], **_: object) -> "subprocess.CompletedProcess[bytes]":
        name = command[2]
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"executions": 9, "findings": found if name == "csv" else {}})
        )
        (tmp_path / f"finding-{name}-0123abcd").write_bytes(b"evil")
        return subprocess.CompletedProcess(command, 0, stderr=b"")

    monkeypatch.setattr(subprocess, "run", fuzzed)
    monkeypatch.setattr(sys, "argv", ["run.py", "recipe,csv", "--jobs", "2", "--corpus", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == code and "finding-csv-0123abcd b'evil'" in capsys.readouterr().out


@pytest.mark.parametrize("name", names())
def test_a_coverage_guided_fuzzer_finds_nothing(name: str, tmp_path: Path, exhaustive: bool) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    if not exhaustive:
        pytest.skip("10 seconds of each reader are for --exhaustive")
    command = [sys.executable, str(FUZZ / "run.py"), name, "--seconds", "10", "--corpus", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    done = json.loads((tmp_path / f"{name}.json").read_text())
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert done["executions"] > 0 and not done["findings"]
