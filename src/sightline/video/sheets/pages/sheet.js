for (const part of document.querySelectorAll(".part")) {
  const { count, columns, fps } = Object.fromEntries(Object.entries(part.dataset).map(([name, value]) => [name, Number(value)]));
  const psnr = JSON.parse(part.dataset.psnr), rows = Math.ceil(count / columns);
  const slider = part.querySelector("input"), button = part.querySelector("button"), output = part.querySelector("output");
  const films = part.querySelectorAll(".film"), box = part.querySelector(".box"), cursor = part.querySelector(".cursor");
  let timer = null;
  for (const film of films) film.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  const share = (place, all) => (all > 1 ? 100 * place / (all - 1) : 0);
  const show = frame => {
    slider.value = frame;
    output.textContent = `frame ${frame}`;
    for (const film of films) film.style.backgroundPosition = `${share(frame % columns, columns)}% ${share(Math.floor(frame / columns), rows)}%`;
    for (const value of part.querySelectorAll(".value")) value.textContent = `this frame ${psnr[value.dataset.run][frame].toFixed(1)} dB`;
    if (cursor) cursor.style.left = `${100 * frame / count}%`;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "Pause";
    timer = setInterval(() => show((Number(slider.value) + 1) % count), 1000 / fps);
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  if (box) box.addEventListener("click", event => {
    const frame = box.getBoundingClientRect();
    stop();
    show(Math.max(0, Math.min(count - 1, Math.floor(count * (event.clientX - frame.left) / frame.width))));
  });
  for (const link of part.querySelectorAll(".seek")) link.addEventListener("click", event => {
    event.preventDefault();
    stop();
    show(Number(link.dataset.frame));
  });
  // The worst frame first: it is what the runs are judged by.
  const worst = part.querySelector(".seek");
  show(worst ? Number(worst.dataset.frame) : 0);
}
