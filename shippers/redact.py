"""Redact: personal data and credentials masked in text, before any disk or network sees them.

One implementation for the shippers and for the service, so that both call the same things secret.
What is masked: e-mail addresses, card numbers (known prefixes and a right checksum), bearer and
basic credentials, JWTs, private keys in PEM, access keys of well-known form, passwords in URLs,
and the values of ``key=value``, ``key: value``, ``"key": "value"``, ``--key value`` and
``<key>value`` wherever the key names a secret. The key stays, the value becomes ``[secret]``.

What always holds:

- ``mask(mask(x)) == mask(x)``; text without findings comes back as the very same object.
- Time is linear in the text: no pattern can backtrack over more than one token, and what is
  repeated is bounded.
- Most text holds nothing. So a few substring tests decide whether any pattern runs at all
  (``might_hold``), and they never miss what a pattern would find.

Masking errs on the safe side where a key says "secret", and on the readable side elsewhere: UUIDs,
time stamps, counts of tokens, file names and line numbers survive.

Not here: which fields of a record are masked (the service's ingest, the shippers' batcher).
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache

EMAIL = "[email]"
CARD = "[card]"
SECRET = "[secret]"  # noqa: S105 - what stands in a secret's place
JWT = "[jwt]"
PLACEHOLDERS = (EMAIL, CARD, SECRET, JWT)

# ---------------------------------------------------------------------------------------- names of secrets

# A word that makes a key secret wherever it stands in it: db_password, X-Client-Secret-2.
_SECRET_WORDS = frozenset(
    """
    password passwords passwd passwds passwort passphrase passphrases passcode pwd pwds pw pass secret secrets credential credentials apikey apikeys
    authorization cookie cookies jwt bearer sessionid sessid phpsessid jsessionid cvv cvc cvv2 ssn otp totp
    accesskey secretkey privatekey authtoken accesstoken refreshtoken idtoken clientsecret
    """.split()
)
# Endings of such words: dbpassword, PGPASSWORD.
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "secret", "apikey")
# A word that does so only at the end: access_token, but not token_count or max_tokens.
_SECRET_LAST_WORDS = frozenset({"token", "authtoken", "pin"})
# Several of them hold secrets, unless the value is a number: tokens=512 is a count.
_PLURAL_LAST_WORDS = frozenset({"tokens", "authtokens", "keys"})
_NUMBER = re.compile(r"\s*[+-]?[0-9][0-9.,_eE+-]*\s*\Z")
# "key" and "id" say nothing by themselves; these words before them do.
_KEY_QUALIFIERS = frozenset(
    """
    api access secret private encryption signing master account auth shared session ssh subscription client hmac
    aes rsa license app application admin deploy ingest
    """.split()
)
# Words after a secret word that make the key speak about the secret instead of holding it.
_ABOUT = frozenset(
    """
    count counts length len size type types expiry expires expired expiration ttl age id ids name names policy
    used limit required enabled disabled valid invalid reset changed changes attempts attempt file path url uri
    version status state error errors failed missing strength rotation rotated domain samesite httponly secure
    per at in
    """.split()
)
# After a dot these make it a file of source: Password.java:12.
_SOURCE_FILES = frozenset("c cc cpp cs ex go java js jsx kt php py rb rs scala swift ts tsx vue".split())
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@lru_cache(maxsize=4096)
def is_secret_key(name: str) -> bool:
    """Tell whether a field of this name holds a secret, so that its whole value is to be masked.

    >>> [is_secret_key(name) for name in ("db_password", "X-Api-Key", "accessToken", "session.id")]
    [True, True, True, True]
    >>> [is_secret_key(name) for name in ("max_tokens", "token_count", "primary_key", "password_reset_at")]
    [False, False, False, False]
    """
    words = _words(name)
    if not words:
        return False
    outer, _, end = name.rpartition(".")
    if outer and end in _SOURCE_FILES:
        return False
    if outer and words[-1] not in _ABOUT and is_secret_key(outer):
        return True  # api_key.value: what stands inside a secret is one
    last = words[-1]
    if last in _SECRET_LAST_WORDS or last.endswith("token"):
        return last != "pin" or len(words) == 1
    before = words[-2] if len(words) > 1 else ""
    if last == "key":
        return before in _KEY_QUALIFIERS or before in _SECRET_WORDS
    if last == "id":
        return before in ("session", "sess") or "".join(words[-3:]) == "accesskeyid"
    if last in _ABOUT:
        return False
    if last == "sid":
        return before == "connect"
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words)


def _words(name: str) -> list[str]:
    words = [word.lower() for word in _WORDS.findall(name)]
    while len(words) > 1 and words[-1].isdigit():
        words.pop()  # password2, api_key_1
    return words


@lru_cache(maxsize=4096)
def may_hold_secrets(name: str) -> bool:
    """Tell whether a field of this name holds a secret, or several if its value is no number.

    >>> [may_hold_secrets(name) for name in ("api_keys", "tokens", "password", "keys")]
    [True, True, True, False]
    """
    if is_secret_key(name):
        return True
    words = _words(name)
    if not words or words[-1] not in _PLURAL_LAST_WORDS:
        return False
    if len(words) == 1:
        return words[0] != "keys"
    return words[-2] in _KEY_QUALIFIERS or words[-2] in ("refresh", "bearer", "id")  # not max_tokens


# ---------------------------------------------------------------------------------------- prefilters

# Digits to 0, everything else to x; spaces and dashes are deleted. Thirteen zeros in a row may be a card.
_DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x78 for byte in range(256))
_MIN_CARD = b"0" * 13


# The tests below are written out: a loop over a tuple costs more than the searches.


def _might_hold_key(text: str) -> bool:
    """Tell whether a key that is_secret_key accepts may stand in ``text`` before a value."""
    if "=" not in text and ":" not in text and ">" not in text and "--" not in text and "%" not in text:
        return False
    lower = text.lower()
    return (
        "pass" in lower
        or "secret" in lower
        or "token" in lower
        or "key" in lower
        or "auth" in lower
        or "pw" in lower
        or "cookie" in lower
        or "sess" in lower
        or "credential" in lower
        or "jwt" in lower
        or "bearer" in lower
        or "pin" in lower
        or "otp" in lower
        or "cvv" in lower
        or "cvc" in lower
        or "ssn" in lower
        or "connect.sid" in lower
    )


def _might_hold_credential(text: str) -> bool:
    if " " not in text and "\t" not in text:
        return False
    lower = text.lower()
    return "bearer" in lower or "basic" in lower


def _might_hold_access_key(text: str) -> bool:
    return (
        "AKIA" in text
        or "ASIA" in text
        or "AIza" in text
        or "xox" in text
        or "k_live_" in text
        or "ghp_" in text
        or "gho_" in text
        or "ghs_" in text
        or "github_pat_" in text
        or "lsk_" in text
        or "sk-" in text
        or "glpat-" in text
        or "npm_" in text
    )


def _might_hold_card(text: str) -> bool:
    return _MIN_CARD in text.encode("utf-8", "replace").translate(_DIGITS, b" -")


def might_hold(text: str) -> bool:
    """Return False only if ``mask(text)`` changes nothing. Cheap, and right for joined texts too.

    Texts that give False when joined with line feeds need not be looked at one by one. What
    holds for a text with all its digits made 0 holds for the text, so it may be cached by shape.
    """
    return (
        "@" in text
        or "%40" in text
        or "%00" in text  # the shape of "%40"
        or "eyJ" in text
        or "-----BEGIN" in text
        or _might_hold_card(text)
        or _might_hold_key(text)
        or _might_hold_credential(text)
        or _might_hold_access_key(text)
    )


# ---------------------------------------------------------------------------------------- patterns
# Every repeated class starts at the border of its token (a look-behind), so a token is scanned once.

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*)",
    re.DOTALL,
)
_URL_PASSWORD = re.compile(r"(://[^\s/:@?#\"'<>]{0,256}:)(?!\[secret\]@)[^\s/?#\"'<>]{1,512}@")
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){1,3}")
_CREDENTIAL = re.compile(r"(?<![A-Za-z0-9])((?i:bearer|basic)[ \t]{1,8})([A-Za-z0-9._~+/-]{4,}={0,3})")
_ACCESS_KEY = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pos]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|[rs]k_live_[A-Za-z0-9]{10,255}|lsk_[A-Za-z0-9_]{28,60}|AIza[A-Za-z0-9_-]{35}"
    r"|sk-(?:(?:ant|proj|svcacct)-[A-Za-z0-9_-]{16,255}|[A-Za-z0-9]{32,255})|glpat-[A-Za-z0-9_-]{20,255}|npm_[A-Za-z0-9]{36})"
    r"(?![A-Za-z0-9_])"
)
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+(?:@|%40)((?:[\w-]+\.){1,32}(?:xn--[\w-]+|[^\W\d_]{2,}))")
# What an "@" with a dotted end is as well: systemd units, images for dense screens, frames of scripts.
_NO_DOMAIN = re.compile(
    r"\.(?:service|socket|timer|mount|target|slice|scope|png|jpe?g|gif|svg|webp|js|mjs|css|jar)\Z", re.IGNORECASE
)
_CARD = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9][.,])"
    r"(?:[0-9]{13,19}|[0-9]{4}([ -])(?:[0-9]{4}\1[0-9]{4}\1[0-9]{4}(\1[0-9]{1,3})?|[0-9]{6}\1[0-9]{4,5}|[0-9]{4}\1[0-9]{5}))"
    r"(?![0-9A-Za-z])(?!\.[0-9])"
)

_KEY = re.compile(
    r"(?<![A-Za-z0-9_.$-])([A-Za-z0-9_.$-]+)"
    r"((?:\\{0,8}[\"'`])?\]?(?:[ \t]{0,8}(?:=>|:=|==|[=:]|%3[DdAa])\s{0,8}|,[ \t]{0,8}(?=\\{0,8}[\"'`])|[ \t]{1,8}|>))"
)
_BARE_VALUE = re.compile(
    r"(?:[^\s,;&\"'`]+|[,;&](?!\s|\Z|[\"'`]|[\w.$-]{1,64}[ ]?[=:])|[\"'`](?![\s,;:&)}\]]|\Z)){1,256}"
)
_AUTH_SCHEME = re.compile(r"(?i:(bearer|basic|token|apikey|negotiate|ntlm)[ \t]{1,8})(?=[^\s,;])")
_AUTH_LONG_SCHEME = re.compile(r"(?i:digest|oauth|hawk|aws4-hmac-sha256|signature)[ \t][^\r\n]*")
_COOKIES = re.compile(r"[^\s=;,]{1,256}=[^\r\n\"']*")
# A list of headers in JSON: {"name": "X-Api-Key", "value": "…"}.
_PAIR = re.compile(
    r"([\"'](?:name|key|header)[\"']\s{0,8}:\s{0,8}[\"'](?P<key>[A-Za-z0-9_.-]{1,128})[\"']\s{0,8},\s{0,8}"
    r"[\"']value[\"']\s{0,8}:\s{0,8}(?P<quote>[\"']))(?:(?!(?P=quote))[^\\]|\\.){1,4096}",
    re.DOTALL,
)
_STRING_PREFIX = re.compile(r"[bBuUrR]{0,2}(\\{0,8})([\"'`])")
_HARMLESS = frozenset({"none", "null", "nil", "true", "false", "undefined", *PLACEHOLDERS})
_CLOSERS = ")]}>,;.\"'`\\"


def mask(text: str) -> tuple[str, int]:
    """Return ``text`` with secrets masked, and how many were.

    With nothing found it is the same object and 0.

    >>> mask("login of ann@example.com with password=hunter2")
    ('login of [email] with password=[secret]', 2)
    >>> mask("used tokens=512 of max_tokens: 4096")
    ('used tokens=512 of max_tokens: 4096', 0)
    """
    if not might_hold(text):
        return text, 0
    total = 0
    # What stands in a value's place may complete a pattern that was looked for before; a second look
    # finds that. Text with findings is rare, so looking twice costs little.
    for _ in range(8):
        text, count = _mask_once(text)
        if not count:
            break
        total += count
    return text, total


def mask_value(key: str, value: str) -> tuple[str, int]:
    """Return a field's value masked: all of it if ``key`` names a secret, else what ``mask`` finds.

    >>> mask_value("api_key", "abc"), mask_value("city", "Bern")
    (('[secret]', 1), ('Bern', 0))
    """
    if value and (is_secret_key(key) or (may_hold_secrets(key) and not _NUMBER.match(value))):
        return (value, 0) if _is_harmless(key, value) else (SECRET, 1)
    return mask(value)


def _is_harmless(key: str, value: str) -> bool:
    """Tell whether a secret's value tells nothing: absent, starred out already, a placeholder."""
    if value.lower() in _HARMLESS or not value.strip("*. "):
        return True
    # "pass=12 fail=0" counts tests, and PWD is a shell's working directory.
    return (key.lower() == "pass" and len(value) < 4 and value.isdigit()) or (key == "PWD" and value[0] == "/")


