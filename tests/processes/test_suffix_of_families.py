"""Suffixes for the chat templates of published model families, as TRL ships them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.suffix import TurnSuffix
from ray_rl.models.packaged import resolve_model
from ray_rl.types import Message, ToolCall
from tests.chat_models import chat_model

TRL = find_spec("trl")
FOLDER = Path(TRL.submodule_search_locations[0]) / "chat_templates"
WITH_IMAGES = {"idefics3", "llava_next", "smolvlm"}
"""Templates without a form for text alone."""
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
NAMES = [name for name in NAMES if name not in WITH_IMAGES]

ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
    "diffusion_gemma": ("<eos>", "<turn|>", "<|tool_response>"),
    "gemma4": ("<eos>", "<turn|>", "<|tool_response>"),
    "gemma": ("<end_of_turn>",),
    "glm": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "lfm": ("<|im_end|>",),
    "llama3": ("<|eot_id|>", "<|eom_id|>"),
    "muse": ("<|eot|>",),
    "nemotron": ("<|im_end|>",),
    "phi": ("<|end|>", "<|endoftext|>"),
    "qwen": ("<|im_end|>", "<|endoftext|>"),
}
"""Tokens that end a completion, by the first letters of a name; the first that fits."""

WITHOUT_TOOLS = {
    "cohere": "it refuses them: Conversation roles must alternate",
    "cohere2": "it leaves out the text of the tool message",
    "gemma": "it refuses them: Conversation roles must alternate",
    "gemma3": "it refuses them: Conversation roles must alternate",
    "phi3": "it leaves out the text of the tool message",
    "phi3_5": "it leaves out the text of the tool message",
}
"""Templates that cannot write a tool message, and how the reason begins."""
INSIDE_THE_TURN = {"diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"}
"""Templates that write results inside the turn of the policy, whose completion ends with `<|tool_response>`."""
ALWAYS_DROP_THOUGHTS = {"deepseek_r1_distill", "deepseekv3", "gemma4_v2"}
DROP_THOUGHTS_BEFORE_USERS = INSIDE_THE_TURN | {
    "glm4moe",
    "gptoss",
    "lfm2_2_5",
    "lfm2_2_5_v2",
    "lfm2_2_5_vl",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
}
"""Templates that keep the thoughts of earlier turns as long as only results of tools follow."""
IGNORE_TOOLS = {"cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "llama3", "phi3", "phi3_5"}
IGNORE_TOOLS |= {"qwen2_5_vl"}
NO_PROMPT_AFTER_TOOLS = {"deepseek_r1_distill", "deepseekv3", *INSIDE_THE_TURN}
"""Templates that write no generation prompt behind the result of a tool: the policy's turn continues."""

REWRITES_ANSWERS = {
    # The generation prompt opens a thought, and a later prompt has no such text before an answer without thoughts.
    "user": {name for name in NAMES if name.startswith(("deepseek", "nemotron", "qwen3_5", "qwen3_6"))} | {"gptoss"},
    "tool": {name for name in NAMES if name.startswith(("deepseek", "nemotron", "qwen3_5_think", "qwen3_6"))}
    | {"gptoss", *INSIDE_THE_TURN},
}
"""Templates that write even an answer without thoughts differently later.

That of gpt-oss ends the last turn with another token than earlier ones. It and those of Gemma 4 write calls that have
fields of their own.
"""

ANSWERS = ("The answer is 42.", "two\nlines\n\nand\ta tab", "caf\u00e9 \u6570\u5b66")
WITH_SPACE = ("  leading", "trailing \n", "")
"""Answers that templates trim, or whose first space becomes one token with the end of the prompt."""
CALL = ToolCall("add", {"a": 17, "b": 25})
NEW = {
    "user": [[Message("user", "Are you sure? Answer again.")], [Message("user", "two\n\nlines")]],
    "tool": [
        [Message("tool", "The sum is 42.")],
        [Message("tool", '{"sum": 42, "unit": "apples"}')],
        [Message("tool", "first result"), Message("tool", "second result")],
    ],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add_numbers",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "A number."}},
            "required": ["a"],
        },
    },
}
ASKED = {"role": "user", "content": "What is the sum of 17 and 25?"}


