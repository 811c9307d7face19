"""The tables of bench/gpu.sh, for docs/performance.md."""

from report import table


def find(suite, name):
    """Details of a part that passed, or None."""
    return next((p["details"] for p in suite.parts if p["name"] == name and p["result"] == "passed"), None)


def number(value, digits=3):
    """With so many digits in all."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def peak_page(peaks):
    return ("Peaks of this run: a copy within the GPU's memory " + f"{peaks['copy_gb_s']:.0f} GB/s (both directions counted), "
            f"matrix products in bf16 {peaks['bf16_tflops']:.0f} TF/s and in fp32 {peaks['fp32_tflops']:.1f} TF/s.")


def forward_page(suite, peaks):
    bf16, fp32 = suite.forward.get("bf16") or {}, suite.forward.get("fp32") or {}
    rows = []
    for name, a in bf16.items():
        us = 1e3 * a["median_ms"] / a["audio_s"]
        tflops = a["gflop"] / a["median_ms"]
        rows.append([name, f"{a['audio_s']:.0f}", f"{a['median_ms']:.3f} ({a['best_ms']:.3f})", number(us), f"{1e6 / us:,.0f}",
                     f"{100 * tflops / peaks['bf16_tflops']:.0f}" if peaks else "",
                     f"{fp32[name]['median_ms']:.3f}" if name in fp32 else ""])
    return "The forward pass, wav2vec2-base with random weights, audio and results in host memory:\n\n" + table(
        ("", "audio s", "bf16 ms, median (best)", "us a second of audio", "times real time", "% of the bf16 peak", "fp32 ms"), rows)


def laboratory_page(name, lines, peaks):
    rows = []
    for line in lines:
        us = line.get("graph_us", line.get("eager_us"))
        if not us:
            continue
        tflops, gbs = line["flop"] / us * 1e-6, line["bytes"] / us * 1e-3
        peak = peaks and (peaks["bf16_tflops"] if line["precision"] == "bf16" else peaks["fp32_tflops"])
        rows.append([line["name"], number(line["eager_us"]), number(line.get("graph_us")), number(line["warm_us"]), number(tflops),
                     number(gbs), f"{100 * tflops / peak:.0f}" if peaks else "",
                     f"{100 * gbs / peaks['copy_gb_s']:.0f}" if peaks else "", f"{line['error']:.1g}"])
    return f"Operations, {name} (microseconds of one call; eager and graph with cold caches):\n\n" + table(
        ("", "eager", "graph", "warm", "TF/s", "GB/s", "% of the matrix peak", "% of the copy", "error"), rows)


def describe_settings(found):
    """One line: the last workload's time over the first setting's."""
    names = [n for n in found if "error" not in found[n]]
    if not names:
        return "none of these runs here: " + "; ".join(f"{n}: {found[n]['error']}" for n in found)
    base, parts = found[names[0]], []
    for n in names[1:]:
        ratios = [f"{found[n][w]['median_ms'] / base[w]['median_ms']:.3f}" for w in base if w in found[n] and "median_ms" in base[w]]
        parts.append(f"{n} {' '.join(ratios)}")
    return f"times over those of \"{names[0]}\": " + "; ".join(parts)


def settings_page(name, found):
    loads = []
    for answers in found.values():
        loads += [w for w in answers if w != "error" and w not in loads]
    rows = []
    for setting, answers in found.items():
        if "error" in answers:
            rows.append([setting, f"does not run: {answers['error'][:150]}", *[""] * (len(loads) - 1)])
            continue
        cells = []
        for load in loads:
            a = answers.get(load, {})
            cells.append(f"{a.get('median_ms', a.get('ms_per_batch', 0)):.3f}" if a else "")
        rows.append([setting, *cells])
    return f"{name[0].upper()}{name[1:]}, ms in bf16:\n\n" + table(("", *loads), rows)


def torch_page(suite):
    rows = []
    for part, label in (("PyTorch eager fp32", "eager, fp32"), ("PyTorch SDPA bf16", "SDPA, bf16"),
                        ("PyTorch compile bf16", "torch.compile (reduce-overhead), SDPA, bf16")):
        details = find(suite, part)
        for name, line in (details["timed"] if details else {}).items():
            rows.append([label, name, f"{line['median_ms']:.3f}", f"{line['ours_ms']:.3f}" if "ours_ms" in line else "",
                         f"{line['ratio']:.2f}" if "ratio" in line else ""])
    if not rows:
        return None
    return ("Beside PyTorch, the same weights and lengths, ms; its fp32 logits agreed with ours before anything was timed; mixed "
            "lengths are padded there:\n\n" + table(("", "", "PyTorch", "Timbre", "PyTorch / Timbre"), rows))


def timeline_page(details):
    rows = [[k["name"], k["launches"], f"{k['us']:.1f}", f"{100 * k['us'] / details['total_us']:.1f}"] for k in details["kernels"][:25]]
    return ("Kernels of a batch of ten clips of 10 s in bf16, each timed on its own by Nsight Compute:\n\n" +
            table(("kernel", "launches", "us in all", "%"), rows))


def write_pages(suite):
    peaks, pages = suite.peaks, []
    if peaks:
        pages.append(peak_page(peaks))
    if suite.forward.get("bf16"):
        pages.append(forward_page(suite, peaks))
    pages.append(torch_page(suite))
    for part in suite.parts:
        if not part["details"] or part["result"] != "passed":
            continue
        name = part["name"]
        if name.startswith("settings: "):
            pages.append(settings_page(name.removeprefix("settings: "), part["details"]))
        elif name.startswith("laboratory "):
            pages.append(laboratory_page(name.removeprefix("laboratory "), part["details"]["lines"], peaks))
        elif name == "timeline":
            pages.append(timeline_page(part["details"]))
    return [page for page in pages if page]
