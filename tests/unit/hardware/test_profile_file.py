import json
import math
from dataclasses import replace

import pytest

from headrace.errors import ProfileError
from headrace.hardware.catalog import machine, machine_names
from headrace.hardware.identity import GpuIdentity, local_identity
from headrace.hardware.profile import GemmPoint, Measurement
from headrace.hardware.profile_file import (
    load_profile,
    profile_from_json,
    profile_to_json,
    save_profile,
)
from headrace.timeline import Origin


@pytest.fixture
def measured():
    return replace(
        machine("a100-40gb-pcie4"),
        origin=Origin.EMULATED,
        h2d_curve=((65536, 1e9), (2**20, 2.5e9)),
        attend_bytes_per_s=7.0,
        gemm_curve=(GemmPoint(64, 32, 64, "float32", 1e9),),
        measurements={"h2d_bytes_per_s": Measurement(2.0, 1.0, 3.0, 5)},
        emulates="paper-a100",
        identity=local_identity(GpuIdentity("A GPU", 2**30, "13.0", "580.1")),
        date="2026-01-01T00:00:00+00:00",
        quick=True,
    )


def test_round_trip(measured, tmp_path):
    path = tmp_path / "new" / "folder" / "profile.json"
    save_profile(measured, path)
    assert load_profile(path) == measured
    assert [item.name for item in path.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("name", machine_names())
def test_round_trip_of_published_machines(name):
    text = json.dumps(profile_to_json(machine(name)), allow_nan=False)
    assert profile_from_json(json.loads(text)) == machine(name)


def test_a_rate_without_limit_can_be_stored(measured):
    endless = replace(measured, rebuild_flops_per_s=math.inf)
    text = json.dumps(profile_to_json(endless), allow_nan=False)
    assert profile_from_json(json.loads(text)) == endless


def test_a_file_from_before_the_kernel_was_measured_beside_the_link_is_read(measured):
    data = profile_to_json(measured)
    assert data["schema_version"] == 6
    for name in ("h2d_while_attend_bytes_per_s", "host_attend_while_h2d_bytes_per_s"):
        del data[name]
    assert profile_from_json({**data, "schema_version": 1}) == measured


def test_a_file_from_before_dense_work_was_measured_by_rows_is_read(measured):
    data = profile_to_json(measured)
    for name in ("dense_curve", "resident_curve"):
        del data[name]
    assert profile_from_json({**data, "schema_version": 2}) == measured


def test_a_file_from_before_short_pages_were_measured_is_read(measured):
    data = profile_to_json(measured)
    for name in ("host_page_s", "resident_attend_bytes_per_s"):
        del data[name]
    assert profile_from_json({**data, "schema_version": 3}) == measured


def test_a_file_from_before_mail_was_measured_is_read(measured):
    data = profile_to_json(measured)
    for name in ("mail_bytes_per_s", "mail_call_s"):
        del data[name]
    assert profile_from_json({**data, "schema_version": 4}) == measured


def test_a_file_from_before_launching_was_measured_is_read(measured):
    data = profile_to_json(measured)
    for name in ("step_s", "layer_s", "plain_layer_s", "stream_s", "rebuild_s", "host_s"):
        del data[f"launch_{name}"]
    del data["launch_while_attend"]
    assert profile_from_json({**data, "schema_version": 5}) == measured


def test_saving_replaces(measured, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text("old")
    save_profile(measured, path)
    assert load_profile(path) == measured


def test_saving_where_it_cannot_be(measured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match=r"cannot write the profile .*; choose another place"):
        save_profile(measured, tmp_path / "file" / "profile.json")


def assert_refused(path, problem):
    with pytest.raises(ProfileError, match=problem) as caught:
        load_profile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "headrace profile" in message
    assert "\n" not in message


def test_missing_file(tmp_path):
    assert_refused(tmp_path / "profile.json", "No such file")


def test_folder(tmp_path):
    assert_refused(tmp_path, "Is a directory")


@pytest.mark.parametrize("kept", [0, 1, 100, -3])
def test_truncated_file(measured, tmp_path, kept):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_to_json(measured))[:kept])
    assert_refused(path, "not JSON")


def test_binary_file(tmp_path):
    path = tmp_path / "profile.json"
    path.write_bytes(bytes(range(128, 256)))
    assert_refused(path, "not JSON")


def test_deeply_nested_file(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text("[" * 200_000)
    assert_refused(path, "not JSON")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 99}, "schema_version is 99; this headrace reads 1 and 2"),
        ({"schema_version": None}, "schema_version is None"),
        ({"h2d_bytes_per_s": "fast"}, "profile.h2d_bytes_per_s is str 'fast'; expected"),
        ({"h2d_bytes_per_s": None}, "profile.h2d_bytes_per_s is nothing"),
        ({"h2d_bytes_per_s": True}, "profile.h2d_bytes_per_s is bool"),
        ({"h2d_bytes_per_s": -1}, "h2d_bytes_per_s is -1.0; it must be above 0"),
        ({"device_memory_bytes": 1.5}, "profile.device_memory_bytes is float 1.5; expected int"),
        ({"origin": "guessed"}, "profile.origin is 'guessed'; allowed are predicted"),
        ({"h2d_curve": [[1, 2, 3]]}, r"profile.h2d_curve\[0\] has 3 values; expected 2"),
        ({"gemm_curve": [{}]}, r"profile.gemm_curve\[0\] lacks tokens"),
        ({"gemm_flops_per_s": []}, "profile.gemm_flops_per_s is list"),
        ({"measurements": {"a": 1}}, "profile.measurements.a is int 1; expected dict"),
        ({"colour": "blue"}, "profile has unknown colour"),
    ],
)
def test_wrong_content(measured, tmp_path, change, problem):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**profile_to_json(measured), **change}))
    assert_refused(path, problem)


def test_lacking_content(measured, tmp_path):
    data = profile_to_json(measured)
    del data["h2d_bytes_per_s"]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    assert_refused(path, "profile lacks h2d_bytes_per_s")


def test_another_kind_of_json(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text("[1, 2]")
    assert_refused(path, "expected an object, found list")
