"""Lines of text that are hard on a tokenizer, the same on every machine: for make_minilm.py and for the tests."""

import hashlib
import random
from collections.abc import Iterable, Iterator

import numpy as np

BLOCK = 100  # lines under one digest

WORDS = """
the of and Learning UNBELIEVABLE tokenization internationalisation pre-trained don't it's e-mail U.S.A. O'Neill x86_64
naïve café Ångström façade Zürich piñata jalapeño coöperate Dvořák Łódź İstanbul straße Ελληνικά ὀρθός Привет мир
supercalifragilisticexpialidocious https://example.org/a_b?c=d&e=%20 user@mail.example 3.14159 1,000,000 $9.99 50% C++
##ing [brackets] <tag> {braces} ---- ... ¿qué? “quoted” ‘single’ — – † ‡ § ¶ © ™ ½ ² ₂ ﬁ ﬂ Ⅷ ① ㎏ ℃ ℵ
מזל سلام हिन्दी ไทย 안녕하세요 カタカナ ひらがな がぎ
""".split()
SYLLABLES = "re un con ing er tion th qu str ab al in Mc de mo la KI zz x j ee ou ness ly gh ck wr 1 9 20 -".split()
CHINESE = "我爱北京天安门今天气很好们去公园散步机器学习模型需要多数据。，！？：；「」《》、…龘𠀀𪚥㐀豈"
EMOJI = ["😀", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "☺", "✂️", "1️⃣", "🧑🏿‍💻"]
MARKS = ["\u0301", "\u0308", "\u0327", "\u030a", "\u0323", "\u20dd", "\u05b0", "\u0e31", "\u3099", "\U000e0061"]
# Control characters, spaces that are none to the eye, marks of direction and order, private and unassigned characters.
CONTROL = (
    "\t\r\n\x00\x01\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x85\x9f\xa0\xad\u1680\u180e\u2000\u2003\u2009\u200b\u200c\u200d\u200e"
    "\u200f\u2028\u2029\u202a\u202e\u202f\u205f\u2060\u2066\u3000\ue000\ufdd0\ufe0f\ufeff\ufff9\ufffd\uffff\U000f0000\U0010ffff"
)


def mixed_lines(count: int, seed: int = 20181011) -> list[str]:
    """`count` texts of up to 24 parts: words of many scripts, Chinese, emoji, accents, control and stray characters."""
    number = random.Random(seed).random  # the one method whose numbers Python promises to keep

    def choose(things):
        return things[int(number() * len(things))]

    def part() -> str:
        kind = number()
        if kind < 0.2:  # no word, but made of common pieces
            return "".join(choose(SYLLABLES) for _ in range(1 + int(number() * 5)))
        if kind < 0.45:
            word = choose(WORDS)
            return choose((word, word, word.upper(), word.lower(), word.title(), word + choose(MARKS)))
        if kind < 0.6:
            return "".join(choose(CHINESE) for _ in range(1 + int(number() * 6)))
        if kind < 0.68:
            return choose(EMOJI)
        if kind < 0.8:  # inside of a word
            word, at = choose(WORDS), int(number() * 4)
            return word[:at] + choose(CONTROL) + word[at:]
        if kind < 0.9:
            return choose(CONTROL)
        if kind < 0.91:
            return choose("aé漢") * (90 + int(number() * 20))  # WordPiece gives words up after 100 characters
        stray = int(number() * 0x11000)
        return chr(stray) if not 0xD800 <= stray < 0xE000 else choose(MARKS)

    lines = []
    for _ in range(count):
        parts = [part() for _ in range(int(number() * 25))]
        lines.append("".join(text + choose((" ", " ", " ", "", "  ")) for text in parts))
    return lines


def digests(ids_of_lines: Iterable[Iterable[int]]) -> Iterator[str]:
    """A digest for each block of lines, of the number of ids in each line and of the ids."""
    lines = [np.asarray(list(ids), "<i4") for ids in ids_of_lines]
    for begin in range(0, len(lines), BLOCK):
        digest = hashlib.blake2b(digest_size=8)
        for ids in lines[begin : begin + BLOCK]:
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        yield digest.hexdigest()