def _mask_once(text: str) -> tuple[str, int]:
    count = 0
    if "-----BEGIN" in text:
        text, n = _PEM.subn(SECRET, text)
        count += n
    if "://" in text and "@" in text:
        text, n = _URL_PASSWORD.subn(r"\1" + SECRET + "@", text)
        count += n
    if "eyJ" in text:
        text, n = _JWT.subn(JWT, text)
        count += n
    if _might_hold_key(text):
        text, n = _mask_keys(text)
        count += n
        if "value" in text:
            text, n = _substitute(_PAIR, _pair, text)
            count += n
    if _might_hold_credential(text):
        text, n = _substitute(_CREDENTIAL, _credential, text)
        count += n
    if _might_hold_access_key(text):
        text, n = _ACCESS_KEY.subn(SECRET, text)
        count += n
    if "@" in text or "%40" in text:
        text, n = _substitute(_EMAIL, _email, text)
        count += n
    if _might_hold_card(text):
        text, n = _mask_cards(text)
        count += n
    return text, count


def _substitute(pattern: re.Pattern[str], replace: object, text: str) -> tuple[str, int]:
    """Like ``subn``, but a match whose replacement is the match itself does not count."""
    parts: list[str] = []
    position = count = 0
    for match in pattern.finditer(text):
        found = match.group()
        new = replace(match)  # type: ignore[operator]
        if new != found:
            parts += (text[position : match.start()], new)
            position = match.end()
            count += 1
    if not count:
        return text, 0
    return "".join(parts) + text[position:], count


