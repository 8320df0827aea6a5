"""External scorers: what they may say, and how they may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from waiting import alive, wait_for

from soupkit.errors import TaskError
from soupkit.task.external import CommandScorer


@pytest.fixture
def script(tmp_path: Path):  # type: ignore[no-untyped-def]
    """script(code) → a scorer that runs it, with the checkpoint directory as sys.argv[1]."""

    def make(code: str, **options: object) -> CommandScorer:
        path = tmp_path / "my eval.py"
        path.write_text(f"import sys, os, json, time, subprocess\n{code}\n")
        return CommandScorer(f"'{sys.executable}' '{path}' {{checkpoint}}", **options)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("last", "metric", "value"),
    [
        ("0.75", "score", 0.75),
        ("-3", "score", -3.0),
        ("1e-3", "acc", 0.001),
        ('{"acc": 0.5, "loss": 2.0}', "acc", 0.5),
        ('{"acc": 0.5, "loss": 2.0}', "loss", 2.0),
        ('{"accuracy": 0.5, "model": "x", "ok": true}', None, 0.5),
    ],
)
def test_the_last_line_is_the_score(
    script, tmp_path: Path, last: str, metric: str | None, value: float
) -> None:  # type: ignore[no-untyped-def]
    score = script(f"print('epoch 1: 0.1'); print({last!r}); print(); print('  ')", metric=metric).score(
        tmp_path
    )
    assert (score.metric, score.value, score.standard_error, score.num_examples) == (
        metric or "score",
        value,
        None,
        None,
    )


def test_json_may_tell_more(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    line = '{"acc": 0.5, "standard_error": 0.01, "num_examples": 700}'
    score = script(f"print({line!r})", metric="acc").score(tmp_path)
    assert (score.value, score.standard_error, score.num_examples) == (0.5, 0.01, 700)


def test_the_directory_arrives_as_one_argument_and_no_shell_reads_it(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path / "a b; touch pwned $(touch pwned) *"
    directory.mkdir()
    scorer = script("print(int(os.path.isdir(sys.argv[1]) and len(sys.argv) == 2))")
    assert scorer.score(directory).value == 1
    assert not list(tmp_path.rglob("pwned"))


def test_the_placeholder_may_stand_within_a_word_and_twice(tmp_path: Path) -> None:
    code = "import sys; print(len(sys.argv[1]) - len(sys.argv[2]))"
    scorer = CommandScorer(f"'{sys.executable}' -c '{code}' --dir={{checkpoint}} {{checkpoint}}/x")
    assert scorer.score(tmp_path).value == len("--dir=") - len("/x")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('loading'); print('boom', file=sys.stderr); sys.exit(3)", ["exit code 3", "loading", "boom"]),
        ("raise RuntimeError('no such layer')", ["exit code 1", "no such layer"]),
        ("os.kill(os.getpid(), 9)", ["signal 9"]),
        ("print('accuracy: 0.9')", ["'accuracy: 0.9'", "expected a number"]),
        ("print('nan')", ["nan", "expected a number"]),
        ("print('NaN')", ["nan", "ranks nothing"]),
        ("print('Infinity')", ["inf", "ranks nothing"]),
        ("print(json.dumps({'a': 1, 'b': 2}))", ["no number 'score'", '"a": 1']),
        ("print(json.dumps({'score': 'high'}))", ["no number 'score'"]),
        ("print(json.dumps({'score': None, 'loss': 1}))", ["no number 'score'"]),
        ("print('true')", ["no number"]),
        ("print('[0.5]')", ["no number"]),
        ("print(); print('why', file=sys.stderr)", ["printed nothing", "why"]),
    ],
)
def test_failures_are_told_with_the_output(script, tmp_path: Path, code: str, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TaskError) as caught:
        script(code).score(tmp_path)
    for word in words:
        assert word in caught.value.message


def test_only_the_end_of_a_long_output_is_told(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TaskError) as caught:
        script("[print('line', i) for i in range(1000)]; sys.exit(1)").score(tmp_path)
    assert "line 999" in caught.value.message
    assert "line 900" not in caught.value.message


def test_a_time_limit_ends_the_program_and_its_children(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    note = tmp_path / "child"
    started = f"sleep 3600 & echo $! > {note}; echo still loading; wait"  # a shell: up in milliseconds
    scorer = CommandScorer(f"sh -c '{started}' {{checkpoint}}", timeout=2)
    with pytest.raises(TaskError, match=r"longer than 2 s") as caught:
        scorer.score(tmp_path)
    assert "still loading" in caught.value.message
    wait_for(lambda: not alive(int(note.read_text())))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": "python eval.py"}, "has no {checkpoint}"),
        ({"command": "python 'eval.py {checkpoint}"}, "cannot be split"),
        ({"command": ""}, "has no {checkpoint}"),
        ({"command": "x {checkpoint}", "timeout": 0.0}, "more than 0"),
    ],
)
def test_a_command_that_cannot_work_is_refused_at_once(options: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        CommandScorer(**options)  # type: ignore[arg-type]
    assert words in caught.value.message


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot start"):
        CommandScorer("no-such-program-here {checkpoint}").score(tmp_path)
