"""Files that are no config: each ends in one sentence, quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cvpeft.config import load
from cvpeft.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{below}: &{below} [{', '.join(['*' + above] * 9)}]\n" for above, below in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "holds no settings"),
        ("# only a comment\n", "holds no settings"),
        ("[1, 2]", "expected sections such as"),
        ("just text", "expected sections such as"),
        (LAUGHS, "more than 10000 keys and values once the aliases are expanded"),
        ("a: &x [*x]", "nested deeper than 40 levels"),
        ("a: &x {b: *x}", "nested deeper than 40 levels"),
        ("[" * 100_000, "nested deeper than 40 levels"),
        ("a:\n - " + "- " * 20_000 + "1", "nested deeper than 40 levels"),
        ("a: [" + "1," * 20_000 + "]", "more than 10000 keys and values"),
        ("a" * 300_000, "larger than 256 KiB"),
        ("a: \0", "not YAML"),
        ('a: "\\0"', "text with a NUL"),
        ('a: "\\ud800"', "lone surrogate"),
        ('a: "\\UFFFFFFFF"', "not YAML"),
        (b"a: 1\nb: \xff\n", "not UTF-8 text"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("%YAML 1.1\n---\na: off", "another version than 1.2"),
        ("a: *nowhere", "undefined alias"),
        ("a:\n\tb: 1", "not YAML"),
        ("a: b: c", "mapping values are not allowed here"),
        ("<<: {a: 1}", "merge keys '<<' are not part of YAML 1.2"),
        ("? [a]\n: 3", "a key is not plain text"),
        ("!!set {a, b}", "tag '!!set' is refused"),
        ("a: !!python/object/apply:os.system [ls]", "tag '!!python/object/apply:os.system' is refused"),
        ("a: !!int abc", "'abc' is no int"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: 0x" + "f" * 5000, "does not fit into 64 bits"),
        ("a: " + "1" * 5000, "is no int"),
    ],
)
def test_what_is_no_config_gets_one_sentence(write, content, what):
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        load(write(content))
    assert what in str(caught.value)
    assert time.process_time() - started < 10


def test_line_of_the_fault(write):
    for content, line in [(b"a: 1\nb: \xff\n", 2), ("a: 1\n\nb: [\n", 4), ("a: 1\na: 2\n", 2)]:
        with pytest.raises(ConfigError, match=rf"x.yaml:{line}\b"):
            load(write(content))


def test_mark_at_the_start_of_windows_files_is_skipped(write):
    assert load(write("\ufeffpeft: {methods: lora}\r\n")).peft.methods[0].name == "lora"


def test_alias_is_expanded(write):
    settings = load(write("peft: {methods: lora}\ndata: {train: &files [a.json], val: *files}"))
    assert settings.data.val == settings.data.train


@pytest.mark.filterwarnings("error")
def test_anchor_named_twice_is_legal(write):
    text = "peft: {methods: lora}\ndata: {classes: [&a x, &a y, z], augment: *a}"
    assert load(write(text)).data.augment == "y"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (".", "'.' is no file"),
        ("lora.yml", "does not exist (did you mean 'lora.yaml'?)"),
        ("loar.yaml", "does not exist (did you mean 'lora.yaml'?)"),
        ("zzz", "does not exist (there are: lora.yaml)"),
        ("nowhere/x.yaml", "does not exist"),
        ("a" * 5000, "File name too long"),
        ("\0", "does not exist"),
        ("/dev/zero", "is no file"),
    ],
)
def test_path_that_cannot_be_read(write, name, what):
    write("peft: {methods: lora}", "lora.yaml")
    with pytest.raises(ConfigError) as caught:
        load(Path(name))
    assert what in str(caught.value)
