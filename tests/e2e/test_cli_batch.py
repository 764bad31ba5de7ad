import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.batch_support import CHAT, line_of, results_of, write_lines
from tests.e2e.in_process import assert_refused, run_here

from headrace.cli.models import demo_directory

EMULATED = "a100-40gb-pcie4"
OPTIONS = ("--model", "demo", "--dtype", "float32", "--emulate", EMULATED, "--policy", "stream")
PROMPTS = ("def add(a, b):\n    return", "class Stack:\n    def push", "import os\n", "x = [1, 2")


def request(number, **body):
    """Return one of many requests: most greedy, some sampled, one that is wrong."""
    asked = {"prompt": PROMPTS[number % 4], "max_tokens": 6 + number % 5, "temperature": 0}
    if number % 7 == 3:
        asked |= {"temperature": 1.2, "n": 2}
    return line_of(f"request {number}", **(asked | body))


LINES = [*map(request, range(36)), line_of("chat", CHAT), b"not json", request(38, top_p="x")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("batch")


@pytest.fixture(scope="module")
def requests(folder):
    return write_lines(folder / "in.jsonl", *LINES)


@pytest.fixture(scope="module")
def undisturbed(headrace, folder, requests):
    """The finished process, and its output."""
    output = folder / "undisturbed.jsonl"
    return headrace("batch", requests, output, *OPTIONS, "--json"), output


def test_every_line_has_a_result_and_the_summary_counts_them(undisturbed):
    done, output = undisturbed
    assert done.returncode == 0, done.stderr
    found = results_of(output)
    assert len(found) == 39
    codes = [line["response"]["status_code"] for line in found.values() if line["response"]]
    assert (codes.count(200), codes.count(400)) == (36, 2)
    summary = json.loads(done.stdout)
    counts = [summary[name] for name in ("total", "completed", "failed", "skipped")]
    assert counts == [39, 36, 3, 0]
    usage = [line["response"]["body"].get("usage") for line in found.values() if line["response"]]
    assert summary["tokens"] == sum(one["completion_tokens"] for one in usage if one)
    assert (summary["output"], summary["origin"]) == (str(output), "emulated")
    assert summary["seconds"] > 0 < summary["tokens_per_s"]
    assert "loading demo" in done.stderr
    assert "39/39 requests" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("3 errors")


def test_results_are_those_of_generate(undisturbed, stored_profile, capsys):
    words = ("generate", *OPTIONS[1:], "--prompt", PROMPTS[0], "--max-tokens", 6, "--json")
    wanted = json.loads(run_here(capsys, *words, "--quiet").stdout)["outputs"][0]["text"]
    body = results_of(undisturbed[1])["request 0"]["response"]["body"]
    assert body["choices"][0]["text"] == wanted
    assert (body["object"], body["model"]) == ("text_completion", "demo")


def test_a_second_run_has_nothing_to_do_and_needs_no_model(
    requests, undisturbed, stored_profile, capsys
):
    _, output = undisturbed
    before = output.read_bytes()
    done = run_here(capsys, "batch", requests, output, "--model", "/no/such")
    assert (done.returncode, output.read_bytes()) == (0, before)
    assert "39 requests have their results" in done.stdout
    assert "0 completed now, 39 were done before; 3 errors" in done.stdout


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on(requests, folder, undisturbed, cache):
    output = folder / "killed.jsonl"
    words = [sys.executable, "-m", "headrace", "batch", requests, output, *OPTIONS]
    words += ["--max-rows", "3", "--quiet"]
    environment = os.environ | {"HEADRACE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def results():
        return output.read_bytes().count(b"\n") if output.exists() else 0

    for wanted in (1, 9, 20, 31):
        process = subprocess.Popen(words, env=environment)
        deadline = time.monotonic() + 60
        while results() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert wanted <= results() < 39
        results_of(output)
        with output.open("ab") as file:
            # As if the kill had come in the middle of a write.
            file.write(b'{"id": "batch_req_0123", "cust')
    left = 39 - results()
    done = subprocess.run([*words, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["skipped"], summary["completed"] + summary["failed"]) == (39 - left, left)
    assert results_of(output, created=False) == results_of(undisturbed[1], created=False)


def test_a_chat_needs_a_template(undisturbed):
    error = results_of(undisturbed[1])["chat"]["response"]["body"]["error"]
    assert "no chat template" in error["message"]
    assert "/v1/completions" in error["message"]


def test_a_batch_of_errors_needs_no_model(capsys, tmp_path):
    path = write_lines(tmp_path / "in.jsonl", b"not json", request(1, n=0))
    done = run_here(capsys, "batch", path, tmp_path / "out.jsonl", "--model", "/no/such", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["failed"] == 2
    assert results_of(tmp_path / "out.jsonl").keys() == {"line:1", "request 1"}


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_file_that_may_not_grow_is_exit_code_1_and_keeps_its_results(tmp_path, cache):
    lines = [request(number, n=0) for number in range(20)]
    path, output = write_lines(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    words = [sys.executable, "-m", "headrace", "batch", path, output, "--model", "demo", "--quiet"]
    environment = os.environ | {"HEADRACE_CACHE": str(cache)}
    full = subprocess.run(
        [*words, "--json"], preexec_fn=limit_files, env=environment, capture_output=True, text=True
    )
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1
    assert full.stderr.startswith(f"headrace: error: OUTPUT {str(output)!r} cannot be written: ")
    assert json.loads(full.stdout)["error"]["message"] in full.stderr
    written = len(results_of(output))
    assert 0 < written < 20
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{written} were done before" in done.stdout
    assert len(results_of(output)) == 20


@pytest.fixture
def files(tmp_path):
    """Inputs and outputs that are off, by the names that the cases below have for them."""
    write_lines(tmp_path / "good.jsonl", request(0))
    write_lines(tmp_path / "twice.jsonl", request(0), request(1), request(0))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("my notes\n")
    (tmp_path / "same").symlink_to(tmp_path / "good.jsonl")
    other = {"id": "batch_req_1", "custom_id": "other", "response": None, "error": {}}
    (tmp_path / "other.jsonl").write_text(json.dumps(other) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "output", "extra", "parts"),
    [
        ("empty.jsonl", "out", (), ["empty.jsonl", "holds no request", "custom_id"]),
        ("no.jsonl", "out", (), ["no.jsonl", "No such file"]),
        (".", "out", (), ["directory"]),
        ("twice.jsonl", "out", (), ["'request 0' on lines 1, 3"]),
        ("good.jsonl", "no/out", (), ["no/out", "No such file"]),
        ("good.jsonl", ".", (), ["no regular file"]),
        ("good.jsonl", "good.jsonl", ("--overwrite",), ["which is the INPUT, too"]),
        ("good.jsonl", "same", ("--overwrite",), ["which is the INPUT, too"]),
        ("good.jsonl", "notes.txt", (), ["notes.txt", "line 1", "--overwrite"]),
        ("good.jsonl", "other.jsonl", (), ["'other'", "another input", "--overwrite"]),
        ("good.jsonl", "out", ("--max-rows", "0"), ["--max-rows is 0", "1 or more"]),
        ("good.jsonl", "out", ("--policy", "fast"), ["'fast'", "recompute"]),
        ("good.jsonl", "out", ("--gpu-memory", "much"), ["--gpu-memory is 'much'"]),
        ("good.jsonl", "out", ("--emulate", "h300"), ["'h300'", EMULATED]),
        ("good.jsonl", "out", (), ["'/no/such'", "config.json"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, files, source, output, extra, parts):
    before = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
    words = ("batch", files / source, files / output, "--model", "/no/such", "--quiet", *extra)
    assert_refused(run_here(capsys, *words), parts)
    done = run_here(capsys, *words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
    assert {name: (files / name).read_bytes() for name in before} == before


def test_a_model_must_be_named(capsys):
    done = run_here(capsys, "batch", "in.jsonl", "out.jsonl")
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_two_processes_do_not_write_one_output(capsys, files):
    with (files / "out").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run_here(
            capsys, "batch", files / "good.jsonl", files / "out", "--model", "demo", "--quiet"
        )
    assert done.returncode == 2
    assert "another process writes to" in done.stderr
    assert done.stderr.count("\n") == 1


def test_overwriting_starts_over(stored_profile, capsys, files):
    words = ("batch", files / "good.jsonl", files / "notes.txt", *OPTIONS, "--quiet")
    done = run_here(capsys, *words, "--overwrite")
    assert (done.returncode, done.stderr) == (0, "")
    assert results_of(files / "notes.txt").keys() == {"request 0"}


@pytest.fixture(scope="module")
def chat_model(folder):
    """The demo model with a chat template."""
    model = shutil.copytree(demo_directory(), folder / "chat-model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}# assistant:{% endif %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def test_a_chat_is_answered(stored_profile, chat_model, capsys, tmp_path):
    said = [{"role": "user", "content": [{"type": "text", "text": "add two numbers"}]}]
    asked = {"messages": said, "temperature": 0, "max_tokens": 5}
    text = "# user: add two numbers\n# assistant:"
    path = write_lines(
        tmp_path / "in.jsonl",
        line_of("chat", CHAT, **asked, logprobs=True, top_logprobs=2),
        line_of("same", prompt=text, temperature=0, max_tokens=5, logprobs=2),
    )
    words = ("--model", chat_model, *OPTIONS[2:], "--quiet")
    done = run_here(capsys, "batch", path, tmp_path / "out.jsonl", *words)
    assert (done.returncode, done.stderr) == (0, "")
    chat, same = results_of(tmp_path / "out.jsonl").values()
    chat, same = chat["response"]["body"], same["response"]["body"]
    assert chat["usage"] == same["usage"]
    (choice,), (plain,) = chat["choices"], same["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": plain["text"],
        "refusal": None,
    }
    content = choice["logprobs"]["content"]
    assert [one["token"] for one in content] == plain["logprobs"]["tokens"]
    assert [one["logprob"] for one in content] == pytest.approx(
        plain["logprobs"]["token_logprobs"], abs=1e-4
    )
    assert all(len(one["top_logprobs"]) == 2 for one in content)
