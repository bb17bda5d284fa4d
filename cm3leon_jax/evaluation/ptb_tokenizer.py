r"""Tokenizes captions as the COCO caption evaluation does: the Penn Treebank's conventions, lower case, no punctuation.

Gives what `PTBTokenizer -preserveLines -lowerCase` of Stanford CoreNLP 3.4.1 gives, after which that evaluation removes
punctuation (arXiv 1504.00325, section 3.2); its Java is not needed. The rules were found by what that program makes of
texts, and are stated here as a scanner: at each position the rule with the longest match wins, what a rule looks ahead
to counted in, and of equal ones the first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cm3leon_jax.evaluation.ptb_characters import DIACRITICS, DIGITS, LETTERS, SYMBOLS, character_class

# Tokens that are removed. Brackets are "-lrb-" and "-rrb-" by then, in lower case, and stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# The parts of the rules' patterns.
_SPACE = r"(?:[ \t\u00a0\u2000-\u200a\u3000\n\r\x0b\x0c\x85\u2028\u2029]|&nbsp;)"
_BLANK = r"[ \u00a0]"
_LETTER = rf"[a-zA-Z{character_class(LETTERS)}]"
_ALPHANUMERIC = rf"[a-zA-Z0-9{character_class(LETTERS, DIGITS)}]"
_DIGIT = rf"[0-9{character_class(DIGITS)}]"
# Those of a simple word: diacritics and soft hyphens, too.
_WORD_LETTER = rf"(?:[a-zA-Z\u00ad{character_class(LETTERS, DIACRITICS)}]|&[aeiouAEIOU](?:acute|grave|uml);)"
_WORD_CHARACTER = rf"(?:{_WORD_LETTER}|{_DIGIT})"
_CURLY = r"[`\x91\u2018\u201b]"
_APOSTROPHE = r"(?:['\x92\u2019]|&apos;)"
_ANY_APOSTROPHE = rf"(?:{_APOSTROPHE}|{_CURLY})"
_AMPERSAND = r"(?:&amp;|&AMP;|&)"
_ENDING = rf"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_PREFIX = rf"[dDoOlL]{_ANY_APOSTROPHE}{_ALPHANUMERIC}"

# A simple word, also of sentences with no space between them.
_WORD = rf"{_WORD_LETTER}{_WORD_CHARACTER}*(?:[.!?]{_WORD_LETTER}{_WORD_CHARACTER}*)*"
# o'clock, well-known, l'or, horse_1.
_COMPOUND = rf"(?:{_PREFIX})?{_ALPHANUMERIC}+(?:[_\-\u058a\u2010\u2011](?:{_PREFIX})?{_ALPHANUMERIC}+)*"
# 1,000-seat, U.S.-U.K.
_HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"
# AT&T.
_INITIALS = rf"[A-Z]+(?:(?:\+|{_AMPERSAND})[A-Z]+)+"
_SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
# What shows that the period before it ends no sentence.
_GOES_ON = r"[,;:\u3001]"

_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_TAG_VALUE = r"""(?:'[^'\r\n]*'|"[^"\r\n]*")"""
_TAG = rf"{_TAG_NAME}(?: +(?:{_TAG_NAME} *= *{_TAG_VALUE}|{_TAG_NAME}))* */?"
# Two characters of an address or more, of which the last is no punctuation.
_ADDRESS = r"""[^ \t\n\f\r"<>|()]{2,}(?<![.!?,{}\-])"""
_WWW = r"""www\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"""
_SITE = r"(?:(?:[#%&*+a-z~]|[^\x00-\x7f])+\.)+(?:com|net|org|edu)"
_HOST = r"""[^ \t\n\f\r"<>|(){}.\u00a0]+"""
_EMAIL = rf"""(?:&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){{}}\u00a0]*@{_HOST}(?:\.{_HOST})*(?:&gt;|>)?"""
_AREA = r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[\- \u00a0])?[0-9]{2,4}[\- \u00a0])"

# Words of two tokens: the second begins after "|".
_PAIRS = ("can|not", "gon|na", "got|ta", "wan|na", "gim|me", "lem|me")
# Words with an apostrophe of their own, of whatever kind and of ASCII's alone.
_IRREGULAR = "'em|'till?|'cause|dunkin'|somethin'|ol'|c'est|cap'n"
_IRREGULAR_ASCII = "c'mon|nor'easter|s'mores|ev'ry|li'l|nat'l|e'er|s&ls"
# Abbreviations that keep their period, whatever follows. Titles and the like, in any case:
_TITLES = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|mme|mlle|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|"
    "pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|insp|dept|assoc|ph|alex|wm|jos|cie|vs|cf|ft|mt|natl|treas|asst|"
    "adj|adv|ens|msgr|sfc"
)
# Months, days, states and companies, in any case; words unless they have a capital; and four with small letters.
_NAMES = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|"
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|"
    "sr|jr|bros|esq|blvd|rd|sq|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|etc|al|seq|est|ext|tel|bldg|"
    r"elec|invt|(?:ph|ed)\.d"
)
_CAPITALIZED = "az|ark|del|ill|la|mass|miss|ore|pa|tex|wash"
_SMALL = "[Pp]p?tys?|[Pp]p?tes?|[Mm]fg|[Mm]tg"
# Those that keep it before a digit alone.
_BEFORE_DIGITS = "ca|nos?|prop|op|figs?|art|pp"
# After a single letter and a period, these begin a sentence.
_STARTERS = (
    r"A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\.|Ms\.|"
    "Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet|You"
)
_EXTENSIONS = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip"
)
_WRITTEN = (
    dict(zip("¼½¾⅓⅔", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True))
    | dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
    | dict.fromkeys("`\x91‘‛‹", "`")
    | dict.fromkeys("\x92’›", "'")
    | dict.fromkeys("\x93“«", "``")
    | dict.fromkeys("\x94”»", "''")
    | dict.fromkeys("\x80¤₠€", "$")
    | {"£": "#", "¢": "cents", "&lt;": "<", "&gt;": ">"}
)


