import json
import subprocess
import sys

from mlxm.device.probe import probe


def test_the_probe_prints_one_json_object() -> None:
    """With all that doctor shows."""
    command = [sys.executable, "-m", "mlxm.worker", "--probe"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert report["error"] is None
    assert report["mlx_version"].startswith("0.")
    assert report["device"] in {"cpu", "gpu"}
    assert report["memory_bytes"] > 1 << 30
    if sys.platform == "linux":
        assert report["blas"]["gflops"] > 0


def test_a_failure_is_part_of_the_report() -> None:
    """Whoever asks need not tell an answer from a crash."""
    if sys.platform == "linux":
        assert probe("/no/such/library.so", num_threads=None) == {
            "error": "The BLAS /no/such/library.so cannot be loaded."
        }


def test_an_mlx_that_cannot_be_imported_is_reported() -> None:
    """Its own words say why."""
    program = (
        "import sys; sys.modules['mlx'] = None; sys.argv = ['worker', '--probe'];"
        "from mlxm.worker.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert "mlx does not start: No module named 'mlx" in json.loads(done.stdout)["error"]
