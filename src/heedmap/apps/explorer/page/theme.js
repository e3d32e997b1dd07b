// Runs before the page is drawn, so that nobody in the dark sees a white flash.
(() => {
  const saved = localStorage.getItem("heedmap-theme");
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
})();
