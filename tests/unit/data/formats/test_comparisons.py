from math import nan

import pytest

from ray_rl.data.formats.choose import FORMATS
from ray_rl.data.formats.ranking import best_and_lower
from ray_rl.data.formats.record import Comparison, Dropped
from ray_rl.errors import DataError
from ray_rl.types import Message
from tests.unit.data.formats.converting import assistant, convert, reasons, source_records, turn, user

QUESTION, TWO, THREE = turn("user", "1+1?"), turn("assistant", "2"), turn("assistant", "3")
AS_MESSAGES = Comparison((user("1+1?"),), (assistant("2"),), (assistant("3"),))
DIFFERENT = "the two dialogues differ before their last answers"
TIE = "no answer is better than another"


def test_text_stays_text_and_its_margin_is_kept():
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    margins = [{"margin": value} for value in (0.5, None, nan)]
    assert convert("preference", row, *(row | margin for margin in margins)) == [
        Comparison("1+1?", "2", "3"),
        Comparison("1+1?", "2", "3", 0.5),
        Comparison("1+1?", "2", "3"),
        Comparison("1+1?", "2", "3"),
    ]


def test_answers_that_begin_with_the_same_words_are_not_cut():
    row = {"prompt": "It", "chosen": "It is 2.", "rejected": "It is 3."}
    assert convert("preference", row) == [Comparison("It", "It is 2.", "It is 3.")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [QUESTION], "chosen": [TWO], "rejected": [THREE]},
        {"chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]},
        {"prompt": "1+1?", "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]},
        {"prompt": " 1+1?\n", "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]},
        {"prompt": [QUESTION], "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]},
        {"prompt": "1+1?", "chosen": [TWO], "rejected": [THREE]},
        {"prompt": [QUESTION], "chosen": "2", "rejected": "3"},
        {"prompt": None, "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]},
        {
            "conversations": [{"from": "human", "value": "1+1?"}],
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        },
    ],
    ids=str,
)
def test_the_prompt_is_found_apart_or_inside_and_is_never_doubled(row):
    assert convert("preference", row) == [AS_MESSAGES]


def test_a_system_message_is_part_of_the_prompt():
    system = turn("system", "Be brief.")
    prompt = (Message("system", "Be brief."), user("1+1?"))
    expected = [Comparison(prompt, (assistant("2"),), (assistant("3"),))]
    assert convert("preference", {"chosen": [system, QUESTION, TWO], "rejected": [system, QUESTION, THREE]}) == expected
    columns = {"system": "Be brief.", "prompt": "1+1?", "chosen": "2", "rejected": "3"}
    assert convert("preference", columns) == expected


def test_dialogues_with_different_turns_before_their_last_are_dropped():
    other = turn("user", "1+2?")
    assert (
        reasons(
            "preference",
            {"chosen": [QUESTION, TWO], "rejected": [other, THREE]},
            {"chosen": [QUESTION, TWO, other, THREE], "rejected": [QUESTION, THREE]},
            {"prompt": "1+1?", "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE, other, THREE]},
        )
        == [DIFFERENT] * 3
    )


def test_a_dialogue_that_does_not_hold_its_prompt_is_dropped():
    for prompt in ("2+2?", [turn("user", "2+2?")]):
        row = {"prompt": prompt, "chosen": [QUESTION, TWO], "rejected": [QUESTION, THREE]}
        assert reasons("preference", row) == ["a dialogue that does not hold the prompt in the column of the prompt"]


def test_pairs_that_say_nothing_are_dropped_with_their_reasons():
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    assert reasons(
        "preference",
        row | {"rejected": "2"},
        row | {"chosen": " \n"},
        row | {"rejected": ""},
        row | {"prompt": " "},
        row | {"score_chosen": 6.0, "score_rejected": 6.0},
        row | {"score_chosen": 3.0, "score_rejected": 6.0},
        row | {"tools": [{"name": "calculator"}]},
        {"chosen": [QUESTION, TWO, QUESTION], "rejected": [QUESTION, TWO, QUESTION]},
        {"prompt": [QUESTION], "chosen": [TWO], "rejected": [QUESTION]},
        {"chosen": [TWO], "rejected": [THREE]},
    ) == [
        "chosen and rejected are the same",
        "an empty answer",
        "an empty answer",
        "an empty prompt",
        TIE,
        "the rejected answer has the higher score",
        "tools or calls of tools, which are not supported",
        "no answer of the assistant at the end",
        "no answer of the assistant at the end",
        "no message of the user before the answer",
    ]


def test_text_pairs_without_a_prompt_are_an_error():
    with pytest.raises(DataError, match=r"t.jsonl:1: chosen and rejected are text, .*no column .* prompt"):
        convert("preference", {"chosen": "2", "rejected": "3"})


def test_scores_and_margins_that_are_no_numbers_are_errors():
    row = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    for wrong in ({"margin": "0.5"}, {"margin": True}, {"score_chosen": "8.5", "score_rejected": 3.0}):
        ((name, value), *_) = wrong.items()
        with pytest.raises(DataError, match=rf"t.jsonl:1: {name} is {value!r}; write a number"):
            convert("preference", row | wrong)


def test_openais_pairs_have_their_prompt_in_the_input():
    row = {
        "input": {"messages": [QUESTION], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [TWO],
        "non_preferred_output": [THREE],
    }
    assert convert("openai_preference", row) == [AS_MESSAGES]
    with_tools = row | {"input": {"messages": [QUESTION], "tools": [{"type": "function"}]}}
    assert reasons("openai_preference", with_tools) == ["tools or calls of tools, which are not supported"]
    with pytest.raises(DataError, match=r"t.jsonl:1: input is \[.*\]; write an object"):
        convert("openai_preference", row | {"input": [QUESTION]})


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[index % 2]}: {text}" for index, text in enumerate(turns))


def test_a_dialogue_is_cut_before_its_last_answer_and_not_inside_it():
    row = {"chosen": dialogue("Hi", "Hello!", "Largest?", "I think it is Jupiter.")}
    row["rejected"] = dialogue("Hi", "Hello!", "Largest?", "I think it is Mars.")
    prompt = (user("Hi"), assistant("Hello!"), user("Largest?"))
    expected = Comparison(prompt, (assistant("I think it is Jupiter."),), (assistant("I think it is Mars."),))
    assert convert("hh_rlhf", row) == [expected]


def test_dialogues_that_differ_earlier_that_end_with_the_human_or_with_nothing_are_dropped():
    hi = dialogue("Hi", "Hello!")
    assert reasons(
        "hh_rlhf",
        {"chosen": dialogue("Hi", "Hello!", "Joke?", "No."), "rejected": dialogue("Hi", "Ho!", "Joke?", "Never.")},
        {"chosen": hi, "rejected": dialogue("Hi", "Hello!", "Joke?")},
        {"chosen": hi, "rejected": dialogue("Hi", "")},
        {"chosen": hi, "rejected": hi},
    ) == [DIFFERENT, "no answer of the assistant at the end", "an empty answer", "chosen and rejected are the same"]


def test_two_turns_of_one_role_in_a_row_are_joined_also_before_the_answer():
    start = "\n\nHuman: Hi\n\nHuman: Hello?\n\nAssistant: Wait."
    row = {"chosen": f"{start}\n\nAssistant: Yes.", "rejected": f"{start}\n\nAssistant: No."}
    expected = Comparison((user("Hi\n\nHello?"),), (assistant("Wait.\n\nYes."),), (assistant("Wait.\n\nNo."),))
    assert convert("hh_rlhf", row) == [expected]
    assert reasons("hh_rlhf", row | {"rejected": f"{start}\n\nAssistant:"}) == ["an empty answer"]


def test_text_without_markers_is_an_error_in_a_file_of_dialogues():
    with pytest.raises(DataError, match=r"t.jsonl:1: rejected is 'No.'; write a dialogue with a marker"):
        convert("hh_rlhf", {"chosen": dialogue("Hi", "Hello!"), "rejected": "No."})
    with pytest.raises(DataError, match=r"t.jsonl:1: chosen is 'Before"):
        convert("hh_rlhf", {"chosen": "Before" + dialogue("Hi", "Hello!"), "rejected": dialogue("Hi", "Ho!")})


def rated(text: str, *ratings: object, overall: float = 1.0) -> dict[str, object]:
    annotations = {f"aspect {number}": {"Rating": rating} for number, rating in enumerate(ratings)}
    return {"response": text, "annotations": annotations, "overall_score": overall}


def test_ultrafeedbacks_ratings_decide_and_not_its_overall_score():
    answers = [rated("bad", "1", "1", overall=10.0), rated("good", "5", "4"), rated("unrated", "N/A", None)]
    row = {"instruction": "1+1?", "completions": answers}
    assert convert("ultrafeedback", row) == [Comparison("1+1?", "good", "bad")]
    # 4 and 5 without "N/A" is better than 5 and 3.
    answers = [rated("worse", "5", "3"), rated("better", "4", "5", "N/A"), rated(" ", "5", "5")]
    assert convert("ultrafeedback", row | {"completions": answers}) == [Comparison("1+1?", "better", "worse")]


def test_ultrafeedbacks_rows_without_a_difference_are_dropped_and_wrong_ratings_are_errors():
    row = {"instruction": "1+1?", "completions": [rated("a", "4", "2"), rated("b", "3"), rated("c", "N/A")]}
    assert reasons("ultrafeedback", row, row | {"completions": row["completions"][1:]}) == [
        TIE,
        "fewer than two answers to a prompt",
    ]
    with pytest.raises(DataError, match=r"t.jsonl:1: completions\[0\].annotations.aspect 0.Rating is 'high'; write a"):
        convert("ultrafeedback", row | {"completions": [rated("a", "high")]})
    with pytest.raises(DataError, match=r"t.jsonl:1: completions\[0\] is None; write an object"):
        convert("ultrafeedback", row | {"completions": [None]})


def test_the_lower_answer_is_drawn_by_the_prompt():
    answers = [(1.0, "best"), (0.0, "a"), (0.5, "b"), (0.0, "c"), (1.0, "equally good")]
    drawn = {prompt: best_and_lower(answers, prompt=prompt) for prompt in map(str, range(60))}
    assert {chosen for chosen, _ in drawn.values()} == {"best"}
    counts = [sum(lower == text for _, lower in drawn.values()) for text in "abc"]
    assert min(counts) >= 12
    assert all(best_and_lower(answers, prompt=prompt) == pair for prompt, pair in drawn.items())


def helpful(prompt: str, response: str, helpfulness: object) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness}


def test_consecutive_rows_of_one_prompt_make_a_pair():
    rows = [helpful("a", "no", 1), helpful("a", "yes", 4), helpful("b", "same", 3), helpful("b", "equal", 3)]
    rows += [helpful("c", "alone", 4), helpful("a", "late", 0)]
    assert convert("helpsteer2", *rows) == [
        Comparison("a", "yes", "no"),
        Dropped(TIE),
        Dropped("fewer than two answers to a prompt"),
        Dropped("fewer than two answers to a prompt"),
    ]


def test_rows_without_the_column_that_joins_are_not_joined():
    assert len(list(FORMATS["helpsteer2"].units(source_records({}, {"prompt": None}, [])))) == 3


def test_a_score_that_is_text_is_an_error_with_the_row_that_has_it():
    with pytest.raises(DataError, match=r"t.jsonl:2: helpfulness is '4'; write a number without quotes"):
        convert("helpsteer2", helpful("a", "no", 1), helpful("a", "yes", "4"))


def test_a_negative_strength_prefers_the_first_answer():
    row = {"prompt": "1+1?", "response_1": "2", "response_2": "3", "preference_strength": -1}
    assert convert("helpsteer2_preference", row, row | {"preference_strength": 3}) == [
        Comparison("1+1?", "2", "3"),
        Comparison("1+1?", "3", "2"),
    ]
    assert reasons("helpsteer2_preference", row | {"preference_strength": 0}) == [TIE]


def test_helpsteers_markers_make_a_conversation():
    prompt = "c#\n<extra_id_1>Assistant\nA language.\n<extra_id_1>User\nMore"
    row = {"prompt": prompt, "response_1": "No", "response_2": "It is typed.", "preference_strength": 2}
    assert convert("helpsteer2_preference", row) == [
        Comparison(
            (user("c#"), assistant("A language."), user("More")), (assistant("It is typed."),), (assistant("No"),)
        )
    ]


def test_nectars_best_answer_is_the_one_with_rank_1_and_empty_answers_do_not_count():
    answers = [{"answer": text, "rank": rank} for text, rank in (("worse", 2.0), ("best", 1.0), ("", 3.0))]
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: River? \n\nAssistant: ", "answers": answers}
    prompt = (user("Hi"), assistant("Hello!"), user("River?"))
    assert convert("nectar", row) == [Comparison(prompt, (assistant("best"),), (assistant("worse"),))]
    assert reasons("nectar", row | {"answers": answers[1:]}) == ["fewer than two answers to a prompt"]


def node(name: str, parent: str | None, text: str, *, tree: str = "t", rank: int | None = None, **more: object):
    role = "assistant" if name.startswith("a") else "prompter"
    columns = {"message_id": name, "parent_id": parent, "message_tree_id": tree, "text": text, "role": role}
    return columns | {"rank": rank, "deleted": False, "review_result": True} | more


def test_a_tree_gives_a_pair_for_each_message_with_ranked_answers():
    rows = [
        node("p1", None, "River?"),
        node("a1", "p1", "Bananas.", rank=1),
        node("a2", "p1", "The Ebro.", rank=0),
        node("a3", "p1", "Deleted", rank=2, deleted=True),
        node("a4", "p1", "Refused", rank=2, review_result=False),
        node("p2", "a2", "In France?"),
        node("a5", "p2", "The Loire.", rank=0),
        node("a6", "p2", "Paris", rank=1),
        node("p3", None, "Alone?", tree="u"),
        node("a7", "p3", "Yes", tree="u", rank=0),
    ]
    path = (user("River?"), assistant("The Ebro."), user("In France?"))
    assert convert("openassistant", *rows) == [
        Comparison((user("River?"),), (assistant("The Ebro."),), (assistant("Bananas."),)),
        Comparison(path, (assistant("The Loire."),), (assistant("Paris"),)),
        Dropped("a tree without two ranked answers to one message"),
    ]


def test_a_tree_whose_rows_are_apart_or_circular_is_an_error():
    with pytest.raises(DataError, match=r"t.jsonl:1: parent_id is 'p1', which is not among .* sort the rows"):
        convert("openassistant", node("a1", "p1", "Ebro", rank=0))
    rows = [node("p1", "a1", "?"), node("a1", "p1", "x", rank=0), node("a2", "p1", "y", rank=1)]
    with pytest.raises(DataError, match=r"t.jsonl:1: parent_id: the messages of this tree form a circle"):
        convert("openassistant", *rows)
