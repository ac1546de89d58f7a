"""Pages in a real browser: Chromium on the machine, driven by playwright."""
