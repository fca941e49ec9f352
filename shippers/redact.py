"""Redact: personal data and credentials masked in text, before any disk or network sees them.

One implementation for the shippers and for the service, so that both call the same things secret.
What is masked: e-mail addresses, card numbers (known prefixes and a right checksum), IBANs (likewise),
bearer and basic credentials, JWTs, private keys in PEM, access keys of well-known form, passwords in
URLs, on the command lines of well-known programs, in SQL and in sentences ("the password is …"), and
the values of ``key=value``, ``key: value``, ``"key": "value"``, ``--key value`` and ``<key>value``
wherever the key names a secret, in English or as ``_FOREIGN_WORDS`` has it. The key stays, the value
becomes ``[secret]``.

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
IBAN = "[iban]"
SECRET = "[secret]"  # noqa: S105 - what stands in a secret's place
JWT = "[jwt]"
PLACEHOLDERS = (EMAIL, CARD, IBAN, SECRET, JWT)

# ---------------------------------------------------------------------------------------- names of secrets

# A word that makes a key secret wherever it stands in it: db_password, X-Client-Secret-2.
_SECRET_WORDS = frozenset(
    """
    password passwords passwd passwds passwort passphrase passphrases passcode pwd pwds pw pass secret secrets credential credentials apikey apikeys
    authorization cookie cookies jwt bearer sessionid sessid phpsessid jsessionid cvv cvc cvv2 ssn otp totp
    accesskey secretkey privatekey authtoken accesstoken refreshtoken idtoken clientsecret
    contrasena kennwort wachtwoord senha parola mdp motdepasse
    """.split()
)
# The same in other scripts; a word that ends so is one, since not all of them put spaces between words.
_FOREIGN_WORDS = tuple(
    """
    contraseña hasło lösenord jelszó şifre пароль токен συνθηματικό 密码 密碼 口令 パスワード 暗証番号 비밀번호 암호 סיסמה
    كلمة_المرور كلمة_السر mật_khẩu รหัสผ่าน पासवर्ड
    """.split()
)
# What is written as several words: the last of them, and what stands before it.
_SPACED_WORDS = {"key": "", "id": "", "passe": "mot_de_", "المرور": "كلمة_", "السر": "كلمة_", "khẩu": "mật_"}
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
    if not name.isascii() and name.lower().endswith(_FOREIGN_WORDS):
        return True
    words = _words(name)
    if not words:
        return False
    if words[-3:] == ["mot", "de", "passe"]:
        return True
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
    if last == "signature":
        return before in ("amz", "goog")  # of an address that works for whoever has it
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

# Digits to 0, everything else to x; what stands between a card's groups is deleted. Thirteen zeros in a row may be
# a card or an IBAN.
_DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x78 for byte in range(256))
_BETWEEN_GROUPS = " .\t\u00a0\u2007\u2009\u202f\u2010\u2011\u2012\u2013-"
_BETWEEN_GROUPS_BYTES = bytes(set(_BETWEEN_GROUPS.encode()))
_MIN_CARD = b"0" * 13
# Characters of access keys to x, others to a space: no access key is shorter than 18.
_KEY_CHARS = bytes(0x78 if chr(byte) in "-_" or (byte < 128 and chr(byte).isalnum()) else 0x20 for byte in range(256))
_MIN_ACCESS_KEY = b"x" * 18


# The tests below are written out: a loop over a tuple costs more than the searches.


def _might_hold_key(text: str, lower: str) -> bool:
    """Tell whether a key that is_secret_key accepts may stand in ``text`` before a value."""
    return ("=" in text or ":" in text or ">" in text or "--" in text or "%" in text or "\uff1a" in text) and (
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
        or "sig" in lower
        or "wort" in lower
        or "woord" in lower
        or "contras" in lower
        or "senha" in lower
        or "parola" in lower
        or "mdp" in lower
        or "\\u" in text
        or not (text.isascii() or _FOREIGN.search(lower) is None)
    )


_FOREIGN = re.compile("|".join(word.rpartition("_")[2] for word in _FOREIGN_WORDS))


def _might_hold_credential(text: str, lower: str) -> bool:
    return ("bearer" in lower or "basic" in lower) and (" " in text or "\t" in text)


def _might_state(lower: str) -> bool:
    """Tell whether a sentence, or SQL, may say a secret: "password is x", PASSWORD 'x', IDENTIFIED BY x."""
    if "pass" in lower and ("passw" in lower or "passp" in lower or "passc" in lower):
        return True
    if "pwd" in lower or "identified" in lower:
        return True
    return (" is" in lower or " was" in lower) and (
        "secret" in lower or "token" in lower or "pin" in lower or "otp" in lower or "key" in lower
    )


def _might_hold_command(text: str, lower: str) -> bool:
    return (" -" in text or "'-" in text or '"-' in text) and (
        "curl" in lower
        or "mysql" in lower
        or "maria" in lower
        or "sshpass" in lower
        or "redis-cli" in lower
        or "ldap" in lower
        or "mongo" in lower
        or " login " in lower
    )


def _might_hold_email(text: str) -> bool:
    return (
        "@" in text
        or ("%" in text and ("%40" in text or "%00" in text))  # the latter is the shape of "%40"
        or ("\\u" in text and ("u0040" in text or "u0000" in text))
        or "&#" in text
    )


def _might_hold_access_key(text: str) -> bool:
    # What a key begins with, digits left out (might_hold).
    return _MIN_ACCESS_KEY in text.encode("utf-8", "replace").translate(_KEY_CHARS) and (
        "AKIA" in text
        or "ASIA" in text
        or "AIza" in text
        or "xox" in text
        or "xapp-" in text
        or "k_live_" in text
        or "k_test_" in text
        or "ghp_" in text
        or "gho_" in text
        or "ghs_" in text
        or "ghu_" in text
        or "ghr_" in text
        or "github_pat_" in text
        or "lsk_" in text
        or "sk-" in text
        or "glpat-" in text
        or "glrt-" in text
        or "gldt-" in text
        or "glc_" in text
        or "npm_" in text
        or "pypi-" in text
        or "hf_" in text
        or "whsec_" in text
        or "SG." in text
        or "SK" in text
        or "hvs." in text
        or "ya00." in text  # the shape of ya29.
        or "ya29." in text
        or "GOCSPX-" in text
        or "AGE-SECRET" in text
        or "dapi" in text
        or "ATATT" in text
        or "lin_api_" in text
        or "dop_v" in text
        or "shpat_" in text
        or "atp-" in text
        or "AK-" in text
        or "figd_" in text
        or ":AA" in text
        or "hooks.slack.com/" in text
        or "/api/webhooks/" in text
    )


def _might_hold_number(text: str) -> bool:
    """Tell whether a card number or an IBAN may be there."""
    return "NL" in text or _MIN_CARD in text.encode("utf-8", "replace").translate(_DIGITS, _BETWEEN_GROUPS_BYTES)


def might_hold(text: str) -> bool:
    """Return False only if ``mask(text)`` changes nothing. Cheap, and right for joined texts too.

    Texts that give False when joined with line feeds need not be looked at one by one. What
    holds for a text with all its digits made 0 holds for the text, so it may be cached by shape.
    """
    if _might_hold_email(text) or "eyJ" in text or "-----BEGIN" in text or _might_hold_number(text):
        return True
    lower = text.lower()
    return (
        _might_hold_key(text, lower)
        or _might_hold_credential(text, lower)
        or _might_state(lower)
        or _might_hold_command(text, lower)
        or _might_hold_access_key(text)
    )


# ---------------------------------------------------------------------------------------- patterns
# Every repeated class starts at the border of its token (a look-behind), so a token is scanned once.

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*)",
    re.DOTALL,
)
_URL_PASSWORD = re.compile(r"(://[^\s/:@?#\"'<>]{0,256}:)(?!\[secret\]@)[^\s/?#\"'<>]{1,512}@")
# jdbc:oracle:thin:scott/tiger@…
_THIN_PASSWORD = re.compile(r"(?<=thin:)([^\s/@\"'<>]{1,128}/)(?!\[secret\]@)[^\s\"'<>@]{1,512}@")
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){1,3}")
_CREDENTIAL = re.compile(r"(?<![A-Za-z0-9])((?i:bearer|basic)[ \t]{1,8})([A-Za-z0-9._~+/-]{4,}={0,3})")
# Digits in what these begin with are [0-9], so that a key's shape is found too.
_ACCESS_KEY = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[oprsu]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}"
    r"|xox[abceoprs]-[A-Za-z0-9-]{10,255}|xoxe\.xox[bp]-[A-Za-z0-9-]{10,255}|xapp-[A-Za-z0-9-]{10,255}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{10,255}|whsec_[A-Za-z0-9+/=]{20,255}|lsk_[A-Za-z0-9_]{28,60}"
    r"|AIza[A-Za-z0-9_-]{35}|ya[0-9]{2}\.[A-Za-z0-9_-]{20,1024}|GOCSPX-[A-Za-z0-9_-]{20,64}"
    r"|sk-(?:(?:ant|proj|svcacct)-[A-Za-z0-9_-]{16,255}|[A-Za-z0-9]{32,255})|gl(?:pat|rt|dt)-[A-Za-z0-9_-]{20,255}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,512}|hf_[A-Za-z0-9]{30,64}|dop_v[0-9]_[a-f0-9]{64}"
    r"|shpat_[A-Fa-f0-9]{32}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}|SK[0-9a-f]{32}|hvs\.[A-Za-z0-9_-]{20,512}"
    r"|dapi[0-9a-f]{32}|ATATT[A-Za-z0-9_=-]{20,512}|lin_api_[A-Za-z0-9]{32,64}|glc_[A-Za-z0-9+/=]{32,512}"
    r"|sq[0-9]atp-[A-Za-z0-9_-]{20,64}|NRAK-[A-Z0-9]{27}|PMAK-[a-f0-9-]{32,64}|figd_[A-Za-z0-9_-]{20,64}"
    r"|AGE-SECRET-KEY-[0-9][A-Z0-9]{50,64}|[0-9]{8,10}:AA[A-Za-z0-9_-]{33})"
    r"(?![A-Za-z0-9_])"
    r"|(?<=hooks\.slack\.com/services/)[A-Z0-9]{1,16}/[A-Z0-9]{1,16}/[A-Za-z0-9]{16,64}"
    r"|(?<=/api/webhooks/)[0-9]{1,24}/[A-Za-z0-9_-]{32,128}"
)
_AT = r"(?:@|%40|\\{1,4}u0040|&#(?:64|x40);)"
_EMAIL = re.compile(rf"(?<![\w.+%-])[\w.+%-]+{_AT}((?:[\w-]+\.){{1,32}}(?:xn--[\w-]+|[^\W\d_]{{2,}}))")
# What an "@" with a dotted end is as well: systemd units, images for dense screens, frames of scripts.
_NO_DOMAIN = re.compile(
    r"\.(?:service|socket|timer|mount|target|slice|scope|png|jpe?g|gif|svg|webp|js|mjs|css|jar)\Z", re.IGNORECASE
)
_CARD = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9][.,])"
    rf"(?:[0-9]{{13,19}}|[0-9]{{4}}([{_BETWEEN_GROUPS}]{{1,3}})(?:[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(\1[0-9]{{1,3}})?"
    r"|[0-9]{6}\1[0-9]{4,5}|[0-9]{4}\1[0-9]{5}))"
    r"(?![0-9A-Za-z])(?!\.[0-9])"
)
# Countries, and how long their IBANs are: the IBAN registry of SWIFT, release 99.
_IBAN_CHARS = {
    pair[:2]: int(pair[2:])
    for pair in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18
    FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
    LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27
    ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
    """.split()
}
_IBAN = re.compile(rf"(?<![A-Za-z0-9])([A-Z]{{2}})[0-9]{{2}}(?:[{_BETWEEN_GROUPS}]?[A-Z0-9]){{11,30}}")
_NO_IBAN_CHAR = re.compile(f"[{_BETWEEN_GROUPS}]")


