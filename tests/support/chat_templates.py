"""Chat templates: usual ones, as models have them, and irregular ones."""

from __future__ import annotations

from tests.support.tiny import CHAT_TEMPLATE

LOOP = "{% for m in messages %}"
REGULAR = {
    "tiny": CHAT_TEMPLATE,
    "chatml": LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "default_system": "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"Ada\", a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + LOOP
    + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "headers": "{{ bos_token }}"
    + LOOP
    + "{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}",
    "instruct": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.first and system is defined %}"
    "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
    "no_system": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + LOOP
    + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start>' + role + '\n' + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}",
    "head": "{{ '[gMASK]<sop>' }}" + LOOP + "{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "marked_for_training": LOOP
    + "{% if m.role == 'assistant' %}{% generation %}{{ 'A: ' + m.content + '\n' }}"
    "{% endgeneration %}{% else %}{{ 'Q: ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}",
    "with_tools": "{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    + LOOP
    + "{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "date": "{{ 'Today is ' }}"
    "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'long ago' }}"
    "{{ '\n' }}" + LOOP + "{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
    "clock": "{{ 'Today is ' + strftime_now('%Y-%m-%d') }}"
    + LOOP
    + "{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
    "always_a_system_turn": "{{ bos_token + '<sys>Be good. ' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '</sys>' }}"
    + LOOP
    + "{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}",
    "system_at_the_end": "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '[INST]' }}{% if loop.last and system is defined %}"
    "{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "thinks_last": LOOP + "{% if m.role == 'assistant' %}{{ '<a></think>' + m.content + '</a>' }}"
    "{% else %}{{ '<' + m.role + '>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a><think>' }}{% endif %}",
    "thinks_unless_told": LOOP
    + "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}"
    "{{ '<assistant><think>' + m.reasoning_content + '</think>' + m.content }}"
    "{% else %}{{ '<' + m.role + '>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
    "{% endif %}",
    "tools_without_asking": "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    + LOOP
    + "{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
}
TOOLS = {
    "tagged": "{% if tools %}{{ '<sys>' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ 'You may call:' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '</sys>' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<sys>' + messages[0].content + '</sys>' }}{% endif %}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '<user>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<assistant>' + m.content }}{% for call in m.tool_calls %}"
    "{% if loop.index > 1 or m.content %}{{ '\n' }}{% endif %}"
    '{{ \'<call>{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}</call>' }}{% endfor %}{{ '<end>' }}"
    "{% elif m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}{{ '<user>' }}{% endif %}"
    "{{ '<result>' + m.content + '</result>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<done>' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
    "one_call": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{{ '<system>' + system }}"
    "{% if tools %}{{ ' Functions: [' }}{% for tool in tools %}"
    "{{ tool.function | tojson(indent=2) }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' }}{% endif %}{{ '<eot>' }}"
    + LOOP
    + "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}"
    '{{ \'<assistant>{"name": "\' + call.name + \'", "parameters": \' }}'
    "{{ call.arguments | tojson }}{{ '}<eot>' }}"
    "{% elif m.role == 'tool' %}{{ '<ipython>' + m.content | tojson + '<eot>' }}"
    "{% else %}{{ '<' + m.role + '>' + m.content + '<eot>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
}
"""Templates that write tools and calls as JSON."""
IRREGULAR = {
    "numbered": LOOP + "{{ loop.index ~ '. ' + m.content + '\n' }}{% endfor %}",
    "upper": LOOP + "{{ '<' + m.role + '>' + m.content | upper }}{% endfor %}",
    "last_alone": "{{ '<user>' + messages[-1].content + '<assistant>' }}",
    "cut_at_a_number": LOOP
    + "{{ '<' + m.role + '>' + m.content.split('.')[0] }}{% endfor %}{{ '<assistant>' }}",
    "reads_texts": LOOP + "{{ '<' + m.role + '>' + m.content | replace('.', '') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
    "refuses": "{{ raise_exception('not today') }}",
    "broken": "{% for m in messages %}",
    "braces": LOOP + "{{ '<' + m.role + '>{' + '{' + m.content }}{% endfor %}",
    "control": LOOP + "{{ '\x07' + m.role + m.content }}{% endfor %}",
}
