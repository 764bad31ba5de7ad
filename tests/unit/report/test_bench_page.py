from headrace.report.bench_page import bench_page, write_bench_page

WHERE = {
    "gpu": None,
    "cpu": "A <CPU>",
    "cpu_cores": 2,
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "commit": None,
    "date": "2026-01-02T03:04:05+00:00",
}
VERDICT = {
    "passed": True,
    "prediction_error_median": 0.01,
    "prediction_error_worst": 0.04,
    "auto_behind": -0.5,
    "bound_share_least": 0.91,
    "bound_share_median": 0.97,
    "link_share_least": 0.98,
    "fits_behind": None,
}
STREAM = {
    "policy": "stream",
    "origin": "emulated",
    "resident_fraction": 0.0,
    "recompute_fraction": 0.0,
    "host_fraction": 0.0,
    "prefill_s": 1.5,
    "step_s": 0.4,
    "step_s_min": 0.39,
    "step_s_max": 0.41,
    "tokens_per_s": 20.0,
    "predicted_step_s": 0.41,
    "bound_s": 0.38,
    "link_bytes_per_step": 1 << 24,
    "link_busy": 0.99,
    "device_busy": 0.2,
    "peak_gpu_bytes": 1 << 26,
    "energy_j_per_step": 2.5,
    "speedup_over_stream": 1.0,
    "of_profile": {"link": 0.98, "rebuild": None},
    "agreement": {"max_logit_error": 0.002, "tokens_identical": True},
}
RIVAL = {
    "rival": "transformers",
    "step_s": 0.1,
    "step_s_min": 0.1,
    "step_s_max": 0.1,
    "tokens_per_s": 80.0,
    "prefill_s": 1.4,
    "peak_gpu_bytes": 1 << 27,
    "energy_j_per_step": None,
    "speedup_over_stream": 4.0,
    "agreement": None,
}
CASE = {
    "case": "opt-6.7b-24gib",
    "machine": "a100-40gb-pcie4",
    "workload": {
        "model": "opt-6.7b",
        "dtype": "bfloat16",
        "layers": 2,
        "narrow": 4,
        "rows": 8,
        "prompt_len": 512,
        "gpu_memory": 1 << 27,
        "weights_on_host": 0.5,
    },
    "asked": {"layers": 32, "rows": 64, "prompt_len": 1024, "gpu_memory": "24GiB"},
    "adapted": ["a slice", "a step would take 53 s here"],
    "policies": [STREAM, {**STREAM, "policy": "auto", "step_s": 0.2, "speedup_over_stream": 2.0}],
    "rivals": [RIVAL],
    "unable": [{"name": "transformers-static", "reason": "it needs <CUDA>"}],
}
DATA = {
    "workloads": ["batch-mha"],
    "environment": WHERE,
    "verdict": VERDICT,
    "cases": [CASE],
    "unable": [{"name": "fits-1", "reason": "no room"}],
}


def test_a_case_has_a_bar_for_each_run_with_bound_and_prediction():
    page = bench_page(DATA)
    assert page.count('class="taken"') == 3
    # A rival has neither.
    assert page.count('class="bound"') == page.count('class="foreseen"') == 2
    for words in ("400 ms", "200 ms", "100 ms", "2.0 × stream", "4.0 × stream", "2.5 J"):
        assert words in page


def test_what_was_asked_what_was_run_and_what_could_not_is_said():
    page = bench_page(DATA)
    assert (
        "Asked: 64 rows × 1,024 tokens, 32 layers within 24GiB. Less is run here: a slice" in page
    )
    assert "8 rows × 512 tokens, 2 layers, 1/4 as wide, bfloat16, on a100-40gb-pcie4" in page
    assert "within 128 MiB of device memory, 50% of the weights on the host" in page
    assert "transformers-static: it needs &lt;CUDA&gt;" in page
    assert "<b>fits-1</b>: no room" in page
    assert "auto is the fastest policy of every case." in page
    assert "Emulated: measured on a CPU" in page


def test_words_are_escaped_and_nothing_is_loaded(tmp_path):
    write_bench_page(tmp_path / "bench.html", DATA)
    page = (tmp_path / "bench.html").read_text("utf-8")
    assert "A &lt;CPU&gt;, 2 cores" in page
    assert "<CPU>" not in page
    assert "http://www.w3.org" in page
    assert "src=" not in page
    assert "default-src 'none'" in page


def test_nothing_measured_makes_a_page_all_the_same():
    page = bench_page({**DATA, "cases": [], "verdict": {**dict.fromkeys(VERDICT), "passed": True}})
    assert "Could not run" in page
    assert "Predicted against measured" not in page
