from __future__ import annotations

import pytest

from exporter.core.errors import InputError
from exporter.hub.repo_refs import Ref, parse_ref, unsafe

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/name", Ref("org/name")),
        ("gpt2", Ref("gpt2")),
        ("org/name@v1.0", Ref("org/name", revision="v1.0")),
        ("org/name@refs/pr/7", Ref("org/name", revision="refs/pr/7")),
        (f"{HUB}/org/name", Ref("org/name")),
        ("huggingface.co/org/name", Ref("org/name")),
        (f"{HUB}/org/name/tree/main", Ref("org/name")),
        (f"{HUB}/org/name/tree/dev/sub/dir", Ref("org/name", revision="dev", folder="sub/dir")),
        (
            f"{HUB}/org/name/blob/main/x.safetensors?download=true",
            Ref("org/name", file="x.safetensors"),
        ),
        (f"{HUB}/org/name/resolve/v2/a%20b.gguf", Ref("org/name", revision="v2", file="a b.gguf")),
        (
            f"{HUB}/org/name/blob/refs/pr/3/x.json",
            Ref("org/name", revision="refs/pr/3", file="x.json"),
        ),
        ("https://hf-mirror.com/org/name/tree/main", Ref("org/name")),
        ("https://modelscope.cn/models/org/name/files", Ref("org/name")),
        ("http://my.mirror:8080/org/name/blob/main/x.bin", Ref("org/name", file="x.bin")),
    ],
)
def test_name_or_link_means_a_repo(text: str, ref: Ref):
    assert parse_ref(text, hosts=["my.mirror"]) == ref


@pytest.mark.parametrize("text", ["datasets/org/name", f"{HUB}/datasets/org/name"])
def test_dataset_is_refused_unless_asked_for(text: str):
    with pytest.raises(InputError, match="is a dataset, not a model") as caught:
        parse_ref(text)
    assert caught.value.hint == ("to download it anyway: decant pull org/name --repo-type dataset")
    assert parse_ref(text, repo_type="dataset") == Ref("org/name", "dataset")


def test_space_is_refused():
    with pytest.raises(InputError, match="is a space, not a model"):
        parse_ref(f"{HUB}/spaces/org/name")


@pytest.mark.parametrize(
    "text",
    [
        "", "a/b/c", "../etc", "org/na me", "org/..", "-x/y", "org/name@", "org/name@../x",
        "https://example.com/org/name", f"{HUB}/org/name/discussions/4", f"{HUB}/",
        "file:///etc/passwd", "https://[::1/org/name", "org--x/name",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str):
    with pytest.raises(InputError):
        parse_ref(text)


def test_two_revisions_are_refused():
    with pytest.raises(InputError, match="names revision 'a', --revision says 'b'"):
        parse_ref("org/name@a", revision="b")


@pytest.mark.parametrize(
    "path",
    [
        "../x", "/etc/passwd", "a/../../x", "C:\\x", "c:x", "a\\b", "a\0b", "x" * 300,
        "é" * 200, "a//b", "", ".", "a/./b", "new\nline", "\ud800",
    ],
)  # fmt: skip
def test_path_that_could_leave_its_folder_is_unsafe(path: str):
    assert unsafe(path)


@pytest.mark.parametrize("path", ["x", "a/b.json", ".gitattributes", "über/モデル.gguf", "a..b"])
def test_usual_path_is_safe(path: str):
    assert unsafe(path) is None


@pytest.mark.parametrize(
    ("link", "helps"),
    [
        ("https://github.com/org/name", "`git clone`"),
        ("https://www.kaggle.com/models/org/name", "browser"),
        ("https://drive.google.com/drive/folders/1a", "browser"),
        ("https://ollama.com/library/llama3", "ollama:NAME"),
        ("https://hub.example/org/name", "HF_ENDPOINT=https://hub.example"),
    ],
)
def test_a_link_to_a_site_that_is_no_hub_says_what_to_do(link, helps):
    with pytest.raises(InputError, match="is not a hub that decant knows") as caught:
        parse_ref(link)

    assert helps in str(caught.value.hint)