def _key_pattern(name: str) -> re.Pattern[str]:
    closed = r"(?:\\{0,8}[\"'`])?\]?"
    return re.compile(
        rf"(?<![\w.$-])(?:(?P<name>{name}){closed}[ \t]{{0,8}}(?:=>|->(?=[ \t])|:=|==|[=:\uff1a]|%3[DdAa])\s{{0,8}}"
        # Before a value without a sign stands an option: --password hunter2, ['--password', 'hunter2'].
        rf"|(?P<option>--[\w.$-]+){closed}(?:,[ \t]{{0,8}}(?=\\{{0,8}}[\"'`])|[ \t]{{1,8}}))"
    )


_KEY = _key_pattern(r"[\w.$-]+")
# The same where a JSON encoder has written what is not ASCII as \u….
_ESCAPED_KEY = _key_pattern(r"(?:[\w.$-]|\\{1,2}u[0-9A-Fa-f]{4})+")
_ESCAPED_CHAR = re.compile(r"\\{1,2}u([0-9A-Fa-f]{4})")
_TAG = re.compile(r"<(?:[\w-]{1,64}:)?([\w.-]{1,128})(?:\s[^<>]{0,512})?>([^<]+)")
_BARE_VALUE = re.compile(
    r"(?:[^\s,;&\"'`]+|[,;&](?!\s|\Z|[\"'`]|[\w.$-]{1,64}[ ]?[=:])|[\"'`](?![\s,;:&)}\]]|\Z)){1,256}"
)
_AUTH_SCHEME = re.compile(r"(?i:(bearer|basic|token|apikey|negotiate|ntlm|dpop|sharedkey|aws)[ \t]{1,8})(?=[^\s,;])")
_AUTH_OTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}[ \t]{1,8}(?=([^\s,;]{1,512}))")
_AUTH_LONG_SCHEME = re.compile(r"(?i:digest|oauth|hawk|mac|aws4-hmac-sha256|signature)[ \t][^\r\n]*")
_COOKIES = re.compile(r"[^\s=;,]{1,256}=[^\r\n\"']*")
# A list of headers in JSON: {"name": "X-Api-Key", "value": "…"}.
_PAIR = re.compile(
    r"([\"'](?:name|key|header)[\"']\s{0,8}:\s{0,8}[\"'](?P<key>[A-Za-z0-9_.-]{1,128})[\"']\s{0,8},\s{0,8}"
    r"[\"']value[\"']\s{0,8}:\s{0,8}(?P<quote>[\"']))(?:(?!(?P=quote))[^\\]|\\.){1,4096}",
    re.DOTALL,
)
# The same in YAML, as manifests of Kubernetes write environments.
_YAML_PAIR = re.compile(
    r"((?<![\w-])name:[ \t]{1,8}[\"']?(?P<key>[A-Za-z0-9_.-]{1,128})[\"']?[ \t]{0,8}\r?\n[ \t]{0,80}value:[ \t]{1,8}[\"']?)"
    r"[^\s\"'][^\r\n\"']*"
)
_STRING_PREFIX = re.compile(r"[bBuUrR]{0,2}(\\{0,8})([\"'`])")
# "using password: YES" is MySQL's, and "?" stands in SQL for what is told apart.
_HARMLESS = frozenset({"none", "null", "nil", "true", "false", "undefined", "yes", "no", "?", *PLACEHOLDERS})
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
    if "thin:" in text:
        text, n = _THIN_PASSWORD.subn(r"\1" + SECRET + "@", text)
        count += n
    if "eyJ" in text:
        text, n = _JWT.subn(JWT, text)
        count += n
    lower = text.lower()
    if _might_hold_command(text, lower):
        text, n = _mask_commands(text)
        count += n
    if _might_hold_key(text, lower):
        text, n = _mask_keys(text)
        count += n
        if "<" in text:
            text, n = _substitute(_TAG, _tag, text)
            count += n
        if "value" in text:
            for pattern in (_PAIR, _YAML_PAIR):
                text, n = _substitute(pattern, _pair, text)
                count += n
    if _might_state(lower):
        text, n = _mask_statements(text)
        count += n
    if _might_hold_credential(text, lower):
        text, n = _substitute(_CREDENTIAL, _credential, text)
        count += n
    if _might_hold_access_key(text):
        text, n = _ACCESS_KEY.subn(SECRET, text)
        count += n
    if _might_hold_email(text):
        text, n = _substitute(_EMAIL, _email, text)
        count += n
    if _might_hold_number(text):
        text, n = _substitute(_IBAN, _iban, text)
        count += n
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


