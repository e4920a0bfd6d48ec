from __future__ import annotations

import json
import time

import pytest

from ray_rl.data import bounded_jinja
from ray_rl.data.template import ChatTemplate, with_options
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %};{% endfor %}"
ASKED = [Message("user", "What is 17 + 25?")]
BRIEFED = [Message("system", "Be brief"), *ASKED]

LIKE_LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|/header|>\\n\\nToday: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\\n\\n' }}
{%- endif %}
"""
LIKE_QWEN3 = """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- generation %}{{- '<|im_start|>assistant\\n' ~ content ~ '<|im_end|>\\n' }}{%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
    {%- if loop.last %}{% continue %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LIKE_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' ~ (m | tojson) ~ m['content'] ~ eos_token }}{% endif %}{% endfor %}"
)
LIKE_A_MACRO = (
    "{% macro turn(m, width=2) -%}\n    <{{ m.role | upper }}>{{ m.content | replace('a', 'a') }}{{ '-' * width }}\n"
    "{%- endmacro %}\n   {% if thinking %}think{% endif %}\n{% for m in messages if m.content %}\n"
    "  {{ turn(m) }}{{ loop.cycle('!', '?') }}{{ loop.length - loop.index }}{{ '; ' if not loop.last }}\n{% endfor %}\n"
)


def made(template: str, **options: object) -> ChatTemplate:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(template, special_tokens=tokens, owner="acme/m", options=options)


@pytest.mark.parametrize("generation_prompt", [False, True])
@pytest.mark.parametrize("template", [CHATML, LIKE_LLAMA3, LIKE_QWEN3, LIKE_MISTRAL, LIKE_A_MACRO])
def test_a_template_is_rendered_as_transformers_renders_it(template, generation_prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [
        *ASKED,
        Message("assistant", "<think>\nlong\n</think>\n\n 42 <b>&"),
        Message("user", "Caf\u00e9\n'or' \"not\"?"),
    ]
    for messages in (ASKED, turns):
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        (expected,), _ = render_jinja_template(
            [conversation],
            chat_template=template,
            add_generation_prompt=generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
        )
        assert made(template).render(messages, generation_prompt=generation_prompt) == expected


class TestOptions:
    def test_an_option_is_what_the_template_reads(self):
        without = made(LIKE_QWEN3, enable_thinking=False).render(ASKED, generation_prompt=True)
        assert without.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert not made(LIKE_QWEN3).render(ASKED, generation_prompt=True).endswith("</think>\n\n")

    @pytest.mark.parametrize(
        "template", [CHATML, LIKE_LLAMA3, LIKE_MISTRAL, LIKE_A_MACRO, "\n  x{{ messages[0].content }}"]
    )
    def test_the_values_in_front_write_nothing(self, template):
        plain = made(template).render(ASKED, generation_prompt=True)
        assert (
            made(with_options(template, {"other": [1, None, "}}' %}\n\u00e9"]})).render(ASKED, generation_prompt=True)
            == plain
        )

    @pytest.mark.parametrize(
        "value", [True, False, None, 3, -0.5, 'it\'s "x" %} {{ \u00e9\U0001f600\n', [1, "a"], {"a": [None]}]
    )
    def test_any_value_of_yaml_arrives_also_in_macros(self, value):
        template = (
            "{% macro told() %}{{ x | tojson }}{% endmacro %}{{ x | tojson }}|{{ told() }}|{{ messages[0].content }}"
        )
        text = json.dumps(value, ensure_ascii=False)
        assert made(template, x=value).render(ASKED, generation_prompt=True) == f"{text}|{text}|{ASKED[0].content}"

    def test_a_caller_s_own_value_comes_before_the_option(self):
        from transformers.utils.chat_template_utils import render_jinja_template

        template = made(LIKE_QWEN3, enable_thinking=False).text
        conversation = [{"role": "user", "content": "x"}]
        (exported,), _ = render_jinja_template([conversation], chat_template=template, add_generation_prompt=True)
        (thinking,), _ = render_jinja_template(
            [conversation], chat_template=template, add_generation_prompt=True, enable_thinking=True
        )
        assert exported.endswith("</think>\n\n") and thinking.endswith("assistant\n")

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("enable_thinkin", "does not read it; it reads .*enable_thinking"),
            ("messages", "is given with every conversation"),
            ("bos_token", "is given with every conversation"),
            ("namespace", "does not read it"),
        ],
    )
    def test_an_option_that_does_nothing_is_refused(self, name, told):
        with pytest.raises(ConfigError, match=rf"^data.template_options.{name}: .*{told}"):
            made(LIKE_QWEN3, **{name: False})


