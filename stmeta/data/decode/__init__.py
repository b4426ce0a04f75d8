"""From encoded video to frames: `pyav` on the CPU, `dali` on CPU and GPU."""