def _tag(match: re.Match[str]) -> str:
    name, value = match.groups()
    if not is_secret_key(name) or not value.strip() or _is_harmless(name, value):
        return match.group()
    return match.group()[: -len(value)] + SECRET


def _iban(match: re.Match[str]) -> str:
    """Mask an IBAN; what comes after it, up to where the pattern went, stays.

    The remainder by 97 must be 1 (ISO 13616, ISO/IEC 7064).
    """
    text = match.group()
    size = _IBAN_CHARS.get(match.group(1), 0)
    chars = seen = 0
    while seen < size and chars < len(text):
        seen += text[chars] not in _BETWEEN_GROUPS
        chars += 1
    rest = text[chars:]
    following = rest[:1] or match.string[match.end() : match.end() + 1]
    if not size or seen < size or following.isalnum():
        return text
    iban = _NO_IBAN_CHAR.sub("", text[:chars])
    if int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 != 1:
        return text
    return IBAN + rest


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
    pattern = _ESCAPED_KEY if "\\u" in text else _KEY
    while True:
        match = pattern.search(text, search_from)
        if match is None:
            break
        name = match["name"] or match["option"]
        search_from = match.start() + len(name)
        if not _names_secret(text, match.start(), name):
            continue
        start, end = _value_span(text, match.end(), size, name)
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