def test_the_templates_are_those_that_are_listed_here():
    assert len(NAMES) == 38
    assert len(WITHOUT_TOOLS) + len(INSIDE_THE_TURN) == 11 and INSIDE_THE_TURN | set(WITHOUT_TOOLS) < set(NAMES)
    assert len(ALWAYS_DROP_THOUGHTS) + len(DROP_THOUGHTS_BEFORE_USERS) == 21


class Family:
    """One template with its tokenizer."""

    def __init__(self, name, folder):
        ends = next(ends for begins, ends in ENDS.items() if name.startswith(begins))
        self.name = name
        self.tokenizer = chat_model(folder, (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), ends=ends)
        self.suffix = TurnSuffix(self.tokenizer, self.tokenizer.ends((), (), chat=True))
        self.calls = {"id": "call00000", "type": "function", "function": {"name": "add", "arguments": {"a": 17}}}

    def rendered(self, conversation):
        return self.tokenizer.template.written(conversation, generation_prompt=True).text

    def tokens(self, text):
        return tuple(self.tokenizer.model_tokenizer.encode(text, special=False))

    def text(self, token_ids):
        return self.tokenizer.model_tokenizer.decode(token_ids, skip_special_tokens=False)

    def end(self, role):
        """The token with which the policy ends a turn that a message of this role follows."""
        special = {("gptoss", "tool"): "<|call|>", ("glm4moe", "tool"): "<|observation|>"}
        text = special.get((self.name, role))
        if role == "tool" and self.name in INSIDE_THE_TURN:
            text = "<|tool_response>"
        return self.tokenizer.turn_end if text is None else self.tokenizer.model_tokenizer.added[text]

    def whole(self, answer, new, role):
        """A conversation with an answer and new messages, as the template reads it."""
        said = {"role": "assistant", "content": answer}
        if role == "tool" and (self.name == "gptoss" or self.name in INSIDE_THE_TURN):
            said |= {"content": "", "tool_calls": [self.calls]}
        if role == "tool" and self.name in WITHOUT_TOOLS:
            return [ASKED, said, {"role": "user", "content": "\n\n".join(message.content for message in new)}]
        results = [{"role": m.role, "content": m.content, "name": "add", "tool_call_id": "call00000"} for m in new]
        return [ASKED, said, *results]


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def test_what_a_template_can_append(family):
    support = family.suffix.support()
    assert support.refuses_user is None
    if family.name in WITHOUT_TOOLS:
        assert support.refuses_tool.startswith(WITHOUT_TOOLS[family.name])
    else:
        assert support.refuses_tool is None


@pytest.mark.parametrize("name", sorted(INSIDE_THE_TURN))
def test_results_inside_a_turn_need_the_token_before_them_to_end_a_completion(name, tmp_path):
    tokenizer = chat_model(tmp_path, (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), ends=("<turn|>",))
    suffix = TurnSuffix(tokenizer, tokenizer.ends((), (), chat=True))
    assert "it writes no token behind a call of a tool that ends a completion" in suffix.support().refuses_tool
    text = tokenizer.decode(suffix.token_ids(NEW["tool"][0], sampled=(), calls=[CALL]))
    assert text == "\nuser\nThe sum is 42.\nmodel\n"


def test_whether_a_template_rewrites_earlier_turns(family):
    of_users, of_tools = (family.suffix.support((role,)).rewrites_history for role in ("user", "tool"))
    drops = "it drops the thoughts of earlier turns once a {} message follows"
    after_users = family.name in ALWAYS_DROP_THOUGHTS | DROP_THOUGHTS_BEFORE_USERS
    assert of_users == (drops.format("user") if after_users else None)
    assert of_tools == (drops.format("tool") if family.name in ALWAYS_DROP_THOUGHTS else None)
    assert (family.suffix.support().rewrites_history is None) == (of_users is None and of_tools is None)


