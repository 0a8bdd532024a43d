"""Which GPUs a command may take, and who holds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpo.devices import chosen_gpus, device_label, hold_gpu, own_device, uses
from hpo.errors import InputError, SetupError
from hpo.launcher import Slot, slots_on

# A stand-in for NVIDIA's library, as the driver brings it: two GPUs, by number or id.
NVML = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } rates_t;
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **d) { *d = (void *)(long)(i + 1); return i < 2 ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *id, void **d) { *d = (void *)1; return strcmp(id, "GPU-8f3a4c21-aa"); }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) { m->total = 80ULL << 30; m->used = (long)d * 10ULL << 30; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, rates_t *r) { r->gpu = 90 + (long)d; r->memory = 5; return 0; }
int nvmlDeviceGetName(void *d, char *name, unsigned int n) { strncpy(name, "A100", n); return 0; }
"""


def test_gpus_are_all_that_are_visible_or_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1,3")
    assert chosen_gpus(None) == chosen_gpus("all") == ["0", "1", "3"]
    assert chosen_gpus("3,0") == ["3", "0"]


@pytest.mark.parametrize("given", ["0,2", "2,foo", "0,,1", "0,0", ""])
def test_gpus_that_cannot_be_are_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match=r"GPU 2(, foo)? is not among those of CUDA_VISIBLE_DEVICES=0,1|each once"):
        chosen_gpus(given)


def test_gpus_that_nothing_makes_visible_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match="GPU foo is not there"):
        chosen_gpus("GPU-8f3a4c21-aa,foo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for given in ("0", "GPU-8f3a4c21-aa"):
        with pytest.raises(InputError, match=f"GPU {given} is not among those of CUDA_VISIBLE_DEVICES=$"):
            chosen_gpus(given)


def test_all_gpus_of_a_box_without_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (chosen_gpus(None), own_device()) == ([], "cpu")
    with pytest.raises(InputError, match="no GPU was found"):
        chosen_gpus("all")


def test_each_slot_has_a_name_of_its_own_and_gpus_come_in_turn() -> None:
    assert slots_on(["0", "1"], 4) == [
        Slot("gpu 0", "0"),
        Slot("gpu 1", "1"),
        Slot("gpu 0.2", "0"),
        Slot("gpu 1.2", "1"),
    ]
    assert slots_on([], 2) == [Slot("cpu", None), Slot("cpu.2", None)]
    assert device_label("GPU-8f3a4c21-aa") == "gpu 8f3a4c21"


def test_gpu_of_another_study_is_refused_until_its_worker_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(tmp_path))
    script = "import sys; from hpo.devices import hold_gpu; held = hold_gpu('0', 'first', share=False); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as holder:
        wait_for_lock(tmp_path / "gpus" / "0")
        with pytest.raises(InputError, match=r"gpu 0 is at work for study 'first'; take another \(--gpus\), or"):
            hold_gpu("0", "second", share=False)
        hold_gpu("0", "first", share=False).close()
        hold_gpu("1", "second", share=False).close()
        hold_gpu("0", "second", share=True).close()
        holder.kill()
        holder.wait()
        with hold_gpu("0", "second", share=False) as file:
            file.seek(0)
            assert file.read() == "second"
            with pytest.raises(InputError, match="'second'"):
                hold_gpu("0", "first", share=False)


def wait_for_lock(path: Path) -> None:
    while not (path.exists() and path.read_text() == "first"):
        pass


def test_home_that_cannot_be_written_is_a_broken_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", Path("/proc/none")):
        monkeypatch.setenv("HPO_HOME", str(home))
        with pytest.raises(SetupError, match="HPO_HOME names a folder with room"):
            hold_gpu("0", "study", share=False)


def test_memory_and_load_come_from_nvidias_library_by_number_or_id(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    script = "from hpo.devices import uses; print(uses(['1', 'GPU-8f3a4c21-aa', '7']))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"LD_LIBRARY_PATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    second = "Use(name='A100', used_gib=20.0, total_gib=80.0, busy_percent=92)"
    by_id = "Use(name='A100', used_gib=10.0, total_gib=80.0, busy_percent=91)"
    assert done.stdout == f"{{'1': {second}, 'GPU-8f3a4c21-aa': {by_id}}}\n"


def test_without_nvidias_library_nothing_is_said_of_memory_and_load() -> None:
    assert uses(["0"]) == {}