def _names_secret(text: str, at: int, name: str) -> bool:
    if name == "secret" and text.startswith(SECRET, at - 1) and not text[at - 2 : at - 1].isalnum():
        return False  # "[secret]: …" is a placeholder; "user[secret]=…" is a form's field
    if "\\u" in name:
        name = _ESCAPED_CHAR.sub(lambda found: chr(int(found[1], 16)), name[-768:])
    if is_secret_key(name[-128:]):
        return True
    last = name.lower()
    if last in _SPACED_WORDS and text[at - 1 : at] == " ":
        words = text[max(0, at - 16) : at].lower().split()
        if _SPACED_WORDS[last]:
            return "_".join([*words, last]).endswith(_SPACED_WORDS[last] + last)  # "mot de passe: …"
        return bool(words) and is_secret_key(words[-1] + "_" + name)  # "API key: …"
    return last in ("sig", "signature") and text[at - 1 : at] in ("?", "&")


def _value_span(text: str, start: int, size: int, name: str) -> tuple[int, int]:
    """Return where the value that starts at ``start`` begins and ends, quotes left outside."""
    quote = _STRING_PREFIX.match(text, start)
    if quote is not None:
        return quote.end(), _closing_quote(text, quote.end(), quote.group(1), quote.group(2), size)
    lower = name.lower()
    if "authorization" in lower:
        long = _AUTH_LONG_SCHEME.match(text, start)
        if long is not None:
            return start, long.end()
        scheme = _AUTH_SCHEME.match(text, start)
        if scheme is None:
            scheme = _AUTH_OTHER_SCHEME.match(text, start)
            if scheme is not None and not (scheme.group(1).startswith(PLACEHOLDERS) or _is_strong(scheme.group(1))):
                scheme = None  # a word, and prose after it
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