def test_whether_a_template_writes_tools(family):
    assert family.tokenizer.reads_tools == (family.name not in IGNORE_TOOLS)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_rendering_of_the_conversation_ends_with_the_tokens_of_the_suffix(family, role):
    """Also where the template rewrites what is before: then only the beginning differs."""
    end = family.end(role)
    in_history = family.tokens("<|end|>")[0] if family.name == "gptoss" and role == "user" else end
    for answer in (*ANSWERS, *WITH_SPACE):
        for new in NEW[role]:
            suffix = family.suffix.token_ids(new, sampled=[end], calls=[CALL, CALL][: len(new)])
            whole = family.tokens(family.rendered(family.whole(answer, new, role)))
            assert whole[-len(suffix) - 1 :] == (in_history, *suffix)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_prompt_and_completion_and_suffix_are_the_tokens_of_the_conversation(family, role):
    """Else the first difference is in a turn that the template rewrites, and never in the suffix."""
    prompt, start = family.tokens(family.rendered([ASKED])), family.tokenizer.answer_start
    for answer in (*ANSWERS, *WITH_SPACE):
        sampled = (*family.tokens(start + answer), family.end(role))
        for new in NEW[role]:
            suffix = family.suffix.token_ids(new, sampled=sampled, calls=[CALL, CALL][: len(new)])
            ours, whole = (*prompt, *sampled, *suffix), family.tokens(family.rendered(family.whole(answer, new, role)))
            same = next((i for i, (a, b) in enumerate(zip(ours, whole, strict=False)) if a != b), len(whole))
            assert ours == whole or same < len(prompt) + len(sampled)
            if answer in ANSWERS:
                assert (ours == whole) == (family.name not in REWRITES_ANSWERS[role])


@pytest.mark.parametrize("role", ["user", "tool"])
def test_the_policy_is_asked_to_speak_again(family, role):
    suffix = family.suffix.token_ids(NEW[role][0], sampled=(), calls=[CALL])
    ends_so = family.text(suffix).endswith(family.tokenizer.prompt_end[-12:])
    assert ends_so == (role == "user" or family.name not in NO_PROMPT_AFTER_TOOLS)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_no_message_can_write_a_token_of_the_template(family, role):
    model = family.tokenizer.model_tokenizer
    added = {
        text: token
        for text, token in model.added.items()
        if token in model.special_ids or text in family.tokenizer.template.text
    }
    hostile = "one " + " ".join(text for text in added if len(text) > 1) + " two"
    suffix, harmless = (
        family.suffix.token_ids([Message(role, content)], sampled=(), calls=[CALL]) for content in (hostile, "one two")
    )
    controls = set(added.values())
    assert [token for token in suffix if token in controls] == [token for token in harmless if token in controls]
    assert family.text(suffix) == family.text(harmless).replace("one two", hostile)


@pytest.mark.parametrize("tools", [(), (TOOL,)])
def test_a_prompt_is_what_transformers_renders(family, tools):
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        [[ASKED]],
        tools=list(tools) or None,
        chat_template=family.tokenizer.template.text,
        add_generation_prompt=True,
        **family.tokenizer.model_tokenizer.special_tokens,
    )
    assert family.tokenizer.template.written([ASKED], generation_prompt=True, tools=tools).text == expected
    assert ("add_numbers" in expected) == (bool(tools) and family.name not in IGNORE_TOOLS)


def test_the_tokenizer_of_smollm2():
    tokenizer = ChatTokenizer(resolve_model("smollm2-135m-instruct"))
    suffix = TurnSuffix(tokenizer, tokenizer.ends((), (), chat=True))
    asked, answer, again = (Message("user", "1+1?"), Message("assistant", "It is 2."), Message("user", "Are you sure?"))
    sampled = (*tokenizer.model_tokenizer.encode("It is 2.<|im_end|>", special=False),)
    appended = suffix.token_ids([again], sampled=sampled)
    assert tokenizer.model_tokenizer.decode(appended, skip_special_tokens=False) == (
        "\n<|im_start|>user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = tokenizer.encode([asked, answer, again], chat=True)
    assert (*tokenizer.encode([asked], chat=True), *sampled, *appended) == whole
    support = suffix.support()
    assert (support.refuses_user, support.refuses_tool, support.rewrites_history) == (None, None, None)
