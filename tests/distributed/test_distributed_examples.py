"""The examples train, with the command lines that they name; the README's table is the script's."""

import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"
LIMIT = 500  # seconds
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def with_torchrun(*arguments):
    command = [*TORCHRUN, str(FOLDER / "pytorch.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_of_the_readme_is_what_the_simulation_says(capsys):
    main = runpy.run_path(str(FOLDER / "coordination_cost.py"))["main"]
    table = main([])
    assert table in capsys.readouterr().out
    assert table in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_the_pytorch_example_learns(engine, tmp_path):
    options = ["--bfloat16", "--checkpoint", str(tmp_path)] if engine == "ddp" else []
    said = with_torchrun("--mode", "fp16", "--engine", engine, "--epochs", "2", *options)
    accuracies = [float(found) for found in re.findall(r"accuracy (\S+),", said)]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.8
    assert "skipped steps 0" in said
    assert "44 messages of 96 bytes" in said
    if engine == "ddp":
        assert len(list(tmp_path.iterdir())) == 2
        more = with_torchrun("--mode", "fp16", "--epochs", "3", *options)
        assert "epoch 2:" not in more
        assert "epoch 3:" in more


@pytest.mark.slow
def test_the_jax_example_learns(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(FOLDER / "keras_jax.py"), "--processes", "2", "--epochs", "3"]
    command += ["--coordinator", f"localhost:{port}", "--policy", "mixed_float16"]
    started = [
        subprocess.Popen(
            [*command, "--process", str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(), "DEEPSEEK_HPF_CACHE": str(tmp_path)},
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    accuracies = [float(found) for found in re.findall(r"accuracy: (\S+)", said[0])]
    assert accuracies[-1] > 0.8
    assert "skipped_steps: 0" in said[0]


@pytest.mark.slow
def test_the_replicas_of_tensorflow_skip_together_and_learn(tmp_path):
    command = [sys.executable, str(FOLDER / "keras_tensorflow.py"), "--epochs", "4"]
    done = subprocess.run(
        [*command, "--policy", "mixed_bfloat16", "--damage", "100"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**environment(), "DEEPSEEK_HPF_CACHE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracies = [float(found) for found in re.findall(r"val_accuracy: (\S+)", done.stdout)]
    assert accuracies[-1] > 0.8
    # 23 batches an epoch, of which one holds the damaged image
    assert "2 replicas, mixed_bfloat16: 88 steps done, 4 skipped on all" in done.stdout
