r"""Prompts out of templates.

A language's file has slots and templates:

    @topic
    tea | the sea | {person}'s childhood

    # creative
    (Write|Compose) a (|short )poem about {topic}.

Under `@name` stand the values of a slot, separated by " | "; under `# label` stand templates, one a line. `(a|b)` is a
choice, `{name}` a value of that slot, `\n` a new line. `{opener}` and `{closer}` are added around some prompts. What a
language does not define it takes from English (code, names, numbers).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

FOLDER = Path(__file__).parent

_choice = re.compile(r"\(([^()|]*\|[^()]*)\)")
_slot = re.compile(r"\{(\w+)\}")

OPENED, CLOSED, BARE, FLAT, LONG, FRAMED = 0.15, 0.12, 0.15, 0.1, 0.3, 0.3
"""Shares of prompts with an opener, with a closer, without a final mark, on one line, with several passages, and, of
those without a passage, with one that has no bearing on them."""

HALF = 0.5


class Language(NamedTuple):
    """A file.

    Attributes:
        slots: values by name.
        templates: (label, template), in the file's order.
    """

    slots: dict[str, list[str]]
    templates: list[tuple[str, str]]


@functools.cache
def language(code: str) -> Language:
    """Read the file of a language, for example `de`."""
    slots: dict[str, list[str]] = dict(language("en").slots) if code != "en" else {}
    own: dict[str, list[str]] = {}
    templates = []
    label, values = "", None
    for line in (FOLDER / f"{code}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            values = own.setdefault(line[1:], [])
        elif line.startswith("# "):
            label, values = line[2:], None
        elif line and values is not None:
            values += line.split(" | ")
        elif line:
            templates.append((label, line.removeprefix("\\")))
    return Language(slots | own, templates)


def prompts(code: str, count: int, seed: str, draw: type[Random]) -> Iterator[tuple[str, int, list[str]]]:
    """Draw prompts of a language.

    Args:
        code: the language.
        count: drawn of each template; those drawn twice are one.
        seed: the same seed, the same prompts.
        draw: the generator's class.

    Yields:
        Label, how many of `count` bare expansions of the template differ, and the prompts, sorted.
    """
    slots, templates = language(code)
    for number, (label, template) in enumerate(templates):
        random = draw(f"{seed} {code} {number}")
        variety = len({expand(template, slots, random) for _ in range(count)})
        yield label, variety, sorted({_prompt(label, template, slots, random) for _ in range(count)})


def expand(template: str, slots: dict[str, list[str]], random: Random) -> str:
    """One prompt of a template."""
    text = template
    while found := _choice.search(text):
        text = text[: found.start()] + random.choice(found[1].split("|")) + text[found.end() :]
    start = 0
    while found := _slot.search(text, start):
        if found[1] in slots:
            text = text[: found.start()] + random.choice(slots[found[1]]) + text[found.end() :]
        else:  # braces of code or mathematics
            start = found.end()
    return re.sub(r"  +", " ", text.replace("\\n", "\n")).strip()


def _prompt(label: str, template: str, slots: dict[str, list[str]], random: Random) -> str:
    """One prompt as people send them: with a greeting or a wish, without a full stop, with a long text."""
    if "{passage}" in template:
        if random.random() < LONG:
            template = template.replace("{passage}", "{passage} " * random.choice((2, 3, 5)))
    elif random.random() < FRAMED:
        context = "{passage}" if random.random() < HALF else "{sentence}"
        template = f"{context}\\n{template}" if random.random() < HALF else f"{template}\\n{context}"
    text = expand(template, slots, random)
    if label != "chat_roleplay" and random.random() < OPENED:  # an opener may set a role, which here would be the task
        text = f"{expand('{opener}', slots, random)} {text}"
    if random.random() < CLOSED:
        text = f"{text}{random.choice((' ', chr(10)))}{expand('{closer}', slots, random)}"
    dice = random.random()
    if dice < BARE:
        return text.rstrip(".?!。\uff1f")
    return text.replace("\n", " ") if dice < BARE + FLAT else text
