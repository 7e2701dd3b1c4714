"""Files that are not what they should be: one error each, that begins with the file's name."""

import os
import sys

import pytest

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.config_json import FILE_LIMIT
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        PrecisionConfig.from_json(path)
    text = str(caught.value)
    assert 1 <= len(text.split("\n")) <= 3
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b" \n\t", "an empty file"),
        (b"[]", "expected a JSON object"),
        (b"null", "Received: null"),
        (b'"a"', 'Received: "a"'),
        (b"{", "line 1, column 2"),
        (b'{\n  "policy": "auto",\n}', "no trailing commas"),
        (b"{} {}", "Extra data"),
        (b'{"policy": "auto", "policy": "float32"}', "policy: expected each key once"),
        (b'{"rules": [{"layers": "a", "kernel": true, "layers": "b"}]}', "rules[0].layers: "),
        (b'{"$schema": 1, "$schema": 2}', "$schema: expected each key once"),
        (b'{"loss_scale": {"max_scale": NaN}}', "loss_scale.max_scale: expected a finite number"),
        (b'{"loss_scale": {"max_scale": -Infinity}}', "max_scale=-Infinity"),
        (b'{"loss_scale": {"max_scale": 1e999}}', "max_scale=Infinity"),
        (b'{"loss_scale": {"max_scale": %s}}' % (b"9" * 5000), "number of thousands of digits"),
        (b"[" * 500_000, "32 levels"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "32 levels"),
        (b"\xef\xbb\xbf{}", "the mark of UTF-8 (bytes EF BB BF)"),
        ("{}".encode("utf-16"), "the mark of UTF-16-LE (bytes FF FE)"),
        ("{}".encode("utf-32"), "the mark of UTF-32-LE (bytes FF FE 00 00)"),
        (b"\xfe\xff\0{\0}", "the mark of UTF-16-BE"),
        ("{}".encode("utf-16-le"), "a zero byte at offset 1"),
        ('{"policy": "größe"}'.encode("latin-1"), "byte 0xF6 at offset 14"),
        (b'{"\xed\xa0\x80": 1}', "byte 0xED at offset 2"),
        (b" " * (FILE_LIMIT + 1), "at most 1,048,576 bytes"),
        (b'{"policy": "auto\0"}', "a zero byte"),
        (b'{"policy": 1, "kernels": 2}', "kernels: expected true or false"),
    ],
    ids=range(27),
)
def test_bad_content(tmp_path, content, words):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    text = refusal(path)
    assert words in text
    assert all(line.startswith(f"{path}: ") for line in text.split("\n"))


def test_a_file_of_the_largest_size_is_read(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b"{}" + b" " * (FILE_LIMIT - 2))
    assert PrecisionConfig.from_json(path) == PrecisionConfig()


def test_what_is_no_file(tmp_path):
    assert refusal(tmp_path / "none.json").endswith("none.json: no such file.")
    assert refusal(str(tmp_path)).endswith("expected a file. Received: a directory.")
    assert "cannot be read" in refusal(tmp_path / ("a" * 5000))
    assert "path of a file" in refusal("a\0b")
    assert "path=null" in refusal(None)
    assert "path=3" in refusal(3)
    assert '"line\\nbreak"' in refusal("line\nbreak")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_odd_files(tmp_path):
    assert "at most 1,048,576 bytes" in refusal("/dev/zero")  # read no further than the limit
    assert "an empty file" in refusal("/dev/null")
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    assert "cannot be read" in refusal(loop)
    if os.geteuid() != 0:
        secret = tmp_path / "secret.json"
        secret.touch(mode=0)
        assert "Permission denied" in refusal(secret)
