"""Captions of every kind of punctuation, by a seed: what the tokenizers of captions are compared on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

# fmt: off
_NOUNS = (
    "man", "woman", "dog", "cat", "horse", "train", "bus", "kite", "pizza", "bench", "umbrella", "boy", "girl",
    "clock", "giraffe", "skateboard", "laptop", "vase", "surfboard", "truck", "bowl", "sandwich", "child", "zebra",
)
_ADJECTIVES = (
    "red", "small", "wooden", "old", "striped", "shiny", "wet", "empty", "large", "bright", "yellow",
)
_VERBS = (
    "holding", "near", "riding", "next to", "looking at", "behind", "under", "on top of", "beside", "eating",
)
_PLACES = (
    "in a park", "on the beach", "at night", "in the kitchen", "by the road", "on a table", "in the snow",
)
_NAMES = (
    "John", "Mary", "Anna", "O'Brien", "Luis", "Kim", "Yusuf", "Nadia", "Omar", "McDonald", "Zoë", "Björn",
)
_WORDS = (*_NOUNS, *_ADJECTIVES)

# What may stand in a sentence, by kind; {n} is a noun, {a} an adjective, {N} a name, {d} and {dd} numbers of one and
# two digits, {y} a year.
_PARTS: dict[str, tuple[str, ...]] = {
    "plain": (
        "and a {a} {n}", "with the {n}", "while the {n} waits",
    ),
    "comma": (
        ", a {a} {n}, and a {n}", ", {a}, {a}", ", with a {n} ,", ",a {n}",
    ),
    "end": (
        ".", "!", "?", "!!", "?!", "??", "!!!", "!?", " .", " !", ". ", ".  ", "..", "...", "....", ". . .", " ...",
    ),
    "sentences": (
        ". The {n} is {a}.", ". It is {a}. A {n} waits.", "! Look at the {n}! It's {a}.", ".The {n} is {a}.",
        ".  He waits.", "? Yes, a {n}.", ". {N} and {N} laugh.", ".. a {n}", ".it is {a}", ".This {n}.That {n}",
    ),
    "colon": (
        ": a {n}", "; a {n}", ":a {n};a {n}", " : {n} ; {n}", ": {n}, {n}; {n}.", "::", ";;", " :- {n}",
    ),
    "double_quotes": (
        'saying "stop"', 'that says "{a} {n}."', '"{n}"', 'with a "{N}" sign', '" {n} "', '"{n}', '{n}"', '""',
        'the sign reads "No {n}s!"', '("{n}")', '"{a}", "{n}"', '"{a}-{n}"', 'a 10" {n}', '5\'10" tall',
    ),
    "single_quotes": (
        "saying 'stop'", "'{a} {n}'", "that reads 'No {n}'.", "'{n}s'", "' {n} '", "'{n}", "''{n}''", "'{a}', '{n}'",
        "``{n}''", "`{n}'", "`{n}`", "``", "''", "'", "` {n}", "the word '{n}' on it",
    ),
    "curly_quotes": (
        "“{n}”", "saying “stop!”", "‘{n}’", "the “{a}” {n}", "„{n}“", "«{n}»", "‹{n}›", "“ {n} ”", "‚{n}‘", "‛{n}",
        "{N}’s {n}", "it’s {a}", "don’t", "“{n},” says {N}", "‘{a}’ {n}s’", "they’re {a}", "we’ve", "″{n}″", "5′ 3″",
    ),
    "contractions": (
        "that isn't {a}", "they're {a}", "I'm with a {n}", "we've a {n}", "she'll wait", "he'd go", "it's {a}",
        "can't move", "won't go", "doesn't", "didn't", "couldn't've", "who's {a}", "there's a {n}", "what's that",
        "y'all", "ain't", "let's go", "that'll do", "shan't", "mustn't", "I'd've", "CAN'T", "ISN'T", "IT'S", "WE'RE",
        "isnt", "dont", "its", "im", "youre", "Won't", "Don't", "He'd", "You'll", "THEY'LL", "n't", "'s", "'ll", "s'",
    ),
    "archaic": (
        "'tis a {n}", "'twas {a}", "'Tis {a}", "o'clock", "5 o'clock", "rock 'n' roll", "rock'n'roll", "ma'am",
        "ol' {n}", "'em", "get 'em", "'cause it is {a}", "'til dawn", "goin' out", "ridin' a {n}", "d'ye",
        "fish 'n chips", "the '90s", "a '57 {n}", "the 1990's", "in '08", "Hallowe'en", "'bout", "singin'",
        "cap'n {N}", "jack-o'-lantern", "somethin' {a}", "O' the {n}", "d'oeuvres", "hors d'oeuvre", "l'orange",
        "D'Angelo", "L'Oreal", "qu'il", "j'ai", "ne'er", "e'er", "o'er", "will-o'-the-wisp", "y'know", "c'mon",
        "C'mon", "'n'", "'n", "n'", "more'n a {n}",
    ),
    "possessives": (
        "the {n}'s {n}", "the {n}s' {n}", "{N}'s {n}", "James' {n}", "James's {n}", "the {n} 's {n}",
        "children's {n}", "men's {n}", "a {n}'S {n}", "{N}'s and {N}'s", "the boss's", "5's", "the A's", "{n}s'",
        "{N}'", "U.S.'s {n}",
    ),
    "cannot": (
        "cannot go", "gonna eat", "gotta go", "wanna {n}", "gimme a {n}", "lemme see", "Cannot", "GONNA", "Wanna",
        "dunno", "kinda {a}", "sorta", "outta", "whatcha", "gotcha", "lotta {n}s", "wannabe", "cannots", "coulda",
    ),
    "hyphens": (
        "a {a}-{n}", "black-and-white {n}", "a well-known {n}", "a {dd}-year-old {n}", "T-shirt", "x-ray",
        "a {a} - {n}", "{n}-", "-{n}", "two -{n}s", "{n}- {n}", "close-up", "half-{a}", "mid-air", "3-D", "4-wheel",
        "e-mail", "A-frame", "pre-1990", "{n}-{n}-{n}", "up-to-date", "-", "o-{n}-o", "co-worker's", "re-entry",
        "U-turn", "anti-{n}", "non-{N}", "{N}-{N}", "self-portrait", "{d}-{n}", "{dd}-foot", "a-{n}", "{n}-{d}",
        "{a}-{a} {n}", "-{a}-", "Coca-Cola's",
    ),
    "dashes": (
        "-- a {n}", "--a {n}", "{n}--{n}", "{n} — a {n}", "{n}—{n}", "{n} – {n}", "{n}–{n}", "--- {n}", "{n}---{n}",
        "----", "― {n}", "− {n}", "‐{n}", "{a}‑{n}", "------", "{dd}–{dd}", "{dd}—{dd}", "—", "– –", "--{n}--",
        "{dd}--{dd}", "-- -", "{n} &mdash; {n}", "&ndash;", "~ {n}", "{n}~{n}", "{n} _ {n}", "{n}_{n}", "__",
        "{a}_{n}_{d}", "===", "{n}={n}",
    ),
    "ellipses": (
        "... a {n}", "{n}...{n}", "{n}... {n}", "{n} ...", "… {n}", "{n}…", "{n}…{n}", ". . . {n}", "..{n}",
        "....{n}", "{n} . . .", "{n}....", "..", "{n} .. {n}", "{n}. . .{n}", "…", "......", "{n}..... {n}",
        "... ...", ". .", "….",
    ),
    "numbers": (
        "{dd} {n}s", "1,000 {n}s", "10,500.75", "3.5 {n}s", ".5", "0.5", "-5", "+3", "{d}.", "{dd},{dd}",
        "{d},{d},{d}", "{dd}th", "1st", "2nd", "3rd {n}", "{y}", "{y}s", "the {dd}s", "{d}x{d}", "{d} x {d}",
        "{d}×{d}", "no. {d}", "{dd}/{dd}/{y}", "{y}-01-{dd}", "{d}:{dd}", "{d}:30pm", "{d}pm", "{d} pm",
        "{d}:{dd}:{dd}", "{dd}:{dd}", "#{d}", "{dd}kg", "{dd} km/h", "{d}ft", "{dd}mm", "{d}'", "{d}D", "MP3", "B2B",
        "{d}+{d}={d}", "({dd})", "{y}-{y}", "{d}-{d}", "1,00", "{d}. {n}", "{d}) {n}", "${d}", "1.2.3",
        "{dd}.{dd}.{y}", "10^{d}", "1e5", "0x1F", "007", "{d} 000", "٣", "x²", "m³", "H₂O", "10⁵", "½²", "-{d}.{d}",
        "+{d},{dd}", "{d}.{d}.", "{d},", "(-{d})", "{d}-", "No.{d}", "№{d}",
    ),
    "fractions": (
        "1/2 {n}", "1 1/2 cups", "3/4 full", "½ {n}", "2½ {n}s", "2 ½", "¼", "¾ of a {n}", "⅓", "1-1/2", "1/2-inch",
        "{d}/{d}/{d}", "1⁄2", "{dd}/{dd}", '1/2"', "1 / 2", "24/7", "9/11", "1/2/2014", "5 3/4", "1/1000", "⅛",
        "1½-inch",
    ),
    "currency": (
        "${d}", "$ {d}", "${d}.{dd}", "US${d}", "£{d}", "€{d}", "{d}€", "¥{dd}", "{dd}¢", "{d} €", "{d}$", "A${d}",
        "HK$ {d}", "$1,000", "$1m", "$5-$10", "$$$", "C$5", "₹{dd}", "₽{d}", "฿{d}", "₩{d}", "#{dd}", "-${d}",
        "$-{d}", "£{d}m", "$5bn", "¤5", "₤{d}", "{dd} cents", "$.50", "5c", "$20-a-day", "$1/{n}", "U.S.$5", "R$5",
        "NT$5", "us$5", "$", "£", "Rs.5",
    ),
    "percent": (
        "{dd}%", "{dd} %", "100%.", "{d}.{d}%", "%{d}", "{dd}%-off", "{dd}‰", "5-10%", "%", "50%off", "-{d}%", "%%",
    ),
    "abbreviations": (
        "Mr. {N}", "Mrs. {N}'s {n}", "Ms. {N}", "Dr. {N}", "St. {N}", "Prof. {N}", "Gen. {N}", "Sgt. {N}", "Rev. {N}",
        "Jr.", "{N} Jr. and {N}", "Sr.", "{N}, Esq.", "Ph.D.", "M.D.", "B.A.", "U.S.", "the U.S. flag", "U.K.",
        "U.S.A.", "U.N. {n}", "D.C.", "Washington, D.C.", "L.A.", "N.Y.", "a.m.", "9 a.m. today", "p.m.", "9 P.M.",
        "5p.m.", "A.M.", "e.g. a {n}", "i.e. {a}", "etc.", "etc. and more", "vs. {N}", "{n} v. {n}", "approx. {d}",
        "Inc.", "Co.", "Corp.", "Ltd.", "Jan. 5", "Feb. {d}", "Mar. {d}", "Apr. {d}", "Aug. {y}", "Sept. {d}", "Oct.",
        "Nov. {d}", "Dec. 25", "Mon.", "Tues.", "Wed. night", "Thurs.", "Fri. {d}", "Sat.", "Sun.", "No. 5", "Nos. 5",
        "p. {d}", "pp. {d}", "fig. {d}", "Ave.", "{N} Ave. sign", "Blvd.", "Rd.", "Main St.", "Main St. corner",
        "Mt. {N}", "Ft. {N}", "J. {N}", "J. K. {N}", "J.K. {N}", "a.k.a. {N}", "R.I.P.", "w.r.t.", "ft. tall",
        "in. tall", "lbs.", "oz.", "sq. ft.", "max. {d}", "est. {y}", "Calif.", "Fla.", "Mass.", "Pa.", "Okla.",
        "Tex.", "Ill.", "Va.", "Conn.", "Dept.", "Sen. {N}", "Rep. {N}", "Gov. {N}", "Pres. {N}", "Lt. {N}",
        "Col. {N}", "Capt. {N}", "Maj. {N}", "Cmdr.", "Hon.", "Messrs. {N}", "Mme. {N}", "Mlle. {N}", "Bros.",
        "Warner Bros. {n}", "Assn.", "Univ.", "al.", "et al. {n}", "cf. {n}", "Op. {d}", "Vol. {d}", "ed.", "Cie.",
        "Elev.", "u.s.", "usa.", "mr. {N}", "dr. who", "st. {N}", "No.", "no.", "Alt. {n}", "ca. {y}", "c. {y}",
        "E. {N}", "{n} A. The", "mt. {N}", "jan. {d}", "a.m", "U.S", "T.V.", "TV.", "B.C.", "A.D.", "B.C.E.", "I.D.",
        "D.J. {N}", "q.v.", "viz. {n}",
    ),
    "web": (
        "http://example.com", "https://www.example.org/a/b?c=d&e=f", "www.{n}.com", "{n}.com", "{n}.org.",
        "{n}.co.uk", "{n}@example.com", "{n}.{n}@mail.{n}.edu", "<{n}@example.com>", "ftp://{n}.net",
        "HTTP://EXAMPLE.COM", "Www.{n}.net", "http://{n}.com.", "(http://{n}.com)", "{n}.net/{n}", "@{n}", "@{N}_{d}",
        "#{n}", "#{N}{d}", "#{d}{n}", "# {n}", "@ {n}", "{n}.jpg", "{n}.png", "IMG_{dd}.JPG", "{n}.txt.",
        "index.html", "{n}_{d}.gif", "{n}.mp3", "{n}.xyz", "/home/{n}", "C:\\{n}", "RT @{n}", "{n}@", "www.{n}",
        "{n}.io", "{N}.com's", "www.{n}.com/{n}.html", "{n}@{n}", "http://", "{n}.gov", "http://{n}.com/~{n}",
        "https://{n}.io/a_(b)", "http://{n}.com, and", "mailto:{n}@{n}.com", "##{n}", "#", "@", "##",
    ),
    "brackets": (
        "({n})", "( {n} )", "({a} {n})", "[{n}]", "{{{n}}}", "<{n}>", "< {n} >", "({n}).", "(a {n}", "a {n})",
        "[{d}]", "()", "({dd})", "{n}({n})", "{n}(s)", "(s)he", "[[{n}]]", "(({n}))", "({n}, {n})", "[ {n} ]",
        "({d}-{d})", "<b>{n}</b>", "<br/>", "<br>", "{n} > {n}", "{n} < {n}", ">>", "<<", "->", "=>", "<-", "<{n}",
        "{n}>", "<!-- {n} -->", "(1)", "(a)", "{{", "}}", "[", "]", "⟨{n}⟩", "（{n}）", "「{n}」", "【{n}】",
        '<a href="x">{n}</a>', "</{n}>", "<3", "<{d}>", "[sic]",
    ),
    "slashes": (
        "{n}/{n}", "and/or", "{n} / {n}", "w/ a {n}", "w/o a {n}", "he/she", "{n}/", "/{n}", "a\\{n}", "\\{n}",
        "{n}\\/{n}", "{a}/{a}/{n}", "b/w", "//", "{n}//{n}", "1/{n}", "{n}/{d}", "AC/DC", "n/a", "c/o {N}", "{n}|{n}",
        "| {n}", "||", "\\",
    ),
    "ampersands": (
        "{n} & {n}", "{n}&{n}", "AT&T", "R&B", "B&B", "M&M's", "M&Ms", "&amp;", "{n} &amp; {n}", "A&W", "&", "&&",
        "P&O {n}", "&quot;{n}&quot;", "&lt;{n}&gt;", "&nbsp;", "&#39;", "&apos;", "Q&A", "R & B", "H&M", "a&w",
        "{N}&{N}", "it&apos;s",
    ),
    "symbols": (
        "*{n}*", "* {n}", "**{n}**", "{n}*", "+", "{n} + {n}", "{n}+{n}", "=", "{n} = {n}", "^", "{n}^{n}", "`", "~",
        "|", "@", "©", "®", "{N}®", "{N}™", "™", "{dd}°", "{dd}°C", "{dd} °F", "{dd}º", "§{d}", "¶", "•", "• {n}",
        "·", "{n}·{n}", "†", "→", "← {n}", "✓", "★", "♥", "♫", "☺", "∞", "≈ {d}", "≠", "±{d}", "×", "÷", "√{d}", "µm",
        "µ", "∆", "π", "Ω", "‡", "※", "C++", "C#", ".NET", "A+", "C-", "{n}++", "A*", "$$", "?", "¿{n}?", "¡{n}!",
        "、", "。", "，", "！", "？", "；", "：", "・", "🙂", "a 🐶 {n}", "{n}🐱", "👍🏽", "❤️", "🇺🇸",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "😀😀", "☀", "⚽ {n}", "✈️", "©{y}", "№", "℃", "Å", "ª", "¹", "½",
    ),
    "smileys": (
        ":)", ":-)", ";)", ":(", ":D", ":P", "=)", ":-D", ":'(", "<3", "XD", ":o", ":-/", "^_^", "8)", ":]", "(:",
        "B-)", ":|", "-_-", "o_o", "T_T", ">:(", ";-)", ":-P", ":p", "=D", ":-(", ":*", "=]", "(^^)", "(>_<)",
        "(-_-)", "D:", ":@", ":\\",
    ),
    "letters": (
        "café", "naïve {n}", "jalapeño", "crème brûlée", "Zürich", "piñata", "façade", "Ångström", "smörgåsbord",
        "über", "œuvre", "日本", "寿司 {n}", "Москва", "Ελλάδα", "مرحبا", "שלום", "한국", "ไทย", "हिन्दी", "İstanbul",
        "STRASSE", "straße", "ﬁsh", "cafe\u0301", "soft\xadhyphen", "{n}\xad", "\xad{n}", "\xad", "zero\u200bwidth",
        "non\xa0breaking", "a\u2009{n}", "{n}\u200d", "\ufeff{n}", "{N}'s café's", "L’Étoile", "d’or", "ÉCOLE",
        "Ævar", "Łódź", "İ", "ĳ", "ñ", "Ǆ", "ⅷ", "Ａ", "𝒜", "thе", "кот", "ありがとう。", "東京タワー", "{n}—日本", "ß",
        "ſ", "K",
        "rosé", "résumé's", "Beyoncé’s", "pho-bò", "l'été",
    ),
    "case": (
        "STOP", "NO PARKING", "iPhone", "eBay", "McDonald's", "LaTeX", "USA", "DVDs", "TVs", "PhD", "NYC's", "WiFi",
        "UPS",
    ),
    "spaces": (
        "  {n}", "\t{n}", "{n} ", " \u3000{n}", "{n}   {a}", "\xa0", "{n}\u2003{n}", " ", "\u2005",
    ),
    "mixed": (
        '({n}: "{a}")', '"{n}" (a {n})', "'{N}'s {n}'", "{n}'s-{n}", '{n},"{n}"', "{n};{n}", "{n}:{n}", '"\'{n}\'"',
        '\'"{n}"\'', "'{n},' {n}", "{n}!{n}", "{n}?{n}", "!{n}", "?{n}", ",{n}", ".{n}", "{d}.{n}", "{n}.{d}",
        "{n},{d}", "{d},{n}", "{n}...'", "({n}.)", '"{n}?"', '"{n}!" {N}', '{n}."', "{n}.'", "{n}',", "'{d}s",
        "{n}'{n}", '{n}"{n}', "({N}'s)", "[{n}'s {n}]", "{N}/{N}'s", "{n}s'/{n}s'", "-{n}'s", '"-{n}"', "'-{n}'",
        "--'{n}'", '..."{n}"', "({d}/{d})", "{d}%/{d}%", "${d}/{d}",
    ),
}
# fmt: on


def _filled(part: str, choose: random.Random) -> str:
    """Fills each field of a part, one after the other."""
    fields: dict[str, Callable[[], str]] = {
        "{n}": lambda: choose.choice(_NOUNS),
        "{a}": lambda: choose.choice(_ADJECTIVES),
        "{N}": lambda: choose.choice(_NAMES),
        "{dd}": lambda: str(choose.randrange(10, 100)),
        "{d}": lambda: str(choose.randrange(1, 10)),
        "{y}": lambda: str(choose.randrange(1900, 2030)),
    }
    part = part.replace("{{{n}}}", "{" + choose.choice(_NOUNS) + "}").replace("{{", "{").replace("}}", "}")
    for field, value in fields.items():
        while field in part:
            part = part.replace(field, value(), 1)
    return part


def _sentence(part: str, choose: random.Random) -> str:
    """A caption with the part at its beginning, within, or at its end."""
    subject = f"{choose.choice(('A', 'a', 'The', 'Two', 'the'))} {choose.choice(_WORDS)}"
    action = f"{choose.choice(_VERBS)} the {choose.choice(_NOUNS)}"
    place = choose.choice(_PLACES)
    joined = "" if part.startswith(tuple(",.;:!?")) and choose.random() < 0.8 else " "
    form = choose.randrange(5)
    if form == 0:
        return f"{part} {subject.lower()} {place}"
    if form == 1:
        return f"{subject} {action}{joined}{part}"
    if form == 2:
        return f"{subject}{joined}{part} {place}{choose.choice(('', '.', '.', ' .'))}"
    if form == 3:
        return f"{subject} {action} {place}{joined}{part}{choose.choice(('', '.', '!', '?'))}"
    following = choose.choice(("The", "He", "Some", "and", "with"))
    return f"{subject}{joined}{part} {following} {choose.choice(_NOUNS)} {place}."


def captions(seed: int, repeats: int = 1) -> Iterator[tuple[str, str]]:
    """Yields the kind and the text of captions: each part in `repeats` sentences, and some with parts of two kinds."""
    choose = random.Random(seed)
    kinds = list(_PARTS)
    for kind, parts in _PARTS.items():
        for part in parts:
            for _ in range(repeats):
                yield kind, _sentence(_filled(part, choose), choose)
    for _ in range(300 * repeats):
        first, second = (_filled(choose.choice(_PARTS[choose.choice(kinds)]), choose) for _ in range(2))
        yield "pairs", _sentence(f"{first} {second}" if choose.random() < 0.7 else first + second, choose)
