import pytest

from ray_rl.errors import ConfigError, RewardError
from ray_rl.metrics.metric import Mean
from ray_rl.rewards.functions.custom import check_users
from ray_rl.types import Message, Prompt


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A custom reward of a module's function `judge`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, **section):
        (tmp_path / "users_functions_of_others.py").write_text(text)
        return {"kind": "custom", "function": "users_functions_of_others:judge"} | section

    return write


def conversation(**columns):
    messages = (Message("system", "Be short."), Message("user", "What is 17+25?"))
    return Prompt("train.jsonl:7", (1, 2, 3), "What is 17+25?", columns, messages, is_conversation=True)


def rewards_of(group):
    return [rollout.reward for rollout in group.rollouts]


TRL = """
def judge(prompts, completions, answer, **kwargs):
    assert prompts == ["What is 17+25?"] * 2, prompts
    assert kwargs["completion_ids"] == [[0, 0, 0], [0, 0, 0]], kwargs["completion_ids"]
    assert kwargs["trainer_state"].global_step == 0
    kwargs["log_extra"]("given", completions)
    kwargs["log_metric"]("right_fraction", 0.5)
    return [1.0 if str(a) in c else None for c, a in zip(completions, answer)]
"""


def test_a_function_of_trl_works_as_it_is(rewards, prompt, says, module):
    group, metrics = rewards(module(TRL)).score(prompt(answer=42), [says("it is 42"), says("41")])
    assert rewards_of(group) == [1.0, None]
    assert metrics == [Mean("reward/judge_right_fraction", 0.5, 1)]


def test_an_async_function_of_trl_works_as_it_is(rewards, prompt, says, module):
    section = module(
        "import asyncio\nasync"
        + TRL.strip().replace("    return", "    await asyncio.sleep(0)\n    return", 1).join([" ", ""])
    )
    group, _ = rewards(section).score(prompt(answer=42), [says("it is 42"), says("41")])
    assert rewards_of(group) == [1.0, None]


@pytest.mark.parametrize("section", [{}, {"signature": "trl"}])
def test_a_function_of_trl_gets_messages_where_the_row_holds_messages(rewards, says, module, section):
    parameters = "completions, **kwargs" if section else "prompts, completions, **kwargs"
    text = f"""
def judge({parameters}):
    prompts = kwargs["prompts"] if "prompts" in kwargs else locals()["prompts"]
    assert prompts[0] == [{{"role": "system", "content": "Be short."}}, {{"role": "user", "content": "What is 17+25?"}}]
    assert completions[0][0]["role"] == "assistant"
    return [float(len(completion[0]["content"])) for completion in completions]
"""
    group, _ = rewards(module(text, **section)).score(conversation(), [says("42"), says("forty")])
    assert rewards_of(group) == [2.0, 5.0]


def test_our_own_signature_gets_text_whatever_the_row_holds(rewards, says, module):
    text = """
def judge(completions, prompts):
    assert prompts == ["What is 17+25?"]
    return [len(completion) for completion in completions]
"""
    group, _ = rewards(module(text)).score(conversation(), [says("42")])
    assert rewards_of(group) == [2.0]


def test_a_function_without_double_stars_gets_only_what_it_names(rewards, prompt, says, module):
    text = "def judge(completions, answer, factor=1):\n    return [factor * a for a in answer]\n"
    group, _ = rewards(module(text, options={"factor": 3})).score(prompt(answer=2, other="x"), [says("a")])
    assert rewards_of(group) == [6.0]


VERL = """
def judge(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    assert data_source == "openai/gsm8k", data_source
    assert extra_info == {"index": 7}, extra_info
    assert not kwargs, kwargs
    right = float(ground_truth in solution_str)
    return {"score": right, "acc": right == 1.0}
"""
ROW = {
    "data_source": "openai/gsm8k",
    "reward_model": {"ground_truth": "42", "style": "rule"},
    "extra_info": {"index": 7},
    "ability": "math",
}


@pytest.mark.parametrize(
    "text",
    [VERL, "async" + VERL.replace("\ndef", " def", 1), VERL.replace('{"score": right, "acc": right == 1.0}', "right")],
)
def test_a_function_of_verl_works_as_it_is(rewards, prompt, says, module, text):
    group, _ = rewards(module(text)).score(prompt(**ROW), [says("it is 42"), says("41")])
    assert rewards_of(group) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["ground_truth", "answer", "solution", "label"])
def test_the_ground_truth_of_verl_is_found_under_other_names_too(rewards, prompt, says, module, name):
    text = """
def judge(data_source, solution_str, ground_truth, extra_info):
    return float(solution_str == ground_truth and extra_info == {})
"""
    group, _ = rewards(module(text)).score(prompt(**{name: "42"}), [says("42"), says("41")])
    assert rewards_of(group) == [1.0, 0.0]


