// Runs before the page is drawn, so that nobody in the dark sees a white flash.
(() => {
  const kept = localStorage.getItem("heedmap-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