# ---------------------------------------------------------------------------------------- sentences, SQL, commands

_PASSWORD_LIKE = r"(?:pass(?:word|wd|phrase|code|wort)|pwd)"  # noqa: S105 - names, no password
_STATEMENT = re.compile(
    # IDENTIFIED BY 'x', IDENTIFIED WITH plugin BY 'x', and Oracle's without quotes
    r"(?P<identified>(?<!\w)(?i:identified[ \t]{1,8}(?:with[ \t]{1,8}\S{1,64}[ \t]{1,8})?(?:by|as)[ \t]{1,8}(?:password[ \t]{1,8})?))"
    # PASSWORD 'x', PASSWORD('x'); not the end of 'password' 'x'
    rf"|(?P<sql>(?<![\w\"'])(?i:{_PASSWORD_LIKE})(?:[ \t]{{1,8}}|[ \t]{{0,8}}\([ \t]{{0,8}})(?=\\{{0,8}}[\"'][^\s,:;)}}\]]))"
    # the password is x, was x, set to x
    rf"|(?<![\w-])(?P<name>(?i:{_PASSWORD_LIKE}|(?:(?:api|access|secret|private)[ _-]?)?key|secret|token|pin|otp))"
    r"(?:[ ]for[ ]\S{1,64})?[ \t]{1,8}(?i:is|was|set to|changed to|reset to)(?:[ ]now)?:?[ \t]{1,8}(?=\S)"
    # with password x, login ann password x
    rf"|(?<![\w-])(?P<given>(?i:(?:with|using|(?:login|user)[ ]\S{{1,64}})[ ]{_PASSWORD_LIKE}[ \t]{{1,8}}))(?=\S)"
)
_CREATED_USER = re.compile(r"(?i:user|role)[ \t]{1,8}\S{1,64}[ \t]{1,8}\Z")
_TOKEN = re.compile(r"[^\s,;\"'`<>()\[\]{}]{1,512}")
_END_OF_CLAUSE = re.compile(r"[.!;)\]]*(?:\s*\Z|[ \t]*\n|[.!;,)])")
# What "the password is" is followed by when it is not the password, besides words that end as adjectives do.
_ORDINARY = frozenset(
    """
    a about active again already an any as at available away back bad being blank by case correct default different due
    empty encoded equal fine for free from gone good hash hashed held here hidden identical in incorrect insecure invalid just
    kept known long lost mandatory missing never new no not null off ok okay old on only open out plain plaintext ready
    reset right safe same secret secure set short shown simple so still strong such sufficient temporary text that the
    there this to too true unchanged undefined under unique unknown unset up used using valid void weak what wrong yes
    """.split()
)
_ORDINARY_ENDINGS = ("ed", "ing", "able", "ible", "ory", "en", "ive", "ent", "ant", "al", "ful", "less", "ous", "ly")
_NAME_OF_KIND = re.compile(r"(?:sha|md|utf|v|oauth|base|aes|rsa|http|rfc)-?[0-9./]+\Z", re.IGNORECASE)
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}|[0-9.,:/-]+(?:[a-z]{1,3}|%)?\Z")