class TestLostText:
    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
            "Be brief and kind. {{ messages[-1].content }}",
        ],
    )
    def test_a_template_that_drops_the_system_prompt_is_refused(self, template):
        with pytest.raises(
            DataError, match=r"leaves out the text of the system message, 'Be brief'; set model.chat_templ"
        ):
            made(template).render(BRIEFED, generation_prompt=True)

    def test_a_short_text_that_stands_elsewhere_too_is_missed(self):
        """'7' is in '17': only words that stand nowhere else tell."""
        template = "{{ messages[0].content }}{{ messages[2].content }}"
        with pytest.raises(DataError, match="leaves out the text of the assistant message, '7'"):
            made(template).render([*ASKED, Message("assistant", "7"), Message("user", "?")], generation_prompt=True)

    def test_a_template_that_cuts_a_message_is_refused(self):
        with pytest.raises(DataError, match="leaves out the text of the user message, 'What is 17"):
            made("{{ messages[0].content[:6] }}").render(ASKED, generation_prompt=True)

    @pytest.mark.parametrize(
        "template",
        [
            PARTS,
            "{% for m in messages %}{{ m.content[0].text }};{% endfor %}",
            "{% for m in messages %}{{ m.content[0]['text'] + ';' }}{% endfor %}",
            "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }};{% endfor %}{% endfor %}",
        ],
    )
    def test_a_template_that_wants_parts_gets_them(self, template):
        assert made(template).render(BRIEFED, generation_prompt=True) == "Be brief;What is 17 + 25?;"

    def test_a_part_is_never_written_as_python_writes_it(self):
        template = "{% for m in messages %}{% if m.content is not string %}{{ m.content }}{% endif %}{% endfor %}"
        with pytest.raises(DataError, match="leaves out the text of the user message"):
            made(template).render(ASKED, generation_prompt=True)

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ messages[0].content | trim }}", "  x\n\n"),
            ("{{ messages[0].content.split() | join(' ') }}", "a\n  b\tc"),
            ("{{ messages[0] | tojson }}", 'a\n"b" \\ \u00e9'),
        ],
    )
    def test_space_and_the_escapes_of_json_do_not_count(self, template, text):
        assert made(template).render([Message("user", text)], generation_prompt=True)

    def test_earlier_thoughts_may_be_left_out(self):
        turns = [*ASKED, Message("assistant", "<think>long</think>42"), Message("user", "Sure?")]
        assert "long" not in made(LIKE_QWEN3).render(turns, generation_prompt=True)
        dropped = LIKE_QWEN3.replace("~ content ~", "~")
        with pytest.raises(DataError, match="leaves out the text of the assistant message"):
            made(dropped).render(turns, generation_prompt=True)


class TestFaults:
    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ foo.bar }}{{ messages }}", "UndefinedError in line 1: 'foo' is undefined"),
            ("\n\n{{ 1 // 0 }}", "ZeroDivisionError in line 3"),
            ("{{ 1 + 'a' }}", "TypeError in line 1"),
            ("{{ messages['x'].y }}", "UndefinedError"),
            ("{{ messages | nosuch }}", "is not valid: TemplateAssertionError in line 1: No filter named 'nosuch'"),
            ("{% for %}", "is not valid: TemplateSyntaxError in line 1"),
            ("{% include 'other.jinja' %}", "TypeError|TemplateNotFound|no loader"),
            ("{{ ''.__class__.__mro__ }}", "SecurityError"),
            ("{{ 'x'.encode('ascii').decode('nosuch') }}", "LookupError"),
            ("{{ '%d' % 'x' }}", "TypeError"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|more than"),
            ("{" * 0 + "{{ " + "(" * 400 + "1" + ")" * 400 + " }}", "not valid"),
            (
                "".join(f"{{% for a{i} in messages %}}" for i in range(30)) + "{% endfor %}" * 30,
                "not valid: SyntaxError",
            ),
            ("{{ raise_exception('no') }}", "refuses roles user: no; correct the messages"),
        ],
    )
    def test_a_fault_is_one_sentence_with_its_line(self, template, told):
        with pytest.raises(DataError, match=rf"^the chat template of acme/m .*({told})") as caught:
            made(template).render(ASKED, generation_prompt=True)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "rounds of loops"),
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
                "rounds of loops",
            ),
            ("{% for a in range(99999) if a is none %}{% endfor %}" * 20, "rounds of loops"),
            (
                "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(15) }}",
                "rounds of loops and calls",
            ),
            ("{{ 'x' * 10 ** 10 }}", "a text of more than"),
            ("{{ 10 ** (10 ** 10) }}", "a text of"),
            (
                "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
                "a text of",
            ),
            (
                "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
                "a text of",
            ),
            (
                "{% set n = namespace(s=['x']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
                "a text of",
            ),
            ("{{ 'x' | center(10 ** 12) }}", "a text of"),
            ("{{ 'x' | center(1000000000000) }}", "a text of"),
            ("{{ 'x'.center(1000000000000) }}", "a text of"),
            ("{% for a in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}", "a text of"),
            ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ],
    )
    def test_too_much_work_is_refused_soon(self, template, told, monkeypatch):
        monkeypatch.setattr(bounded_jinja, "RENDER_STEPS", 20_000)
        begin = time.monotonic()
        with pytest.raises(DataError, match=told):
            made(template).render(ASKED, generation_prompt=True)
        assert time.monotonic() - begin < 10

    def test_a_long_conversation_is_not_too_much(self):
        turns = [Message(role, f"turn {i} " + "x" * 1000) for i in range(1000) for role in ("user", "assistant")]
        assert len(made(LIKE_QWEN3).render(turns, generation_prompt=True)) > 2_000_000