def test_options_reach_a_function_of_verl(rewards, prompt, says, module):
    text = "def judge(data_source, solution_str, ground_truth, extra_info, factor):\n    return factor\n"
    group, _ = rewards(module(text, options={"factor": 4})).score(prompt(**ROW), [says("a")])
    assert rewards_of(group) == [4.0]


@pytest.mark.parametrize(
    "text",
    [
        "def judge(**kwargs):\n    return [1.0 for _ in kwargs['completions']]\n",
        "def judge(*, completions, answer):\n    return [1.0 for _ in completions]\n",
        "def judge(*arguments, **kwargs):\n    return [1.0 for _ in arguments[0]]\n",
        "import functools\njudge = functools.partial(lambda factor, completions, **columns: [factor], factor=1.0)\n",
        "import functools\njudge = functools.partial(lambda factor, completions, **columns: [factor], 1.0)\n",
        "class Judge:\n    def __call__(self, completions, **columns):\n        return [1.0]\njudge = Judge()\n",
    ],
)
def test_the_completions_are_passed_by_name_where_there_is_no_place_for_them(rewards, prompt, says, module, text):
    group, _ = rewards(module(text)).score(prompt(answer=42), [says("a")])
    assert rewards_of(group) == [1.0]


@pytest.mark.parametrize("parameters", ["", "*, answer"])
def test_a_function_that_takes_no_completions_is_refused_before_the_start(module, parameters):
    section = module(f"def judge({parameters}):\n    return [1.0]\n")
    with pytest.raises(ConfigError, match="users_functions_of_others:judge takes no completions"):
        check_users(section["function"], signature=None, columns=["answer"], options=[])


@pytest.mark.parametrize(
    "harm",
    [
        "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
        "import sys; sys.stdout.closed or print('x'); sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.stdout = None",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL)",
        "import threading, time; threading.Thread(target=time.sleep, args=[60]).start()",
        "import os; os.environ.clear()",
    ],
)
def test_what_a_function_does_to_its_process_does_not_lose_its_scores(rewards, prompt, says, module, harm):
    built = rewards(module(f"def judge(completions, **columns):\n    {harm}\n    return [1.0]\n", timeout_s=20))
    for _ in range(2):
        group, _ = built.score(prompt(answer=42), [says("a")])
        assert rewards_of(group) == [1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def judge(data_source, solution_str, ground_truth):\n    return {'acc': 1}\n", "a mapping without 'score'"),
        ("def judge(data_source, solution_str, ground_truth):\n    return 'good'\n", "judge returned 'good'"),
        ("def judge(completions, **columns):\n    return {'a': 1}\n", "returned {'a': 1}, not a list"),
        ("def judge(completions, **columns):\n    return 'x' * 50_000_000\n", r"returned 'xxx.*x\.\.\., not a list"),
        ("def judge(completions, **columns):\n    return ['x' * 50_000_000]\n", r"judge returned 'xxx"),
        (
            "def judge(completions, **columns):\n    import itertools\n    return itertools.repeat(1.0)\n",
            "returned 2 values for 1",
        ),
        ("def judge(completions, **columns):\n    return b'1'\n", r"returned b'1', not a list"),
        ("def judge(completions, **columns):\n    return {1.0}\n", r"returned \{1.0\}, not a list"),
        (
            "def judge(completions, solution):\n    return [1.0]\n",
            "judge: the parameter solution is neither a column nor .*; add it to the options or the columns: "
            "data.columns renames columns of files and of the hub; data.function names its own",
        ),
        ("\n\ndef judge(completions, **columns):\n    return 1 / 0\n", r"users_functions_of_others\.py:4 in judge"),
        (
            "import sys\ndef judge(completions, **columns):\n    sys.exit(0)\n",
            r"SystemExit: 0 at .*others\.py:3 in judge",
        ),
    ],
)
def test_what_a_function_does_wrong_is_said_in_a_short_message(rewards, prompt, says, module, text, message):
    with pytest.raises(RewardError, match=message) as raised:
        rewards(module(text)).score(prompt(answer="1"), [says("a")])
    assert len(str(raised.value)) < 5_000


def test_a_process_that_is_killed_during_a_call_is_asked_once_more(rewards, prompt, says, module, tmp_path):
    text = f"""
import os, pathlib, signal
mark = pathlib.Path({str(tmp_path / "mark")!r})
def judge(completions, **columns):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(completions)
"""
    group, _ = rewards(module(text)).score(prompt(), [says("a"), says("b")])
    assert rewards_of(group) == [1.0, 1.0]


def test_several_processes_score_at_the_same_time_if_they_are_asked_for(rewards, prompt, says, module):
    from concurrent.futures import ThreadPoolExecutor

    parts = rewards(
        module(
            "import os, time\ndef judge(completions, **c):\n    time.sleep(0.5)\n    return [os.getpid()]\n", workers=2
        )
    )
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: parts.score(prompt(), [says("a")]), range(2)))
        groups = list(threads.map(lambda _: parts.score(prompt(), [says("a")])[0], range(4)))
    assert len({rewards_of(group)[0] for group in groups}) == 2
