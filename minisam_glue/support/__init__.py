"""Parts that all of the package uses: whole files, checked values, printable text, caches, processes."""
