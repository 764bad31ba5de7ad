import json

import pytest

from headrace.cli.models import demo_directory, resolve_shape
from headrace.errors import ModelError, UnsupportedModelError
from headrace.model.published import published_names, published_shape

CONFIG = json.loads((demo_directory() / "config.json").read_text())


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", published_names())
def test_a_published_name_is_its_shape(name):
    assert resolve_shape(name) == published_shape(name)


def test_the_demo_model_and_its_directory_are_the_same():
    demo = resolve_shape("demo")
    there = resolve_shape(str(demo_directory()))
    assert (demo.name, demo.num_layers, demo.d_model) == ("demo", there.num_layers, there.d_model)


def test_a_dtype_replaces_the_models_own():
    assert resolve_shape("opt-6.7b", "float32").dtype == "float32"


def test_a_directory_goes_before_a_published_name(tmp_path):
    (tmp_path / "opt-6.7b").mkdir()
    (tmp_path / "opt-6.7b" / "config.json").write_text(json.dumps(CONFIG))
    assert resolve_shape("opt-6.7b").d_model == CONFIG["hidden_size"]


@pytest.mark.parametrize(
    ("content", "part"), [(None, "cannot be read"), ("{", "not JSON"), ("[]", "no JSON object")]
)
def test_a_directory_without_a_configuration_is_refused(tmp_path, content, part):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=part):
        resolve_shape(str(tmp_path))


def test_a_kind_that_is_not_served_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "is_encoder_decoder": True}))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        resolve_shape(str(tmp_path))


def test_a_file_is_refused_with_what_to_give(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match="is a file; give the directory"):
        resolve_shape(str(file))


def test_a_misspelt_name_is_told_the_closest():
    with pytest.raises(ModelError, match="did you mean 'qwen3-8b'"):
        resolve_shape("Qwen-3-8b")


def test_of_a_hub_id_the_configuration_is_fetched(monkeypatch):
    def download(repo, file):
        assert (repo, file) == ("owner/name", "config.json")
        return demo_directory() / "config.json"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    shape = resolve_shape("owner/name")
    assert (shape.name, shape.d_model) == ("owner/name", CONFIG["hidden_size"])


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch):
    def download(*_):
        raise OSError("no connection\nand much more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ModelError, match=r"no connection\).*give a directory") as raised:
        resolve_shape("owner/name")
    assert "\n" not in str(raised.value)