def _pair(match: re.Match[str]) -> str:
    return match.group(1) + SECRET if may_hold_secrets(match.group("key")) else match.group()


def _email(match: re.Match[str]) -> str:
    # git@github.com:team/project is where a project lies.
    is_place = match.group().startswith("git@") or _NO_DOMAIN.search(match.group(1))
    return match.group() if is_place else EMAIL


def _credential(match: re.Match[str]) -> str:
    """Mask what follows "Bearer" or "Basic" unless it is an English word."""
    scheme, token = match.groups()
    if scheme[:5].lower() == "basic":
        try:
            is_secret = b":" in base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            is_secret = False
    else:
        is_secret = len(token) >= 16  # longer than the words that follow it in prose
    if not is_secret and len(token) >= 6:
        body = token.rstrip("=.")
        has_letter = any(c.isalpha() for c in body)
        has_digit = any(c.isdigit() for c in body)
        # Upper case inside a word, or digits in it, is no English.
        is_secret = has_letter and (has_digit or (not body[1:].islower() and not body.isupper()))
        is_secret = is_secret and not ("-" in body and body.replace("-", "").isalpha() and body.islower())
    return scheme + SECRET if is_secret else match.group()


# ---------------------------------------------------------------------------------------- keys and values


def _mask_keys(text: str) -> tuple[str, int]:
    """Mask the values of all keys that name a secret."""
    parts: list[str] = []
    position = count = search_from = 0
    size = len(text)
    while True:
        match = _KEY.search(text, search_from)
        if match is None:
            break
        name, separator = match.groups()
        start = match.end()
        search_from = match.end(1)
        if not _names_secret(text, match.start(), name, separator):
            continue
        start, end = _value_span(text, start, size, name, separator)
        if end <= start:
            continue
        value = text[start:end]
        if _is_harmless(name, value):
            search_from = end
            continue
        parts += (text[position:start], SECRET)
        position = search_from = end
        count += 1
    if not count:
        return text, 0
    return "".join(parts) + text[position:], count


