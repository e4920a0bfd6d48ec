"""Says whether the kinds that a configuration chooses have a key and read it, so that messages suggest no other key."""

from __future__ import annotations

from ray_rl.config.loading.schema import section_without, sections_of
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.config.roles import CRITIC, REFERENCE
from ray_rl.config.run import OFFLINE, ONLINE_SECTIONS, RunConfig
from ray_rl.config.unread import UNREAD_OFFLINE, UNREAD_ONLINE

KINDS = frozenset(sections_of(RunConfig.model_fields["algorithm"].annotation))


def kind_of(tree: Located) -> str | None:
    """Returns `algorithm.kind` in the values of a configuration; None if it is missing or unknown."""
    kind = tree.at("algorithm.kind")
    return kind.value if kind is not None and isinstance(kind.value, str) and kind.value in KINDS else None


def lacks(key: str, tree: Located) -> str | None:
    """Returns why a key of ours does not fit the kinds in a configuration, and what to do; None if it does.

    For example "algorithm.kind=sft samples nothing; remove it".

    Args:
        key: a dotted key. Entries of lists have index 0, which stands for any entry.
        tree: the values of the configuration.
    """
    kind, section = kind_of(tree), key.partition(".")[0]
    if kind is not None and kind in OFFLINE:
        if section in ONLINE_SECTIONS:
            return f"algorithm.kind={kind} {ONLINE_SECTIONS[section]}; remove it"
        if section == REFERENCE and not OFFLINE[kind]().needs_reference:
            return f"algorithm.kind={kind} has no reference; remove it"
        if key in UNREAD_OFFLINE:
            return f"algorithm.kind={kind} does not read it; {UNREAD_OFFLINE[key]}"
    elif kind is not None:
        if section == CRITIC and kind != "ppo":
            return f"algorithm.kind={kind} has no critic; remove it"
        if key in UNREAD_ONLINE:
            return f"algorithm.kind={kind} does not read it; {UNREAD_ONLINE[key]}"
    if section == "rewards":  # each entry has a kind of its own
        return None
    chosen = section_without(RunConfig, key.split("."), tree)
    if chosen is None:
        return None
    sources = sections_of(RunConfig.model_fields["data"].annotation)
    others = [name for name, source in sources.items() if key.partition(".")[2] in source.model_fields]
    change = f"set data.kind to {' or '.join(others)}, or remove it" if section == "data" else "remove it"
    return f"{chosen} has no such key; {change}"