def _is_strong(token: str) -> bool:
    """Tell whether a token is no word: letters and digits, signs, or capitals inside it."""
    token = token.rstrip(_CLOSERS)
    if len(token) < 5 or _NAME_OF_KIND.match(token) or _MOMENT.match(token):
        return False
    has_letter = any(char.isalpha() for char in token)
    has_capital_inside = not token[1:].islower() and not token.isupper() and token.replace("-", "").isalpha()
    return has_letter and (
        any(char.isdigit() for char in token)
        or any(char in "!@#$%^&*+=~?:" for char in token[:-1])
        or (has_capital_inside and token[1:].lower() != token[1:])
    )


def _mask_statements(text: str) -> tuple[str, int]:
    """Mask secrets that sentences and SQL say."""
    parts: list[str] = []
    position = count = 0
    for match in _STATEMENT.finditer(text):
        start = match.end()
        if start < position:
            continue
        quote = _STRING_PREFIX.match(text, start)
        if quote is not None:
            start = quote.end()
            end = _closing_quote(text, start, quote.group(1), quote.group(2), len(text))
            value = text[start:end]
            is_secret = bool(value) and not (match["name"] and _is_ordinary(value))
        else:
            token = _TOKEN.match(text, start)
            value = "" if token is None else token.group().rstrip(_CLOSERS)
            end = start + len(value)
            is_secret = bool(value) and _is_stated(match, value, text, end)
        if not is_secret or value.startswith(PLACEHOLDERS) or _is_harmless("", value):
            continue
        parts += (text[position:start], SECRET)
        position = end
        count += 1
    if not count:
        return text, 0
    return "".join(parts) + text[position:], count


