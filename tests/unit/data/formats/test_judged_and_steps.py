import pytest

from ray_rl.data.formats.record import Judged, Steps
from ray_rl.errors import DataError
from tests.unit.data.formats.converting import assistant, convert, reasons, turn, user

KI = "\u043a\u0438"


def test_labels_of_completions_are_booleans():
    row = {"prompt": "1+1?", "completion": "2", "label": True}
    conversation = {"prompt": [turn("user", "1+1?")], "completion": [turn("assistant", "3")], "label": False}
    assert convert("kto", row, conversation) == [
        Judged("1+1?", "2", True),
        Judged((user("1+1?"),), (assistant("3"),), False),
    ]


@pytest.mark.parametrize("label", [1, 0, "true", "False", 1.0, None, [True]])
def test_any_other_label_is_an_error_that_says_what_to_write(label):
    with pytest.raises(DataError, match=r"t.jsonl:1: label is .*; write true \(desirable\) or false without quotes"):
        convert("kto", {"prompt": "1+1?", "completion": "2", "label": label})


def test_steps_are_an_answer_so_that_no_other_answer_can_precede_them():
    turns = [{"role": "user", "content": "9.8 or 9.11?"}, {"role": "assistant", "content": "9.11"}]
    row = {"completions": ["0.8 > 0.11."], "labels": [True]}
    assert reasons("stepwise", row | {"prompt": turns}) == ["roles out of order"]
    (steps,) = convert("stepwise", row | {"prompt": [*turns, {"role": "user", "content": "Sure?"}]})
    assert [message.content for message in steps.prompt] == ["9.8 or 9.11?", "9.11", "Sure?"]


def test_the_steps_of_trl_keep_their_labels():
    row = {"prompt": "9.8 or 9.11?", "completions": ["0.8 > 0.11.", " So 9.8.\n"], "labels": [True, 0.25]}
    assert convert("stepwise", row) == [Steps("9.8 or 9.11?", ("0.8 > 0.11.", "So 9.8."), (1.0, 0.25))]
    assert reasons("stepwise", row | {"completions": [], "labels": []}, row | {"completions": ["a", " "]}) == [
        "no steps",
        "an empty step",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": [True]}, "2 completions and 1 labels; write one label per step"),
        ({"labels": [True, "+"]}, r"labels\[1\] is '\+'; write true, false, or a number from 0 to 1"),
        ({"labels": [True, -1]}, r"labels\[1\] is -1; write"),
        ({"labels": [True, 1.5]}, r"labels\[1\] is 1.5; write"),
        ({"labels": True}, "labels is True; write a list"),
        ({"completions": ["a", None]}, r"completions\[1\] is None; write text"),
    ],
)
def test_wrong_steps_are_errors(wrong, message):
    row = {"prompt": "1+1?", "completions": ["a", "b"], "labels": [True, False]}
    with pytest.raises(DataError, match=f"t.jsonl:1: {message}"):
        convert("stepwise", row | wrong)


def test_labels_stand_where_the_placeholders_are_and_not_where_signs_are():
    question = "Compute $1+2-3$."
    row = {
        "input": f"{question} Step 1: $1+2=3$. {KI}\nStep 2: $3-3=1$. The answer is: 1 {KI}",
        "label": f"{question} Step 1: $1+2=3$. +\nStep 2: $3-3=1$. The answer is: 1 -",
        "task": "MATH",
    }
    steps = ("Step 1: $1+2=3$.", "Step 2: $3-3=1$. The answer is: 1")
    assert convert("math_shepherd", row) == [Steps(question, steps, (1.0, 0.0))]


def test_the_question_ends_at_the_last_beginning_of_a_first_step():
    text = "Which follows 'Step 1: add'? Step 1: Step 2 follows. "
    assert convert("math_shepherd", {"input": f"{text}{KI}", "label": f"{text}+"}) == [
        Steps("Which follows 'Step 1: add'?", ("Step 1: Step 2 follows.",), (1.0,))
    ]


