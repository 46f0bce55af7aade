"""Jobs in a process of their own."""

import pytest

from keras_pruner.litert.child_process import run_program

pytestmark = pytest.mark.backend_free

JOB = """
import json, sys
job = json.load(sys.stdin)
sys.stdout.buffer.write(b"printed by a library: \\x95\\n")
print(json.dumps({"result": job + "\\u5c64"}, ensure_ascii=False))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_whatever_the_streams_take_the_result_comes_back(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    assert run_program(tmp_path / "job.py", "layer ") == "layer 層"


def test_an_error_is_told_whatever_bytes_it_holds(tmp_path):
    code = 'import sys; sys.stderr.buffer.write(b"not \\x95 text"); sys.exit(1)'
    (tmp_path / "job.py").write_text(code, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"job failed .*: not \ufffd text"):
        run_program(tmp_path / "job.py", None)


def test_a_failure_keeps_the_beginning_of_a_long_error(tmp_path):
    code = (
        "from keras_pruner.litert.child_process import fail, read_job\n"
        "read_job()\n"
        "fail(ValueError('the reason' + 5000 * ' and more'))\n"
    )
    (tmp_path / "job.py").write_text(code, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"job failed .*: ValueError: the reason and more"):
        run_program(tmp_path / "job.py", None)
