"""The demo model that ships with the package: its shape, its tokenizer, what it writes."""

import ast
import io
import tokenize
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

DEMO_DIR = Path(__file__).parents[2] / "src" / "headrace" / "assets" / "demo"
MAX_ASSET_BYTES = 16 * 2**20

ROUND_TRIP_TEXTS = [
    "",
    " ",
    "\n",
    "def f(x):\n    return x\n",
    "    if a:\n\t\tb = 1  # two  spaces\n\n\n        c()   \n",
    "\r\n\ttabs and\r\ncarriage returns \r",
    "don 't , touch . this !",
    "naïve café 日本語 \U0001f600 a\u0301 \u200b\x00",
    "1234567890 0xFF 1_000.5e-3",
]

PYTHON_MARKS = [
    "with ",
    "def ",
    "class ",
    "import ",
    "self",
    "return",
    "raise ",
    "if ",
    "for ",
    '"""',
]

PROMPTS = [
    "import ",
    "class Queue",
    "class Parser:\n    def __init__(self, ",
    "def main():\n    ",
    "    def close(self):\n        ",
    "def read_file(path):\n    with open(",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_DIR, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        DEMO_DIR, local_files_only=True, dtype=torch.float32
    )


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int = 64
) -> str:
    """Return the prompt and its greedy completion."""
    inputs = tokenizer(prompt, return_tensors="pt")
    token_ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(token_ids[0], skip_special_tokens=True)


def whole_lines(text: str) -> str:
    """Return the text without its last line, which the token limit may have cut."""
    return text.rpartition("\n")[0] + "\n"


def test_shape_is_a_small_llama_with_multi_head_attention(model: PreTrainedModel) -> None:
    config = model.config
    assert config.model_type == "llama"
    assert 3e6 <= model.num_parameters() <= 8e6
    assert config.num_hidden_layers >= 6
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.max_position_embeddings >= 1024


def test_files_are_small_and_documented() -> None:
    files = [path for path in DEMO_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_ASSET_BYTES
    card = (DEMO_DIR / "README.md").read_text(encoding="utf-8")
    for fact in ("bits per byte", "MIT", "PSF-2.0", "wall time"):
        assert fact in card


@pytest.mark.parametrize("text", ROUND_TRIP_TEXTS)
def test_tokenizer_gives_back_every_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_and_model_agree_on_special_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completion_splits_into_python_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> None:
    text = complete(model, tokenizer, prompt)
    assert len(text) > len(prompt) + 20
    completion = text.removeprefix(prompt)
    assert any(mark in completion for mark in PYTHON_MARKS), text
    source = io.StringIO(whole_lines(text))
    try:
        kinds = [token.type for token in tokenize.generate_tokens(source.readline)]
    except tokenize.TokenError:  # a bracket or string still open where the limit cut the text
        return
    assert tokenize.NEWLINE in kinds


def test_completion_of_a_method_header_is_a_method(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = complete(model, tokenizer, "class Stack:\n    def __init__(self, ", max_tokens=96)
    header = text.splitlines()[1]
    tree = ast.parse(f"class Stack:\n{header}\n        pass\n")
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assert len(function.args.args) >= 2
    assert "self." in text


def test_completion_is_deterministic_in_float32(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = complete(model, tokenizer, PROMPTS[2])
    assert complete(model, tokenizer, PROMPTS[2]) == first


def test_model_uses_its_context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A distinctive name is much likelier once the context has used it."""
    usage = "    frobnicator = frobnicator + 1\n"
    ids = tokenizer(usage * 4, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        log_probabilities = model(ids).logits[0, :-1].log_softmax(-1)
    nats = -log_probabilities.gather(1, ids[0, 1:, None])[:, 0]
    quarter = len(nats) // 4
    assert nats[-quarter:].mean() < 0.5 * nats[:quarter].mean()
