"""`sightline bench`: measure a server under load."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.bench.serve.bench import BenchSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure a server under load.\n\nExample: sightline bench serve --max-concurrency 4",
)


@app.callback()
def _group() -> None:
    """A group of commands, though there is one so far."""


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, **settings)


@app.command(
    epilog="Example: sightline bench serve --dataset random-mm --random-image-size 448x448 --sweep 1,4,16 "
    "-o result.json --plot load.png"
)
def serve(
    base_url: Annotated[str | None, _option("--base-url", help="The server; over --host and --port.")] = None,
    host: Annotated[str, _option("--host", help="The server's host.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", help="The server's port.", min=1, max=65535)] = 8000,
    endpoint: Annotated[
        str, _option("--endpoint", help="/v1/chat/completions or /v1/completions.")
    ] = "/v1/chat/completions",
    model: Annotated[str | None, _option("--model", help="Without it the first of /v1/models.")] = None,
    api_key: Annotated[str | None, _option("--api-key", help="Without it OPENAI_API_KEY.")] = None,
    header: Annotated[list[str] | None, _option("--header", help="NAME=VALUE, sent too; repeatable.")] = None,
    insecure: Annotated[bool, _option("--insecure", help="Accept any certificate.")] = False,
    timeout: Annotated[float, _option("--timeout", help="Seconds of one request.")] = 600.0,
    num_prompts: Annotated[
        int | None, _option("--num-prompts", help="Requests of each load; 100, or what a dataset has.")
    ] = None,
    request_rate: Annotated[
        str, _option("--request-rate", help="Requests a second, at random moments; inf sends all at once.")
    ] = "inf",
    burstiness: Annotated[
        float, _option("--burstiness", help="1 is a Poisson process; less comes in bursts, more evenly.")
    ] = 1.0,
    max_concurrency: Annotated[
        int | None, _option("--max-concurrency", help="Most requests open at a time.")
    ] = None,
    sweep: Annotated[
        str | None, _option("--sweep", help="Several loads in turn, as concurrent requests: 1,4,16.")
    ] = None,
    sweep_rates: Annotated[
        str | None, _option("--sweep-rates", help="Several loads in turn, as requests a second: 0.5,1,2.")
    ] = None,
    ramp_up_strategy: Annotated[
        str | None, _option("--ramp-up-strategy", help="linear or exponential: a rate that climbs.")
    ] = None,
    ramp_up_start_rps: Annotated[float, _option("--ramp-up-start-rps", help="Where it begins.")] = 0.0,
    ramp_up_end_rps: Annotated[float, _option("--ramp-up-end-rps", help="Where it ends.")] = 0.0,
    warmup: Annotated[
        int, _option("--warmup", "--num-warmups", help="Requests before each load that are not counted.")
    ] = 1,
    dataset: Annotated[
        str,
        _option(
            "--dataset",
            "--dataset-name",
            help="random (text), random-mm (pictures too), a jsonl file or a folder of pictures.",
        ),
    ] = "random",
    random_input_len: Annotated[
        int, _option("--random-input-len", help="Tokens of a random text; the template's come on top.")
    ] = 256,
    random_output_len: Annotated[
        int, _option("--random-output-len", "--output-len", help="Most tokens of an answer.")
    ] = 128,
    random_range_ratio: Annotated[
        float, _option("--random-range-ratio", help="0.2 draws lengths from 80 to 120 %.")
    ] = 0.0,
    shared_prefix_len: Annotated[
        int,
        _option(
            "--shared-prefix-len", "--random-prefix-len", help="Tokens that all random texts begin with."
        ),
    ] = 0,
    images_per_request: Annotated[
        int, _option("--images-per-request", help="Pictures of a random-mm prompt.")
    ] = 1,
    random_image_size: Annotated[
        str, _option("--random-image-size", help="WxH; several with weights as 448x448:3,1280x720:1.")
    ] = "448x448",
    image_format: Annotated[str, _option("--image-format", help="jpeg or png.")] = "jpeg",
    repeat_images: Annotated[
        int, _option("--repeat-images", help="Make only so many pictures and take them in turn.")
    ] = 0,
    prompt: Annotated[
        str, _option("--prompt", help="The question about each picture of a folder.")
    ] = "Describe this picture.",
    seed: Annotated[
        int | None, _option("--seed", help="Of all that is random; without it a new one, which is written.")
    ] = None,
    ignore_eos: Annotated[
        bool, _option("--ignore-eos", help="Answers go on to their full length, where the server can.")
    ] = False,
    temperature: Annotated[float, _option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float | None, _option("--top-p", help="Sent as it is.")] = None,
    top_k: Annotated[int | None, _option("--top-k", help="Sent as it is.")] = None,
    min_p: Annotated[float | None, _option("--min-p", help="Sent as it is.")] = None,
    frequency_penalty: Annotated[float | None, _option("--frequency-penalty", help="Sent as it is.")] = None,
    presence_penalty: Annotated[float | None, _option("--presence-penalty", help="Sent as it is.")] = None,
    repetition_penalty: Annotated[
        float | None, _option("--repetition-penalty", help="Sent as it is.")
    ] = None,
    extra_body: Annotated[
        str | None, _option("--extra-body", help="A JSON object whose fields every request carries.")
    ] = None,
    percentile_metrics: Annotated[
        str, _option("--percentile-metrics", help="Which blocks to print.")
    ] = "ttft,tpot,itl,e2el",
    metric_percentiles: Annotated[
        str, _option("--metric-percentiles", help="Which percentiles, such as 50,90,99.")
    ] = "99",
    goodput: Annotated[
        list[str] | None,
        _option("--goodput", help='Count requests within "ttft:500 tpot:50" (ms; e2el too); repeatable.'),
    ] = None,
    output: Annotated[Path | None, _option("--output", "-o", help="Write the result there, as JSON.")] = None,
    save_result: Annotated[
        bool, _option("--save-result", help="Write it without -o too, named by time and load.")
    ] = False,
    save_detailed: Annotated[
        bool, _option("--save-detailed", help="With the figures and texts of each request.")
    ] = False,
    plot: Annotated[
        Path | None, _option("--plot", help="Draw latency and throughput against load (PNG); needs a sweep.")
    ] = None,
    as_json: Annotated[bool, _option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Load an OpenAI-compatible server and measure how fast it answers."""
    from sightline.bench.serve.arrivals import Arrivals
    from sightline.bench.serve.bench import BenchSettings, bench
    from sightline.bench.serve.datasets import DataSettings
    from sightline.bench.serve.metrics import METRICS, read_goodput
    from sightline.bench.serve.pictures import Sizes

    if plot is not None and not (sweep or sweep_rates):
        raise UsageError("--plot draws latency against load; give several loads with --sweep 1,4,16")
    if sweep and sweep_rates:
        raise UsageError("--sweep and --sweep-rates are two sweeps; give one")
    shown = percentile_metrics.split(",")
    if unknown := [name for name in shown if name not in METRICS]:
        raise UsageError(f"--percentile-metrics has {unknown[0]!r}; known are {', '.join(METRICS)}")
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "repetition_penalty": repetition_penalty,
        "ignore_eos": ignore_eos or None,
        "stream_options": {"include_usage": True},
    }
    settings = BenchSettings(
        base_url=base_url or f"http://{f'[{host}]' if ':' in host else host}:{port}",
        endpoint=endpoint,
        model=model,
        headers=_headers(header or [], api_key or os.environ.get("OPENAI_API_KEY")),
        insecure=insecure,
        data=DataSettings(
            dataset=dataset,
            input_len=random_input_len,
            output_len=random_output_len,
            range_ratio=random_range_ratio,
            prefix_len=shared_prefix_len,
            images=images_per_request,
            sizes=Sizes.read(random_image_size),
            image_format=image_format,
            repeat_images=repeat_images,
            text=prompt,
        ),
        prompts=num_prompts,
        arrivals=Arrivals(
            _number(request_rate, "--request-rate"),
            burstiness,
            ramp_up_strategy,
            ramp_up_start_rps,
            ramp_up_end_rps,
        ),
        max_concurrency=max_concurrency,
        sweep=_numbers(sweep or sweep_rates or "", "--sweep-rates" if sweep_rates else "--sweep"),
        sweep_rates=sweep_rates is not None,
        seed=seed,
        fields={
            **{name: value for name, value in sampling.items() if value is not None},
            **_object(extra_body),
        },
        goodput=read_goodput(goodput or []),
        percentiles=_numbers(metric_percentiles, "--metric-percentiles"),
        warmup=warmup,
        timeout=timeout,
    )
    results = bench(settings)
    _show(results, settings, shown, as_json=as_json, detailed=save_detailed)
    if output is None and save_result:
        output = Path(f"{results[0]['backend']}-{_load_of(settings)}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    _write(results, settings, output, plot, detailed=save_detailed)
    if results[-1]["unanswered"]:
        raise typer.Exit(130)
    if any(not result["completed"] for result in results):
        raise typer.Exit(1)


def _show(
    results: list[dict[str, Any]], settings: BenchSettings, shown: list[str], *, as_json: bool, detailed: bool
) -> None:
    from sightline.bench.serve.report import block, sweep_table

    if as_json:
        print(json.dumps(_document(results, settings, detailed=detailed), ensure_ascii=False, indent=2))
        return
    for result in results:
        print(block(result, metrics=shown, percentiles=settings.percentiles))
    if len(results) > 1:
        print(f"\n{sweep_table(results)}")


def _write(
    results: list[dict[str, Any]],
    settings: BenchSettings,
    output: Path | None,
    plot: Path | None,
    *,
    detailed: bool,
) -> None:
    from sightline.bench.serve.plot import draw_loads
    from sightline.files import write_json
    from sightline.progress import note

    if output is not None:
        write_json(output, _document(results, settings, detailed=detailed))
        note(f"written to {output}")
    if plot is not None:
        draw_loads(results, plot)
        note(f"drawn to {plot}")


def _document(results: list[dict[str, Any]], settings: BenchSettings, *, detailed: bool) -> dict[str, Any]:
    """A single load as vLLM writes it; a sweep as the list of its loads."""
    from sightline.bench.serve.report import record

    records = [record(result, detailed=detailed) for result in results]
    return {"loads": records} if settings.sweep else records[0]


def _headers(given: list[str], api_key: str | None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise UsageError(f"--header is {one!r}; write NAME=VALUE")
        headers[name] = value
    return headers


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"{option} is {text!r}; write a number")
    return number


def _numbers(text: str, option: str) -> tuple[float, ...]:
    return tuple(_number(part, option) for part in text.split(",") if part.strip())


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--extra-body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("--extra-body must be a JSON object, such as '{\"top_k\": 1}'")
    return found


def _load_of(settings: BenchSettings) -> str:
    if settings.sweep:
        return "sweep"
    clients = f"-concurrency{settings.max_concurrency}" if settings.max_concurrency else ""
    return f"{settings.arrivals.rate:g}qps{clients}"
