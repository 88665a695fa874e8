// Runs before the first paint, so that a chosen theme does not flash the other one. Not a module: those wait.
(() => {
  try {
    const { theme, language } = JSON.parse(localStorage.getItem("sightline.settings") ?? "{}");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    if (language) document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  } catch {
    // Storage may be forbidden; the system's theme is used then.
  }
})();
