"""sightline serve: parse and serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.options import (
    Adapter,
    CpuMemory,
    Device,
    DeviceMap,
    Dtype,
    GpuMemory,
    KvCacheMemory,
    MaxBatchedTokens,
    MaxModelLen,
    MaxPixels,
    MediaLimits,
    Model,
    PrefixCaching,
    Quantization,
    Speculation,
    media_limits,
)

if TYPE_CHECKING:
    from sightline.server.run import Address


def command(
    model: Model,
    adapter: Adapter = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model; without it, its folder's name.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Most answers computed together; 8 on a CPU, else 64.")
    ] = None,
    max_pixels: MaxPixels = None,
    max_model_len: MaxModelLen = None,
    max_num_batched_tokens: MaxBatchedTokens = None,
    kv_cache_memory: KvCacheMemory = None,
    gpu_memory_utilization: GpuMemory = 0.9,
    cpu_memory_share: CpuMemory = 0.4,
    limit_mm_per_prompt: MediaLimits = None,
    prefix_caching: PrefixCaching = True,
    num_speculative_tokens: Speculation = 0,
    quantization: Quantization = None,
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
) -> None:
    """Serve a model over HTTP with OpenAI's API, until Ctrl-C.

    Example:  sightline serve --model MODEL --port 8000
    """
    from sightline.server.run import serve

    serve(
        model,
        host=host,
        port=port,
        served_model_name=served_model_name,
        on_ready=_say_ready,
        adapter=adapter,
        max_num_seqs=max_num_seqs,
        max_pixels=max_pixels,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory_bytes=kv_cache_memory,
        gpu_memory_utilization=gpu_memory_utilization,
        cpu_memory_share=cpu_memory_share,
        limit_mm_per_prompt=media_limits(limit_mm_per_prompt),
        enable_prefix_caching=prefix_caching,
        num_speculative_tokens=num_speculative_tokens,
        quantization=quantization,
        device=device,
        device_map=device_map,
        dtype=dtype,
    )


def _say_ready(address: Address) -> None:
    typer.echo(f"ready: {address.model} at {address.url} (Ctrl-C stops)")