def _same(text: str) -> str:
    return text


def _as(token: str) -> Callable[[str], str]:
    return lambda _: token


def _by_table(text: str) -> str:
    return _WRITTEN.get(text) or "".join(_WRITTEN.get(character, character) for character in text)


def _without_soft_hyphens(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _with_ascii_apostrophe(text: str) -> str:
    return re.sub(_CURLY, "`", re.sub(_APOSTROPHE, "'", text))


def _with_ampersand(text: str) -> str:
    return re.sub(_AMPERSAND, "&", text)


def _unbroken(text: str) -> str:
    """Spaces within a token become such as do not end it."""
    return re.sub(r"\s", "\u00a0", text)


def _with_named_parentheses(text: str) -> str:
    return _unbroken(text).replace("(", "-lrb-").replace(")", "-rrb-")


@dataclass(frozen=True)
class _Rule:
    """A kind of token: its pattern, how it is written, and the pattern of what has to follow."""

    token: str
    write: Callable[[str], str] = _same
    ahead: str = ""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        # Without ASCII, "i" in any case is Turkish letters, too.
        return re.compile(f"({self.token})(?:{self.ahead})", re.ASCII)


_RULES = (
    _Rule(rf"<(?:[!?][A-Za-z\-][^>\r\n]*|{_TAG}|/{_TAG_NAME}) *>", _unbroken),
    _Rule(r"[\x96\x97\u2013\u2014\u2015]|&(?:MD|mdash|ndash);|-{2,4}", _as("--")),
    _Rule(r"-{5,}"),
    _Rule(_AMPERSAND, _as("&")),
    _Rule(r"&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    *(
        _Rule(rf"(?i:{first})", ahead=rf"(?i:{second})(?!{_WORD_CHARACTER})")
        for first, _, second in (pair.partition("|") for pair in _PAIRS)
    ),
    _Rule(r"'[tT]", ahead=r"(?i:is|was)"),
    # Addresses.
    _Rule(rf"(?i:https?)://{_ADDRESS}"),
    _Rule(_WWW),
    _Rule(rf"{_WWW}/{_ADDRESS}"),
    _Rule(rf"{_SITE}(?:/{_ADDRESS})?", _without_soft_hyphens),
    _Rule(_EMAIL),
    _Rule(r"@[a-zA-Z_][a-zA-Z_0-9]*"),
    _Rule(rf"\#{_WORD_LETTER}+"),
    # Simple words, and endings.
    _Rule(r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _without_soft_hyphens, ahead=rf"[nN]{_ANY_APOSTROPHE}[tT]"),
    _Rule(_WORD, _without_soft_hyphens, ahead=_ENDING),
    _Rule(_WORD, _without_soft_hyphens),
    _Rule(rf"{_WORD}\.", _without_soft_hyphens, ahead=_GOES_ON),
    _Rule(rf"(?:(?i:{_NAMES})|(?=[A-Z])(?i:{_CAPITALIZED})|{_SMALL})\.", ahead=r"(?:.|\n){0,2}"),
    _Rule(_ENDING, _with_ascii_apostrophe, ahead=r"[^A-Za-z]"),
    _Rule(rf"[nN]{_ANY_APOSTROPHE}[tT]", _with_ascii_apostrophe),
    # Words with an apostrophe, a hyphen, an underscore, an ampersand or a slash in them.
    _Rule(rf"{_APOSTROPHE}[nN]{_APOSTROPHE}?|[lLdDjJ]{_APOSTROPHE}"),
    _Rule(rf"(?i:{_IRREGULAR_ASCII})"),
    _Rule(rf"(?i:{_IRREGULAR})".replace("'", _APOSTROPHE)),
    _Rule(rf"[oO]{_ANY_APOSTROPHE}[oO]"),
    _Rule(rf"[A-HJ-XZn]{_ANY_APOSTROPHE}{_LETTER}{_LETTER}+"),
    _Rule(rf"{_LETTER}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_LETTER}*"),
    _Rule(rf"[yY]{_APOSTROPHE}", ahead=_LETTER),
    _Rule(rf"{_APOSTROPHE}[0-9]0[sS]"),
    _Rule(rf"{_APOSTROPHE}[0-9][0-9]", ahead=_SPACE),
    _Rule(_COMPOUND),
    _Rule(_INITIALS, _with_ampersand),
    _Rule(rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}"),
    _Rule(_HYPHENATED, _without_soft_hyphens),
    _Rule(r"(?i:c\+\+|[cf]\#)"),
    # Abbreviations and files.
    _Rule(r"[A-Za-z]", ahead=rf"\.{_SPACE}+(?=[A-Z])(?i:{_STARTERS}){_SPACE}"),
    _Rule(rf"(?i:{_TITLES}|[a-z](?:\.[a-z])*)\."),
    _Rule(rf"(?i:{_BEFORE_DIGITS})\.", ahead=rf"{_SPACE}?{_DIGIT}"),
    _Rule(rf"{_WORD_CHARACTER}+(?:\.{_WORD_CHARACTER}+)*\.(?i:{_EXTENSIONS})", ahead=rf"{_SPACE}|[.?!,]"),
    # Numbers: dates, fractions, powers, of telephones.
    _Rule(r"[0-9]{1,2}[\-/][0-9]{1,2}[\-/][0-9]{2,4}"),
    _Rule(rf"[+\-]?{_NUMBER}", _without_soft_hyphens),
    _Rule(rf"(?:{_COMPOUND})\.", ahead=_GOES_ON),
    _Rule(rf"(?:{_INITIALS})\.", _with_ampersand, ahead=_GOES_ON),
    _Rule(rf"(?:{_HYPHENATED})\.", _without_soft_hyphens, ahead=_GOES_ON),
    _Rule(rf"(?:{_DIGIT}{{1,4}}[\- \u00a0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}", _unbroken),
    _Rule(r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    _Rule(rf"{_AREA}[0-9]{{3,4}}[\- \u00a0]?[0-9]{{3,5}}", _with_named_parentheses),
    _Rule(r"[A-Z]*\$|\#"),
    # Faces: eyes, nose and mouth, and those in parentheses.
    _Rule(r"[<>]?[:;=][\-o*']?[()\[\]{DOPdp@|\\]", _with_named_parentheses, ahead=r"[^A-Za-z0-9]"),
    _Rule(r"[\-\^x=~<>']_[\-\^x=~<>']", _with_named_parentheses),
    _Rule(r"\((?:[\-\^x=~<>'][_.]?[\-\^x=~<>']|[\^x=~<>']-[\^x=~<>'`])\)", _with_named_parentheses),
    # Quotes: what follows decides whether they open.
    _Rule(r"\"|&quot;", _as("``"), ahead=r"[A-Za-z0-9$]"),
    _Rule(r"\"|&quot;", _as("''")),
    _Rule(r"'", _as("`"), ahead=r"[A-Za-z][^ \t\n\r\u00a0]"),
    _Rule(_ENDING, _with_ascii_apostrophe),
    _Rule(r"''|``"),
    _Rule(r"[`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a]{1,2}", _by_table),
    _Rule(_APOSTROPHE, _as("'")),
    # Other punctuation and symbols.
    _Rule(rf"\.{{3,5}}|(?:\.{_BLANK}){{2,4}}\.|[\x85\u2026]", _as("...")),
    _Rule(r"[?!]+|@+|\#{2,}|_+|\*+|(?:\\\*){1,3}|<<|>>"),
    _Rule(r"&[lg]t;|[()\[\]{}¼½¾⅓⅔\x80¤₠€£¢]", _by_table),
    _Rule(rf"[!-/:-@\[-`{{-~{character_class(SYMBOLS)}]"),
)
_SPACES = re.compile(rf"{_SPACE}+")
# A word that no other rule can match more of.
_PLAIN = re.compile(r"[A-Za-z]+(?= |, |$)")
_NOT_PLAIN = frozenset(pair.replace("|", "") for pair in _PAIRS)


def ptb_tokens(text: str) -> Iterator[str]:
    """Yields the tokens of a text in lower case, punctuation included."""
    position, length = 0, len(text)
    # What follows a token may be the end of the text.
    text += "\n"
    while position < length:
        plain = _PLAIN.match(text, position)
        if plain and (word := plain[0].lower()) not in _NOT_PLAIN:
            yield word
            position = plain.end()
            continue
        space = _SPACES.match(text, position)
        longest = end = space.end() if space else position
        token = ""
        # Other spaces than these may begin an address.
        for rule in () if text[position] in " \t\n" else _RULES:
            found = rule.pattern.match(text, position)
            if found and found.end() > longest:
                longest, end, token = found.end(), found.end(1), rule.write(found[1])
        if token:
            yield token.lower()
        # A character of no rule is skipped.
        position = max(end, position + 1)


def caption_tokens(text: str) -> list[str]:
    """The tokens of a caption that its scores count."""
    return [token for token in ptb_tokens(text) if token not in PUNCTUATION]
