// Loaded before the first paint, so that the page never flashes in the other theme.
try {
  const theme = localStorage.getItem("linkd-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // No storage: as the system says.
}
