"""What importing the package costs."""

from __future__ import annotations

import subprocess
import sys


def test_plans_and_configurations_need_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys\n"
        "from sightline import CacheAgent, CacheConfig\n"
        "import sightline.video.attach, sightline.video.cache, sightline.video.fidelity, sightline.video.fingerprint\n"
        "CacheAgent(CacheConfig('dit_block_cache', 30, 50, 20, 2, 47))\n"
        "print(sorted({'torch', 'diffusers', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