def _names_secret(text: str, at: int, name: str, separator: str) -> bool:
    if not any(sign in separator for sign in "=:>%"):
        # "--password hunter2" and ['--password', 'hunter2'] are values; "password reset" is prose.
        if not name.startswith("--"):
            return False
    elif separator.endswith(">") and not separator.endswith("=>") and text[at - 1 : at] != "<":
        return False  # <password>hunter2</password>, but not password>hunter2
    if separator[0] == "]" and name == "secret" and text[at - 1 : at] == "[" and not text[at - 2 : at - 1].isalnum():
        return False  # "[secret]: …" is a placeholder; "user[secret]=…" is a form's field
    if is_secret_key(name[-128:]):
        return True
    if name.lower() in ("key", "id") and text[at - 1 : at] == " ":
        words = text[max(0, at - 16) : at].split()
        return bool(words) and is_secret_key(words[-1] + "_" + name)  # "API key: …"
    return False


def _value_span(text: str, start: int, size: int, name: str, separator: str) -> tuple[int, int]:
    """Return where the value that starts at ``start`` begins and ends, quotes left outside."""
    if separator.endswith(">") and not separator.endswith("=>"):
        end = text.find("<", start)
        return start, size if end < 0 else end
    quote = _STRING_PREFIX.match(text, start)
    if quote is not None:
        return quote.end(), _closing_quote(text, quote.end(), quote.group(1), quote.group(2), size)
    lower = name.lower()
    if "authorization" in lower:
        long = _AUTH_LONG_SCHEME.match(text, start)
        if long is not None:
            return start, long.end()
        scheme = _AUTH_SCHEME.match(text, start)
        if scheme is not None:
            start = scheme.end()
    elif "cookie" in lower:
        cookies = _COOKIES.match(text, start)
        if cookies is not None:
            return start, cookies.end()
    for placeholder in PLACEHOLDERS:
        if text.startswith(placeholder, start):
            rest = _BARE_VALUE.match(text, start + len(placeholder))
            if rest is None or not rest.group().rstrip(_CLOSERS):
                return start, start + len(placeholder)
    if text[start : start + 1] in ("[", "{", "("):
        return start, _closing_bracket(text, start, size)
    end = start
    while True:
        # In pieces, so that the pattern never has much to remember.
        bare = _BARE_VALUE.match(text, end)
        if bare is None:
            break
        end = bare.end()
    return start, start + len(text[start:end].rstrip(_CLOSERS))