def _is_stated(match: re.Match[str], value: str, text: str, end: int) -> bool:
    """Tell whether a value without quotes is the secret that a statement announces."""
    if match["given"]:
        return _is_strong(value)
    if match["identified"]:
        before = text[max(0, match.start() - 80) : match.start()]
        return _is_strong(value) or _CREATED_USER.search(before) is not None
    name = match["name"].lower()
    if name in ("pin", "otp", "passcode"):
        return value.isdigit() and len(value) >= 3
    if not name.startswith(("pass", "pwd")):
        return len(value) >= 6 and _is_strong(value) and any(char.isdigit() for char in value)
    if value.isdigit():
        return len(value) >= 4
    # A lone word ends the sentence: "the password is swordfish."
    return _is_strong(value) or (
        _END_OF_CLAUSE.match(text, end) is not None and value.isalpha() and not _is_ordinary(value)
    )


def _is_ordinary(value: str) -> bool:
    lower = value.lower()
    return lower in _ORDINARY or lower.endswith(_ORDINARY_ENDINGS)


# A program, and the options after which it takes a password; curl's stands after a name and a colon.
_COMMAND = re.compile(
    r"(?<![\w.-])(?:(?P<curl>curl)|(?P<joined>mysql(?:dump|admin|import|show|check)?|mariadb(?:-dump|-admin)?)"
    r"|(?P<p>sshpass|mongo(?:sh|dump|restore|export|import)?|(?:docker|podman|nerdctl|helm|registry|oras)[ \t]{1,4}login)"
    r"|(?P<a>redis-cli)|(?P<w>ldap(?:search|modify|add|delete|passwd|whoami|compare)))(?=[ \t\"',])(?P<rest>[^\n]{0,2000})"
)
_OPTION_GAP = r"(?:[ \t=]{1,6}|[\"'],?[ \t]{0,4}(?=[\"']))"
_OPTIONS = {
    "curl": re.compile(
        rf"(?<![\w-])(?:-[A-Za-z]{{0,12}}[uU](?:{_OPTION_GAP})?|--(?:proxy-)?user{_OPTION_GAP})(?P<quote>[\"'])?"
        r"[^\s:\"',|;]{1,128}:(?P<value>(?(quote)(?:(?!(?P=quote))[^\n]){1,512}|[^\s\"'|;]{1,512}))"
    ),
    "joined": re.compile(r"(?<![\w-])-p(?![\w]*[ \t]*=)[\"']?(?P<value>[^\s\"'|;=-][^\s\"'|;]{0,255})"),
    "p": re.compile(rf"(?<![\w-])-p{_OPTION_GAP}(?P<value>[^\s\"'|;-][^\s\"'|;]{{0,255}})"),
    "a": re.compile(rf"(?<![\w-])-a{_OPTION_GAP}(?P<value>[^\s\"'|;-][^\s\"'|;]{{0,255}})"),
    "w": re.compile(rf"(?<![\w-])-w{_OPTION_GAP}(?P<value>[^\s\"'|;-][^\s\"'|;]{{0,255}})"),
}


def _mask_commands(text: str) -> tuple[str, int]:
    """Mask passwords on command lines: curl -u name:x, mysql -px, sshpass -p x, redis-cli -a x, ldapsearch -w x."""
    parts: list[str] = []
    position = count = 0
    for command in _COMMAND.finditer(text):
        options = next(pattern for kind, pattern in _OPTIONS.items() if command[kind])
        for option in options.finditer(text, *command.span("rest")):
            start, end = option.span("value")
            if start < position or option["value"].startswith(PLACEHOLDERS):
                continue
            parts += (text[position:start], SECRET)
            position = end
            count += 1
    if not count:
        return text, 0
    return "".join(parts) + text[position:], count


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
            if end > start and _is_card("".join(filter(str.isdigit, text[start:end]))):
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
