"""What in a request speaks of its intent, as short strings.

Most of them are words of the last user turn, cut to six letters, and pairs of neighbours: six letters fold
"summarize", "summary" and "summarise" into one and suit any alphabetic language; scripts that put no spaces between
words, and Hangul, whose endings vary, are read character by character. The system prompt's first words join them,
because applications put the task there. Cues beginning with "#" say what words cannot: tools, schemas, images, turns.

Reading is bounded: of a text only its beginning and its end, of a list only a few entries, so that a prompt of a
million tokens costs what one of a hundred does. People put their request at the beginning or at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import add, itemgetter
from typing import Any, Final

HEAD: Final = 120
"""Characters read of the beginning of the user's text."""

TAIL: Final = 80
"""Characters read of its end."""

SYSTEM_WINDOW: Final = 80
"""Characters read of the system prompt."""

LETTERS: Final = 6
"""Of a word, at most."""

WORDS: Final = 80
"""Words, or characters of scripts read by the character, kept of each end of what was read."""

FIRST_PAIRED: Final = 24
"""Words paired of the beginning of a text in ASCII: in the middle, pairs say little."""

LAST_PAIRED: Final = 12
"""Words paired of its end."""

MOST: Final = 4 * WORDS + 14
"""Features of any request, at most: words, pairs of them, cues."""

_TURNS_READ = 16
_PARTS_READ = 4
_TOOLS_READ = 8
_TOOL_CHARS = 100
_TOOLS = ("#tools", "#tools1", "#tools2", "#tools3", "#tools4")  # offered, and as many of their words in the prompt
_FIRST_TURN = 2  # messages: a system prompt and a question
_ENDS = {"\x01": "[start]", "\x02": "[end]"}
_SYSTEM_ROLES = ("system", "developer")
_JSON = ("json_object", "json_schema")
_ATTACHMENTS = ("image_url", "input_audio", "file")
_END = 33  # characters of the text's end in which a question mark says something
_LISTS = (list, tuple)
_MAPPINGS = (dict, Mapping)  # what most are comes first: asking an abstract class costs more than reading a few words

# Thai to Lao, Myanmar, Khmer, kana, Han, Hangul. \x01 and \x02 mark where the user's text begins and ends.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\x01\x02"
# ASCII and Latin-1 punctuation, general punctuation, and that of CJK, fullwidth forms, Arabic and Devanagari. (\W will
# not do: it holds the vowel signs of Indic scripts.)
_BREAK = r"\s!-/:-@\[-`{-~\xa1-\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\u060c\u061b\u061f\u0964\u0965"
_LETTER = f"[^{_BREAK}{_ALONE}]"
_words = re.compile(f"[{_ALONE}]|(?<!{_LETTER}){_LETTER}{{1,{LETTERS}}}").findall
# In ASCII, words are what is left between spaces once punctuation is blank, which takes half the time.
_BLANKED = bytes(ord(re.sub(f"[{_BREAK}]", " ", chr(code).lower())) for code in range(128)) + bytes(128)
_cut = itemgetter(slice(LETTERS))
_long_words = re.compile(f"(?<!{_LETTER}){_LETTER}{{4,{LETTERS}}}").findall


def features(request: Mapping[str, Any]) -> list[str]:
    """Read a Chat Completions body.

    Whatever a provider might accept is read as far as it can be; the rest is passed over.

    Args:
        request: the body as decoded JSON.

    Returns:
        At most `MOST` strings of at most 14 characters, some of them more than once.
    """
    words, paired, cues = _read(request)
    return [*words, *map(add, paired, paired[1:]), *cues]


def legible(request: Mapping[str, Any]) -> dict[str, str]:
    """The features of a request, each as people can read it: pairs with a space, the ends of the text by name."""
    words, paired, cues = _read(request)
    shown = {word: _ENDS.get(word, word) for word in words}
    pairs = {first + second: f"{shown[first]} {shown[second]}" for first, second in pairwise(paired)}
    return shown | pairs | {cue: cue for cue in cues}


def _read(request: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """The words of a request in order, those of them whose pairs with the next are read, and its cues."""
    messages = request.get("messages")
    if not isinstance(messages, _LISTS):
        messages = ()
    system = user = ""
    if messages and isinstance(first := messages[0], _MAPPINGS) and first.get("role") in _SYSTEM_ROLES:
        system = _text(first.get("content"))[:SYSTEM_WINDOW]
    for last in messages[: -_TURNS_READ - 1 : -1]:
        if isinstance(last, _MAPPINGS) and last.get("role") == "user":
            user = _text(last.get("content"))
            break
    else:
        last = None
    text = f"{system} \x01 {user} \x02" if system or user else ""
    if text.isascii():
        words = [*map(_cut, text.encode().translate(_BLANKED).decode().split())]
        paired = _ends(words, FIRST_PAIRED, LAST_PAIRED)
    else:
        text = text.lower()
        words = paired = _ends(_words(text), WORDS, WORDS)
    return words, paired, _cues(request, messages, last, text)


def _ends(words: list[str], first: int, last: int) -> list[str]:
    """Only so many of them from the beginning and from the end."""
    return words if len(words) <= first + last else [*words[:first], *words[-last:]]


def _cues(request: Mapping[str, Any], messages: Sequence[Any], last: object, text: str) -> list[str]:
    """What is not in the words."""
    cues = []
    end = text[-_END:]
    if "?" in end or "\uff1f" in end or "\u061f" in end:
        cues.append("#question")
    if "```" in text:
        cues.append("#fence")
    if len(messages) > _FIRST_TURN:
        cues.append("#turns")
    if messages and messages[-1] is not last:
        cues.append("#pending")
    if isinstance(last, _MAPPINGS) and not isinstance(content := last.get("content"), str):
        kinds = [part.get("type") for part in _parts(content) if isinstance(part, _MAPPINGS)]
        cues += [f"#{kind}" for kind in _ATTACHMENTS if kind in kinds]
    tools = request.get("tools") or request.get("functions")
    if isinstance(tools, _LISTS):
        cues += _TOOLS[: 1 + _words_shared(tools, text.lower())]
    response_format = request.get("response_format")
    if response_format and isinstance(response_format, _MAPPINGS) and response_format.get("type") in _JSON:
        cues.append("#json")
    return cues


def _words_shared(tools: Sequence[Any], text: str) -> int:
    """How many words of the text are in the names and descriptions of the tools, short ones left out."""
    described = []
    for tool in tools[:_TOOLS_READ]:
        function = tool.get("function", tool) if isinstance(tool, _MAPPINGS) else None
        if isinstance(function, _MAPPINGS):
            texts = (function.get("name"), function.get("description"))
            described += [text[:_TOOL_CHARS] for text in texts if isinstance(text, str)]
    return len({*_long_words(" ".join(described).lower())}.intersection(_long_words(text)))


def _text(content: object) -> str:
    """The beginning and the end of a text, or of the texts of parts together; images and the like have none."""
    if not isinstance(content, str):
        content = "\n".join([_text(text) for part in _parts(content) if isinstance(text := _part_text(part), str)])
    return content if len(content) <= HEAD + TAIL else f"{content[:HEAD]}\n{content[-TAIL:]}"


def _parts(content: object) -> Sequence[Any]:
    if not isinstance(content, _LISTS):
        return ()
    return content if len(content) <= 2 * _PARTS_READ else (*content[:_PARTS_READ], *content[-_PARTS_READ:])


def _part_text(part: object) -> object:
    return part.get("text") if isinstance(part, _MAPPINGS) else part