def test_solutions_whose_steps_cannot_be_told_are_dropped():
    assert reasons(
        "math_shepherd",
        {"input": f"1+1? It is 2. {KI}", "label": "1+1? It is 2. +"},
        {"input": f"1+1? Step 1: 2. {KI}\nStep 2: so", "label": "1+1? Step 1: 2. +\nStep 2: so"},
        {"input": f"Step 1: 2. {KI}", "label": "Step 1: 2. +"},
        {"input": "1+1? Step 1: 2.", "label": "1+1? Step 1: 2."},
    ) == [
        "no 'Step 1:' where the question ends",
        "a last step without a label",
        "an empty prompt",
        "a last step without a label",
    ]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("1+1? Step 1: 3. +", "label differs from input in step 1: '1.1. Step 1: 3. ' instead of '1.1. Step 1: 2. '"),
        ("1+1? Step 1: 2. ?", "label has '.' at the end of step 1; write . or - in place of"),
        ("1+1? Step 1: 2. + And more", "label differs from input in step 2: ' And more' instead of ''"),
        ("1+1? Step 1: 2. ", "label has '' at the end of step 1"),
    ],
)
def test_labels_of_another_text_are_errors(label, message):
    with pytest.raises(DataError, match=f"t.jsonl:1: {message}"):
        convert("math_shepherd", {"input": f"1+1? Step 1: 2. {KI}", "label": label})


def step(*completions: tuple[str, int | None], chosen: int | None = None, human: str | None = None):
    texts = [{"text": text, "rating": rating, "flagged": False} for text, rating in completions]
    written = None if human is None else {"text": human, "rating": None}
    return {"completions": texts, "human_completion": written, "chosen_completion": chosen}


def solution(*steps: object, finish: str = "solution", **more: object):
    label = {"steps": list(steps), "finish_reason": finish}
    return {"question": {"problem": "2+3*4?"}, "label": label, **more}


def test_alternatives_to_a_step_are_solutions_that_end_there():
    row = solution(
        step(("3*4=12.", 1), ("2+3=5.", -1), ("Hm.", None), chosen=0),
        step(("So 20.", -1), ("2+12=14.\n\n# Answer\n\n14", 0), chosen=1),
    )
    assert convert("prm800k", row) == [
        Steps("2+3*4?", ("3*4=12.", "2+12=14.\n\n# Answer\n\n14"), (1.0, 1.0)),
        Steps("2+3*4?", ("2+3=5.",), (0.0,)),
        Steps("2+3*4?", ("3*4=12.", "So 20."), (None, 0.0)),
    ]


def test_a_solution_continues_after_a_step_that_a_person_wrote_and_ends_where_nothing_was_chosen():
    row = solution(step(("So 24.", -1), human="3*4=12."), step(("2+12=14.", 1), chosen=0), step(("Wrong.", -1)))
    assert convert("prm800k", row) == [
        Steps("2+3*4?", ("3*4=12.", "2+12=14."), (None, 1.0)),
        Steps("2+3*4?", ("So 24.",), (0.0,)),
        Steps("2+3*4?", ("3*4=12.", "2+12=14.", "Wrong."), (None, None, 0.0)),
    ]


def test_rows_that_checked_the_labelers_bad_problems_and_flagged_steps_are_not_used():
    right = step(("14.", 1), chosen=0)
    flagged = {"text": "14.", "rating": 1, "flagged": True}
    assert reasons(
        "prm800k",
        solution(right, is_quality_control_question=True),
        solution(right, is_initial_screening_question=True),
        solution(right, finish="bad_problem"),
        solution({"completions": [flagged], "human_completion": None, "chosen_completion": None}),
    ) == [
        *["questions of quality control or screening"] * 2,
        "a problem that the labeler found bad",
        "no step with a rating",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (step(("14.", 2)), r"label.steps\[0\].completions\[0\].rating is 2; write -1, 0, 1 or null"),
        (step(("14.", 1), chosen=3), r"label.steps\[0\].chosen_completion is 3; write null, or the index of one of"),
        ({"completions": None}, r"label.steps\[0\].completions is None; write a list of objects"),
        ({}, r"no label.steps\[0\].completions; there are no columns; correct the row"),
    ],
)
def test_wrong_ratings_are_errors(wrong, message):
    with pytest.raises(DataError, match=f"t.jsonl:1: {message}"):
        convert("prm800k", solution(wrong))
