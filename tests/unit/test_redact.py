"""Masking: what is secret goes, what is not stays, and nothing takes longer than its length."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shippers import redact
from shippers.redact import is_secret_key, mask, mask_value, might_hold

# ------------------------------------------------------------------------------- what goes


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # people
        ("login of ann@example.com failed", "login of [email] failed"),
        ("jürgen.müller+tag@münchen.example.de", "[email]"),
        ("to=bob%40example.com&x=1", "to=[email]&x=1"),
        # cards
        ("card 4111111111111111 charged", "card [card] charged"),
        ("card 4111-1111-1111-1111, 5500 0000 0000 0004.", "card [card], [card]."),
        ("amex 3782 822463 10005 in 35 ms", "amex [card] in 35 ms"),
        ("4111 1111 1111 1111 35 ms", "[card] 35 ms"),
        ("2024 4111 1111 1111 1111", "2024 [card]"),
        ("order_4111111111111111", "order_[card]"),
        ("card 4111.1111.1111.1111, ok", "card [card], ok"),
        ("card 4111\t1111\t1111\t1111", "card [card]"),
        ("card 4111\u00a01111\u00a01111\u00a01111", "card [card]"),
        ("card 4111 - 1111 - 1111 - 1111 x", "card [card] x"),
        ("amex 3782.822463.10005", "amex [card]"),
        # accounts
        ("from DE89 3704 0044 0532 0130 00 CHARGED", "from [iban] CHARGED"),
        ("iban=GB82WEST12345698765432", "iban=[iban]"),
        ("to NL91ABNA0417164300.", "to [iban]."),
        # e-mails as encoders write them
        ('{"to": "ann\\u0040example.com"}', '{"to": "[email]"}'),
        ("ann&#64;example.com", "[email]"),
        # credentials
        ("sent Bearer abcdef1234567890", "sent Bearer [secret]"),
        ("sent bearer qwertyuiopasdfghjkl", "sent bearer [secret]"),
        (f"Basic {base64.b64encode(b'ann:hunter2').decode()} used", "Basic [secret] used"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig_-x ok", "jwt [jwt] ok"),
        ("key AKIAIOSFODNN7EXAMPLE ok", "key [secret] ok"),
        ("ghp_0123456789abcdefghij0123456789abcdef", "[secret]"),
        ("bad key sk-proj-Ab3_Ab3_Ab3_Ab3_Ab3x", "bad key [secret]"),
        ("push with glpat-Ab3dEf6hIj9lMn2pQr5t done", "push with [secret] done"),
        ("password%3Dabc", "password%3D[secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nnext", "[secret]\nnext"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEcut off", "[secret]"),
        # keys and values
        ("password=hunter2, user=bob", "password=[secret], user=bob"),
        ("password = hunter2", "password = [secret]"),
        ("pwd:hunter2", "pwd:[secret]"),
        ("Connect(password=hunter2)", "Connect(password=[secret])"),
        ("password=p@ss,w0rd! next", "password=[secret] next"),
        ("password='two words' next", "password='[secret]' next"),
        ("password='never closed\nnext", "password='[secret]\nnext"),
        ('{"password": "a\\"b", "x": 1}', '{"password": "[secret]", "x": 1}'),
        ('{"api_key":12345,"x":1}', '{"api_key":[secret],"x":1}'),
        ('{\\"token\\": \\"ab c\\", \\"x\\": 1}', '{\\"token\\": \\"[secret]\\", \\"x\\": 1}'),
        ("{'client_secret': b'xyz'}", "{'client_secret': b'[secret]'}"),
        ("secrets: ['a', 'b'] next", "secrets: [secret] next"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+ghi", "AWS_SECRET_ACCESS_KEY=[secret]"),
        ("X-Api-Key: abc123", "X-Api-Key: [secret]"),
        ("PGPASSWORD=abc dbpassword=abc", "PGPASSWORD=[secret] dbpassword=[secret]"),
        ("csrfmiddlewaretoken=abc pw=abc", "csrfmiddlewaretoken=[secret] pw=[secret]"),
        ("Command '['mysql', '--password', 'a b']' failed", "Command '['mysql', '--password', '[secret]']' failed"),
        ('args=["--token","abc"]', 'args=["--token","[secret]"]'),
        ("next=/login%3Fpassword%3Dabc%26x%3D1 done", "next=/login%3Fpassword%3D[secret] done"),
        ("the API key: abc123", "the API key: [secret]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [secret]"),
        ('Authorization: Digest username="u", response="abc"', "Authorization: [secret]"),
        ("authorization=Token abc x=1", "authorization=Token [secret] x=1"),
        ("Cookie: a=b; c=d\nnext", "Cookie: [secret]\nnext"),
        ("sessionid=abc123", "sessionid=[secret]"),
        ("https://h/cb?access_token=abc123&state=7", "https://h/cb?access_token=[secret]&state=7"),
        ("curl --token abc123 --verbose", "curl --token [secret] --verbose"),
        ("<password>hunter2</password>", "<password>[secret]</password>"),
        ("user[password]=hunter2", "user[password]=[secret]"),
        ("1password=hunter2", "1password=[secret]"),
        ("…password=hunter2", "…password=[secret]"),
        # names in other languages
        ("пароль=hunter2", "пароль=[secret]"),
        ('{"Contraseña": "a b"}', '{"Contraseña": "[secret]"}'),
        ('{"contrase\\u00f1a": "hunter2"}', '{"contrase\\u00f1a": "[secret]"}'),
        ("mot de passe : hunter2", "mot de passe : [secret]"),
        ("motDePasse=hunter2", "motDePasse=[secret]"),
        ("Passwort: geheim", "Passwort: [secret]"),
        ("登录密码：hunter2", "登录密码：[secret]"),
        ("パスワード: hunter2", "パスワード: [secret]"),
        ("كلمة المرور: hunter2", "كلمة المرور: [secret]"),
        # sentences
        ("the password is hunter2", "the password is [secret]"),
        ("your password was Tr0ub4dor&3.", "your password was [secret]."),
        ("the password is swordfish.", "the password is [secret]."),
        ("Password for ann is 'correct horse'", "Password for ann is '[secret]'"),
        ("password set to hunter2 by ann", "password set to [secret] by ann"),
        ("your PIN is 4821", "your PIN is [secret]"),
        ("the api key is ab12cd34ef56", "the api key is [secret]"),
        ("machine h login ann password hunter2", "machine h login ann password [secret]"),
        # SQL
        ("CREATE USER app WITH PASSWORD 'hunter 2' LOGIN", "CREATE USER app WITH PASSWORD '[secret]' LOGIN"),
        ("SET PASSWORD FOR 'a' = PASSWORD('hunter2')", "SET PASSWORD FOR 'a' = PASSWORD('[secret]')"),
        ("GRANT ALL TO a IDENTIFIED BY 'hunter2'", "GRANT ALL TO a IDENTIFIED BY '[secret]'"),
        ("IDENTIFIED WITH mysql_native_password BY 'x'", "IDENTIFIED WITH mysql_native_password BY '[secret]'"),
        ("create user scott identified by tiger", "create user scott identified by [secret]"),
        # command lines
        ("curl -u ann:hunter2 https://h/", "curl -u ann:[secret] https://h/"),
        ("curl -sSLu 'ann:a b' https://h/", "curl -sSLu 'ann:[secret]' https://h/"),
        ("['curl', '-u', 'ann:hunter2', 'h']", "['curl', '-u', 'ann:[secret]', 'h']"),
        ("curl --proxy-user=ann:hunter2 h", "curl --proxy-user=ann:[secret] h"),
        ("mysqldump -uroot -p'hunter2' shop", "mysqldump -uroot -p'[secret]' shop"),
        ("sshpass -p hunter2 ssh h", "sshpass -p [secret] ssh h"),
        ("redis-cli -h cache -a hunter2 ping", "redis-cli -h cache -a [secret] ping"),
        ("docker login -u ann -p hunter2 h", "docker login -u ann -p [secret] h"),
        ("ldapsearch -x -D cn=admin -w hunter2", "ldapsearch -x -D cn=admin -w [secret]"),
        # schemes
        ("Authorization: GenieKey 0123abcd-0123", "Authorization: GenieKey [secret]"),
        ("Authorization: AWS AKIDEXAMPLE:frJIUN8DYp=", "Authorization: AWS [secret]"),
        ('Authorization: MAC id="x", mac="SIG"', "Authorization: [secret]"),
        ("h/x?sv=2020&sig=abcd%2Fef%3D", "h/x?sv=2020&sig=[secret]"),
        ("h/x?X-Amz-Signature=fe5f80f7&y=1", "h/x?X-Amz-Signature=[secret]&y=1"),
        (
            '<wsse:Password Type="#PasswordText">hunter2</wsse:Password>',
            '<wsse:Password Type="#PasswordText">[secret]</wsse:Password>',
        ),
        ("- name: DB_PASSWORD\n  value: hunter2\n", "- name: DB_PASSWORD\n  value: [secret]\n"),
        ("jdbc:oracle:thin:scott/tiger@//h:1521/x", "jdbc:oracle:thin:scott/[secret]@//h:1521/x"),
        # addresses
        ("postgres://app:p@ss@db:5432/x", "postgres://app:[secret]@db:5432/x"),
        ("redis://:hunter2@cache/0", "redis://:[secret]@cache/0"),
    ],
)
def test_a_secret_is_masked_and_what_surrounds_it_stays(text: str, masked: str) -> None:
    assert mask(text) == (masked, sum(masked.count(placeholder) for placeholder in redact.PLACEHOLDERS))


# ------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize(
    "text",
    [
        "",
        "charged order 1234 in 35 ms for tenant t-17",
        "password reset requested",
        "password: None",
        "password=****",
        "token=",
        "tokens=512",
        "max_tokens: 100",
        "token_count=3 prompt_tokens=5 tokens_used=8",
        "pass=12 fail=0",
        "PWD=/srv/app",
        "primary_key=17 cache_key=abc partition-key: 3",
        "author: Ann, monkey=3, keyboard: qwerty",
        "basic authentication failed",
        "Bearer authentication is required",
        "bearer of bad news",
        'File "/app/secrets.py", line 3, in load_token',
        "  at com.example.TokenService.check(TokenService.java:42)",
        "  at com.example.Password.check(Password.java:42) password.py:12: error",
        "task-0123456789abcdef0123456789abcdef0123 ran, sk-learn is slow",
        "fetch git@github.com:team/project.git",
        "fields: ['user', 'password', 'email']",
        "550e8400-e29b-41d4-a716-446655440000",
        "12345678-1234-1234-1234-123456789012",
        "trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "4111111111111112 has a wrong checksum",
        "94111111111111111111 is too long",
        "at 1732233600123, 1732233600123456 and 1732233600123456789",
        "0.4111111111111111",
        "a4111111111111111 and 4111111111111111b",
        "2024-12-25 13:00:00.123456 INFO",
        "getty@tty1.service started, logo@2x.png served, pkg@1.2.3",
        "java.lang.Object@1f2e3d",
        "root@localhost",
        "http://host:8080/path",
        "eyJust kidding",
        *(
            f"{noun} is {what}"
            for noun in ("password", "the Password", "token", "PIN")
            for what in "required. invalid! incorrect not_set too_short case-sensitive None secure 8_characters ok".replace(
                " ", "|"
            )
            .replace("_", " ")
            .split("|")
        ),
        "password was changed on 2024-12-25, password set to expire in 30 days",
        "token is valid for 3600 seconds and token is 3 days old",
        'password is "required"',
        "Access denied for user 'root'@'localhost' (using password: YES)",
        "update users set password = ? where id = 3",
        "login with password failed, the user's password expired, password's length",
        "fields 'user', 'password' and 'email'",
        "identified by the operator",
        "curl -u ann https://h/ and mysql -u root -p shop",
        "curl: (7) Failed to connect to host port 80",
        "docker run -p 8080:80 nginx",
        "4111.1111.1111.1112 and 1.4111.1111.1111.1111",
        "10.0.0.1 192.168.100.100 200 1234 5678",
        "mot de passe oublié, contraseña incorrecta, 密码错误, пароль изменён",
        "Signature verification failed, signal=9 design: ok signature=sha256",
        "DE88 3704 0044 0532 0130 00 has a wrong checksum",
    ],
)
def test_what_is_no_secret_survives_as_the_same_object(text: str) -> None:
    result, count = mask(text)
    assert result is text
    assert count == 0


# ------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "name",
    "password db_password userPassword DB.PASSWORD passwd pwd passphrase secret client_secret api_key apiKey APIKey "
    "X-Api-Key access_key aws_access_key_id private-key token accessToken refresh_token x-csrf-token authorization "
    "Proxy-Authorization cookie Set-Cookie session_id sessionId JSESSIONID jwt credentials password2".split(),
)
def test_a_key_that_names_a_secret_is_known_however_it_is_written(name: str) -> None:
    assert is_secret_key(name)
    assert mask_value(name, "abc") == ("[secret]", 1)
    assert mask(f"{name}=abc") == (f"{name}=[secret]", 1)


@pytest.mark.parametrize(
    "name",
    "user tokens max_tokens token_count token_type password_reset_at primary_key key keyboard author session "
    "secret_name cookie_count order_id passenger compass tokenizer".split(),
)
def test_a_key_about_secrets_is_no_secret(name: str) -> None:
    assert not is_secret_key(name)
    assert mask_value(name, "512") == ("512", 0)
    assert name == "tokens" or mask_value(name, "abc") == ("abc", 0)


@pytest.mark.parametrize("name", ["tokens", "api_keys", "refresh_tokens", "passwords"])
def test_a_field_of_several_secrets_is_masked_unless_it_counts_them(name: str) -> None:
    assert mask_value(name, '["hunter2secret"]') == ("[secret]", 1)
    assert name == "passwords" or mask_value(name, "512") == ("512", 0)


@pytest.mark.parametrize("name", ["api_key.nested", "passwords.0", "db.password.value"])
def test_what_stands_inside_a_secret_is_one(name: str) -> None:
    assert mask_value(name, "hunter2secret") == ("[secret]", 1)


def test_a_pair_of_name_and_value_is_masked_by_its_name() -> None:
    assert mask('[{"name": "X-Api-Key", "value": "hunter2"}]') == ('[{"name": "X-Api-Key", "value": "[secret]"}]', 1)
    assert mask('[{"name": "Accept", "value": "text/html"}]')[1] == 0


def test_a_key_of_this_service_is_masked_wherever_it_stands() -> None:
    assert mask("rejected lsk_" + "aB3" * 14)[0] == "rejected [secret]"


def test_an_absent_or_masked_value_is_left_under_a_secret_key() -> None:
    for value in ("", "None", "null", "***", "[secret]"):
        assert mask_value("password", value) == (value, 0)


# ------------------------------------------------------------------------------- properties

# Pieces of which secrets are made, so that generated text is full of near misses.
_PIECES = st.sampled_from(
    [
        *("password", "token", "api_key", "authorization", "Cookie", "key", "API key", "session id", "--secret"),
        *("=", ": ", ":", "=>", ">", "<", " ", "\n", ",", ";", "&", '"', "'", "`", "\\", '\\"', "[", "]", "{", "}"),
        *("Bearer ", "Basic ", "Digest ", "eyJhbGciOi", ".", "eyJzdWIi", "://", "@", "%40", "a", "b.c", "x@y.zz"),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "AKIAIOSFODNN7EXAMPLE", "sk_live_0123456789"),
        *("4111", "1111", "4111111111111111", "-", "0", "é", "\ud800", *redact.PLACEHOLDERS),
        *(
            "password is ",
            "PASSWORD '",
            "identified by ",
            "curl -u ",
            "x:",
            "mysql -p",
            "hunter2",
            "пароль",
            "mot de passe",
        ),
        *("\\u0040", "\\u00f1", "&#64;", "\t", "\u00a0", "DE89", "370400440532013000", "NL91ABNA0417164300", "name: "),
        *("value: ", "<a:password x>", "GenieKey ", "?sig=", "thin:a/", "ghp_0123456789abcdefghij", "：", "密码"),
    ]
)
_TEXTS = st.lists(_PIECES, max_size=24).map("".join) | st.text(max_size=60)


@given(_TEXTS)
@example("password=[secret]: x")
@example("user[secret]=a")
@example("authorization: Basic [secret]")
def test_masking_twice_is_masking_once(text: str) -> None:
    once, _ = mask(text)
    assert mask(once) == (once, 0)


@given(_TEXTS)
def test_nothing_found_means_the_same_object(text: str) -> None:
    result, count = mask(text)
    assert (result is text) == (count == 0)


@given(_TEXTS)
def test_the_prefilter_never_misses(text: str) -> None:
    if not might_hold(text):
        assert redact._mask_once(text) == (text, 0)


@given(st.lists(_TEXTS, max_size=4))
def test_joined_texts_are_suspect_if_one_of_them_is(texts: list[str]) -> None:
    if any(mask(text)[1] for text in texts):
        assert might_hold("\n".join(texts))


@given(_TEXTS)
@example("bob%40example.com")
def test_a_text_is_never_more_suspect_than_its_shape(text: str) -> None:
    shape = "".join("0" if char in "0123456789" else char for char in text)
    assert might_hold(shape) or not might_hold(text)


@given(
    key=st.sampled_from(["password", "db_password", "apiKey", "Authorization", "client-secret"]),
    value=st.from_regex(r"[A-Za-z0-9!#$%^*+/_~|?-]{4,40}", fullmatch=True),
    form=st.sampled_from(
        ["{}={}", "{}: {}", '"{}": "{}"', "'{}':'{}'", "{} = '{}'", "--{}={}", "x({}={})", '{{"{}":"{}"}}']
    ),
)
def test_a_secret_value_is_gone_in_every_form(key: str, value: str, form: str) -> None:
    text = "before " + form.format(key, value) + " after"
    masked, count = mask(text)
    if value.lower() not in ("none", "null", "true", "false", "undefined") and value.strip("*."):
        assert count >= 1
        assert "[secret]" in masked
        if value not in form.format(key, ""):
            assert value not in masked.replace("[secret]", "")
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def _luhn_digit(digits: str) -> str:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 if index % 2 else 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


@given(st.from_regex(r"4[0-9]{14}|5[1-5][0-9]{13}|3[47][0-9]{12}|6011[0-9]{11}", fullmatch=True))
def test_a_number_with_a_right_checksum_is_a_card_and_with_a_wrong_one_is_not(digits: str) -> None:
    right = digits + _luhn_digit(digits)
    wrong = digits + str((int(right[-1]) + 1) % 10)
    assert mask(f"paid with {right}.") == ("paid with [card].", 1)
    assert mask(f"paid with {wrong}.") == (f"paid with {wrong}.", 0)


# ------------------------------------------------------------------------------- cost

_ADVERSARIES = """
import sys
from shippers.redact import mask
n = 160_000
pieces = ["a", "1", "1 ", "4111 ", "@", "a@", "b.", "eyJ", "eyJaaaa.", "password=", 'password="', "://", "://a:",
          "bearer ", "key:", ",a", "[", "password=[ ", "-", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "\\\\",
          "token='\\n", "cookie: a=", "password is ", "password '", "identified by ", "curl -u ", "curl -u a:", "mysql -p",
          "<a:b ", "name: a\\n", "DE89 ", "AB12", "DE8937040044053201300", "\\\\u0040", "authorization: a ", "user a ",
          "with password ", "thin:a", "\\u5bc6\\u7801", "authorization: digest ", " ", "\\u00e9", "ghp_", "token=,", "key :", "-a", '"']
for piece in pieces:
    for head, tail in (("", ""), ("password=", ""), ('password="', ""), ("a@", "@"), ("", "@:=key-----BEGIN")):
        mask(head + piece * (n // len(piece) // 4) + tail)
print("done")
"""


@pytest.mark.timeout(180)
def test_no_text_makes_masking_take_more_than_its_length() -> None:
    # A quadratic pattern would take minutes on one of these; a linear one takes seconds for all.
    result = subprocess.run(
        [sys.executable, "-c", _ADVERSARIES], capture_output=True, text=True, timeout=150, check=True
    )
    assert result.stdout == "done\n"
