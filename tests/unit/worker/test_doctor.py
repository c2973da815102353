"""The doctor's checks of this machine and of the model's files, each seen to fail."""

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jobs.errors import StoreError
from model import shapes
from model.errors import CheckpointError
from tests.services import free_port
from tests.tiny_checkpoint import make_tiny_checkpoint
from worker.doctor import clocks, devices, examination, model_files, ports, store
from worker.doctor.examination import Check, examine
from worker.doctor.finding import Status, Verdict, fail, ok
from worker.doctor.subject import Subject
from worker.errors import DeviceGroupError

Make = Callable[..., Subject]
CPU = min(os.sched_getaffinity(0))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """A subject with these settings, and a sound model unless another is given."""
    for name in ("LONGHAUL_CHIP", "CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def make(groups: str = f"cpu:{CPU}", **settings: object) -> Subject:
        given = {"device_groups": groups, "store_url": f"file://{tmp_path}/store", **settings}
        for name, value in given.items():
            monkeypatch.setenv(f"LONGHAUL_{name.upper()}", str(value))
        return Subject()

    return make


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny")


def said(verdict: Verdict | None, status: Status, *words: str) -> None:
    """The verdict has this status, and these words in what it says."""
    assert verdict is not None
    assert verdict.status is status, verdict
    for word in words:
        assert word in f"{verdict.found} -> {verdict.advice}"


# The examination


def test_what_needs_a_failed_check_is_not_made_and_says_so(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_subject: Subject) -> Verdict:
        raise StoreError("the store is away")

    checks = (
        Check("good", lambda _: ok("fine")),
        Check("bad", raises),
        Check("nothing to check", lambda _: None),
        Check("after bad", lambda _: pytest.fail("was made"), ("good", "bad")),
        Check("after that", lambda _: pytest.fail("was made"), ("after bad",)),
        Check("apart", lambda _: fail("broken", "mend it"), ("good",)),
    )
    monkeypatch.setattr(examination, "CHECKS", checks)
    findings = [(each.check, each.status, each.found, each.advice) for each in examine(make())]
    assert findings == [
        ("good", "ok", "fine", ""),
        ("bad", "fail", "the store is away", ""),
        ("after bad", "skip", "not checked: bad first", ""),
        ("after that", "skip", "not checked: after bad first", ""),
        ("apart", "fail", "broken", "mend it"),
    ]


def test_every_check_needs_earlier_ones_and_has_a_name_of_its_own() -> None:
    names = [check.name for check in examination.CHECKS]
    assert len(set(names)) == len(names)
    for number, check in enumerate(examination.CHECKS):
        assert set(check.needs) <= set(names[:number]), check.name


def test_settings_that_can_not_be_read_end_it(make: Make) -> None:
    findings = {each.check: each for each in examine(make(shards_in_flight="many"))}
    assert findings["settings"].status is Status.FAIL
    assert "LONGHAUL_SHARDS_IN_FLIGHT" in findings["settings"].found
    assert {each.status for name, each in findings.items() if name != "settings"} == {Status.SKIP}


def test_supervisor_and_doctor_load_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import worker.cli, worker.supervisor, worker.doctor.examination\n"
        "assert not {'torch', 'torch_npu', 'transformers'} & {n for n, m in sys.modules.items() if m}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Devices


def test_a_cpu_that_this_process_may_not_use(make: Make) -> None:
    said(devices.present(make()), Status.OK)
    said(devices.present(make(f"cpu:{CPU},1023")), Status.FAIL, "no CPU 1023", "LONGHAUL_DEVICE_GROUPS")


@pytest.mark.parametrize(("kind", "node"), [("cuda", "nvidia"), ("npu", "davinci")])
def test_devices_are_counted_by_their_files(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, node: str
) -> None:
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    said(devices.present(make(f"{kind}:0")), Status.FAIL, f"{kind}:0 is named", "0 times", "driver")
    # A container may be given the host's second and third device: they are its first and second.
    for name in (f"{node}1", f"{node}2", f"{node}ctl", f"{node}_manager"):
        (tmp_path / name).touch()
    said(devices.present(make(f"{kind}:0,1")), Status.OK)
    said(devices.present(make(f"{kind}:0;{kind}:2")), Status.FAIL, f"{kind}:2 is named", "2 times")


def test_visible_devices_set_here_are_replaced_and_that_is_said(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    (tmp_path / "davinci0").touch()
    subject = make("npu:0")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    said(devices.present(subject), Status.WARN, "ASCEND_RT_VISIBLE_DEVICES is '4,5'", "replaces it")


def test_groups_that_can_not_be(make: Make) -> None:
    said(
        devices.groups(make("cpu:0-3;echo:0", tensor_parallel_size=2)),
        Status.OK,
        "cpu:0,1,2,3 (2 ranks), echo:0 (1",
    )
    with pytest.raises(DeviceGroupError, match="named twice"):
        devices.groups(make("npu:0,1;npu:1"))
    with pytest.raises(DeviceGroupError, match="2 ranks need"):
        devices.groups(make("cpu:0", tensor_parallel_size=2))


def test_the_engine_is_asked_for_each_kind_of_device(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.engine(make("echo:0")) is None
    said(devices.engine(make()), Status.OK, "torch")
    monkeypatch.setattr(devices, "_has_device", lambda kind: kind != "cuda")
    said(devices.engine(make("cpu:0;cuda:0")), Status.FAIL, "does not know cuda")
    monkeypatch.setattr(devices, "_has_device", lambda _kind: True)
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda _name: "2.13.0+cpu")
    said(devices.engine(make("cuda:0")), Status.FAIL, "2.13.0+cpu is built for CPUs", "torch with CUDA")
    monkeypatch.setattr(
        devices.importlib.util, "find_spec", lambda name: None if name == "torch_npu" else ...
    )
    said(devices.engine(make("npu:0")), Status.FAIL, "torch_npu not installed", "longhaul[worker,npu]")


def test_an_engine_that_gets_fewer_lines_than_it_can_run(make: Make) -> None:
    said(devices.lines_at_once(make()), Status.OK, "512 in 2 shards for an engine that runs up to 128")
    assert devices.lines_at_once(make("echo:0", max_num_seqs=513)) is None
    said(devices.lines_at_once(make(max_num_seqs=512)), Status.OK, "runs up to 512")
    underfed = devices.lines_at_once(make(max_num_seqs=513))
    said(underfed, Status.WARN, "512 in 2 shards", "runs up to 513 ->", "LONGHAUL_SHARDS_IN_FLIGHT=3")
    alone = devices.lines_at_once(make(max_num_seqs=100, shards_in_flight=1, shard_lines=8))
    said(alone, Status.WARN, "8 in 1 shard for", "LONGHAUL_SHARDS_IN_FLIGHT=13")


def test_a_profile_is_wanted_for_npus_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "chip.env"
    profile.write_text("LONGHAUL_CHIP=800i-a2\nHCCL_BUFFSIZE=120\nTASK_QUEUE_ENABLE=1\n")
    assert devices.profile(make("cpu:0;cuda:0")) is None
    said(devices.profile(make("npu:0")), Status.WARN, "none", "LONGHAUL_PROFILE")
    said(devices.profile(make("npu:0", profile=profile)), Status.OK, "2 variables for 800i-a2")
    said(devices.profile(make("cpu:0", profile=profile)), Status.WARN, "no group takes it")
    monkeypatch.setenv("HCCL_BUFFSIZE", "64")
    said(devices.profile(make("npu:0", profile=profile)), Status.OK, "stay so: HCCL_BUFFSIZE")
    profile.write_text("HCCL_BUFFSIZE=120\n")
    said(devices.profile(make("npu:0", profile=profile)), Status.WARN, "LONGHAUL_CHIP=800i-a2 or 300i-duo")


# Ports


def test_a_master_port_in_use_is_passed_by_and_said(make: Make) -> None:
    first = free_port()
    span = {"master_ports": f"{first}-{first + 40}", "tensor_parallel_size": 2}
    assert ports.master(make("cpu:0,1", master_ports=f"{first}-{first + 40}")) is None
    said(ports.master(make("cpu:0,1", **span)), Status.OK, f"{first} for cpu:0,1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        said(ports.master(make("cpu:0,1", **span)), Status.WARN, f"; {first} in use", "LONGHAUL_MASTER_PORTS")
        with pytest.raises(DeviceGroupError, match="no free MASTER_PORT"):
            ports.master(make("cpu:0,1", master_ports=f"{first}-{first}", tensor_parallel_size=2))


def test_a_port_for_metrics_in_use(make: Make) -> None:
    assert ports.metrics(make(metrics_port=0)) is None
    first = free_port()
    groups = "echo:0;echo:1"
    said(ports.metrics(make(groups, metrics_port=first)), Status.OK, f"127.0.0.1:{first}-{first + 1}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        verdict = ports.metrics(make(groups, metrics_port=first))
        said(verdict, Status.FAIL, f"127.0.0.1:{first + 1} is in use", "LONGHAUL_METRICS_PORT")
    said(ports.metrics(make(groups, metrics_port=65535)), Status.FAIL, "65536 is no port")


def test_ports_of_hccl_are_to_be_reserved(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "_NET", tmp_path)
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    assert ports.hccl(make("npu:0;cpu:0,1")) is None
    subject = make("npu:0,1;npu:2,3")
    monkeypatch.setattr(ports, "port_is_free", lambda _port, _host: True)
    said(ports.hccl(subject), Status.WARN, "60000-60063", "ip_local_reserved_ports=60000-60063")
    (tmp_path / "ip_local_reserved_ports").write_text("22,60000-60063\n")
    said(ports.hccl(subject), Status.OK, "60000-60063")
    monkeypatch.setattr(ports, "port_is_free", lambda port, _host: port != 60040)
    said(ports.hccl(subject), Status.WARN, "60040 of 60000-60063 is in use")


# Clocks


@pytest.mark.parametrize(
    ("skew", "words"), [(-5.0, "5.0 s ahead of X's"), (5.0, "5.0 s behind X's"), (1.5, "1.5 s")]
)
def test_a_clock_that_is_off(monkeypatch: pytest.MonkeyPatch, skew: float, words: str) -> None:
    monkeypatch.setattr(clocks.time, "time", lambda: 1000.0)
    said(clocks._compared(lambda: 1000.0 + skew, "X", 0.0), Status.WARN, words, "NTP")


def test_a_clock_is_right_within_a_second_and_what_the_question_took(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.cycle([1000.0, 1004.0])
    monkeypatch.setattr(clocks.time, "time", lambda: next(moments))
    said(clocks._compared(lambda: 1004.9, "X", 0.0), Status.OK)
    said(clocks._compared(lambda: 1005.1, "X", 0.0), Status.WARN)


# The store


def test_a_folder_that_is_nearly_full_or_not_everybodys(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    said(store.folder(make()), Status.OK, "GiB free")
    said(store.folder(make(redis_url="redis://example.org:6379/0")), Status.WARN, "share this folder")
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _path: usage)
    said(store.folder(make()), Status.WARN, "0.0 GiB free", "make room")


def test_a_store_without_tls_on_a_network(make: Make) -> None:
    assert store.tls(make()) is None
    s3 = {"store_url": "s3://b"}
    assert store.tls(make(**s3, s3_endpoint="https://s3.example.org")) is None
    said(store.tls(make(**s3, s3_endpoint="http://127.0.0.1:8333")), Status.OK)
    said(store.tls(make(**s3, s3_endpoint="http://s3.example.org")), Status.WARN, "in the clear", "https://")


# The model's files


def test_a_sound_model(make: Make, tiny: Path) -> None:
    subject = make(model=tiny)
    said(model_files.config(subject), Status.OK, "tiny: LlamaForCausalLM, 2 layers, float32")
    said(model_files.weights(subject), Status.OK, "21 tensors", "1 .safetensors")
    said(model_files.tokenizer(subject), Status.OK, "260 entries, and a chat template")
    said(model_files.generation_config(subject), Status.OK, "greedy")
    assert model_files.matrix(subject) is None


def test_echo_needs_no_files(make: Make) -> None:
    subject = make("echo:0", model_name="parrot")
    said(model_files.config(subject), Status.OK, "parrot")
    checks = (model_files.weights, model_files.tokenizer, model_files.generation_config, model_files.matrix)
    assert [check(subject) for check in checks] == [None] * 4


def test_a_folder_that_is_no_model(make: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model_files.config(make(model=tmp_path))


def test_weights_in_parts_are_all_there_or_named(make: Make, tiny: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    said(model_files.weights(make(model=tiny)), Status.FAIL, "has no .safetensors", "model convert")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tiny / file)
    index = {name: file for file, held in parts.items() for name in held}

    def write_index(weight_map: object) -> None:
        (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    write_index(index)
    subject = make(model=tiny)
    said(model_files.weights(subject), Status.OK, "21 tensors", "2 .safetensors")
    write_index({**index, "lm_tail.weight": "b.safetensors"})
    said(model_files.weights(subject), Status.FAIL, "no tensor lm_tail.weight")
    write_index([])
    said(model_files.weights(subject), Status.FAIL, "is no index")
    write_index(index)
    whole = (tiny / "b.safetensors").read_bytes()
    (tiny / "b.safetensors").write_bytes(whole[:-1])
    said(model_files.weights(subject), Status.FAIL, "b.safetensors is truncated or damaged", "copy it again")
    (tiny / "b.safetensors").unlink()
    said(model_files.weights(subject), Status.FAIL, "b.safetensors is missing")


def test_a_tokenizer_of_another_model(make: Make, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    said(model_files.tokenizer(make(model=tiny)), Status.FAIL, "260 entries, and the model has 100")


def test_a_base_model_answers_prompts_alone(make: Make, tiny: Path) -> None:
    read = json.loads((tiny / "tokenizer.json").read_text())
    for mark in ("<|im_start|>", "<|im_end|>"):
        read["added_tokens"] = [each for each in read["added_tokens"] if each["content"] != mark]
    (tiny / "tokenizer.json").write_text(json.dumps(read))
    (tiny / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    said(model_files.tokenizer(make(model=tiny)), Status.WARN, "no chat template", "none with messages")


def test_a_generation_config_that_the_engine_refuses(make: Make, tiny: Path) -> None:
    path = tiny / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "temperature": 0.8, "top_p": 0.9}))
    said(model_files.generation_config(make(model=tiny)), Status.OK, "temperature 0.8, top_p 0.9, top_k 50")
    path.write_text(json.dumps({"do_sample": True, "top_p": 7}))
    with pytest.raises(CheckpointError, match="correct the file"):
        model_files.generation_config(make(model=tiny))


def test_the_matrix_is_asked_for_npus(make: Make, tmp_path: Path) -> None:
    folder = shapes.write("internlm2-20b", tmp_path / "internlm2-20b")
    said(model_files.matrix(make("npu:0,1", model=folder)), Status.OK, "allows npu:0,1")
    with pytest.raises(DeviceGroupError, match="not on 3"):
        model_files.matrix(make("npu:0,1,2", model=folder))
