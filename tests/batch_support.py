"""Batches for tests: lines, an engine that answers at once, and what reads prompts for it."""

import hashlib
import json
import random
from dataclasses import replace

from headrace.engine.batch_fields import RequestError
from headrace.engine.batch_input import BatchInput
from headrace.engine.batch_journal import Journal
from headrace.engine.batch_run import BatchRun
from headrace.engine.completion import Completed
from headrace.engine.request import CompletionOutput, RequestOutput, TokenLogprob

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def fields_of(custom_id="a", url=COMPLETIONS, **body):
    """Return a request: a completion of "x =", or a chat with one message, unless told."""
    asked = {"prompt": "x ="} if url == COMPLETIONS else {}
    if url == CHAT:
        asked = {"messages": [{"role": "user", "content": "hello"}]}
    body = {name: value for name, value in (asked | body).items() if value is not ...}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def line_of(custom_id="a", url=COMPLETIONS, **body):
    return json.dumps(fields_of(custom_id, url, **body)).encode()


def write_lines(path, *lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


class FakeReader:
    """Reads prompts as a tokenizer with one token a character does, and no chat template."""

    def prompts(self, custom_id, request):
        if request.is_chat:
            raise RequestError("no chat template", param="messages", code="no_chat_template")
        for place, prompt in enumerate(request.prompts):
            yield prompt, replace(request.params, seed=place)

    def token_text(self, token_id):
        return chr(token_id)


class FakeEngine:
    """Answers with a digest of the prompt, in an order of its own, some requests at once.

    A prompt that begins with "fail" fails.
    """

    def __init__(self, at_once=3, seed=0, on_request=lambda request: None):
        self.asked = []
        self.closed = False
        self._at_once = at_once
        self._random = random.Random(seed)
        self._on_request = on_request

    def complete(self, requests):
        running = []
        try:
            for request in requests:
                self._on_request(request)
                self.asked.append(request)
                running.append(request)
                if len(running) == self._at_once:
                    yield self._end(running)
            while running:
                yield self._end(running)
        finally:
            self.closed = True

    def _end(self, running):
        request = running.pop(self._random.randrange(len(running)))
        if str(request.prompt).startswith("fail"):
            return Completed(request.request_id, None, "it failed", "failed")
        return Completed(request.request_id, answer_of(request.prompt, request.params), None)


def answer_of(prompt, params):
    """Return as many samples as were asked for, of three tokens each."""
    outputs = []
    for index in range(params.n):
        text = hashlib.sha256(f"{prompt}/{index}/{params.seed}".encode()).hexdigest()[:3]
        tokens = tuple(map(ord, text))
        logprobs = None
        if params.logprobs is not None:
            logprobs = tuple(
                TokenLogprob(token, -0.5, ((token, -0.5), (33, float("-inf")))[: params.logprobs])
                for token in tokens
            )
        outputs.append(CompletionOutput(index, text, tokens, "length", logprobs))
    return RequestOutput(str(prompt), tuple(range(len(prompt))), tuple(outputs))


def run_batch(path, output, engine=None, *, on_progress=lambda counts: None, **journal):
    """Work a batch off with the fake engine, and return the counts."""
    with BatchInput(path) as batch, Journal(output, **journal) as opened:
        work = BatchRun(batch, opened, on_progress)
        work.refuse_invalid()
        if work.needs_engine:
            work.complete(engine or FakeEngine(), FakeReader(), "demo")
    return work.counts


def results_of(path, *, created=True):
    """Return the results of a file by custom_id, each of which is there once."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    if not created:
        for line in lines:
            if line["response"] is not None:
                line["response"]["body"].pop("created", None)
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found
