import threading
import time

import pytest

from ray_rl.app.data_checks import check_data
from ray_rl.data.ahead import Lookahead, as_one, check_rows
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.source import build_source
from ray_rl.errors import DataError

FOREVER = float("inf")


def wrong(*indices):
    def check(index):
        if index in indices:
            raise DataError(f"t:{index}: wrong")

    return check


def test_the_first_wrong_row_of_the_source_is_told_in_full_and_the_others_by_place():
    with pytest.raises(DataError) as caught:
        check_rows(wrong(2, 5, 7), [7, 3, 2, 5], until=FOREVER, say=print, what="checked")
    assert str(caught.value) == "t:2: wrong\n2 more rows are wrong: t:5, t:7"
    with pytest.raises(DataError, match=r"^t:2: wrong\n1 more row is wrong: t:5$"):
        check_rows(wrong(2, 5), [5, 2], until=FOREVER, say=print, what="checked")
    with pytest.raises(DataError, match="at least 4 more rows are wrong: t:1, t:2, t:3, t:4"):
        check_rows(wrong(*range(9)), range(9), until=FOREVER, say=print, what="checked")


def test_checks_end_with_their_time_and_say_that_rows_are_left():
    start = time.monotonic()
    assert not check_rows(lambda _: time.sleep(0.01), range(10**9), until=start + 0.1, say=print, what="checked")
    assert time.monotonic() - start < 5
    assert check_rows(wrong(), range(3), until=FOREVER, say=print, what="checked")


def test_the_lookahead_finds_a_wrong_row_before_its_use_and_checks_none_twice():
    seen, watched = [], threading.Event()

    def check(index):
        assert watched.wait(10)
        seen.append((index, threading.current_thread().name))
        wrong(4)(index)

    ahead = Lookahead(check, done={0, 1})
    ahead.watch(lambda: [3, 1, 4, 5, 0])
    watched.set()
    assert ahead.settle(timeout_s=10)
    with pytest.raises(DataError, match=r"^t:4: wrong\nThis row was found in the background of training, before"):
        ahead.watch(lambda: [])
    assert seen == [(3, "data-lookahead"), (4, "data-lookahead")]


def test_the_lookahead_takes_a_small_share_of_a_core_and_ends_when_it_is_closed():
    used_s = []

    def busy(_):
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        used_s.append(time.thread_time())

    ahead = Lookahead(busy, done=set())
    ahead.watch(lambda: range(10**6))
    time.sleep(0.5)
    ahead.close()
    assert ahead.settle(timeout_s=10)
    assert 0 < used_s[-1] < 0.15


def test_rows_for_which_there_was_no_time_are_checked_while_prompts_are_taken(run_config, jsonl, model_folder):
    good = [{"prompt": "What is", "answer": str(i)} for i in range(60)]
    path = jsonl(*good, {"prompt": "cut \ud83d", "answer": "1"})
    config = run_config({"kind": "jsonl", "path": path, "check_s": 0, "shuffle": False}, {"kind": "number"})
    said = []
    checked = check_data(config, say=said.append)
    assert "data: 0 of 61 rows were checked in data.check_s=0; the others are checked during training" in said
    ahead = checked.ahead(lambda: ChatTokenizer(model_folder))
    source = build_source(config.data, seed=0, tokenizer=ChatTokenizer(model_folder), rows=checked.rows, ahead=ahead)
    assert [prompt.id for prompt in source.take(2)] == ["train.jsonl:1", "train.jsonl:2"]
    assert ahead.settle(timeout_s=30)
    with pytest.raises(DataError, match=r"^train.jsonl:61: prompt: character 5 .*half of a surrogate pair"):
        source.take(1)
    assert source.state()["index"] == 2


def test_what_is_taken_does_not_depend_on_the_lookahead(run_config, jsonl, model_folder):
    path = jsonl(*({"prompt": f"What is {i}"} for i in range(50)))
    config = run_config({"kind": "jsonl", "path": path, "check_s": 0})
    tokenizer = ChatTokenizer(model_folder)
    alone = build_source(config.data, seed=3, tokenizer=tokenizer)
    checked = check_data(config)
    ahead = checked.ahead(lambda: ChatTokenizer(model_folder))
    beside = build_source(config.data, seed=3, tokenizer=tokenizer, rows=checked.rows, ahead=ahead)
    for _ in range(12):
        assert beside.take(10) == alone.take(10)
    assert beside.state() == alone.state()
    ahead.close()


def test_nothing_is_left_to_check_where_all_rows_were_or_where_they_are_computed(run_config, jsonl):
    path = jsonl({"prompt": "What is"}, {"prompt": "What"})
    assert check_data(run_config({"kind": "jsonl", "path": path})).ahead(ChatTokenizer) is None
    assert check_data(run_config({"kind": "addition"})).ahead(ChatTokenizer) is None


def test_the_place_of_a_row_of_a_table_has_its_number():
    faults = {row: DataError(f"t.parquet: row {row}: prompt: empty") for row in (1, 2, 3)}
    assert str(as_one(faults, is_complete=True)).endswith("\n2 more rows are wrong: t.parquet: row 2, t.parquet: row 3")
