from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.batching.micro_batches import MicroBatch, Sizes, Tree, plan_micro_batches


@st.composite
def problems(draw: st.DrawFn) -> tuple[Sizes, list[int], int, int]:
    """Sizes of a batch, some of its rows, workers and budget."""
    prompts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    group_size = draw(st.integers(1, 5))
    rows = len(prompts) * group_size
    completions = draw(st.lists(st.integers(1, 40), min_size=rows, max_size=rows))
    chosen = draw(st.sets(st.integers(0, rows - 1), min_size=1))
    sizes = Sizes(prompts, completions, group_size)
    return sizes, sorted(chosen), draw(st.integers(1, 4)), draw(st.integers(1, 200))


def cost(sizes: Sizes, micro: MicroBatch, *, packing: str) -> int:
    """Tokens that a micro-batch puts through the model, padding included."""
    if packing == "shared_prefix":
        return sum(sizes.tokens(tree) for tree in micro)
    tokens = [sizes.prompts[tree.prompt] + sizes.completions[row] for tree in micro for row in tree.rows]
    return max(tokens, default=0) * len(tokens) if packing == "padded" else sum(tokens)


@settings(deadline=None)
@given(problems(), st.sampled_from(["padded", "packed", "shared_prefix"]))
def test_every_row_is_computed_exactly_once_below_its_own_prompt(problem, packing):
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing=packing)
    trees = [tree for plan in plans for micro in plan for tree in micro]
    assert Counter(row for tree in trees for row in tree.rows) == Counter(rows)
    assert all(row // sizes.group_size == tree.prompt for tree in trees for row in tree.rows)


@settings(deadline=None)
@given(problems(), st.sampled_from(["padded", "packed", "shared_prefix"]))
def test_a_micro_batch_over_the_budget_is_a_single_row(problem, packing):
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing=packing)
    for micro in (micro for plan in plans for micro in plan):
        is_single = len(micro) == 1 and len(micro[0].rows) == 1
        assert is_single or cost(sizes, micro, packing=packing) <= budget


@settings(deadline=None)
@given(problems(), st.sampled_from(["padded", "packed", "shared_prefix"]))
def test_every_worker_has_the_same_number_of_micro_batches_and_one_has_no_empty_ones(problem, packing):
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing=packing)
    assert len(plans) == workers
    assert len({len(plan) for plan in plans}) == 1
    assert any(all(plan) for plan in plans)


@settings(deadline=None)
@given(problems(), st.sampled_from(["padded", "packed", "shared_prefix"]))
def test_no_worker_has_more_than_the_mean_and_one_tree(problem, packing):
    """The bound of list scheduling (Graham 1966): mean + (1 - 1/workers) * longest."""
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing=packing)
    tokens = [[sizes.tokens(tree) for micro in plan for tree in micro] for plan in plans]
    longest = max(max(share, default=0) for share in tokens)
    mean = sum(map(sum, tokens)) / workers
    assert max(map(sum, tokens)) <= mean + (1 - 1 / workers) * longest


@settings(deadline=None)
@given(problems(), st.sampled_from(["padded", "packed", "shared_prefix"]))
def test_whole_groups_are_in_one_micro_batch_and_exceed_the_budget_only_alone(problem, packing):
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing=packing, whole_groups=True)
    trees = [tree for plan in plans for micro in plan for tree in micro]
    assert len(plans) == workers
    assert len({len(plan) for plan in plans}) == 1
    assert Counter(row for tree in trees for row in tree.rows) == Counter(rows)
    assert len({tree.prompt for tree in trees}) == len(trees)
    assert sum(any(plan) for plan in plans) == min(workers, len(trees))
    for micro in (micro for plan in plans for micro in plan):
        assert len(micro) <= 1 or cost(sizes, micro, packing=packing) <= budget


@settings(deadline=None)
@given(problems())
def test_no_worker_is_idle_while_there_are_rows_enough(problem):
    sizes, rows, workers, budget = problem
    plans = plan_micro_batches(sizes, rows, workers=workers, budget=budget, packing="shared_prefix")
    assert sum(any(plan) for plan in plans) == min(workers, len(rows))