def _closing_quote(text: str, start: int, escape: str, quote: str, size: int) -> int:
    """Return the index at which a string ends, its closing quote and escapes left outside.

    An unfinished string ends with its line.
    """
    level = len(escape) + 1  # 1 plain, 2 in a JSON string, 4 in a JSON string within a JSON string
    at = text.find(quote, start)
    while at >= 0:
        first = at
        while first > start and text[first - 1] == "\\":
            first -= 1
        times, rest = divmod(at - first + 1, level)
        # "a\"b" goes on after the second quote, "a\\" ends there.
        if rest or times % 2:
            return max(start, at - len(escape))
        at = text.find(quote, at + 1)
    end = text.find("\n", start)
    return size if end < 0 else end


_BRACKETS = re.compile(r"[\[\](){}\n]")


def _closing_bracket(text: str, start: int, size: int) -> int:
    """Return the index after the bracket that closes the one at ``start``, or the end of its line."""
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        char = match.group()
        if char == "\n":
            return match.start()
        depth += 1 if char in "[({" else -1
        if depth <= 0:
            return match.end()
    return size


# ---------------------------------------------------------------------------------------- cards


def _mask_cards(text: str) -> tuple[str, int]:
    parts: list[str] = []
    position = count = search_from = 0
    while True:
        match = _CARD.search(text, search_from)
        if match is None:
            break
        start = match.start()
        # Four groups first: what follows "4111 1111 1111 1111" may be another number.
        for end in (match.start(2), match.end()):
            if end > start and _is_card(text[start:end].replace(" ", "").replace("-", "")):
                parts += (text[position:start], CARD)
                position = search_from = end
                count += 1
                break
        else:
            search_from = match.start(1) if match.start(1) > 0 else match.end()
    if not count:
        return text, 0
    return "".join(parts) + text[position:], count


def _is_card(digits: str) -> bool:
    """Tell whether digits have an issuer's prefix and the right checksum (Luhn, ISO/IEC 7812-1)."""
    first = digits[0]
    if first not in "3456" and not (len(digits) == 16 and "2221" <= digits[:4] <= "2720"):
        return False  # times in milliseconds and microseconds start with 1
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        if index % 2:
            value *= 2
            if value > 9:
                value -= 9
        total += value
    return total % 10 == 0
