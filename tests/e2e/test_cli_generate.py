import json

import pytest
from tests.e2e.in_process import assert_refused, disturb_attention, run_here

from headrace import LLM, SamplingParams
from headrace.engine.loading import load_model
from headrace.report.timeline_page import read_timeline_page

EMULATED = "a100-40gb-pcie4"
PROMPT = "def add(a, b):\n    return"
HERE = ("generate", "demo", "--dtype", "float32", "--emulate", EMULATED, "--quiet")
REQUIRED = {"outputs", "tokens_per_s", "step_s", "predicted_step_s", "peak_gpu_bytes", "audit"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    (folder / "prompt.txt").write_text("class Stack:\n    def push(self, item):\n")
    (folder / "not-text.bin").write_bytes(b"\xff\xfe\x00abc")
    return folder


@pytest.fixture(scope="module")
def generated(headrace, files):
    """Two prompts, in JSON, with everything that can be asked for."""
    return headrace(
        *HERE[:-1],
        *("--prompt", PROMPT, "--prompt-file", files / "prompt.txt", "--max-tokens", 8),
        *("--policy", "recompute", "--recompute-fraction", 0.5, "--audit", "--json"),
        *("--timeline", files / "page.html", "--trace", files / "trace.json"),
    )


@pytest.fixture(scope="module")
def demo():
    return load_model("demo", device="cpu", dtype="float32")


def test_standard_output_holds_the_documented_object(generated):
    assert generated.returncode == 0
    data = json.loads(generated.stdout)
    assert data.keys() >= REQUIRED
    assert len(data["outputs"]) == 2
    for output in data["outputs"]:
        assert output.keys() >= {"text", "token_ids", "finish_reason"}
        assert 1 <= len(output["token_ids"]) <= 8
        assert output["finish_reason"] in ("stop", "length")
    assert data["outputs"][0]["prompt"] == PROMPT
    assert data["outputs"][0]["text"]
    for figure in ("tokens_per_s", "step_s", "predicted_step_s", "peak_gpu_bytes"):
        assert data[figure] > 0
    assert (data["policy"], data["recompute_fraction"]) == ("recompute", 0.5)
    assert "loading demo" in generated.stderr


def test_an_emulated_link_is_labelled(generated):
    assert json.loads(generated.stdout)["origin"] == "emulated"


def test_the_audit_is_of_what_was_generated(generated):
    audit = json.loads(generated.stdout)["audit"]
    assert audit["tokens_identical"] is True
    assert audit["passed"] is True
    assert 0 <= audit["max_logit_error"] <= audit["tolerance"] == 1e-4
    assert (audit["policy"], audit["recompute_fraction"]) == ("recompute", 0.5)


def test_the_page_holds_prediction_and_measurement(generated, files):
    predicted, measured = read_timeline_page(files / "page.html")
    assert (predicted.origin, measured.origin) == ("predicted", "emulated")
    assert predicted.steps == measured.steps == tuple(range(7))
    assert {"compute", "load_activations"} <= {span.lane for span in measured.spans}


def test_the_trace_holds_the_same(generated, files):
    events = json.loads((files / "trace.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"predicted: demo, recompute", "emulated: demo, recompute"}
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    assert any(event["name"].startswith("rebuild") for event in events)


def test_the_report_is_labelled_and_has_text_and_audit(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--max-tokens", 3, "--policy", "stream", "--audit")
    done = run_here(capsys, *HERE, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert PROMPT in done.stdout
    assert "(length, 3 tokens)" in done.stdout
    assert "policy stream: a step takes" in done.stdout
    assert "(emulated), predicted" in done.stdout
    assert "audit passed: tokens identical" in done.stdout


def test_sampling_repeats_with_its_seed(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--max-tokens", 6, "--temperature", 1.5, "--json", "--seed")
    first, again, other = (
        json.loads(run_here(capsys, *HERE, *words, seed).stdout)["outputs"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


SAMPLED = ("--max-tokens", 5, "--temperature", 1.2, "--seed", 3, "--n", 2, "--logprobs", 2)


def test_samples_and_logprobs_are_those_of_python(stored_profile, capsys, demo):
    words = ("--prompt", PROMPT, "--prompt", "import", *SAMPLED, "--policy", "stream", "--json")
    outputs = json.loads(run_here(capsys, *HERE, *words).stdout)["outputs"]
    params = SamplingParams(max_tokens=5, temperature=1.2, seed=3, n=2, logprobs=2)
    expected = LLM(demo, policy="stream").generate([PROMPT, "import"], params)
    for output, wanted in zip(outputs, expected, strict=True):
        samples = output.pop("outputs")
        assert output == {
            "prompt": wanted.prompt,
            "prompt_token_ids": list(wanted.prompt_token_ids),
            "text": wanted.text,
            "token_ids": list(wanted.token_ids),
            "finish_reason": wanted.finish_reason,
        }
        for sample, one in zip(samples, wanted.outputs, strict=True):
            logprobs = sample.pop("logprobs")
            made = {name: getattr(one, name) for name in sample}
            assert sample == made | {"token_ids": list(one.token_ids)}
            assert sample.keys() == {"index", "text", "token_ids", "finish_reason"}
            assert [token["token_id"] for token in logprobs] == sample["token_ids"]
            for token, of_python in zip(logprobs, one.logprobs, strict=True):
                assert token.keys() == {"token_id", "logprob", "top"}
                assert token["logprob"] == pytest.approx(of_python.logprob, abs=1e-4)
                assert [token_id for token_id, _ in token["top"]] == [
                    token_id for token_id, _ in of_python.top
                ]
        assert [sample["index"] for sample in samples] == [0, 1]
        assert samples[0]["token_ids"] != samples[1]["token_ids"]


def test_without_logprobs_they_are_null(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--max-tokens", 2, "--json")
    (output,) = json.loads(run_here(capsys, *HERE, *words).stdout)["outputs"]
    (sample,) = output["outputs"]
    assert (sample["text"], sample["logprobs"]) == (output["text"], None)


def test_the_text_numbers_prompts_and_samples_and_shows_logprobs(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--prompt", "import", *SAMPLED)
    done = run_here(capsys, *HERE, *words, "--json")
    outputs = json.loads(done.stdout)["outputs"]
    text = run_here(capsys, *HERE, *words).stdout
    heads = [line for line in text.splitlines() if line.startswith("── ")]
    assert heads == [
        f"── {prompt}, sample {sample} of 2 ── "
        f"({one['finish_reason']}, {len(one['token_ids'])} tokens)"
        for prompt, output in enumerate(outputs, 1)
        for sample, one in enumerate(output["outputs"], 1)
    ]
    parts = text.split("── 1, sample 2 of 2 ── ")[1].split("── 2,")[0]
    second = outputs[0]["outputs"][1]
    assert PROMPT + second["text"] in parts
    rows = parts.partition("likeliest\n")[2].splitlines()[1:]
    shown = [float(row.split()[0]) for row in rows if row]
    assert shown == [round(token["logprob"], 3) for token in second["logprobs"]]


def test_a_row_runs_at_a_time_and_the_text_is_the_same(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--prompt", "import", "--max-tokens", 4, "--policy", "stream")
    alone, together = (
        json.loads(run_here(capsys, *HERE, *words, *more, "--json").stdout)
        for more in (("--max-rows", 1), ())
    )
    assert alone["outputs"] == together["outputs"]
    assert alone["host_bytes"] < together["host_bytes"]


def test_a_stop_string_ends_the_text(stored_profile, capsys):
    words = ("--prompt", PROMPT, "--max-tokens", 12, "--stop", "\n", "--json")
    (output,) = json.loads(run_here(capsys, *HERE, *words).stdout)["outputs"]
    assert output["finish_reason"] == "stop"
    assert "\n" not in output["text"]


def test_one_token_can_be_generated_and_drawn(stored_profile, capsys, tmp_path):
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    words = ("--prompt", PROMPT, "--max-tokens", 1, "--timeline", page, "--trace", trace, "--json")
    done = run_here(capsys, *HERE, *words)
    assert done.returncode == 0
    assert json.loads(done.stdout)["step_s"] == 0
    assert read_timeline_page(page)
    assert json.loads(trace.read_text())["traceEvents"]


def test_the_audit_ends_where_the_context_does(stored_profile, capsys):
    prompt = "x = 1\n" * 255 + "y"
    words = ("--prompt", prompt, "--max-tokens", 2000, "--policy", "resident", "--audit", "--json")
    data = json.loads(run_here(capsys, *HERE, *words).stdout)
    assert data["outputs"][0]["finish_reason"] == "length"
    assert data["audit"]["passed"]


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_an_audit_that_fails_is_exit_code_1(stored_profile, capsys, monkeypatch, factor):
    disturb_attention(monkeypatch, factor)
    words = ("--prompt", PROMPT, "--max-tokens", 4, "--policy", "stream", "--audit")
    done = run_here(capsys, *HERE, *words, "--json")
    assert done.returncode == 1
    audit = json.loads(done.stdout)["audit"]
    assert audit["passed"] is False
    # JSON has no infinity: an error without limit is null.
    assert (audit["max_logit_error"] is None) == (factor != factor)
    done = run_here(capsys, *HERE, *words)
    assert done.returncode == 1
    assert "audit FAILED" in done.stdout


WITH_PROMPT = (*HERE, "--prompt", PROMPT)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (HERE, ["no prompt was given", "--prompt-file"]),
        ((*WITH_PROMPT, "--policy", "fast"), ["'fast'", "recompute"]),
        ((*WITH_PROMPT, "--prompt", "x = 1\n" * 300), ["tokens", "1024", "shorten the prompt"]),
        ((*WITH_PROMPT, "--prompt", ""), ["a prompt is empty"]),
        (("generate", "/no/such", "--prompt", PROMPT, "--quiet"), ["'/no/such'", "config.json"]),
        (("generate", "opt-6.7b", "--prompt", PROMPT, "--quiet"), ["published shape without"]),
        ((*HERE[:2], "--emulate", "h300", "--prompt", PROMPT, "--quiet"), ["'h300'", EMULATED]),
        ((*HERE, "--prompt-file", "/no/such.txt"), ["'/no/such.txt'", "No such file"]),
        ((*HERE, "--prompt-file", "/"), ["'/'", "directory"]),
        ((*WITH_PROMPT, "--max-tokens", "0"), ["max_tokens is 0", "1 or more"]),
        ((*WITH_PROMPT, "--seed", "-1"), ["seed is -1"]),
        ((*WITH_PROMPT, "--n", "0"), ["n is 0", "1 or more"]),
        ((*WITH_PROMPT, "--n", "two"), ["--n", "'two'", "generate --help"]),
        ((*WITH_PROMPT, "--n", "65"), ["--n is 65", "at most 64 rows", "raise --max-rows"]),
        ((*WITH_PROMPT, "--n", "3", "--max-rows", "2"), ["--n is 3", "at most 2 rows"]),
        ((*WITH_PROMPT, "--max-rows", "0"), ["--max-rows is 0", "1 or more"]),
        ((*WITH_PROMPT, "--logprobs", "21"), ["logprobs is 21", "0 to 20"]),
        ((*WITH_PROMPT, "--logprobs", "-1"), ["logprobs is -1", "0 to 20"]),
        ((*WITH_PROMPT, "--logprobs", "all"), ["--logprobs", "'all'"]),
        ((*WITH_PROMPT, "--recompute-fraction", "7"), ["recompute_fraction is 7.0", "0 to 1"]),
        ((*WITH_PROMPT, "--gpu-memory", "much"), ["--gpu-memory is 'much'"]),
        ((*WITH_PROMPT, "--gpu-memory", "1MiB"), ["gpu_memory is 1.0 MiB", "does not fit"]),
        ((*WITH_PROMPT, "--policy", "stream", "--host-memory", "1KiB"), ["1.0 KiB", "host memory"]),
        ((*WITH_PROMPT, "--timeline", "/no/such/page.html"), ["--timeline is '/no/such/page.htm"]),
        ((*WITH_PROMPT, "--trace", "/"), ["--trace is '/'", "cannot be written"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(stored_profile, capsys, words, parts):
    assert_refused(run_here(capsys, *words), parts)
    done = run_here(capsys, *words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_text_is_named(capsys, files):
    file = files / "not-text.bin"
    done = run_here(capsys, *HERE, "--prompt-file", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{str(file)!r} is not text in UTF-8" in done.stderr


def test_an_unknown_hub_id_is_one_line_offline(headrace):
    done = headrace("generate", "no-such-owner/no-such-model", "--prompt", PROMPT, "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "'no-such-owner/no-such-model' cannot be loaded" in done.stderr
