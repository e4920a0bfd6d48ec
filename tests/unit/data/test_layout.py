import pytest

from ray_rl.config.data import Jsonl
from ray_rl.data.layout import layout_of
from ray_rl.data.rows import make_row
from ray_rl.errors import DataError

TURNS = [{"role": "user", "content": "What is 1+1?"}]
VERL = {
    "data_source": "gsm8k",
    "prompt": TURNS,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0, "question": "What is one and one?"},
}
TRL = {"prompt": "What is 1+1?", "solution": "2"}
OPENRLHF = {"input": "What is 1+1?", "label": "2"}
GSM8K = {"question": "What is 1+1?", "answer": "1+1=2 #### 2"}
MATH = {"problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "answer": "2", "level": 1}


def read(record, **settings):
    layout = layout_of(Jsonl(path="t.jsonl", **settings), record, where="t:1", first=record)
    return make_row(record, id="t:1", where="t:1", layout=layout), layout


@pytest.mark.parametrize(
    ("record", "name", "answer"),
    [
        (VERL, "verl", "2"),
        (TRL, "trl", "2"),
        ({"prompt": TURNS, "ground_truth": "2"}, "trl", "2"),
        ({"prompt": TURNS, "answer": "2"}, "plain", "2"),
        (OPENRLHF, "openrlhf", "2"),
        (GSM8K, "gsm8k", "1+1=2 #### 2"),
        (MATH, "math", "2"),
        ({"problem": "What is 1+1?", "solution": "\\boxed{2}"}, "math", "\\boxed{2}"),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_data_made_for_others_is_read_as_it_is_detected_or_by_name(record, name, answer, is_named):
    row, layout = read(record, **({"format": name} if is_named else {}))
    prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content
    assert (prompt, row.columns["answer"]) == ("What is 1+1?", answer)
    is_usual = is_named or ("prompt" in record and "answer" in record)
    assert (layout.detected is None) == is_usual


def test_what_was_detected_is_said_in_one_line_and_the_columns_keep_their_names():
    row, layout = read(VERL)
    assert layout.detected == (
        "the prompt is column 'prompt', the answer is column 'reward_model.ground_truth', as in data for verl"
    )
    # What a reward function made for verl takes.
    assert row.columns["reward_model"]["ground_truth"] == "2"
    assert (row.columns["data_source"], row.columns["extra_info"]["index"]) == ("gsm8k", 0)
    row, layout = read(TRL)
    assert row.columns == {"solution": "2", "answer": "2"}


def test_columns_that_the_user_names_come_first():
    row, layout = read(VERL, prompt_column="extra_info.question", columns={"answer": "extra_info.index"})
    assert (row.prompt, row.columns["answer"], layout.detected) == ("What is one and one?", 0, None)
    row, _ = read(MATH, columns={"answer": "level", "worked": "answer"})
    assert (row.columns["answer"], row.columns["worked"]) == (1, "2")


def test_a_nested_column_can_get_a_name_and_the_outer_one_stays():
    row, _ = read({"prompt": "hi", "meta": {"gold": {"value": 7}}}, columns={"answer": "meta.gold.value"})
    assert row.columns == {"meta": {"gold": {"value": 7}}, "answer": 7}


def test_two_answers_are_an_error_until_the_user_says_which():
    both = VERL | {"answer": "3"}
    with pytest.raises(DataError, match=r"the answer can be 'answer' or 'reward_model.ground_truth'; set data.format"):
        read(both)
    assert read(both, format="plain")[0].columns["answer"] == "3"
    assert read(both, format="verl")[0].columns["answer"] == "2"
    # Which of solution and ground_truth is meant is asked for by the reward that needs it.
    assert "answer" not in read({"prompt": "hi", "solution": "2", "ground_truth": "3"})[0].columns


def test_two_prompts_are_an_error():
    with pytest.raises(DataError, match=r"the prompt can be 'problem' or 'question'; set data.prompt_column"):
        read({"problem": "a", "question": "b", "answer": "c"})


def test_columns_that_only_look_like_another_format_are_left_alone():
    with pytest.raises(DataError, match="no column 'prompt'; the columns are input, instruction, output"):
        read({"instruction": "hi", "input": "", "output": "ho"})  # Alpaca: the input is not the prompt
    kto = {"prompt": TURNS, "completion": [], "label": True}
    assert "answer" not in read(kto)[0].columns


def test_a_row_that_lacks_the_nested_answer_is_named():
    _, layout = read(VERL)
    torn = VERL | {"reward_model": {"style": "rule"}}
    with pytest.raises(DataError, match=r"^t:9: no column 'reward_model.ground_truth'; the columns are .*style"):
        make_row(torn, id="t:9", where="t:9", layout=layout)