SIZES = Sizes([10, 4], [2, 3, 2, 5, 1, 1], group_size=3)


def test_a_prompt_is_computed_once_for_all_its_completions():
    plans = plan_micro_batches(SIZES, range(6), workers=1, budget=100, packing="shared_prefix")
    assert plans == [[(Tree(0, (0, 1, 2)), Tree(1, (3, 4, 5)))]]


def test_a_group_beyond_the_budget_is_cut_between_completions():
    plans = plan_micro_batches(SIZES, [0, 1, 2], workers=1, budget=15, packing="shared_prefix")
    assert plans == [[(Tree(0, (0, 1)),), (Tree(0, (2,)),)]]


def test_the_widest_groups_are_halved_until_every_worker_has_a_share():
    plans = plan_micro_batches(SIZES, range(6), workers=4, budget=100, packing="shared_prefix")
    trees = {tree for plan in plans for micro in plan for tree in micro}
    assert trees == {Tree(0, (0,)), Tree(0, (1, 2)), Tree(1, (3,)), Tree(1, (4, 5))}


def test_padded_rows_cost_as_much_as_the_longest_beside_them():
    # 13, 12 and 9 tokens: the third would make 3 * 13.
    plans = plan_micro_batches(SIZES, [0, 1, 3], workers=1, budget=28, packing="padded")
    assert plans == [[(Tree(0, (1,)), Tree(0, (0,))), (Tree(1, (3,)),)]]


def test_workers_beyond_the_rows_get_empty_micro_batches():
    plans = plan_micro_batches(SIZES, [5], workers=3, budget=100, packing="padded")
    assert plans == [[(Tree(1, (5,)),)], [()], [()]]


PAIRS = Sizes([4, 6, 2], [2, 8, 1, 1, 3, 1], group_size=2)


def test_a_padded_group_costs_its_widest_row_for_each_of_its_rows():
    # Rows of 6 and 12, 7 and 7, 5 and 3 tokens. Two pairs beside each other cost 4 * 12, or 4 * 7 without the first.
    def planned(budget: int) -> list[list[MicroBatch]]:
        return plan_micro_batches(PAIRS, range(6), workers=1, budget=budget, packing="padded", whole_groups=True)

    first, second, third = Tree(0, (0, 1)), Tree(1, (2, 3)), Tree(2, (4, 5))
    assert planned(27) == [[(first,), (second,), (third,)]]
    assert planned(28) == [[(first,), (second, third)]]
    assert planned(48) == [[(first, second), (third,)]]
    assert planned(72) == [[(first, second, third)]]


def test_a_packed_group_computes_its_prompt_for_each_of_its_rows():
    # 18, 14 and 8 tokens; with shared prompts 14, 8 and 6.
    def planned(budget: int, packing: str) -> list[int]:
        (plan,) = plan_micro_batches(PAIRS, range(6), workers=1, budget=budget, packing=packing, whole_groups=True)
        return [len(micro) for micro in plan]

    assert planned(31, "packed") == [1, 2]
    assert planned(32, "packed") == [2, 1]
    assert planned(21, "shared_prefix") == [1, 2]
    assert planned(22, "shared_prefix") == [2, 1]


def test_whole_groups_are_balanced_by_the_tokens_that_the_model_processes():
    # 22, 16 and 6 tokens; with shared prompts 12, 15 and 5.
    sizes = Sizes([10, 1, 1], [1, 1, 7, 7, 2, 2], group_size=2)
    first, second, third = Tree(0, (0, 1)), Tree(1, (2, 3)), Tree(2, (4, 5))

    def planned(packing: str) -> list[list[MicroBatch]]:
        return plan_micro_batches(sizes, range(6), workers=2, budget=100, packing=packing, whole_groups=True)

    assert planned("packed") == planned("padded") == [[(first,)], [(second, third)]]
    assert planned("shared_prefix") == [[(second,)], [(first, third)]]


def test_one_pair_on_two_workers_leaves_one_of_them_empty():
    for packing in ("padded", "packed", "shared_prefix"):
        plans = plan_micro_batches(PAIRS, [2, 3], workers=2, budget=1, packing=packing, whole_groups=True)
        assert plans == [[(Tree(1, (2, 3)),)], [()]], packing
